package tests

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
	"github.com/flaminco/redischannels/schedule"
)

func TestSchedule_Refused(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	topic := redistest.Key(t)
	s := newSchedules(t, client, topic)
	msg := tickMessage("a")
	for name, bad := range map[string]schedule.Schedule{
		"ID":      {At: time.Now(), Message: msg},
		"Message": {ID: "a", At: time.Now()},
		"At":      {ID: "a", Message: msg},
		"Cron":    {ID: "a", Cron: "0 0 30 2 *", Message: msg},
		"Zone":    {ID: "a", Cron: "@daily", Zone: "Local", Message: msg},
		"Misfire": {ID: "a", Cron: "@daily", Misfire: "never", Message: msg},
		"Grace":   {ID: "a", Cron: "@daily", Grace: time.Millisecond, Message: msg},
	} {
		_, err := s.Put(t.Context(), bad)
		require.ErrorIs(t, err, redischannels.ErrInvalidArgument, name)
		require.ErrorContains(t, err, name)
	}
	msg.Payload = make([]byte, 1<<20)
	require.ErrorIs(t, s.At(t.Context(), "a", time.Now(), msg), redischannels.ErrTooLarge)
	require.Zero(t, client.Exists(t.Context(), schedulesKey(topic)).Val())
	require.NoError(t, newSchedules(t, client, topic).At(t.Context(), "a", time.Now().Add(time.Hour), tickMessage("a")))
	other := newSchedules(t, client, "{"+topic+"}")
	require.ErrorIs(t, other.At(t.Context(), "a", time.Now(), tickMessage("a")), redischannels.ErrTopicCollision)

	_, err := schedule.New(schedule.Config{Interval: 1}, nil)
	require.ErrorIs(t, err, redischannels.ErrInvalidConfig)
	for _, field := range []string{"Config.Client", "Config.Topic", "Config.Interval"} {
		require.ErrorContains(t, err, field)
	}
	_, err = schedule.New(schedule.Config{Client: client, Topic: "a}b"}, nil)
	require.ErrorContains(t, err, "SideKeys")
	require.NoError(t, s.Close())
	require.ErrorIs(t, s.At(t.Context(), "a", time.Now(), tickMessage("a")), redischannels.ErrClosed)
	require.ErrorIs(t, s.Run(t.Context()), redischannels.ErrClosed)
}

// A value of a channel is published as its Writer would.
func TestSchedule_ValueOfAChannel(t *testing.T) {
	t.Parallel()
	hub, topic := newHubOf(t), redistest.Key(t)
	orders := streamOf[order](t, hub, topic, redischannels.StreamChannelConfig{})
	msg, err := schedule.Value(orders.Writer(), order{ID: 7})
	require.NoError(t, err)
	s := newSchedules(t, hub.Client(), topic)
	require.NoError(t, s.At(t.Context(), "once", time.Now(), msg))
	d := receiveValue(t, orders)
	require.Equal(t, order{ID: 7}, d.Value)
	id, _, ok := schedule.FromMetadata(d.Metadata)
	require.True(t, ok)
	require.Equal(t, "once", id)
	require.NoError(t, d.Ack())
}

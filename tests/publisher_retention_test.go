package tests

import (
	"bytes"
	"fmt"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
)

// A cap that was not configured removed what a group had not read.
func TestPublisher_NothingIsTrimmedByDefault(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	topic := redistest.Key(t)
	p := newTestPublisher(t, client)
	require.NoError(t, p.Publish(topic, pubMessages("m", 1500)...))
	require.NoError(t, p.Publish(topic, pubMessages("n", 1)...))
	require.EqualValues(t, 1501, client.XLen(t.Context(), topic).Val())
}

// Acknowledging does not delete, so a stream without retention grows forever.
// `~` keeps more than the number says; only `=` is exact.
// XDEL leaves the memory in use; retention must trim.
func TestPublisher_RetentionBoundsTheStream(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	client := server.Client(t)
	exact, approx, free := redistest.Key(t), redistest.Key(t), redistest.Key(t)
	p := newTestPublisher(t, client, func(c *redischannels.PublisherConfig) {
		c.Retention = redischannels.Retention{MaxLen: 10}
		c.TopicRetention = map[string]redischannels.Retention{exact: {MaxLen: 10, Exact: true}, free: {}}
	})
	for i := range 20 {
		for _, topic := range []string{exact, approx, free} {
			require.NoError(t, p.Publish(topic, pubMessages(fmt.Sprint(i, "-"), 100)...))
			require.NoError(t, p.Publish(topic, pubMessages("single", 1)...))
		}
	}
	ctx := t.Context()
	require.EqualValues(t, 10, client.XLen(ctx, exact).Val())
	require.EqualValues(t, 20*101, client.XLen(ctx, free).Val(), "an override of a topic can also be none")
	n := client.XLen(ctx, approx).Val()
	require.Greater(t, n, int64(10), "~ trims whole nodes only")
	require.LessOrEqual(t, n, int64(10+2*100))
	require.Less(t, client.MemoryUsage(ctx, approx).Val(), client.MemoryUsage(ctx, free).Val()/4)
	require.Zero(t, redistest.CommandStats(t, client)["xdel"])
}

// Trimming by age goes by the entry IDs, and an ID from the future makes
// Redis stay there: such entries must do no harm to the new ones.
func TestPublisher_RetentionByAge(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	ctx := t.Context()
	byAge := func(c *redischannels.PublisherConfig) {
		c.Retention = redischannels.Retention{MaxAge: time.Minute, Exact: true}
	}
	now := time.Now()
	add := func(topic string, at time.Time) {
		require.NoError(t, client.XAdd(ctx, &redis.XAddArgs{Stream: topic, ID: fmt.Sprint(at.UnixMilli(), "-0"), Values: []string{"uuid", "old"}}).Err())
	}
	t.Run("old entries go, young ones stay", func(t *testing.T) {
		topic := redistest.Key(t)
		add(topic, now.Add(-time.Hour))
		add(topic, now.Add(-2*time.Minute))
		add(topic, now.Add(-30*time.Second))
		require.NoError(t, newTestPublisher(t, client, byAge).Publish(topic, pubMessages("m", 2)...))
		_, uuids := pubEntries(t, client, topic)
		require.Equal(t, []string{"old", "m0", "m1"}, uuids)
	})
	t.Run("an ID from the future", func(t *testing.T) {
		topic := redistest.Key(t)
		add(topic, now.Add(-time.Hour))
		add(topic, now.Add(time.Hour))
		ids, err := newTestPublisher(t, client, byAge).Append(ctx, topic, pubMessages("m", 2)...)
		require.NoError(t, err)
		future := fmt.Sprint(now.Add(time.Hour).UnixMilli())
		require.Equal(t, []string{future + "-1", future + "-2"}, ids)
		_, uuids := pubEntries(t, client, topic)
		require.Equal(t, []string{"old", "m0", "m1"}, uuids)
	})
	t.Run("an age beyond the epoch", func(t *testing.T) {
		topic := redistest.Key(t)
		add(topic, now.Add(-time.Hour))
		p := newTestPublisher(t, client, func(c *redischannels.PublisherConfig) {
			c.Retention = redischannels.Retention{MaxAge: 100 * 365 * 24 * time.Hour, Exact: true}
		})
		require.NoError(t, p.Publish(topic, pubMessages("m", 1)...))
		require.EqualValues(t, 2, client.XLen(ctx, topic).Val())
	})
}

// A topic is a key and nothing else, whatever stands in it, and a payload
// has a bound.
func TestPublisher_TopicsAndSizes(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	ctx := t.Context()
	p := newTestPublisher(t, client)

	require.ErrorIs(t, p.Publish("", pubMessages("m", 1)...), redischannels.ErrInvalidArgument)

	victim := redistest.Key(t, "victim")
	require.NoError(t, client.Set(ctx, victim, "precious", 0).Err())
	nasty := redistest.Key(t) + "\r\nDEL " + victim + "\r\n"
	require.NoError(t, p.Publish(nasty, pubMessages("m", 1)...))
	require.NoError(t, p.Publish(nasty, pubMessages("n", 2)...))
	_, uuids := pubEntries(t, client, nasty)
	require.Equal(t, []string{"m0", "n0", "n1"}, uuids)

	err := p.Publish(victim, pubMessages("m", 1)...)
	require.ErrorIs(t, err, redischannels.ErrWrongType)
	err = p.Publish(victim, pubMessages("m", 3)...)
	require.ErrorIs(t, err, redischannels.ErrWrongType)
	require.Equal(t, 3, pubError(t, err).Count(redischannels.OutcomeNotAppended))
	require.Equal(t, "precious", client.Get(ctx, victim).Val())

	topic := redistest.Key(t)
	huge := message.NewMessage("huge", make([]byte, redischannels.DefaultMaxPayload+1))
	require.ErrorIs(t, p.Publish(topic, huge), redischannels.ErrTooLarge)
	require.Zero(t, client.Exists(ctx, topic).Val())
	large := message.NewMessage("large", bytes.Repeat([]byte{'x'}, 20<<20))
	require.NoError(t, p.Publish(topic, large))
	require.EqualValues(t, 1, client.XLen(ctx, topic).Val())
}

// A group without a consumer keeps a trimmer that waits for it from trimming forever.
// Retention does not wait, and the group gets a report when it comes back.
func TestPublisher_AbandonedGroupDoesNotStopTrimming(t *testing.T) {
	t.Parallel()
	client, topic := redistest.Shared(t).Client(t), redistest.Key(t)
	pub := newTestPublisher(t, client, watermillFormat, func(c *redischannels.PublisherConfig) {
		c.Retention = redischannels.Retention{MaxLen: 10, Exact: true}
	})
	require.NoError(t, pub.Publish(topic, pubMessages("read", 5)...))
	deliverTo(t, client, topic, "gone", 5, time.Hour)
	for range 10 {
		require.NoError(t, pub.Publish(topic, pubMessages("m", 10)...))
	}
	require.EqualValues(t, 10, client.XLen(t.Context(), topic).Val())
	sub := newSub(t, client)
	receiveAcked(t, sub.subscribe(t, topic), 10)
	eventuallyPending(t, client, topic, 0)
	sub.events.wait(t, redischannels.EventTrimmed)
}

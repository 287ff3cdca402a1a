package tests

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
)

// All subscriptions of a group must use one MinIdle: one that differs is reported, by name and values.
func TestControl_DifferingSettings(t *testing.T) {
	t.Parallel()
	client, topic := redistest.Shared(t).Client(t), redistest.Key(t)
	first := newSub(t, client, minIdle(300*time.Millisecond))
	first.subscribe(t, topic)
	same := newSub(t, client, minIdle(300*time.Millisecond))
	same.subscribe(t, topic)
	other := newSub(t, client, minIdle(400*time.Millisecond), func(c *redischannels.SubscriberConfig) { c.ConsumerGroup = "other" })
	other.subscribe(t, topic)
	differs := newSub(t, client, minIdle(400*time.Millisecond), tuned(func(c *redischannels.Tuning) { c.ConsumerTimeout = 7 * time.Second }))
	differs.subscribe(t, topic)
	require.ErrorContains(t, differs.events.wait(t, redischannels.EventError).Err, "the MinIdle of the group is 400ms here and was 300ms")
	redistest.Eventually(t, soon, func() bool { return len(differs.events.of(redischannels.EventError)) == 2 }, "the ConsumerTimeout too")
	require.ErrorContains(t, differs.events.of(redischannels.EventError)[1].Err, "the ConsumerTimeout of the group is 7s here")
	for _, sub := range []*testSub{first, same, other, differs} {
		sub.closeSoon(t)
	}
	for _, sub := range []*testSub{first, same, other} {
		sub.events.none(t, redischannels.EventError)
	}
}

// orders and {orders} have the same side keys: what is deferred for one would return to the other.
func TestControl_TopicCollision(t *testing.T) {
	t.Parallel()
	client, topic := redistest.Shared(t).Client(t), redistest.Key(t)
	sub := newSub(t, client)
	sub.subscribe(t, topic)
	_, err := sub.Subscribe(t.Context(), "{"+topic+"}")
	require.ErrorIs(t, err, redischannels.ErrTopicCollision)
	require.ErrorContains(t, err, topic)
	require.Zero(t, client.Exists(t.Context(), "{"+topic+"}").Val(), "nothing was made")

	damaged := redistest.Key(t)
	require.NoError(t, client.Set(t.Context(), controlOf(damaged), "x", 0).Err())
	_, err = sub.Subscribe(t.Context(), damaged)
	require.ErrorIs(t, err, redischannels.ErrWrongType)
	sub.closeSoon(t)
}

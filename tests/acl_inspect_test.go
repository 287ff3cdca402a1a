package tests

import (
	"iter"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/inspect"
)

// aclInspect reads everything.
func aclInspect(t *testing.T, admin, client *redis.Client, topic string) error {
	t.Helper()
	_, dead := aclDeadLetter(t, admin, topic)
	ids := publish(t, admin, topic, make([]string, 300)...)
	deliverTo(t, admin, topic, "c", 10, 0)
	require.NoError(t, admin.XDel(t.Context(), topic, ids[20]).Err())
	pub, err := redischannels.NewPublisher(redischannels.PublisherConfig{Client: admin}, nil)
	require.NoError(t, err)
	defer pub.Close()
	require.NoError(t, pub.Publish(topic, delayedFor(time.Hour, pubMessages("m", 150)...)...))
	require.NoError(t, newInspector(t, admin).Pause(t.Context(), topic, "g", inspect.PauseOptions{Until: serverTime(t, admin).Add(time.Hour)}))
	due := redis.Z{Score: 1e13, Member: "a stored retry"}
	require.NoError(t, admin.ZAdd(t.Context(), dueOf(topic, "g"), due).Err())
	inspector := newInspector(t, client)
	topics := inspect.TopicsQuery{Match: topic}
	for _, err := range inspector.Topics(t.Context(), topics) {
		if err != nil {
			return err
		}
	}
	if _, err := inspector.Topic(t.Context(), topic); err != nil {
		return err
	}
	for _, err := range inspector.Groups(t.Context(), topic) {
		if err != nil {
			return err
		}
	}
	if _, err := inspector.Consumers(t.Context(), topic, "g"); err != nil {
		return err
	}
	for _, err := range []error{
		ended(inspector.Pending(t.Context(), topic, "g", inspect.PendingQuery{})),
		ended(inspector.Pending(t.Context(), topic, "g", inspect.PendingQuery{Returned: true})),
		ended(inspector.Messages(t.Context(), topic, inspect.MessagesQuery{})),
		ended(inspector.Messages(t.Context(), topic, inspect.MessagesQuery{Newest: true})),
		aclDelayedVanish(t, admin, inspector, topic), ended(inspector.Deferred(t.Context(), topic, "g")),
		ended(inspector.Schedules(t.Context(), topic)), ended(inspector.Audit(t.Context(), topic, 0)),
	} {
		if err != nil {
			return err
		}
	}
	reasons, err := inspector.DeadLetterReasons(t.Context(), topic, "")
	if err == nil {
		require.Equal(t, dead, reasons.Reasons[0].ID)
	}
	return err
}

// aclDelayedVanish lists delayed messages while the last of a page is moved.
func aclDelayedVanish(t *testing.T, admin *redis.Client, inspector *inspect.Inspector, topic string) error {
	t.Helper()
	n := 0
	for m, err := range inspector.Delayed(t.Context(), topic) {
		if err != nil {
			return err
		}
		if n++; n == 100 {
			require.NoError(t, admin.ZRem(t.Context(), "{"+topic+"}:due", m.ID).Err())
		}
	}
	require.Equal(t, 150, n)
	return nil
}

// ended runs a loop to its end.
func ended[T any](loop iter.Seq2[T, error]) error {
	for _, err := range loop {
		if err != nil {
			return err
		}
	}
	return nil
}

// aclSeek plans and does a seek of a group that has pending, returned and deferred entries.
func aclSeek(t *testing.T, admin, client *redis.Client, topic string) error {
	t.Helper()
	require.NoError(t, newSub(t, admin, func(c *redischannels.SubscriberConfig) { c.StartFrom = redischannels.Oldest }).SubscribeInitialize(topic))
	publish(t, admin, topic, payloadsUpTo(1, 4)...)
	deliverTo(t, admin, topic, "crashed", 2, time.Hour)
	returned := []string{"payload", "x", "_return_entry_id", "1-1", "_return_reason", "x", "_return_count", "1"}
	require.NoError(t, admin.XAdd(t.Context(), &redis.XAddArgs{Stream: returnStream(topic, "g"), Values: returned}).Err())
	require.NoError(t, admin.ZAdd(t.Context(), dueOf(topic, "g"), redis.Z{Score: 1e15, Member: "later"}).Err())
	require.NoError(t, admin.HSet(t.Context(), "{"+topic+"}:delayed", "later", "x").Err())
	require.NoError(t, newInspector(t, admin).Pause(t.Context(), topic, "g", inspect.PauseOptions{Until: serverTime(t, admin).Add(time.Hour)}))
	options := inspect.SeekOptions{To: redischannels.Oldest, DropPending: true}
	inspector := newInspector(t, client)
	plan, err := inspector.SeekPlan(t.Context(), topic, "g", options)
	if err != nil {
		return err
	}
	require.Equal(t, []int64{2, 0, 1, 1}, []int64{plan.Redelivered, plan.Pending, plan.Deferred, plan.Returned})
	if err := inspector.Seek(t.Context(), topic, "g", options); err != nil {
		require.Empty(t, admin.HGet(t.Context(), controlOf(topic), "seek:g").Val())
		require.Len(t, pendingOf(t, admin, topic), 2, "nothing has changed")
		require.EqualValues(t, 1, admin.ZCard(t.Context(), dueOf(topic, "g")).Val())
		require.EqualValues(t, 1, admin.XLen(t.Context(), returnStream(topic, "g")).Val())
		return err
	}
	require.Empty(t, pendingOf(t, admin, topic))
	return nil
}

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

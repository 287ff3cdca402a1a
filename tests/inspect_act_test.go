package tests

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/inspect"
	"github.com/flaminco/redischannels/internal/redistest"
)

// lineOf returns a line of the audit stream, without its ID and time.
func lineOf(t *testing.T, inspector *inspect.Inspector, topic string, n int) inspect.AuditLine {
	t.Helper()
	lines := allOf(t, inspector.Audit(t.Context(), topic, 0))
	require.Greater(t, len(lines), n)
	line := lines[n]
	line.ID, line.Time = "", time.Time{}
	return line
}

// deadIDs returns the IDs of the dead letters of a topic.
func deadIDs(t *testing.T, inspector *inspect.Inspector, topic string) (ids []string) {
	t.Helper()
	for _, letter := range allOf(t, inspector.DeadLetters(t.Context(), topic, redischannels.DeadLetterQuery{})) {
		ids = append(ids, letter.ID)
	}
	return ids
}

// While consumers reject and handle messages, a requeue and a purge change what their dry runs have listed, and nothing
// else: every message is handled, or is a dead letter, or was purged.
func TestInspect_DeadLettersUnderLoad(t *testing.T) {
	t.Parallel()
	client, topic := redistest.Start(t).Client(t), redistest.Key(t)
	inspector := newInspector(t, client)
	sub := newSub(t, client, inFlight(8))
	handled, ended := make(map[string]int), make(chan struct{})
	messages := sub.subscribe(t, topic)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	total := 0
	go func() {
		defer close(ended)
		seen := make(map[string]bool)
		for {
			select {
			case msg := <-messages:
				payload := string(msg.Payload)
				if first := !seen[payload]; first && payload[0] != 'g' { // good ones are handled at once
					seen[payload] = true
					redischannels.Reject(msg, map[byte]string{'a': "timeout", 'b': "no such customer"}[payload[0]])
					msg.Nack()
					continue
				}
				handled[payload]++
				msg.Ack()
			case <-ctx.Done():
				return
			}
		}
	}()
	load := func(n int) {
		for range n {
			for _, kind := range []string{"a", "b", "g"} {
				publish(t, client, topic, fmt.Sprint(kind, total))
			}
			total++
		}
	}
	load(60)
	redistest.Eventually(t, soon, func() bool { return client.XLen(t.Context(), deadStream(topic)).Val() == 120 }, "two thirds are dead letters")

	timeouts := inspect.DeadLetterSelection{Group: "g", Reason: "timeout", Max: 50, DryRun: true}
	plan, err := inspector.Requeue(t.Context(), topic, timeouts)
	require.NoError(t, err)
	require.Len(t, plan.IDs, 50)
	require.True(t, plan.More)
	customers := inspect.DeadLetterSelection{Reason: "no such customer", DryRun: true}
	doomed, err := inspector.Purge(t.Context(), topic, customers)
	require.NoError(t, err)
	require.Len(t, doomed.IDs, 60)
	require.Zero(t, plan.Changed+doomed.Changed)
	require.Len(t, deadIDs(t, inspector, topic), 120)
	require.Empty(t, allOf(t, inspector.Audit(t.Context(), topic, 0)), "a dry run leaves no line")

	loaded := make(chan struct{})
	go func() {
		defer close(loaded)
		load(40)
	}()
	timeouts.DryRun, timeouts.IDs, timeouts.PerSecond = false, plan.IDs, 100
	began := time.Now()
	requeued, err := inspector.Requeue(t.Context(), topic, timeouts)
	require.NoError(t, err)
	require.GreaterOrEqual(t, time.Since(began), 400*time.Millisecond, "the last 40 of 50, at 100 in a second")
	require.Equal(t, plan.IDs, requeued.IDs)
	require.Equal(t, 50, requeued.Changed)
	require.Empty(t, requeued.Unchanged)
	customers.DryRun, customers.IDs = false, doomed.IDs
	purged, err := inspector.Purge(t.Context(), topic, customers)
	require.NoError(t, err)
	require.Equal(t, doomed.IDs, purged.IDs)
	require.Equal(t, 60, purged.Changed)
	<-loaded

	redistest.Eventually(t, soon, func() bool {
		g, err := inspector.Group(t.Context(), topic, "g")
		return err == nil && g.Backlog() == 0 && client.XLen(t.Context(), deadStream(topic)).Val() == 120-50-60+80
	}, "all is handled")
	left := deadIDs(t, inspector, topic)
	for _, id := range append(plan.IDs, doomed.IDs...) {
		require.NotContains(t, left, id)
	}
	stop()
	<-ended
	require.Len(t, handled, 100+50)
	for payload, n := range handled {
		require.Equal(t, 1, n, payload)
	}
	require.Equal(t, inspect.AuditLine{Who: "tester", Action: "purge ended", Details: map[string]string{"changed": "60", "matched": "60"}}, lineOf(t, inspector, topic, 0))
	require.Equal(t, inspect.AuditLine{Who: "tester", Action: "requeue", Group: "g", Details: map[string]string{"reason": "timeout", "matched": "50"}}, lineOf(t, inspector, topic, 3))
}

// A dead letter that cannot be requeued stays and is named.
func TestInspect_RequeueNoReader(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	inspector := newInspector(t, client)
	dead := newDeadTopic(t, client)
	_, id := dead.die(t, "g", "", "a", "1")
	require.NoError(t, client.Del(t.Context(), returnStream(dead.name, "g")).Err())
	change, err := inspector.Requeue(t.Context(), dead.name, inspect.DeadLetterSelection{})
	require.NoError(t, err)
	require.Zero(t, change.Changed)
	require.Len(t, change.Unchanged, 1)
	require.Equal(t, redischannels.RequeueNoReader, change.Unchanged[0].Outcome)
	require.Equal(t, []string{id}, deadIDs(t, inspector, dead.name))

	for name, selection := range map[string]inspect.DeadLetterSelection{
		"Max": {Max: 10_001}, "PerSecond": {PerSecond: -1}, "IDs": {IDs: []string{"x"}},
	} {
		_, err := inspector.Purge(t.Context(), dead.name, selection)
		require.ErrorIs(t, err, redischannels.ErrInvalidArgument)
		require.ErrorContains(t, err, "DeadLetterSelection."+name)
	}
	require.Equal(t, []string{id}, deadIDs(t, inspector, dead.name))
	nothing, err := inspector.Purge(t.Context(), dead.name, inspect.DeadLetterSelection{Group: "other"})
	require.NoError(t, err)
	require.Empty(t, nothing.IDs)
	require.Len(t, allOf(t, inspector.Audit(t.Context(), dead.name, 0)), 2, "what matches nothing is no action")
}

// One that is stopped says how far it came, and its last line too.
func TestInspect_RequeueIsStopped(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	inspector := newInspector(t, client)
	dead := newDeadTopic(t, client)
	for range 5 {
		dead.dieOf(t, "g", "timeout", deadTime)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		redistest.Eventually(t, soon, func() bool { return client.XLen(t.Context(), returnStream(dead.name, "g")).Val() == 1 }, "one is requeued")
		cancel()
	}()
	change, err := inspector.Requeue(ctx, dead.name, inspect.DeadLetterSelection{PerSecond: 0.01})
	require.ErrorIs(t, err, context.Canceled)
	require.Len(t, change.IDs, 5)
	require.Equal(t, 1, change.Changed)
	require.Equal(t, change.IDs[1:], deadIDs(t, inspector, dead.name))
	require.Equal(t, map[string]string{"changed": "1", "matched": "5"}, lineOf(t, inspector, dead.name, 0).Details)
}

// Without a line in the audit stream nothing is changed.
func TestInspect_NoLineNoChange(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	inspector := newInspector(t, client)
	dead := newDeadTopic(t, client)
	_, id := dead.die(t, "g", "", "a", "1")
	publish(t, client, dead.name, "m")
	pending := deliverTo(t, client, dead.name, "c", 1, time.Hour)
	require.NoError(t, client.XGroupCreateConsumer(t.Context(), dead.name, "g", "idle").Err())
	require.NoError(t, client.HSet(t.Context(), controlOf(dead.name), "min-idle:g", 0).Err())
	require.NoError(t, client.Set(t.Context(), auditOf(dead.name), "x", 0).Err())
	selection := inspect.DeadLetterSelection{}
	_, err := inspector.Requeue(t.Context(), dead.name, selection)
	require.ErrorIs(t, err, redischannels.ErrWrongType)
	_, err = inspector.Purge(t.Context(), dead.name, selection)
	require.ErrorIs(t, err, redischannels.ErrWrongType)
	_, err = inspector.Skip(t.Context(), dead.name, "g", pending[0], inspect.SkipOptions{})
	require.ErrorIs(t, err, redischannels.ErrWrongType)
	_, err = inspector.RemoveConsumer(t.Context(), dead.name, "g", "c", inspect.RemoveConsumerOptions{Release: true})
	require.ErrorIs(t, err, redischannels.ErrWrongType)
	_, err = inspector.RemoveConsumer(t.Context(), dead.name, "g", "idle", inspect.RemoveConsumerOptions{Release: true})
	require.ErrorIs(t, err, redischannels.ErrWrongType)
	require.Equal(t, []string{id}, deadIDs(t, inspector, dead.name))
	require.Equal(t, "c", pendingOf(t, client, dead.name)[0].Consumer)
	require.Contains(t, consumersOf(t, client, dead.name), "idle")
}

// A message that blocks an ordered topic is skipped while its handler hangs: what is behind it flows.
func TestInspect_SkipUnblocks(t *testing.T) {
	t.Parallel()
	client, topic := redistest.Shared(t).Client(t), redistest.Key(t)
	inspector := newInspector(t, client)
	sub := newSub(t, client, func(c *redischannels.SubscriberConfig) {
		c.NackBackoff = redischannels.Backoff{Min: time.Hour, Max: time.Hour}
	})
	messages := sub.subscribe(t, topic)
	ids := publish(t, client, topic, payloadsUpTo(1, 5)...)
	receive(t, messages).Nack()
	noMessage(t, messages)

	dry, err := inspector.Skip(t.Context(), topic, "g", ids[0], inspect.SkipOptions{DryRun: true})
	require.NoError(t, err)
	require.Equal(t, inspect.Skipped{EntryID: ids[0], Consumer: sub.Stats()[0].Consumer, Deliveries: 1}, dry)
	noMessage(t, messages)
	require.Empty(t, allOf(t, inspector.Audit(t.Context(), topic, 0)))

	done, err := inspector.Skip(t.Context(), topic, "g", ids[0], inspect.SkipOptions{Reason: "bad address"})
	require.NoError(t, err)
	require.Equal(t, payloadsUpTo(2, 5), receiveAcked(t, messages, 4))
	letters := allOf(t, inspector.DeadLetters(t.Context(), topic, redischannels.DeadLetterQuery{}))
	require.Len(t, letters, 1)
	require.Equal(t, done.DeadLetter, letters[0].ID)
	require.Equal(t, "bad address", letters[0].Reason)
	require.Equal(t, ids[0], letters[0].EntryID)
	require.Equal(t, 1, letters[0].Count)
	require.WithinRange(t, letters[0].Time, time.Now().Add(-time.Minute), time.Now().Add(time.Second))
	eventuallyPending(t, client, topic, 0)
	require.Equal(t, inspect.AuditLine{Who: "tester", Action: "skip", Group: "g", Details: map[string]string{
		"entry": ids[0], "consumer": sub.Stats()[0].Consumer, "to": "dead", "reason": "bad address",
	}}, lineOf(t, inspector, topic, 0))

	// It comes back by a requeue, and is skipped there.
	change, err := inspector.Requeue(t.Context(), topic, inspect.DeadLetterSelection{})
	require.NoError(t, err)
	require.Equal(t, 1, change.Changed)
	held := receive(t, messages)
	var back []inspect.PendingEntry
	redistest.Eventually(t, soon, func() bool {
		back = allOf(t, inspector.Pending(t.Context(), topic, "g", inspect.PendingQuery{Returned: true}))
		return len(back) == 1
	}, "it is pending in the return stream")
	done, err = inspector.Skip(t.Context(), topic, "g", back[0].ID, inspect.SkipOptions{Returned: true})
	require.NoError(t, err)
	require.Equal(t, ids[0], done.EntryID)
	held.Ack() // in vain
	letters = allOf(t, inspector.DeadLetters(t.Context(), topic, redischannels.DeadLetterQuery{}))
	require.Len(t, letters, 1)
	require.Equal(t, "skipped", letters[0].Reason)
	require.Len(t, letters[0].Fields, 3, "without those of the return stream")
	require.Zero(t, client.XLen(t.Context(), returnStream(topic, "g")).Val())
	sub.events.none(t, redischannels.EventError, redischannels.EventDeadLetterFailed, redischannels.EventGroupLost)
}

func TestInspect_SkipDropsAndRefuses(t *testing.T) {
	t.Parallel()
	client, topic := redistest.Shared(t).Client(t), redistest.Key(t)
	inspector := newInspector(t, client)
	published := publish(t, client, topic, "a", "b", "c")
	large := addRaw(t, client, topic, manyFields(4000)...)
	ids := deliverTo(t, client, topic, "c", 4, 0)
	require.NoError(t, client.HSet(t.Context(), controlOf(topic), "min-idle:g", 100).Err())
	skip := func(id string, options inspect.SkipOptions) error {
		_, err := inspector.Skip(t.Context(), topic, "g", id, options)
		return err
	}
	require.NoError(t, skip(ids[0], inspect.SkipOptions{Drop: true}))
	require.Empty(t, deadIDs(t, inspector, topic))
	require.EqualValues(t, 4, client.XLen(t.Context(), topic).Val(), "other groups have it")
	require.Equal(t, "drop", lineOf(t, inspector, topic, 0).Details["to"])
	require.ErrorIs(t, skip(ids[0], inspect.SkipOptions{}), inspect.ErrNoEntry)

	require.NoError(t, client.XDel(t.Context(), topic, ids[1]).Err())
	require.ErrorContains(t, skip(ids[1], inspect.SkipOptions{}), "can only be dropped")
	require.ErrorContains(t, skip(large, inspect.SkipOptions{}), "too many fields")
	require.Equal(t, 3, len(pendingOf(t, client, topic)), "nothing was done")
	require.Len(t, allOf(t, inspector.Audit(t.Context(), topic, 0)), 1)
	for _, id := range []string{ids[1], large} {
		require.NoError(t, skip(id, inspect.SkipOptions{Drop: true}))
	}
	require.Equal(t, published[2], pendingOf(t, client, topic)[0].ID)
	require.Len(t, pendingOf(t, client, topic), 1)

	require.ErrorIs(t, skip("x", inspect.SkipOptions{}), redischannels.ErrInvalidArgument)
	require.ErrorIs(t, skip(ids[2], inspect.SkipOptions{Reason: strings.Repeat("x", 1025)}), redischannels.ErrInvalidArgument)
	_, err := inspector.Skip(t.Context(), topic, "h", ids[2], inspect.SkipOptions{})
	require.ErrorIs(t, err, inspect.ErrNoGroup)
}

// Redis drops what is pending for a consumer that is removed. We do not.
func TestInspect_RemoveConsumer(t *testing.T) {
	t.Parallel()
	client, topic := redistest.Shared(t).Client(t), redistest.Key(t)
	inspector := newInspector(t, client)
	publish(t, client, topic, payloadsUpTo(1, 700)...)
	deliverTo(t, client, topic, "crashed", 600, time.Hour)
	back := returnStream(topic, "g")
	require.NoError(t, client.XGroupCreateMkStream(t.Context(), back, "g", "0").Err())
	require.NoError(t, client.XAdd(t.Context(), &redis.XAddArgs{Stream: back, Values: []string{"a", "b"}}).Err())
	require.NoError(t, client.XReadGroup(t.Context(), &redis.XReadGroupArgs{Group: "g", Consumer: "crashed", Streams: []string{back, ">"}, Block: -1}).Err())
	remove := func(consumer string, options inspect.RemoveConsumerOptions) (inspect.RemovedConsumer, error) {
		return inspector.RemoveConsumer(t.Context(), topic, "g", consumer, options)
	}
	_, err := remove("crashed", inspect.RemoveConsumerOptions{})
	require.ErrorIs(t, err, inspect.ErrConsumerBusy)
	require.ErrorContains(t, err, "has read", "it was created just now")
	require.NoError(t, client.HSet(t.Context(), controlOf(topic), "min-idle:g", 1).Err())
	redistest.Eventually(t, soon, func() bool {
		_, err = remove("crashed", inspect.RemoveConsumerOptions{})
		return strings.Contains(err.Error(), "has 601 pending entries")
	}, "it is not alive any more")
	require.ErrorIs(t, err, inspect.ErrConsumerBusy)
	_, err = remove("other", inspect.RemoveConsumerOptions{})
	require.ErrorIs(t, err, inspect.ErrNoConsumer)
	_, err = remove("", inspect.RemoveConsumerOptions{})
	require.ErrorIs(t, err, redischannels.ErrInvalidArgument)
	require.Empty(t, allOf(t, inspector.Audit(t.Context(), topic, 0)))

	dry, err := remove("crashed", inspect.RemoveConsumerOptions{Release: true, DryRun: true})
	require.NoError(t, err)
	require.Equal(t, 601, dry.Released)
	require.Len(t, allOf(t, inspector.Pending(t.Context(), topic, "g", inspect.PendingQuery{Consumer: "crashed"})), 600)
	require.Empty(t, allOf(t, inspector.Audit(t.Context(), topic, 0)))

	done, err := remove("crashed", inspect.RemoveConsumerOptions{Release: true})
	require.NoError(t, err)
	require.Equal(t, 601, done.Released)
	require.Equal(t, []string{"requeue"}, consumersOf(t, client, topic))
	require.Len(t, allOf(t, inspector.Pending(t.Context(), topic, "g", inspect.PendingQuery{})), 600, "nothing is lost")
	require.Len(t, allOf(t, inspector.Pending(t.Context(), topic, "g", inspect.PendingQuery{Returned: true})), 1)
	require.Equal(t, inspect.AuditLine{Who: "tester", Action: "remove consumer", Group: "g", Details: map[string]string{
		"consumer": "crashed", "released": "601",
	}}, lineOf(t, inspector, topic, 0))
	require.Equal(t, "release", lineOf(t, inspector, topic, 1).Action)
	_, err = remove("requeue", inspect.RemoveConsumerOptions{Release: true})
	require.ErrorIs(t, err, redischannels.ErrInvalidArgument)
	_, err = remove("requeue", inspect.RemoveConsumerOptions{})
	require.ErrorIs(t, err, inspect.ErrConsumerBusy)
}

// A living consumer is removed only where that is asked for: it loses its leases, and every message is handled.
func TestInspect_RemoveConsumerUnderLoad(t *testing.T) {
	t.Parallel()
	client, topic := redistest.Shared(t).Client(t), redistest.Key(t)
	inspector := newInspector(t, client)
	sub := newSub(t, client, inFlight(4))
	h := handle(sub.subscribe(t, topic), 4, work(time.Millisecond))
	publish(t, client, topic, payloadsUpTo(1, 300)...)
	redistest.Eventually(t, soon, func() bool { return h.len() > 10 }, "it works")
	own := sub.Stats()[0].Consumer
	_, err := inspector.RemoveConsumer(t.Context(), topic, "g", own, inspect.RemoveConsumerOptions{})
	require.ErrorIs(t, err, inspect.ErrConsumerBusy)
	for range 3 {
		_, err := inspector.RemoveConsumer(t.Context(), topic, "g", own, inspect.RemoveConsumerOptions{Release: true})
		// Or it has not read since, or while it was removed, ten times.
		require.True(t, err == nil || errors.Is(err, inspect.ErrNoConsumer) || errors.Is(err, inspect.ErrConsumerBusy), err)
	}
	redistest.Eventually(t, soon, func() bool {
		got := h.payloads()
		slices.Sort(got)
		return len(slices.Compact(got)) == 300
	}, "every message is handled")
	eventuallyPending(t, client, topic, 0)
	sub.events.none(t, redischannels.EventGroupLost) // as if Redis had forgotten what it holds
}

// The keys of a topic are in one slot, and so is everything that the scripts touch.
func TestInspect_ActionsOfACluster(t *testing.T) {
	t.Parallel()
	client := redistest.StartCluster(t, 3).Client(t)
	inspector := newInspector(t, client)
	for range 3 {
		topic := redistest.Key(t)
		require.NoError(t, newSub(t, client).SubscribeInitialize(topic))
		publish(t, client, topic, "a", "b")
		ids := deliverTo(t, client, topic, "c", 2, time.Hour)
		_, err := inspector.Skip(t.Context(), topic, "g", ids[0], inspect.SkipOptions{})
		require.NoError(t, err)
		change, err := inspector.Requeue(t.Context(), topic, inspect.DeadLetterSelection{})
		require.NoError(t, err)
		require.Equal(t, 1, change.Changed)
		_, err = inspector.RemoveConsumer(t.Context(), topic, "g", "c", inspect.RemoveConsumerOptions{Release: true})
		require.NoError(t, err)
		_, err = inspector.Purge(t.Context(), topic, inspect.DeadLetterSelection{})
		require.NoError(t, err)
	}
}

// aclRepair does everything that changes a topic.
func aclRepair(t *testing.T, admin, client *redis.Client, topic string) error {
	t.Helper()
	aclDeadLetter(t, admin, topic)
	publish(t, admin, topic, "a", "b", "c")
	ids := deliverTo(t, admin, topic, "c", 3, time.Hour)
	inspector := newInspector(t, client)
	if _, err := inspector.Requeue(t.Context(), topic, inspect.DeadLetterSelection{}); err != nil {
		return err
	}
	if _, err := inspector.Skip(t.Context(), topic, "g", ids[0], inspect.SkipOptions{}); err != nil {
		return err
	}
	if _, err := inspector.Purge(t.Context(), topic, inspect.DeadLetterSelection{}); err != nil {
		return err
	}
	// Without Release it asks whether the consumer is alive.
	if _, err := inspector.RemoveConsumer(t.Context(), topic, "g", "c", inspect.RemoveConsumerOptions{}); !errors.Is(err, inspect.ErrConsumerBusy) {
		return err
	}
	_, err := inspector.RemoveConsumer(t.Context(), topic, "g", "c", inspect.RemoveConsumerOptions{Release: true})
	return err
}

package tests

import (
	"strings"
	"sync"
	"testing"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
)

// A requeued message is in the return stream of the group that failed, with its fields as they were, its
// deliveries counted from one and the ID of the original, which may have been trimmed.
func TestDeadLetters_Requeue(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	topic := newDeadTopic(t, client)
	letters := newDeadLetters(t, client)
	entry, id := topic.die(t, "g", "", "b", "2", "a", "1", "b", "3")
	require.NoError(t, client.XTrimMaxLen(t.Context(), topic.name, 0).Err())

	results, err := letters.Requeue(t.Context(), topic.name, strings.TrimSuffix(id, "-0"))
	require.NoError(t, err)
	require.Equal(t, []redischannels.RequeueResult{{ID: id, Outcome: redischannels.RequeueDone, EntryID: entry, Group: "g"}}, results)
	require.Empty(t, listIDs(t, letters, topic.name, redischannels.DeadLetterQuery{}))
	require.Zero(t, client.XLen(t.Context(), topic.name).Val(), "other groups do not see it")
	require.Empty(t, topic.returned(t, "h"))
	returned := topic.returned(t, "g")
	require.Len(t, returned, 1)
	require.Equal(t, []string{
		"b", "2", "a", "1", "b", "3", "_return_entry_id", entry, "_return_reason", "because", "_return_count", "0",
	}, returned[0].fields)

	results, err = letters.Requeue(t.Context(), topic.name, id)
	require.NoError(t, err)
	require.Equal(t, []redischannels.RequeueResult{{ID: id, Outcome: redischannels.RequeueNotFound}}, results)
}

// Every state in which an original can be.
func TestDeadLetters_RequeueOutcomes(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	topic := newDeadTopic(t, client)
	letters := newDeadLetters(t, client)
	ctx := t.Context()

	require.NoError(t, client.XGroupCreate(ctx, topic.name, "i", "0").Err()) // of another library: it has no return stream
	// Numbers in Lua cannot distinguish these two.
	fine, fineID := topic.die(t, "g", "9007199254740992-9007199254740992", "a", "1")
	pending, pendingID := topic.die(t, "g", "9007199254740992-9007199254740993", "a", "1")
	unread, unreadID := topic.die(t, "i", "9007199254740993-0", "a", "1")
	lost, lostID := topic.die(t, "h", "9007199254740993-1", "a", "1")
	early, earlyID := topic.die(t, "g", "9007199254740993-2", "a", "1")
	next, nextID := topic.die(t, "g", "10000000000000000-0", "a", "1")
	foreignID := client.XAdd(ctx, &redis.XAddArgs{Stream: topic.dead, Values: []string{"x", "y"}}).Val()
	elsewhereID := client.XAdd(ctx, &redis.XAddArgs{Stream: topic.dead, Values: []string{
		"x", "y", "_dead_reason", "r", "_dead_entry_id", fine, "_dead_topic", "elsewhere", "_dead_group", "g", "_dead_consumer", "c", "_dead_count", "1", "_dead_time", "?"}}).Val()
	malformedID := client.XAdd(ctx, &redis.XAddArgs{Stream: topic.dead, Values: []string{
		"x", "y", "_dead_reason", "r", "_dead_entry_id", "9007199254740992", "_dead_topic", topic.name, "_dead_group", "g", "_dead_consumer", "c", "_dead_count", "1", "_dead_time", "?"}}).Val()
	require.NoError(t, client.Do(ctx, "XCLAIM", topic.name, "g", "c", 0, pending, "FORCE", "JUSTID").Err())
	require.NoError(t, client.XGroupDestroy(ctx, topic.name, "h").Err())
	require.NoError(t, client.XGroupSetID(ctx, topic.name, "g", pending).Err())

	want := []redischannels.RequeueResult{
		{ID: fineID, Outcome: redischannels.RequeueDone, EntryID: fine, Group: "g"},
		{ID: fineID, Outcome: redischannels.RequeueNotFound},
		{ID: pendingID, Outcome: redischannels.RequeueStillPending, EntryID: pending, Group: "g"},
		{ID: unreadID, Outcome: redischannels.RequeueNoReader, EntryID: unread, Group: "i"},
		{ID: lostID, Outcome: redischannels.RequeueGroupMissing, EntryID: lost, Group: "h"},
		{ID: earlyID, Outcome: redischannels.RequeueNotDelivered, EntryID: early, Group: "g"},
		{ID: nextID, Outcome: redischannels.RequeueNotDelivered, EntryID: next, Group: "g"},
		{ID: foreignID, Outcome: redischannels.RequeueForeign},
		{ID: elsewhereID, Outcome: redischannels.RequeueForeign},
		{ID: malformedID, Outcome: redischannels.RequeueForeign}, // only what the library writes
		{ID: "1-1", Outcome: redischannels.RequeueNotFound},
	}
	ids := make([]string, len(want))
	for i, r := range want {
		ids[i] = r.ID
	}
	got, err := letters.Requeue(ctx, topic.name, ids...)
	require.NoError(t, err)
	require.Equal(t, want, got)
	require.Len(t, rawRange(t, client, topic.dead), 8, "only what was requeued is deleted")
	require.Len(t, topic.pending(t, "g"), 1)
	require.Len(t, topic.returned(t, "g"), 1)

	// The group stands just before the entry: as numbers in Lua the two are equal.
	require.NoError(t, client.XAck(ctx, topic.name, "g", pending).Err())
	require.NoError(t, client.XGroupSetID(ctx, topic.name, "g", fine).Err())
	got, err = letters.Requeue(ctx, topic.name, pendingID)
	require.NoError(t, err)
	require.Equal(t, redischannels.RequeueNotDelivered, got[0].Outcome)

	require.NoError(t, client.Del(ctx, topic.name).Err())
	got, err = letters.Requeue(ctx, topic.name, pendingID)
	require.NoError(t, err)
	require.Equal(t, redischannels.RequeueGroupMissing, got[0].Outcome, "the topic itself does not exist any more")
}

// Operators press the button at the same time, and more than one script's worth.
func TestDeadLetters_RequeueConcurrently(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	topic := newDeadTopic(t, client)
	letters := newDeadLetters(t, client)
	var ids []string
	for range 100 {
		_, id := topic.die(t, "g", "", "a", "1")
		ids = append(ids, id)
	}
	requeued := make([]int, 4)
	var wg sync.WaitGroup
	for i := range requeued {
		wg.Go(func() {
			results, err := letters.Requeue(t.Context(), topic.name, ids...)
			if err != nil || len(results) != len(ids) {
				t.Errorf("%d results, %v", len(results), err)
			}
			for j, r := range results {
				if r.ID != ids[j] {
					t.Errorf("result %d is of %s", j, r.ID)
				}
				if r.Outcome == redischannels.RequeueDone {
					requeued[i]++
				}
			}
		})
	}
	wg.Wait()
	sum := 0
	for _, n := range requeued {
		sum += n
	}
	require.Equal(t, 100, sum)
	require.Len(t, topic.returned(t, "g"), 100)
	require.Zero(t, client.XLen(t.Context(), topic.dead).Val())
}

func TestDeadLetters_RequeueLostReply(t *testing.T) {
	t.Parallel()
	server := redistest.Shared(t)
	topic := newDeadTopic(t, server.Client(t))
	_, id := topic.die(t, "g", "", "a", "1")
	proxy := redistest.NewProxy(t, server.Addr())
	lost := proxy.DropReplyIf(1, redistest.And(redistest.Script(), redistest.Contains(returnStream(topic.name, "g"))), func(reply []byte) bool { return reply[0] != '-' })
	results, err := newDeadLetters(t, server.Client(t, redistest.Via(proxy))).Requeue(t.Context(), topic.name, id)
	require.NoError(t, err)
	require.Equal(t, 1, lost.Count())
	require.Equal(t, redischannels.RequeueNotFound, results[0].Outcome)
	require.Len(t, topic.returned(t, "g"), 1)
}

// The whole life of a dead letter with real subscribers. It reaches the
// failed group again, with its deliveries counted from one and its fields as they
// were, and no other group.
func TestDeadLetters_RequeueWithSubscribers(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	topic := redistest.Key(t)
	letters := newDeadLetters(t, client)
	twice := func(c *redischannels.SubscriberConfig) { c.MaxDeliveries = 2 }
	failing := newSub(t, client, twice)
	fine := newSub(t, client, func(c *redischannels.SubscriberConfig) { c.ConsumerGroup = "h" })
	bad, good := failing.subscribe(t, topic), fine.subscribe(t, topic)
	id := publish(t, client, topic, "poison")[0]
	require.Equal(t, []string{"poison"}, receiveAcked(t, good, 1))

	for range 2 { // it dies, is requeued and dies again
		for count := 1; count <= 2; count++ {
			msg := receive(t, bad)
			require.Equal(t, id, entryIDOf(t, msg))
			require.Equal(t, count, countOf(t, msg))
			require.Equal(t, "poison", string(msg.Payload))
			msg.Nack()
		}
		var ids []string
		redistest.Eventually(t, soon, func() bool {
			ids = listIDs(t, letters, topic, redischannels.DeadLetterQuery{Group: "g"})
			return len(ids) == 1
		}, "no dead letter")
		results, err := letters.Requeue(t.Context(), topic, ids...)
		require.NoError(t, err)
		require.Equal(t, []redischannels.RequeueResult{{ID: ids[0], Outcome: redischannels.RequeueDone, EntryID: id, Group: "g"}}, results)
	}
	msg := receive(t, bad)
	require.Equal(t, 1, countOf(t, msg))
	msg.Ack()
	eventuallyPending(t, client, topic, 0)
	eventuallyReturned(t, client, topic, 0)
	noMessage(t, good)
	noMessage(t, bad)
	require.Empty(t, listIDs(t, letters, topic, redischannels.DeadLetterQuery{}))
}

// An invalid entry ID in a dead letter of another producer, for example one of 30 digits, ended
// the requeue of all others.
func TestDeadLetters_RequeueBesideForeignEntryIDs(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	topic := newDeadTopic(t, client)
	letters := newDeadLetters(t, client)
	var ids []string
	for _, entry := range []string{
		strings.Repeat("1", 30) + "-0", "1-" + strings.Repeat("1", 30), "18446744073709551616-0", "1-18446744073709551616",
		"-", "+", "1", "1-", "-1", "01-1", "1-01", "1-1-1", "a-b", "", "1-1\x00", "\xff-0",
	} {
		ids = append(ids, client.XAdd(t.Context(), &redis.XAddArgs{Stream: topic.dead, Values: []string{
			"x", "y", "_dead_reason", "r", "_dead_entry_id", entry, "_dead_topic", topic.name, "_dead_group", "g",
			"_dead_consumer", "c", "_dead_count", "1", "_dead_time", "?"}}).Val())
	}
	entry, id := topic.die(t, "g", "", "a", "1")
	results, err := letters.Requeue(t.Context(), topic.name, append(ids, id)...)
	require.NoError(t, err)
	require.Len(t, results, len(ids)+1)
	for i := range ids {
		require.Equal(t, redischannels.RequeueResult{ID: ids[i], Outcome: redischannels.RequeueForeign}, results[i])
	}
	require.Equal(t, redischannels.RequeueResult{ID: id, Outcome: redischannels.RequeueDone, EntryID: entry, Group: "g"}, results[len(ids)])
}

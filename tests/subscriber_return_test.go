package tests

import (
	"strconv"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
)

// addReturned appends an entry to a return stream as the mover does it.
func addReturned(t *testing.T, client redis.UniversalClient, topic, group, origin string, count int, payload string) string {
	t.Helper()
	return addRaw(t, client, returnStream(topic, group),
		"_watermill_message_uuid", payload, "metadata", "\x80", "payload", payload,
		"_return_entry_id", origin, "_return_reason", "because", "_return_count", strconv.Itoa(count))
}

// eventuallyReturned waits until the return stream of a group has n entries.
func eventuallyReturned(t *testing.T, client redis.UniversalClient, topic string, n int64) {
	t.Helper()
	redistest.Eventually(t, soon, func() bool { return client.XLen(t.Context(), returnStream(topic, "g")).Val() == n }, "%d entries are outstanding", n)
}

// A returned entry is delivered under the ID of its original, with the deliveries that were
// counted before, to its group only, and is deleted when it is acknowledged.
func TestReturn_DeliversTheOriginal(t *testing.T) {
	t.Parallel()
	client, topic := redistest.Shared(t).Client(t), redistest.Key(t)
	sub := newSub(t, client, deliveries(5))
	messages := sub.subscribe(t, topic)
	other := newSub(t, client, func(c *redischannels.SubscriberConfig) { c.ConsumerGroup = "other" })
	others := other.subscribe(t, topic)

	addReturned(t, client, topic, "g", "5-3", 2, "m")
	msg := receive(t, messages)
	require.Equal(t, "m", string(msg.Payload))
	require.Equal(t, "5-3", entryIDOf(t, msg))
	require.Equal(t, 3, countOf(t, msg))
	require.Empty(t, msg.Metadata)
	msg.Nack()
	msg = receive(t, messages)
	require.Equal(t, "5-3", entryIDOf(t, msg))
	require.Equal(t, 4, countOf(t, msg))
	msg.Ack()
	eventuallyReturned(t, client, topic, 0)
	noMessage(t, others)
	sub.closeSoon(t)
	other.closeSoon(t)
}

// The deliveries before its return count for MaxDeliveries, and the dead letter names the original.
func TestReturn_DeadLetter(t *testing.T) {
	t.Parallel()
	client, topic := redistest.Shared(t).Client(t), redistest.Key(t)
	sub := newSub(t, client, deliveries(3))
	messages := sub.subscribe(t, topic)
	addReturned(t, client, topic, "g", "5-3", 2, "m")
	receive(t, messages).Nack()
	require.Equal(t, []string{"5-3"}, sub.events.wait(t, redischannels.EventDeadLettered).EntryIDs)
	eventuallyReturned(t, client, topic, 0)
	require.Zero(t, client.XPending(t.Context(), returnStream(topic, "g"), "g").Val().Count)

	letters := client.XRange(t.Context(), deadStream(topic), "-", "+").Val()
	require.Len(t, letters, 1)
	values := letters[0].Values
	require.Equal(t, "5-3", values["_dead_entry_id"])
	require.Equal(t, topic, values["_dead_topic"])
	require.Equal(t, "3", values["_dead_count"])
	require.NotContains(t, values, "_return_entry_id")
	require.Equal(t, "m", values["payload"])
	sub.closeSoon(t)
}

// An entry of a crashed consumer is claimed in both streams, also where both have the same ID.
func TestReturn_ClaimsFromCrashedConsumers(t *testing.T) {
	t.Parallel()
	server := redistest.Shared(t)
	client, topic := server.Client(t), redistest.Key(t)
	back := returnStream(topic, "g")
	for _, key := range []string{topic, back} {
		require.NoError(t, client.XGroupCreateMkStream(t.Context(), key, "g", "0").Err())
	}
	block := []string{"_return_entry_id", "4-1", "_return_reason", "", "_return_count", "1"}
	fields := func(payload string, more ...string) []string {
		return append([]string{"_watermill_message_uuid", payload, "metadata", "\x80", "payload", payload}, more...)
	}
	require.NoError(t, client.XAdd(t.Context(), &redis.XAddArgs{Stream: topic, ID: "7-1", Values: fields("new")}).Err())
	require.NoError(t, client.XAdd(t.Context(), &redis.XAddArgs{Stream: back, ID: "7-1", Values: fields("returned", block...)}).Err())
	for _, key := range []string{topic, back} {
		require.NoError(t, client.XReadGroup(t.Context(), &redis.XReadGroupArgs{Group: "g", Consumer: "crashed", Streams: []string{key, ">"}}).Err())
		require.NoError(t, client.Do(t.Context(), "XCLAIM", key, "g", "crashed", 0, "7-1", "IDLE", time.Hour.Milliseconds(), "RETRYCOUNT", 2, "JUSTID").Err())
	}
	sub := newSub(t, client)
	messages := sub.subscribe(t, topic)
	got := map[string]int{}
	for range 2 {
		msg := receive(t, messages)
		got[entryIDOf(t, msg)+" "+string(msg.Payload)] = countOf(t, msg)
		msg.Ack()
	}
	require.Equal(t, map[string]int{"7-1 new": 3, "4-1 returned": 4}, got)
	eventuallyPending(t, client, topic, 0)
	eventuallyPending(t, client, back, 0)
	eventuallyReturned(t, client, topic, 0)
	sub.closeSoon(t)
}

// A return stream holds only what is outstanding: a group that was lost there begins at its start, what
// is in flight stays with its handler, and nothing that was acknowledged comes again.
func TestReturn_LostGroup(t *testing.T) {
	t.Parallel()
	client, topic := redistest.Shared(t).Client(t), redistest.Key(t)
	back := returnStream(topic, "g")
	sub := newSub(t, client, inFlight(4))
	messages := sub.subscribe(t, topic)
	for range 3 {
		addReturned(t, client, topic, "g", "1-1", 0, "before")
	}
	receiveAcked(t, messages, 3)
	eventuallyReturned(t, client, topic, 0)
	addReturned(t, client, topic, "g", "2-1", 1, "held")
	held := receive(t, messages)

	require.NoError(t, client.XGroupDestroy(t.Context(), back, "g").Err())
	addReturned(t, client, topic, "g", "3-1", 1, "after")
	require.Equal(t, []string{"after"}, receiveAcked(t, messages, 1))
	lost := sub.events.wait(t, redischannels.EventGroupLost)
	require.Equal(t, []string{"2-1"}, lost.EntryIDs)
	eventuallyPending(t, client, back, 1)
	held.Ack()
	eventuallyReturned(t, client, topic, 0)
	noMessage(t, messages)
	require.Empty(t, sub.events.of(redischannels.EventAckIgnored))

	require.NoError(t, client.Del(t.Context(), back).Err())
	addReturned(t, client, topic, "g", "4-1", 1, "another stream")
	require.Equal(t, []string{"another stream"}, receiveAcked(t, messages, 1))
	eventuallyReturned(t, client, topic, 0)
	sub.closeSoon(t)
	sub.events.none(t, redischannels.EventTrimmed, redischannels.EventLeaseLost)
}

// The entries of a crashed consumer in a lost group are in no other consumer's memory: they are
// read again.
func TestReturn_LostGroupWithEntriesOfACrashedConsumer(t *testing.T) {
	t.Parallel()
	client, topic := redistest.Shared(t).Client(t), redistest.Key(t)
	back := returnStream(topic, "g")
	sub := newSub(t, client, minIdle(time.Minute))
	require.NoError(t, sub.SubscribeInitialize(topic))
	addReturned(t, client, topic, "g", "1-1", 0, "left")
	require.NoError(t, client.XReadGroup(t.Context(), &redis.XReadGroupArgs{Group: "g", Consumer: "crashed", Streams: []string{back, ">"}}).Err())
	messages := sub.subscribe(t, topic)
	addReturned(t, client, topic, "g", "2-1", 0, "next")
	require.Equal(t, []string{"next"}, receiveAcked(t, messages, 1))
	require.NoError(t, client.XGroupDestroy(t.Context(), back, "g").Err())
	require.Equal(t, []string{"left"}, receiveAcked(t, messages, 1))
	eventuallyReturned(t, client, topic, 0)
	sub.closeSoon(t)
}

// A program that knows nothing of return streams has written to one.
func TestReturn_EntryWithoutOrigin(t *testing.T) {
	t.Parallel()
	client, topic := redistest.Shared(t).Client(t), redistest.Key(t)
	sub := newSub(t, client)
	messages := sub.subscribe(t, topic)
	for i, block := range [][]string{
		nil,
		{"_return_entry_id", "no ID", "_return_reason", "", "_return_count", "1"},
		{"_return_entry_id", "1-1", "_return_reason", "", "_return_count", "-1"},
		{"_return_entry_id", "1-1", "_return_count", "1", "_return_reason", ""},
	} {
		payload := strconv.Itoa(i)
		id := addRaw(t, client, returnStream(topic, "g"), append([]string{"_watermill_message_uuid", "u", "metadata", "\x80", "payload", payload}, block...)...)
		msg := receive(t, messages)
		require.Equal(t, payload, string(msg.Payload))
		require.Equal(t, id, entryIDOf(t, msg))
		require.Equal(t, 1, countOf(t, msg))
		msg.Ack()
	}
	eventuallyReturned(t, client, topic, 0)
	sub.closeSoon(t)
}

// SubscribeInitialize makes the return stream with the group, so that what is requeued before the first
// Subscribe has somewhere to go.
func TestReturn_SubscribeInitialize(t *testing.T) {
	t.Parallel()
	client, topic := redistest.Shared(t).Client(t), redistest.Key(t)
	sub := newSub(t, client)
	require.NoError(t, sub.SubscribeInitialize(topic))
	addReturned(t, client, topic, "g", "1-1", 0, "m")
	require.Equal(t, []string{"m"}, receiveAcked(t, sub.subscribe(t, topic), 1))
	sub.closeSoon(t)
}

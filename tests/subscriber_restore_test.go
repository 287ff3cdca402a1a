package tests

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
)

// losses are the ways in which a group is lost.
var losses = []struct {
	name string
	lose func(t *testing.T, client *redis.Client, topic string)
}{
	{"XGROUP DESTROY", func(t *testing.T, c *redis.Client, topic string) {
		require.NoError(t, c.XGroupDestroy(t.Context(), topic, "g").Err())
	}},
	{"DEL", func(t *testing.T, c *redis.Client, topic string) {
		require.NoError(t, c.Del(t.Context(), topic).Err())
	}},
	{"FLUSHALL", func(t *testing.T, c *redis.Client, topic string) {
		require.NoError(t, c.FlushAll(t.Context()).Err())
	}},
	{"RENAME", func(t *testing.T, c *redis.Client, topic string) {
		require.NoError(t, c.Rename(t.Context(), topic, topic+":renamed").Err())
	}},
	{"SET", func(t *testing.T, c *redis.Client, topic string) {
		require.NoError(t, c.Set(t.Context(), topic, "something else", 0).Err())
	}},
}

// The group or the stream is deleted, and every read answers NOGROUP forever; Redis has another
// text for each way, and for a reader that is blocked at that moment.
func TestSubscriber_LostGroupIsRecreated(t *testing.T) {
	t.Parallel()
	for _, loss := range losses {
		for _, busy := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/busy=%v", loss.name, busy), func(t *testing.T) {
				t.Parallel()
				server := redistest.Shared(t)
				if loss.name == "FLUSHALL" {
					server = redistest.Start(t)
				}
				client, topic := server.Client(t), redistest.Key(t)
				sub := newSub(t, client)
				messages := sub.subscribe(t, topic)
				publish(t, client, topic, "before")
				require.Equal(t, []string{"before"}, receiveAcked(t, messages, 1))
				eventuallyPending(t, client, topic, 0)
				var leased *message.Message
				if busy {
					publish(t, client, topic, "held")
					leased = receive(t, messages)
				}

				loss.lose(t, client, topic)
				if loss.name == "SET" {
					if busy {
						leased.Ack() // reading continues
					}
					require.ErrorIs(t, sub.events.wait(t, redischannels.EventDisconnected).Err, redischannels.ErrWrongType)
					require.NoError(t, client.Del(t.Context(), topic).Err())
				}
				start := time.Now()
				publish(t, client, topic, "after")
				if busy && loss.name != "SET" {
					leased.Ack()
				}
				require.Equal(t, []string{"after"}, receiveAcked(t, messages, 1))
				require.Less(t, time.Since(start), 2*time.Second)
				lost := sub.events.wait(t, redischannels.EventGroupLost)
				require.Error(t, lost.Err)
				eventuallyPending(t, client, topic, 0)
				publish(t, client, topic, "later")
				require.Equal(t, []string{"later"}, receiveAcked(t, messages, 1))
				require.Len(t, sub.events.of(redischannels.EventGroupLost), 1)
			})
		}
	}
}

// A busy stream is deleted and written again within a millisecond, so that the same IDs come
// again: new entries are taken for those that were read before, and are lost.
func TestSubscriber_EntryIDsThatRepeat(t *testing.T) {
	t.Parallel()
	for _, busy := range []bool{false, true} {
		t.Run(fmt.Sprintf("busy=%v", busy), func(t *testing.T) {
			t.Parallel()
			client, topic := redistest.Shared(t).Client(t), redistest.Key(t)
			sub := newSub(t, client)
			messages := sub.subscribe(t, topic)
			at := func(id, payload string) *redis.XAddArgs {
				return &redis.XAddArgs{Stream: topic, ID: id, Values: []any{
					"_watermill_message_uuid", payload, "metadata", "\x80", "payload", payload}}
			}
			add := func(id, payload string) {
				require.NoError(t, client.XAdd(t.Context(), at(id, payload)).Err())
			}
			add("999-0", "old")
			require.Equal(t, []string{"old"}, receiveAcked(t, messages, 1))
			add("1000-0", "a")
			require.Equal(t, []string{"a"}, receiveAcked(t, messages, 1))
			add("1000-1", "b")
			leased := receive(t, messages)
			if !busy {
				leased.Ack()
				eventuallyPending(t, client, topic, 0)
			}
			_, err := client.TxPipelined(t.Context(), func(tx redis.Pipeliner) error {
				tx.Del(t.Context(), topic)
				for i, payload := range []string{"c", "d", "e"} {
					tx.XAdd(t.Context(), at(fmt.Sprintf("1000-%d", i), payload))
				}
				return nil
			})
			require.NoError(t, err)
			lost := sub.events.wait(t, redischannels.EventGroupLost)
			require.Equal(t, "0-0", lost.Position)
			if busy {
				require.Equal(t, []string{"1000-1"}, sub.events.wait(t, redischannels.EventTrimmed).EntryIDs)
				leased.Ack()
			}
			require.Equal(t, []string{"c", "d", "e"}, receiveAcked(t, messages, 3))
			eventuallyPending(t, client, topic, 0)
			require.Len(t, sub.events.of(redischannels.EventGroupLost), 1)
		})
	}
}

// A stream that was trimmed down to the entries of one millisecond was taken for another one when its
// group was lost: all of it came again, and what was in a handler twice at once.
func TestSubscriber_LostGroupOfAStreamAsShortAsOneBatch(t *testing.T) {
	t.Parallel()
	client, topic := redistest.Shared(t).Client(t), redistest.Key(t)
	redistest.NeedsRedis7(t, client, "the number of entries that were ever added")
	sub := newSub(t, client, inFlight(2))
	messages := sub.subscribe(t, topic)
	add := func(id, payload string) {
		require.NoError(t, client.XAdd(t.Context(), &redis.XAddArgs{Stream: topic, ID: id, Values: []any{
			"_watermill_message_uuid", payload, "metadata", "\x80", "payload", payload}}).Err())
	}
	add("999-0", "old")
	require.Equal(t, []string{"old"}, receiveAcked(t, messages, 1))
	add("1000-0", "a")
	require.Equal(t, []string{"a"}, receiveAcked(t, messages, 1))
	add("1000-1", "b")
	held := receive(t, messages)
	eventuallyPending(t, client, topic, 1)
	_, err := client.TxPipelined(t.Context(), func(tx redis.Pipeliner) error {
		tx.XTrimMinID(t.Context(), topic, "1000-0")
		tx.XGroupDestroy(t.Context(), topic, "g")
		return nil
	})
	require.NoError(t, err)
	add("1000-2", "c")
	require.Equal(t, []string{"c"}, receiveAcked(t, messages, 1))
	lost := sub.events.wait(t, redischannels.EventGroupLost)
	require.Equal(t, "1000-1", lost.Position)
	require.Equal(t, []string{"1000-1"}, lost.EntryIDs)
	held.Ack()
	eventuallyPending(t, client, topic, 0)
	noMessage(t, messages)
}

// A group that is re-created at "0" replays everything, at "$" it skips what was not read.
func TestSubscriber_RecreatedGroupResumesWhereItWas(t *testing.T) {
	t.Parallel()
	client, topic := redistest.Shared(t).Client(t), redistest.Key(t)
	var payloads []string
	for i := range 15 {
		payloads = append(payloads, fmt.Sprintf("m%d", i))
	}
	sub := newSub(t, client, inFlight(2), tuned(func(c *redischannels.Tuning) { c.Prefetch = redischannels.NoPrefetch }))
	messages := sub.subscribe(t, topic)
	ids := publish(t, client, topic, payloads...)
	seen := receiveAcked(t, messages, 10)
	pending := []*message.Message{receive(t, messages), receive(t, messages)}
	eventuallyPending(t, client, topic, 2)

	require.NoError(t, client.XGroupDestroy(t.Context(), topic, "g").Err())
	pending[0].Nack() // makes room, so reading continues
	lost := sub.events.wait(t, redischannels.EventGroupLost)
	require.Equal(t, ids[11], lost.Position)
	require.ElementsMatch(t, ids[10:12], lost.EntryIDs, "what is held is pending again")
	for _, p := range pendingOf(t, client, topic) {
		if p.ID == ids[11] {
			require.EqualValues(t, 1, p.RetryCount)
		}
	}
	pending[1].Ack()
	var after []string
	for range 4 { // the nacked one and three that were never read
		msg := receive(t, messages)
		if string(msg.Payload) == string(pending[0].Payload) {
			require.Equal(t, 2, countOf(t, msg), "its deliveries are remembered")
		}
		after = append(after, string(msg.Payload))
		msg.Ack()
	}
	require.ElementsMatch(t, []string{"m10", "m12", "m13", "m14"}, after)
	noMessage(t, messages)
	eventuallyPending(t, client, topic, 0)
	require.ElementsMatch(t, payloads[:10], seen)
}

// In strict order a nacked message blocks all others, so nothing is read; when the group
// is deleted meanwhile nothing notices it, and the message can never be delivered.
func TestSubscriber_GroupLostDuringBackoff(t *testing.T) {
	t.Parallel()
	client, topic := redistest.Shared(t).Client(t), redistest.Key(t)
	// No renewal notices it either, and nothing is fetched ahead.
	sub := newSub(t, client, tuned(func(c *redischannels.Tuning) { c.MinIdle, c.Prefetch = time.Minute, redischannels.NoPrefetch }))
	messages := sub.subscribe(t, topic)
	id := publish(t, client, topic, "m")[0]
	msg := receive(t, messages)
	require.NoError(t, client.XGroupDestroy(t.Context(), topic, "g").Err())
	msg.Nack()
	again := receive(t, messages)
	require.Equal(t, 2, countOf(t, again))
	require.Equal(t, []string{id}, sub.events.wait(t, redischannels.EventGroupLost).EntryIDs)
	again.Ack()
	eventuallyPending(t, client, topic, 0)
}

// One consumer makes the group again where it believes it to have been, which may be before
// what another one holds: that one gets its own entry a second time, and handles it twice at
// the same time.
func TestSubscriber_LeasedMessagesAreNotHandledTwiceAfterGroupLoss(t *testing.T) {
	t.Parallel()
	client, topic := redistest.Shared(t).Client(t), redistest.Key(t)
	sub := newSub(t, client, inFlight(4))
	messages := sub.subscribe(t, topic)
	ids := publish(t, client, topic, "a", "b")
	leased := []*message.Message{receive(t, messages), receive(t, messages)}
	require.NoError(t, client.Do(t.Context(), "XGROUP", "SETID", topic, "g", "0").Err())
	redistest.Eventually(t, soon, func() bool { return groupOf(t, client, topic).LastDeliveredID == ids[1] }, "a second delivery")
	noMessage(t, messages)
	for _, m := range leased {
		m.Ack()
	}
	eventuallyPending(t, client, topic, 0)
	publish(t, client, topic, "c")
	require.Equal(t, []string{"c"}, receiveAcked(t, messages, 1))
	sub.events.none(t, redischannels.EventLeaseLost, redischannels.EventAckIgnored)
}

// The consumer that makes the group again knows where it stood, but not what others hold:
// their messages are neither pending nor unread any more, and when their handlers fail they
// are lost.
func TestSubscriber_EachConsumerRestoresItsLeases(t *testing.T) {
	t.Parallel()
	server := redistest.Shared(t)
	client, topic := server.Client(t), redistest.Key(t)
	for _, nack := range []bool{true, false} {
		// It is not reading when the group goes, and so not the one that makes it again.
		holder := newSub(t, client, tuned(func(c *redischannels.Tuning) { c.Prefetch = redischannels.NoPrefetch }))
		messages := holder.subscribe(t, topic)
		id := publish(t, client, topic, "m")[0]
		receive(t, messages).Nack()
		msg := receive(t, messages)
		other := newSub(t, server.Client(t)) // it learns that the group stands at m
		other.subscribe(t, topic)
		require.NoError(t, client.XGroupDestroy(t.Context(), topic, "g").Err())
		other.events.wait(t, redischannels.EventGroupLost)
		if nack {
			msg.Nack()
			msg = receive(t, messages)
			require.Equal(t, 3, countOf(t, msg))
		}
		// Also while it is handled: the renewal sees that it is missing.
		require.Equal(t, []string{id}, holder.events.wait(t, redischannels.EventGroupLost).EntryIDs)
		eventuallyPending(t, client, topic, 1)
		require.EqualValues(t, countOf(t, msg), pendingOf(t, client, topic)[0].RetryCount, "a crash now must not forget deliveries")
		require.NoError(t, msg.Context().Err())
		msg.Ack()
		eventuallyPending(t, client, topic, 0)
		holder.events.none(t, redischannels.EventLeaseLost, redischannels.EventAckIgnored)
		holder.closeSoon(t)
		other.closeSoon(t)
	}
}

// The group is re-created without what is held, and the reply to putting that back is lost: the
// entry is pending again, and nothing was reported.
func TestSubscriber_RestoredEntriesAreReported(t *testing.T) {
	t.Parallel()
	proxy, client, direct := pubProxy(t)
	topic := redistest.Key(t)
	// It reads nothing while it has a message: the renewal sees that it is missing.
	holder := newSub(t, client, tuned(func(c *redischannels.Tuning) { c.Prefetch = redischannels.NoPrefetch }))
	messages := holder.subscribe(t, topic)
	ids := publish(t, direct, topic, "m")
	msg := receive(t, messages)
	rule := proxy.DropReplyIf(1, scriptOf(t, "restore"), func(reply []byte) bool { return reply[0] != '-' })
	_, err := direct.TxPipelined(t.Context(), func(tx redis.Pipeliner) error {
		tx.XGroupDestroy(t.Context(), topic, "g")
		tx.XGroupCreate(t.Context(), topic, "g", "$")
		return nil
	})
	require.NoError(t, err)
	require.Equal(t, ids, holder.events.wait(t, redischannels.EventGroupLost).EntryIDs)
	require.Equal(t, 1, rule.Count(), "a reply was lost")
	msg.Ack()
	eventuallyPending(t, direct, topic, 0)
	holder.closeSoon(t)
	require.Len(t, holder.events.of(redischannels.EventGroupLost), 1)
	holder.events.none(t, redischannels.EventLeaseLost, redischannels.EventAckIgnored)
}

// Several consumers lose their group while each handles a message: nothing hangs, and both
// acknowledgements arrive or the message comes again.
func TestSubscriber_SeveralConsumersLoseTheirGroup(t *testing.T) {
	t.Parallel()
	client, topic := redistest.Shared(t).Client(t), redistest.Key(t)
	var leased []*message.Message
	var channels []<-chan *message.Message
	for range 2 {
		channels = append(channels, newSub(t, client).subscribe(t, topic))
	}
	publish(t, client, topic, "a", "b")
	for _, c := range channels {
		leased = append(leased, receive(t, c))
	}
	require.NoError(t, client.XGroupDestroy(t.Context(), topic, "g").Err())
	for _, m := range leased {
		m.Nack()
	}
	var handlers []*handler
	for _, c := range channels {
		handlers = append(handlers, handle(c, 1, work(0)))
	}
	publish(t, client, topic, "c")
	redistest.Eventually(t, soon, func() bool {
		all := strings.Join(append(handlers[0].payloads(), handlers[1].payloads()...), "")
		return strings.Contains(all, "a") && strings.Contains(all, "b") && strings.Contains(all, "c")
	}, "a, b and c again")
	eventuallyPending(t, client, topic, 0)
}

// CLIENT KILL and CLIENT UNBLOCK end a blocked read with neither an entry nor one of those
// texts.
func TestSubscriber_KilledOrUnblockedReadResumes(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	client, topic := server.Client(t), redistest.Key(t)
	sub := newSub(t, client)
	messages := sub.subscribe(t, topic)
	for i, end := range []string{"KILL", "UNBLOCK", "UNBLOCK ERROR"} {
		redistest.Eventually(t, soon, func() bool { return redistest.BlockedClients(t, client) == 1 }, "a blocked read")
		switch end {
		case "KILL":
			require.NoError(t, client.Do(t.Context(), "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes").Err())
		default:
			id := blockedClient(t, client)
			if id == 0 {
				break // between two reads: nothing to unblock
			}
			if end == "UNBLOCK" {
				require.NoError(t, client.ClientUnblock(t.Context(), id).Err())
			} else {
				require.NoError(t, client.ClientUnblockWithError(t.Context(), id).Err())
			}
		}
		publish(t, client, topic, fmt.Sprint(i))
		require.Equal(t, []string{fmt.Sprint(i)}, receiveAcked(t, messages, 1))
	}
	sub.events.none(t, redischannels.EventGroupLost)
}

// blockedClient returns the ID of a client that is blocked, or 0.
func blockedClient(t *testing.T, client *redis.Client) int64 {
	t.Helper()
	list, err := client.ClientList(t.Context()).Result()
	require.NoError(t, err)
	for _, line := range strings.Split(list, "\n") {
		var id int64
		if _, err := fmt.Sscanf(line, "id=%d", &id); err == nil && strings.Contains(line, "flags=b") {
			return id
		}
	}
	return 0
}

// Instances that start together create the group at the same time; all but one get BUSYGROUP
// and fail.
func TestSubscriber_InstancesStartTogether(t *testing.T) {
	t.Parallel()
	client, topic := redistest.Shared(t).Client(t), redistest.Key(t)
	const instances = 20
	errs := make(chan error, instances)
	start := make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var all sync.WaitGroup
	for range instances {
		sub := newSub(t, client)
		all.Go(func() {
			<-start
			_, err := sub.Subscribe(ctx, topic)
			errs <- err
		})
	}
	close(start)
	all.Wait()
	for range instances {
		require.NoError(t, <-errs)
	}
	require.Len(t, consumersOf(t, client, topic), instances)
}

// Something removes the group as soon as it is there again: making it again must not become a
// hot loop.
func TestSubscriber_GroupThatVanishesAgainAndAgain(t *testing.T) {
	t.Parallel()
	proxy, client, direct := pubProxy(t)
	topic := redistest.Key(t)
	sub := newSub(t, client, minIdle(time.Minute))
	messages := sub.subscribe(t, topic)
	publish(t, direct, topic, "before")
	require.Equal(t, []string{"before"}, receiveAcked(t, messages, 1))
	ctx := context.WithoutCancel(t.Context())
	again := proxy.BeforeReply(-1, scriptOf(t, "restore"), func() { _ = direct.XGroupDestroy(ctx, topic, "g").Err() })
	require.NoError(t, direct.XGroupDestroy(t.Context(), topic, "g").Err())
	redistest.Eventually(t, soon, func() bool { return again.Count() >= 4 }, "it is re-created")
	before := again.Count()
	redistest.Never(t, time.Second, func() bool { return again.Count() > before+10 }, "a hot loop")
	again.Remove()
	publish(t, direct, topic, "after")
	require.Equal(t, []string{"after"}, receiveAcked(t, messages, 1))
}

// Others have made the group again, and one of them has what is held here: a late ack, though
// its lease is young, must not take it away.
func TestSubscriber_RestoreLeavesEntriesOfOtherConsumers(t *testing.T) {
	t.Parallel()
	proxy, client, direct := pubProxy(t)
	topic := redistest.Key(t)
	sub := newSub(t, client, inFlight(2), minIdle(time.Minute))
	messages := sub.subscribe(t, topic)
	ids := publish(t, direct, topic, "m")
	msg := receive(t, messages)
	ctx := context.WithoutCancel(t.Context())
	faster := proxy.BeforeRequest(1, scriptOf(t, "restore"), func() {
		_ = direct.XGroupCreate(ctx, topic, "g", "0").Err()
		_ = direct.XReadGroup(ctx, &redis.XReadGroupArgs{Group: "g", Consumer: "other", Streams: []string{topic, ">"}, Block: -1}).Err()
	})
	require.NoError(t, direct.XGroupDestroy(t.Context(), topic, "g").Err())
	faster.Wait(t, soon)
	publish(t, direct, topic, "next")
	require.Equal(t, []string{"next"}, receiveAcked(t, messages, 1))
	waitDone(t, msg.Context())
	require.Equal(t, ids, sub.events.wait(t, redischannels.EventLeaseLost).EntryIDs)
	msg.Ack()
	require.Equal(t, ids, sub.events.wait(t, redischannels.EventAckIgnored).EntryIDs)
	redistest.Eventually(t, soon, func() bool { return len(pendingOf(t, direct, topic)) == 1 }, "next is acknowledged")
	require.Equal(t, "other", pendingOf(t, direct, topic)[0].Consumer)
}

// An acknowledgement that finds no group while its subscriber closes has no subscription left that
// would re-create it: it is reported, and Close does not wait for it.
func TestSubscriber_CloseWithoutAGroup(t *testing.T) {
	t.Parallel()
	client, topic := redistest.Shared(t).Client(t), redistest.Key(t)
	sub := newSub(t, client, minIdle(time.Minute), tuned(func(c *redischannels.Tuning) { c.Prefetch = redischannels.NoPrefetch }))
	messages := sub.subscribe(t, topic)
	ids := publish(t, client, topic, "m")
	msg := receive(t, messages) // nothing is read, so nothing notices
	closed := make(chan time.Duration, 1)
	go func() { closed <- sub.closeSoon(t) }()
	redistest.Eventually(t, soon, func() bool { return sub.Stats()[0].State == redischannels.StateClosing }, "it is closing")
	require.NoError(t, client.XGroupDestroy(t.Context(), topic, "g").Err())
	msg.Ack()
	require.Less(t, <-closed, 2*time.Second)
	require.Equal(t, ids, sub.events.wait(t, redischannels.EventAckIgnored).EntryIDs)
	sub.events.none(t, redischannels.EventAbandoned)
}

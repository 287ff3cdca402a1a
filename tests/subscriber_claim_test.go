package tests

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"strings"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
)

// shortIdle is a MinIdle that handlers of these tests exceed.
const shortIdle = 300 * time.Millisecond

// A single consumer claims its own running message, since XPENDING names it too, and handles
// it again after its ack.
func TestSubscriber_DoesNotClaimFromItself(t *testing.T) {
	t.Parallel()
	client, topic := redistest.Shared(t).Client(t), redistest.Key(t)
	sub := newSub(t, client, inFlight(3), minIdle(shortIdle))
	h := handle(sub.subscribe(t, topic), 3, work(5*shortIdle))
	publish(t, client, topic, "m")
	redistest.Eventually(t, soon, func() bool { return h.len() == 1 }, "the message")
	eventuallyPending(t, client, topic, 0)
	noMoreThan(t, h, 1)
	sub.events.none(t, redischannels.EventLeaseLost, redischannels.EventAckIgnored, redischannels.EventRecovered)
}

// noMoreThan fails the test if a handler receives more than n messages within a short time.
func noMoreThan(t *testing.T, h *handler, n int) {
	t.Helper()
	redistest.Never(t, quiet, func() bool { return h.len() > n }, "more than %d deliveries", n)
}

// A handler that takes longer than the idle time has its message handled by the others as
// well, several at a time.
func TestSubscriber_LongHandlerKeepsItsLease(t *testing.T) {
	t.Parallel()
	server := redistest.Shared(t)
	topic := redistest.Key(t)
	var mu sync.Mutex
	active, parallel, total := 0, 0, 0
	for range 3 {
		// Clients of their own, so that each checks for entries by itself.
		messages := newSub(t, server.Client(t), inFlight(2), minIdle(shortIdle)).subscribe(t, topic)
		handle(messages, 2, func(delivered, *message.Message) bool {
			mu.Lock()
			active, total = active+1, total+1
			parallel = max(parallel, active)
			mu.Unlock()
			time.Sleep(5 * shortIdle) // the handler's work
			mu.Lock()
			active--
			mu.Unlock()
			return true
		})
	}
	client := server.Client(t)
	publish(t, client, topic, "m")
	redistest.Eventually(t, soon, func() bool {
		mu.Lock()
		defer mu.Unlock()
		return total > 0 && active == 0
	}, "the end of the handler")
	eventuallyPending(t, client, topic, 0)
	mu.Lock()
	defer mu.Unlock()
	require.Equal(t, 1, total)
	require.Equal(t, 1, parallel)
}

// Messages that wait in a busy consumer age in the PEL until others claim them: duplicates
// although every handler is fast enough, and idle consumers get nothing.
func TestSubscriber_BufferedMessagesDoNotAge(t *testing.T) {
	t.Parallel()
	server := redistest.Shared(t)
	client, topic := server.Client(t), redistest.Key(t)
	var handlers []*handler
	for range 2 {
		messages := newSub(t, server.Client(t), minIdle(shortIdle)).subscribe(t, topic)
		handlers = append(handlers, handle(messages, 1, work(shortIdle*7/10)))
	}
	publish(t, client, topic, "a", "b", "c", "d", "e", "f")
	redistest.Eventually(t, soon, func() bool { return handlers[0].len()+handlers[1].len() >= 6 }, "6 messages")
	eventuallyPending(t, client, topic, 0)
	all := append(handlers[0].payloads(), handlers[1].payloads()...)
	require.ElementsMatch(t, []string{"a", "b", "c", "d", "e", "f"}, all)
	require.GreaterOrEqual(t, handlers[0].len(), 2)
	require.GreaterOrEqual(t, handlers[1].len(), 2)
}

// XAUTOCLAIM looks at COUNT*10 entries at a time; who begins at 0-0 again finds nothing
// behind a busy head.
func TestSubscriber_ClaimScanPassesABusyHead(t *testing.T) {
	t.Parallel()
	for _, n := range []int{1, 50} {
		t.Run(fmt.Sprintf("MaxInFlight=%d", n), func(t *testing.T) {
			t.Parallel()
			client, topic := redistest.Shared(t).Client(t), redistest.Key(t)
			publish(t, client, topic, make([]string, 150)...)
			ids := deliverTo(t, client, topic, "other", 150, 0)
			setIdle(t, client, topic, "other", time.Hour, ids[120:]...)
			sub := newSub(t, client, inFlight(n), tuned(func(c *redischannels.Tuning) {
				c.MinIdle, c.ClaimInterval = time.Minute, time.Hour // one scan, that of Subscribe
			}))
			messages := sub.subscribe(t, topic)
			var claimed []string
			for range 30 {
				msg := receive(t, messages)
				claimed = append(claimed, entryIDOf(t, msg))
				require.Equal(t, 1, countOf(t, msg), "it may only have been buffered there")
				msg.Ack()
			}
			require.Equal(t, ids[120:], claimed, "in their order")
			eventuallyPending(t, client, topic, 120)
			noMessage(t, messages)
		})
	}
}

// Starting up tries to claim a batch of entries whose owners are alive, again and again, and
// never reads a new one.
func TestSubscriber_UnclaimableEntriesDoNotStopReading(t *testing.T) {
	t.Parallel()
	client, topic := redistest.Shared(t).Client(t), redistest.Key(t)
	publish(t, client, topic, make([]string, 1000)...)
	deliverTo(t, client, topic, "living", 1000, 0)
	sub := newSub(t, client, minIdle(time.Minute))
	messages := sub.subscribe(t, topic)
	start := time.Now()
	publish(t, client, topic, "new")
	require.Equal(t, []string{"new"}, receiveAcked(t, messages, 1))
	require.Less(t, time.Since(start), time.Second)
	eventuallyPending(t, client, topic, 1000)
}

// Pending messages wait forever, or a minute, after a crash, or only one batch of them is
// recovered; some libraries have no recovery at all.
func TestSubscriber_ClaimsFromACrashedConsumer(t *testing.T) {
	t.Parallel()
	server := redistest.Shared(t)
	client, topic := server.Client(t), redistest.Key(t)
	ids := publish(t, client, topic, "a", "b", "c", "d", "e")
	child := startConsumer(t, server, topic, "IN_FLIGHT=5", "MIN_IDLE=300")
	for range ids {
		require.Equal(t, 1, child.got(t).count)
	}
	child.Kill()
	start := time.Now()
	sub := newSub(t, client, minIdle(shortIdle), func(c *redischannels.SubscriberConfig) { c.Consumer = "child" })
	messages := sub.subscribe(t, topic)
	var recovered []string
	for range ids {
		msg := receive(t, messages)
		require.Equal(t, 1, countOf(t, msg), "the child may only have buffered it")
		recovered = append(recovered, entryIDOf(t, msg))
		msg.Ack()
	}
	require.Less(t, time.Since(start), shortIdle+testClaimInterval+2*time.Second)
	require.Equal(t, ids, recovered)
	eventuallyPending(t, client, topic, 0)
	noMessage(t, messages)
	var reported []string
	for _, e := range sub.events.of(redischannels.EventRecovered) {
		reported = append(reported, e.EntryIDs...)
	}
	require.ElementsMatch(t, ids, reported)
}

// The check that a consumer has nothing pending and its removal are two commands; what is
// delivered in between is lost.
func TestSubscriber_RemovingAConsumerLosesNothing(t *testing.T) {
	t.Parallel()
	server := redistest.Shared(t)

	t.Run("Close", func(t *testing.T) {
		t.Parallel()
		direct, topic := server.Client(t), redistest.Key(t)
		client := server.Client(t)
		ctx := context.WithoutCancel(t.Context())
		delivered := 0
		client.AddHook(redistest.Before("evalsha", func(_ context.Context, cmd redis.Cmder) error {
			args := cmd.Args()
			if len(args) != 6 || args[3] != topic { // evalsha, hash, 1, stream, group, consumer: only leaving has these
				return nil
			}
			if err := direct.XAdd(ctx, &redis.XAddArgs{Stream: topic, Values: []string{"_watermill_message_uuid", "u"}}).Err(); err != nil {
				return err
			}
			delivered++
			return direct.XReadGroup(ctx, &redis.XReadGroupArgs{
				Group: "g", Consumer: args[5].(string), Streams: []string{topic, ">"}, Block: -1,
			}).Err()
		}))
		sub := newSub(t, client)
		sub.subscribe(t, topic)
		sub.closeSoon(t)
		require.Equal(t, 1, delivered)
		require.Len(t, pendingOf(t, direct, topic), 1, "lost with its consumer")
	})
	t.Run("idle consumers", func(t *testing.T) {
		t.Parallel()
		client, topic := server.Client(t), redistest.Key(t)
		publish(t, client, topic, "m")
		deliverTo(t, client, topic, "holder", 1, 0)
		require.NoError(t, client.XGroupCreateConsumer(t.Context(), topic, "g", "empty").Err())
		sub := newSub(t, client, tuned(func(c *redischannels.Tuning) {
			c.MinIdle, c.ClaimInterval, c.ConsumerTimeout = time.Minute, 5*time.Millisecond, 20*time.Millisecond
		}))
		sub.subscribe(t, topic)
		redistest.Eventually(t, soon, func() bool { return !slices.Contains(consumersOf(t, client, topic), "empty") }, "the empty consumer is not removed")
		redistest.Never(t, quiet, func() bool { return !slices.Contains(consumersOf(t, client, topic), "holder") }, "removed with its entry")
		require.Len(t, pendingOf(t, client, topic), 1)
	})
}

// Before Redis 7.2 a quiet consumer looks idle although it reads, and is removed by others
// while it is blocked. That must do no harm.
func TestSubscriber_RemovedWhileQuiet(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	admin, client, topic := server.Admin(t), server.Client(t), redistest.Key(t)
	quietOne := newSub(t, client)
	messages := quietOne.subscribe(t, topic)
	redistest.Eventually(t, soon, func() bool { return redistest.BlockedClients(t, admin) == 1 }, "it waits for entries")
	names := consumersOf(t, client, topic)
	require.Len(t, names, 1)
	require.NoError(t, client.XGroupDelConsumer(t.Context(), topic, "g", names[0]).Err())
	require.Empty(t, consumersOf(t, client, topic))
	publish(t, client, topic, "a", "b")
	require.Equal(t, []string{"a", "b"}, receiveAcked(t, messages, 2))
	eventuallyPending(t, client, topic, 0)
	quietOne.events.none(t, redischannels.EventLeaseLost, redischannels.EventAckIgnored,
		redischannels.EventDisconnected, redischannels.EventGroupLost)
}

// A lock for reclaiming, held by a process that was killed, ends all recovery.
func TestSubscriber_CrashDuringRecovery(t *testing.T) {
	t.Parallel()
	server := redistest.Shared(t)
	client, topic := server.Client(t), redistest.Key(t)
	publish(t, client, topic, "m")
	deliverTo(t, client, topic, "dead", 1, time.Hour)
	child := startConsumer(t, server, topic, "MIN_IDLE=300")
	require.Equal(t, 1, child.got(t).count)
	child.Kill()
	keys, err := client.Keys(t.Context(), "*"+topic+"*").Result()
	require.NoError(t, err)
	require.ElementsMatch(t, []string{topic, returnStream(topic, "g"), controlOf(topic)}, keys, "there is no lock to be left behind")
	msg := receive(t, newSub(t, client, minIdle(shortIdle)).subscribe(t, topic))
	require.Equal(t, 3, countOf(t, msg), "two consumers have crashed with it")
	msg.Ack()
	eventuallyPending(t, client, topic, 0)
}

// A pending entry that was trimmed is dropped in silence, or claimed forever.
func TestSubscriber_TrimmedPendingEntriesAreReported(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)

	t.Run("of a crashed consumer", func(t *testing.T) {
		t.Parallel()
		topic := redistest.Key(t)
		publish(t, client, topic, "a", "b", "c")
		ids := deliverTo(t, client, topic, "dead", 3, time.Hour)
		require.NoError(t, client.XDel(t.Context(), topic, ids[:2]...).Err())
		sub := newSub(t, client)
		messages := sub.subscribe(t, topic)
		require.Equal(t, []string{"c"}, receiveAcked(t, messages, 1))
		eventuallyPending(t, client, topic, 0)
		var reported []string
		for _, e := range sub.events.of(redischannels.EventTrimmed) {
			reported = append(reported, e.EntryIDs...)
		}
		require.Equal(t, ids[:2], reported)
	})
	t.Run("in a handler", func(t *testing.T) {
		t.Parallel()
		topic := redistest.Key(t)
		sub := newSub(t, client, minIdle(shortIdle))
		messages := sub.subscribe(t, topic)
		id := publish(t, client, topic, "m")[0]
		msg := receive(t, messages)
		require.NoError(t, client.XTrimMaxLen(t.Context(), topic, 0).Err())
		if redistest.IsRedis7(t, client) { // the others report it when it becomes a dead letter
			require.Equal(t, []string{id}, sub.events.wait(t, redischannels.EventTrimmed).EntryIDs)
		}
		require.NoError(t, msg.Context().Err(), "the handler continues")
		msg.Nack()
		again := receive(t, messages)
		require.Equal(t, 2, countOf(t, again))
		require.Equal(t, "m", string(again.Payload), "from memory")
		redischannels.Reject(again, "useless")
		again.Nack()
		sub.events.wait(t, redischannels.EventDeadLettered)
		dead, err := client.XRange(t.Context(), deadStream(topic), "-", "+").Result()
		require.NoError(t, err)
		require.Equal(t, "m", dead[0].Values["payload"])
		require.Equal(t, id, dead[0].Values["_dead_entry_id"])
		publish(t, client, topic, "next")
		require.Equal(t, []string{"next"}, receiveAcked(t, messages, 1))
		eventuallyPending(t, client, topic, 0)
		require.Len(t, sub.events.of(redischannels.EventTrimmed), 1)
		sub.events.none(t, redischannels.EventLeaseLost, redischannels.EventAckIgnored)
	})
}

// Two duties of one subscription recover entries: the claim scan, and the read of its own pending
// entries after a failed read. One sees what the other has just claimed, and both lease it.
func TestSubscriber_ClaimScanAndOwnPendingReadDoNotMeet(t *testing.T) {
	t.Parallel()
	server := redistest.Shared(t)
	direct, topic := server.Client(t), redistest.Key(t)
	proxy := redistest.NewProxy(t, server.Addr())
	client := server.Client(t, redistest.Via(proxy))
	claimed, again := make(chan struct{}), make(chan struct{})
	var once, twice sync.Once
	calls := 0
	var mu sync.Mutex
	sub := newSub(t, client, inFlight(4), func(c *redischannels.SubscriberConfig) {
		// The key of a message is asked for between the claim and the admission.
		c.OrderingKey = func(msg *message.Message) string {
			mu.Lock()
			calls++
			n := calls
			mu.Unlock()
			if n == 1 {
				once.Do(func() { close(claimed) })
				select {
				case <-again: // the other way has come as far
				case <-time.After(time.Second): // it waits for this one
				}
			} else {
				twice.Do(func() { close(again) })
			}
			return msg.UUID
		}
	})
	messages := sub.subscribe(t, topic)
	// An entry becomes claimable while the reader is blocked: the periodic scan finds it.
	require.NoError(t, direct.XGroupSetID(t.Context(), topic, "g", "18446744073709551614-0").Err())
	id := publish(t, direct, topic, "m")[0]
	require.NoError(t, direct.Do(t.Context(), "XCLAIM", topic, "g", "dead", 0, id, "IDLE", time.Hour.Milliseconds(), "RETRYCOUNT", 1, "FORCE", "JUSTID").Err())
	select {
	case <-claimed:
	case <-time.After(soon):
		require.FailNow(t, "no consumer claims the entry")
	}
	proxy.Cut() // the reader looks at what is its own
	msg := receive(t, messages)
	noMessage(t, messages)
	msg.Ack()
	eventuallyPending(t, direct, topic, 0)
	noMessage(t, messages)
}

// Of several subscriptions of one process only one checks for entries per interval. If that is
// always the one that has no room, the idle one never gets what the busy one releases.
func TestSubscriber_BusySiblingDoesNotTakeTheClaimScan(t *testing.T) {
	t.Parallel()
	client, topic := redistest.Shared(t).Client(t), redistest.Key(t)
	const interval = time.Second
	slow := tuned(func(c *redischannels.Tuning) { c.MinIdle, c.ClaimInterval = time.Minute, interval })
	publish(t, client, topic, "claimed", "held")
	claimable := deliverTo(t, client, topic, "dead", 1, 0)
	busy := newSub(t, client, slow)
	leased := receive(t, busy.subscribe(t, topic))
	require.Equal(t, "held", string(leased.Payload))
	time.Sleep(interval / 4) // the phase in which the busy one always comes first
	messages := newSub(t, client, slow).subscribe(t, topic)
	setIdle(t, client, topic, "dead", time.Hour, claimable...)
	// The busy one may take it first; after a second it releases it.
	select {
	case msg := <-messages:
		require.Equal(t, "claimed", string(msg.Payload))
		msg.Ack()
	case <-time.After(6 * interval):
		require.FailNow(t, "the idle subscription gets nothing")
	}
	leased.Ack()
	eventuallyPending(t, client, topic, 0)
}

// After an outage that was longer than MinIdle a scan claims what this process has leased itself. An
// entry that is acknowledged between its reading and the check at what is held was taken for a
// new one, put back into the group and handled again.
func TestSubscriber_AckDuringAClaimOfItsOwnEntry(t *testing.T) {
	t.Parallel()
	server := redistest.Shared(t)
	direct, client, topic := server.Client(t), server.Client(t), redistest.Key(t)
	sub := newSub(t, client, inFlight(2), minIdle(time.Minute))
	messages := sub.subscribe(t, topic)
	id := publish(t, direct, topic, "m")[0]
	msg := receive(t, messages)
	fetch := scriptOf(t, "fetch")
	acked := make(chan struct{})
	client.AddHook(redistest.NewHook().After("evalsha", func(_ context.Context, cmd redis.Cmder) error {
		if args := cmd.Args(); fetch([]byte(fmt.Sprintf("*1\r\n$7\r\nevalsha\r\n%v", args[1]))) && args[3] == topic && msg.Ack() {
			select {
			case <-acked:
			default:
				redistest.Eventually(t, soon, func() bool { return sub.Stats()[0].InFlight+sub.Stats()[0].Acking == 0 }, "it is acknowledged")
				close(acked)
			}
		}
		return nil
	}))
	setIdle(t, direct, topic, consumersOf(t, direct, topic)[0], time.Hour, id)
	select {
	case <-acked:
	case <-time.After(soon):
		require.FailNow(t, "no consumer claims the entry")
	}
	noMessage(t, messages)
	eventuallyPending(t, direct, topic, 0)
	sub.events.none(t, redischannels.EventLeaseLost, redischannels.EventGroupLost, redischannels.EventRecovered)
}

// An entry is trimmed while it is handled, and rejected before a renewal has noticed that: it
// becomes a dead letter from memory, with a report.
func TestSubscriber_RejectOfATrimmedMessage(t *testing.T) {
	t.Parallel()
	client, topic := redistest.Shared(t).Client(t), redistest.Key(t)
	sub := newSub(t, client, minIdle(time.Minute))
	messages := sub.subscribe(t, topic)
	ids := publish(t, client, topic, "m")
	msg := receive(t, messages)
	require.NoError(t, client.XTrimMaxLen(t.Context(), topic, 0).Err())
	redischannels.Reject(msg, "no")
	msg.Nack()
	require.Equal(t, ids, sub.events.wait(t, redischannels.EventDeadLettered).EntryIDs)
	require.Equal(t, ids, sub.events.wait(t, redischannels.EventTrimmed).EntryIDs)
	dead := client.XRange(t.Context(), deadStream(topic), "-", "+").Val()
	require.Len(t, dead, 1)
	require.Equal(t, "m", dead[0].Values["payload"])
	eventuallyPending(t, client, topic, 0)
}

// The entries of a crashed consumer were fetched by one command whatever their size. If the
// network needs longer for the reply than the client waits, this was retried forever, and because
// the entries stayed leased no other consumer received them either.
func TestSubscriber_ClaimsLargeEntriesOverASlowNetwork(t *testing.T) {
	t.Parallel()
	proxy, client, direct := pubProxy(t, func(o *redis.Options) { o.ReadTimeout = 400 * time.Millisecond })
	topic := redistest.Key(t)
	const n, size = 60, 100 << 10
	publish(t, direct, topic, strings.Split(strings.Repeat(strings.Repeat("x", size)+",", n-1)+strings.Repeat("x", size), ",")...)
	deliverTo(t, direct, topic, "dead", n, time.Hour)
	sub := newSub(t, client, inFlight(n), minIdle(time.Minute))
	proxy.Delay(10 * time.Millisecond) // for up to 64 KiB
	require.Len(t, receiveAcked(t, sub.subscribe(t, topic), n), n)
	eventuallyPending(t, direct, topic, 0)
}

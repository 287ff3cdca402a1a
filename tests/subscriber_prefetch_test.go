package tests

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
)

// A busy consumer keeps messages that it cannot handle soon, while others are idle: they
// are released to another consumer after about a second.
func TestSubscriber_BufferedMessageIsReleasedToAnIdleConsumer(t *testing.T) {
	t.Parallel()
	server := redistest.Shared(t)
	client, topic := server.Client(t), redistest.Key(t)
	busy := newSub(t, client, inFlight(4), minIdle(time.Minute))
	messages := busy.subscribe(t, topic)
	ids := publish(t, client, topic, "a", "b", "c", "d")
	leased := receive(t, messages) // and nothing else, although four could be in flight
	eventuallyPending(t, client, topic, 4)
	start := time.Now()
	other := newSub(t, server.Client(t), inFlight(4), minIdle(time.Minute)).subscribe(t, topic)
	for range 2 { // one more is being offered, and stays until it has aged
		msg := receive(t, other)
		require.Contains(t, ids[1:], entryIDOf(t, msg))
		require.Equal(t, 1, countOf(t, msg), "it was not delivered before")
		msg.Ack()
	}
	require.Less(t, time.Since(start), 5*time.Second)
	require.Len(t, busy.events.wait(t, redischannels.EventReleased).EntryIDs, 2)
	leased.Ack()
	require.Len(t, receiveAcked(t, messages, 1), 1)
	eventuallyPending(t, client, topic, 0)
	publish(t, client, topic, "e") // the busy one is back
	select {
	case m := <-messages:
		m.Ack()
	case m := <-other:
		m.Ack()
	case <-time.After(soon):
		require.FailNow(t, "nothing receives")
	}
}

// Even the message that is being offered is released to another consumer when it is not received
// for MinIdle.
func TestSubscriber_OfferedMessageIsReleasedToAnIdleConsumer(t *testing.T) {
	t.Parallel()
	server := redistest.Shared(t)
	client, topic := server.Client(t), redistest.Key(t)
	deaf := newSub(t, client, minIdle(shortIdle))
	messages := deaf.subscribe(t, topic)
	publish(t, client, topic, "m")
	eventuallyPending(t, client, topic, 1)
	other := newSub(t, server.Client(t), minIdle(shortIdle)).subscribe(t, topic)
	msg := receive(t, other)
	require.Equal(t, 1, countOf(t, msg))
	deaf.events.wait(t, redischannels.EventReleased)
	msg.Ack()
	eventuallyPending(t, client, topic, 0)
	noMessage(t, messages)
}

// Releasing buffered messages breaks the order where no other consumer takes them.
func TestSubscriber_SoleConsumerKeepsTheOrder(t *testing.T) {
	t.Parallel()
	client, topic := redistest.Shared(t).Client(t), redistest.Key(t)
	const n = 300
	sub := newSub(t, client)
	messages := sub.subscribe(t, topic)
	publish(t, client, topic, numbered(n)...)
	var seen []string
	for i := range n {
		msg := receive(t, messages)
		seen = append(seen, string(msg.Payload))
		if i == n/2 { // many were handled quickly, so some wait now
			require.Greater(t, len(pendingOf(t, client, topic)), 2)
			time.Sleep(1500 * time.Millisecond) // the handler's work
		}
		msg.Ack()
	}
	require.Equal(t, numbered(n), seen)
	sub.events.none(t, redischannels.EventReleased)
}

// A slow consumer fetches hundreds of messages into its own PEL, and the next pod gets none.
func TestSubscriber_SlowConsumerLeasesOnlyItsShare(t *testing.T) {
	t.Parallel()
	server := redistest.Shared(t)
	client, topic := server.Client(t), redistest.Key(t)
	const n = 2000 // the slow one alone needs 20 s
	publish(t, client, topic, numbered(n)...)
	slow := newSub(t, client, inFlight(2), minIdle(time.Minute))
	// Quick at first, so that it fetches ahead, then slow.
	slowOnes := handle(slow.subscribe(t, topic), 2, func(m delivered, _ *message.Message) bool {
		if len(m.payload) > 1 { // from the tenth on
			time.Sleep(20 * time.Millisecond) // the handler's work
		}
		return true
	})
	redistest.Eventually(t, soon, func() bool {
		return slowOnes.len() > 30 && len(pendingOf(t, client, topic)) < 20
	}, "it holds more than it handles in 100 ms")
	before := slowOnes.len() + len(pendingOf(t, client, topic))
	quick := handle(newSub(t, server.Client(t), inFlight(2), minIdle(time.Minute)).subscribe(t, topic), 2, work(0))
	eventuallyRead(t, client, topic)
	eventuallyPending(t, client, topic, 0)
	require.ElementsMatch(t, numbered(n), append(slowOnes.payloads(), quick.payloads()...))
	require.Greater(t, quick.len(), (n-before)/2)
}

// Messages that are nacked and wait fill the window, and no new ones are fetched although
// every handler is idle.
func TestSubscriber_BackoffDoesNotStopFetching(t *testing.T) {
	t.Parallel()
	client, topic := redistest.Shared(t).Client(t), redistest.Key(t)
	const waiting = 1000 // of a window of 1,024
	sub := newSub(t, client, inFlight(8), func(c *redischannels.SubscriberConfig) {
		c.NackBackoff = redischannels.Backoff{Min: time.Hour, Max: time.Hour}
	})
	h := handle(sub.subscribe(t, topic), 8, func(m delivered, _ *message.Message) bool { return m.payload == "good" })
	publish(t, client, topic, slices.Repeat([]string{"bad"}, waiting)...)
	redistest.Eventually(t, soon, func() bool { return h.len() == waiting }, "%d nacks", waiting)
	for i := range 20 {
		publish(t, client, topic, "good")
		redistest.Eventually(t, soon, func() bool { return h.len() == waiting+1+i }, "message %d behind those that wait", i)
	}
	eventuallyPending(t, client, topic, waiting)
}

// heapPeak runs fn and returns by how much the live heap grew meanwhile at most.
func heapPeak(fn func(sample func())) (growth uint64) {
	var stats runtime.MemStats
	live := func() uint64 {
		runtime.GC()
		runtime.ReadMemStats(&stats)
		return stats.HeapAlloc
	}
	before, peak := live(), uint64(0)
	fn(func() { peak = max(peak, live()) })
	return max(peak, before) - before
}

// maxGrowth is the maximum memory of a subscription with a backlog.
const maxGrowth = 64 << 20

// A slow handler and a backlog of a million entries: the process runs out of memory.
func TestSubscriber_MemoryIsBoundedWithALongBacklog(t *testing.T) {
	server := redistest.Shared(t) // not parallel: it measures the heap
	client, topic := server.Client(t), redistest.Key(t)
	const entries, perCall = 1_000_000, 20_000
	fill := redis.NewScript(`for i = 1, ARGV[1] do redis.call('XADD', KEYS[1], '*', '_watermill_message_uuid', 'u', 'payload', 'p') end return 1`)
	for range entries / perCall {
		require.NoError(t, fill.Run(t.Context(), client, []string{topic}, perCall).Err())
	}
	defer client.Del(t.Context(), topic)
	for _, n := range []int{1, 100} {
		t.Run(fmt.Sprintf("MaxInFlight=%d", n), func(t *testing.T) {
			sub := newSub(t, client, inFlight(n), minIdle(time.Minute))
			handled, leased := 0, 0
			growth := heapPeak(func(sample func()) {
				h := handle(sub.subscribe(t, topic), n, func(delivered, *message.Message) bool {
					time.Sleep(5 * time.Millisecond) // the handler's work
					return true
				})
				for range 15 {
					time.Sleep(100 * time.Millisecond) // between two samples
					sample()
					leased = max(leased, len(pendingOf(t, client, topic)))
				}
				handled = h.len()
				sub.closeSoon(t)
			})
			t.Logf("heap growth %d KiB, %d handled, at most %d pending", growth>>10, handled, leased)
			require.Less(t, growth, uint64(maxGrowth))
			require.NotZero(t, handled)
			require.LessOrEqual(t, leased, redischannels.DefaultPrefetch+n+2*n)
		})
	}
}

// The same with large entries: a bound in numbers alone is none.
func TestSubscriber_MemoryIsBoundedWithLargeEntries(t *testing.T) {
	server := redistest.Start(t) // not parallel: it measures the heap
	client, topic := server.Client(t), redistest.Key(t)
	const entries = 300
	fill := redis.NewScript(`for i = 1, ARGV[1] do redis.call('XADD', KEYS[1], '*', '_watermill_message_uuid', 'u', 'payload', string.rep('p', 1048576)) end return 1`)
	for range entries / 20 {
		require.NoError(t, fill.Run(t.Context(), client, []string{topic}, 20).Err())
	}
	for name, work := range map[string]time.Duration{"quick": 0, "slow": 50 * time.Millisecond} {
		t.Run(name, func(t *testing.T) {
			require.NoError(t, client.XGroupCreate(t.Context(), topic, "g", "0").Err())
			defer client.XGroupDestroy(t.Context(), topic, "g")
			sub := newSub(t, client, minIdle(time.Minute))
			handled := 0
			growth := heapPeak(func(sample func()) {
				h := handle(sub.subscribe(t, topic), 1, func(delivered, *message.Message) bool {
					time.Sleep(work) // the handler's work
					return true
				})
				for i := range 30 {
					redistest.Eventually(t, soon, func() bool { return h.len() > i || h.len() == entries }, "progress")
					sample()
				}
				handled = h.len()
				sub.closeSoon(t)
			})
			t.Logf("heap growth %d KiB, %d handled", growth>>10, handled)
			require.Less(t, growth, uint64(maxGrowth))
		})
	}
}

// Of each batch one message waits for its retry, and with it the whole reply in which it came:
// the bound in bytes counts only the message.
func TestSubscriber_BackingOffMessageKeepsOnlyItself(t *testing.T) {
	server := redistest.Start(t) // not parallel: it measures the heap
	client, topic := server.Client(t), redistest.Key(t)
	const entries = 6000 // of 16 KiB
	fill := redis.NewScript(`for i = 1, ARGV[1] do redis.call('XADD', KEYS[1], '*', '_watermill_message_uuid', i % 40, 'payload', string.rep('p', 16384)) end return 1`)
	for range entries / 1000 {
		require.NoError(t, fill.Run(t.Context(), client, []string{topic}, 1000).Err())
	}
	sub := newSub(t, client, inFlight(8), minIdle(time.Minute), func(c *redischannels.SubscriberConfig) {
		c.NackBackoff = redischannels.Backoff{Min: time.Hour, Max: time.Hour}
	})
	growth := heapPeak(func(sample func()) {
		h := handle(sub.subscribe(t, topic), 8, func(_ delivered, msg *message.Message) bool { return msg.UUID != "0" })
		for i := range 12 {
			redistest.Eventually(t, 3*soon, func() bool { return h.len() >= (i+1)*entries/12 }, "progress")
			sample()
		}
		sub.closeSoon(t)
	})
	t.Logf("heap growth %d KiB", growth>>10)
	require.Less(t, growth, uint64(maxGrowth))
}

// Servers were broken by commands with very many IDs, and a large COUNT holds others up: what
// one command asks for is bounded, however much there is to do.
func TestSubscriber_CommandsAreBounded(t *testing.T) {
	t.Parallel()
	server := redistest.Shared(t)
	direct, client, topic := server.Client(t), server.Client(t), redistest.Key(t)
	const entries = 6000
	publish(t, direct, topic, numbered(entries)...)
	deliverTo(t, direct, topic, "dead", entries/2, time.Hour)
	var mu sync.Mutex
	most := map[string]int{}
	see := func(_ context.Context, cmd redis.Cmder) error {
		mu.Lock()
		defer mu.Unlock()
		most[cmd.Name()] = max(most[cmd.Name()], len(cmd.Args()))
		if count, ok := arg(cmd, "COUNT"); ok {
			n, err := strconv.Atoi(count)
			if err != nil {
				return err
			}
			most[cmd.Name()+" COUNT"] = max(most[cmd.Name()+" COUNT"], n)
		}
		return nil
	}
	hook := redistest.NewHook()
	for _, name := range []string{"xack", "evalsha", "xreadgroup"} {
		hook.Before(name, see)
	}
	client.AddHook(hook)
	sub := newSub(t, client, onReads(hook), inFlight(entries), minIdle(time.Second), tuned(func(c *redischannels.Tuning) { c.Prefetch = entries }))
	messages := sub.subscribe(t, topic)
	leased := make([]*message.Message, entries)
	for i := range leased {
		leased[i] = receive(t, messages)
	}
	redistest.Eventually(t, soon, func() bool {
		mu.Lock()
		defer mu.Unlock()
		return most["evalsha"] >= 2*200
	}, "renewals of many")
	for _, msg := range leased {
		msg.Ack()
	}
	eventuallyPending(t, direct, topic, 0)
	sub.closeSoon(t)
	mu.Lock()
	defer mu.Unlock()
	t.Log(most)
	require.LessOrEqual(t, most["xack"], 3+1000)
	require.LessOrEqual(t, most["evalsha"], 10+2*200)
	require.LessOrEqual(t, most["xreadgroup COUNT"], 2*entries)
}

// Entries were released because the application was busy, and the only other consumer takes
// nothing: they come as soon as the application receives again, not with the next claim scan.
func TestSubscriber_ReleasedEntriesComeBackWhenTheApplicationReceives(t *testing.T) {
	t.Parallel()
	client, topic := redistest.Shared(t).Client(t), redistest.Key(t)
	sub := newSub(t, client, tuned(func(c *redischannels.Tuning) { c.MinIdle, c.ClaimInterval = time.Minute, time.Minute }))
	messages := sub.subscribe(t, topic)
	require.NoError(t, client.XGroupCreateConsumer(t.Context(), topic, "g", "peer").Err())
	publish(t, client, topic, numbered(100)...)
	receiveAcked(t, messages, 50) // it fetches ahead by now
	busy := receive(t, messages)
	back := sub.events.wait(t, redischannels.EventReleased)
	require.NotEmpty(t, back.EntryIDs)
	busy.Ack()
	require.Equal(t, numbered(100)[51:], receiveAcked(t, messages, 49))
	eventuallyPending(t, client, topic, 0)
}

// A consumer with a slow handler keeps messages that it fetched ahead, while another one of
// the group is idle.
func TestSubscriber_SlowConsumerLeavesMessagesToOthers(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	for name, warm := range map[string]int{"slow from the start": 0, "slow after fast messages": 300} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			topic := redistest.Key(t)
			slow := newSub(t, client).subscribe(t, topic)
			for n := range warm { // its prefetch grows
				publish(t, client, topic, fmt.Sprint("warm", n))
				receive(t, slow).Ack()
			}
			quick := newSub(t, client)
			messages := quick.subscribe(t, topic)
			payloads := make([]string, 60)
			for n := range payloads {
				payloads[n] = fmt.Sprint(n)
			}
			publish(t, client, topic, payloads...)
			stuck := receive(t, slow) // and is handled until the end
			want := slices.DeleteFunc(slices.Clone(payloads), func(p string) bool { return p == string(stuck.Payload) })
			var got []string
			for range want {
				msg := receive(t, messages)
				require.Equal(t, 1, countOf(t, msg))
				got = append(got, string(msg.Payload))
				msg.Ack()
			}
			require.ElementsMatch(t, want, got)
			require.NoError(t, stuck.Context().Err())
			stuck.Ack()
			eventuallyPending(t, client, topic, 0)
		})
	}
}

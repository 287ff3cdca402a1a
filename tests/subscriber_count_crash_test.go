package tests

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
)

// maxDeliveries sets MaxDeliveries.
func maxDeliveries(n int) func(*redischannels.SubscriberConfig) {
	return func(c *redischannels.SubscriberConfig) { c.MaxDeliveries = n }
}

// crashed lets a journalChild handle the topic up to the messages that it holds, waits until it
// has buffered more, and kills it. Its entries can be claimed when crashed returns.
func crashed(t *testing.T, server *redistest.Server, topic string, held []int, settings ...string) *journal {
	t.Helper()
	var numbers []string
	for _, n := range held {
		numbers = append(numbers, strconv.Itoa(n))
	}
	child, j := startJournal(t, server, topic, append(settings, "HOLD="+strings.Join(numbers, ","))...)
	for _, n := range held {
		j.waitFor(t, n, 1)
	}
	client := server.Client(t)
	redistest.Eventually(t, soon, func() bool { return len(pendingOf(t, client, topic)) >= len(held)+50 }, "buffered entries")
	child.Kill()
	waitIdle(t, client, topic, testMinIdle)
	return j
}

// requireTrueDeadLetters fails the test for a dead letter that claims more deliveries than there were.
func requireTrueDeadLetters(t *testing.T, client redis.UniversalClient, topic string, deliveries map[string]int) {
	t.Helper()
	dead, err := client.XRange(t.Context(), deadStream(topic), "-", "+").Result()
	require.NoError(t, err)
	var wrong []string
	for _, d := range dead {
		id := fmt.Sprint(d.Values["_dead_entry_id"])
		count, err := strconv.Atoi(fmt.Sprint(d.Values["_dead_count"]))
		require.NoError(t, err)
		reason := fmt.Sprint(d.Values["_dead_reason"])
		said := 0
		_, _ = fmt.Sscanf(reason, "delivered %d times", &said)
		if max(count, said) > deliveries[id] {
			wrong = append(wrong, fmt.Sprintf("%s: %d deliveries, count %d, %q", id, deliveries[id], count, reason))
		}
	}
	require.Empty(t, firstOf(wrong), "%d of %d dead letters claim deliveries that never happened", len(wrong), len(dead))
}

// requireCounts fails the test if one of the later deliveries counts more than there were: the
// earlier ones and those of its own process.
func requireCounts(t *testing.T, earlier, later []delivered) {
	t.Helper()
	times := timesByID(earlier)
	var wrong []string
	for _, m := range later {
		if times[m.id]++; m.count > times[m.id] {
			wrong = append(wrong, fmt.Sprintf("delivery %d of %q says %d", times[m.id], m.payload, m.count))
		}
	}
	require.Empty(t, firstOf(wrong), "%d of %d deliveries count some that never happened", len(wrong), len(later))
}

// firstOf is a few examples of what is wrong.
func firstOf(wrong []string) []string { return wrong[:min(3, len(wrong))] }

// timesByID counts deliveries by entry ID.
func timesByID(all ...[]delivered) map[string]int {
	times := make(map[string]int)
	for _, got := range all {
		for _, m := range got {
			times[m.id]++
		}
	}
	return times
}

// Redis counts 1 for every entry that is read, also for one that only waits in the process.
// A process that crashes leaves hundreds of them: with MaxDeliveries 1 the next consumer made
// dead letters of messages that no handler had ever seen, and otherwise their first deliveries
// said 2.
func TestSubscriber_EntriesThatOnlyWaitedInACrashedProcessDoNotCount(t *testing.T) {
	t.Parallel()
	const entries, quick = 700, 500
	for _, limit := range []int{1, 3} {
		for _, handlers := range []int{1, 8} {
			t.Run(fmt.Sprintf("MaxDeliveries=%d MaxInFlight=%d", limit, handlers), func(t *testing.T) {
				t.Parallel()
				server := redistest.Shared(t)
				client, topic := server.Client(t), redistest.Key(t)
				ids := publish(t, client, topic, keyedBatch(8, 0, entries-1)...)
				held := consecutive(quick, handlers)
				j := crashed(t, server, topic, held,
					fmt.Sprintf("IN_FLIGHT=%d", handlers), fmt.Sprintf("MAX_DELIVERIES=%d", limit))
				before := j.all(t)

				sub := newSub(t, client, inFlight(handlers), maxDeliveries(limit))
				h := handle(sub.subscribe(t, topic), handlers, work(0))
				eventuallyRead(t, client, topic)
				eventuallyPending(t, client, topic, 0)
				sub.closeSoon(t)
				<-h.done

				times := timesByID(before, h.all())
				requireTrueDeadLetters(t, client, topic, times)
				// One that was at work when its process died gets one more attempt.
				require.Zero(t, client.XLen(t.Context(), deadStream(topic)).Val(), "dead letters")
				requireCounts(t, before, h.all())
				for i, id := range ids {
					require.NotZero(t, times[id], "message %d was never delivered", i)
				}
			})
		}
	}
}

// Redis can report two or more deliveries: they are counted exactly, also after a crash, and
// so is the dead letter that they end in.
func TestSubscriber_SeveralDeliveriesAreCountedExactlyAfterACrash(t *testing.T) {
	t.Parallel()
	server := redistest.Shared(t)
	client, topic := server.Client(t), redistest.Key(t)
	const limit = 4
	ids := publish(t, client, topic, keyedPayload(1, 1, "nack1"), keyedPayload(2, 2, "nack2"), keyedPayload(3, 3, "nack3"))
	child, j := startJournal(t, server, topic, "IN_FLIGHT=3", fmt.Sprintf("MAX_DELIVERIES=%d", limit))
	for n := range ids {
		j.waitFor(t, n+1, n+2)
	}
	child.Kill()
	before := timesByID(j.all(t))
	sub := newSub(t, client, inFlight(3), maxDeliveries(limit))
	h := handle(sub.subscribe(t, topic), 3, work(0))
	sub.events.wait(t, redischannels.EventDeadLettered)
	eventuallyPending(t, client, topic, 0)
	require.Len(t, h.all(), 2)
	for _, m := range h.all() {
		require.Equal(t, before[m.id]+1, m.count, m.payload)
	}
	dead, err := client.XRange(t.Context(), deadStream(topic), "-", "+").Result()
	require.NoError(t, err)
	require.Len(t, dead, 1)
	require.Equal(t, ids[2], dead[0].Values["_dead_entry_id"])
	require.Equal(t, strconv.Itoa(limit), dead[0].Values["_dead_count"])
	requireTrueDeadLetters(t, client, topic, before)
}

// The releases of a running process are counted exactly, even a single delivery: the entry was
// nacked once, or it only waited, and its consumer has recorded that.
func TestSubscriber_ReleasesKeepASingleDelivery(t *testing.T) {
	t.Parallel()
	server := redistest.Shared(t)
	released := map[string]func(t *testing.T, sub *testSub){
		"Close":           func(t *testing.T, sub *testSub) { sub.closeSoon(t) },
		"waited too long": func(t *testing.T, sub *testSub) { sub.events.wait(t, redischannels.EventReleased) },
	}
	for name, release := range released {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			client, topic := server.Client(t), redistest.Key(t)
			sub := newSub(t, client, inFlight(8), minIdle(time.Minute))
			messages := sub.subscribe(t, topic)
			const nacked, waiting = 3, 3 // and one that is offered when they are nacked
			publish(t, client, topic, keyedBatch(1, 0, nacked+waiting)...)
			held := []*message.Message{receive(t, messages), receive(t, messages), receive(t, messages)}
			for _, msg := range held {
				require.True(t, redischannels.RetryAfter(msg, 0))
				msg.Nack()
			}
			redistest.Eventually(t, soon, func() bool { return sub.Stats()[0].InFlight == 1 }, "the nacks")
			receive(t, messages).Ack() // the offer from before the nacks; the next one is looked for among all
			eventuallyPending(t, client, topic, nacked+waiting)
			other := newSub(t, server.Client(t), inFlight(8), minIdle(time.Minute))
			h := handle(other.subscribe(t, topic), 1, work(0))
			release(t, sub)
			redistest.Eventually(t, soon, func() bool { return h.len() >= nacked+waiting-1 }, "all but the one that is being offered")
			counts := make(map[int]int)
			for _, m := range h.all() {
				counts[numberOf(m.payload)] = m.count
			}
			for n, count := range counts {
				want := 1
				if n < nacked {
					want = 2
				}
				require.Equal(t, want, count, "message %d", n)
			}
		})
	}
}

// A message that kills its process every time is bounded: it gets MaxDeliveries attempts, or one
// more, since Redis cannot distinguish the first one from an entry that only waited. Its dead letter
// claims no delivery that did not happen, and nothing else becomes one.
func TestSubscriber_AKillerGetsAtMostOneMoreAttempt(t *testing.T) {
	t.Parallel()
	for _, limit := range []int{1, 2} {
		t.Run(fmt.Sprintf("MaxDeliveries=%d", limit), func(t *testing.T) {
			t.Parallel()
			server := redistest.Shared(t)
			client, topic := server.Client(t), redistest.Key(t)
			payloads := keyedBatch(8, 0, 199)
			payloads[100] = keyedPayload(0, 100, "kill")
			ids := publish(t, client, topic, payloads...)
			var j *journal
			kills := 0
			for ; client.XLen(t.Context(), deadStream(topic)).Val() == 0; kills++ {
				require.LessOrEqual(t, kills, limit+1, "it kills again")
				var child *redistest.Child
				child, j = startJournal(t, server, topic, "IN_FLIGHT=1", fmt.Sprintf("MAX_DELIVERIES=%d", limit))
				redistest.Eventually(t, 2*soon, func() bool {
					select {
					case <-child.Done():
						return true
					default:
						return client.XLen(t.Context(), deadStream(topic)).Val() > 0 && len(pendingOf(t, client, topic)) == 0
					}
				}, "neither the end of the process nor a dead letter")
			}
			times := timesByID(j.all(t))
			require.GreaterOrEqual(t, times[ids[100]], limit)
			require.LessOrEqual(t, times[ids[100]], limit+1)
			requireTrueDeadLetters(t, client, topic, times)
			dead, err := client.XRange(t.Context(), deadStream(topic), "-", "+").Result()
			require.NoError(t, err)
			require.Len(t, dead, 1)
			require.Equal(t, ids[100], dead[0].Values["_dead_entry_id"])
			eventuallyRead(t, client, topic)
			require.Len(t, timesByID(j.all(t)), len(ids), "everything was delivered")
		})
	}
}

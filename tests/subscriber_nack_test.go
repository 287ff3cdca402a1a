package tests

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
)

// deliveries sets MaxDeliveries.
func deliveries(n int) func(*redischannels.SubscriberConfig) {
	return func(c *redischannels.SubscriberConfig) { c.MaxDeliveries = n }
}

// fieldsOf returns the fields of all entries of a stream.
func fieldsOf(t *testing.T, client redis.UniversalClient, key string) []map[string]any {
	t.Helper()
	entries, err := client.XRange(t.Context(), key, "-", "+").Result()
	require.NoError(t, err)
	var all []map[string]any
	for _, e := range entries {
		all = append(all, e.Values)
	}
	return all
}

// poisonRun records the calls of a pool of handlers, by payload.
type poisonRun struct {
	mu     sync.Mutex
	acked  map[string]int
	counts map[string][]int // delivery counts of those that were nacked
}

// nackPoison acknowledges every message that is not poison, from several channels at once.
func nackPoison(t *testing.T, poison func(payload string) bool, channels ...<-chan *message.Message) *poisonRun {
	t.Helper()
	h := &poisonRun{acked: map[string]int{}, counts: map[string][]int{}}
	for _, messages := range channels {
		go func() {
			for msg := range messages {
				payload := string(msg.Payload)
				count, _ := redischannels.DeliveryCountFromContext(msg.Context())
				h.mu.Lock()
				bad := poison(payload)
				if bad {
					h.counts[payload] = append(h.counts[payload], count)
				} else {
					h.acked[payload]++
				}
				h.mu.Unlock()
				if bad {
					msg.Nack()
				} else {
					msg.Ack()
				}
			}
		}()
	}
	return h
}

func (h *poisonRun) ackedCount() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.acked)
}

// One message that always fails stops the whole group: 3 of 3 consumers are stuck and 0
// of 30 good messages are handled.
func TestSubscriber_PoisonMessageDoesNotStopTheGroup(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	for name, change := range map[string]func(*redischannels.SubscriberConfig){
		"in flight": inFlight(4),
		"strict":    inFlight(1),
		"ordering key": func(c *redischannels.SubscriberConfig) {
			c.MaxInFlight = 4
			c.OrderingKey = func(msg *message.Message) string { return string(msg.Payload) }
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			topic := redistest.Key(t)
			const limit = 5
			var channels []<-chan *message.Message
			var subs []*testSub
			for range 3 {
				sub := newSub(t, client, change, deliveries(limit))
				subs = append(subs, sub)
				channels = append(channels, sub.subscribe(t, topic))
			}
			got := nackPoison(t, func(payload string) bool { return payload == "poison" }, channels...)
			publish(t, client, topic, "poison")
			for n := range 30 {
				publish(t, client, topic, fmt.Sprint(n))
			}
			redistest.Eventually(t, soon, func() bool { return got.ackedCount() == 30 }, "all good messages are handled")
			redistest.Eventually(t, soon, func() bool {
				return client.XLen(t.Context(), deadStream(topic)).Val() == 1
			}, "the poison is a dead letter")
			eventuallyPending(t, client, topic, 0)
			require.Equal(t, []int{1, 2, 3, 4, 5}, got.counts["poison"], "delivered exactly %d times", limit)
			for payload, times := range got.acked {
				require.Equal(t, 1, times, "message %s", payload)
			}
			dead := fieldsOf(t, client, deadStream(topic))[0]
			require.Equal(t, "poison", dead["payload"])
			require.Equal(t, "5", dead["_dead_count"])
			require.Equal(t, "g", dead["_dead_group"])
			reported := 0
			for _, sub := range subs {
				reported += len(sub.events.of(redischannels.EventDeadLettered))
			}
			require.Equal(t, 1, reported)
		})
	}
}

// The delivery limit never fires, because the counter lives in the process that the
// message kills; or it fires for messages that were only moved between consumers.
func TestSubscriber_DeliveryCountSurvivesACrash(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	client := server.Client(t)

	t.Run("killed without a nack", func(t *testing.T) {
		t.Parallel()
		topic := redistest.Key(t)
		publish(t, client, topic, "hold")
		for n := 1; n <= 3; n++ {
			child := startGroupChild(t, server, topic)
			count := n
			if n == 2 {
				count = 1 // the first may only have been buffered
			}
			require.Equal(t, fmt.Sprintf("hold %d", count), child.WaitLine("got ", soon))
			child.Kill()
		}
		sub := newSub(t, client, deliveries(3))
		messages := sub.subscribe(t, topic)
		event := sub.events.wait(t, redischannels.EventDeadLettered)
		require.Len(t, event.EntryIDs, 1)
		noMessage(t, messages)
		require.Equal(t, "3", fieldsOf(t, client, deadStream(topic))[0]["_dead_count"])
		require.Empty(t, pendingOf(t, client, topic))
	})

	t.Run("handled when the subscription ends", func(t *testing.T) {
		t.Parallel()
		topic := redistest.Key(t)
		publish(t, client, topic, "m")
		for n := 1; n <= 2; n++ {
			sub := newSub(t, client, func(c *redischannels.SubscriberConfig) { c.Tuning.DrainTimeout = time.Millisecond })
			msg := receive(t, sub.subscribe(t, topic))
			require.Equal(t, n, countOf(t, msg))
			sub.closeSoon(t)
			require.Equal(t, []string{entryIDOf(t, msg)}, sub.events.wait(t, redischannels.EventAbandoned).EntryIDs)
			require.Len(t, pendingOf(t, client, topic), 1)
		}
	})

	t.Run("held for several MinIdle", func(t *testing.T) {
		t.Parallel()
		topic := redistest.Key(t)
		publish(t, client, topic, "m")
		// Renewing, and the checks of another consumer for what it can claim, count nothing.
		messages := newSub(t, client).subscribe(t, topic)
		other := newSub(t, client).subscribe(t, topic)
		var msg *message.Message
		select {
		case msg = <-messages:
		case msg = <-other:
		}
		redistest.Never(t, 3*testMinIdle, func() bool {
			select {
			case <-messages:
				return true
			case <-other:
				return true
			case <-msg.Context().Done():
				return true
			default:
				return false
			}
		}, "a second delivery, or the end of the first")
		msg.Nack()
		select {
		case msg = <-messages:
		case msg = <-other:
		}
		require.Equal(t, 2, countOf(t, msg))
		msg.Ack()
	})
}

// The move to the dead-letter stream is an XADD and an XACK: when one of them fails the
// entry is lost, or is a dead letter twice.
func TestSubscriber_DeadLetterIsInOnePlace(t *testing.T) {
	t.Parallel()

	t.Run("out of memory", func(t *testing.T) {
		t.Parallel()
		server := redistest.Start(t)
		client := server.Client(t)
		topic := redistest.Key(t)
		sub := newSub(t, client, deliveries(1))
		messages := sub.subscribe(t, topic)
		publish(t, client, topic, "bad", "good")
		msg := receive(t, messages)
		require.NoError(t, client.ConfigSet(t.Context(), "maxmemory", "1").Err())
		msg.Nack()
		failed := sub.events.wait(t, redischannels.EventDeadLetterFailed)
		require.ErrorIs(t, failed.Err, redischannels.ErrOutOfMemory)
		require.Equal(t, []string{"good"}, receiveAcked(t, messages, 1), "others continue")
		eventuallyPending(t, client, topic, 1)
		require.Zero(t, client.XLen(t.Context(), deadStream(topic)).Val())

		require.NoError(t, client.ConfigSet(t.Context(), "maxmemory", "0").Err())
		sub.events.wait(t, redischannels.EventDeadLettered)
		require.Empty(t, pendingOf(t, client, topic))
		require.Len(t, fieldsOf(t, client, deadStream(topic)), 1)
		require.Len(t, sub.events.of(redischannels.EventDeadLetterFailed), 1, "reported once")
	})

	t.Run("lost reply", func(t *testing.T) {
		t.Parallel()
		server := redistest.Shared(t)
		client := server.Client(t)
		proxy := redistest.NewProxy(t, server.Addr())
		topic := redistest.Key(t)
		sub := newSub(t, server.Client(t, redistest.Via(proxy)), deliveries(1))
		messages := sub.subscribe(t, topic)
		publish(t, client, topic, "bad")
		msg := receive(t, messages)
		// go-redis sends the script again, which finds that the first run has moved the entry.
		lost := proxy.DropReply(1, redistest.And(redistest.Script(), redistest.Contains(deadStream(topic)), redistest.Contains("delivered 1 times")))
		msg.Nack()
		lost.Wait(t, soon)
		eventuallyPending(t, client, topic, 0)
		sub.events.wait(t, redischannels.EventDeadLettered)
		publish(t, client, topic, "next")
		require.Equal(t, []string{"next"}, receiveAcked(t, messages, 1))
		require.Len(t, fieldsOf(t, client, deadStream(topic)), 1)
	})
}

// A retry that appends the message again replays it to every group.
func TestSubscriber_RetryStaysInItsGroup(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	topic := redistest.Key(t)
	failing := newSub(t, client).subscribe(t, topic)
	other := newSub(t, client, func(c *redischannels.SubscriberConfig) { c.ConsumerGroup = "h" }).subscribe(t, topic)
	publish(t, client, topic, "m")
	for n := 1; n <= 5; n++ {
		msg := receive(t, failing)
		require.Equal(t, n, countOf(t, msg))
		msg.Nack()
	}
	require.Equal(t, []string{"m"}, receiveAcked(t, other, 1))
	require.Equal(t, []string{"m"}, receiveAcked(t, failing, 1))
	noMessage(t, other)
	require.EqualValues(t, 1, client.XLen(t.Context(), topic).Val())
}

// There is no delay between two attempts, or it is a sleep that holds a worker and that
// Close has to wait for.
func TestSubscriber_RetryDelayHoldsNoWorker(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	for name, asked := range map[string]bool{"NackBackoff": false, "RetryAfter": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			attempt := func(topic string) time.Duration {
				sub := newSub(t, client, inFlight(2), func(c *redischannels.SubscriberConfig) {
					if !asked {
						c.NackBackoff = redischannels.Backoff{Min: 10 * time.Second}
					}
				})
				messages := sub.subscribe(t, topic)
				publish(t, client, topic, "a", "b") // as many as there are slots
				for range 2 {
					msg := receive(t, messages)
					if asked {
						require.True(t, redischannels.RetryAfter(msg, 10*time.Second))
					}
					msg.Nack()
				}
				publish(t, client, topic, "c", "d", "e")
				require.Equal(t, []string{"c", "d", "e"}, receiveAcked(t, messages, 3))
				noMessage(t, messages)
				if asked {
					eventuallyDeferred(t, client, topic, 2)
				} else {
					eventuallyPending(t, client, topic, 2)
				}
				took := sub.closeSoon(t)
				t.Logf("Close took %s", took)
				require.Empty(t, pendingOf(t, client, topic))
				eventuallyDeferred(t, client, topic, 2)
				return took
			}
			// The best of some attempts, for the sake of loaded machines.
			took := attempt(redistest.Key(t))
			for i := 0; i < 4 && took >= 100*time.Millisecond; i++ {
				took = attempt(redistest.Key(t))
			}
			require.Less(t, took, 100*time.Millisecond, "Close does not wait for the delay")
		})
	}

	t.Run("the delay is kept", func(t *testing.T) {
		t.Parallel()
		topic := redistest.Key(t)
		messages := newSub(t, client).subscribe(t, topic)
		publish(t, client, topic, "m")
		msg := receive(t, messages)
		require.True(t, redischannels.RetryAfter(msg, 300*time.Millisecond))
		start := time.Now()
		msg.Nack()
		msg = receive(t, messages)
		require.GreaterOrEqual(t, time.Since(start), 300*time.Millisecond)
		msg.Ack()
	})
}

// RetryAfter and Reject mark a message; the Nack makes them work.
func TestSubscriber_RetryAfterAndReject(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)

	t.Run("RetryAfter", func(t *testing.T) {
		t.Parallel()
		topic := redistest.Key(t)
		publish(t, client, topic, "m")
		messages := newSub(t, client, func(c *redischannels.SubscriberConfig) {
			c.NackBackoff = redischannels.Backoff{Min: time.Hour, Max: time.Hour}
		}).subscribe(t, topic)
		const delay = 80 * time.Millisecond
		msg := receive(t, messages)
		require.True(t, redischannels.RetryAfter(msg, delay))
		noMessage(t, messages) // nothing happens before the Nack
		start := time.Now()
		msg.Nack()
		again := receive(t, messages)
		require.GreaterOrEqual(t, time.Since(start), delay)
		require.Equal(t, 2, countOf(t, again))
		require.True(t, redischannels.RetryAfter(again, delay))
		again.Ack() // an Ack is an Ack
		eventuallyPending(t, client, topic, 0)
		noMessage(t, messages)
	})
	t.Run("RetryAfter without delay", func(t *testing.T) {
		t.Parallel()
		topic := redistest.Key(t)
		publish(t, client, topic, "m")
		messages := newSub(t, client, func(c *redischannels.SubscriberConfig) {
			c.NackBackoff = redischannels.Backoff{Min: time.Hour, Max: time.Hour}
		}).subscribe(t, topic)
		msg := receive(t, messages)
		require.False(t, redischannels.RetryAfter(msg, -1))
		require.True(t, redischannels.RetryAfter(msg, 0))
		msg.Nack()
		receive(t, messages).Ack()
	})
	t.Run("Reject", func(t *testing.T) {
		t.Parallel()
		topic := redistest.Key(t)
		ids := publish(t, client, topic, "bad", "good")
		sub := newSub(t, client)
		messages := sub.subscribe(t, topic)
		msg := receive(t, messages)
		require.True(t, redischannels.Reject(msg, "no such customer"))
		noMessage(t, messages)
		msg.Nack()
		require.Equal(t, []string{"good"}, receiveAcked(t, messages, 1))
		require.Equal(t, []string{ids[0]}, sub.events.wait(t, redischannels.EventDeadLettered).EntryIDs)
		dead, err := client.XRange(t.Context(), deadStream(topic), "-", "+").Result()
		require.NoError(t, err)
		require.Len(t, dead, 1)
		require.Equal(t, "no such customer", dead[0].Values["_dead_reason"])
		require.Equal(t, "1", dead[0].Values["_dead_count"])
		eventuallyPending(t, client, topic, 0)
	})
	t.Run("the last call counts", func(t *testing.T) {
		t.Parallel()
		topic := redistest.Key(t)
		publish(t, client, topic, "m")
		messages := newSub(t, client).subscribe(t, topic)
		msg := receive(t, messages)
		require.True(t, redischannels.Reject(msg, "never"))
		require.True(t, redischannels.RetryAfter(msg, time.Millisecond))
		msg.Nack()
		receive(t, messages).Ack()
		require.Zero(t, client.Exists(t.Context(), deadStream(topic)).Val())
	})
}

// A postponed message is redelivered after the delay, with the same delivery count.
func TestSubscriber_Postpone(t *testing.T) {
	t.Parallel()
	for name, settings := range map[string]func(*redischannels.SubscriberConfig){
		"group": func(c *redischannels.SubscriberConfig) { c.MaxDeliveries = 2 }, "fan-out": fanOut,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			client, topic := redistest.Shared(t).Client(t), redistest.Key(t)
			messages := newSub(t, client, settings).subscribe(t, topic)
			publish(t, client, topic, "m")
			for range 3 {
				msg := receive(t, messages)
				require.Equal(t, 1, countOf(t, msg))
				require.False(t, redischannels.Postpone(msg, -1))
				require.True(t, redischannels.Reject(msg, "the last call counts"))
				require.True(t, redischannels.Postpone(msg, 50*time.Millisecond))
				start := time.Now()
				msg.Nack()
				again := receive(t, messages)
				require.GreaterOrEqual(t, time.Since(start), 50*time.Millisecond)
				require.Equal(t, 1, countOf(t, again))
				again.Nack()
				msg = receive(t, messages)
				require.Equal(t, 2, countOf(t, msg))
				msg.Ack()
				publish(t, client, topic, "m")
			}
		})
	}
	require.False(t, redischannels.Postpone(message.NewMessage("u", nil), time.Second))
}

package tests

import (
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

// deliveredTwice delivers n messages of the topic twice, by a subscription that lives and has them
// waiting for their third delivery when deliveredTwice returns; nothing receives any more.
func deliveredTwice(t *testing.T, client redis.UniversalClient, topic string, n int) (sub *testSub, messages <-chan *message.Message) {
	t.Helper()
	sub = newSub(t, client, inFlight(n), minIdle(time.Minute))
	messages = sub.subscribe(t, topic)
	for range 2 {
		held := make([]*message.Message, n)
		for i := range held {
			held[i] = receive(t, messages)
		}
		for _, msg := range held {
			require.True(t, redischannels.RetryAfter(msg, 0))
			msg.Nack()
		}
	}
	redistest.Eventually(t, soon, func() bool { return sub.Stats()[0].InFlight == 1 }, "all are nacked, and one is offered")
	return sub, messages
}

// Entries that were delivered twice were handled one at a time, although no process had crashed:
// after a deploy, and after they had waited in a busy consumer. (80 messages of 100 ms took 8 s in
// place of half a second.)
func TestSubscriber_WhatALivingProcessReleasesIsNotDeliveredAlone(t *testing.T) {
	t.Parallel()
	const entries, handlers = 80, 16
	for _, way := range []string{"Close", "waited too long", "came back"} {
		t.Run(way, func(t *testing.T) {
			t.Parallel()
			server := redistest.Shared(t)
			client, topic := server.Client(t), redistest.Key(t)
			if way == "came back" { // because the other consumer has no room
				publish(t, client, topic, "other")
				other := receive(t, newSub(t, server.Client(t), minIdle(time.Minute)).subscribe(t, topic))
				t.Cleanup(func() { other.Ack() })
			}
			publish(t, client, topic, numbered(entries)...)
			first, messages := deliveredTwice(t, client, topic, entries)
			released := entries
			switch way {
			case "Close":
				first.closeSoon(t)
			case "waited too long":
				receive(t, messages).Ack() // and the next one is looked for among all
				released -= 2              // that one, and the one that is offered now
			case "came back":
				receive(t, messages).Ack()
				released--
				first.events.wait(t, redischannels.EventReleased)
			}
			if way != "came back" {
				messages = newSub(t, server.Client(t), inFlight(handlers), minIdle(time.Minute)).subscribe(t, topic)
			}

			var once sync.Once
			var begun time.Time
			h := handle(messages, handlers, func(delivered, *message.Message) bool {
				once.Do(func() { begun = time.Now() })
				time.Sleep(100 * time.Millisecond) // the handler's work
				return true
			})
			redistest.Eventually(t, 2*soon, func() bool { return h.len() == released }, "%d messages", released)
			for _, m := range h.all() {
				require.Equal(t, 3, m.count, m.payload)
			}
			require.Less(t, time.Since(begun), 2*time.Second, "one after the other")
			h.mu.Lock()
			defer h.mu.Unlock()
			require.Greater(t, h.parallel, handlers/2)
		})
	}
}

// An application that collects ten deliveries before it acknowledges them got one, and waited for
// ever for the others.
func TestSubscriber_WhatALivingProcessReleasesCanBeCollected(t *testing.T) {
	t.Parallel()
	const entries = 10
	server := redistest.Shared(t)

	t.Run("Subscriber", func(t *testing.T) {
		t.Parallel()
		client, topic := server.Client(t), redistest.Key(t)
		publish(t, client, topic, numbered(entries)...)
		first, _ := deliveredTwice(t, client, topic, entries)
		first.closeSoon(t)
		messages := newSub(t, client, inFlight(16), minIdle(time.Minute)).subscribe(t, topic)
		var collected []*message.Message
		for range entries {
			select {
			case msg := <-messages:
				collected = append(collected, msg)
			case <-time.After(soon / 4):
				require.FailNow(t, "nothing more is delivered", "after %d of %d", len(collected), entries)
			}
		}
		for _, msg := range collected {
			msg.Ack()
		}
		eventuallyPending(t, client, topic, 0)
	})
	t.Run("Reader", func(t *testing.T) {
		t.Parallel()
		hub, key := newHubOf(t), redistest.Key(t)
		numbers := streamOf[int](t, hub, key, redischannels.StreamChannelConfig{
			Subscriber: redischannels.SubscriberConfig{MaxInFlight: 16, Tuning: redischannels.Tuning{MinIdle: time.Minute}},
		})
		write(t, numbers, consecutive(0, entries)...)
		first, _ := deliveredTwice(t, hub.client, key, entries)
		first.closeSoon(t)
		var collected []redischannels.Delivery[int]
		for range entries {
			got := make(chan redischannels.Delivery[int], 1)
			go func() {
				if d, err := numbers.Reader().Receive(t.Context()); err == nil {
					got <- d
				}
			}()
			select {
			case d := <-got:
				collected = append(collected, d)
			case <-time.After(soon / 4):
				require.FailNow(t, "nothing more is delivered", "after %d of %d", len(collected), entries)
			}
		}
		for _, d := range collected {
			require.NoError(t, d.Ack())
		}
		eventuallyPending(t, hub.client, key, 0)
	})
}

// suspects leaves messages behind in a crashed process: numbers 0 and 1 were delivered twice, and
// may be what has killed it, and the numbers 2 to 9 once. They can be claimed.
func suspects(t *testing.T, server *redistest.Server, topic string) {
	t.Helper()
	client := server.Client(t)
	payloads := append([]string{keyedPayload(0, 0, "nack1"), keyedPayload(1, 1, "nack1")}, keyedBatch(8, 2, 9)...)
	publish(t, client, topic, payloads...)
	child, j := startJournal(t, server, topic, "IN_FLIGHT=10", "HOLD=2,3,4,5,6,7,8,9")
	for n := range payloads {
		times := 1
		if n < 2 {
			times = 2
		}
		j.waitFor(t, n, times)
	}
	child.Kill()
	waitIdle(t, client, topic, testMinIdle)
}

// isSuspect reports whether a message of suspects was delivered twice.
func isSuspect(payload string) bool { return strings.HasSuffix(payload, "nack1") }

// An entry that was delivered twice and left by a crashed process may have killed it: nothing
// else is handled at the same time. An entry that was delivered once is handled as usual.
func TestSubscriber_WhatACrashedProcessLeavesIsDeliveredAlone(t *testing.T) {
	t.Parallel()
	server := redistest.Shared(t)
	client, topic := server.Client(t), redistest.Key(t)
	suspects(t, server, topic)
	var mu sync.Mutex
	active, most := make(map[string]bool), 0
	h := handle(newSub(t, client, inFlight(8)).subscribe(t, topic), 8, func(m delivered, _ *message.Message) bool {
		mu.Lock()
		for other := range active {
			if isSuspect(m.payload) || isSuspect(other) {
				t.Errorf("%q is handled beside %q", m.payload, other)
			}
		}
		active[m.payload] = true
		most = max(most, len(active))
		mu.Unlock()
		time.Sleep(50 * time.Millisecond) // the handler's work
		mu.Lock()
		delete(active, m.payload)
		mu.Unlock()
		return true
	})
	redistest.Eventually(t, soon, func() bool { return h.len() == 10 }, "all messages")
	eventuallyPending(t, client, topic, 0)
	mu.Lock()
	defer mu.Unlock()
	require.Greater(t, most, 1, "what was delivered once is handled alone as well")
}

// A caller that waits because one message is handled alone learns of it: nothing else would say why
// nothing comes.
func TestSubscriber_WaitingForWhatIsDeliveredAloneIsReported(t *testing.T) {
	t.Parallel()
	server := redistest.Shared(t)

	t.Run("Subscriber", func(t *testing.T) {
		t.Parallel()
		client, topic := server.Client(t), redistest.Key(t)
		suspects(t, server, topic)
		sub := newSub(t, client, inFlight(8))
		messages := sub.subscribe(t, topic)
		alone := receive(t, messages)
		require.True(t, isSuspect(string(alone.Payload)))
		event := sub.events.wait(t, redischannels.EventStalled)
		require.Equal(t, topic, event.Topic)
		require.Equal(t, "g", event.Group)
		noMessage(t, messages)
		alone.Ack()
		require.Len(t, receiveAcked(t, messages, 9), 9)
		eventuallyPending(t, client, topic, 0)
	})
	t.Run("Reader", func(t *testing.T) {
		t.Parallel()
		hub, key := newHubOf(t), redistest.Key(t)
		suspects(t, server, key)
		words := streamOf[[]byte](t, hub, key, redischannels.StreamChannelConfig{
			Codec: redischannels.Bytes, Subscriber: redischannels.SubscriberConfig{MaxInFlight: 8},
		})
		alone := receiveValue(t, words)
		require.True(t, isSuspect(string(alone.Value)))
		got := make(chan redischannels.Delivery[[]byte], 1)
		go func() {
			if d, err := words.Reader().Receive(t.Context()); err == nil {
				got <- d
			}
		}()
		event := hub.events.wait(t, redischannels.EventStalled)
		require.Equal(t, key, event.Topic)
		require.Empty(t, got)
		require.NoError(t, alone.Ack())
		select {
		case d := <-got:
			require.NoError(t, d.Ack())
		case <-time.After(soon):
			require.FailNow(t, "nothing comes")
		}
		require.Len(t, drainAcked(t, words, 8), 8)
		eventuallyPending(t, hub.client, key, 0)
	})
}

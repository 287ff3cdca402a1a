package tests

import (
	"fmt"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
)

// A read and an acknowledgement for each message are two commands and two round trips per
// message: what makes a subscriber twenty times slower than Redis. The link is slow, so that
// the counts do not depend on the speed of the machine: whatever is handled while one
// acknowledgement is under way goes with the next.
func TestSubscriber_CommandsPerReceivedMessage(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*redischannels.SubscriberConfig){
		"in order":    inFlight(1),
		"100 at once": inFlight(100),
		"keys": func(c *redischannels.SubscriberConfig) {
			c.MaxInFlight, c.OrderingKey = 32, func(msg *message.Message) string { return msg.UUID[:1] }
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			const n = 5000
			server := redistest.Start(t)
			direct, topic := server.Client(t), redistest.Key(t)
			publish(t, direct, topic, numbered(n)...)
			proxy := redistest.NewProxy(t, server.Addr())
			sub := newSub(t, server.Client(t, redistest.Via(proxy)), change, usualTuning)
			proxy.Delay(10 * time.Millisecond)
			messages := sub.subscribe(t, topic)
			receiveAcked(t, messages, 1) // what a subscription asks at its start does not count
			redistest.ResetStats(t, direct)
			receiveAcked(t, messages, n-1)
			stats := redistest.CommandStats(t, direct)
			eventuallyPending(t, direct, topic, 0)
			require.LessOrEqual(t, stats["xreadgroup"], int64(n/50), "%v", stats)
			require.LessOrEqual(t, stats["xack"], int64(n/50), "%v", stats)
			var others int64
			for command, calls := range stats {
				if command != "xreadgroup" && command != "xack" && !strings.HasPrefix(command, "config") && command != "info" {
					others += calls
				}
			}
			require.LessOrEqual(t, others, int64(20), "renewals, claims and whatever else: %v", stats)
		})
	}
}

// The whole way of a message, and not only the marshaler's part of it. The counts are those
// of all goroutines, so the bounds leave room for what timers and pools do now and then.
func TestSubscriber_AllocationsPerMessage(t *testing.T) {
	if raceEnabled {
		t.Skip("allocations are counted without the race detector: go test -run TestSubscriber_AllocationsPerMessage ./tests")
	}
	const n, runs = 1000, 5
	client := redistest.Start(t).Client(t)
	payload := []byte(strings.Repeat("x", 256))
	pub, err := redischannels.NewPublisher(redischannels.PublisherConfig{Client: client}, nil)
	require.NoError(t, err)
	t.Cleanup(func() { _ = pub.Close() })

	t.Run("publish 100 per call", func(t *testing.T) {
		topic, batch := redistest.Key(t), make([]*message.Message, 100)
		for i := range batch {
			batch[i] = message.NewMessage(fmt.Sprintf("01890f3e-5f6a-7c1e-8a51-%012d", i), payload)
		}
		allocations, _ := perMessage(t, runs, n, func() {
			for range n / len(batch) {
				require.NoError(t, pub.Publish(topic, batch...))
			}
		})
		require.LessOrEqual(t, allocations, 7.0)
	})
	t.Run("publish", func(t *testing.T) {
		topic, msg := redistest.Key(t), message.NewMessage("01890f3e-5f6a-7c1e-8a51-0b8f3c1d2e4f", payload)
		allocations, _ := perMessage(t, runs, n, func() {
			for range n {
				require.NoError(t, pub.Publish(topic, msg))
			}
		})
		require.LessOrEqual(t, allocations, 24.0)
	})
	// Seven are those of Watermill's message with its payload and its context, and two those of
	// the goroutine of each that is handled beside others. The reply in which a message of 256
	// bytes comes takes 400 bytes, which are there already when it comes in a large one.
	for name, change := range map[string]func(*redischannels.SubscriberConfig){"in order": inFlight(1), "100 at once": inFlight(100), "fan-out": fanOut} {
		t.Run("receive "+name, func(t *testing.T) {
			topic := redistest.Key(t)
			fillWithMessages(t, client, topic, (runs+1)*n, payload)
			sub := newSub(t, client, change, usualTuning, func(c *redischannels.SubscriberConfig) { c.StartFrom = redischannels.Oldest })
			messages := sub.subscribe(t, topic)
			allocations, bytes := perMessage(t, runs, n, func() {
				for range n {
					(<-messages).Ack()
				}
			})
			require.LessOrEqual(t, allocations, 11.0)
			if name != "fan-out" { // which catches up by the caller's client
				require.LessOrEqual(t, bytes, 1600.0)
			}
			sub.closeSoon(t)
		})
	}
	// A reply with as many large messages as small ones is megabytes, for which new memory was
	// taken several times over: 21,000 bytes per message, of which 4,096 are its payload.
	t.Run("receive large ones", func(t *testing.T) {
		topic := redistest.Key(t)
		for range runs + 1 {
			fillWithMessages(t, client, topic, n, []byte(strings.Repeat("x", 4096)))
		}
		sub := newSub(t, client, usualTuning)
		messages := sub.subscribe(t, topic)
		_, bytes := perMessage(t, runs, n, func() {
			for range n {
				(<-messages).Ack()
			}
		})
		require.LessOrEqual(t, bytes, 8000.0)
		sub.closeSoon(t)
	})
	// Beside those above, one for the value and one for its ack.
	t.Run("Reader", func(t *testing.T) {
		hub, key := newHub(t, client, func(c *redischannels.HubConfig) { c.Stream.Subscriber.Tuning = redischannels.Tuning{} }), redistest.Key(t)
		fillWithMessages(t, client, key, (runs+1)*n, payload)
		values := streamOf[string](t, hub, key, redischannels.StreamChannelConfig{Codec: redischannels.String})
		allocations, _ := perMessage(t, runs, n, func() {
			left := n
			for _, err := range values.Reader().All(t.Context()) {
				if require.NoError(t, err); left == 1 {
					break // which hands this one back
				}
				left--
			}
		})
		require.LessOrEqual(t, allocations, 12.0)
	})
}

// usualTuning is the default.
func usualTuning(c *redischannels.SubscriberConfig) { c.Tuning = redischannels.Tuning{} }

// perMessage returns the allocations per message of f, which handles n of them, and their
// bytes. f is called once more than runs says, to warm up.
func perMessage(t *testing.T, runs, n int, f func()) (allocations, bytes float64) {
	t.Helper()
	f()
	// The median, and the least of the bytes: a collection takes large memory that is used again.
	all, sizes := make([]float64, runs), make([]float64, runs)
	for i := range runs {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		f()
		runtime.ReadMemStats(&after)
		all[i] = float64(after.Mallocs-before.Mallocs) / float64(n)
		sizes[i] = float64(after.TotalAlloc-before.TotalAlloc) / float64(n)
	}
	slices.Sort(all)
	slices.Sort(sizes)
	allocations, bytes = all[runs/2], sizes[0]
	t.Logf("%.2f allocations of %.0f bytes per message", allocations, bytes)
	return allocations, bytes
}

// fillWithMessages appends n messages without metadata.
func fillWithMessages(t *testing.T, client redis.UniversalClient, topic string, n int, payload []byte) {
	t.Helper()
	pipe := client.Pipeline()
	for i := range n {
		pipe.XAdd(t.Context(), &redis.XAddArgs{Stream: topic, Values: []any{
			"_watermill_message_uuid", fmt.Sprintf("01890f3e-5f6a-7c1e-8a51-%012d", i), "metadata", "", "payload", payload,
		}})
	}
	_, err := pipe.Exec(t.Context())
	require.NoError(t, err)
}

package tests

import (
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
)

// heapInUse is the size of the heap after collecting all unreachable memory, including pools.
func heapInUse() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

const smallPayload = 256

// publishPair publishes a small and a large message, which come in one reply.
func publishPair(t *testing.T, client *redis.Client, topic string) {
	t.Helper()
	_, err := client.TxPipelined(t.Context(), func(tx redis.Pipeliner) error {
		for _, size := range []int{smallPayload, 200 << 10} {
			tx.XAdd(t.Context(), &redis.XAddArgs{Stream: topic, Values: []string{
				"_watermill_message_uuid", "u", "metadata", "\x80", "payload", strings.Repeat("x", size)}})
		}
		return nil
	})
	require.NoError(t, err)
}

// nextSized receives the next message.
type nextSized func() (size int, ack func())

func sizedBySubscriber(t *testing.T, client *redis.Client, topic string, change ...func(*redischannels.SubscriberConfig)) nextSized {
	t.Helper()
	messages := newSub(t, client, append(change, inFlight(256), minIdle(shortIdle))...).subscribe(t, topic)
	return func() (int, func()) {
		msg := receive(t, messages)
		return len(msg.Payload), func() { msg.Ack() }
	}
}

func sizedByReader(t *testing.T, client *redis.Client, topic string) nextSized {
	t.Helper()
	hub := newHub(t, client, func(c *redischannels.HubConfig) { c.Stream.Subscriber.Tuning.MinIdle = shortIdle })
	channel := streamOf[string](t, hub, topic, redischannels.StreamChannelConfig{Codec: redischannels.String})
	_, _, err := channel.Reader().TryReceive() // subscribes
	require.NoError(t, err)
	return func() (int, func()) {
		d := receiveValue(t, channel)
		return len(d.Value), func() { require.NoError(t, d.Ack()) }
	}
}

// A small message in flight kept the whole reply in which it came: 200 messages of 256 bytes held
// 100 MiB. They hold what they are from the first renewal of their leases on, and without a group
// from their delivery on. Not parallel: it measures memory.
func TestReplyMemory_SmallMessagesInFlight(t *testing.T) {
	const (
		messages = 200
		limit    = 2 << 20
	)
	client := redistest.Shared(t).Client(t)
	for name, subscribe := range map[string]func(t *testing.T, topic string) nextSized{
		"Subscriber": func(t *testing.T, topic string) nextSized { return sizedBySubscriber(t, client, topic) },
		"Reader":     func(t *testing.T, topic string) nextSized { return sizedByReader(t, client, topic) },
		"fan-out":    func(t *testing.T, topic string) nextSized { return sizedBySubscriber(t, client, topic, fanOut) },
	} {
		t.Run(name, func(t *testing.T) {
			topic := redistest.Key(t)
			next := subscribe(t, topic)
			before := heapInUse()
			var inFlight []func()
			for range messages {
				publishPair(t, client, topic)
				for range 2 {
					if size, ack := next(); size > smallPayload {
						ack()
					} else {
						inFlight = append(inFlight, ack)
					}
				}
			}
			require.Len(t, inFlight, messages)
			var held int64
			late := time.Now().Add(soon / 2)
			redistest.Eventually(t, soon, func() bool {
				held = heapInUse() - before
				return held < limit || time.Now().After(late)
			}, "")
			t.Logf("%d messages hold %d KiB", messages, held>>10)
			require.Less(t, held, int64(limit))
			for _, ack := range inFlight {
				ack()
			}
		})
	}
}

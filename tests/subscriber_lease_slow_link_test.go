package tests

import (
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
)

// quickAcks is how many messages are acknowledged at once, so that others are fetched in batches.
const quickAcks = 1000

// receiveMany receives messages of a topic, acknowledges the first of them and keeps n in flight.
// It returns what acknowledges those.
type receiveMany func(t *testing.T, client *redis.Client, topic string, n int, idle time.Duration) (acks []func(), events *events)

func manyBySubscriber(t *testing.T, client *redis.Client, topic string, n int, idle time.Duration) (acks []func(), events *events) {
	t.Helper()
	sub := newSub(t, client, inFlight(n), minIdle(idle))
	messages := sub.subscribe(t, topic)
	for range quickAcks {
		receive(t, messages).Ack()
	}
	for range n {
		msg := receive(t, messages)
		acks = append(acks, func() { msg.Ack() })
	}
	return acks, sub.events
}

func manyByReader(t *testing.T, client *redis.Client, topic string, n int, idle time.Duration) (acks []func(), events *events) {
	t.Helper()
	hub := newHub(t, client, func(c *redischannels.HubConfig) {
		c.Stream.Subscriber.MaxInFlight, c.Stream.Subscriber.Tuning.MinIdle, c.Stream.Codec = n, idle, redischannels.String
	})
	channel := streamOf[string](t, hub, topic)
	for range quickAcks {
		require.NoError(t, receiveValue(t, channel).Ack())
	}
	for range n {
		d := receiveValue(t, channel)
		acks = append(acks, func() { require.NoError(t, d.Ack()) })
	}
	return acks, hub.events
}

// addMany appends n small messages.
func addMany(t *testing.T, client *redis.Client, topic string, n int) {
	t.Helper()
	pipe := client.Pipeline()
	for range n {
		pipe.XAdd(t.Context(), &redis.XAddArgs{Stream: topic, Values: []string{
			"_watermill_message_uuid", "u", "metadata", "\x80", "payload", strings.Repeat("x", 16)}})
	}
	_, err := pipe.Exec(t.Context())
	require.NoError(t, err)
}

// pendingCount is how many entries are pending in the group "g".
func pendingCount(t *testing.T, client *redis.Client, topic string) int {
	t.Helper()
	pending, err := client.XPending(t.Context(), topic, "g").Result()
	require.NoError(t, err)
	return int(pending.Count)
}

// The leases of many messages in flight were renewed by a batch per round trip, one after the
// other: over a slow link that took longer than a lease, and another consumer got all of them
// while their consumer was alive.
func TestLease_ManyInFlightOverASlowLink(t *testing.T) {
	t.Parallel()
	const idle = 5 * time.Second
	for name, c := range map[string]struct {
		n       int
		latency time.Duration // half a round trip: one renewal after the other takes longer than idle
		receive receiveMany
	}{
		// The race detector knows 8,128 goroutines.
		"Subscriber": {orRace(15_000, 6_000), time.Duration(orRace(50, 100)) * time.Millisecond, manyBySubscriber},
		"Reader":     {15_000, 50 * time.Millisecond, manyByReader},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			proxy, client, direct := pubProxy(t)
			topic := redistest.Key(t)
			addMany(t, direct, topic, quickAcks+c.n)
			acks, events := c.receive(t, client, topic, c.n, idle)
			redistest.Eventually(t, soon, func() bool { return pendingCount(t, direct, topic) == c.n }, "all others are in flight")
			proxy.Latency(c.latency)

			other := newSub(t, direct, inFlight(100), minIdle(idle))
			stolen := other.subscribe(t, topic)
			select {
			case msg := <-stolen:
				require.FailNow(t, "another consumer was given a message that is in flight", entryIDOf(t, msg))
			case <-time.After(2 * idle):
			}
			events.none(t, redischannels.EventLeaseLost)
			proxy.Latency(0)
			for _, ack := range acks {
				ack()
			}
			redistest.Eventually(t, soon, func() bool { return pendingCount(t, direct, topic) == 0 }, "all are acknowledged")
			events.none(t, redischannels.EventAckIgnored)
		})
	}
}

// orRace returns n, or another number where the race detector is on.
func orRace(n, race int) int {
	if raceEnabled {
		return race
	}
	return n
}

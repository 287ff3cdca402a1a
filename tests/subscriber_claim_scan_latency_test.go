package tests

import (
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

// holdByOthers makes entries pending for consumers that are alive, many for each.
func holdByOthers(t *testing.T, client *redis.Client, topic string) {
	t.Helper()
	const consumers, each = 20, 1000
	pipe := client.Pipeline()
	for range consumers * each {
		pipe.XAdd(t.Context(), &redis.XAddArgs{Stream: topic, Values: []string{
			"_watermill_message_uuid", "u", "metadata", "\x80", "payload", "of another consumer"}})
	}
	_, err := pipe.Exec(t.Context())
	require.NoError(t, err)
	for i := range consumers {
		deliverTo(t, client, topic, "other-"+strconv.Itoa(i), each, 0)
	}
}

// groupConsumers are ways to consume a topic in the group "g" until the end of the test. Every
// payload is given to got.
var groupConsumers = map[string]func(t *testing.T, client *redis.Client, topic string, tuning redischannels.Tuning, got func(string)){
	"strict order":   consumeWithSubscriber(inFlight(1)),
	"MaxInFlight 16": consumeWithSubscriber(inFlight(16)),
	"order per key": consumeWithSubscriber(inFlight(16), func(c *redischannels.SubscriberConfig) {
		c.OrderingKey = func(msg *message.Message) string { return string(msg.Payload) }
	}),
	"Reader": consumeWithReader("g"),
}

func consumeWithSubscriber(change ...func(*redischannels.SubscriberConfig)) func(*testing.T, *redis.Client, string, redischannels.Tuning, func(string)) {
	return func(t *testing.T, client *redis.Client, topic string, tuning redischannels.Tuning, got func(string)) {
		change := append(change[:len(change):len(change)], func(c *redischannels.SubscriberConfig) { c.Tuning = tuning })
		handle(newSub(t, client, change...).subscribe(t, topic), 4, func(_ delivered, msg *message.Message) bool {
			got(string(msg.Payload))
			return true
		})
	}
}

func consumeWithReader(group string) func(*testing.T, *redis.Client, string, redischannels.Tuning, func(string)) {
	return func(t *testing.T, client *redis.Client, topic string, tuning redischannels.Tuning, got func(string)) {
		hub := newHub(t, client)
		reader := streamOf[string](t, hub, topic, redischannels.StreamChannelConfig{
			Codec:      redischannels.String,
			Subscriber: redischannels.SubscriberConfig{ConsumerGroup: group, Tuning: tuning},
		}).Reader()
		go func() {
			for payload, err := range reader.All(t.Context()) {
				if err == nil {
					got(payload)
				}
			}
		}()
	}
}

// scanTuning scans all the time for entries that no consumer has touched for a minute.
func scanTuning() redischannels.Tuning {
	tuning := quickTuning()
	tuning.MinIdle, tuning.ClaimInterval = time.Minute, 500*time.Millisecond
	return tuning
}

// arrivals are the payloads that were delivered.
type arrivals struct {
	mu       sync.Mutex
	payloads []string
	slowest  time.Duration // since the time that a payload names
}

func (a *arrivals) add(payload string) {
	published, _ := strconv.ParseInt(payload, 10, 64)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.payloads = append(a.payloads, payload)
	a.slowest = max(a.slowest, time.Since(time.Unix(0, published)))
}

func (a *arrivals) all() ([]string, time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.payloads), a.slowest
}

// A claim scan that has to go through what other consumers hold stopped the reading of new entries
// until its end: the first message came after 20 seconds.
func TestClaimScan_DoesNotDelayNewEntries(t *testing.T) {
	t.Parallel()
	for name, consume := range groupConsumers {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			proxy, client, direct := pubProxy(t)
			topic := redistest.Key(t)
			holdByOthers(t, direct, topic)
			proxy.Delay(5 * time.Millisecond) // a round trip of 10 ms

			const n, interval, limit = 30, 100 * time.Millisecond, time.Second
			var got arrivals
			consume(t, client, topic, scanTuning(), got.add)
			tick := time.NewTicker(interval)
			defer tick.Stop()
			for range n {
				publish(t, direct, topic, strconv.FormatInt(time.Now().UnixNano(), 10))
				<-tick.C
			}
			redistest.Eventually(t, limit, func() bool {
				payloads, _ := got.all()
				return len(payloads) == n
			}, "new entries wait for the claim scan: the last one was published a second ago")
			_, slowest := got.all()
			require.Less(t, slowest, limit)
		})
	}
}

// What a crashed consumer has left is found behind all that others hold, also when messages come
// all the time, and nothing is taken from consumers that are alive.
func TestClaimScan_ReachesTheEndOfALongList(t *testing.T) {
	t.Parallel()
	for name, consume := range groupConsumers {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			proxy, client, direct := pubProxy(t)
			topic := redistest.Key(t)
			holdByOthers(t, direct, topic)
			publish(t, direct, topic, numbered(10)...)
			deliverTo(t, direct, topic, "crashed", 10, time.Hour)
			proxy.Delay(5 * time.Millisecond)

			var got arrivals
			consume(t, client, topic, scanTuning(), got.add)
			looks := 0
			redistest.Eventually(t, soon, func() bool {
				if looks++; looks%10 == 1 {
					publish(t, direct, topic, "new")
				}
				payloads, _ := got.all()
				payloads = slices.DeleteFunc(payloads, func(payload string) bool { return payload == "new" })
				slices.Sort(payloads)
				return slices.Equal(payloads, numbered(10))
			}, "entries of the crashed consumer")
		})
	}
}

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
func holdByOthers(t *testing.T, client *redis.Client, topic string, consumers int) {
	t.Helper()
	const each = 1000
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
	waits    []time.Duration // since the time that each payload names
}

func (a *arrivals) add(payload string) {
	published, _ := strconv.ParseInt(payload, 10, 64)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.payloads = append(a.payloads, payload)
	a.waits = append(a.waits, time.Since(time.Unix(0, published)))
}

// all returns the payloads, and how long they took, in order of that.
func (a *arrivals) all() ([]string, []time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.payloads), slices.Sorted(slices.Values(a.waits))
}

// A claim scan that has to go through what other consumers hold stopped the reading of new entries
// until its end: the first message came after 20 seconds.
func TestClaimScan_DoesNotDelayNewEntries(t *testing.T) {
	t.Parallel()
	for name := range groupConsumers {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			waits := newEntriesBesideAScan(t, name, 20, 30)
			require.Less(t, waits[len(waits)-1], time.Second)
		})
	}
}

func TestSoakClaimScan_DoesNotDelayNewEntries(t *testing.T) {
	soak(t)
	for name := range groupConsumers {
		t.Run(name, func(t *testing.T) {
			waits := newEntriesBesideAScan(t, name, 100, 300)
			p99 := waits[len(waits)*99/100]
			t.Logf("100,000 pending entries of others, 10 ms: median %v, p99 %v, slowest %v", waits[len(waits)/2], p99, waits[len(waits)-1])
			require.Less(t, p99, time.Second)
		})
	}
}

// newEntriesBesideAScan publishes n messages, one every 100 ms over a link of 10 ms, while other consumers
// hold a thousand entries each, and returns how long they took, in order of that.
func newEntriesBesideAScan(t *testing.T, name string, consumers, n int) []time.Duration {
	proxy, client, direct := pubProxy(t)
	topic := redistest.Key(t)
	holdByOthers(t, direct, topic, consumers)
	proxy.Delay(5 * time.Millisecond) // a round trip of 10 ms

	var got arrivals
	groupConsumers[name](t, client, topic, scanTuning(), got.add)
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for range n {
		publish(t, direct, topic, strconv.FormatInt(time.Now().UnixNano(), 10))
		<-tick.C
	}
	redistest.Eventually(t, time.Second, func() bool {
		payloads, _ := got.all()
		return len(payloads) == n
	}, "new entries wait for the claim scan: the last one was published a second ago")
	_, waits := got.all()
	return waits
}

// The entries of a crashed consumer are found behind those of all other consumers, even while
// messages arrive continuously, and nothing is claimed from active consumers.
func TestClaimScan_ReachesTheEndOfALongList(t *testing.T) {
	t.Parallel()
	for name, consume := range groupConsumers {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			proxy, client, direct := pubProxy(t)
			topic := redistest.Key(t)
			holdByOthers(t, direct, topic, 20)
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

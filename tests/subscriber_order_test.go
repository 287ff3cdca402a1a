package tests

import (
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
)

// numbered returns n payloads "0", "1", ...
func numbered(n int) []string {
	p := make([]string, n)
	for i := range p {
		p[i] = fmt.Sprint(i)
	}
	return p
}

// A nacked message arrives after newer ones. With one message in flight the order of the
// stream is kept: the nacked one blocks those behind it.
func TestSubscriber_StrictOrderWithNacks(t *testing.T) {
	t.Parallel()
	client, topic := redistest.Shared(t).Client(t), redistest.Key(t)
	const n = 200
	publish(t, client, topic, numbered(n)...)
	messages := newSub(t, client).subscribe(t, topic)
	for i := range n {
		nacks := 0
		if i%10 == 3 {
			nacks = 1 + i%3
		}
		for range nacks {
			msg := receive(t, messages)
			require.Equal(t, fmt.Sprint(i), string(msg.Payload))
			msg.Nack()
		}
		msg := receive(t, messages)
		require.Equal(t, fmt.Sprint(i), string(msg.Payload))
		require.Equal(t, nacks+1, countOf(t, msg))
		msg.Ack()
	}
	eventuallyPending(t, client, topic, 0)
}

// After a crash the messages of the crashed consumer come last (4 5 1 2 3).
func TestSubscriber_OrderAfterACrash(t *testing.T) {
	t.Parallel()
	client, topic := redistest.Shared(t).Client(t), redistest.Key(t)
	const n, crashed = 40, 30
	publish(t, client, topic, numbered(n)...)
	deliverTo(t, client, topic, "dead", crashed, time.Hour)
	messages := newSub(t, client).subscribe(t, topic)
	require.Equal(t, numbered(n), receiveAcked(t, messages, n))
	eventuallyPending(t, client, topic, 0)
}

// The reply of a read is lost: Redis has given m1 to a consumer that never saw it. It waits
// in the consumer's own PEL while m2 overtakes it.
func TestSubscriber_LostReadReplyKeepsTheOrder(t *testing.T) {
	t.Parallel()
	server := redistest.Shared(t)
	direct, topic := server.Client(t), redistest.Key(t)
	proxy := redistest.NewProxy(t, server.Addr())
	sub := newSub(t, server.Client(t, redistest.Via(proxy)), minIdle(time.Minute))
	messages := sub.subscribe(t, topic)
	lost := proxy.DropReplyIf(1, redistest.Command("XREADGROUP"), redistest.NotNil)
	publish(t, direct, topic, "m1")
	lost.Wait(t, soon)
	start := time.Now()
	publish(t, direct, topic, "m2")
	for _, want := range []string{"m1", "m2"} {
		msg := receive(t, messages)
		require.Equal(t, want, string(msg.Payload))
		require.Equal(t, 1, countOf(t, msg))
		msg.Ack()
	}
	require.Less(t, time.Since(start), time.Second)
	eventuallyPending(t, direct, topic, 0)
	require.Len(t, sub.events.of(redischannels.EventDisconnected), 1)
	sub.events.wait(t, redischannels.EventReconnected)
}

// Handling in parallel breaks the order by surprise. With an OrderingKey the order of each key
// is kept, through nacks, and other keys do not wait.
func TestSubscriber_OrderPerKey(t *testing.T) {
	t.Parallel()
	client, topic := redistest.Shared(t).Client(t), redistest.Key(t)
	const keys, perKey = 5, 60
	var payloads []string
	for i := range perKey {
		for k := range keys {
			payloads = append(payloads, fmt.Sprintf("%c%d", 'a'+k, i))
		}
	}
	publish(t, client, topic, payloads...)
	sub := newSub(t, client, inFlight(8), func(c *redischannels.SubscriberConfig) {
		c.OrderingKey = func(msg *message.Message) string { return string(msg.Payload[:1]) }
	})
	var mu sync.Mutex
	active := make(map[string]bool)
	handled := make(map[string][]string)
	h := handle(sub.subscribe(t, topic), 8, func(m delivered, _ *message.Message) bool {
		key := m.payload[:1]
		mu.Lock()
		if active[key] {
			t.Errorf("two messages of the key %s at the same time", key)
		}
		active[key] = true
		mu.Unlock()
		time.Sleep(time.Duration(rand.IntN(1000)) * time.Microsecond) // the handler's work
		mu.Lock()
		defer mu.Unlock()
		active[key] = false
		if m.count == 1 && rand.IntN(10) == 0 {
			return false
		}
		handled[key] = append(handled[key], m.payload[1:])
		return true
	})
	eventuallyRead(t, client, topic)
	eventuallyPending(t, client, topic, 0)
	mu.Lock()
	defer mu.Unlock()
	for k := range keys {
		require.Equal(t, numbered(perKey), handled[string(rune('a'+k))])
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	require.Greater(t, h.parallel, 1, "the keys wait for each other")
}

// One key that fails again and again stops its own messages only.
func TestSubscriber_BlockedKeyBlocksNoOther(t *testing.T) {
	t.Parallel()
	client, topic := redistest.Shared(t).Client(t), redistest.Key(t)
	sub := newSub(t, client, inFlight(2), func(c *redischannels.SubscriberConfig) {
		c.OrderingKey = func(msg *message.Message) string { return string(msg.Payload[:1]) }
		c.NackBackoff = redischannels.Backoff{Min: time.Hour, Max: time.Hour}
	})
	messages := sub.subscribe(t, topic)
	publish(t, client, topic, "a1", "a2", "a3", "b1", "b2")
	var seen []string
	for len(seen) < 2 {
		msg := receive(t, messages)
		if strings.HasPrefix(string(msg.Payload), "a") {
			require.Equal(t, "a1", string(msg.Payload))
			msg.Nack()
			continue
		}
		seen = append(seen, string(msg.Payload))
		msg.Ack()
	}
	require.Equal(t, []string{"b1", "b2"}, seen)
	noMessage(t, messages)
	eventuallyPending(t, client, topic, 3)
}

// The order within a key is lost when a later message of the key overtakes one that waits for
// its redelivery: 16 workers handle 12 keys, and every fifth delivery is nacked.
func TestSubscriber_OrderingKeyKeepsTheOrderOfEachKey(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t, func(o *redis.Options) { o.PoolSize = 8 })
	topic := redistest.Key(t)
	const keys, perKey, workers = 12, 40, 16

	payloads := make([]string, 0, keys*perKey)
	for n := range perKey {
		for k := range keys {
			payloads = append(payloads, fmt.Sprintf("%d:%d", k, n))
		}
	}
	publish(t, client, topic, payloads...)

	sub := newSub(t, client, func(c *redischannels.SubscriberConfig) {
		c.MaxInFlight = 32
		c.MaxDeliveries = redischannels.UnlimitedDeliveries
		c.OrderingKey = func(msg *message.Message) string {
			key, _, _ := strings.Cut(string(msg.Payload), ":")
			return key
		}
	})
	messages := sub.subscribe(t, topic)

	var (
		mu         sync.Mutex
		next       [keys]int
		busy       [keys]bool
		inFlight   int
		most       int
		deliveries int
		done       int
		together   = make(chan struct{}) // closed when all keys are in flight at once
		finished   = make(chan struct{})
	)
	handle := func(msg *message.Message) {
		k, n, _ := strings.Cut(string(msg.Payload), ":")
		key, _ := strconv.Atoi(k)
		number, _ := strconv.Atoi(n)

		mu.Lock()
		assert.False(t, busy[key], "two messages of key %d are in flight", key)
		assert.Equal(t, next[key], number, "key %d is out of order", key)
		busy[key] = true
		inFlight++
		if most = max(most, inFlight); most == keys && inFlight == keys {
			select {
			case <-together:
			default:
				close(together)
			}
		}
		deliveries++
		nack := deliveries%5 == 0
		mu.Unlock()

		select { // one message of each key is handled at the same time
		case <-together:
		case <-time.After(soon):
		}

		mu.Lock()
		busy[key] = false
		inFlight--
		if !nack {
			next[key]++
			done++
		}
		last := done == keys*perKey && !nack
		mu.Unlock()
		if nack {
			msg.Nack()
			return
		}
		msg.Ack()
		if last {
			close(finished)
		}
	}
	var pool sync.WaitGroup
	for range workers {
		pool.Go(func() {
			for {
				select {
				case msg, open := <-messages:
					if !open {
						return
					}
					handle(msg)
				case <-finished:
					return
				}
			}
		})
	}
	pool.Wait()
	require.Equal(t, keys, most, "messages of different keys are handled at the same time, those of one key are not")
	eventuallyPending(t, client, topic, 0)
}

// Strict order: a nacked message comes again before those behind it.
func TestSubscriber_MaxInFlightOneKeepsTheOrder(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	topic := redistest.Key(t)
	var want []string
	for n := range 60 {
		want = append(want, strconv.Itoa(n))
	}
	publish(t, client, topic, want...)
	messages := newSub(t, client).subscribe(t, topic)
	for i, payload := range want {
		for attempt := 1; ; attempt++ {
			msg := receive(t, messages)
			require.Equal(t, payload, string(msg.Payload))
			require.Equal(t, attempt, countOf(t, msg))
			if attempt > i%3 {
				msg.Ack()
				break
			}
			msg.Nack()
		}
	}
	eventuallyPending(t, client, topic, 0)
}

package tests

import (
	"fmt"
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

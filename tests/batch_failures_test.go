package tests

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
)

const (
	failingBatchSize    = 100
	failingBatchWorkers = 4
)

// ackTally counts acknowledgements by value.
type ackTally struct {
	mu    sync.Mutex
	times map[int]int
}

func (a *ackTally) add(values ...int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, v := range values {
		a.times[v]++
	}
}

func (a *ackTally) count() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.times)
}

// failing is the configuration of a subscriber whose handlers fail at random.
func failing(c *redischannels.SubscriberConfig) {
	c.MaxInFlight = failingBatchSize * failingBatchWorkers
	c.MaxDeliveries = redischannels.UnlimitedDeliveries
	c.Tuning = calmTuning()
}

func failingReader(t *testing.T, client *redis.Client, key string) *redischannels.Reader[int] {
	hub := newHub(t, client, func(c *redischannels.HubConfig) { failing(&c.Stream.Subscriber) })
	return streamOf[int](t, hub, key).Reader()
}

var failingBatches = redischannels.BatchConfig{Size: failingBatchSize, Wait: 5 * time.Millisecond, Concurrency: failingBatchWorkers}

// batchConsumers handle batches, which fail at random in all ways that there are, until ctx ends.
var batchConsumers = map[string]func(ctx context.Context, t *testing.T, client *redis.Client, key string, acks *ackTally){
	"HandleBatch": func(ctx context.Context, t *testing.T, client *redis.Client, key string, acks *ackTally) {
		_ = failingReader(t, client, key).HandleBatch(ctx, func(_ context.Context, batch []redischannels.Delivery[int]) error {
			return handleAtRandom(batch, acks)
		}, failingBatches)
	},
	"ReceiveBatch": func(ctx context.Context, t *testing.T, client *redis.Client, key string, acks *ackTally) {
		r := failingReader(t, client, key)
		var workers sync.WaitGroup
		for range failingBatchWorkers {
			workers.Go(func() {
				for {
					batch, err := r.ReceiveBatch(ctx, failingBatchSize, 5*time.Millisecond)
					if err != nil {
						return
					}
					endAtRandom(batch, acks)
				}
			})
		}
		workers.Wait()
	},
	"SubscribeBatch": func(ctx context.Context, t *testing.T, client *redis.Client, key string, acks *ackTally) {
		batches, err := newSub(t, client, failing).SubscribeBatch(ctx, key, failingBatches)
		if err != nil {
			return
		}
		var workers sync.WaitGroup
		for range failingBatchWorkers {
			workers.Go(func() {
				for batch := range batches {
					endMessagesAtRandom(batch, acks)
				}
			})
		}
		workers.Wait()
	},
}

func handleAtRandom(batch []redischannels.Delivery[int], acks *ackTally) error {
	values := valuesOf(batch)
	switch rand.IntN(8) {
	case 0:
		return errors.New("all have failed")
	case 1:
		panic("oops")
	case 2:
		failed := &redischannels.BatchError{}
		for i, v := range values {
			if rand.IntN(4) == 0 {
				failed.Failed = append(failed.Failed, i)
			} else {
				acks.add(v)
			}
		}
		if len(failed.Failed) > 0 {
			return failed
		}
		return nil
	case 3: // all of it is nacked
		return &redischannels.BatchError{Failed: []int{len(batch)}}
	case 4:
		ended := endSomeAtRandom(batch, acks)
		if rand.IntN(2) == 0 {
			return errors.New("the others have failed")
		}
		for i, v := range values {
			if !ended[i] {
				acks.add(v)
			}
		}
		return nil
	}
	acks.add(values...)
	return nil
}

// endSomeAtRandom ends some deliveries, and returns which.
func endSomeAtRandom(batch []redischannels.Delivery[int], acks *ackTally) []bool {
	ended := make([]bool, len(batch))
	for i, d := range batch {
		ended[i] = true
		switch rand.IntN(8) {
		case 0, 1:
			if d.Ack() == nil {
				acks.add(d.Value)
			}
		case 2:
			_ = d.Nack()
		case 3:
			_ = d.NackAfter(time.Millisecond)
		case 4:
			_ = d.Postpone(time.Millisecond)
		default:
			ended[i] = false
		}
	}
	return ended
}

func endAtRandom(batch []redischannels.Delivery[int], acks *ackTally) {
	for i, ended := range endSomeAtRandom(batch, acks) {
		if !ended && batch[i].Ack() == nil {
			acks.add(batch[i].Value)
		}
	}
}

func endMessagesAtRandom(batch []*message.Message, acks *ackTally) {
	values := numbersOf(batch)
	failAll := rand.IntN(5) == 0
	for i, msg := range batch {
		switch n := rand.IntN(12); {
		case failAll || n == 0:
			msg.Nack()
		case n == 1:
			redischannels.RetryAfter(msg, time.Millisecond)
			msg.Nack()
		case n == 2:
			redischannels.Postpone(msg, time.Millisecond)
			msg.Nack()
		default:
			msg.Ack()
			acks.add(values[i])
		}
	}
}

// Whatever handlers do with batches: each message is acknowledged once, and none is lost.
func TestBatches_RandomFailures(t *testing.T) {
	t.Parallel()
	for name, consume := range batchConsumers {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			failAtRandom(t, 10_000, consume)
		})
	}
}

func TestSoakBatches_RandomFailures(t *testing.T) {
	if os.Getenv("SOAK") == "" {
		t.Skip("runs with make soak")
	}
	for name, consume := range batchConsumers {
		t.Run(name, func(t *testing.T) { failAtRandom(t, 1_000_000, consume) })
	}
}

func failAtRandom(t *testing.T, n int, consume func(ctx context.Context, t *testing.T, client *redis.Client, key string, acks *ackTally)) {
	client, key := redistest.Shared(t).Client(t), redistest.Key(t)
	defer client.Del(context.WithoutCancel(t.Context()), key)
	writer := streamOf[int](t, newHub(t, client), key)
	acks := &ackTally{times: make(map[int]int, n)}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		consume(ctx, t, client, key, acks)
		close(ended)
	}()
	for first := 0; first < n; first += 5000 {
		write(t, writer, consecutive(first, min(5000, n-first))...)
	}
	redistest.Eventually(t, 6*soon+time.Duration(n)*200*time.Microsecond, func() bool {
		return acks.count() == n
	}, "not all acknowledged")
	eventuallyPending(t, client, key, 0)
	cancel()
	waitFor(t, ended)
	require.Zero(t, groupOf(t, client, key).Lag)
	for v, times := range acks.times {
		require.Equal(t, 1, times, "acknowledgements of %d", v)
	}
	require.Equal(t, int64(n), client.XLen(t.Context(), key).Val())
}

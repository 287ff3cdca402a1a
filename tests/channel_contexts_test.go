package tests

import (
	"context"
	"iter"
	"math/rand/v2"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
)

// calmTuning is for tests without a fault: no lease ends on a loaded machine, and entries that a
// consumer releases are claimed soon.
func calmTuning() redischannels.Tuning {
	tuning := quickTuning()
	tuning.MinIdle, tuning.BlockTime, tuning.ClaimInterval = time.Minute, 10*time.Second, 100*time.Millisecond
	return tuning
}

// tally notes deliveries.
type tally struct {
	mu        sync.Mutex
	delivered map[int]int // number of deliveries by value
	recounted int         // deliveries whose count is not 1
}

func (j *tally) add(d redischannels.Delivery[int]) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.delivered[d.Value]++
	if d.DeliveryCount != 1 {
		j.recounted++
	}
}

func (j *tally) len() int {
	j.mu.Lock()
	defer j.mu.Unlock()
	return len(j.delivered)
}

// requireOnce fails unless each of n values was delivered once, with the count 1.
func (j *tally) requireOnce(t *testing.T, n int) {
	t.Helper()
	j.mu.Lock()
	defer j.mu.Unlock()
	require.Len(t, j.delivered, n, "values that were delivered")
	again := 0
	for _, times := range j.delivered {
		again += times - 1
	}
	require.Zero(t, again, "deliveries of a value that was delivered before")
	require.Zero(t, j.recounted, "first deliveries with another count than 1")
}

// impatientContext ends after 0 to 5 ms.
func impatientContext(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, time.Duration(rand.Int64N(int64(5*time.Millisecond))))
}

// addInts appends the values from first on in one step.
func addInts(ctx context.Context, client *redis.Client, topic string, first, n int) error {
	_, err := client.TxPipelined(ctx, func(tx redis.Pipeliner) error {
		for value := range n {
			tx.XAdd(ctx, &redis.XAddArgs{Stream: topic, Values: []any{
				"_watermill_message_uuid", "u", "metadata", "\x80", "payload", first + value}})
		}
		return nil
	})
	return err
}

// Callers whose contexts end all the time, and a receiver that stops for two seconds, of which
// another consumer gets what waits: each value is delivered once, as a first delivery.
func TestReader_ReceivesOnceWithShortContexts(t *testing.T) {
	t.Parallel()
	receiveOnce(t, 20_000)
}

func TestSoakReader_ReceivesOnceWithShortContexts(t *testing.T) {
	if os.Getenv("SOAK") == "" {
		t.Skip("runs with make soak")
	}
	receiveOnce(t, 100_000)
}

func receiveOnce(t *testing.T, n int) {
	server, topic := redistest.Shared(t), redistest.Key(t)
	tuned := func(c *redischannels.HubConfig) { c.Stream.Subscriber.Tuning = calmTuning() }
	impatient := streamOf[int](t, newHub(t, server.Client(t), tuned), topic).Reader()
	stopping := streamOf[int](t, newHub(t, server.Client(t), tuned), topic).Reader()
	seen := &tally{delivered: make(map[int]int)}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	var callers sync.WaitGroup
	defer callers.Wait()
	defer cancel()

	for range 8 {
		callers.Go(func() {
			for ctx.Err() == nil {
				short, end := impatientContext(ctx)
				d, err := impatient.Receive(short)
				end()
				if err == nil {
					seen.add(d)
					_ = d.Ack()
				}
			}
		})
	}
	callers.Go(func() {
		for received := 0; ; received++ {
			d, err := stopping.Receive(ctx)
			if err != nil {
				return
			}
			seen.add(d)
			_ = d.Ack()
			if received == n/100 {
				select {
				case <-time.After(2 * time.Second): // the application does something else
				case <-ctx.Done():
				}
			}
		}
	})

	client := server.Client(t)
	for first := 0; first < n; {
		batch := min(1+rand.IntN(200), n-first) // so that callers wait, and entries do
		require.NoError(t, addInts(ctx, client, topic, first, batch))
		first += batch
	}
	redistest.Eventually(t, time.Minute, func() bool { return seen.len() == n }, "every value")
	redistest.Eventually(t, soon, func() bool { return pendingCount(t, client, topic) == 0 }, "all are acknowledged")
	seen.requireOnce(t, n)
}

// A value that was about to be given to a caller whose context has ended keeps its place.
func TestReader_KeepsTheOrderWithShortContexts(t *testing.T) {
	t.Parallel()
	const n = 5000
	server, topic := redistest.Shared(t), redistest.Key(t)
	hub := newHub(t, server.Client(t), func(c *redischannels.HubConfig) { c.Stream.Subscriber.Tuning = calmTuning() })
	reader := streamOf[int](t, hub, topic).Reader()
	client := server.Client(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	published := make(chan error, 1)
	defer func() { <-published }()
	defer cancel()
	go func() {
		defer close(published)
		for first := 0; first < n; first += 5 {
			if err := addInts(ctx, client, topic, first, 5); err != nil {
				published <- err
				return
			}
		}
	}()
	for next := 0; next < n; {
		short, end := impatientContext(ctx)
		d, err := reader.Receive(short)
		end()
		require.NoError(t, ctx.Err(), "after %d values", next)
		if err != nil {
			continue
		}
		require.Equal(t, next, d.Value)
		require.Equal(t, 1, d.DeliveryCount)
		require.NoError(t, d.Ack())
		next++
	}
	require.NoError(t, <-published)
}

// A caller that leaves what it was woken for, because its context has ended or because it only
// looked, wakes the next one: no caller waits while an entry is ready.
func TestReader_NoCallerWaitsWhileAnEntryIsReady(t *testing.T) {
	t.Parallel()
	const (
		patient, impatient, rounds = 4, 9, 100
		limit                      = 900 * time.Millisecond // what is left goes back to the group after a second
	)
	server, topic := redistest.Shared(t), redistest.Key(t)
	hub := newHub(t, server.Client(t), func(c *redischannels.HubConfig) { c.Stream.Subscriber.Tuning = calmTuning() })
	reader := streamOf[int](t, hub, topic).Reader()
	client := server.Client(t)
	seen := &tally{delivered: make(map[int]int)}
	receive := func(ctx context.Context) {
		if d, err := reader.Receive(ctx); err == nil {
			seen.add(d)
			_ = d.Ack()
		}
	}
	leave := []func(context.Context){
		receive,
		func(ctx context.Context) { _, _ = reader.WaitToRead(ctx) },
		func(ctx context.Context) {
			for range reader.All(ctx) {
				break // the value is the next one that the reader gives
			}
		},
	}
	for round := range rounds {
		waiting, cancel := context.WithCancel(t.Context())
		var callers sync.WaitGroup
		for range patient {
			callers.Go(func() { receive(waiting) })
		}
		for i := range impatient {
			callers.Go(func() {
				short, end := impatientContext(waiting)
				defer end()
				leave[i%len(leave)](short)
			})
		}
		require.NoError(t, addInts(waiting, client, topic, round*patient, patient))
		redistest.Eventually(t, limit, func() bool { return seen.len() == (round+1)*patient },
			"round %d: callers wait while entries are ready", round)
		cancel()
		callers.Wait()
	}
	seen.requireOnce(t, rounds*patient)
}

// Several values are put back in the same moment: as many callers as there are values wake.
func TestReader_CallersWakeForValuesThatArePutBack(t *testing.T) {
	t.Parallel()
	const n, rounds, limit = 6, 50, 900 * time.Millisecond
	server, topic := redistest.Shared(t), redistest.Key(t)
	hub := newHub(t, server.Client(t), func(c *redischannels.HubConfig) { c.Stream.Subscriber.Tuning = calmTuning() })
	reader := streamOf[int](t, hub, topic).Reader()
	client := server.Client(t)
	seen := &tally{delivered: make(map[int]int)}
	for round := range rounds {
		ctx, cancel := context.WithTimeout(t.Context(), soon)
		require.NoError(t, addInts(ctx, client, topic, round*n, n))
		var leave []func()
		for range n {
			next, stop := iter.Pull2(reader.All(ctx))
			_, err, _ := next()
			require.NoError(t, err)
			leave = append(leave, stop)
		}
		var callers sync.WaitGroup
		for range n {
			callers.Go(func() {
				if d, err := reader.Receive(ctx); err == nil {
					seen.add(d)
					_ = d.Ack()
				}
			})
		}
		time.Sleep(3 * time.Millisecond) // so that they wait, mostly
		for _, stop := range leave {
			stop()
		}
		redistest.Eventually(t, limit, func() bool { return seen.len() == (round+1)*n },
			"round %d: callers wait while values are ready", round)
		callers.Wait()
		cancel()
	}
	seen.requireOnce(t, rounds*n)
}

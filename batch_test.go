package redischannels

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels/internal/source"
)

// batchesOf handles batches until the end of the bubble, and returns what stops that.
func batchesOf(t *testing.T, r *Reader[int], in chan *message.Message, config BatchConfig, fn func(ctx context.Context, batch []int) error) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- r.HandleBatch(ctx, func(ctx context.Context, batch []Delivery[int]) error {
			var values []int
			for _, d := range batch {
				values = append(values, d.Value)
			}
			return fn(ctx, values)
		}, config)
	}()
	return func() {
		cancel()
		require.NoError(t, <-ended)
		close(in)
		require.NoError(t, r.Close())
	}
}

func isAcked(msg *message.Message) bool {
	select {
	case <-msg.Acked():
		return true
	default:
		return false
	}
}

func isNacked(msg *message.Message) bool {
	select {
	case <-msg.Nacked():
		return true
	default:
		return false
	}
}

// A batch is delivered when it has Size values or Bytes bytes, or Wait after its first value.
func TestHandleBatch_Bounds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r, in := readerOf[int](t, nil)
		start := time.Now()
		type seen struct {
			values []int
			at     time.Duration
		}
		got := make(chan seen, 10)
		stop := batchesOf(t, r, in, BatchConfig{Size: 3, Bytes: 8, Wait: 200 * time.Millisecond}, func(_ context.Context, batch []int) error {
			got <- seen{batch, time.Since(start)}
			return nil
		})
		var msgs []*message.Message
		for v := range 4 {
			msgs = append(msgs, sendNumber(in, v))
		}
		require.Equal(t, seen{[]int{0, 1, 2}, 0}, <-got, "Size")
		require.Equal(t, seen{[]int{3}, 200 * time.Millisecond}, <-got, "Wait")
		for _, v := range []int{11111, 222, 33, 123456789, 5} {
			sendNumber(in, v)
		}
		require.Equal(t, seen{[]int{11111, 222}, 200 * time.Millisecond}, <-got, "Bytes to the last one")
		require.Equal(t, seen{[]int{33}, 200 * time.Millisecond}, <-got, "one more would be too many")
		require.Equal(t, seen{[]int{123456789}, 200 * time.Millisecond}, <-got, "one may exceed Bytes")
		require.Equal(t, seen{[]int{5}, 400 * time.Millisecond}, <-got)
		synctest.Wait()
		for _, msg := range msgs {
			require.True(t, isAcked(msg))
		}
		stop()
	})
}

// Concurrency batches are handled at a time.
func TestHandleBatch_Concurrency(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r, in := readerOf[int](t, nil)
		release := make(chan struct{})
		var mu sync.Mutex
		running, most := 0, 0
		stop := batchesOf(t, r, in, BatchConfig{Size: 2, Wait: NoBatchWait, Concurrency: 3}, func(context.Context, []int) error {
			mu.Lock()
			running++
			most = max(most, running)
			mu.Unlock()
			<-release
			mu.Lock()
			running--
			mu.Unlock()
			return nil
		})
		for v := range 20 {
			sendNumber(in, v)
		}
		synctest.Wait()
		require.Equal(t, 3, running)
		close(release)
		synctest.Wait()
		require.Equal(t, 3, most)
		stop()
	})
}

// A batch that fails as a whole comes again as 16 smaller ones without a back-off, and then
// singly: the poison is alone in its third delivery, and its neighbors are delivered three
// times at most.
func TestHandleBatch_PoisonIsIsolated(t *testing.T) {
	t.Parallel()
	for name, fail := range map[string]func() error{
		"error": func() error { return errors.New("insert failed") },
		"panic": func() error { panic("insert failed") },
		"no key named": func() error {
			return &BatchError{Err: errors.New("insert failed")}
		},
		"no such delivery": func() error {
			return fmt.Errorf("wrapped: %w", &BatchError{Failed: []int{0, 500}})
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				const n, poison = 100, 41
				r, in := readerOf[int](t, nil)
				start := time.Now()
				deliveries := make([]int, n)
				var sizes []int // of the batches with the poison
				var at []time.Duration
				stop := batchesOf(t, r, in, BatchConfig{Size: n, Wait: time.Second}, func(_ context.Context, batch []int) error {
					for _, v := range batch {
						deliveries[v]++
					}
					if slices.Contains(batch, poison) && len(sizes) < 5 {
						sizes, at = append(sizes, len(batch)), append(at, time.Since(start))
						return fail()
					}
					return nil
				})
				var msgs []*message.Message
				for v := range n {
					msgs = append(msgs, sendNumber(in, v))
				}
				time.Sleep(5 * time.Millisecond)
				synctest.Wait()
				require.Equal(t, []int{n, 6, 1}, sizes) // about 100/16
				require.Equal(t, []time.Duration{0, 0, 0}, at, "without a back-off")
				for v, msg := range msgs {
					require.Equal(t, v != poison, isAcked(msg), v)
					require.LessOrEqual(t, deliveries[v], 3)
				}
				time.Sleep(time.Second)
				require.True(t, isNacked(msgs[poison]), "from now on the transport redelivers it")
				stop()
			})
		})
	}
}

// The parts of two batches that fail at once do not mix.
func TestHandleBatch_PartsOfSeveralBatches(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const n = 64
		r, in := readerOf[int](t, nil)
		var whole sync.WaitGroup
		whole.Add(2)
		var mu sync.Mutex
		var parts [][]int
		wholes := 0
		from := make(map[int]int) // the batch that a value was in first
		stop := batchesOf(t, r, in, BatchConfig{Size: n / 2, Wait: time.Second, Concurrency: 2}, func(_ context.Context, batch []int) error {
			if len(batch) == n/2 {
				mu.Lock()
				wholes++
				for _, v := range batch {
					from[v] = wholes
				}
				mu.Unlock()
				whole.Done()
				whole.Wait()
				return errors.New("no")
			}
			mu.Lock()
			defer mu.Unlock()
			parts = append(parts, batch)
			return nil
		})
		for v := range n {
			sendNumber(in, v)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		var all []int
		for _, part := range parts { // which two calls may have shared
			require.LessOrEqual(t, len(part), 2)
			require.Equal(t, from[part[0]], from[part[len(part)-1]], part)
			all = append(all, part...)
		}
		slices.Sort(all)
		require.Len(t, slices.Compact(all), n)
		stop()
	})
}

// A BatchError nacks what it names, and what fn has ended itself stays as it is.
func TestHandleBatch_PartialFailure(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r, in := readerOf[int](t, nil)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		calls := 0
		go func() {
			ended <- r.HandleBatch(ctx, func(_ context.Context, batch []Delivery[int]) error {
				calls++
				require.NoError(t, batch[1].Ack())
				require.NoError(t, batch[2].Nack())
				require.ErrorIs(t, batch[3].Reject("no"), ErrNotSupported)
				failed := &BatchError{Failed: []int{1, 4, 4}, Err: errors.New("duplicate key")}
				slices.Reverse(batch) // it is fn's own
				clear(batch)
				return failed
			}, BatchConfig{Size: 6})
		}()
		var msgs []*message.Message
		for v := range 6 {
			msgs = append(msgs, sendNumber(in, v))
		}
		time.Sleep(time.Second)
		synctest.Wait()
		require.Equal(t, 1, calls)
		for i, want := range []bool{true, true, false, true, false, true} {
			require.Equal(t, want, isAcked(msgs[i]), i)
			require.Equal(t, !want, isNacked(msgs[i]), i)
		}
		cancel()
		require.NoError(t, <-ended)
		close(in)
		require.NoError(t, r.Close())
	})
}

// A value that cannot be decoded is not part of a batch.
func TestHandleBatch_Undecodable(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r, in := readerOf[int](t, nil)
		got := make(chan []int, 10)
		bad := message.NewMessage("bad", []byte("{"))
		sendNumber(in, 0)
		in <- bad
		sendNumber(in, 2)
		stop := batchesOf(t, r, in, BatchConfig{Size: 3}, func(_ context.Context, batch []int) error {
			got <- batch
			return &BatchError{Failed: []int{1}}
		})
		require.Equal(t, []int{0, 2}, <-got)
		synctest.Wait()
		require.True(t, isAcked(bad))
		stop()
	})
}

// HandleBatch waits for the calls in progress, whose context ends DrainTimeout after its own.
func TestHandleBatch_Drains(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r, in := readerOf[int](t, nil)
		type key struct{}
		ctx, cancel := context.WithCancel(context.WithValue(t.Context(), key{}, "value"))
		began := make(chan struct{})
		ended := make(chan error, 1)
		go func() {
			ended <- r.HandleBatch(ctx, func(ctx context.Context, _ []Delivery[int]) error {
				require.Equal(t, "value", ctx.Value(key{}))
				close(began)
				<-ctx.Done()
				return nil
			}, BatchConfig{Wait: NoBatchWait})
		}()
		msg := sendNumber(in, 1)
		<-began
		start := time.Now()
		cancel()
		require.NoError(t, <-ended)
		require.Equal(t, time.Second, time.Since(start), "DrainTimeout of the test")
		require.True(t, isAcked(msg))
		close(in)
		require.NoError(t, r.Close())
	})
}

// orderedSource refuses acknowledgements behind the first nacked attempt, and notes how it was
// adjusted.
type orderedSource struct {
	source.Source
	owner    source.Owner
	nacked   bool
	ends     []source.Kind
	adjusted []string
}

func (s *orderedSource) NextBatch(ctx context.Context, dst []*source.Attempt, limits source.Limits) ([]*source.Attempt, error) {
	got, err := s.Source.NextBatch(ctx, dst, limits)
	for _, a := range got {
		s.owner = a.From.Owner
		from := *a.From
		from.Owner = s
		a.From = &from
	}
	return got, err
}

func (s *orderedSource) Adjust(n int, ordered bool) {
	s.adjusted = append(s.adjusted, fmt.Sprint(n, ordered))
}
func (s *orderedSource) Started(*source.Attempt)              {}
func (s *orderedSource) Late(*source.Attempt, source.Outcome) {}
func (s *orderedSource) Ended(a *source.Attempt, o source.Outcome) error {
	if s.nacked && o.Kind == source.Ack {
		return source.ErrOutOfOrder
	}
	s.nacked = s.nacked || o.Kind == source.Nack
	s.ends = append(s.ends, o.Kind)
	if o.Kind == source.Release { // else it would come again
		o.Kind = source.Ack
	}
	return s.owner.Ended(a, o)
}

func orderedReader(t *testing.T) (r *Reader[int], in chan *message.Message, src *orderedSource) {
	r, in = readerOf[int](t, nil)
	subscribe := r.source.subscribe
	src = &orderedSource{}
	r.source.subscribe = func(ctx context.Context) (_ source.Source, err error) {
		src.Source, err = subscribe(ctx)
		return src, err
	}
	return r, in, src
}

// Behind a value that is redelivered the later ones of its order are released, whether fn
// acknowledges them or the batch does.
func TestHandleBatch_ReleasesBehindNacked(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r, in, src := orderedReader(t)
		stop := batchesOf(t, r, in, BatchConfig{Size: 4, Ordered: true}, func(context.Context, []int) error {
			return &BatchError{Failed: []int{1}}
		})
		for v := range 4 {
			sendNumber(in, v)
		}
		synctest.Wait()
		require.Equal(t, []source.Kind{source.Ack, source.Nack, source.Release, source.Release}, src.ends)
		require.Equal(t, []string{"4 true"}, src.adjusted)
		stop()

		r, in, src = orderedReader(t)
		sendNumber(in, 0)
		sendNumber(in, 1)
		batch, err := r.ReceiveBatch(t.Context(), 2, 0)
		require.NoError(t, err)
		require.NoError(t, batch[0].Nack())
		require.ErrorIs(t, batch[1].Ack(), ErrOutOfOrder)
		require.ErrorIs(t, batch[1].Ack(), ErrNotPending)
		require.Equal(t, []source.Kind{source.Nack, source.Release}, src.ends)
		close(in)
		require.NoError(t, r.Close())
	})
}

// MaxInFlight is raised for a batch unless it is configured, where it is an error.
func TestHandleBatch_MaxInFlight(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r, in, src := orderedReader(t)
		r.transport.limit = 100
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		nothing := func(context.Context, []Delivery[int]) error { return nil }
		require.NoError(t, r.HandleBatch(ctx, nothing, BatchConfig{}), "ctx has ended")
		sendNumber(in, 1)
		_, err := r.ReceiveBatch(t.Context(), 100, 0)
		require.NoError(t, err)
		require.Empty(t, src.adjusted, "that many are allowed")
		sendNumber(in, 1)
		_, err = r.ReceiveBatch(t.Context(), 101, 0)
		require.NoError(t, err)
		ctx, cancel = context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		require.NoError(t, r.HandleBatch(ctx, nothing, BatchConfig{Size: 60, Concurrency: 2}))
		require.Equal(t, []string{"101 false", "120 false"}, src.adjusted)

		r.transport.fixed = true
		require.ErrorIs(t, r.HandleBatch(t.Context(), nothing, BatchConfig{Size: 51, Concurrency: 2}), ErrInvalidConfig)
		_, err = r.ReceiveBatch(t.Context(), 101, 0)
		require.ErrorIs(t, err, ErrInvalidArgument)
		require.ErrorContains(t, err, "must be 1 to MaxInFlight (100), got 101")
		require.ErrorIs(t, r.HandleBatch(t.Context(), nil, BatchConfig{}), ErrInvalidArgument)
		_, err = r.ReceiveBatch(t.Context(), 1, -1)
		require.ErrorIs(t, err, ErrInvalidArgument)
		close(in)
		require.NoError(t, r.Close())
	})
}

func TestBatchConfig_Validate(t *testing.T) {
	t.Parallel()
	for _, c := range []BatchConfig{
		{}, {Size: 500, Bytes: 4 << 20, Wait: 200 * time.Millisecond, Concurrency: 2}, {Bytes: UnlimitedBatchBytes, Wait: NoBatchWait}, {Ordered: true},
	} {
		require.NoError(t, c.Validate())
	}
	for field, c := range map[string]BatchConfig{
		"BatchConfig.Size":        {Size: -1},
		"BatchConfig.Bytes":       {Bytes: -2},
		"BatchConfig.Wait":        {Wait: time.Microsecond},
		"BatchConfig.Concurrency": {Concurrency: -1},
		"BatchConfig.Ordered":     {Ordered: true, Concurrency: 2},
	} {
		require.ErrorIs(t, c.Validate(), ErrInvalidConfig)
		require.ErrorContains(t, c.Validate(), field)
	}
	require.ErrorContains(t, BatchConfig{Size: 1000, Concurrency: 101}.Validate(), "got 1000 times 101")
}

// A value that cannot be decoded is the error of the next read, so that deliveries are returned
// without an error.
func TestReceiveBatch_Undecodable(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r, in := readerOf[int](t, nil)
		msg := sendNumber(in, 0)
		for _, id := range []string{"bad1", "bad2"} {
			in <- message.NewMessage(id, []byte("{"))
		}
		sendNumber(in, 3)
		batch, err := r.ReceiveBatch(t.Context(), 4, time.Second)
		require.NoError(t, err)
		require.Len(t, batch, 2)
		require.Equal(t, []int{0, 3}, []int{batch[0].Value, batch[1].Value})
		for _, id := range []string{"bad1", "bad2"} {
			_, err := r.ReceiveBatch(t.Context(), 4, time.Second)
			var failure *DecodeError
			require.ErrorAs(t, err, &failure)
			require.Equal(t, id, failure.EntryID)
		}
		n, err := r.Ack(t.Context(), batch[0].ID)
		require.NoError(t, err)
		require.Equal(t, 1, n)
		require.True(t, isAcked(msg))
		require.NoError(t, batch[1].Ack())
		in <- message.NewMessage("bad3", []byte("{"))
		_, err = r.ReceiveBatch(t.Context(), 4, 0)
		require.ErrorContains(t, err, "bad3", "there is nothing else")
		close(in)
		require.NoError(t, r.Close())
	})
}

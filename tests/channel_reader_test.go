package tests

import (
	"context"
	"iter"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
)

// A value goes through a stream with everything that belongs to it.
func TestChannel_WriteReceiveAck(t *testing.T) {
	t.Parallel()
	hub, key := newHubOf(t), redistest.Key(t)
	orders := streamOf[order](t, hub, key)

	before := time.Now().Add(-time.Minute)
	id, err := orders.Writer().With(map[string]string{"tenant": "a"}).Write(soonCtx(t), order{ID: 7, Amount: 3})
	require.NoError(t, err)
	d := receiveValue(t, orders)
	require.Equal(t, order{ID: 7, Amount: 3}, d.Value)
	require.Equal(t, id, d.ID)
	require.Equal(t, 1, d.DeliveryCount)
	require.Equal(t, "a", d.Metadata.Get("tenant"))
	require.WithinRange(t, d.Time, before, time.Now().Add(time.Minute))
	require.NoError(t, d.Context().Err())
	require.NoError(t, d.Ack())
	waitDone(t, d.Context())
	eventuallyPending(t, hub.client, key, 0)
}

// Only Read acknowledges before the value is handled, and says so by its name.
func TestChannel_ReadAcksAtOnce(t *testing.T) {
	t.Parallel()
	hub, key := newHubOf(t), redistest.Key(t)
	orders := streamOf[int](t, hub, key)
	write(t, orders, 5)
	v, err := orders.Reader().Read(soonCtx(t))
	require.NoError(t, err)
	require.Equal(t, 5, v)
	eventuallyPending(t, hub.client, key, 0)
}

// A loop ended by itself after some 200 ms of silence.
func TestChannel_SilenceDoesNotEndALoop(t *testing.T) {
	t.Parallel()
	hub, key := newHubOf(t), redistest.Key(t)
	numbers := streamOf[int](t, hub, key)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	got := make(chan int)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for v, err := range numbers.Reader().All(ctx) {
			if err == nil {
				got <- v
			}
		}
	}()
	for v := range 3 {
		write(t, numbers, v)
		require.Equal(t, v, <-got)
		select {
		case <-ended:
			require.FailNow(t, "the loop has ended")
		case v := <-got:
			require.FailNow(t, "a value that was never written", v)
		case <-time.After(1100 * time.Millisecond): // BlockTime is 1 s
		}
	}
	cancel()
	<-ended
	require.NoError(t, numbers.Reader().Err(), "ctx has ended the loop, not the reader")
}

// An idle Channel[int] yielded zeros; a zero that was written arrives.
func TestChannel_NoPhantomZero(t *testing.T) {
	t.Parallel()
	hub := newHubOf(t)
	numbers := streamOf[int](t, hub, redistest.Key(t))
	for range 3 {
		_, ok, err := numbers.Reader().TryReceive()
		require.NoError(t, err)
		require.False(t, ok)
	}
	ctx, cancel := context.WithTimeout(t.Context(), quiet)
	defer cancel()
	for v := range numbers.Reader().All(ctx) {
		require.FailNow(t, "a value that was never written", v)
	}
	write(t, numbers, 0)
	d := receiveValue(t, numbers)
	require.Zero(t, d.Value)
	require.NoError(t, d.Ack())
}

// All acknowledges a value when the loop comes back, and only then.
func TestChannel_AllAcksAfterTheLoopBody(t *testing.T) {
	t.Parallel()
	hub, key := newHubOf(t), redistest.Key(t)
	numbers := streamOf[int](t, hub, key)
	write(t, numbers, consecutive(0, 20)...)
	var got []int
	for v, err := range numbers.Reader().All(soonCtx(t)) {
		require.NoError(t, err)
		got = append(got, v)
		if len(got) == 20 {
			break
		}
	}
	require.Equal(t, consecutive(0, 20), got)
	eventuallyPending(t, hub.client, key, 1)
	require.Equal(t, 19, drainAcked(t, numbers, 1)[0])
	eventuallyPending(t, hub.client, key, 0)
}

// Loops that are left one after the other hand their values back in that order.
func TestChannel_UnreadValuesKeepTheirOrder(t *testing.T) {
	t.Parallel()
	hub, key := newHubOf(t), redistest.Key(t)
	numbers := streamOf[int](t, hub, key)
	write(t, numbers, 1, 2)
	ctx := soonCtx(t)
	next, leave := iter.Pull2(numbers.Reader().All(ctx))
	otherNext, otherLeave := iter.Pull2(numbers.Reader().All(ctx))
	v, err, _ := next()
	require.NoError(t, err)
	require.Equal(t, 1, v)
	v, err, _ = otherNext()
	require.NoError(t, err)
	require.Equal(t, 2, v)
	leave()
	otherLeave()
	for want := 1; want <= 2; want++ {
		v, err := numbers.Reader().Read(ctx)
		require.NoError(t, err)
		require.Equal(t, want, v)
	}
}

// break, return, panic and the end of ctx leave exactly the unfinished value, in its
// place, and its delivery does not count.
func TestChannel_LeavingALoopKeepsTheValue(t *testing.T) {
	t.Parallel()
	leave := map[string]func(ctx context.Context, cancel func(), r *redischannels.Reader[int], body func(int) bool){
		"break": func(ctx context.Context, _ func(), r *redischannels.Reader[int], body func(int) bool) {
			for v := range r.All(ctx) {
				if body(v) {
					break
				}
			}
		},
		"return": func(ctx context.Context, _ func(), r *redischannels.Reader[int], body func(int) bool) {
			for v := range r.All(ctx) {
				if body(v) {
					return
				}
			}
		},
		"panic": func(ctx context.Context, _ func(), r *redischannels.Reader[int], body func(int) bool) {
			defer func() { _ = recover() }()
			for v := range r.All(ctx) {
				if body(v) {
					panic("of the loop's body")
				}
			}
		},
		"ctx": func(ctx context.Context, cancel func(), r *redischannels.Reader[int], body func(int) bool) {
			for v := range r.All(ctx) {
				if body(v) {
					cancel()
				}
				if ctx.Err() != nil {
					return
				}
			}
		},
	}
	for name, loop := range leave {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			hub, key := newHubOf(t), redistest.Key(t)
			numbers := streamOf[int](t, hub, key)
			ids := write(t, numbers, consecutive(0, 10)...)
			ctx, cancel := context.WithTimeout(t.Context(), soon)
			defer cancel()
			loop(ctx, cancel, numbers.Reader(), func(v int) bool { return v == 3 })

			d := receiveValue(t, numbers)
			require.Equal(t, 3, d.Value, "it is the next, in its place")
			require.Equal(t, ids[3], d.ID)
			require.Equal(t, 1, d.DeliveryCount)
			require.NoError(t, d.Ack())
			require.Equal(t, consecutive(4, 6), drainAcked(t, numbers, 6))
			eventuallyPending(t, hub.client, key, 0)
		})
	}
}

// A value at which a loop was left is released to another reader when nothing reads here, and
// when the reader is closed, as if it had not been delivered.
func TestChannel_UnreadValueReachesAnotherReader(t *testing.T) {
	t.Parallel()
	for name, wait := range map[string]bool{"after a while": true, "on close": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			hub, key := newHubOf(t), redistest.Key(t)
			first := streamOf[int](t, hub, key)
			write(t, first, 1)
			for range first.Reader().All(soonCtx(t)) {
				break
			}
			second := streamOf[int](t, hub, key)
			_, ok, err := second.Reader().TryReceive()
			require.NoError(t, err)
			require.False(t, ok, "the first still has it")
			if !wait {
				start := time.Now()
				require.NoError(t, first.Close())
				require.Less(t, time.Since(start), time.Second, "there was nothing to wait for")
			}
			d := receiveValue(t, second)
			require.Equal(t, 1, d.DeliveryCount)
			require.NoError(t, d.Ack())
			eventuallyPending(t, hub.client, key, 0)
		})
	}
}

// Concurrent readers of one Reader share the values.
func TestChannel_ConcurrentReaders(t *testing.T) {
	t.Parallel()
	hub, key := newHubOf(t), redistest.Key(t)
	numbers := streamOf[int](t, hub, key)
	const n = 300
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var mu sync.Mutex
	var got []int
	var readers sync.WaitGroup
	done := func(v int) {
		mu.Lock()
		defer mu.Unlock()
		if got = append(got, v); len(got) == n {
			cancel()
		}
	}
	for i := range 6 {
		readers.Go(func() {
			switch i % 3 {
			case 0:
				for v, err := range numbers.Reader().All(ctx) {
					if err == nil {
						done(v)
					}
				}
			case 1:
				for d, err := range numbers.Reader().Deliveries(ctx) {
					if err == nil && d.Ack() == nil {
						done(d.Value)
					}
				}
			default:
				for ctx.Err() == nil {
					if d, err := numbers.Reader().Receive(ctx); err == nil && d.Ack() == nil {
						done(d.Value)
					}
				}
			}
		})
	}
	write(t, numbers, consecutive(0, n)...)
	readers.Wait()
	slices.Sort(got)
	require.Equal(t, consecutive(0, n), got)
	eventuallyPending(t, hub.client, key, 0)
}

// Up to MaxInFlight deliveries are out, in stream order; then a wait is reported.
func TestChannel_StalledReaderIsReported(t *testing.T) {
	t.Parallel()
	hub, key := newHubOf(t), redistest.Key(t)
	numbers := streamOf[int](t, hub, key, redischannels.StreamChannelConfig{
		Subscriber: redischannels.SubscriberConfig{MaxInFlight: 5, Tuning: redischannels.Tuning{BlockTime: 50 * time.Millisecond}},
	})
	ids := write(t, numbers, consecutive(0, 7)...)
	for i := range 5 {
		require.Equal(t, i, receiveValue(t, numbers).Value)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	got := make(chan redischannels.Delivery[int], 1)
	go func() {
		if d, err := numbers.Reader().Receive(ctx); err == nil {
			got <- d
		}
	}()
	event := hub.events.wait(t, redischannels.EventStalled)
	require.Equal(t, 5, event.Count)
	require.Equal(t, key, event.Topic)
	require.Empty(t, got)
	n, err := numbers.Reader().Ack(soonCtx(t), ids[:5]...)
	require.NoError(t, err)
	require.Equal(t, 5, n)
	d := <-got
	require.Equal(t, 5, d.Value)
	require.NoError(t, d.Ack())
	require.Equal(t, []int{6}, drainAcked(t, numbers, 1))
	eventuallyPending(t, hub.client, key, 0)
}

// A delivery that takes longer than MinIdle stays with its reader.
func TestChannel_UnackedDeliveriesStayLeased(t *testing.T) {
	t.Parallel()
	hub, key := newHubOf(t), redistest.Key(t)
	one, other := streamOf[int](t, hub, key), streamOf[int](t, hub, key)
	write(t, one, consecutive(0, 20)...)
	leased := make([]redischannels.Delivery[int], 20)
	for i := range leased {
		leased[i] = receiveValue(t, one)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*testMinIdle)
	defer cancel()
	_, err := other.Reader().Receive(ctx)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	for _, d := range leased {
		require.NoError(t, d.Ack())
	}
	eventuallyPending(t, hub.client, key, 0)
}

// WaitToRead takes nothing and is false only for a closed reader.
func TestChannel_WaitToRead(t *testing.T) {
	t.Parallel()
	hub, key := newHubOf(t), redistest.Key(t)
	numbers := streamOf[int](t, hub, key)
	write(t, numbers, 1, 2)
	for range 3 {
		ok, err := numbers.Reader().WaitToRead(soonCtx(t))
		require.NoError(t, err)
		require.True(t, ok)
	}
	d := receiveValue(t, numbers)
	require.Equal(t, 1, d.Value)
	require.Equal(t, 1, d.DeliveryCount)
	require.NoError(t, d.Ack())
	require.Equal(t, []int{2}, drainAcked(t, numbers, 1))

	ctx, cancel := context.WithTimeout(t.Context(), quiet)
	defer cancel()
	_, err := numbers.Reader().WaitToRead(ctx)
	require.ErrorIs(t, err, context.DeadlineExceeded)

	require.NoError(t, numbers.Close())
	ok, err := numbers.Reader().WaitToRead(soonCtx(t))
	require.NoError(t, err)
	require.False(t, ok)
}

// Nack counts, NackAfter waits, Reject makes a dead letter.
func TestChannel_NackRejectDeadLetter(t *testing.T) {
	t.Parallel()
	hub, key := newHubOf(t), redistest.Key(t)
	numbers := streamOf[int](t, hub, key)
	ids := write(t, numbers, 1)
	require.NoError(t, receiveValue(t, numbers).Nack())
	d := receiveValue(t, numbers)
	require.Equal(t, 2, d.DeliveryCount)
	start := time.Now()
	require.NoError(t, d.NackAfter(200*time.Millisecond))
	d = receiveValue(t, numbers)
	require.GreaterOrEqual(t, time.Since(start), 150*time.Millisecond)
	require.Equal(t, 3, d.DeliveryCount)
	require.NoError(t, d.Reject("no such customer"))
	event := hub.events.wait(t, redischannels.EventDeadLettered)
	require.Equal(t, ids, event.EntryIDs)
	require.ErrorContains(t, event.Err, "no such customer")
	eventuallyPending(t, hub.client, key, 0)
}

// A postponed value is delivered again after the delay, and the delivery does not count, however
// often this happens.
func TestChannel_Postpone(t *testing.T) {
	t.Parallel()
	for name, config := range map[string]redischannels.StreamChannelConfig{
		"group":    {Subscriber: redischannels.SubscriberConfig{MaxDeliveries: 2}},
		"no group": {Subscriber: redischannels.SubscriberConfig{ConsumerGroup: redischannels.NoConsumerGroup, MaxDeliveries: 2, StartFrom: redischannels.Oldest}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			hub, key := newHubOf(t), redistest.Key(t)
			numbers := streamOf[int](t, hub, key, config)
			write(t, numbers, 1)
			for range 4 {
				d := receiveValue(t, numbers)
				require.Equal(t, 1, d.DeliveryCount)
				require.ErrorIs(t, d.Postpone(-1), redischannels.ErrInvalidArgument)
				start := time.Now()
				require.NoError(t, d.Postpone(50*time.Millisecond))
				_, ok, err := numbers.Reader().TryReceive()
				require.NoError(t, err)
				require.False(t, ok)
				_, err = numbers.Reader().WaitToRead(soonCtx(t))
				require.NoError(t, err)
				require.GreaterOrEqual(t, time.Since(start), 50*time.Millisecond)
			}
			require.NoError(t, receiveValue(t, numbers).Ack())
			hub.events.none(t, redischannels.EventDeadLettered, redischannels.EventSkipped)
		})
	}
}

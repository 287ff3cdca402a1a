package tests

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/pubsub/gochannel"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
)

// handling runs Handle and returns how it ends.
func handling[T any](ctx context.Context, c *redischannels.Channel[T], fn func(context.Context, T) error, config redischannels.HandleConfig) <-chan error {
	ended := make(chan error, 1)
	go func() { ended <- c.Reader().Handle(ctx, fn, config) }()
	return ended
}

type contextKey struct{}

// nil acknowledges, an error and a panic nack, what does not decode is a dead letter.
func TestChannel_HandleAcksAndNacks(t *testing.T) {
	t.Parallel()
	hub, key := newHubOf(t), redistest.Key(t)
	orders := streamOf[order](t, hub, key, flaminco)
	ctx, cancel := context.WithCancel(context.WithValue(t.Context(), contextKey{}, "value"))
	defer cancel()
	var mu sync.Mutex
	tries := map[int]int{}
	ended := handling(ctx, orders, func(ctx context.Context, o order) error {
		if ctx.Value(contextKey{}) != "value" {
			return errors.New("the values of the context are missing")
		}
		count, _ := redischannels.DeliveryCountFromContext(ctx)
		mu.Lock()
		defer mu.Unlock()
		tries[o.ID] = count
		switch {
		case o.ID == 2 && count < 3:
			return errors.New("not yet")
		case o.ID == 3 && count < 2:
			panic("of the function")
		case o.ID == 4 && count < 2:
			return &redischannels.DecodeError{EntryID: "1-0", Reason: "of something else that it has read"}
		}
		return nil
	}, redischannels.HandleConfig{Concurrency: 2})
	write(t, orders, order{ID: 1}, order{ID: 2}, order{ID: 3})
	bad := badEntries(t, hub, key)
	write(t, orders, order{ID: 4})
	redistest.Eventually(t, soon, func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(tries) == 4 && tries[2] == 3 && tries[3] == 2 && tries[4] == 2
	}, "not handled: %v", tries)
	redistest.Eventually(t, soon, func() bool {
		return hub.client.XLen(t.Context(), deadStream(key)).Val() == int64(len(bad))
	}, "dead letters")
	requireDeadAtOnce(t, hub.client, key)
	eventuallyPending(t, hub.client, key, 0)
	cancel()
	require.NoError(t, <-ended)
}

// requireDeadAtOnce checks that no dead letter was tried again: what does not decode was one
// of the same reason only after MaxDeliveries, which these tests reach as well.
func requireDeadAtOnce(t *testing.T, client redis.UniversalClient, key string) {
	t.Helper()
	for _, letter := range fieldsOf(t, client, deadStream(key)) {
		require.Equal(t, "1", letter["_dead_count"], letter["_dead_reason"])
	}
}

// A value that does not decode and that no group can put aside is passed. Over gochannel, which
// sends what is nacked at once and before all else, it came forever and blocked the others.
func TestChannel_HandleSkipsUndecodable(t *testing.T) {
	t.Parallel()
	transport := gochannel.NewGoChannel(gochannel.Config{Persistent: true}, watermill.NopLogger{})
	t.Cleanup(func() { _ = transport.Close() })
	c := must(redischannels.NewChannel(transport, transport, "orders", redischannels.ChannelConfig[int]{}))
	t.Cleanup(func() { _ = c.Close() })
	require.NoError(t, transport.Publish("orders", message.NewMessage("bad", []byte("{"))))
	var tries atomic.Int32
	failed := make(chan error, 1)
	watch := func(next message.HandlerFunc) message.HandlerFunc {
		return func(msg *message.Message) ([]*message.Message, error) {
			msgs, err := next(msg)
			if err != nil && tries.Add(1) == 1 {
				failed <- err
			}
			return msgs, err
		}
	}
	ctx, cancel := context.WithCancel(soonCtx(t))
	defer cancel()
	got := 0
	ended := handling(ctx, c, func(_ context.Context, v int) error {
		got = v
		cancel()
		return nil
	}, redischannels.HandleConfig{Middleware: []message.HandlerMiddleware{watch}})
	var failure *redischannels.DecodeError
	require.ErrorAs(t, <-failed, &failure)
	require.Equal(t, "bad", failure.EntryID)
	write(t, c, 7)
	require.NoError(t, <-ended)
	require.Equal(t, 7, got)
	require.EqualValues(t, 1, tries.Load())
}

// At most Concurrency values are handled at a time, and as many as that.
func TestChannel_HandleConcurrency(t *testing.T) {
	t.Parallel()
	hub, key := newHubOf(t), redistest.Key(t)
	numbers := streamOf[int](t, hub, key)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var running, most atomic.Int32
	release := make(chan struct{})
	ended := handling(ctx, numbers, func(context.Context, int) error {
		now := running.Add(1)
		for old := most.Load(); now > old && !most.CompareAndSwap(old, now); old = most.Load() {
		}
		<-release
		running.Add(-1)
		return nil
	}, redischannels.HandleConfig{Concurrency: 5})
	ids := write(t, numbers, consecutive(0, 50)...)
	redistest.Eventually(t, soon, func() bool { return running.Load() == 5 }, "not five at a time")
	close(release)
	redistest.Eventually(t, soon, func() bool {
		groups := hub.client.XInfoGroups(t.Context(), key).Val()
		return len(groups) == 1 && groups[0].LastDeliveredID == ids[49] && groups[0].Pending == 0
	}, "not all handled")
	require.EqualValues(t, 5, most.Load())
	cancel()
	require.NoError(t, <-ended)
}

// Handle waits for the calls under way, whose contexts stay live, and ends them after
// DrainTimeout.
func TestChannel_HandleDrains(t *testing.T) {
	t.Parallel()
	hub, key := newHubOf(t), redistest.Key(t)
	numbers := streamOf[int](t, hub, key, redischannels.StreamChannelConfig{Subscriber: redischannels.SubscriberConfig{Tuning: redischannels.Tuning{DrainTimeout: 300 * time.Millisecond}}})
	write(t, numbers, 1, 2)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	release, began := make(chan struct{}), make(chan struct{}, 2)
	ended := handling(ctx, numbers, func(ctx context.Context, v int) error {
		began <- struct{}{}
		if v == 1 {
			<-release
			return ctx.Err()
		}
		<-ctx.Done() // a function that only its context ends
		return ctx.Err()
	}, redischannels.HandleConfig{Concurrency: 2})
	<-began
	<-began
	cancel()
	select {
	case <-ended:
		require.FailNow(t, "Handle did not wait")
	case <-time.After(quiet):
	}
	close(release)
	require.NoError(t, <-ended)
	eventuallyPending(t, hub.client, key, 1)
	require.Equal(t, 2, receiveValue(t, numbers).DeliveryCount, "the one that was ended counts")
	require.NoError(t, numbers.Close())
}

// A subscription that cannot be opened is the error of Handle, and of each round of a
// loop, which continues when the cause has ended.
func TestChannel_SubscribeErrors(t *testing.T) {
	t.Parallel()
	hub, key := newHubOf(t), redistest.Key(t)
	require.NoError(t, hub.client.Set(t.Context(), key, "x", time.Minute).Err())
	numbers := streamOf[int](t, hub, key)
	err := numbers.Reader().Handle(t.Context(), func(context.Context, int) error { return nil }, redischannels.HandleConfig{})
	require.ErrorIs(t, err, redischannels.ErrWrongType)
	failures := 0
	for v, err := range numbers.Reader().All(soonCtx(t)) {
		if err == nil {
			require.Equal(t, 7, v)
			break
		}
		require.ErrorIs(t, err, redischannels.ErrWrongType)
		if failures++; failures == 2 {
			require.NoError(t, hub.client.Del(t.Context(), key).Err())
			write(t, numbers, 7)
		}
	}
	require.Equal(t, 2, failures)
}

// Middleware sees the message, the first one outermost, and can end it by itself.
func TestChannel_HandleMiddleware(t *testing.T) {
	t.Parallel()
	hub, key := newHubOf(t), redistest.Key(t)
	numbers := streamOf[int](t, hub, key)
	var mu sync.Mutex
	var order []string
	note := func(name string) message.HandlerMiddleware {
		return func(next message.HandlerFunc) message.HandlerFunc {
			return func(msg *message.Message) ([]*message.Message, error) {
				mu.Lock()
				order = append(order, name+" "+string(msg.Payload))
				mu.Unlock()
				return next(msg)
			}
		}
	}
	reject := func(next message.HandlerFunc) message.HandlerFunc {
		return func(msg *message.Message) ([]*message.Message, error) {
			_, err := next(msg)
			if err != nil {
				redischannels.Reject(msg, "given up by a middleware")
			}
			return nil, err
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := handling(ctx, numbers, func(_ context.Context, v int) error {
		if v == 2 {
			return errors.New("no")
		}
		return nil
	}, redischannels.HandleConfig{Middleware: []message.HandlerMiddleware{note("outer"), reject, note("inner")}})
	ids := write(t, numbers, 1, 2)
	event := hub.events.wait(t, redischannels.EventDeadLettered)
	require.Equal(t, ids[1:], event.EntryIDs)
	require.ErrorContains(t, event.Err, "given up by a middleware")
	cancel()
	require.NoError(t, <-ended)
	require.Equal(t, []string{"outer 1", "inner 1", "outer 2", "inner 2"}, order)
}

// Functions of values are handlers of a Watermill router, which publishes what they return.
func TestChannel_RouterHandlers(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	hub, in, out := newHub(t, client), redistest.Key(t, "in"), redistest.Key(t, "out")
	orders, totals := streamOf[order](t, hub, in), streamOf[int](t, hub, out)
	router, err := message.NewRouter(message.RouterConfig{}, nil)
	require.NoError(t, err)
	sub := newSub(t, client)
	pub, err := redischannels.NewPublisher(redischannels.PublisherConfig{Client: client}, nil)
	require.NoError(t, err)
	t.Cleanup(func() { _ = pub.Close() })
	double, err := redischannels.ProducerHandlerFunc(nil, func(_ context.Context, o order) ([]int, error) {
		return []int{o.Amount, 2 * o.Amount}, nil
	})
	require.NoError(t, err)
	router.AddHandler("double", in, sub, out, pub, double)
	seen := make(chan int, 10)
	show, err := redischannels.HandlerFunc(nil, func(_ context.Context, v int) error { seen <- v; return nil })
	require.NoError(t, err)
	router.AddConsumerHandler("show", out, sub, show)
	done := make(chan error, 1)
	go func() { done <- router.Run(context.WithoutCancel(t.Context())) }()
	<-router.Running()
	write(t, orders, order{Amount: 3})
	require.Equal(t, []int{3, 6}, []int{<-seen, <-seen})
	id := addRaw(t, client, in, "_watermill_message_uuid", "u", "payload", "{")
	event := sub.events.wait(t, redischannels.EventDeadLettered)
	require.Equal(t, []string{id}, event.EntryIDs)
	requireDeadAtOnce(t, client, in)
	require.NoError(t, router.Close())
	require.NoError(t, <-done)
	_ = totals
}

// A slow pod keeps nothing from a quick one: what it could hold is no reason to take
// it.
func TestChannel_SlowReaderLeasesOnlyItsShare(t *testing.T) {
	t.Parallel()
	hub, key := newHubOf(t), redistest.Key(t)
	slow, quick := streamOf[int](t, hub, key), streamOf[int](t, hub, key)
	write(t, slow, consecutive(0, 100)...)
	first := receiveValue(t, slow) // and works on it
	require.Len(t, drainAcked(t, quick, 98), 98)
	require.NoError(t, first.Ack())
	redistest.Eventually(t, soon, func() bool { return len(pendingOf(t, hub.client, key)) <= 1 }, "it held more")
	hub.events.none(t, redischannels.EventReleased)
}

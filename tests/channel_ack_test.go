package tests

import (
	"context"
	"runtime"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/pubsub/gochannel"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
	"github.com/redis/go-redis/v9"
)

// A goroutine for each delivery that is out costs as much as everything else that is done
// about it. Not parallel: it counts the goroutines of the process.
func TestChannel_DeliveriesHaveNoGoroutines(t *testing.T) {
	const n = 200
	hub, key := newHubOf(t), redistest.Key(t)
	numbers := streamOf[int](t, hub, key)
	write(t, numbers, consecutive(0, n)...)
	out := []redischannels.Delivery[int]{receiveValue(t, numbers)} // with the goroutines of the subscription
	before := runtime.NumGoroutine()
	for len(out) < n {
		out = append(out, receiveValue(t, numbers))
	}
	require.Less(t, runtime.NumGoroutine()-before, n/2)
	for i, d := range out {
		if i%2 == 0 {
			require.NoError(t, d.Ack())
		} else {
			require.NoError(t, d.Nack())
		}
	}
	for range n / 2 {
		d := receiveValue(t, numbers)
		require.Equal(t, 2, d.DeliveryCount)
		require.NoError(t, d.Ack())
	}
	eventuallyPending(t, hub.client, key, 0)
}

// An Ack of a middleware takes effect at once, not when the function has returned.
func TestChannel_MiddlewareAcks(t *testing.T) {
	t.Parallel()
	hub, key := newHubOf(t), redistest.Key(t)
	numbers := streamOf[int](t, hub, key)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	handled, release := make(chan struct{}), make(chan struct{})
	ended := handling(ctx, numbers, func(context.Context, int) error {
		close(handled)
		<-release
		return nil
	}, redischannels.HandleConfig{Middleware: []message.HandlerMiddleware{func(next message.HandlerFunc) message.HandlerFunc {
		return func(msg *message.Message) ([]*message.Message, error) {
			msg.Ack()
			return next(msg)
		}
	}}})
	write(t, numbers, 1)
	waitFor(t, handled)
	eventuallyPending(t, hub.client, key, 0)
	close(release)
	cancel()
	require.NoError(t, <-ended)
}

// Deliveries that are not acknowledged do not delay Close for longer than DrainTimeout; their
// contexts end with it, and they stay pending. Acks that are given while it waits are written.
func TestChannel_CloseAbandonsDeliveries(t *testing.T) {
	t.Parallel()
	hub, key := newHubOf(t), redistest.Key(t)
	tuning := quickTuning()
	tuning.DrainTimeout = 300 * time.Millisecond
	numbers := streamOf[int](t, hub, key, redischannels.StreamChannelConfig{Subscriber: redischannels.SubscriberConfig{ConsumerGroup: "g", Tuning: tuning}})
	write(t, numbers, 1, 2, 3)
	first, second, third := receiveValue(t, numbers), receiveValue(t, numbers), receiveValue(t, numbers)
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		_ = numbers.Close()
	}()
	waitFor(t, numbers.Reader().Done())
	require.Error(t, first.Context().Err())
	waitFor(t, closed)
	pending := pendingOf(t, hub.client, key)
	require.Len(t, pending, 3)
	require.ErrorIs(t, third.Ack(), redischannels.ErrNotOwner)
	require.ErrorIs(t, second.Ack(), redischannels.ErrNotOwner)
	require.Len(t, pendingOf(t, hub.client, key), 3)
}

// A transport within the process may keep the context of what is published. Acking a
// message that was published while another was handled does not ack that one.
func TestChannel_ContextOfAnotherDelivery(t *testing.T) {
	t.Parallel()
	hub, key := newHubOf(t), redistest.Key(t)
	numbers := streamOf[int](t, hub, key)
	transport := gochannel.NewGoChannel(gochannel.Config{Persistent: true, PreserveContext: true}, watermill.NopLogger{})
	t.Cleanup(func() { _ = transport.Close() })
	inner := must(redischannels.NewChannel[int](transport, transport, "inner", redischannels.ChannelConfig[int]{}))
	t.Cleanup(func() { _ = inner.Close() })
	write(t, numbers, 1, 2)

	acked, nacked := receiveValue(t, numbers), receiveValue(t, numbers)
	must(inner.Writer().Write(acked.Context(), 1))
	require.NoError(t, receiveValue(t, inner).Ack())
	require.NoError(t, acked.Context().Err())
	require.NoError(t, acked.Nack())

	must(inner.Writer().Write(nacked.Context(), 2))
	require.NoError(t, receiveValue(t, inner).Nack())
	again := receiveValue(t, inner)
	require.NoError(t, nacked.Context().Err())
	require.NoError(t, nacked.Ack())
	require.NoError(t, again.Ack(), "the end of the other one is not its own")

	d := receiveValue(t, numbers)
	require.Equal(t, acked.ID, d.ID)
	require.Equal(t, 2, d.DeliveryCount)
	require.NoError(t, d.Ack())
	eventuallyPending(t, hub.client, key, 0)
}

// An acknowledgement that comes too late, because the group has given the value to another
// consumer, says so.
func TestChannel_AckAfterLeaseLost(t *testing.T) {
	t.Parallel()
	hub, key := newHubOf(t), redistest.Key(t)
	mine := streamOf[int](t, hub, key)
	write(t, mine, 1, 2)
	first, second := receiveValue(t, mine), receiveValue(t, mine)
	require.NoError(t, hub.client.XClaimJustID(t.Context(), &redis.XClaimArgs{
		Stream: key, Group: "g", Consumer: "other", MinIdle: 0, Messages: []string{first.ID, second.ID},
	}).Err())
	waitDone(t, first.Context())
	waitDone(t, second.Context())
	require.ErrorIs(t, first.Ack(), redischannels.ErrNotOwner)
	n, err := mine.Reader().Ack(t.Context(), second.ID)
	require.Zero(t, n)
	require.ErrorIs(t, err, redischannels.ErrNotOwner)
	require.Len(t, pendingOf(t, hub.client, key), 2, "they are still the other one's")
}

// Acking twice, a foreign ID, what was never received: a clear error, and nothing else
// is harmed.
func TestChannel_AckMisuse(t *testing.T) {
	t.Parallel()
	// Two readers of a group: neither may claim from the other, however slow the machine is.
	hub, key := newHub(t, redistest.Shared(t).Client(t), func(c *redischannels.HubConfig) {
		c.Stream.Subscriber.Tuning.MinIdle = time.Minute
	}), redistest.Key(t)
	mine, other := streamOf[int](t, hub, key), streamOf[int](t, hub, key)
	write(t, mine, 1, 2, 3)
	d := receiveValue(t, mine)
	require.NoError(t, d.Ack())
	require.ErrorIs(t, d.Ack(), redischannels.ErrNotPending)
	require.ErrorIs(t, d.Nack(), redischannels.ErrNotPending)
	require.ErrorIs(t, d.Reject("x"), redischannels.ErrNotPending)

	leased := receiveValue(t, mine)
	foreign := receiveValue(t, other)
	n, err := mine.Reader().Ack(t.Context(), d.ID, foreign.ID, leased.ID, "nonsense")
	require.Equal(t, 1, n)
	require.ErrorIs(t, err, redischannels.ErrNotPending)
	require.ErrorContains(t, err, foreign.ID)
	require.ErrorContains(t, err, "nonsense")
	require.NotContains(t, err.Error(), leased.ID)
	require.ErrorIs(t, leased.Ack(), redischannels.ErrNotPending, "it was acked by its ID")
	require.NoError(t, foreign.Context().Err(), "the foreign delivery is untouched")
	require.NoError(t, foreign.Ack())
	require.ErrorIs(t, redischannels.Delivery[int]{}.Ack(), redischannels.ErrNotSupported)
	eventuallyPending(t, hub.client, key, 0)
	hub.events.none(t, redischannels.EventAckIgnored)
}

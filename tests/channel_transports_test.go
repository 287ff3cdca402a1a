package tests

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/pubsub/gochannel"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
)

// In a user's unit test a channel stands on gochannel: everything but what only a
// stream can do works the same.
func TestChannel_GoChannel(t *testing.T) {
	t.Parallel()
	transport := gochannel.NewGoChannel(gochannel.Config{Persistent: true}, watermill.NopLogger{})
	t.Cleanup(func() { _ = transport.Close() })
	c, err := redischannels.NewChannel(transport, transport, "orders", redischannels.ChannelConfig[order]{
		Metadata: func(o order) message.Metadata { return message.Metadata{"tenant": "a"} },
	})
	require.NoError(t, err)
	r := c.Reader()
	ctx := soonCtx(t)
	id, err := c.Writer().Write(ctx, order{ID: 1})
	require.NoError(t, err)
	require.NoError(t, c.Writer().WaitToWrite(ctx))
	d, err := r.Receive(ctx)
	require.NoError(t, err)
	require.Equal(t, id, d.ID)
	require.Equal(t, order{ID: 1}, d.Value)
	require.Equal(t, "a", d.Metadata.Get("tenant"))
	require.WithinDuration(t, time.Now(), d.Time, time.Minute)
	require.ErrorIs(t, d.Reject("x"), redischannels.ErrNotSupported)
	require.ErrorIs(t, d.NackAfter(time.Second), redischannels.ErrNotSupported)
	require.NoError(t, d.Nack(), "it is neither acked nor nacked yet")
	d, err = r.Receive(ctx)
	require.NoError(t, err)
	n, err := r.Ack(ctx, d.ID)
	require.NoError(t, err)
	require.Equal(t, 1, n)
	require.ErrorIs(t, d.Ack(), redischannels.ErrNotPending)

	_, err = c.Writer().WriteAll(ctx, order{ID: 2}, order{ID: 3})
	require.NoError(t, err)
	var left int
	for o, err := range r.All(ctx) {
		require.NoError(t, err)
		left = o.ID
		break
	}
	d, err = r.Receive(ctx)
	require.NoError(t, err)
	require.Equal(t, left, d.Value.ID, "delivered again")
	require.NoError(t, d.Ack())
	_, err = r.Read(ctx)
	require.NoError(t, err)

	for _, err := range r.History(ctx, redischannels.Oldest) {
		require.ErrorIs(t, err, redischannels.ErrNotSupported)
	}
	for _, err := range r.Follow(ctx, redischannels.Oldest) {
		require.ErrorIs(t, err, redischannels.ErrNotSupported)
	}
	require.NoError(t, transport.Publish("orders", message.NewMessage("u", []byte("{"))))
	_, err = r.Receive(ctx)
	var failure *redischannels.DecodeError
	require.ErrorAs(t, err, &failure)
	require.NoError(t, c.Close())
	_, err = r.Read(ctx)
	require.ErrorIs(t, err, redischannels.ErrClosed)
	require.NoError(t, transport.Publish("orders", message.NewMessage("u", nil)), "the transport is the caller's")
}

// Bug: a handler that always failed, or rejected what the transport cannot reject, was called
// 31,805 times in 300 ms: gochannel redelivers at once.
func TestChannel_GoChannelRedeliveryBacksOff(t *testing.T) {
	t.Parallel()
	transport := gochannel.NewGoChannel(gochannel.Config{Persistent: true}, watermill.NopLogger{})
	t.Cleanup(func() { _ = transport.Close() })
	c := must(redischannels.NewChannel(transport, transport, "orders", redischannels.ChannelConfig[int]{Logger: watermill.NopLogger{}}))
	t.Cleanup(func() { _ = c.Close() })
	write(t, c, 1)
	ctx, cancel := context.WithTimeout(t.Context(), 2*quiet)
	defer cancel()
	var calls, rejected atomic.Int32
	reject := func(next message.HandlerFunc) message.HandlerFunc {
		return func(msg *message.Message) ([]*message.Message, error) {
			msgs, err := next(msg)
			if redischannels.Reject(msg, "never") {
				rejected.Add(1)
			}
			return msgs, err
		}
	}
	ended := handling(ctx, c, func(context.Context, int) error {
		calls.Add(1)
		return errors.New("no")
	}, redischannels.HandleConfig{Middleware: []message.HandlerMiddleware{reject}})
	require.NoError(t, <-ended)
	require.GreaterOrEqual(t, calls.Load(), int32(2), "it is redelivered")
	require.Less(t, calls.Load(), int32(10))
	require.Zero(t, rejected.Load(), "there are no dead letters")
}

// A transport that ends the subscription by itself is not taken for silence.
func TestChannel_TransportEnds(t *testing.T) {
	t.Parallel()
	transport := gochannel.NewGoChannel(gochannel.Config{}, watermill.NopLogger{})
	c, err := redischannels.NewChannel(transport, transport, "orders", redischannels.ChannelConfig[int]{})
	require.NoError(t, err)
	_, ok, err := c.Reader().TryReceive()
	require.NoError(t, err)
	require.False(t, ok)
	require.NoError(t, transport.Close())
	_, err = c.Reader().Receive(soonCtx(t))
	require.ErrorIs(t, err, redischannels.ErrClosed)
	require.ErrorContains(t, err, "by its subscriber")
	require.ErrorIs(t, c.Reader().Err(), redischannels.ErrClosed)
	require.NoError(t, c.Close())
	<-c.Reader().Done()

	// One direction is enough.
	_, err = must(redischannels.NewChannel[int](nil, transport, "orders", redischannels.ChannelConfig[int]{})).Writer().Write(t.Context(), 1)
	require.ErrorIs(t, err, redischannels.ErrNotSupported)
	_, err = must(redischannels.NewChannel[int](transport, nil, "orders", redischannels.ChannelConfig[int]{})).Reader().Read(t.Context())
	require.ErrorIs(t, err, redischannels.ErrNotSupported)
}

// A subscription that cannot be had, or that its subscriber ends, is an error for every way of
// reading: none ends as if the reader had been closed.
func TestChannel_NoLoopEndsWithoutAnError(t *testing.T) {
	t.Parallel()
	nothing := func(context.Context, int) error { return nil }
	sub := newSub(t, redistest.Shared(t).Client(t))
	require.NoError(t, sub.Close())
	c := must(redischannels.NewChannel[int](nil, sub, "orders", redischannels.ChannelConfig[int]{}))
	require.ErrorIs(t, c.Reader().Handle(t.Context(), nothing, redischannels.HandleConfig{}), redischannels.ErrClosed)
	_, err := c.Reader().WaitToRead(t.Context())
	require.ErrorIs(t, err, redischannels.ErrClosed)
	require.NoError(t, c.Reader().Err(), "it can be tried again")
	for name, loop := range map[string]func(yield func(error)){
		"All": func(yield func(error)) {
			for _, err := range c.Reader().All(soonCtx(t)) {
				yield(err)
				break
			}
		},
		"Deliveries": func(yield func(error)) {
			for _, err := range c.Reader().Deliveries(soonCtx(t)) {
				yield(err)
				break
			}
		},
		"Follow": func(yield func(error)) {
			for _, err := range c.Reader().Follow(soonCtx(t), redischannels.Latest) {
				yield(err)
				break
			}
		},
	} {
		n := 0
		loop(func(err error) {
			n++
			require.ErrorIs(t, err, redischannels.ErrClosed, name)
		})
		require.Equal(t, 1, n, name)
	}

	for name, read := range map[string]func(r *redischannels.Reader[int]) []error{
		"All": func(r *redischannels.Reader[int]) (errs []error) {
			for _, err := range r.All(soonCtx(t)) {
				errs = append(errs, err)
			}
			return errs
		},
		"Deliveries": func(r *redischannels.Reader[int]) (errs []error) {
			for _, err := range r.Deliveries(soonCtx(t)) {
				errs = append(errs, err)
			}
			return errs
		},
		"Follow": func(r *redischannels.Reader[int]) (errs []error) {
			for _, err := range r.Follow(soonCtx(t), redischannels.Latest) {
				errs = append(errs, err)
			}
			return errs
		},
		"Handle": func(r *redischannels.Reader[int]) []error {
			return []error{r.Handle(soonCtx(t), nothing, redischannels.HandleConfig{Concurrency: 3})}
		},
	} {
		ended := make(chan *message.Message)
		close(ended)
		c := must(redischannels.NewChannel[int](nil, channelSubscriber(ended), "orders", redischannels.ChannelConfig[int]{}))
		errs := read(c.Reader())
		require.Len(t, errs, 1, name)
		require.ErrorContains(t, errs[0], "by its subscriber", name)
		require.NoError(t, c.Close())
	}
}

// channelSubscriber is a subscriber whose only subscription is this channel.
type channelSubscriber chan *message.Message

func (c channelSubscriber) Subscribe(context.Context, string) (<-chan *message.Message, error) {
	return c, nil
}
func (channelSubscriber) Close() error { return nil }

// Handle ends the context of a call that lasts longer than DrainTimeout, on every
// transport.
func TestChannel_HandleDrainsGoChannel(t *testing.T) {
	t.Parallel()
	transport := gochannel.NewGoChannel(gochannel.Config{Persistent: true}, watermill.NopLogger{})
	t.Cleanup(func() { _ = transport.Close() })
	c := must(redischannels.NewChannel(transport, transport, "orders", redischannels.ChannelConfig[int]{DrainTimeout: 20 * time.Millisecond}))
	t.Cleanup(func() { _ = c.Close() })
	write(t, c, 1)
	ctx, cancel := context.WithCancel(t.Context())
	began := make(chan struct{}, 10)
	ended := handling(ctx, c, func(ctx context.Context, _ int) error {
		began <- struct{}{}
		<-ctx.Done()
		return ctx.Err()
	}, redischannels.HandleConfig{})
	<-began
	cancel()
	select {
	case err := <-ended:
		require.NoError(t, err)
	case <-time.After(soon):
		require.FailNow(t, "the call is not ended")
	}
}

// With an error of another test's publisher no ID says that a value was written.
func TestChannel_FailedPublisher(t *testing.T) {
	t.Parallel()
	transport := gochannel.NewGoChannel(gochannel.Config{}, watermill.NopLogger{})
	require.NoError(t, transport.Close())
	c := must(redischannels.NewChannel(transport, transport, "orders", redischannels.ChannelConfig[int]{}))
	id, err := c.Writer().Write(t.Context(), 1)
	require.Error(t, err)
	require.Empty(t, id)
	ids, err := c.Writer().WriteAll(t.Context(), 1, 2)
	require.Error(t, err)
	require.Equal(t, []string{"", ""}, ids)
}

// A message that was published twice, with one UUID, is two deliveries; each is acked for
// itself and neither keeps its place forever.
func TestChannel_PubSubOneUUIDTwice(t *testing.T) {
	t.Parallel()
	hub, name := newHubOf(t), redistest.Key(t)
	c := must(redischannels.NewPubSubChannel[int](hub.Hub, name, redischannels.PubSubChannelConfig{Subscriber: redischannels.PubSubSubscriberConfig{MaxInFlight: 2}}))
	_, _, err := c.Reader().TryReceive()
	require.NoError(t, err)
	pub, err := redischannels.NewPubSubPublisher(redischannels.PubSubPublisherConfig{Client: hub.client}, nil)
	require.NoError(t, err)
	t.Cleanup(func() { _ = pub.Close() })
	msg := message.NewMessage("twice", []byte("1"))
	require.NoError(t, pub.Publish(name, msg, msg, message.NewMessage("other", []byte("2"))))
	first, second := receiveValue(t, c), receiveValue(t, c)
	require.Equal(t, first.ID, second.ID)
	require.NoError(t, first.Ack())
	require.NoError(t, second.Ack())
	require.ErrorIs(t, first.Ack(), redischannels.ErrNotPending)
	d := receiveValue(t, c)
	require.Equal(t, 2, d.Value)
	require.NoError(t, d.Ack())
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// Every reader of a Pub/Sub channel sees what is published while it reads, the readers
// of a hub share a connection, and closing one leaves the others.
func TestChannel_PubSub(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	admin := server.Client(t)
	hub := newHub(t, server.Client(t))
	var channels []*redischannels.Channel[order]
	require.NoError(t, hub.client.Ping(t.Context()).Err())
	before := redistest.Connections(t, admin)
	for range 5 {
		c, err := redischannels.NewPubSubChannel[order](hub.Hub, "news", redischannels.PubSubChannelConfig{})
		require.NoError(t, err)
		_, ok, err := c.Reader().TryReceive() // subscribes
		require.NoError(t, err)
		require.False(t, ok)
		channels = append(channels, c)
	}
	require.LessOrEqual(t, redistest.Connections(t, admin)-before, 1)
	writer := must(redischannels.NewPubSubChannel[order](hub.Hub, "news", redischannels.PubSubChannelConfig{}))
	id, err := writer.Writer().With(message.Metadata{"a": "b"}).Write(t.Context(), order{ID: 1})
	require.NoError(t, err)
	for _, c := range channels {
		d := receiveValue(t, c)
		require.Equal(t, order{ID: 1}, d.Value)
		require.Equal(t, id, d.ID)
		require.Equal(t, "b", d.Metadata.Get("a"))
		require.NoError(t, d.Ack())
	}
	require.NoError(t, channels[0].Close())
	write(t, writer, order{ID: 2})
	for _, c := range channels[1:] {
		v, err := c.Reader().Read(soonCtx(t))
		require.NoError(t, err)
		require.Equal(t, 2, v.ID)
	}

	// Leaving a loop, and its redelivery, which does not count.
	write(t, writer, order{ID: 3})
	for range channels[1].Reader().All(soonCtx(t)) {
		break
	}
	<-time.After(1200 * time.Millisecond) // by then it has been released to the subscription
	d := receiveValue(t, channels[1])
	require.Equal(t, 3, d.Value.ID)
	require.Equal(t, 1, d.DeliveryCount)
	require.NoError(t, d.Nack())
	d = receiveValue(t, channels[1])
	require.Equal(t, 2, d.DeliveryCount)
	require.NoError(t, d.Ack())

	for _, err := range writer.Reader().History(t.Context(), redischannels.Oldest) {
		require.ErrorIs(t, err, redischannels.ErrNotSupported)
	}
	require.NoError(t, admin.Publish(t.Context(), "news", "no envelope").Err())
	_, err = channels[1].Reader().Receive(soonCtx(t))
	var failure *redischannels.DecodeError
	require.ErrorAs(t, err, &failure)
	hub.events.wait(t, redischannels.EventUndecodable)

	patterns := must(redischannels.NewPubSubChannel[order](hub.Hub, "ne*", redischannels.PubSubChannelConfig{Subscriber: redischannels.PubSubSubscriberConfig{Patterns: true}}))
	_, _, err = patterns.Reader().TryReceive()
	require.NoError(t, err)
	_, err = patterns.Writer().Write(t.Context(), order{})
	require.ErrorIs(t, err, redischannels.ErrNotSupported)
	write(t, writer, order{ID: 4})
	d = receiveValue(t, patterns)
	require.Equal(t, 4, d.Value.ID)
	require.NoError(t, d.Ack()) // else closing waits for it
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = writer.Reader().Read(ctx)
	require.ErrorIs(t, err, context.Canceled)
}

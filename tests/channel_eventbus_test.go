package tests

import (
	"context"
	"errors"
	"testing"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/pubsub/gochannel"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
)

type event interface{ Key() string }

type placed struct {
	Order, Cents int
}

type shipped struct{ Order int }

func (placed) Key() string   { return "placed" }
func (*shipped) Key() string { return "shipped" }

// placedV1 is the form of placed that was once written. It is an event as well, so it could be
// delivered as it is.
type placedV1 struct {
	Order int
	Euros float64
}

func (placedV1) Key() string { return "placed" }

func registry(t *testing.T, config redischannels.RegistryConfig) *redischannels.Registry[event] {
	t.Helper()
	r := redischannels.NewRegistry[event](config)
	require.NoError(t, redischannels.Register[placed](r, "order.placed.v2"))
	require.NoError(t, redischannels.Register[*shipped](r, "order.shipped"))
	require.NoError(t, redischannels.Upcast(r, "order.placed.v1", func(old placedV1) (event, error) {
		if old.Euros < 0 {
			return nil, errors.New("negative")
		}
		if old.Order == 0 {
			return nil, nil
		}
		return placed{old.Order, int(100 * old.Euros)}, nil
	}))
	return r
}

// named is the entry of an event that another writer has written.
func named(t *testing.T, hub *testHub, key, name, payload string) string {
	t.Helper()
	pub, err := redischannels.NewPublisher(redischannels.PublisherConfig{Client: hub.client}, nil)
	require.NoError(t, err)
	defer pub.Close()
	msg := message.NewMessage(watermill.NewUUID(), []byte(payload))
	if name != "-" {
		msg.Metadata.Set(redischannels.EventNameKey, name)
	}
	ids, err := pub.Append(context.WithoutCancel(t.Context()), key, msg)
	require.NoError(t, err)
	return ids[0]
}

// Several types go over one stream, old forms become today's.
func TestEventBus_Stream(t *testing.T) {
	t.Parallel()
	hub, key := newHubOf(t), redistest.Key(t)
	bus, err := redischannels.NewStreamEventBus(hub.Hub, key, registry(t, redischannels.RegistryConfig{}), redischannels.StreamChannelConfig{})
	require.NoError(t, err)
	_, err = bus.Publish(t.Context(), placed{1, 250}, &shipped{1})
	require.NoError(t, err)
	named(t, hub, key, "order.placed.v1", `{"Order":2,"Euros":1.5}`)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var got []event
	require.NoError(t, bus.Handle(ctx, func(_ context.Context, e event) error {
		if got = append(got, e); len(got) == 3 {
			cancel()
		}
		return nil
	}, redischannels.HandleConfig{}))
	require.Equal(t, []event{placed{1, 250}, &shipped{1}, placed{2, 150}}, got)
	eventuallyPending(t, hub.client, key, 0)

	_, err = bus.Publish(t.Context(), placed{}, shippedTwice{})
	require.ErrorIs(t, err, redischannels.ErrUnknownEvent)
	require.EqualValues(t, 3, hub.client.XLen(t.Context(), key).Val(), "one that is not registered prevents all")
	_, err = bus.Publish(t.Context(), nil)
	require.ErrorIs(t, err, redischannels.ErrUnknownEvent)
	require.NoError(t, bus.Close())
}

type shippedTwice struct{}

func (shippedTwice) Key() string { return "" }

// A name that is not registered, however hostile, makes nothing and ends in
// the dead letters; so does an event without a name, or of another form than its name's.
func TestEventBus_UnknownNames(t *testing.T) {
	t.Parallel()
	hub, key := newHubOf(t), redistest.Key(t)
	bus, err := redischannels.NewStreamEventBus(hub.Hub, key, registry(t, redischannels.RegistryConfig{}), redischannels.StreamChannelConfig{})
	require.NoError(t, err)
	r := bus.Channel().Reader()
	for name, unknown := range map[string]bool{
		"System.Diagnostics.Process, System": true, "tests.placed": true, "placed": true, "": true, "-": true,
		"order.placed.v2\x00": true, "*tests.shipped": true, "order.placed.v2": false, "order.placed.v1": false,
	} {
		id := named(t, hub, key, name, `{"Order":"secret","Euros":-1}`)
		_, err := r.Receive(soonCtx(t))
		var failure *redischannels.DecodeError
		require.ErrorAs(t, err, &failure, name)
		require.Equal(t, id, failure.EntryID)
		require.Equal(t, unknown, errors.Is(err, redischannels.ErrUnknownEvent), name)
		require.NotContains(t, err.Error(), "secret")
		require.NotContains(t, err.Error(), "Process")
	}
	named(t, hub, key, "order.placed.v1", `{"Order":0,"Euros":1}`)
	_, err = r.Receive(soonCtx(t))
	require.ErrorContains(t, err, "nothing by the upcast", "not a nil event")
	redistest.Eventually(t, soon, func() bool { return hub.client.XLen(t.Context(), deadStream(key)).Val() == 10 }, "dead letters")
	eventuallyPending(t, hub.client, key, 0)
}

// A handler that needs some of the events only says so; the others are acknowledged.
func TestEventBus_SkipsUnknown(t *testing.T) {
	t.Parallel()
	hub, key := newHubOf(t), redistest.Key(t)
	bus, err := redischannels.NewStreamEventBus(hub.Hub, key, registry(t, redischannels.RegistryConfig{Unknown: redischannels.SkipUnknown}), redischannels.StreamChannelConfig{})
	require.NoError(t, err)
	r := bus.Channel().Reader()
	for range 3 {
		named(t, hub, key, "order.other", "{")
	}
	_, err = bus.Publish(t.Context(), placed{1, 1})
	require.NoError(t, err)
	v, err := r.Read(soonCtx(t))
	require.NoError(t, err)
	require.Equal(t, placed{1, 1}, v)
	n := 0
	for d, err := range r.History(t.Context(), redischannels.Oldest) {
		require.NoError(t, err)
		require.Equal(t, placed{1, 1}, d.Value)
		n++
	}
	require.Equal(t, 1, n)
	eventuallyPending(t, hub.client, key, 0)
	_, ok, err := r.TryReceive()
	require.NoError(t, err)
	require.False(t, ok)
	for _, none := range []string{"-", ""} {
		named(t, hub, key, none, "{")
		_, err = r.Receive(soonCtx(t))
		require.ErrorIs(t, err, redischannels.ErrUnknownEvent, "without a name it is no event")
	}
	redistest.Eventually(t, soon, func() bool { return hub.client.XLen(t.Context(), deadStream(key)).Val() == 2 }, "dead letters")

	// A skipped event is not a value to read.
	named(t, hub, key, "order.other", "{")
	ctx, cancel := context.WithTimeout(t.Context(), quiet)
	defer cancel()
	_, err = r.WaitToRead(ctx)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	eventuallyPending(t, hub.client, key, 0)
	_, err = bus.Publish(t.Context(), placed{2, 2})
	require.NoError(t, err)
	ok, err = r.WaitToRead(soonCtx(t))
	require.NoError(t, err)
	require.True(t, ok)
	v, err = r.Read(soonCtx(t))
	require.NoError(t, err)
	require.Equal(t, placed{2, 2}, v)
}

// Invalid types are refused at registration or when the bus is created.
func TestEventBus_RegistryMisuse(t *testing.T) {
	t.Parallel()
	hub := newHubOf(t)
	r := registry(t, redischannels.RegistryConfig{})
	for name, err := range map[string]error{
		"name twice":  redischannels.Register[shippedTwice](r, "order.shipped"),
		"type twice":  redischannels.Register[placed](r, "order.placed.v3"),
		"no name":     redischannels.Register[shippedTwice](r, ""),
		"not an E":    redischannels.Register[int](r, "int"),
		"interface":   redischannels.Register[event](r, "event"),
		"no function": redischannels.Upcast[placedV1](r, "v0", nil),
	} {
		require.ErrorIs(t, err, redischannels.ErrInvalidArgument, name)
	}
	_, err := redischannels.NewStreamEventBus[event](hub.Hub, "k", nil, redischannels.StreamChannelConfig{})
	require.ErrorIs(t, err, redischannels.ErrInvalidArgument)
	_, err = redischannels.NewStreamEventBus[event](nil, "k", r, redischannels.StreamChannelConfig{})
	require.ErrorIs(t, err, redischannels.ErrInvalidArgument)
	_, err = redischannels.NewStreamEventBus(hub.Hub, "k", r, redischannels.StreamChannelConfig{Codec: redischannels.Bytes})
	require.ErrorIs(t, err, redischannels.ErrInvalidConfig)
	require.ErrorIs(t, redischannels.Register[placed, event](nil, "x"), redischannels.ErrInvalidArgument)

	// The zero value is an empty registry.
	var zero redischannels.Registry[event]
	require.NoError(t, redischannels.Upcast(&zero, "v1", func(placedV1) (event, error) { return placed{}, nil }))
	require.NoError(t, redischannels.Register[placed](&zero, "v2"))
	require.ErrorIs(t, redischannels.Register[shippedTwice](&zero, "v1"), redischannels.ErrInvalidArgument, "an upcast has it")

	// A bus has a copy.
	transport := gochannel.NewGoChannel(gochannel.Config{Persistent: true}, watermill.NopLogger{})
	t.Cleanup(func() { _ = transport.Close() })
	bus, err := redischannels.NewEventBus(transport, transport, "k", r, redischannels.ChannelConfig[event]{})
	require.NoError(t, err)
	require.NoError(t, redischannels.Register[shippedTwice](r, "late"))
	_, err = bus.Publish(t.Context(), shippedTwice{})
	require.ErrorIs(t, err, redischannels.ErrUnknownEvent)
	_, err = bus.Publish(t.Context(), &shipped{4})
	require.NoError(t, err)
	v, err := bus.Channel().Reader().Read(soonCtx(t))
	require.NoError(t, err)
	require.Equal(t, &shipped{4}, v)
	require.NoError(t, bus.Close())
}

// The same over Pub/Sub.
func TestEventBus_PubSub(t *testing.T) {
	t.Parallel()
	hub, name := newHubOf(t), redistest.Key(t)
	bus, err := redischannels.NewPubSubEventBus(hub.Hub, name, registry(t, redischannels.RegistryConfig{}), redischannels.PubSubChannelConfig{})
	require.NoError(t, err)
	_, _, err = bus.Channel().Reader().TryReceive()
	require.NoError(t, err)
	_, err = bus.Publish(t.Context(), &shipped{3})
	require.NoError(t, err)
	v, err := bus.Channel().Reader().Read(soonCtx(t))
	require.NoError(t, err)
	require.Equal(t, &shipped{3}, v)
}

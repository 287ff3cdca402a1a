package redischannels

import (
	"context"

	"github.com/ThreeDotsLabs/watermill/message"
)

// EventBus is a channel of events of several types, distinguished by the names of a
// [Registry] in the metadata. It is safe for concurrent use.
type EventBus[E any] struct {
	channel *Channel[E]
}

// NewStreamEventBus makes an event bus on a Redis stream: see [NewStreamChannel]. Codec
// and registry must fit; the errors are those of NewStreamChannel.
func NewStreamEventBus[E any](hub *Hub, key string, registry *Registry[E], config StreamChannelConfig) (*EventBus[E], error) {
	switch {
	case hub == nil:
		return nil, errNoHub
	case registry == nil:
		return nil, errNoRegistry
	}
	return busOf(newStreamChannel(hub, key, config, registry.coder))
}

// NewPubSubEventBus makes an event bus on a Redis Pub/Sub channel: see
// [NewPubSubChannel].
func NewPubSubEventBus[E any](hub *Hub, name string, registry *Registry[E], config PubSubChannelConfig) (*EventBus[E], error) {
	switch {
	case hub == nil:
		return nil, errNoHub
	case registry == nil:
		return nil, errNoRegistry
	}
	return busOf(newPubSubChannel(hub, name, config, registry.coder))
}

// NewEventBus makes an event bus over any Watermill publisher and subscriber: see
// [NewChannel].
func NewEventBus[E any](publisher message.Publisher, subscriber message.Subscriber, topic string, registry *Registry[E], config ChannelConfig[E]) (*EventBus[E], error) {
	if registry == nil {
		return nil, errNoRegistry
	}
	return busOf(newGenericChannel(publisher, subscriber, topic, config, registry.coder))
}

func busOf[E any](channel *Channel[E], err error) (*EventBus[E], error) {
	if err != nil {
		return nil, err
	}
	return &EventBus[E]{channel}, nil
}

// Publish writes events as [Writer.WriteAll] does. A type that is not registered is an
// error that wraps [ErrUnknownEvent] and prevents all.
func (b *EventBus[E]) Publish(ctx context.Context, events ...E) (ids []string, err error) {
	return b.channel.writer.WriteAll(ctx, events...)
}

// Handle calls fn for each event as [Reader.Handle] does.
func (b *EventBus[E]) Handle(ctx context.Context, fn func(context.Context, E) error, config HandleConfig) error {
	return b.channel.reader.Handle(ctx, fn, config)
}

// Channel returns the channel that the bus stands on, for all else that one can do
// with it.
func (b *EventBus[E]) Channel() *Channel[E] { return b.channel }

// Close closes the channel.
func (b *EventBus[E]) Close() error { return b.channel.Close() }

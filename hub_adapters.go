package redischannels

import (
	"errors"
	"fmt"
	"io"
	"reflect"
)

// adapters are the publishers or subscribers of one kind that channels of a hub use, by
// the text of their configuration, so that finding one does not take longer the more
// there are. Each is closed with the last channel that uses it. They are guarded by the
// lock of the hub.
type adapters[C any, A io.Closer] map[string]*adapter[C, A]

type adapter[C any, A io.Closer] struct {
	config C
	value  A
	users  int // channels that have not released it
}

// acquire returns the adapter for a configuration, which must not have what is the hub's,
// and the function by which the channel releases it. A configuration that equals nothing,
// since it has a function, makes an adapter for one channel.
func acquire[C any, A io.Closer](h *Hub, shared adapters[C, A], config C, build func() (A, error)) (value A, release func() error, err error) {
	key := fmt.Sprintf("%#v", config)
	h.mu.Lock()
	defer h.mu.Unlock()
	a := shared[key]
	if a == nil || !reflect.DeepEqual(a.config, config) {
		if value, err = build(); err != nil {
			return value, nil, err
		}
		a = &adapter[C, A]{config: config, value: value}
		if shared[key] == nil && reflect.DeepEqual(config, config) {
			shared[key] = a
		}
	}
	a.users++
	release = func() error {
		h.mu.Lock()
		a.users--
		last := a.users == 0
		if last && shared[key] == a {
			delete(shared, key)
		}
		h.mu.Unlock()
		if last {
			return a.value.Close()
		}
		return nil
	}
	return a.value, release, nil
}

// publisher returns the publisher for this configuration: one for all channels that
// have the same, so that their writes share pipelines.
func (h *Hub) publisher(config PublisherConfig) (*Publisher, func() error, error) {
	return acquire(h, h.publishers, config, func() (*Publisher, error) {
		config.Client = h.client
		return NewPublisher(config, h.config.Logger)
	})
}

// fanOut returns the subscriber without a group for this configuration, except for what
// each subscription has of its own or only a group has.
func (h *Hub) fanOut(config SubscriberConfig) (*Subscriber, func() error, error) {
	config.ConsumerGroup, config.Consumer, config.StartFrom = "", "", ""
	config.DeadLetterTopic, config.DeadLetterRetention = nil, Retention{}
	return acquire(h, h.fanOuts, config, func() (*Subscriber, error) { return h.subscriber(config), nil })
}

// subscriber returns a subscriber on the hub's client.
func (h *Hub) subscriber(config SubscriberConfig) *Subscriber {
	config.Client, config.OnEvent, config.OnReadClient = h.client, h.config.OnEvent, h.config.OnReadClient
	return newSubscriber(config.settings(), h.config.Logger)
}

// pubSub serves all Pub/Sub channels that differ only in what they carry: their
// subscriptions share one connection.
type pubSub struct {
	publisher  *PubSubPublisher
	subscriber *PubSubSubscriber
}

// Close implements io.Closer.
func (p pubSub) Close() error {
	return errors.Join(p.publisher.Close(), p.subscriber.Close())
}

// pubsub returns the Pub/Sub adapters for this configuration.
func (h *Hub) pubsub(config PubSubChannelConfig) (pubSub, func() error, error) {
	config.Codec = nil
	return acquire(h, h.pubsubs, config, func() (p pubSub, err error) {
		writing, reading := config.Publisher, config.Subscriber
		writing.Client, reading.Client = h.client, h.client
		reading.OnEvent, reading.OnReadClient = h.config.OnEvent, h.config.OnReadClient

		if p.publisher, err = NewPubSubPublisher(writing, h.config.Logger); err != nil {
			return p, err
		}
		p.subscriber, err = NewPubSubSubscriber(reading, h.config.Logger)
		return p, err
	})
}

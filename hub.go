package redischannels

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"reflect"
	"slices"
	"sync"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/redis/go-redis/v9"

	"github.com/flaminco/redischannels/internal/lifecycle"
)

// Hub opens channels, which share its Redis client, its publishers and its defaults. It is safe
// for concurrent use.
type Hub struct {
	client redis.UniversalClient
	owned  bool // the client was opened by Open
	config HubConfig

	life *lifecycle.State // calls are the constructors of channels

	mu         sync.Mutex
	channels   map[hubChannel]struct{}
	publishers adapters[PublisherConfig, *Publisher]
	fanOuts    adapters[SubscriberConfig, *Subscriber]
	pubsubs    adapters[PubSubChannelConfig, pubSub]
}

// hubChannel is a Channel of any type.
type hubChannel interface {
	Close() error
	Stats() []SubscriptionStats
}

// HubConfig configures [Open] and [NewHub]: the common settings of its channels. The zero value
// is valid.
type HubConfig struct {
	// Codec is the codec of channels without their own. Defaults to JSON.
	Codec Codec

	// Stream has the defaults of stream channels: each zero field of a channel's configuration is
	// copied from here, in nested configurations too. A Backoff, a Retention and a Durability are
	// copied as a whole. A channel can thus replace a default, or turn it off by the constant
	// that its field names, but cannot set it to zero.
	Stream StreamChannelConfig

	// PubSub has the defaults of Pub/Sub channels in the same way.
	PubSub PubSubChannelConfig

	// OnEvent receives the events of all channels of the hub, from several goroutines at once. It
	// should return soon, and must not close a channel or the hub (start a goroutine for that).
	// The end of each subscription waits at most 5 s for it; later events are only logged. A
	// panic in it is recovered. Defaults to none: events are only logged.
	OnEvent func(Event)

	// Instrumentation observes the messages of all channels of the hub. Defaults to none.
	Instrumentation Instrumentation

	// OnReadClient receives every client that is opened for blocking reads, and for other
	// commands that must not wait for connections of the hub's client, before it is used, so
	// that hooks for tracing or metrics can be added. Defaults to none.
	OnReadClient func(*redis.Client)

	// SideKeys is that of PublisherConfig, for all stream channels of the hub.
	SideKeys func(topic string) string

	// Logger receives the log. Defaults to slog.Default() for errors and for one Info line when a
	// channel subscribes; watermill.NopLogger writes nothing.
	Logger watermill.LoggerAdapter
}

// Validate reports every problem of the configuration in one joined error. Each names
// its field and wraps [ErrInvalidConfig].
func (c HubConfig) Validate() error {
	v := validation{prefix: "HubConfig"}
	v.within("Stream", c.Stream.validatePart)
	v.within("PubSub", c.PubSub.validatePart)
	return v.err()
}

// Open connects to Redis and returns a hub that closes the connection on Close. It sends a PING,
// so that a wrong address is an error here. [NewRedisClient] lists the valid URLs. The error
// wraps [ErrInvalidArgument] or [ErrInvalidConfig], or is that of the connection.
func Open(ctx context.Context, rawURL string, config HubConfig) (*Hub, error) {
	if err := config.Validate(); err != nil {
		return nil, err
	}
	client, err := NewRedisClient(rawURL)
	if err != nil {
		return nil, err
	}
	if err := client.Ping(ctx).Err(); err != nil {
		return nil, errors.Join(fmt.Errorf("redischannels: open: %w", redisError(err)), client.Close())
	}
	hub, err := NewHub(client, config)
	if err != nil {
		return nil, errors.Join(err, client.Close())
	}
	hub.owned = true
	return hub, nil
}

// NewHub returns a hub on a client of the caller, which is never closed: a *redis.Client, also
// from redis.NewFailoverClient, or a *redis.ClusterClient. It sends no commands to Redis. The
// errors wrap [ErrInvalidArgument] or [ErrInvalidConfig].
func NewHub(client redis.UniversalClient, config HubConfig) (*Hub, error) {
	err := config.Validate()
	if problem := supportedClient(client); problem != nil {
		err = errors.Join(invalidArgument("client", problem), err)
	}
	if err != nil {
		return nil, err
	}
	config.Logger = loggerOrDefault(config.Logger)
	config.Stream, config.PubSub = config.Stream.withFormat(), config.PubSub.withFormat()
	return &Hub{
		client:     client,
		config:     config,
		life:       lifecycle.New(fmt.Errorf("redischannels: hub: %w", ErrClosed)),
		channels:   make(map[hubChannel]struct{}),
		publishers: make(adapters[PublisherConfig, *Publisher]),
		fanOuts:    make(adapters[SubscriberConfig, *Subscriber]),
		pubsubs:    make(adapters[PubSubChannelConfig, pubSub]),
	}, nil
}

// Client returns the Redis client of the hub, for other uses such as [NewDeadLetters]. Close of
// the hub closes a client that [Open] has created.
func (h *Hub) Client() redis.UniversalClient { return h.client }

// Close closes all channels of the hub at once, as [Channel.Close] does, and then the Redis
// client if [Open] has created it. It returns when no goroutine and no connection of the hub is
// left. It may be called several times, and from anywhere but OnEvent. Its error is that of
// closing the connections, or [ErrCloseTimeout] as of [Channel.Close].
func (h *Hub) Close() error {
	return h.life.Close(h.stop)
}

func (h *Hub) stop() error {
	<-h.life.Idle() // the list is complete
	h.mu.Lock()
	channels := slices.Collect(maps.Keys(h.channels))
	h.mu.Unlock()

	var errs []error
	var mu sync.Mutex
	var closing sync.WaitGroup
	for _, channel := range channels {
		closing.Go(func() {
			err := channel.Close()
			mu.Lock()
			errs = append(errs, err)
			mu.Unlock()
		})
	}
	closing.Wait()
	if h.owned {
		errs = append(errs, h.client.Close())
	}
	return errors.Join(errs...)
}

// add registers a channel for Close.
func (h *Hub) add(channel hubChannel) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.channels[channel] = struct{}{}
}

func (h *Hub) remove(channel hubChannel) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.channels, channel)
}

// adapters are the publishers or subscribers of one kind that channels of a hub use, by the text
// of their configuration, so that the time to find one does not depend on their number. Each is
// closed with the last channel that uses it. The lock of the hub guards them.
type adapters[C any, A io.Closer] map[string]*adapter[C, A]

type adapter[C any, A io.Closer] struct {
	config C
	value  A
	users  int // channels that have not released it
}

// acquire returns the adapter for a configuration without the settings of the hub, and the
// function by which the channel releases it. A configuration that equals no other, because it has
// a function, gets an adapter for one channel.
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

// publisher returns the publisher for this configuration. Channels with equal configurations
// share it, so that their writes share pipelines.
func (h *Hub) publisher(config PublisherConfig) (*Publisher, func() error, error) {
	return acquire(h, h.publishers, config, func() (*Publisher, error) {
		config.Client, config.SideKeys, config.Instrumentation = h.client, h.config.SideKeys, h.config.Instrumentation
		return NewPublisher(config, h.config.Logger)
	})
}

// fanOut returns the subscriber without a group for this configuration, except for settings of a
// single subscription or of a group.
func (h *Hub) fanOut(config SubscriberConfig) (*Subscriber, func() error, error) {
	config.ConsumerGroup, config.Consumer, config.StartFrom = "", "", ""
	config.DeadLetterTopic, config.DeadLetterRetention = nil, Retention{}
	return acquire(h, h.fanOuts, config, func() (*Subscriber, error) { return h.subscriber(config), nil })
}

// subscriber returns a subscriber on the hub's client.
func (h *Hub) subscriber(config SubscriberConfig) *Subscriber {
	config.Client, config.OnEvent, config.OnReadClient = h.client, h.config.OnEvent, h.config.OnReadClient
	config.SideKeys, config.Instrumentation = h.config.SideKeys, h.config.Instrumentation
	return newSubscriber(config.settings(), h.config.Logger)
}

// pubSub serves all Pub/Sub channels that differ only in their codec: their subscriptions share
// one connection.
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
		writing.Instrumentation, reading.Instrumentation = h.config.Instrumentation, h.config.Instrumentation
		reading.OnEvent, reading.OnReadClient = h.config.OnEvent, h.config.OnReadClient

		if p.publisher, err = NewPubSubPublisher(writing, h.config.Logger); err != nil {
			return p, err
		}
		p.subscriber, err = NewPubSubSubscriber(reading, h.config.Logger)
		return p, err
	})
}

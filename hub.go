package redischannels

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/redis/go-redis/v9"

	"github.com/flaminco/redischannels/internal/lifecycle"
)

// Hub is where channels come from: they share its Redis client, its publishers and its
// defaults. It is safe for concurrent use.
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

// HubConfig configures [Open] and [NewHub]: what its channels have in common. The zero
// value works.
type HubConfig struct {
	// Codec of the channels that have none of their own. Defaults to JSON.
	Codec Codec

	// Stream has the defaults of stream channels: a field that is zero in the
	// configuration of a channel is taken from here, in nested configurations too. A
	// Backoff, a Retention and a Durability are taken as a whole. So a channel can replace
	// a default, and turn it off by the constant that its field names, but cannot set it
	// back to zero.
	Stream StreamChannelConfig

	// PubSub has the defaults of Pub/Sub channels in the same way.
	PubSub PubSubChannelConfig

	// OnEvent receives the events of all channels of the hub, from several goroutines at
	// once: it should return soon and must not close anything (start a goroutine for
	// that). The end of each subscription waits at most 5 s for it: what OnEvent has not
	// received by then is only logged. A panic in it is recovered. Defaults to none: events
	// are only logged.
	OnEvent func(Event)

	// OnReadClient receives every client that is opened for blocking reads, and for other
	// commands that must not wait for connections of the hub's client, before it is used, so
	// that hooks for tracing or metrics can be added. Defaults to none.
	OnReadClient func(*redis.Client)

	// Logger receives the log. Defaults to slog.Default() for errors and for one Info line
	// when a channel subscribes; watermill.NopLogger is silence.
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

// Open connects to Redis and returns a hub that closes the connection on Close. It
// sends a PING, so that a wrong address is an error here. [NewRedisClient] says which URLs
// it understands. The error wraps [ErrInvalidArgument] or [ErrInvalidConfig], or is the one
// of the connection.
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

// NewHub returns a hub on a client of the caller, which is never closed: a
// *redis.Client, also from redis.NewFailoverClient, or a *redis.ClusterClient. It does
// not talk to Redis. The errors wrap [ErrInvalidArgument] or [ErrInvalidConfig].
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

// Client returns the Redis client of the hub, for what else the program does in Redis, for
// example with [NewDeadLetters]. Close of the hub closes one that [Open] has made.
func (h *Hub) Client() redis.UniversalClient { return h.client }

// Close closes all channels of the hub at once, as [Channel.Close] does, and then the
// Redis client if [Open] has made it. It returns when nothing of the hub is left. It may
// be called often and from anywhere but OnEvent; the error is that of closing the
// connections.
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

// add makes Close close a channel.
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

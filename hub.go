package redischannels

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"reflect"
	"strings"
	"sync"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/redis/go-redis/v9"
)

// Hub is where channels come from: they share its Redis client, its publishers and its
// defaults. It is safe for concurrent use.
type Hub struct {
	client redis.UniversalClient
	owned  bool // the client was opened by Open
	config HubConfig

	mu         sync.Mutex
	closed     bool
	channels   map[interface{ Close() error }]struct{}
	publishers shared[PublisherConfig, *Publisher]
	fanOuts    shared[SubscriberConfig, *Subscriber]
	pubsubs    shared[PubSubChannelConfig, pubSub]
	closing    sync.Once
	closeErr   error
}

// shared is what channels with equal configurations have together.
type shared[C, V any] []struct {
	config C
	value  V
}

// pubSub serves all Pub/Sub channels that differ only in what they carry: their
// subscriptions share one connection.
type pubSub struct {
	publisher  *PubSubPublisher
	subscriber *PubSubSubscriber
}

// Open connects to Redis and returns a hub that closes the connection on Close. It
// sends a PING, so that a wrong address is an error here. The URL is read by go-redis:
//
//	redis://user:password@host:6379/0        one server; rediss:// with TLS, unix:///path
//	redis+cluster://host:6379                a cluster, more nodes by ?addr=host2:6379&addr=...;
//	                                         also redis:// with addr
//	redis+sentinel://host:26379/0?master_name=name
//	                                         Sentinel, more sentinels by addr; also redis://
//	                                         with master_name
//
// rediss+cluster:// and rediss+sentinel:// use TLS. The settings of the client are
// parameters by the names that go-redis gives them, such as pool_size and read_timeout.
func Open(ctx context.Context, rawURL string, config HubConfig) (*Hub, error) {
	if err := config.Validate(); err != nil {
		return nil, err
	}
	client, err := openClient(rawURL)
	if err != nil {
		return nil, invalidArgument("URL of Redis", err)
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

// errBehindHost is the error of a URL whose password ends before its @: at the first / ? or #
// in it the address seems to begin, and the rest of it would be told as part of the path.
var errBehindHost = errors.New("there is an @ behind the host: write the characters / ? # @ of a password as %2F %3F %23 %40")

// openClient makes the client that a URL describes. Its errors have no part of the URL,
// which may hold a password.
func openClient(rawURL string) (redis.UniversalClient, error) {
	u, err := url.Parse(rawURL)
	if err != nil {
		return nil, errors.New("cannot be parsed")
	}
	scheme, kind, _ := strings.Cut(u.Scheme, "+")
	query := u.Query()
	switch {
	case kind != "":
	case query.Has("master_name"):
		kind = "sentinel"
	case query.Has("addr"):
		kind = "cluster"
	}
	u.Scheme = scheme
	if scheme != "unix" && strings.Contains(u.Path+u.Fragment, "@") {
		return nil, errBehindHost
	}
	// The parsers quote a path or a parameter that they do not understand.
	refused := func(err error) error {
		if strings.Contains(u.RawQuery, "@") {
			return errBehindHost
		}
		return err
	}
	switch kind {
	case "":
		options, err := redis.ParseURL(u.String())
		if err != nil {
			return nil, refused(err)
		}
		return redis.NewClient(options), nil
	case "cluster":
		options, err := redis.ParseClusterURL(u.String())
		if err != nil {
			return nil, refused(err)
		}
		return redis.NewClusterClient(options), nil
	case "sentinel":
		options, err := redis.ParseFailoverURL(u.String())
		if err != nil {
			return nil, refused(err)
		}
		if options.MasterName == "" {
			return nil, errors.New("sentinel needs the parameter master_name")
		}
		return redis.NewFailoverClient(options), nil
	default:
		return nil, fmt.Errorf("the scheme %s+%s is none of redis, rediss, unix, and redis+cluster, redis+sentinel", scheme, kind)
	}
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
	if config.Logger == nil {
		config.Logger = watermill.NopLogger{}
	}
	return &Hub{client: client, config: config, channels: make(map[interface{ Close() error }]struct{})}, nil
}

// Close closes all channels of the hub, which ends and drains their readers as
// [Reader.Close] tells, then lets the writes under way come to their end, and closes
// the Redis client if [Open] has made it. It returns when nothing of the hub is left.
// It may be called often and from anywhere but OnEvent; the error is that of closing
// the connections.
func (h *Hub) Close() error {
	h.closing.Do(func() { h.closeErr = h.close() })
	return h.closeErr
}

func (h *Hub) close() error {
	h.mu.Lock()
	h.closed = true
	channels, publishers, fanOuts, pubsubs := h.channels, h.publishers, h.fanOuts, h.pubsubs
	h.channels, h.publishers, h.fanOuts, h.pubsubs = nil, nil, nil, nil
	h.mu.Unlock()

	var errs []error
	var mu sync.Mutex
	var closing sync.WaitGroup
	for channel := range channels {
		closing.Go(func() {
			err := channel.Close()
			mu.Lock()
			errs = append(errs, err)
			mu.Unlock()
		})
	}
	closing.Wait()
	for _, p := range publishers {
		errs = append(errs, p.value.Close())
	}
	for _, f := range fanOuts {
		errs = append(errs, f.value.Close())
	}
	for _, p := range pubsubs {
		errs = append(errs, p.value.publisher.Close(), p.value.subscriber.Close())
	}
	if h.owned {
		errs = append(errs, h.client.Close())
	}
	return errors.Join(errs...)
}

// add makes Close close a channel.
func (h *Hub) add(channel interface{ Close() error }) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return fmt.Errorf("redischannels: hub: %w", ErrClosed)
	}
	h.channels[channel] = struct{}{}
	return nil
}

func (h *Hub) remove(channel interface{ Close() error }) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.channels, channel)
}

// share returns what of a list was made for this configuration, or makes it.
func share[C, V any](h *Hub, list *shared[C, V], config C, build func() (V, error)) (value V, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return value, fmt.Errorf("redischannels: hub: %w", ErrClosed)
	}
	for _, s := range *list {
		if reflect.DeepEqual(s.config, config) {
			return s.value, nil
		}
	}
	if value, err = build(); err == nil {
		*list = append(*list, struct {
			config C
			value  V
		}{config, value})
	}
	return value, err
}

// publisher returns the publisher for this configuration: one for all channels that
// have the same, so that their writes share pipelines.
func (h *Hub) publisher(config PublisherConfig) (*Publisher, error) {
	return share(h, &h.publishers, config, func() (*Publisher, error) {
		return NewPublisher(config, h.config.Logger)
	})
}

// fanOut returns the subscriber without a group for this configuration, but for what each
// subscription has of its own or only a group has.
func (h *Hub) fanOut(config SubscriberConfig) (*Subscriber, error) {
	config.ConsumerGroup, config.Consumer, config.StartFrom = "", "", ""
	config.DeadLetterTopic, config.DeadLetterRetention = nil, Retention{}
	key := config
	key.OnEvent, key.OnReadClient = nil, nil // those of the hub; functions cannot be compared
	return share(h, &h.fanOuts, key, func() (*Subscriber, error) {
		return NewSubscriber(config, h.config.Logger)
	})
}

// pubsub returns the Pub/Sub adapters for this configuration.
func (h *Hub) pubsub(config PubSubChannelConfig) (pubSub, error) {
	config.Codec = nil
	return share(h, &h.pubsubs, config, func() (p pubSub, err error) {
		writing, reading := config.publisher(), config.subscriber()
		writing.Client, reading.Client = h.client, h.client
		reading.OnEvent, reading.OnReadClient = h.config.OnEvent, h.config.OnReadClient
		if p.publisher, err = NewPubSubPublisher(writing, h.config.Logger); err != nil {
			return p, err
		}
		p.subscriber, err = NewPubSubSubscriber(reading, h.config.Logger)
		return p, err
	})
}

// report tells OnEvent what readers find out themselves.
func (h *Hub) report(e Event) {
	h.config.Logger.Error("Channel: "+e.Kind.String(), e.Err, watermill.LogFields{"topic": e.Topic, "consumer_group": e.Group, "count": e.Count})
	tellEvent(h.config.OnEvent, h.config.Logger, e)
}

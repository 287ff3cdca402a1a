package redischannels

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"

	"github.com/flaminco/redischannels/internal/lifecycle"
	"github.com/flaminco/redischannels/internal/pubsub"
)

var _ message.Subscriber = (*PubSubSubscriber)(nil)

// PubSubSubscriber receives messages from Redis Pub/Sub. It implements Watermill's
// message.Subscriber and is safe for concurrent use. All its subscriptions share one connection,
// or with Sharded in a cluster one per node that owns a channel.
//
// Delivery is at most once. A message is lost if it is published without a subscription, while
// the connection is lost, or while the buffer of a slow handler is full. The library reports the
// last two losses by events.
type PubSubSubscriber struct {
	cfg     PubSubSubscriberConfig
	logger  watermill.LoggerAdapter
	mux     *pubsub.Mux
	reports *eventQueue
	life    *lifecycle.State // Subscribe calls, and subscriptions

	down       atomic.Bool   // the connection is lost
	reconnects atomic.Uint64 // outages that are over

	mu   sync.Mutex
	subs map[*pubSubSubscription]struct{}
}

// NewPubSubSubscriber checks the configuration and returns a subscriber. It sends no commands to
// Redis and starts no goroutine; Subscribe does. With a nil logger, errors are written to
// slog.Default(); watermill.NopLogger writes nothing. The error joins one for each invalid field,
// which wraps [ErrInvalidConfig].
func NewPubSubSubscriber(config PubSubSubscriberConfig, logger watermill.LoggerAdapter) (*PubSubSubscriber, error) {
	if err := config.Validate(); err != nil {
		return nil, err
	}
	s := &PubSubSubscriber{
		cfg:    config.withDefaults(),
		logger: loggerOrDefault(logger),
		life:   lifecycle.New(ErrClosed),
		subs:   make(map[*pubSubSubscription]struct{}),
	}
	s.reports = newEventQueue(s.log, s.cfg.OnEvent, s.logger, true)
	s.mux = pubsub.New(pubsub.Config{
		Client:         s.cfg.Client,
		HealthInterval: s.cfg.HealthInterval,
		MaxPayload:     max(s.cfg.MaxPayload, 0),
		OnClient:       s.cfg.OnReadClient,
		Notify:         s.notice,
	})
	return s, nil
}

// Subscribe subscribes to the channel of a topic and returns the Go channel of its messages. When
// it returns, Redis has confirmed the subscription: messages published from then on are received.
// With Patterns the topic may be a pattern.
//
// Every message must be acked or nacked. After an Ack the next one is delivered. A nacked message
// is redelivered after NackBackoff, from memory, with a new context each time, until
// MaxDeliveries; then it is skipped. Its context has the values of ctx, and those that
// [TopicFromContext] and [DeliveryCountFromContext] return. It ends with the Ack or the Nack, or
// when the end of the subscription reaches DrainTimeout.
//
// The Go channel is closed when ctx ends or Close is called, after the messages in flight have
// ended or DrainTimeout has passed; messages in the buffer are then lost. Nothing else ends it:
// after an outage, which is reported, it resumes. Subscriptions are independent of each other.
// Two subscriptions of the same topic both receive every message.
//
// The error wraps [ErrInvalidArgument], [ErrClosed], [ErrPermission], [ErrUnsupportedServer], is
// the one of the connection, or, when Redis has not confirmed within SubscribeTimeout,
// [context.DeadlineExceeded]. In a cluster it wraps [ErrNotSupported] for keyspace notifications,
// which only the node of the key publishes: use one subscriber with a *redis.Client for each
// master.
func (s *PubSubSubscriber) Subscribe(ctx context.Context, topic string) (<-chan *message.Message, error) {
	return s.SubscribeAll(ctx, topic)
}

// SubscribeAll is Subscribe for several topics, or patterns, in one subscription. A message that
// several of them match is delivered once. In events about its messages Event.Topic has all the
// topics, with commas, or the first five of many.
func (s *PubSubSubscriber) SubscribeAll(ctx context.Context, topics ...string) (<-chan *message.Message, error) {
	if len(topics) == 0 {
		return nil, invalidArgument("topics", errEmpty)
	}
	for _, topic := range topics {
		if err := validateTopic(topic); err != nil {
			return nil, err
		}
	}
	label := topicLabel(topics)
	names := s.names(topics)
	if err := s.checkNames(names); err != nil {
		return nil, err
	}
	if err := s.life.Enter(); err != nil {
		return nil, fmt.Errorf("redischannels: subscribe to topic %q: subscriber: %w", label, err)
	}
	defer s.life.Leave()

	sub := s.newSubscription(ctx, label)
	if err := s.open(ctx, sub, names); err != nil {
		return nil, fmt.Errorf("redischannels: subscribe to topic %q: %w", label, err)
	}
	p := &pump{src: sub, decode: s.message, strict: s.cfg.MaxInFlight == 1, out: make(chan *message.Message)}
	detach := context.AfterFunc(ctx, sub.Stop)
	s.life.Go(func() {
		p.run()
		s.finish(sub)
		detach()
		close(p.out)
	})
	return p.out, nil
}

// source is Subscribe for a Reader: the subscription lasts until it is closed, or until Close of
// the PubSubSubscriber.
func (s *PubSubSubscriber) source(ctx context.Context, topic string) (*pubSubSubscription, error) {
	if err := s.life.Enter(); err != nil {
		return nil, fmt.Errorf("redischannels: subscribe to topic %q: subscriber: %w", topic, err)
	}
	defer s.life.Leave()
	names := s.names([]string{topic})
	if err := s.checkNames(names); err != nil {
		return nil, err
	}
	sub := s.newSubscription(ctx, topic)
	if err := s.open(ctx, sub, names); err != nil {
		return nil, fmt.Errorf("redischannels: subscribe to topic %q: %w", topic, err)
	}
	s.life.Go(func() { s.finish(sub) })
	return sub, nil
}

// finish waits for the end of a subscription.
func (s *PubSubSubscriber) finish(sub *pubSubSubscription) {
	<-sub.Done()
	sub.detach()
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.subs, sub)
}

// Stats returns the state of the subscriptions that have not ended, by topic. It sends no
// commands to Redis: see [Subscriber.Stats].
func (s *PubSubSubscriber) Stats() []SubscriptionStats {
	s.mu.Lock()
	subs := slices.Collect(maps.Keys(s.subs))
	s.mu.Unlock()
	return statsOf(subs)
}

// open waits until a subscription is live, or ends it. Close ends the wait and the subscription.
func (s *PubSubSubscriber) open(ctx context.Context, sub *pubSubSubscription, names []pubsub.Name) error {
	if err := ctx.Err(); err != nil {
		sub.Abort()
		return err
	}
	wait, cancel := context.WithTimeout(ctx, s.cfg.SubscribeTimeout)
	defer cancel()
	defer context.AfterFunc(s.life.Context(), cancel)()
	err := sub.Open(wait, names)
	if err == nil {
		if err = cmp.Or(ctx.Err(), s.life.Err()); err != nil {
			_ = sub.Close(context.Background()) // it has delivered nothing
		}
	}
	switch {
	case err == nil:
		sub.detach = context.AfterFunc(s.life.Context(), sub.Stop)
		s.mu.Lock()
		s.subs[sub] = struct{}{}
		s.mu.Unlock()
		return nil
	case s.life.Err() != nil, errors.Is(err, pubsub.ErrClosed):
		return fmt.Errorf("subscriber: %w", ErrClosed)
	case errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil:
		return fmt.Errorf("redis has not confirmed within %v: %w", s.cfg.SubscribeTimeout, err)
	}
	if err = redisError(err); s.cfg.Sharded && errors.Is(err, ErrUnsupportedServer) {
		err = fmt.Errorf("shard channels need redis 7: %w", err)
	}
	return err
}

// Close ends all subscriptions: it stops receiving, waits up to DrainTimeout for the messages in
// flight and closes the Go channels. It returns when every connection and goroutine has ended and
// every event was reported, whether or not the application still receives. It waits at most 5 s
// for an OnEvent that does not return. The Redis client stays open. Close may be called several
// times, and from anywhere but OnEvent. It returns [ErrCloseTimeout] 20 s after DrainTimeout.
func (s *PubSubSubscriber) Close() error {
	return s.life.CloseWithin(s.cfg.DrainTimeout, func() error {
		<-s.life.Idle()
		s.mux.Close()
		s.reports.Close()
		return nil
	})
}

// topicLabel names a subscription in events, logs and errors.
func topicLabel(topics []string) string {
	const most = 5
	if len(topics) <= most {
		return strings.Join(topics, ",")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(topics[:most], ","), len(topics)-most)
}

// names are the channels and patterns of topics, each once.
func (s *PubSubSubscriber) names(topics []string) []pubsub.Name {
	names := make([]pubsub.Name, 0, len(topics))
	seen := make(map[pubsub.Name]bool, len(topics))
	for _, topic := range topics {
		name := pubsub.Name{Kind: pubsub.Channel, Text: s.cfg.ChannelPrefix + topic}
		switch {
		case s.cfg.Sharded:
			name.Kind = pubsub.Shard
		case s.cfg.Patterns && strings.ContainsAny(topic, globCharacters):
			name.Kind, name.Text = pubsub.Pattern, globQuote.Replace(s.cfg.ChannelPrefix)+topic
		}
		if !seen[name] {
			seen[name] = true
			names = append(names, name)
		}
	}
	return names
}

// notifications are the beginnings of the channels of keyspace notifications.
var notifications = [...]string{"__keyspace@", "__keyevent@"}

// checkNames refuses names whose messages are not distributed in a cluster: a subscription is on
// one node, and would receive only a part of them.
func (s *PubSubSubscriber) checkNames(names []pubsub.Name) error {
	if _, cluster := s.cfg.Client.(*redis.ClusterClient); !cluster || s.cfg.Sharded {
		return nil
	}
	for _, name := range names {
		text := name.Text
		if name.Kind == pubsub.Pattern {
			text = text[:max(0, strings.IndexAny(text, globCharacters))]
		}
		for _, prefix := range notifications {
			if strings.HasPrefix(text, prefix) || name.Kind == pubsub.Pattern && text != "" && strings.HasPrefix(prefix, text) {
				return fmt.Errorf("redischannels: subscribe to %q: a node of a cluster publishes keyspace notifications to its own "+
					"subscribers only, subscribe with a *redis.Client of each master: %w", s.topic(name), ErrNotSupported)
			}
		}
	}
	return nil
}

// Special characters in a pattern of Redis.
const globCharacters = `*?[\`

var globQuote = strings.NewReplacer(`*`, `\*`, `?`, `\?`, `[`, `\[`, `\`, `\\`)

// topic returns the topic of a name; it is the inverse of names.
func (s *PubSubSubscriber) topic(name pubsub.Name) string {
	prefix := s.cfg.ChannelPrefix
	if name.Kind == pubsub.Pattern {
		prefix = globQuote.Replace(prefix)
	}
	return strings.TrimPrefix(name.Text, prefix)
}

// notice converts the reports of the mux to events. It is called under the lock of the mux.
func (s *PubSubSubscriber) notice(n pubsub.Notice) {
	switch n.Kind {
	case pubsub.Down:
		s.down.Store(true)
		s.reports.Post(Event{Kind: EventDisconnected, Err: redisError(n.Err)})
	case pubsub.Up:
		s.down.Store(false)
		s.reconnects.Add(1)
		s.reports.Post(Event{Kind: EventReconnected, Duration: n.Duration})
	case pubsub.Gap:
		s.reports.Post(Event{Kind: EventInterrupted, Topic: s.topic(n.Name), Duration: n.Duration})
	case pubsub.Refused:
		s.reports.Post(Event{Kind: EventError, Topic: s.topic(n.Name), Err: redisError(n.Err)})
	}
}

// log writes an event to the logger.
func (s *PubSubSubscriber) log(e Event) {
	fields := watermill.LogFields{}
	if e.Topic != "" {
		fields["topic"] = e.Topic
	}
	if e.Count > 0 {
		fields["messages"] = e.Count
	}
	if e.Duration > 0 {
		fields["duration"] = e.Duration.String()
	}
	text := "Redis Pub/Sub subscription: " + e.Kind.String()
	switch e.Kind {
	case EventReconnected, EventAbandoned:
		s.logger.Info(text, fields)
	default:
		s.logger.Error(text, e.Err, fields)
	}
}

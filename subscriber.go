package redischannels

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"os"
	"sync"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/flaminco/redischannels/internal/lifecycle"
	"github.com/flaminco/redischannels/internal/source"
	"github.com/flaminco/redischannels/internal/stream"
	"github.com/flaminco/redischannels/internal/tail"
)

var (
	_ message.Subscriber           = (*Subscriber)(nil)
	_ message.SubscribeInitializer = (*Subscriber)(nil)
)

// Subscriber reads topics from Redis Streams, in a consumer group or, without one, as fan-out. It
// implements Watermill's message.Subscriber. It is safe for concurrent use. Each subscription in
// a group opens at most one connection for reading, and one for renewing leases while it has
// messages. Subscriptions without a group share one per 256 topics, in Redis Cluster per hash
// slot.
type Subscriber struct {
	cfg     subscriberSettings
	logger  watermill.LoggerAdapter
	readers *tail.Readers // of fan-out
	life    *lifecycle.State

	mu   sync.Mutex
	subs map[*subscription]struct{}
}

// NewSubscriber checks the configuration and returns a subscriber. It sends no commands to Redis
// and starts no goroutine; Subscribe does. With a nil logger, errors and one Info line per
// Subscribe are written to slog.Default(); watermill.NopLogger writes nothing. The error joins
// one for each invalid field, which wraps [ErrInvalidConfig].
func NewSubscriber(config SubscriberConfig, logger watermill.LoggerAdapter) (*Subscriber, error) {
	if err := config.Validate(); err != nil {
		return nil, err
	}
	return newSubscriber(config.settings(), logger), nil
}

func newSubscriber(settings subscriberSettings, logger watermill.LoggerAdapter) *Subscriber {
	return &Subscriber{
		cfg:    settings,
		logger: loggerOrDefault(logger),
		readers: tail.NewReaders(tail.Config{
			Client: settings.Client, BlockTime: settings.Tuning.BlockTime, PageBytes: settings.Tuning.PrefetchBytes,
			OnReadClient: settings.OnReadClient,
		}),
		life: lifecycle.New(fmt.Errorf("subscriber: %w", ErrClosed)),
		subs: make(map[*subscription]struct{}),
	}
}

// Subscribe starts to consume a topic and returns the channel of its messages. When it returns,
// the subscription is live: it receives every message published from then on, and in a consumer
// group also earlier messages, from StartFrom.
//
// Every message must be acked or nacked. A nacked message is redelivered after NackBackoff, until
// MaxDeliveries. Its context has the values of ctx, and those that [EntryIDFromContext] and
// similar functions return. It ends with the Ack or the Nack, when another consumer has claimed
// the entry, or when the end of the subscription reaches DrainTimeout.
//
// The channel is closed when ctx ends or Close is called, after the messages in flight have ended
// or DrainTimeout has passed. Nothing else ends it: after an outage, which is reported by events,
// it resumes.
//
// The error wraps [ErrInvalidArgument], [ErrInvalidConfig] (an invalid result of DeadLetterTopic
// for the topic), [ErrClosed], [ErrPermission], [ErrWrongType], [ErrUnsupportedServer], or is
// that of the connection.
func (s *Subscriber) Subscribe(ctx context.Context, topic string) (<-chan *message.Message, error) {
	return s.SubscribeFrom(ctx, topic, s.cfg.StartFrom)
}

// SubscribeFrom is Subscribe with from instead of StartFrom. In a consumer group it has an effect
// only if the group does not exist yet. Without a group, EventGap reports entries after the
// position that were trimmed.
func (s *Subscriber) SubscribeFrom(ctx context.Context, topic string, from Position) (<-chan *message.Message, error) {
	sub, err := s.open(ctx, topic, from, sourceOptions{})
	if err != nil {
		return nil, err
	}
	p := &pump{
		src: sub, decode: sub.message, strict: s.cfg.MaxInFlight == 1,
		out: make(chan *message.Message),
	}
	s.pump(ctx, sub, p.run, func() { close(p.out) })
	return p.out, nil
}

// pump calls run, which sends the messages of a subscription until ctx ends. At the end of the
// subscription it calls end.
func (s *Subscriber) pump(ctx context.Context, sub *subscription, run, end func()) {
	detach := context.AfterFunc(ctx, sub.Stop)
	go func() {
		defer s.life.Leave()
		run()
		s.finish(sub)
		detach()
		end()
	}()
}

// source is Subscribe for a Reader: the source lasts until it is closed, or until Close of the
// Subscriber.
func (s *Subscriber) source(ctx context.Context, topic string, from Position, options sourceOptions) (source.Source, error) {
	sub, err := s.open(ctx, topic, from, options)
	if err != nil {
		return nil, err
	}
	go func() {
		defer s.life.Leave()
		s.finish(sub)
	}()
	return sub, nil
}

// finish waits for the end of a subscription.
func (s *Subscriber) finish(sub *subscription) {
	<-sub.Done()
	sub.detach()
	sub.end()
	s.mu.Lock()
	delete(s.subs, sub)
	s.mu.Unlock()
	close(sub.finished)
}

// open opens a subscription, for which life.Leave must be called when it has ended.
func (s *Subscriber) open(ctx context.Context, topic string, from Position, options sourceOptions) (*subscription, error) {
	if err := validateTopic(topic); err != nil {
		return nil, err
	}
	if err := from.validate(); err != nil {
		return nil, invalidArgument("from", err)
	}
	if err := s.life.Enter(); err != nil {
		return nil, fmt.Errorf("redischannels: %w", err)
	}
	sub, err := s.start(ctx, topic, from.or(s.cfg.StartFrom), options)
	if err != nil {
		if closed := s.life.Err(); closed != nil {
			err = closed
		}
		s.life.Leave()
		return nil, fmt.Errorf("redischannels: subscribe to topic %q: %w", topic, redisError(err))
	}
	return sub, nil
}

// start is open within a call.
func (s *Subscriber) start(ctx context.Context, topic string, from Position, options sourceOptions) (*subscription, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	sub, err := s.newSubscription(ctx, topic, from, options)
	if err != nil {
		return nil, err
	}
	opening, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.life.Context(), cancel)()
	if err := sub.start(opening, from); err != nil {
		sub.end()
		return nil, err
	}
	if s.cfg.ConsumerGroup == "" { // in a group the claim scan checks the topic
		lookOnce(sub.keeper, topic, s.cfg.SideKeys, s.cfg.caller)
	}
	s.mu.Lock()
	s.subs[sub] = struct{}{}
	s.mu.Unlock()
	sub.detach = context.AfterFunc(s.life.Context(), sub.Stop)
	if err := ctx.Err(); err != nil {
		sub.Stop()
		s.finish(sub)
		return nil, err
	}
	return sub, nil
}

// SubscribeInitialize creates the consumer group, and the stream, so that the group receives
// messages published before the first Subscribe. Without a group it does nothing.
func (s *Subscriber) SubscribeInitialize(topic string) error {
	if err := validateTopic(topic); err != nil {
		return err
	}
	if err := s.life.Enter(); err != nil {
		return fmt.Errorf("redischannels: %w", err)
	}
	defer s.life.Leave()
	if s.cfg.ConsumerGroup == "" {
		return nil
	}
	of, err := sideKeys(topic, s.cfg.SideKeys, s.cfg.Client)
	if err != nil {
		return err
	}
	for key, start := range map[string]string{topic: s.cfg.StartFrom.groupStart(), of.Return(s.cfg.ConsumerGroup): stream.ID{}.String()} {
		group := &stream.Group{Client: s.cfg.Client, Key: key, Name: s.cfg.ConsumerGroup}
		if _, err := group.Ensure(s.life.Context(), start); err != nil {
			if closed := s.life.Err(); closed != nil {
				return fmt.Errorf("redischannels: %w", closed)
			}
			return fmt.Errorf("redischannels: create group %q of %q: %w", s.cfg.ConsumerGroup, key, redisError(err))
		}
	}
	return nil
}

// Close ends all subscriptions: it stops reading, releases undelivered messages to their groups,
// waits up to DrainTimeout for those in flight, writes every acknowledgement, and closes the
// channels. Messages in flight after that stay pending for other consumers. It returns when all
// of this is done, whether or not the application still receives; the Redis client stays open. If
// Redis cannot be reached it gives up 5 s after the handlers are done, or a few timeouts of the
// client later (see SubscriberConfig.Client). It waits at most 5 s for an OnEvent that does not
// return. Close may be called several times, and from anywhere but OnEvent. It returns
// [ErrCloseTimeout] 20 s after DrainTimeout.
func (s *Subscriber) Close() error {
	return s.life.CloseWithin(s.cfg.Tuning.DrainTimeout, func() error {
		s.readers.Close()
		return nil
	})
}

// consumerName returns a name that no other subscription has. With two readers under one name, no
// check of ownership would be valid.
func consumerName(base string) (string, error) {
	if base == "" {
		base, _ = os.Hostname()
		if base == "" {
			base = "consumer"
		}
	}
	var suffix [8]byte
	if _, err := rand.Read(suffix[:]); err != nil {
		return "", fmt.Errorf("create a consumer name: %w", err)
	}
	return base + "-" + hex.EncodeToString(suffix[:]), nil
}

package redischannels

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/flaminco/redischannels/internal/stream"
)

var (
	_ message.Subscriber           = (*Subscriber)(nil)
	_ message.SubscribeInitializer = (*Subscriber)(nil)
)

// Subscriber reads topics from Redis Streams, in a consumer group or, without
// one, as fan-out. It implements Watermill's message.Subscriber. It is safe for
// concurrent use. Each subscription in a group opens at most one connection; those
// without a group share one per 256 topics, in Redis Cluster per hash slot.
type Subscriber struct {
	cfg    subscriberSettings
	logger watermill.LoggerAdapter
	shared *sharedReaders // of fan-out
	life   context.Context
	end    context.CancelFunc // by Close

	mu     sync.Mutex
	closed bool
	subs   map[*subscription]struct{}
	wg     sync.WaitGroup // Subscribe calls under way and running subscriptions
}

// NewSubscriber checks the configuration and returns a subscriber. It does not
// talk to Redis and starts nothing; Subscribe does. A nil logger is slog.Default() for
// errors and for one Info line per Subscribe; watermill.NopLogger is silence. The error
// wraps [ErrInvalidConfig], one for each wrong field.
func NewSubscriber(config SubscriberConfig, logger watermill.LoggerAdapter) (*Subscriber, error) {
	if err := config.Validate(); err != nil {
		return nil, err
	}
	return newSubscriber(config.settings(), logger), nil
}

func newSubscriber(settings subscriberSettings, logger watermill.LoggerAdapter) *Subscriber {
	s := &Subscriber{
		cfg:    settings,
		logger: loggerOrDefault(logger),
		shared: newSharedReaders(settings.SubscriberConfig),
		subs:   make(map[*subscription]struct{}),
	}
	s.life, s.end = context.WithCancel(context.Background())
	return s
}

// Subscribe starts to consume a topic and returns the channel of its messages.
// When it returns, the subscription is live: whatever is published from then on
// arrives, and in a consumer group also what was published before, from StartFrom.
//
// Every message must be settled with Ack or Nack. A nacked message comes again
// after NackBackoff, until MaxDeliveries. Its context carries what
// [EntryIDFromContext] and its siblings tell and the values of ctx; it ends when
// the message is settled, when another consumer has taken it over, or when the
// subscription ends without waiting for it any longer.
//
// The channel is closed when ctx ends or Close is called, after the messages in
// flight were settled or DrainTimeout has passed. Nothing else ends it: outages
// are waited out and reported by events.
//
// The error wraps [ErrInvalidArgument], [ErrInvalidConfig] (what DeadLetterTopic
// returns for the topic), [ErrClosed], [ErrPermission], [ErrWrongType],
// [ErrUnsupportedServer], or is the one of the connection.
func (s *Subscriber) Subscribe(ctx context.Context, topic string) (<-chan *message.Message, error) {
	return s.SubscribeFrom(ctx, topic, s.cfg.StartFrom)
}

// SubscribeFrom is Subscribe with a start of its own instead of StartFrom. In a
// consumer group it matters only if the group does not exist yet. Without a group
// a position that was trimmed away is reported by EventGap.
func (s *Subscriber) SubscribeFrom(ctx context.Context, topic string, from Position) (<-chan *message.Message, error) {
	return s.subscribe(ctx, topic, from, nil)
}

// subscribe is SubscribeFrom for a feed, or for nil.
func (s *Subscriber) subscribe(ctx context.Context, topic string, from Position, reader *feed) (<-chan *message.Message, error) {
	if err := validateTopic(topic); err != nil {
		return nil, err
	}
	if err := from.validate(); err != nil {
		return nil, invalidArgument("from", err)
	}
	if err := s.enter(); err != nil {
		return nil, err
	}
	sub, err := s.newSubscription(ctx, topic)
	if err == nil {
		sub.feed = reader
		opening, cancel := context.WithCancel(ctx)
		detach := context.AfterFunc(s.life, cancel) // Close waits for this
		err = sub.open(opening, from.or(s.cfg.StartFrom))
		detach()
		cancel()
	}
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		if closed := s.isClosed(); closed != nil {
			err = closed
		}
		if sub != nil {
			sub.abort()
		}
		s.wg.Done()
		return nil, fmt.Errorf("redischannels: subscribe to topic %q: %w", topic, redisError(err))
	}

	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		sub.abort()
		s.wg.Done()
		return nil, fmt.Errorf("redischannels: subscribe to topic %q: subscriber: %w", topic, ErrClosed)
	}
	s.subs[sub] = struct{}{}
	s.mu.Unlock()
	if reader != nil {
		reader.start = sub.cursor.ID // until run moves it
	}

	detach := context.AfterFunc(ctx, sub.stop)
	go func() {
		defer s.wg.Done()
		sub.run()
		detach()
		s.mu.Lock()
		delete(s.subs, sub)
		s.mu.Unlock()
		close(sub.out)
	}()
	return sub.out, nil
}

// SubscribeInitialize creates the consumer group, and the stream, so that it sees
// what is published before the first Subscribe. Without a group it does nothing.
func (s *Subscriber) SubscribeInitialize(topic string) error {
	if err := validateTopic(topic); err != nil {
		return err
	}
	if err := s.enter(); err != nil {
		return err
	}
	defer s.wg.Done()
	if s.cfg.ConsumerGroup == "" {
		return nil
	}
	group := &stream.Group{Client: s.cfg.Client, Key: topic, Name: s.cfg.ConsumerGroup}
	if _, err := group.Ensure(s.life, s.cfg.StartFrom.groupStart()); err != nil {
		if closed := s.isClosed(); closed != nil {
			return closed
		}
		return fmt.Errorf("redischannels: create group %q of topic %q: %w", s.cfg.ConsumerGroup, topic, redisError(err))
	}
	return nil
}

// Close ends all subscriptions: it stops fetching, gives messages that nobody
// handles back to their groups, waits up to DrainTimeout for those in flight,
// writes every acknowledgement, and closes the channels. Messages in flight after
// that stay pending for other consumers. It returns when everything is released,
// whether or not the application still receives; the Redis client stays open. On a
// server that cannot be reached it gives up 5 s after the handlers are done, or a few
// timeouts of the client later (see SubscriberConfig.Client). It may be called often
// and from anywhere but OnEvent, and always returns nil.
func (s *Subscriber) Close() error {
	s.mu.Lock()
	s.closed = true
	s.end()
	for sub := range s.subs {
		sub.stop()
	}
	s.mu.Unlock()
	s.wg.Wait()
	return nil
}

func (s *Subscriber) isClosed() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return fmt.Errorf("subscriber: %w", ErrClosed)
	}
	return nil
}

// enter counts a call that Close waits for.
func (s *Subscriber) enter() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return fmt.Errorf("redischannels: subscriber: %w", ErrClosed)
	}
	s.wg.Add(1)
	return nil
}

func (s *Subscriber) newSubscription(ctx context.Context, topic string) (*subscription, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	sub := newSubscription(ctx, s.cfg, s.logger, topic)
	if sub.grp == nil {
		sub.shared = s.shared
		return sub, nil
	}
	name, err := consumerName(s.cfg.Consumer)
	if err != nil {
		return sub, err
	}
	sub.grp.Consumer = name
	sub.log = sub.log.With(watermill.LogFields{"consumer": name})
	return sub, nil
}

// consumerName makes a name that no other subscription has. Two readers under one
// name would make every check of ownership worthless.
func consumerName(base string) (string, error) {
	if base == "" {
		base, _ = os.Hostname()
		if base == "" {
			base = "consumer"
		}
	}
	var suffix [8]byte
	if _, err := rand.Read(suffix[:]); err != nil {
		return "", fmt.Errorf("make a consumer name: %w", err)
	}
	return base + "-" + hex.EncodeToString(suffix[:]), nil
}

// pause waits for d or until stop is closed; it reports false when stopped.
func pause(stop <-chan struct{}, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-stop:
		return false
	}
}

// isCanceled reports whether an error is that of a context.
func isCanceled(err error) bool {
	return errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}

package redischannels

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"strings"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/flaminco/redischannels/internal/foreign"
	"github.com/flaminco/redischannels/internal/source"
	"github.com/flaminco/redischannels/internal/stream"
)

// streamTransport puts a channel on a stream.
func (h *Hub) streamTransport(key string, config StreamChannelConfig) (transport, error) {
	publisher, releasePublisher, err := h.publisher(config.Publisher)
	if err != nil {
		return transport{}, err
	}
	reading := config.Subscriber
	// What is too large is told to readers too, which the subscriber would not do.
	reading.Unmarshaler = tellingUnmarshaler{reading.Unmarshaler, reading.MaxPayload}
	reading.MaxPayload = UnlimitedPayload
	together, releaseTogether, err := h.fanOut(reading)
	if err != nil {
		return transport{}, errors.Join(err, releasePublisher())
	}
	subscriber := together
	subscribe := h.sharedFeed(together, key, reading.StartFrom)
	if reading.ConsumerGroup != "" {
		subscribe, subscriber = h.groupFeed(key, reading)
	}
	t := transport{
		topic:     key,
		limit:     subscriber.cfg.MaxInFlight,
		subscribe: subscribe,
		decoding:  markedDecoding{},
		publish: func(ctx context.Context, msgs []*message.Message) ([]string, error) {
			return publisher.Append(ctx, key, msgs...)
		},
		history: func(ctx context.Context, from Position) iter.Seq2[*message.Message, error] {
			return subscriber.History(ctx, key, from, Latest)
		},
		follow: func(from Position) (followed, error) {
			if err := from.validate(); err != nil { // trying it again does not help
				return nil, invalidArgument("from", err)
			}
			return &followedSource{newLazySource(key, h.sharedFeed(together, key, from.or(Oldest))), markedDecoding{}, nil}, nil
		},
		last: func(ctx context.Context) (string, error) {
			info, err := stream.Stat(ctx, together.cfg.Client, key)
			return info.Last.String(), redisError(err)
		},
		drain:  subscriber.cfg.Tuning.DrainTimeout,
		logger: h.config.Logger,
		deadLetters: &deadLetterSource{
			letters: &DeadLetters{
				config: DeadLettersConfig{Client: h.client, DeadLetterTopic: reading.DeadLetterTopic},
				logger: h.config.Logger,
			},
			group:       reading.ConsumerGroup,
			unmarshaler: config.Subscriber.Unmarshaler,
		},
		release: func() error { return errors.Join(releasePublisher(), releaseTogether()) },
	}
	if config.MaxLag > 0 || config.MaxLen > 0 {
		bound := stream.Bound{Client: h.client, Key: key, Group: reading.ConsumerGroup, MaxLag: config.MaxLag, MaxLen: config.MaxLen}
		t.room = func(ctx context.Context) (bool, error) {
			ok, err := bound.Room(ctx)
			return ok, redisError(err)
		}
	}
	return t, nil
}

// groupFeed returns what opens a feed from a stream with a subscriber of its own.
func (h *Hub) groupFeed(key string, config SubscriberConfig) (subscribeFunc, *Subscriber) {
	subscriber := h.subscriber(config)
	source := h.streamFeed(subscriber, key)
	source.group = config.ConsumerGroup
	source.shut = func() { _ = subscriber.Close() } // always nil
	return openFeed(source, func(ctx context.Context, f *feed) (<-chan *message.Message, error) {
		return subscriber.subscribe(ctx, key, config.StartFrom, f)
	}), subscriber
}

// sharedFeed returns what opens a feed from a stream with a subscription of a subscriber that
// the groupless readers of the hub share.
func (h *Hub) sharedFeed(subscriber *Subscriber, key string, from Position) subscribeFunc {
	return ownSubscription(h.streamFeed(subscriber, key), subscriber.cfg.Tuning.DrainTimeout+drainGrace, h.config.Logger,
		func(ctx context.Context, f *feed) (<-chan *message.Message, error) {
			return subscriber.subscribe(ctx, key, from, f)
		})
}

func (h *Hub) streamFeed(subscriber *Subscriber, key string) feedConfig {
	return feedConfig{
		topic:      key,
		limit:      subscriber.cfg.MaxInFlight,
		stallAfter: subscriber.cfg.Tuning.BlockTime,
		report:     h.report,
	}
}

// openFeed returns what opens a feed.
func openFeed(config feedConfig, subscribe func(context.Context, *feed) (<-chan *message.Message, error)) subscribeFunc {
	return func(ctx context.Context) (source.Source, error) {
		f := newFeed(config)
		if err := f.open(ctx, subscribe); err != nil {
			return nil, err
		}
		return f, nil
	}
}

// ownSubscription returns what opens a feed that has one subscription of a subscriber which
// others use as well: it ends with its context, and what still comes is refused.
func ownSubscription(config feedConfig, patience time.Duration, logger watermill.LoggerAdapter, subscribe func(context.Context, *feed) (<-chan *message.Message, error)) subscribeFunc {
	return func(ctx context.Context) (source.Source, error) {
		own := config
		var f *feed
		own.shut = func() {
			timer := time.NewTimer(patience)
			defer timer.Stop()
			for {
				select {
				case msg, open := <-f.in:
					if !open {
						return
					}
					f.handBack(msg)
				case <-timer.C:
					leftBehind(logger, own.topic, patience)
					return
				}
			}
		}
		f = newFeed(own)
		if err := f.open(ctx, subscribe); err != nil {
			return nil, err
		}
		return f, nil
	}
}

func leftBehind(logger watermill.LoggerAdapter, topic string, patience time.Duration) {
	logger.Info("The subscriber has not ended the subscription", watermill.LogFields{"topic": topic, "waited": patience})
}

// genericTransport puts a channel on a Pub/Sub of the caller.
func genericTransport(publisher message.Publisher, subscriber message.Subscriber, topic string, drain time.Duration, logger watermill.LoggerAdapter) transport {
	t := transport{topic: topic, decoding: messageDecoding{}, drain: drain, logger: logger}
	t.publish = func(ctx context.Context, msgs []*message.Message) ([]string, error) {
		if publisher == nil {
			return nil, fmt.Errorf("redischannels: write to %q without a publisher: %w", topic, ErrNotSupported)
		}
		for _, msg := range msgs {
			msg.SetContext(ctx)
		}
		err := publisher.Publish(topic, msgs...)
		ids := make([]string, len(msgs))
		if err == nil {
			for i, msg := range msgs {
				ids[i] = msg.UUID
			}
		}
		return ids, err
	}
	t.live(genericSubscribe(subscriber, topic, drain, logger))
	return t
}

// genericSubscribe returns what opens a subscription of any subscriber.
func genericSubscribe(subscriber message.Subscriber, topic string, drain time.Duration, logger watermill.LoggerAdapter) subscribeFunc {
	config := foreign.Config{
		Topic:    topic,
		Patience: drain,
		Skipped: func(id string, err error) {
			logger.Error("A message that cannot be decoded is skipped", err, watermill.LogFields{"topic": topic, "id": id})
		},
		Left: func() { leftBehind(logger, topic, drain) },
	}
	if own, ok := subscriber.(*Subscriber); ok {
		return ownSubscription(feedConfig{topic: topic, report: func(Event) {}}, drain, logger, func(ctx context.Context, _ *feed) (<-chan *message.Message, error) {
			return own.Subscribe(ctx, topic)
		})
	}
	return func(ctx context.Context) (source.Source, error) {
		if subscriber == nil {
			return nil, fmt.Errorf("redischannels: read %q without a subscriber: %w", topic, ErrNotSupported)
		}
		return foreign.Open(ctx, func(ctx context.Context) (<-chan *message.Message, error) {
			return subscriber.Subscribe(ctx, topic)
		}, config)
	}
}

// pubSubTransport puts a channel on Pub/Sub.
func (h *Hub) pubSubTransport(name string, config PubSubChannelConfig) (transport, error) {
	shared, release, err := h.pubsub(config)
	if err != nil {
		return transport{}, err
	}
	drain := shared.subscriber.cfg.DrainTimeout
	t := transport{topic: name, limit: shared.subscriber.cfg.MaxInFlight, decoding: markedDecoding{}, drain: drain, logger: h.config.Logger, release: release}
	source := feedConfig{topic: name, limit: shared.subscriber.cfg.MaxInFlight, report: h.report}
	t.live(ownSubscription(source, drain+drainGrace, t.logger, func(ctx context.Context, _ *feed) (<-chan *message.Message, error) {
		return shared.subscriber.Subscribe(ctx, name)
	}))
	t.publish = func(ctx context.Context, msgs []*message.Message) ([]string, error) {
		if config.Subscriber.Patterns && strings.ContainsAny(name, globCharacters) {
			return nil, fmt.Errorf("redischannels: write to the pattern %q: %w", name, ErrNotSupported)
		}
		receivers, err := shared.publisher.Send(ctx, name, msgs...)
		ids := make([]string, len(msgs))
		for i, n := range receivers {
			if n >= 0 {
				ids[i] = msgs[i].UUID
			}
		}
		return ids, err
	}
	return t, nil
}

// live makes a transport that keeps nothing read what comes: whatever reads has a subscription
// of its own.
func (t *transport) live(subscribe subscribeFunc) {
	t.subscribe = subscribe
	t.follow = func(from Position) (followed, error) {
		if from != Latest {
			return nil, fmt.Errorf("redischannels: follow %q, of which nothing is kept, from elsewhere than Latest: %w", t.topic, ErrNotSupported)
		}
		return &followedSource{newLazySource(t.topic, subscribe), t.decoding, nil}, nil
	}
}

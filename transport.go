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

// streamTransport returns the transport of a channel on a stream.
func (h *Hub) streamTransport(key string, config StreamChannelConfig) (transport, error) {
	publisher, releasePublisher, err := h.publisher(config.Publisher)
	if err != nil {
		return transport{}, err
	}
	reading := config.Subscriber
	together, releaseTogether, err := h.fanOut(reading)
	if err != nil {
		return transport{}, errors.Join(err, releasePublisher())
	}
	subscriber, release := together, releaseTogether
	if reading.ConsumerGroup != "" {
		subscriber = h.subscriber(reading)
		release = func() error { return errors.Join(subscriber.Close(), releaseTogether()) }
	}
	t := transport{
		topic:     key,
		limit:     subscriber.cfg.MaxInFlight,
		subscribe: subscriber.subscribeFunc(key, reading.StartFrom),
		decoding:  subscriber.decoding(key),
		publish: func(ctx context.Context, msgs []*message.Message) ([]string, error) {
			return publisher.Append(ctx, key, msgs...)
		},
		delay: publisher.delay(key),
		history: func(ctx context.Context, from Position) iter.Seq2[*source.Attempt, error] {
			return subscriber.history(ctx, key, from, Latest)
		},
		follow: func(from Position, live func(start stream.ID)) (followed, error) {
			if err := from.validate(); err != nil { // a retry does not help
				return nil, invalidArgument("from", err)
			}
			return together.follow(key, from.or(Oldest), live), nil
		},
		last: func(ctx context.Context) (string, error) {
			id, err := stream.Last(ctx, together.cfg.Client, key)
			return id.String(), redisError(err)
		},
		drain:      subscriber.cfg.Tuning.DrainTimeout,
		writing:    publisher.closing(),
		logger:     h.config.Logger,
		groupStats: subscriber.GroupStats,
		deadLetters: &deadLetterSource{
			letters: &DeadLetters{
				config: DeadLettersConfig{Client: h.client, SideKeys: h.config.SideKeys, DeadLetterTopic: reading.DeadLetterTopic},
				logger: h.config.Logger,
			},
			group:       reading.ConsumerGroup,
			unmarshaler: config.Subscriber.Unmarshaler,
		},
		release: func() error { return errors.Join(releasePublisher(), release()) },
	}
	if config.MaxLag > 0 || config.MaxLen > 0 {
		room := &stream.Room{Client: h.client, Key: key, Group: reading.ConsumerGroup, MaxLag: config.MaxLag, MaxLen: config.MaxLen}
		t.room = func(ctx context.Context) (bool, error) {
			ok, err := room.Look(ctx)
			return ok, redisError(err)
		}
	}
	return t, nil
}

// subscribeFunc returns the function that opens a subscription for a Reader.
func (s *Subscriber) subscribeFunc(topic string, from Position) subscribeFunc {
	return func(ctx context.Context) (source.Source, error) {
		return s.source(ctx, topic, from, sourceOptions{reader: true})
	}
}

func leftBehind(logger watermill.LoggerAdapter, topic string, patience time.Duration) {
	logger.Info("The subscriber has not ended the subscription", watermill.LogFields{"topic": topic, "waited": patience})
}

// genericTransport returns the transport of a channel on a Pub/Sub of the caller.
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
	if own, ok := publisher.(*Publisher); ok && own != nil {
		t.delay = own.delay(topic)
	}
	subscribe := genericSubscribe(subscriber, topic, drain, logger)
	if own, ok := subscriber.(*Subscriber); ok && own != nil {
		subscribe, t.decoding = own.subscribeFunc(topic, ""), own.decoding(topic)
		if n := own.cfg.MaxInFlight; n > DefaultMaxInFlight {
			t.limit, t.fixed = n, true
		}
	}
	t.live(subscribe)
	return t
}

// genericSubscribe returns the function that opens a subscription of any subscriber.
func genericSubscribe(subscriber message.Subscriber, topic string, drain time.Duration, logger watermill.LoggerAdapter) subscribeFunc {
	config := foreign.Config{
		Topic:    topic,
		Patience: drain,
		Skipped: func(id string, err error) {
			logger.Error("A message that cannot be decoded is skipped", err, watermill.LogFields{"topic": topic, "id": id})
		},
		Left: func() { leftBehind(logger, topic, drain) },
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

// pubSubTransport returns the transport of a channel on Pub/Sub.
func (h *Hub) pubSubTransport(name string, config PubSubChannelConfig) (transport, error) {
	shared, release, err := h.pubsub(config)
	if err != nil {
		return transport{}, err
	}
	drain := shared.subscriber.cfg.DrainTimeout
	t := transport{
		topic: name, limit: shared.subscriber.cfg.MaxInFlight, decoding: pubSubDecoding{shared.subscriber},
		drain: drain, writing: shared.publisher.closing(), logger: h.config.Logger, release: release,
	}
	t.live(func(ctx context.Context) (source.Source, error) { return shared.subscriber.source(ctx, name) })
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

// live sets the reading functions of a transport that stores no messages: each reader and loop
// has its own subscription.
func (t *transport) live(subscribe subscribeFunc) {
	t.subscribe = subscribe
	t.follow = func(from Position, live func(start stream.ID)) (followed, error) {
		if from != Latest {
			return nil, fmt.Errorf("redischannels: follow %q, whose transport stores no messages, from a position other than Latest: %w", t.topic, ErrNotSupported)
		}
		return &followedSource{newLazySource(t.topic, subscribe), t.decoding, live}, nil
	}
}

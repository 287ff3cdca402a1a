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
	source, subscriber := h.sharedFeed(together, key, reading.StartFrom), together
	if reading.ConsumerGroup != "" {
		source, subscriber = h.groupFeed(key, reading)
	}
	t := transport{
		feed: source,
		publish: func(ctx context.Context, msgs []*message.Message) ([]string, error) {
			return publisher.Append(ctx, key, msgs...)
		},
		history: func(ctx context.Context, from Position) iter.Seq2[*message.Message, error] {
			return subscriber.History(ctx, key, from, Latest)
		},
		follow: func(from Position) (*feed, error) {
			if err := from.validate(); err != nil { // trying it again does not help
				return nil, invalidArgument("from", err)
			}
			return newFeed(h.sharedFeed(together, key, from.or(Oldest))), nil
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

// groupFeed returns a feed from a stream with a subscriber of its own.
func (h *Hub) groupFeed(key string, config SubscriberConfig) (feedConfig, *Subscriber) {
	subscriber := h.subscriber(config)
	source := h.streamFeed(subscriber, key)
	source.group = config.ConsumerGroup
	source.subscribe = func(ctx context.Context, f *feed) (<-chan *message.Message, error) {
		return subscriber.subscribe(ctx, key, config.StartFrom, f)
	}
	source.shut = func() { _ = subscriber.Close() } // always nil
	return source, subscriber
}

// sharedFeed returns a feed from a stream with a subscription of a subscriber that the
// groupless readers of the hub share.
func (h *Hub) sharedFeed(subscriber *Subscriber, key string, from Position) feedConfig {
	source := h.streamFeed(subscriber, key)
	patience := subscriber.cfg.Tuning.DrainTimeout + drainGrace
	source.subscribe, source.shut = ownSubscription(key, patience, h.config.Logger, func(ctx context.Context, f *feed) (<-chan *message.Message, error) {
		return subscriber.subscribe(ctx, key, from, f)
	})
	return source
}

func (h *Hub) streamFeed(subscriber *Subscriber, key string) feedConfig {
	return feedConfig{
		topic:      key,
		limit:      subscriber.cfg.MaxInFlight,
		stallAfter: subscriber.cfg.Tuning.BlockTime,
		report:     h.report,
	}
}

// genericTransport puts a channel on somebody else's Pub/Sub.
func genericTransport(publisher message.Publisher, subscriber message.Subscriber, topic string, drain time.Duration, logger watermill.LoggerAdapter) transport {
	t := transport{drain: drain, logger: logger}
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
	t.live(feedConfig{topic: topic, report: func(Event) {}}, drain, func(ctx context.Context, _ *feed) (<-chan *message.Message, error) { // there is no limit to report
		if subscriber == nil {
			return nil, fmt.Errorf("redischannels: read %q without a subscriber: %w", topic, ErrNotSupported)
		}
		return subscriber.Subscribe(ctx, topic)
	})
	return t
}

// pubSubTransport puts a channel on Pub/Sub.
func (h *Hub) pubSubTransport(name string, config PubSubChannelConfig) (transport, error) {
	shared, release, err := h.pubsub(config)
	if err != nil {
		return transport{}, err
	}
	drain := shared.subscriber.cfg.DrainTimeout
	t := transport{drain: drain, logger: h.config.Logger, release: release}
	source := feedConfig{topic: name, limit: shared.subscriber.cfg.MaxInFlight, report: h.report}
	t.live(source, drain+drainGrace, func(ctx context.Context, _ *feed) (<-chan *message.Message, error) {
		return shared.subscriber.Subscribe(ctx, name)
	})
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

// live makes a transport that keeps nothing read what comes: each feed has a subscription
// of its own.
func (t *transport) live(source feedConfig, patience time.Duration, subscribe subscribeFunc) {
	open := func() feedConfig {
		own := source
		own.subscribe, own.shut = ownSubscription(source.topic, patience, t.logger, subscribe)
		return own
	}
	t.feed = open()
	t.follow = func(from Position) (*feed, error) {
		if from != Latest {
			return nil, fmt.Errorf("redischannels: follow %q, of which nothing is kept, from elsewhere than Latest: %w", source.topic, ErrNotSupported)
		}
		return newFeed(open()), nil
	}
}

// ownSubscription makes the functions of a feed that has one subscription of a
// subscriber which others use as well: it ends with its context, and what still comes
// is refused.
func ownSubscription(topic string, patience time.Duration, logger watermill.LoggerAdapter, subscribe subscribeFunc) (open subscribeFunc, shut func()) {
	var in <-chan *message.Message
	var reader *feed
	open = func(ctx context.Context, f *feed) (_ <-chan *message.Message, err error) {
		reader = f
		in, err = subscribe(ctx, f)
		return in, err
	}
	shut = func() {
		if in == nil {
			return
		}
		timer := time.NewTimer(patience)
		defer timer.Stop()
		for {
			select {
			case msg, open := <-in:
				if !open {
					return
				}
				reader.handBack(msg)
			case <-timer.C:
				logger.Info("The subscriber has not ended the subscription", watermill.LogFields{"topic": topic, "waited": patience})
				return
			}
		}
	}
	return open, shut
}

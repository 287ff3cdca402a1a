package redischannels

import (
	"context"
	"fmt"
	"iter"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/flaminco/redischannels/internal/stream"
)

// streamTransport puts a channel on a stream.
func (h *Hub) streamTransport(key string, config StreamChannelConfig) (transport, error) {
	writing := config.publisher()
	writing.Client = h.client
	publisher, err := h.publisher(writing)
	if err != nil {
		return transport{}, err
	}
	reading := config.subscriber()
	reading.Client, reading.OnReadClient = h.client, h.config.OnReadClient
	source, subscriber, err := h.streamFeed(key, reading, reading.StartFrom)
	if err != nil {
		return transport{}, err
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
			alone := reading
			alone.ConsumerGroup = ""
			source, _, err := h.streamFeed(key, alone, from.or(Oldest))
			if err != nil {
				return nil, err
			}
			return newFeed(source), nil
		},
		drain:  subscriber.cfg.Tuning.DrainTimeout,
		logger: h.config.Logger,
	}
	if config.MaxLag > 0 || config.MaxLen > 0 {
		bound := stream.Bound{Client: h.client, Key: key, Group: config.group(), MaxLag: config.MaxLag, MaxLen: config.MaxLen}
		t.room = func(ctx context.Context) (bool, error) {
			ok, err := bound.Room(ctx)
			return ok, redisError(err)
		}
	}
	return t, nil
}

// streamFeed returns a feed from a stream with a subscriber of its own.
func (h *Hub) streamFeed(key string, config SubscriberConfig, from Position) (feedConfig, *Subscriber, error) {
	var gap func(*GapError)
	config.OnEvent = func(e Event) {
		if err, ok := e.Err.(*GapError); ok && e.Kind == EventGap && gap != nil {
			gap(err)
		}
		if h.config.OnEvent != nil {
			h.config.OnEvent(e)
		}
	}
	subscriber, err := NewSubscriber(config, h.config.Logger)
	if err != nil {
		return feedConfig{}, nil, err
	}
	return feedConfig{
		topic: key,
		group: config.ConsumerGroup,
		subscribe: func(ctx context.Context) (<-chan *message.Message, error) {
			return subscriber.SubscribeFrom(ctx, key, from)
		},
		shut:       func() { _ = subscriber.Close() }, // always nil
		onGap:      func(f func(*GapError)) { gap = f },
		limit:      subscriber.cfg.MaxInFlight,
		stallAfter: subscriber.cfg.Tuning.BlockTime,
		report:     h.report,
	}, subscriber, nil
}

// genericTransport puts a channel on somebody else's Pub/Sub.
func genericTransport(publisher message.Publisher, subscriber message.Subscriber, topic string, drain time.Duration, logger watermill.LoggerAdapter) transport {
	t := transport{drain: drain, logger: logger}
	t.publish = func(ctx context.Context, msgs []*message.Message) ([]string, error) {
		if publisher == nil {
			return nil, fmt.Errorf("redischannels: write to %q without a publisher: %w", topic, ErrNotSupported)
		}
		ids := make([]string, len(msgs))
		for i, msg := range msgs {
			msg.SetContext(ctx)
			ids[i] = msg.UUID
		}
		return ids, publisher.Publish(topic, msgs...)
	}
	var in <-chan *message.Message
	t.feed = feedConfig{
		topic:  topic,
		report: func(Event) {}, // only a full window is reported, and there is none
		subscribe: func(ctx context.Context) (_ <-chan *message.Message, err error) {
			if subscriber == nil {
				return nil, fmt.Errorf("redischannels: read %q without a subscriber: %w", topic, ErrNotSupported)
			}
			in, err = subscriber.Subscribe(ctx, topic)
			return in, err
		},
		// The subscription ends with its context. What it still sends is refused.
		shut: func() {
			if in == nil {
				return
			}
			patience := time.NewTimer(drain)
			defer patience.Stop()
			for {
				select {
				case msg, open := <-in:
					if !open {
						return
					}
					msg.Nack()
				case <-patience.C:
					logger.Info("The subscriber has not ended the subscription", watermill.LogFields{"topic": topic, "waited": drain})
					return
				}
			}
		},
	}
	return t
}

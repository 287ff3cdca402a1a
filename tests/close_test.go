package tests

import (
	"context"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/pubsub/gochannel"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/appender"
	"github.com/flaminco/redischannels/internal/lifecycle/lifecycletest"
	"github.com/flaminco/redischannels/internal/pubsub"
	"github.com/flaminco/redischannels/internal/redistest"
	"github.com/flaminco/redischannels/internal/stream"
	"github.com/flaminco/redischannels/sse"
)

// Every type with a Close passes the same test. None of these runs in parallel: see
// lifecycletest.Stress.

// stressClient returns a client that is warm, so that it does not dial during the test.
func stressClient(t *testing.T) *redis.Client {
	client := redistest.Shared(t).Client(t)
	require.NoError(t, client.Ping(t.Context()).Err())
	return client
}

func TestPublisher_CloseStress(t *testing.T) {
	client, topic := stressClient(t), redistest.Key(t)
	lifecycletest.Stress(t, redischannels.ErrClosed, func() lifecycletest.Subject {
		p, err := redischannels.NewPublisher(redischannels.PublisherConfig{Client: client}, nil)
		require.NoError(t, err)
		return lifecycletest.Subject{Call: publishing(p, topic), Close: p.Close}
	})
}

func TestPubSubPublisher_CloseStress(t *testing.T) {
	client, topic := stressClient(t), redistest.Key(t)
	lifecycletest.Stress(t, redischannels.ErrClosed, func() lifecycletest.Subject {
		p, err := redischannels.NewPubSubPublisher(redischannels.PubSubPublisherConfig{Client: client}, nil)
		require.NoError(t, err)
		return lifecycletest.Subject{Call: publishing(p, topic), Close: p.Close}
	})
}

func TestSubscriber_CloseStress(t *testing.T) {
	for name, group := range map[string]string{"group": "g", "fan-out": ""} {
		t.Run(name, func(t *testing.T) {
			client, topic := stressClient(t), redistest.Key(t)
			lifecycletest.Stress(t, redischannels.ErrClosed, func() lifecycletest.Subject {
				s, err := redischannels.NewSubscriber(redischannels.SubscriberConfig{Client: client, ConsumerGroup: group, Tuning: quickTuning()}, nil)
				require.NoError(t, err)
				return lifecycletest.Subject{Call: subscribing(s, topic), Close: s.Close}
			})
		})
	}
}

func TestPubSubSubscriber_CloseStress(t *testing.T) {
	client, topic := stressClient(t), redistest.Key(t)
	lifecycletest.Stress(t, redischannels.ErrClosed, func() lifecycletest.Subject {
		s, err := redischannels.NewPubSubSubscriber(redischannels.PubSubSubscriberConfig{Client: client}, nil)
		require.NoError(t, err)
		return lifecycletest.Subject{Call: subscribing(s, topic), Close: s.Close}
	})
}

func TestPubSubMux_CloseStress(t *testing.T) {
	client, topic := stressClient(t), redistest.Key(t)
	lifecycletest.Stress(t, pubsub.ErrClosed, func() lifecycletest.Subject {
		m := pubsub.New(pubsub.Config{Client: client, HealthInterval: time.Second, Notify: func(pubsub.Notice) {}})
		return lifecycletest.Subject{
			Call: func(ctx context.Context) error {
				sink := &pubsub.Sink{Queue: pubsub.NewQueue(pubsub.QueueConfig{Messages: 1, Bytes: 1})}
				defer m.Unsubscribe(sink)
				return m.Subscribe(ctx, sink, []pubsub.Name{{Kind: pubsub.Channel, Text: topic}})
			},
			Close: func() error { m.Close(); return nil },
		}
	})
}

func TestAppender_CloseStress(t *testing.T) {
	client, topic := stressClient(t), redistest.Key(t)
	lifecycletest.Stress(t, appender.ErrClosed, func() lifecycletest.Subject {
		a := appender.New(appender.Config{Client: client})
		return lifecycletest.Subject{
			Call: func(ctx context.Context) error {
				commands, results := make([]appender.Command, 1), make([]appender.Result, 1)
				head := appender.NewHead(topic, stream.Trim{})
				commands[0].Start(nil, head, 1, 0)
				commands[0].Field("field", new([]byte))
				a.Do(ctx, time.Time{}, head, commands, 10, results)
				return results[0].Err
			},
			Close: func() error { return a.Close(context.Background()) },
		}
	})
}

func TestHub_CloseStress(t *testing.T) {
	client, topic := stressClient(t), redistest.Key(t)
	lifecycletest.Stress(t, redischannels.ErrClosed, func() lifecycletest.Subject {
		hub, err := redischannels.NewHub(client, redischannels.HubConfig{})
		require.NoError(t, err)
		return lifecycletest.Subject{
			Call: func(ctx context.Context) error {
				channel, err := redischannels.NewStreamChannel[int](hub, topic, redischannels.StreamChannelConfig{})
				if err == nil {
					_, err = channel.Writer().Write(ctx, 1)
				}
				return err
			},
			Close: hub.Close,
		}
	})
}

func TestChannel_CloseStress(t *testing.T) {
	client, topic := stressClient(t), redistest.Key(t)
	hub, err := redischannels.NewHub(client, redischannels.HubConfig{Stream: redischannels.StreamChannelConfig{Subscriber: redischannels.SubscriberConfig{Tuning: quickTuning()}}})
	require.NoError(t, err)
	defer func() { require.NoError(t, hub.Close()) }()
	own := gochannel.NewGoChannel(gochannel.Config{}, watermill.NopLogger{})
	defer func() { require.NoError(t, own.Close()) }()
	for name, create := range map[string]func() (*redischannels.Channel[int], error){
		"stream": func() (*redischannels.Channel[int], error) {
			return redischannels.NewStreamChannel[int](hub, topic, redischannels.StreamChannelConfig{})
		},
		"Pub/Sub": func() (*redischannels.Channel[int], error) {
			return redischannels.NewPubSubChannel[int](hub, topic, redischannels.PubSubChannelConfig{})
		},
		"any": func() (*redischannels.Channel[int], error) {
			return redischannels.NewChannel(own, own, topic, redischannels.ChannelConfig[int]{})
		},
	} {
		t.Run(name, func(t *testing.T) {
			lifecycletest.Stress(t, redischannels.ErrClosed, func() lifecycletest.Subject {
				channel, err := create()
				require.NoError(t, err)
				return lifecycletest.Subject{
					Call: func(ctx context.Context) error {
						_, err := channel.Writer().Write(ctx, 1)
						return err
					},
					Close: channel.Close,
				}
			})
		})
	}
}

func TestSSE_CloseStress(t *testing.T) {
	client, topic := stressClient(t), redistest.Key(t)
	hub, err := redischannels.NewHub(client, redischannels.HubConfig{Stream: redischannels.StreamChannelConfig{Subscriber: redischannels.SubscriberConfig{Tuning: quickTuning()}}})
	require.NoError(t, err)
	defer func() { require.NoError(t, hub.Close()) }()
	channel, err := redischannels.NewStreamChannel[int](hub, topic, redischannels.StreamChannelConfig{})
	require.NoError(t, err)
	lifecycletest.Stress(t, redischannels.ErrClosed, func() lifecycletest.Subject {
		h, err := sse.NewHandler(channel, sse.Options[int]{})
		require.NoError(t, err)
		return lifecycletest.Subject{
			Call: func(ctx context.Context) error {
				ctx, cancel := context.WithTimeout(ctx, time.Millisecond)
				defer cancel()
				response := httptest.NewRecorder()
				h.ServeHTTP(response, httptest.NewRequestWithContext(ctx, http.MethodGet, "/", nil))
				if response.Code == http.StatusServiceUnavailable {
					return redischannels.ErrClosed
				}
				return nil
			},
			Close: h.Close,
		}
	})
}

// publishing is a call of a publisher.
func publishing(p message.Publisher, topic string) func(context.Context) error {
	return func(context.Context) error {
		return p.Publish(topic, message.NewMessage(watermill.NewUUID(), nil))
	}
}

// subscribing is a call of a subscriber whose subscription ends at once.
func subscribing(s message.Subscriber, topic string) func(context.Context) error {
	return func(ctx context.Context) error {
		ctx, cancel := context.WithCancel(ctx)
		messages, err := s.Subscribe(ctx, topic)
		cancel()
		if err != nil {
			return err
		}
		for range messages {
		}
		return nil
	}
}

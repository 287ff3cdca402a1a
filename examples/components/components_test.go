package components

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/components/cqrs"
	"github.com/ThreeDotsLabs/watermill/components/delay"
	"github.com/ThreeDotsLabs/watermill/components/fanin"
	"github.com/ThreeDotsLabs/watermill/components/forwarder"
	"github.com/ThreeDotsLabs/watermill/components/metrics"
	"github.com/ThreeDotsLabs/watermill/components/requestreply"
	"github.com/ThreeDotsLabs/watermill/components/requeuer"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
)

func TestMain(m *testing.M) { redistest.Main(m) }

const soon = 10 * time.Second

// transport makes adapters. A group has no meaning for Pub/Sub: every subscriber gets every
// message. Streams without a group do the same.
type transport struct {
	pub    func(t *testing.T) message.Publisher
	sub    func(t *testing.T, group string) message.Subscriber
	delays bool
}

// onBoth runs a test on both transports.
func onBoth(t *testing.T, test func(t *testing.T, tr transport)) {
	streams := transport{
		delays: true,
		pub: func(t *testing.T) message.Publisher {
			pub, err := redischannels.NewPublisher(redischannels.PublisherConfig{Client: redistest.Shared(t).Client(t)}, nil)
			require.NoError(t, err)
			t.Cleanup(func() { _ = pub.Close() })
			return pub
		},
		sub: func(t *testing.T, group string) message.Subscriber {
			sub, err := redischannels.NewSubscriber(redischannels.SubscriberConfig{
				Client:        redistest.Shared(t).Client(t),
				ConsumerGroup: group,
				NackBackoff:   redischannels.Backoff{Min: time.Millisecond},
			}, nil)
			require.NoError(t, err)
			t.Cleanup(func() { _ = sub.Close() })
			return sub
		},
	}
	pubSub := transport{
		pub: func(t *testing.T) message.Publisher {
			pub, err := redischannels.NewPubSubPublisher(redischannels.PubSubPublisherConfig{Client: redistest.Shared(t).Client(t)}, nil)
			require.NoError(t, err)
			t.Cleanup(func() { _ = pub.Close() })
			return pub
		},
		sub: func(t *testing.T, _ string) message.Subscriber {
			sub, err := redischannels.NewPubSubSubscriber(redischannels.PubSubSubscriberConfig{
				Client:      redistest.Shared(t).Client(t),
				NackBackoff: redischannels.Backoff{Min: time.Millisecond},
			}, nil)
			require.NoError(t, err)
			t.Cleanup(func() { _ = sub.Close() })
			return sub
		},
	}
	for name, tr := range map[string]transport{"Streams": streams, "Pub/Sub": pubSub} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, tr)
		})
	}
}

// running is the common interface of routers and components with a router.
type running interface {
	Run(ctx context.Context) error
	Close() error
}

// run runs it until the end of the test.
func run(t *testing.T, r running, isRunning <-chan struct{}) {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- r.Run(context.WithoutCancel(t.Context())) }()
	t.Cleanup(func() {
		require.NoError(t, r.Close())
		require.NoError(t, <-done)
	})
	if isRunning == nil {
		return
	}
	select {
	case <-isRunning:
	case <-time.After(soon):
		require.FailNow(t, "it does not run")
	}
}

func newRouter(t *testing.T) *message.Router {
	t.Helper()
	router, err := message.NewRouter(message.RouterConfig{CloseTimeout: soon}, nil)
	require.NoError(t, err)
	return router
}

func subscribe(t *testing.T, sub message.Subscriber, topic string) <-chan *message.Message {
	t.Helper()
	messages, err := sub.Subscribe(t.Context(), topic)
	require.NoError(t, err)
	return messages
}

func receive(t *testing.T, messages <-chan *message.Message) *message.Message {
	t.Helper()
	select {
	case msg := <-messages:
		require.NotNil(t, msg)
		msg.Ack()
		return msg
	case <-time.After(soon):
		require.FailNow(t, "no message")
		return nil
	}
}

func newMessage(payload string) *message.Message {
	msg := message.NewMessage(watermill.NewUUID(), []byte(payload))
	msg.Metadata.Set("key", "value")
	return msg
}

type add struct{ A, B int }

type added struct{ Sum int }

// A command is answered: the caller's subscription to the replies is live before the command
// is sent, so no reply is missed.
func TestRequestReply(t *testing.T) {
	onBoth(t, func(t *testing.T, tr transport) {
		commands, replies := redistest.Key(t, "commands"), redistest.Key(t, "replies")
		backend, err := requestreply.NewPubSubBackend[added](requestreply.PubSubBackendConfig{
			Publisher: tr.pub(t),
			SubscriberConstructor: func(requestreply.PubSubBackendSubscribeParams) (message.Subscriber, error) {
				return tr.sub(t, ""), nil // each caller sees all replies and picks its own
			},
			GeneratePublishTopic: func(requestreply.PubSubBackendPublishParams) (string, error) { return replies, nil },
			GenerateSubscribeTopic: func(requestreply.PubSubBackendSubscribeParams) (string, error) {
				return replies, nil
			},
			AckCommandErrors: true,
		}, requestreply.BackendPubsubJSONMarshaler[added]{})
		require.NoError(t, err)

		router := newRouter(t)
		processor, err := cqrs.NewCommandProcessorWithConfig(router, cqrs.CommandProcessorConfig{
			GenerateSubscribeTopic: func(cqrs.CommandProcessorGenerateSubscribeTopicParams) (string, error) { return commands, nil },
			SubscriberConstructor: func(cqrs.CommandProcessorSubscriberConstructorParams) (message.Subscriber, error) {
				return tr.sub(t, "adders"), nil
			},
			Marshaler: cqrs.JSONMarshaler{},
		})
		require.NoError(t, err)
		require.NoError(t, processor.AddHandlers(requestreply.NewCommandHandlerWithResult("add", backend,
			func(_ context.Context, c *add) (added, error) {
				if c.A < 0 {
					return added{}, errors.New("too small")
				}
				return added{c.A + c.B}, nil
			})))
		run(t, router, router.Running())

		bus, err := cqrs.NewCommandBusWithConfig(tr.pub(t), cqrs.CommandBusConfig{
			GeneratePublishTopic: func(cqrs.CommandBusGeneratePublishTopicParams) (string, error) { return commands, nil },
			Marshaler:            cqrs.JSONMarshaler{},
		})
		require.NoError(t, err)
		for i := range 5 {
			reply, err := requestreply.SendWithReply[added](t.Context(), bus, backend, &add{i, 10})
			require.NoError(t, err)
			require.Equal(t, i+10, reply.HandlerResult.Sum)
		}
		reply, err := requestreply.SendWithReply[added](t.Context(), bus, backend, &add{-1, 10})
		require.NoError(t, err)
		require.ErrorContains(t, reply.Error, "too small")
	})
}

// Commands reach one handler, events every group; a handler that fails is called again.
func TestCQRS(t *testing.T) {
	onBoth(t, func(t *testing.T, tr transport) {
		base := redistest.Key(t)
		topic := func(name string) string { return base + ":" + name }
		router := newRouter(t)
		var failures atomic.Int32
		sums := make(chan string, 10)
		events, err := cqrs.NewEventBusWithConfig(tr.pub(t), cqrs.EventBusConfig{
			GeneratePublishTopic: func(p cqrs.GenerateEventPublishTopicParams) (string, error) { return topic(p.EventName), nil },
			Marshaler:            cqrs.JSONMarshaler{},
		})
		require.NoError(t, err)
		commands, err := cqrs.NewCommandProcessorWithConfig(router, cqrs.CommandProcessorConfig{
			GenerateSubscribeTopic: func(p cqrs.CommandProcessorGenerateSubscribeTopicParams) (string, error) {
				return topic(p.CommandName), nil
			},
			SubscriberConstructor: func(p cqrs.CommandProcessorSubscriberConstructorParams) (message.Subscriber, error) {
				return tr.sub(t, p.HandlerName), nil
			},
			Marshaler: cqrs.JSONMarshaler{},
		})
		require.NoError(t, err)
		require.NoError(t, commands.AddHandlers(cqrs.NewCommandHandler("add", func(ctx context.Context, c *add) error {
			if failures.Add(1) == 1 {
				return errors.New("once")
			}
			return events.Publish(ctx, &added{c.A + c.B})
		})))
		handlers, err := cqrs.NewEventProcessorWithConfig(router, cqrs.EventProcessorConfig{
			GenerateSubscribeTopic: func(p cqrs.EventProcessorGenerateSubscribeTopicParams) (string, error) {
				return topic(p.EventName), nil
			},
			SubscriberConstructor: func(p cqrs.EventProcessorSubscriberConstructorParams) (message.Subscriber, error) {
				return tr.sub(t, p.HandlerName), nil
			},
			Marshaler: cqrs.JSONMarshaler{},
		})
		require.NoError(t, err)
		for _, name := range []string{"first", "second"} {
			require.NoError(t, handlers.AddHandlers(cqrs.NewEventHandler(name, func(_ context.Context, e *added) error {
				sums <- fmt.Sprint(name, " ", e.Sum)
				return nil
			})))
		}
		run(t, router, router.Running())

		bus, err := cqrs.NewCommandBusWithConfig(tr.pub(t), cqrs.CommandBusConfig{
			GeneratePublishTopic: func(p cqrs.CommandBusGeneratePublishTopicParams) (string, error) { return topic(p.CommandName), nil },
			Marshaler:            cqrs.JSONMarshaler{},
		})
		require.NoError(t, err)
		require.NoError(t, bus.Send(t.Context(), &add{1, 2}))
		got := []string{}
		for range 2 {
			select {
			case s := <-sums:
				got = append(got, s)
			case <-time.After(soon):
				require.FailNow(t, "no event", "%v", got)
			}
		}
		require.ElementsMatch(t, []string{"first 3", "second 3"}, got)
		require.EqualValues(t, 2, failures.Load())
	})
}

// Several topics become one.
func TestFanIn(t *testing.T) {
	onBoth(t, func(t *testing.T, tr transport) {
		base := redistest.Key(t)
		in, err := fanin.NewFanIn(tr.sub(t, "fanin"), tr.pub(t), fanin.Config{
			SourceTopics: []string{base + ":a", base + ":b"}, TargetTopic: base + ":all",
		}, nil)
		require.NoError(t, err)
		messages := subscribe(t, tr.sub(t, "reader"), base+":all")
		run(t, in, in.Running())
		a, b := newMessage("a"), newMessage("b")
		pub := tr.pub(t)
		require.NoError(t, pub.Publish(base+":a", a))
		require.True(t, a.Equals(receive(t, messages)))
		require.NoError(t, pub.Publish(base+":b", b))
		require.True(t, b.Equals(receive(t, messages)))
	})
}

// Messages go to an outbox and from there to where they belong.
func TestForwarder(t *testing.T) {
	onBoth(t, func(t *testing.T, tr transport) {
		outbox, target := redistest.Key(t, "outbox"), redistest.Key(t, "target")
		fwd, err := forwarder.NewForwarder(tr.sub(t, "forwarder"), tr.pub(t), nopLogger, forwarder.Config{ForwarderTopic: outbox})
		require.NoError(t, err)
		messages := subscribe(t, tr.sub(t, "reader"), target)
		run(t, fwd, fwd.Running())
		sent := newMessage("m")
		require.NoError(t, forwarder.NewPublisher(tr.pub(t), forwarder.PublisherConfig{ForwarderTopic: outbox}).Publish(target, sent))
		require.True(t, sent.Equals(receive(t, messages)))
	})
}

var nopLogger watermill.LoggerAdapter = watermill.NopLogger{}

// The metadata of delayed messages passes through. Streams delay, Pub/Sub cannot.
func TestDelay(t *testing.T) {
	onBoth(t, func(t *testing.T, tr transport) {
		topic := redistest.Key(t)
		messages := subscribe(t, tr.sub(t, "reader"), topic)
		pub, err := delay.NewPublisher(tr.pub(t), delay.PublisherConfig{})
		require.NoError(t, err)
		sent := newMessage("m")
		sent.SetContext(delay.WithContext(t.Context(), delay.For(time.Second)))
		published := time.Now()
		require.NoError(t, pub.Publish(topic, sent))
		got := receive(t, messages)
		require.Equal(t, tr.delays, time.Since(published) >= time.Second)
		require.Equal(t, "1s", got.Metadata.Get(delay.DelayedForKey))
		require.Equal(t, sent.Metadata, got.Metadata)
	})
}

// Publishers, subscribers and handlers are counted, with their types as names.
func TestMetrics(t *testing.T) {
	onBoth(t, func(t *testing.T, tr transport) {
		registry := prometheus.NewRegistry()
		router := newRouter(t)
		metrics.NewPrometheusMetricsBuilder(registry, "test", "").AddPrometheusRouterMetrics(router)
		in, out := redistest.Key(t, "in"), redistest.Key(t, "out")
		router.AddHandler("copy", in, tr.sub(t, "copy"), out, tr.pub(t), func(msg *message.Message) ([]*message.Message, error) {
			return message.Messages{msg}, nil
		})
		messages := subscribe(t, tr.sub(t, "reader"), out)
		run(t, router, router.Running())
		require.NoError(t, tr.pub(t).Publish(in, newMessage("m")))
		receive(t, messages)
		want := map[string]float64{
			"test_subscriber_messages_received_total": 1, "test_publish_time_seconds": 1, "test_handler_execution_time_seconds": 1,
		}
		redistest.Eventually(t, soon, func() bool {
			families, err := registry.Gather()
			require.NoError(t, err)
			got := make(map[string]float64)
			for _, f := range families {
				for _, m := range f.GetMetric() {
					got[f.GetName()] += m.GetCounter().GetValue() + float64(m.GetHistogram().GetSampleCount())
				}
			}
			return fmt.Sprint(got) == fmt.Sprint(want)
		}, "the counts")
	})
}

// A message that was put aside returns to its topic.
func TestRequeuer(t *testing.T) {
	onBoth(t, func(t *testing.T, tr transport) {
		aside, target := redistest.Key(t, "aside"), redistest.Key(t, "target")
		router := newRouter(t)
		r, err := requeuer.NewRequeuer(requeuer.Config{
			Subscriber:     tr.sub(t, "requeuer"),
			SubscribeTopic: aside,
			Publisher:      tr.pub(t),
			GeneratePublishTopic: func(p requeuer.GeneratePublishTopicParams) (string, error) {
				return p.Message.Metadata.Get("target"), nil
			},
			Router: router,
		}, nopLogger)
		require.NoError(t, err)
		messages := subscribe(t, tr.sub(t, "reader"), target)
		run(t, stoppable{r, router}, router.Running())
		sent := newMessage("m")
		sent.Metadata.Set("target", target)
		require.NoError(t, tr.pub(t).Publish(aside, sent))
		got := receive(t, messages)
		require.Equal(t, "m", string(got.Payload))
		require.Equal(t, "value", got.Metadata.Get("key"))
		require.Equal(t, "1", got.Metadata.Get(requeuer.RetriesKey))
	})
}

// stoppable is a requeuer with the Close of its router.
type stoppable struct {
	*requeuer.Requeuer
	router *message.Router
}

func (s stoppable) Close() error { return s.router.Close() }

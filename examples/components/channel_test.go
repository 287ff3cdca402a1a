package components

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/components/cqrs"
	"github.com/ThreeDotsLabs/watermill/components/metrics"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/message/router/middleware"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"
	"github.com/sony/gobreaker"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
)

// numbers is a channel of one test, in the group "g", with values in it.
func numbers(t *testing.T, key string, values ...int) *redischannels.Channel[int] {
	t.Helper()
	hub, err := redischannels.NewHub(redistest.Shared(t).Client(t), redischannels.HubConfig{Stream: redischannels.StreamChannelConfig{
		Subscriber: redischannels.SubscriberConfig{ConsumerGroup: "g", NackBackoff: redischannels.Backoff{Min: time.Millisecond}},
	}})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, hub.Close()) })
	c, err := redischannels.NewStreamChannel[int](hub, key, redischannels.StreamChannelConfig{})
	require.NoError(t, err)
	_, err = c.Writer().WriteAll(t.Context(), values...)
	require.NoError(t, err)
	return c
}

// handle runs Handle with middleware until enough returns true.
func handle(t *testing.T, c *redischannels.Channel[int], enough func() bool, fn func(context.Context, int) error, chain ...message.HandlerMiddleware) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		ended <- c.Reader().Handle(ctx, fn, redischannels.HandleConfig{Name: "numbers", Concurrency: 2, Middleware: chain})
	}()
	redistest.Eventually(t, soon, enough, "not handled")
	cancel()
	require.NoError(t, <-ended)
}

func count(n *atomic.Int32, want int32) func() bool {
	return func() bool { return n.Load() >= want }
}

// Retry repeats within one delivery.
func TestChannel_RetryMiddleware(t *testing.T) {
	t.Parallel()
	var tries, deliveries atomic.Int32
	retry := middleware.Retry{MaxRetries: 3, InitialInterval: time.Millisecond}
	handle(t, numbers(t, redistest.Key(t), 1), count(&tries, 3), func(ctx context.Context, _ int) error {
		n, _ := redischannels.DeliveryCountFromContext(ctx)
		deliveries.Store(int32(n))
		if tries.Add(1) < 3 {
			return errors.New("not yet")
		}
		return nil
	}, retry.Middleware)
	require.EqualValues(t, 1, deliveries.Load())
}

// Recoverer turns a panic into an error that middleware outside of it sees.
func TestChannel_RecovererMiddleware(t *testing.T) {
	t.Parallel()
	var tries, panics atomic.Int32
	watch := func(next message.HandlerFunc) message.HandlerFunc {
		return func(msg *message.Message) ([]*message.Message, error) {
			msgs, err := next(msg)
			if recovered := (middleware.RecoveredPanicError{}); errors.As(err, &recovered) {
				panics.Add(1)
			}
			return msgs, err
		}
	}
	handle(t, numbers(t, redistest.Key(t), 1), count(&tries, 2), func(context.Context, int) error {
		if tries.Add(1) == 1 {
			panic("once")
		}
		return nil
	}, watch, middleware.Recoverer)
	require.EqualValues(t, 1, panics.Load())
}

// Throttle bounds the rate.
func TestChannel_ThrottleMiddleware(t *testing.T) {
	t.Parallel()
	var done atomic.Int32
	start := time.Now()
	handle(t, numbers(t, redistest.Key(t), 1, 2, 3, 4, 5), count(&done, 5), func(context.Context, int) error {
		done.Add(1)
		return nil
	}, middleware.NewThrottle(50, time.Second).Middleware)
	require.GreaterOrEqual(t, time.Since(start), 80*time.Millisecond)
}

// Timeout ends the context of the function, which still carries what belongs to the value.
func TestChannel_TimeoutMiddleware(t *testing.T) {
	t.Parallel()
	var tries atomic.Int32
	handle(t, numbers(t, redistest.Key(t), 1), count(&tries, 2), func(ctx context.Context, _ int) error {
		if tries.Add(1) > 1 {
			return nil
		}
		<-ctx.Done()
		if _, ok := redischannels.EntryIDFromContext(ctx); !ok {
			t.Error("the context has lost its delivery")
		}
		return ctx.Err()
	}, middleware.Timeout(20*time.Millisecond))
}

// CircuitBreaker keeps values from a function that fails; they come again.
func TestChannel_CircuitBreakerMiddleware(t *testing.T) {
	t.Parallel()
	var calls, opened atomic.Int32
	breaker := middleware.NewCircuitBreaker(gobreaker.Settings{
		Timeout:     30 * time.Millisecond,
		ReadyToTrip: func(c gobreaker.Counts) bool { return c.ConsecutiveFailures >= 2 },
		OnStateChange: func(_ string, _, to gobreaker.State) {
			if to == gobreaker.StateOpen {
				opened.Add(1)
			}
		},
	})
	var done atomic.Int32
	handle(t, numbers(t, redistest.Key(t), 1), count(&done, 1), func(context.Context, int) error {
		if calls.Add(1) <= 2 {
			return errors.New("down")
		}
		done.Add(1)
		return nil
	}, breaker.Middleware)
	require.GreaterOrEqual(t, opened.Load(), int32(1))
}

// poisonQueue is the middleware, with a publisher of its own.
func poisonQueue(t *testing.T, client redis.UniversalClient, topic string) message.HandlerMiddleware {
	t.Helper()
	pub, err := redischannels.NewPublisher(redischannels.PublisherConfig{Client: client}, nil)
	require.NoError(t, err)
	t.Cleanup(func() { _ = pub.Close() })
	queue, err := middleware.PoisonQueue(pub, topic)
	require.NoError(t, err)
	return queue
}

// PoisonQueue publishes what fails, which acknowledges it.
func TestChannel_PoisonQueueMiddleware(t *testing.T) {
	t.Parallel()
	key, poison := redistest.Key(t), redistest.Key(t, "poison")
	client := redistest.Shared(t).Client(t)
	queue := poisonQueue(t, client, poison)
	var tries atomic.Int32
	handle(t, numbers(t, key, 1), func() bool { return client.XLen(t.Context(), poison).Val() == 1 }, func(context.Context, int) error {
		tries.Add(1)
		return errors.New("poison")
	}, queue)
	require.EqualValues(t, 1, tries.Load())
	redistest.Eventually(t, soon, func() bool { return client.XPending(t.Context(), key, "g").Val().Count == 0 }, "still pending")
}

// An entry of which the wire format makes no message at all is a dead letter, and no middleware
// sees it: Deduplicator took a second one for the first, since both have no payload, and
// PoisonQueue acknowledged it by publishing that.
func TestChannel_MiddlewareSeesMessagesOnly(t *testing.T) {
	t.Parallel()
	key, poison := redistest.Key(t), redistest.Key(t, "poison")
	client := redistest.Shared(t).Client(t)
	queue := poisonQueue(t, client, poison)
	c := numbers(t, key)
	for range 3 {
		require.NoError(t, client.XAdd(t.Context(), &redis.XAddArgs{Stream: key, Values: []string{"other", "x"}}).Err())
	}
	_, err := c.Writer().Write(t.Context(), 7)
	require.NoError(t, err)
	var seen, calls atomic.Int32
	watch := func(next message.HandlerFunc) message.HandlerFunc {
		return func(msg *message.Message) ([]*message.Message, error) {
			seen.Add(1)
			return next(msg)
		}
	}
	dedup := middleware.Deduplicator{Timeout: time.Minute, Repository: new(repository)}
	dead := func() int64 { return client.XLen(t.Context(), "{"+key+"}:dead").Val() }
	handle(t, c, func() bool { return calls.Load() == 1 && dead() == 3 }, func(context.Context, int) error { calls.Add(1); return nil },
		watch, dedup.Middleware, queue)
	require.EqualValues(t, 1, seen.Load())
	require.Zero(t, client.Exists(t.Context(), poison).Val())
	redistest.Eventually(t, soon, func() bool { return client.XPending(t.Context(), key, "g").Val().Count == 0 }, "still pending")
}

// CorrelationID and Deduplicator work on the messages of a router with typed handlers,
// and Deduplicator on those of Handle.
func TestChannel_CorrelationAndDeduplication(t *testing.T) {
	t.Parallel()
	in, out := redistest.Key(t, "in"), redistest.Key(t, "out")
	client := redistest.Shared(t).Client(t)
	pub, err := redischannels.NewPublisher(redischannels.PublisherConfig{Client: client}, nil)
	require.NoError(t, err)
	t.Cleanup(func() { _ = pub.Close() })
	sub, err := redischannels.NewSubscriber(redischannels.SubscriberConfig{Client: client, ConsumerGroup: "r"}, nil)
	require.NoError(t, err)
	router := newRouter(t)
	router.AddMiddleware(middleware.CorrelationID)
	double, err := redischannels.ProducerHandlerFunc(nil, func(_ context.Context, v int) ([]int, error) { return []int{2 * v}, nil })
	require.NoError(t, err)
	router.AddHandler("double", in, sub, out, pub, double)
	run(t, router, router.Running())
	c := numbers(t, in)
	_, err = c.Writer().With(message.Metadata{middleware.CorrelationIDMetadataKey: "c-1"}).Write(t.Context(), 4)
	require.NoError(t, err)
	d, err := numbers(t, out).Reader().Receive(t.Context())
	require.NoError(t, err)
	require.Equal(t, 8, d.Value)
	require.Equal(t, "c-1", d.Metadata.Get(middleware.CorrelationIDMetadataKey))
	require.NoError(t, d.Ack())

	var calls atomic.Int32
	dedup := middleware.Deduplicator{Timeout: time.Minute, Repository: new(repository)}
	same := numbers(t, redistest.Key(t, "same"), 7, 7, 7, 8)
	handle(t, same, count(&calls, 2), func(context.Context, int) error { calls.Add(1); return nil }, dedup.Middleware)
	require.EqualValues(t, 2, calls.Load())
}

// repository is one that ends with its test; Watermill's leaves a goroutine behind.
type repository struct{ seen sync.Map }

func (r *repository) IsDuplicate(_ context.Context, key string) (bool, error) {
	_, duplicate := r.seen.LoadOrStore(key, true)
	return duplicate, nil
}

// components/metrics counts what Handle runs.
func TestChannel_Metrics(t *testing.T) {
	t.Parallel()
	registry := prometheus.NewRegistry()
	builder := metrics.NewPrometheusMetricsBuilder(registry, "facade", "")
	var done atomic.Int32
	handle(t, numbers(t, redistest.Key(t), 1, 2, 3), count(&done, 3), func(context.Context, int) error { done.Add(1); return nil },
		builder.NewRouterMiddleware().Middleware)
	families, err := registry.Gather()
	require.NoError(t, err)
	var n uint64
	for _, family := range families {
		for _, metric := range family.GetMetric() {
			n += metric.GetHistogram().GetSampleCount()
			require.Contains(t, metric.String(), `value:"numbers"`, "HandleConfig.Name is the label handler_name")
		}
	}
	require.EqualValues(t, 3, n)
}

// An EventBus and Watermill's cqrs buses share a topic, in both directions.
func TestChannel_EventBusAndCQRS(t *testing.T) {
	t.Parallel()
	key := redistest.Key(t)
	client := redistest.Shared(t).Client(t)
	pub, err := redischannels.NewPublisher(redischannels.PublisherConfig{Client: client}, nil)
	require.NoError(t, err)
	t.Cleanup(func() { _ = pub.Close() })
	sub, err := redischannels.NewSubscriber(redischannels.SubscriberConfig{Client: client, ConsumerGroup: "cqrs"}, nil)
	require.NoError(t, err)
	marshaler := cqrs.JSONMarshaler{GenerateName: func(any) string { return "sum.added" }}
	require.Equal(t, "sum.added", marshaler.Name(added{}))

	registry := redischannels.NewRegistry[any](redischannels.RegistryConfig{})
	require.NoError(t, redischannels.Register[added](registry, "sum.added"))
	hub, err := redischannels.NewHub(client, redischannels.HubConfig{})
	require.NoError(t, err)
	t.Cleanup(func() { _ = hub.Close() })
	bus, err := redischannels.NewStreamEventBus(hub, key, registry, redischannels.StreamChannelConfig{
		Subscriber: redischannels.SubscriberConfig{ConsumerGroup: "bus"},
	})
	require.NoError(t, err)

	router := newRouter(t)
	processor, err := cqrs.NewEventProcessorWithConfig(router, cqrs.EventProcessorConfig{
		GenerateSubscribeTopic: func(cqrs.EventProcessorGenerateSubscribeTopicParams) (string, error) { return key, nil },
		SubscriberConstructor:  func(cqrs.EventProcessorSubscriberConstructorParams) (message.Subscriber, error) { return sub, nil },
		Marshaler:              marshaler,
		Logger:                 watermill.NopLogger{},
	})
	require.NoError(t, err)
	seen := make(chan int, 2)
	require.NoError(t, processor.AddHandlers(cqrs.NewEventHandler("see", func(_ context.Context, e *added) error {
		seen <- e.Sum
		return nil
	})))
	run(t, router, router.Running())
	_, err = bus.Publish(t.Context(), added{Sum: 3})
	require.NoError(t, err)
	require.Equal(t, 3, <-seen)

	events, err := cqrs.NewEventBusWithConfig(pub, cqrs.EventBusConfig{
		GeneratePublishTopic: func(cqrs.GenerateEventPublishTopicParams) (string, error) { return key, nil },
		Marshaler:            marshaler,
	})
	require.NoError(t, err)
	require.NoError(t, events.Publish(t.Context(), added{Sum: 4}))
	for _, want := range []int{3, 4} {
		v, err := bus.Channel().Reader().Read(t.Context())
		require.NoError(t, err)
		require.Equal(t, added{Sum: want}, v)
	}
}

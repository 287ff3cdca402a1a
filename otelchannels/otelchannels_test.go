package otelchannels_test

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/semconv/v1.43.0/messagingconv"
	"go.opentelemetry.io/otel/trace"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
	"github.com/flaminco/redischannels/otelchannels"
)

const soon = 10 * time.Second

// kit is a publisher and a subscriber whose spans and metrics stay in memory.
type kit struct {
	t         *testing.T
	client    *redis.Client
	topic     string
	spans     *tracetest.SpanRecorder
	tracer    trace.Tracer
	metrics   *sdkmetric.ManualReader
	observer  redischannels.Instrumentation
	publisher *redischannels.Publisher
}

func newKit(t *testing.T, sampler sdktrace.Sampler, change func(*otelchannels.Config)) *kit {
	t.Helper()
	k := &kit{
		t: t, client: redistest.Shared(t).Client(t), topic: redistest.Key(t),
		spans: tracetest.NewSpanRecorder(), metrics: sdkmetric.NewManualReader(),
	}
	provider := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(k.spans), sdktrace.WithSampler(sampler))
	k.tracer = provider.Tracer("test")
	config := otelchannels.Config{TracerProvider: provider, MeterProvider: sdkmetric.NewMeterProvider(sdkmetric.WithReader(k.metrics))}
	if change != nil {
		change(&config)
	}
	var err error
	k.observer, err = otelchannels.New(config)
	require.NoError(t, err)
	k.publisher, err = redischannels.NewPublisher(redischannels.PublisherConfig{Client: k.client, Instrumentation: k.observer}, nil)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, k.publisher.Close()) })
	return k
}

// subscribe subscribes in the context of a span, which is no part of the deliveries.
func (k *kit) subscribe(change ...func(*redischannels.SubscriberConfig)) <-chan *message.Message {
	k.t.Helper()
	config := redischannels.SubscriberConfig{
		Client: k.client, ConsumerGroup: "g", Instrumentation: k.observer, NackBackoff: redischannels.Backoff{Min: time.Millisecond},
	}
	for _, f := range change {
		f(&config)
	}
	sub, err := redischannels.NewSubscriber(config, nil)
	require.NoError(k.t, err)
	k.t.Cleanup(func() { require.NoError(k.t, sub.Close()) })
	ctx, start := k.tracer.Start(k.t.Context(), "start")
	messages, err := sub.Subscribe(ctx, k.topic)
	require.NoError(k.t, err)
	start.End()
	return messages
}

// publish publishes a message within a span of the caller.
func (k *kit) publish() {
	k.t.Helper()
	ctx, span := k.tracer.Start(k.t.Context(), "checkout")
	defer span.End()
	msg := message.NewMessage(watermill.NewUUID(), []byte("x"))
	msg.SetContext(ctx)
	require.NoError(k.t, k.publisher.Publish(k.topic, msg))
}

func (k *kit) receive(messages <-chan *message.Message) *message.Message {
	k.t.Helper()
	select {
	case msg := <-messages:
		return msg
	case <-time.After(soon):
		require.FailNow(k.t, "no message")
		return nil
	}
}

// ended waits for n spans of a name and returns them, in the order of their ends.
func (k *kit) ended(name string, n int) []sdktrace.ReadOnlySpan {
	k.t.Helper()
	var found []sdktrace.ReadOnlySpan
	redistest.Eventually(k.t, soon, func() bool {
		found = found[:0]
		for _, span := range k.spans.Ended() {
			if span.Name() == name {
				found = append(found, span)
			}
		}
		return len(found) >= n
	}, "%d spans %q", n, name)
	require.Len(k.t, found, n)
	return found
}

func attributesOf(span sdktrace.ReadOnlySpan) map[string]any {
	found := map[string]any{}
	for _, a := range span.Attributes() {
		found[string(a.Key)] = a.Value.AsInterface()
	}
	return found
}

// The spans of a message that is published, nacked, retried, dead-lettered, requeued and handled.
func TestSpans_OfAMessage(t *testing.T) {
	t.Parallel()
	k := newKit(t, sdktrace.AlwaysSample(), nil)
	messages := k.subscribe()
	k.publish()
	first := k.receive(messages)
	_, child := k.tracer.Start(first.Context(), "handler")
	child.End()
	redischannels.RetryAfter(first, time.Millisecond)
	first.Nack()
	second := k.receive(messages)
	redischannels.Reject(second, "no such order")
	second.Nack()
	letters, err := redischannels.NewDeadLetters(redischannels.DeadLettersConfig{Client: k.client}, nil)
	require.NoError(t, err)
	var dead []string
	redistest.Eventually(t, soon, func() bool {
		for letter, err := range letters.List(t.Context(), k.topic, redischannels.DeadLetterQuery{}) {
			require.NoError(t, err)
			dead = append(dead, letter.ID)
		}
		return len(dead) == 1
	}, "a dead letter")
	_, err = letters.Requeue(t.Context(), k.topic, dead...)
	require.NoError(t, err)
	last := k.receive(messages)
	last.Ack()

	checkout, publish := k.ended("checkout", 1)[0], k.ended("publish "+k.topic, 1)[0]
	process := k.ended("process "+k.topic, 3)
	require.Equal(t, checkout.SpanContext().SpanID(), publish.Parent().SpanID())
	require.Equal(t, trace.SpanKindProducer, publish.SpanKind())
	require.Equal(t, codes.Unset, publish.Status().Code)
	require.Equal(t, map[string]any{
		"messaging.system": "redis_streams", "messaging.operation.type": "send", "messaging.operation.name": "publish",
		"messaging.destination.name": k.topic,
	}, attributesOf(publish))
	require.Equal(t, process[0].SpanContext().SpanID(), k.ended("handler", 1)[0].Parent().SpanID())
	var ids []string
	for i, want := range []map[string]any{
		{"messaging.redischannels.outcome": "nacked", "messaging.redischannels.delivery_count": int64(1), "messaging.redischannels.delay": 0.001, "error.type": "nacked"},
		{"messaging.redischannels.outcome": "dead-lettered", "messaging.redischannels.delivery_count": int64(2), "error.type": "dead-lettered"},
		{"messaging.redischannels.outcome": "acked", "messaging.redischannels.delivery_count": int64(1)},
	} {
		span := process[i]
		require.Equal(t, trace.SpanKindConsumer, span.SpanKind())
		require.False(t, span.Parent().IsValid(), "a trace of its own")
		require.Len(t, span.Links(), 1)
		require.Equal(t, publish.SpanContext().SpanID(), span.Links()[0].SpanContext.SpanID(), "delivery %d", i)
		require.Equal(t, publish.SpanContext().TraceID(), span.Links()[0].SpanContext.TraceID())
		got := attributesOf(span)
		ids = append(ids, got["messaging.message.id"].(string))
		delete(got, "messaging.message.id")
		maps.Copy(want, map[string]any{
			"messaging.system": "redis_streams", "messaging.operation.type": "process", "messaging.operation.name": "process",
			"messaging.destination.name": k.topic, "messaging.consumer.group.name": "g",
		})
		require.Equal(t, want, got)
	}
	require.Equal(t, ids[0], ids[1])
	require.Equal(t, ids[0], ids[2], "of the original")
	require.Equal(t, sdktrace.Status{Code: codes.Error, Description: "no such order"}, process[1].Status())
	require.Equal(t, codes.Unset, process[2].Status().Code)

	k.points(messagingconv.ClientSentMessages{}.Name(), map[string]float64{"": 1})
	for _, name := range []string{messagingconv.ClientConsumedMessages{}.Name(), messagingconv.ProcessDuration{}.Name()} {
		k.points(name, map[string]float64{"nacked": 1, "dead-lettered": 1, "acked": 1})
	}
	k.points(messagingconv.ClientOperationDuration{}.Name(), map[string]float64{"": 1})
	k.onlyKnownNames()
}

// points compares the counts of a metric by outcome.
func (k *kit) points(name string, want map[string]float64) {
	k.t.Helper()
	got := map[string]float64{}
	add := func(attributes attribute.Set, n float64) {
		outcome, _ := attributes.Value("messaging.redischannels.outcome")
		got[outcome.AsString()] += n
		destination, _ := attributes.Value(semconv.MessagingDestinationNameKey)
		require.Equal(k.t, k.topic, destination.AsString())
	}
	for _, m := range k.collect() {
		if m.Name != name {
			continue
		}
		switch data := m.Data.(type) {
		case metricdata.Sum[int64]:
			for _, p := range data.DataPoints {
				add(p.Attributes, float64(p.Value))
			}
		case metricdata.Histogram[float64]:
			for _, p := range data.DataPoints {
				require.Equal(k.t, "s", m.Unit)
				require.Positive(k.t, p.Sum)
				add(p.Attributes, float64(p.Count))
			}
		}
	}
	require.Equal(k.t, want, got, name)
}

func (k *kit) collect() []metricdata.Metrics {
	k.t.Helper()
	var all metricdata.ResourceMetrics
	require.NoError(k.t, k.metrics.Collect(context.WithoutCancel(k.t.Context()), &all))
	require.Len(k.t, all.ScopeMetrics, 1)
	return all.ScopeMetrics[0].Metrics
}

// onlyKnownNames compares each name with those of the semantic conventions.
func (k *kit) onlyKnownNames() {
	k.t.Helper()
	attributes := []attribute.Key{
		semconv.MessagingSystemKey, semconv.MessagingOperationTypeKey, semconv.MessagingOperationNameKey,
		semconv.MessagingDestinationNameKey, semconv.MessagingConsumerGroupNameKey, semconv.MessagingMessageIDKey,
		semconv.MessagingBatchMessageCountKey, semconv.ErrorTypeKey,
	}
	known := func(key attribute.Key) {
		require.True(k.t, slices.Contains(attributes, key) || strings.HasPrefix(string(key), "messaging.redischannels."), "%s", key)
	}
	for _, span := range k.spans.Ended() {
		for _, a := range span.Attributes() {
			known(a.Key)
		}
	}
	names := []string{
		messagingconv.ClientSentMessages{}.Name(), messagingconv.ClientConsumedMessages{}.Name(),
		messagingconv.ClientOperationDuration{}.Name(), messagingconv.ProcessDuration{}.Name(),
	}
	for _, m := range k.collect() {
		require.Contains(k.t, names, m.Name)
		names = slices.DeleteFunc(names, func(name string) bool { return name == m.Name })
		if data, ok := m.Data.(metricdata.Histogram[float64]); ok {
			for _, a := range data.DataPoints[0].Attributes.ToSlice() {
				known(a.Key)
			}
		}
	}
	require.Empty(k.t, names, "each metric has values")
}

func TestSpans_ProducerIsParent(t *testing.T) {
	t.Parallel()
	k := newKit(t, sdktrace.AlwaysSample(), func(c *otelchannels.Config) {
		c.ProducerIsParent = true
		c.Destination = func(string) string { return "orders" }
	})
	messages := k.subscribe()
	k.publish()
	k.receive(messages).Ack()
	publish, process := k.ended("publish orders", 1)[0], k.ended("process orders", 1)[0]
	require.Equal(t, publish.SpanContext().SpanID(), process.Parent().SpanID())
	require.Equal(t, k.ended("checkout", 1)[0].SpanContext().TraceID(), process.SpanContext().TraceID())
	require.Empty(t, process.Links())
}

// The decision of the caller not to sample reaches the handler, without a span on the way.
func TestSpans_NotSampled(t *testing.T) {
	t.Parallel()
	k := newKit(t, sdktrace.NeverSample(), nil)
	messages := k.subscribe()
	k.publish()
	msg := k.receive(messages)
	require.True(t, strings.HasSuffix(msg.Metadata.Get("traceparent"), "-00"), msg.Metadata)
	require.True(t, trace.SpanContextFromContext(msg.Context()).IsValid())
	msg.Ack()
	redistest.Eventually(t, soon, func() bool { return len(k.collect()) == 4 }, "the metrics")
	require.Empty(t, k.spans.Ended())
}

// A handler that publishes its message again keeps the relation to the first producer.
func TestSpans_Forwarded(t *testing.T) {
	t.Parallel()
	k := newKit(t, sdktrace.AlwaysSample(), nil)
	messages := k.subscribe()
	k.publish()
	msg := k.receive(messages)
	again := msg.Copy()
	require.NoError(t, k.publisher.Publish(k.topic, again))
	msg.Ack()
	last := k.receive(messages)
	last.Ack()
	publish := k.ended("publish "+k.topic, 2)
	require.Equal(t, publish[0].SpanContext().SpanID(), publish[1].Parent().SpanID())
	require.NotEqual(t, msg.Metadata.Get("traceparent"), last.Metadata.Get("traceparent"))
	require.Equal(t, msg.Metadata.Get("traceparent"), again.Metadata.Get("traceparent"), "the message of the caller")
	process := k.ended("process "+k.topic, 2)
	require.Equal(t, publish[1].SpanContext().SpanID(), process[1].Links()[0].SpanContext.SpanID())
}

// A batch is one span with a link per message, and an event per end.
func TestSpans_Batch(t *testing.T) {
	t.Parallel()
	k := newKit(t, sdktrace.AlwaysSample(), nil)
	hub, err := redischannels.NewHub(k.client, redischannels.HubConfig{Instrumentation: k.observer})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, hub.Close()) })
	orders, err := redischannels.NewStreamChannel[int](hub, k.topic, redischannels.StreamChannelConfig{
		Subscriber: redischannels.SubscriberConfig{ConsumerGroup: "g"},
	})
	require.NoError(t, err)
	_, err = orders.Writer().WriteAll(t.Context(), 1, 2, 3)
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	failed := errors.New("duplicate")
	require.NoError(t, orders.Reader().HandleBatch(ctx, func(ctx context.Context, batch []redischannels.Delivery[int]) error {
		require.True(t, trace.SpanFromContext(ctx).IsRecording())
		if len(batch) < 3 {
			return nil
		}
		cancel()
		return &redischannels.BatchError{Failed: []int{1}, Err: redischannels.Permanent(failed)}
	}, redischannels.BatchConfig{Size: 3, Wait: soon / 2}))
	publish := k.ended("publish "+k.topic, 1)[0]
	require.EqualValues(t, 3, attributesOf(publish)["messaging.batch.message_count"])
	process := k.ended("process "+k.topic, 1)[0]
	require.EqualValues(t, 3, attributesOf(process)["messaging.batch.message_count"])
	require.Len(t, process.Links(), 3)
	require.Equal(t, sdktrace.Status{Code: codes.Error, Description: "duplicate"}, process.Status())
	var events []string
	for _, e := range process.Events() {
		events = append(events, e.Name)
	}
	require.Equal(t, []string{"message acked", "message dead-lettered", "message acked"}, events)
}

// The span of a publication that fails has the outcome of its messages.
func TestSpans_PublishFails(t *testing.T) {
	t.Parallel()
	k := newKit(t, sdktrace.AlwaysSample(), nil)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := k.publisher.Append(ctx, k.topic, message.NewMessage(watermill.NewUUID(), nil))
	require.Error(t, err)
	span := k.ended("publish "+k.topic, 1)[0]
	require.Equal(t, sdktrace.Status{Code: codes.Error, Description: err.Error()}, span.Status())
	require.Equal(t, redischannels.OutcomeNotAppended.String(), attributesOf(span)["error.type"])
}

func TestSpans_PubSub(t *testing.T) {
	t.Parallel()
	k := newKit(t, sdktrace.AlwaysSample(), nil)
	sub, err := redischannels.NewPubSubSubscriber(redischannels.PubSubSubscriberConfig{Client: k.client, Instrumentation: k.observer}, nil)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, sub.Close()) })
	messages, err := sub.Subscribe(t.Context(), k.topic)
	require.NoError(t, err)
	pub, err := redischannels.NewPubSubPublisher(redischannels.PubSubPublisherConfig{Client: k.client, Instrumentation: k.observer}, nil)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, pub.Close()) })
	require.NoError(t, pub.Publish(k.topic, message.NewMessage("id", nil)))
	k.receive(messages).Ack()
	process := k.ended("process "+k.topic, 1)[0]
	require.Equal(t, "redis_pubsub", attributesOf(process)["messaging.system"])
	require.Equal(t, "id", attributesOf(process)["messaging.message.id"])
	require.Equal(t, k.ended("publish "+k.topic, 1)[0].SpanContext().SpanID(), process.Links()[0].SpanContext.SpanID())
}

package otelchannels

import (
	"fmt"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/propagation"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/semconv/v1.43.0/messagingconv"
	"go.opentelemetry.io/otel/trace"

	"github.com/flaminco/redischannels"
)

// Config configures [New]. The zero value uses the global providers.
type Config struct {
	// TracerProvider makes the spans. Defaults to otel.GetTracerProvider().
	TracerProvider trace.TracerProvider

	// MeterProvider makes the metrics. Defaults to otel.GetMeterProvider().
	MeterProvider metric.MeterProvider

	// Propagator writes the context of a publication into the metadata of its messages, and reads
	// it. Defaults to propagation.TraceContext, whose metadata are traceparent and tracestate.
	Propagator propagation.TextMapPropagator

	// ProducerIsParent makes the span of a delivery a child of the span that has published the
	// message, instead of a linked span in a trace of its own. A trace then lasts until the last
	// retry, which can be days. A batch of several messages is linked in any case.
	ProducerIsParent bool

	// Destination returns the name of a topic for spans and metrics. It must return few names: a
	// meter provider merges the attributes of further ones. Defaults to the topic.
	Destination func(topic string) string
}

func (c Config) withDefaults() Config {
	if c.TracerProvider == nil {
		c.TracerProvider = otel.GetTracerProvider()
	}
	if c.MeterProvider == nil {
		c.MeterProvider = otel.GetMeterProvider()
	}
	if c.Propagator == nil {
		c.Propagator = propagation.TraceContext{}
	}
	if c.Destination == nil {
		c.Destination = func(topic string) string { return topic }
	}
	return c
}

const scope = "github.com/flaminco/redischannels/otelchannels"

// New returns an Instrumentation for the configuration of a hub, a publisher or a subscriber. It
// may be used by several, and has nothing to close. The error is that of the MeterProvider.
func New(config Config) (redischannels.Instrumentation, error) {
	config = config.withDefaults()
	i := &instrumentation{
		config: config,
		tracer: config.TracerProvider.Tracer(scope, trace.WithSchemaURL(semconv.SchemaURL)),
	}
	if err := i.instruments.open(config.MeterProvider.Meter(scope, metric.WithSchemaURL(semconv.SchemaURL))); err != nil {
		return nil, fmt.Errorf("otelchannels: %w", err)
	}
	return i, nil
}

// instruments are the metrics.
type instruments struct {
	sent, consumed     metric.Int64Counter
	publishing, handle metric.Float64Histogram
}

// bounds are the bounds of durations in seconds that the conventions advise.
var bounds = metric.WithExplicitBucketBoundaries(0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)

func (i *instruments) open(meter metric.Meter) error {
	sent, err := messagingconv.NewClientSentMessages(meter)
	if err != nil {
		return err
	}
	consumed, err := messagingconv.NewClientConsumedMessages(meter)
	if err != nil {
		return err
	}
	publishing, err := messagingconv.NewClientOperationDuration(meter, bounds)
	if err != nil {
		return err
	}
	handle, err := messagingconv.NewProcessDuration(meter, bounds)
	i.sent, i.consumed, i.publishing, i.handle = sent.Inst(), consumed.Inst(), publishing.Inst(), handle.Inst()
	return err
}

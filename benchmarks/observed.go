package main

import (
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/otelchannels"
	"github.com/flaminco/redischannels/promchannels"
	noopmetric "go.opentelemetry.io/otel/metric/noop"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	nooptrace "go.opentelemetry.io/otel/trace/noop"
)

// instrumentation makes the Instrumentation of a row.
type instrumentation func() (redischannels.Instrumentation, error)

// observedRows compare subscribers with an Instrumentation with one without.
func observedRows() []row {
	observed := func(name string, least float64, make instrumentation) row {
		return row{name: "observed-" + name, unit: rate, peers: []peer{
			{name: ours.name + " with " + name, messages: 200_000, run: subscribeObserved(make)},
			{name: ours.name, messages: 200_000, run: subscribeObserved(nil), least: least},
		}}
	}
	return []row{
		observed("metrics", 0.9, func() (redischannels.Instrumentation, error) { return promchannels.NewMetrics(promchannels.Config{}) }),
		observed("otel-metrics", 0, func() (redischannels.Instrumentation, error) {
			return otelchannels.New(otelchannels.Config{
				TracerProvider: nooptrace.NewTracerProvider(),
				MeterProvider:  sdkmetric.NewMeterProvider(sdkmetric.WithReader(sdkmetric.NewManualReader())),
			})
		}),
		observed("spans-not-sampled", 0.85, spans(sdktrace.NeverSample())),
		observed("spans-sampled", 0, spans(sdktrace.AlwaysSample())),
	}
}

// spans makes spans that are not exported.
func spans(sampler sdktrace.Sampler) instrumentation {
	return func() (redischannels.Instrumentation, error) {
		return otelchannels.New(otelchannels.Config{
			TracerProvider: sdktrace.NewTracerProvider(sdktrace.WithSampler(sampler), sdktrace.WithSyncer(tracetest.NewNoopExporter())),
			MeterProvider:  noopmetric.NewMeterProvider(),
		})
	}
}

// subscribeObserved is library.subscribe for messages with the metadata of a publication that was traced.
func subscribeObserved(make instrumentation) func(*trial) error {
	return func(t *trial) error {
		if err := t.fillWith(t.tracedFields); err != nil {
			return err
		}
		l := library{name: ours.name, subscriber: func(t *trial, s settings) (message.Subscriber, error) {
			config := oursConfig(t, s)
			if make != nil {
				var err error
				if config.Instrumentation, err = make(); err != nil {
					return nil, err
				}
			}
			return redischannels.NewSubscriber(config, nil)
		}}
		return l.subscribeFilled(t, 1)
	}
}

// traceparent is the metadata of a message in msgpack.
const traceparent = "\x81\xabtraceparent\xd9\x3700-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

func (t *trial) tracedFields(i int) []any {
	return []any{"_watermill_message_uuid", uuid(i), "metadata", traceparent, "payload", t.payload}
}

package otelchannels

import (
	"context"
	"errors"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"

	"github.com/flaminco/redischannels"
)

// Attributes that the conventions do not have.
const (
	outcomeKey       = attribute.Key("messaging.redischannels.outcome")
	deliveryCountKey = attribute.Key("messaging.redischannels.delivery_count")
	delayKey         = attribute.Key("messaging.redischannels.delay") // in seconds
)

// instrumentation implements redischannels.Instrumentation. The span of a publication, or of a
// delivery, is in the context that each start returns.
type instrumentation struct {
	config Config
	tracer trace.Tracer
	instruments
	subjects subjects
}

// PublishStart implements redischannels.Instrumentation.
func (i *instrumentation) PublishStart(ctx context.Context, p redischannels.Publication) (context.Context, message.Metadata) {
	if len(p.Messages) == 1 && !trace.SpanContextFromContext(ctx).IsValid() {
		// A handler that publishes its message again, without its context.
		ctx = i.config.Propagator.Extract(ctx, propagation.MapCarrier(p.Messages[0].Metadata))
	}
	s := i.publishing(p.Topic, p.PubSub)
	ctx, span := i.tracer.Start(ctx, s.span, s.start...)
	if span.IsRecording() && len(p.Messages) > 1 {
		span.SetAttributes(semconv.MessagingBatchMessageCount(len(p.Messages)))
	}
	metadata := make(message.Metadata, 1)
	i.config.Propagator.Inject(ctx, propagation.MapCarrier(metadata))
	return ctx, metadata
}

// PublishEnd implements redischannels.Instrumentation.
func (i *instrumentation) PublishEnd(ctx context.Context, p redischannels.Publication, took time.Duration, err error) {
	m := i.publishing(p.Topic, p.PubSub).measured(publishFailure(err))
	i.sent.Add(ctx, int64(len(p.Messages)), m.add...)
	i.instruments.publishing.Record(ctx, took.Seconds(), m.record...)
	span := trace.SpanFromContext(ctx)
	if err != nil && span.IsRecording() {
		span.SetAttributes(semconv.ErrorTypeKey.String(m.failure))
		span.SetStatus(codes.Error, err.Error())
	}
	span.End()
}

// publishFailure returns the error.type of the error of a publication, empty for nil.
func publishFailure(err error) string {
	if err == nil {
		return ""
	}
	var failed *redischannels.PublishError
	if errors.As(err, &failed) {
		for _, r := range failed.Results {
			if r.Err != nil {
				return r.Outcome.String()
			}
		}
	}
	return semconv.ErrorTypeOther.Value.AsString()
}

// ProcessStart implements redischannels.Instrumentation. The links are added to a span that records:
// for others the metadata are not parsed.
func (i *instrumentation) ProcessStart(ctx context.Context, p redischannels.Processing) context.Context {
	s := i.processing(p)
	ctx = s.rootOf(ctx)
	if i.config.ProducerIsParent && len(p.Messages) == 1 {
		if producer := i.producer(p.Messages[0].Metadata); producer.IsValid() {
			ctx = trace.ContextWithRemoteSpanContext(ctx, producer)
		}
	}
	ctx, span := i.tracer.Start(ctx, s.span, s.start...)
	if !span.IsRecording() {
		return ctx
	}
	if len(p.Messages) > 1 {
		span.SetAttributes(semconv.MessagingBatchMessageCount(len(p.Messages)))
		for _, msg := range p.Messages {
			i.link(span, msg, semconv.MessagingMessageID(msg.ID), deliveryCountKey.Int(msg.DeliveryCount))
		}
		return ctx
	}
	span.SetAttributes(semconv.MessagingMessageID(p.Messages[0].ID), deliveryCountKey.Int(p.Messages[0].DeliveryCount))
	if !i.config.ProducerIsParent {
		i.link(span, p.Messages[0])
	}
	return ctx
}

// link links a span to the producer of a message.
func (i *instrumentation) link(span trace.Span, msg redischannels.ProcessedMessage, attributes ...attribute.KeyValue) {
	if producer := i.producer(msg.Metadata); producer.IsValid() {
		span.AddLink(trace.Link{SpanContext: producer, Attributes: attributes})
	}
}

// producer returns the context of the span that has published a message.
func (i *instrumentation) producer(metadata message.Metadata) trace.SpanContext {
	if len(metadata) == 0 {
		return trace.SpanContext{}
	}
	return trace.SpanContextFromContext(i.config.Propagator.Extract(context.Background(), propagation.MapCarrier(metadata)))
}

// ProcessEnd implements redischannels.Instrumentation.
func (i *instrumentation) ProcessEnd(ctx context.Context, p redischannels.Processing, end redischannels.ProcessEnd) {
	span := trace.SpanFromContext(ctx)
	if end.Outcome != redischannels.ProcessWithdrawn {
		m := i.processing(p).ended(end.Outcome)
		i.consumed.Add(ctx, 1, m.add...)
		i.handle.Record(ctx, end.Duration.Seconds(), m.record...)
	}
	if span.IsRecording() {
		describe(span, p, end)
	}
	if end.Left == 0 {
		span.End()
	}
}

// describe adds the end of a message to a span: as attributes, or in a batch as an event.
func describe(span trace.Span, p redischannels.Processing, end redischannels.ProcessEnd) {
	attributes := []attribute.KeyValue{outcomeKey.String(end.Outcome.String())}
	if end.Delay > 0 {
		attributes = append(attributes, delayKey.Float64(end.Delay.Seconds()))
	}
	failure := processFailure(end.Outcome)
	if failure != "" {
		span.SetStatus(codes.Error, end.Reason)
		attributes = append(attributes, semconv.ErrorTypeKey.String(failure))
	}
	if len(p.Messages) == 1 {
		span.SetAttributes(attributes...)
		return
	}
	attributes = append(attributes, semconv.MessagingMessageID(p.Messages[end.Message].ID))
	span.AddEvent("message "+end.Outcome.String(), trace.WithAttributes(attributes...))
}

// processFailure returns the error.type of an outcome, empty for those that are no failures.
func processFailure(o redischannels.ProcessOutcome) string {
	switch o {
	case redischannels.ProcessAcked, redischannels.ProcessReleased, redischannels.ProcessWithdrawn:
		return ""
	}
	return o.String()
}

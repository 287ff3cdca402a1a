// Package otelchannels records traces and metrics of package redischannels by OpenTelemetry, with the
// names of its semantic conventions for messaging. The result of [New] is the Instrumentation of a
// hub, a publisher or a subscriber.
//
// A call that publishes is a span of kind producer, a child of the span in its context. The metadata
// traceparent carries its context to Redis. A delivery is a span of kind consumer, from when the
// application receives the message until it is acked, nacked, or ends in another way; the handler
// finds it in the context of the message. Each retry, and each delivery of a requeued dead letter,
// is a span of its own. A batch is one span. By default a delivery begins its own trace and links to
// the producer's span; with ProducerIsParent it is a child of it.
package otelchannels

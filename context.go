package redischannels

import (
	"context"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/flaminco/redischannels/internal/source"
)

// These functions read the context of a message that a Subscriber has delivered, or any context
// derived from it. The values are not in the metadata, where they would leak into messages that
// the handler publishes.

// EntryIDFromContext returns the ID of the stream entry; ok is false for Pub/Sub.
func EntryIDFromContext(ctx context.Context) (id string, ok bool) {
	a := source.FromContext(ctx)
	if a == nil || !a.From.Entries {
		return "", false
	}
	return a.ID, true
}

// DeliveryCountFromContext returns the number of deliveries of the message to a handler of this
// group, including this one: 1 on the first delivery.
func DeliveryCountFromContext(ctx context.Context) (count int, ok bool) {
	a := source.FromContext(ctx)
	if a == nil || a.Count == 0 {
		return 0, false
	}
	return a.Count, true
}

// TopicFromContext returns the topic of the message. For a message that matched a Pub/Sub pattern
// it is the channel to which the message was published.
func TopicFromContext(ctx context.Context) (topic string, ok bool) {
	a := source.FromContext(ctx)
	if a == nil {
		return "", false
	}
	return a.Topic, true
}

// ConsumerGroupFromContext returns the consumer group in which the message was
// delivered; ok is false outside of a group.
func ConsumerGroupFromContext(ctx context.Context) (group string, ok bool) {
	a := source.FromContext(ctx)
	if a == nil || a.From.Group == "" {
		return "", false
	}
	return a.From.Group, true
}

// RetryAfter sets the delay between the Nack of a message and its redelivery, instead of
// NackBackoff. It takes effect with the Nack, so a router's handler calls it and returns an
// error. In a consumer group without an order (MaxInFlight above 1, no OrderingKey) a retry with
// a delay above SubscriberConfig.DeferAfter is deferred: it waits in Redis, and survives the end
// of the process. With an order the message waits in the process, and blocks the messages behind
// it; after a restart it is delivered when MinIdle is over. RetryAfter returns false for a
// message that was not delivered by a Subscriber of this package, and for a negative delay.
func RetryAfter(msg *message.Message, delay time.Duration) bool {
	return delay >= 0 && request(msg, source.Outcome{Kind: source.Nack, Delay: delay})
}

// Postpone sets the delay like [RetryAfter], and the delivery does not count. It is for a message
// that is too early to handle, not for a failure. It takes effect with the Nack, as RetryAfter
// does; the last call of RetryAfter, Postpone and Reject takes effect. It returns false for a
// message that was not delivered by a Subscriber of this package, and for a negative delay.
func Postpone(msg *message.Message, delay time.Duration) bool {
	return delay >= 0 && request(msg, source.Outcome{Kind: source.Release, Delay: delay})
}

// Reject marks a message whose handling cannot succeed. With its Nack it is moved to the
// dead-letter stream with this reason, or is skipped without a group. The reason is stored in
// Redis (at most 1,024 bytes of it) and must not contain a secret. Reject returns false for a
// message that was not delivered by a Subscriber of this package.
func Reject(msg *message.Message, reason string) bool {
	return request(msg, source.Outcome{Kind: source.Reject, Reason: reason})
}

// request sets the outcome of a Nack of a message; the last call takes effect.
func request(msg *message.Message, o source.Outcome) bool {
	a := source.FromContext(msg.Context())
	if a == nil {
		return false
	}
	a.Request(o)
	return true
}

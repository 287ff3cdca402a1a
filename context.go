package redischannels

import (
	"context"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/flaminco/redischannels/internal/source"
)

// What a handler can ask of the context of a message that a Subscriber handed to
// it, or of any context derived from that. None of it is in the metadata, where
// it would leak into what the handler publishes.

// EntryIDFromContext returns the ID of the stream entry; ok is false for Pub/Sub.
func EntryIDFromContext(ctx context.Context) (id string, ok bool) {
	a := source.FromContext(ctx)
	if a == nil || !a.From.Entries {
		return "", false
	}
	return a.ID, true
}

// DeliveryCountFromContext returns how often the message was handed to a
// handler of this group, this time included: 1 on the first delivery.
func DeliveryCountFromContext(ctx context.Context) (count int, ok bool) {
	a := source.FromContext(ctx)
	if a == nil || a.Count == 0 {
		return 0, false
	}
	return a.Count, true
}

// TopicFromContext returns the topic that the message came from; for a message that
// a Pub/Sub pattern has matched it is the channel that it was published to.
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

// RetryAfter sets the delay after which the message is redelivered once it is
// nacked, instead of NackBackoff. It takes effect with the Nack, so a router's
// handler calls it and returns an error. In a consumer group without an order
// (MaxInFlight above 1, no OrderingKey) a delay above SubscriberConfig.DeferAfter is
// deferred: it waits in Redis, and survives the end of the process. In order it holds
// within the process only, and what comes behind waits for it; after a restart the message
// comes when MinIdle is over. It reports false for a message that no Subscriber of this
// package has delivered, and for a negative delay.
func RetryAfter(msg *message.Message, delay time.Duration) bool {
	return delay >= 0 && request(msg, source.Outcome{Kind: source.Nack, Delay: delay})
}

// Postpone makes the Nack of a message count as if it had not been delivered: it is
// redelivered after this delay, which is deferred as that of [RetryAfter], and the delivery
// does not count. It is for a message whose time has not come, not for a failure. It takes effect with the Nack, as RetryAfter does; the
// last call of RetryAfter, Postpone and Reject counts. It reports false for a message that was
// not delivered by a Subscriber of this package, and for a negative delay.
func Postpone(msg *message.Message, delay time.Duration) bool {
	return delay >= 0 && request(msg, source.Outcome{Kind: source.Release, Delay: delay})
}

// Reject marks a message that no retry can help: once it is nacked it goes to
// the dead-letter stream with this reason, or is passed outside of a group. The
// reason is stored in Redis (at most 1,024 bytes of it) and must hold no secret.
// It reports false for a message that no Subscriber of this package has delivered.
func Reject(msg *message.Message, reason string) bool {
	return request(msg, source.Outcome{Kind: source.Reject, Reason: reason})
}

// request says how a Nack of a message is meant; the last call counts.
func request(msg *message.Message, o source.Outcome) bool {
	a := source.FromContext(msg.Context())
	if a == nil {
		return false
	}
	a.Request(o)
	return true
}

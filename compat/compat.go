// Package compat converts configurations of watermill-redisstream to those of redischannels, so
// that a service can change its library and keep its streams, consumer groups and wire format.
//
// A zero field gets its default of watermill-redisstream, not that of redischannels, unless noted
// below. docs/from-redisstream.md describes how to move a live group, and the differences in
// behavior.
package compat

import (
	"errors"
	"fmt"
	"time"

	"github.com/ThreeDotsLabs/watermill-redisstream/pkg/redisstream"

	"github.com/flaminco/redischannels"
)

// ResendDelay replaces redisstream.NoSleep: the time between a Nack and the redelivery, which
// costs a command in redischannels.
const ResendDelay = time.Millisecond

// Errors of fields without a counterpart, which cannot be ignored without changing the behavior
// of a service.
var (
	// ErrShouldClaimPendingMessage: redischannels renews the leases of entries every third of
	// Tuning.MinIdle, as long as their process runs. A handler may therefore run for any time,
	// and a crashed consumer is still detected after MinIdle, so there is no decision for the
	// callback. Remove it and set MinIdle to the time within which a crash must be detected.
	ErrShouldClaimPendingMessage = errors.New("compat: ShouldClaimPendingMessage has no counterpart: leases are renewed, so that only entries of crashed consumers are claimed; remove it and set Tuning.MinIdle to the time within which a crash must be detected")

	// ErrShouldStopOnReadErrors: in redischannels an error of a read does not end a subscription,
	// and each outage is an event. To end on an outage, cancel the context of Subscribe from a
	// goroutine that OnEvent starts.
	ErrShouldStopOnReadErrors = errors.New("compat: ShouldStopOnReadErrors has no counterpart: reading continues after every error; remove it and end the subscription by its context when OnEvent receives EventDisconnected or EventError")
)

// PublisherConfig converts the configuration of redisstream.NewPublisher to that of
// redischannels.NewPublisher:
//
//   - Client: the same. redischannels does not close it.
//   - Marshaller: the default becomes redischannels.WatermillMarshaler, which writes the same
//     fields. [Marshaler] adapts any other.
//   - DefaultMaxlen: Retention.MaxLen, approximate. 0 or less is no bound.
//   - Maxlens: TopicRetention. 0 is no bound, less than 0 is DefaultMaxlen. The
//     map is neither changed nor kept.
//
// It returns the error of Validate for the result.
func PublisherConfig(from redisstream.PublisherConfig) (redischannels.PublisherConfig, error) {
	to := redischannels.PublisherConfig{
		Client:    from.Client,
		Retention: retention(from.DefaultMaxlen),
	}
	switch from.Marshaller.(type) {
	case nil, redisstream.DefaultMarshallerUnmarshaller, *redisstream.DefaultMarshallerUnmarshaller:
	default:
		to.Marshaler = Marshaler(from.Marshaller)
	}
	for topic, maxLen := range from.Maxlens {
		if maxLen < 0 {
			continue
		}
		if to.TopicRetention == nil {
			to.TopicRetention = make(map[string]redischannels.Retention, len(from.Maxlens))
		}
		to.TopicRetention[topic] = retention(maxLen)
	}
	if err := invalid(to.Validate()); err != nil {
		return redischannels.PublisherConfig{}, err
	}
	return to, nil
}

// invalid adds which configuration the named fields belong to.
func invalid(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("compat: this configuration becomes an invalid one: %w", err)
}

func retention(maxLen int64) redischannels.Retention {
	return redischannels.Retention{MaxLen: max(0, maxLen)}
}

// SubscriberConfig converts the configuration of redisstream.NewSubscriber to that of
// redischannels.NewSubscriber:
//
//   - Client: the same. redischannels does not close it.
//   - Unmarshaller: the default becomes redischannels.WatermillMarshaler, which reads the same
//     fields. [Unmarshaler] adapts any other.
//   - Consumer: the first part of the consumer's name; a unique suffix is added.
//   - ConsumerGroup: the same.
//   - OldestId with a group, FanOutOldestId without: StartFrom. "0" is Oldest, "$" is Latest, an
//     entry ID is AfterID: XGROUP CREATE and XREAD both begin after their ID.
//   - NackResendSleep: NackBackoff with this constant delay; NoSleep, and 0, which
//     means the same, is [ResendDelay].
//   - MaxIdleTime, ClaimInterval, ConsumerTimeout: Tuning.MinIdle, Tuning.ClaimInterval and
//     Tuning.ConsumerTimeout.
//   - BlockTime: Tuning.BlockTime. 0 is the default of redischannels, in which the block time
//     affects neither the latency nor the duration of Close.
//   - ClaimBatchSize, CheckConsumersInterval, DisableIndefiniteInitialBlock: ignored. A claim
//     scan reads the complete pending entries list as the subscription has room, each scan checks
//     for idle consumers, and every read is bounded.
//   - ShouldClaimPendingMessage, ShouldStopOnReadErrors: an error,
//     [ErrShouldClaimPendingMessage] or [ErrShouldStopOnReadErrors].
//
// DeferAfter is NeverDefer, because consumers of watermill-redisstream do not read deferred
// retries. MaxDeliveries is UnlimitedDeliveries, because watermill-redisstream redelivers without
// a limit. Set it to 0 for the default of redischannels, which dead-letters a message that fails
// 20 times. An entry that cannot be decoded is always dead-lettered.
//
// It returns the error of Validate for the result.
func SubscriberConfig(from redisstream.SubscriberConfig) (redischannels.SubscriberConfig, error) {
	var errs []error
	if from.ShouldClaimPendingMessage != nil {
		errs = append(errs, ErrShouldClaimPendingMessage)
	}
	if from.ShouldStopOnReadErrors != nil {
		errs = append(errs, ErrShouldStopOnReadErrors)
	}
	to := redischannels.SubscriberConfig{
		Client:        from.Client,
		ConsumerGroup: from.ConsumerGroup,
		Consumer:      from.Consumer,
		MaxDeliveries: redischannels.UnlimitedDeliveries,
		DeferAfter:    redischannels.NeverDefer,
		NackBackoff:   resend(from.NackResendSleep),
		Tuning: redischannels.Tuning{
			MinIdle:         orDefault(from.MaxIdleTime, redisstream.DefaultMaxIdleTime),
			ClaimInterval:   orDefault(from.ClaimInterval, redisstream.DefaultClaimInterval),
			BlockTime:       from.BlockTime,
			ConsumerTimeout: orDefault(from.ConsumerTimeout, redisstream.DefaultConsumerTimeout),
		},
	}
	if from.ConsumerGroup != "" {
		to.StartFrom = position(from.OldestId, redischannels.Oldest)
	} else {
		to.StartFrom = position(from.FanOutOldestId, redischannels.Latest)
	}
	switch from.Unmarshaller.(type) {
	case nil, redisstream.DefaultMarshallerUnmarshaller, *redisstream.DefaultMarshallerUnmarshaller:
	default:
		to.Unmarshaler = Unmarshaler(from.Unmarshaller)
	}
	if err := errors.Join(append(errs, invalid(to.Validate()))...); err != nil {
		return redischannels.SubscriberConfig{}, err
	}
	return to, nil
}

// position converts an ID of XGROUP CREATE and XREAD. For an invalid ID it returns an invalid
// position.
func position(id string, zero redischannels.Position) redischannels.Position {
	switch id {
	case "":
		return zero
	case "0", "0-0":
		return redischannels.Oldest
	case "$":
		return redischannels.Latest
	default:
		return redischannels.AfterID(id)
	}
}

// resend returns a constant delay. In watermill-redisstream every negative one means no delay.
func resend(sleep time.Duration) redischannels.Backoff {
	if sleep <= 0 {
		sleep = ResendDelay
	}
	return redischannels.Backoff{Min: sleep, Max: sleep, Factor: 1, Jitter: redischannels.NoJitter}
}

func orDefault(d, def time.Duration) time.Duration {
	if d == 0 {
		return def
	}
	return d
}

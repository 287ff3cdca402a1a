// Package compat turns configurations of watermill-redisstream into those of
// redischannels, so that a service changes its library without changing what it
// reads and writes: the streams, the consumer groups and the wire format stay.
//
// A field that is zero gets the default that it has there, not ours, unless the
// mapping says otherwise. docs/from-redisstream.md describes how to move a live
// group and what behaves differently.
package compat

import (
	"errors"
	"fmt"
	"time"

	"github.com/ThreeDotsLabs/watermill-redisstream/pkg/redisstream"

	"github.com/flaminco/redischannels"
)

// ResendDelay stands for redisstream.NoSleep: the time between a Nack and the
// redelivery, which costs Redis a command here.
const ResendDelay = time.Millisecond

// Fields that would change what a service does if they were left out in silence.
var (
	// ErrShouldClaimPendingMessage: entries that are held are renewed here every
	// third of Tuning.MinIdle, as long as their process lives, so a handler may
	// take any time and a dead consumer is noticed after MinIdle all the same:
	// there is nothing left to decide. Remove the callback and choose MinIdle by
	// how soon a crash is to be noticed.
	ErrShouldClaimPendingMessage = errors.New("compat: ShouldClaimPendingMessage has no counterpart: held entries are renewed, so that only those of dead consumers are claimed; remove it and choose Tuning.MinIdle by how soon a crash is to be noticed")

	// ErrShouldStopOnReadErrors: no error of a read ends a subscription here, and
	// each outage is an event. A service that wants to end on one cancels the
	// context of Subscribe from a goroutine that OnEvent starts.
	ErrShouldStopOnReadErrors = errors.New("compat: ShouldStopOnReadErrors has no counterpart: reading continues after every error; remove it and end the subscription by its context where OnEvent reports EventDisconnected or EventError")
)

// PublisherConfig turns the configuration of redisstream.NewPublisher into that
// of redischannels.NewPublisher:
//
//   - Client: the same. Close does not close it here.
//   - Marshaller: the default becomes redischannels.WatermillMarshaler, which
//     writes the same fields. Another one is adapted by [Marshaler].
//   - DefaultMaxlen: Retention.MaxLen, approximate. 0 or less is no bound.
//   - Maxlens: TopicRetention. 0 is no bound, less than 0 is DefaultMaxlen. The
//     map is neither changed nor kept.
//
// What the result does not pass in Validate is an error.
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

// invalid says whose fields the problems are named by.
func invalid(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("compat: this configuration becomes an invalid one: %w", err)
}

func retention(maxLen int64) redischannels.Retention {
	return redischannels.Retention{MaxLen: max(0, maxLen)}
}

// SubscriberConfig turns the configuration of redisstream.NewSubscriber into that
// of redischannels.NewSubscriber:
//
//   - Client: the same. Close does not close it here.
//   - Unmarshaller: the default becomes redischannels.WatermillMarshaler, which
//     reads the same fields. Another one is adapted by [Unmarshaler].
//   - Consumer: the first part of the consumer's name; a unique suffix is added.
//   - ConsumerGroup: the same.
//   - OldestId with a group, FanOutOldestId without: StartFrom. "0" is Oldest, "$"
//     is Latest, an entry ID is AfterID: XGROUP CREATE and XREAD both begin
//     after the ID that they are given.
//   - NackResendSleep: NackBackoff with this constant delay; NoSleep, and 0, which
//     means the same, is [ResendDelay].
//   - MaxIdleTime, ClaimInterval, ConsumerTimeout: Tuning.MinIdle and those of the
//     same name.
//   - BlockTime: Tuning.BlockTime. 0 is the default of redischannels: how long a
//     read blocks decides here neither about latency nor about how soon
//     Close returns.
//   - ClaimBatchSize, CheckConsumersInterval, DisableIndefiniteInitialBlock: left
//     out. A claim scan goes through the whole pending entries list within the
//     room that the subscription has, idle consumers are looked for at its
//     rhythm, and every read is bounded.
//   - ShouldClaimPendingMessage, ShouldStopOnReadErrors: an error,
//     [ErrShouldClaimPendingMessage] or [ErrShouldStopOnReadErrors].
//
// DeferAfter is NeverDefer: consumers of the other library never see what is deferred.
// MaxDeliveries is UnlimitedDeliveries, as a nack there never ends. Set it to 0
// for the default of redischannels, which moves a message that fails 20 times to
// the dead-letter stream. An entry that cannot be decoded goes there in any case.
//
// What the result does not pass in Validate is an error.
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

// position reads an ID as XGROUP CREATE and XREAD take it. One of another form
// makes a position that does not validate.
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

// resend makes a constant delay. There, every negative one is no delay.
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

package redischannels

import (
	"context"
	"slices"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
)

// Instrumentation observes each message that is published or handled, for traces and metrics.
// Modules otelchannels and promchannels implement it. Its methods are called by the goroutines of
// the application and of the library, several at once, and must return soon: a message waits for
// them. They must not change what they are passed, nor keep the slices. A panic is recovered and
// reported by an EventError, at most one per second and subscription, in a publisher by its
// logger.
//
// Entries that cannot be decoded, and those that History and Follow yield, are not observed.
type Instrumentation interface {
	// PublishStart is called before the messages of one call are marshaled. ctx is that of the call,
	// or of the first message. The metadata that it returns is added to a copy of each message;
	// the messages of the caller do not change. The context is passed to PublishEnd only.
	PublishStart(ctx context.Context, p Publication) (context.Context, message.Metadata)
	// PublishEnd is called with the error of the call, which mostly is a *PublishError with an
	// outcome per message.
	PublishEnd(ctx context.Context, p Publication, took time.Duration, err error)

	// ProcessStart is called before the application receives one message, or the messages of a
	// batch. ctx has the values of the context of Subscribe. The messages' contexts have those of
	// the returned context instead; its end has no effect. A message of Subscribe is offered on
	// the channel first, so this may be called before the application is ready to receive it.
	ProcessStart(ctx context.Context, p Processing) context.Context
	// ProcessEnd is called once for each message of ProcessStart, when its delivery has ended.
	ProcessEnd(ctx context.Context, p Processing, end ProcessEnd)
}

// Publication is one call that publishes messages.
type Publication struct {
	Topic    string
	PubSub   bool // Redis Pub/Sub, not a stream
	Messages []*message.Message
}

// Processing is the delivery of messages that the application receives together: one, or those of
// a batch.
type Processing struct {
	Topic    string // of the subscription; may be a pattern of Pub/Sub
	Group    string // empty without a consumer group
	PubSub   bool   // Redis Pub/Sub, not a stream
	Messages []ProcessedMessage
}

// ProcessedMessage is one message of a [Processing].
type ProcessedMessage struct {
	ID            string // entry ID, or UUID of the message for Pub/Sub
	Topic         string // to which it was published
	DeliveryCount int    // 1 on the first delivery
	Metadata      message.Metadata
}

// ProcessEnd is the end of the delivery of one message.
type ProcessEnd struct {
	Message  int           // index in Processing.Messages
	Left     int           // number of messages whose delivery has not ended: 0 for the last one
	Duration time.Duration // since the application has received it; 0 if it has not
	Outcome  ProcessOutcome
	Delay    time.Duration // requested delay of ProcessNacked and ProcessReleased; -1 for NackBackoff
	Reason   string        // of ProcessNacked, ProcessDeadLettered and ProcessSkipped; empty if unknown or hidden
}

// ProcessOutcome is how the delivery of a message ended.
type ProcessOutcome uint8

// The outcomes of deliveries.
const (
	ProcessAcked        ProcessOutcome = iota + 1
	ProcessNacked                      // it will be redelivered
	ProcessReleased                    // it will be redelivered, and this delivery does not count
	ProcessDeadLettered                // it will be moved to the dead letters
	ProcessSkipped                     // rejected, or nacked for the last time, without a group
	ProcessTimedOut                    // HandlerTimeout is over
	ProcessLost                        // another consumer has claimed it
	ProcessAbandoned                   // the subscription ended before the delivery
	ProcessWithdrawn                   // the application has not received it
)

var processOutcomeNames = [...]string{
	ProcessAcked: "acked", ProcessNacked: "nacked", ProcessReleased: "released", ProcessDeadLettered: "dead-lettered",
	ProcessSkipped: "skipped", ProcessTimedOut: "timed out", ProcessLost: "lost", ProcessAbandoned: "abandoned",
	ProcessWithdrawn: "withdrawn",
}

// String returns the name of the outcome, such as "acked".
func (o ProcessOutcome) String() string {
	return enumName(processOutcomeNames[:], "process outcome", o)
}

// MarshalText returns the same, for JSON and logs.
func (o ProcessOutcome) MarshalText() ([]byte, error) { return []byte(o.String()), nil }

// UnmarshalText sets the value of that name. The error wraps [ErrInvalidArgument].
func (o *ProcessOutcome) UnmarshalText(text []byte) error {
	return parseEnum(processOutcomeNames[:], "process outcome", text, o)
}

// JoinInstrumentation returns an Instrumentation that calls all of these, in their order. Each
// receives the context that the one before has returned; of two metadata with the same key the
// later one applies. Those that are nil are left out.
func JoinInstrumentation(all ...Instrumentation) Instrumentation {
	all = slices.DeleteFunc(slices.Clone(all), func(i Instrumentation) bool { return i == nil })
	switch len(all) {
	case 0:
		return nil
	case 1:
		return all[0]
	}
	return joined(all)
}

type joined []Instrumentation

func (j joined) PublishStart(ctx context.Context, p Publication) (context.Context, message.Metadata) {
	all := message.Metadata{}
	for _, i := range j {
		var metadata message.Metadata
		ctx, metadata = i.PublishStart(ctx, p)
		for key, value := range metadata {
			all[key] = value
		}
	}
	return ctx, all
}

func (j joined) PublishEnd(ctx context.Context, p Publication, took time.Duration, err error) {
	for _, i := range j {
		i.PublishEnd(ctx, p, took, err)
	}
}

func (j joined) ProcessStart(ctx context.Context, p Processing) context.Context {
	for _, i := range j {
		ctx = i.ProcessStart(ctx, p)
	}
	return ctx
}

func (j joined) ProcessEnd(ctx context.Context, p Processing, end ProcessEnd) {
	for _, i := range j {
		i.ProcessEnd(ctx, p, end)
	}
}

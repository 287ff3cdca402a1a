package redischannels

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/flaminco/redischannels/internal/source"
	"github.com/flaminco/redischannels/internal/stream"
)

// Delivery is a value with what belongs to it. One that must be acknowledged (see [Reader]) is
// ended once, by one of its methods; each returns [ErrNotPending] when that was done before,
// also by [Reader.Ack], and [ErrNotOwner] when another consumer has the value by now, because
// this process seemed to have crashed. Those of History and Follow have nothing to end and
// return [ErrNotSupported].
type Delivery[T any] struct {
	Value         T
	ID            string           // entry ID; UUID of the message where the transport has none
	DeliveryCount int              // 1 on the first delivery; 0 where the transport does not know
	Metadata      message.Metadata // what the writer has sent with the value; may be nil
	Time          time.Time        // when the entry was written, or, where that is not known, received

	ctx     context.Context // that of attempt where it is nil
	attempt *source.Attempt // nil where there is nothing to end
	unacked *unacked        // where attempt is found by its ID; may be nil
}

// newDelivery returns the delivery of an attempt.
func newDelivery[T any](a *source.Attempt, value T, metadata message.Metadata) Delivery[T] {
	d := Delivery[T]{Value: value, ID: idOf(a), DeliveryCount: a.Count, Metadata: metadata, attempt: a}
	if d.Time = time.Now(); !a.Entry.ID.IsZero() {
		d.Time = timeOf(a.Entry.ID)
	} else if id, err := stream.ParseID(a.ID); err == nil {
		d.Time = timeOf(id)
	}
	return d
}

func timeOf(id stream.ID) time.Time { return time.UnixMilli(int64(id.Ms)) }

// shownDelivery returns a delivery of an attempt of which there is nothing to end.
func shownDelivery[T any](ctx context.Context, a *source.Attempt, value T, metadata message.Metadata) Delivery[T] {
	d := newDelivery(a, value, metadata)
	d.ctx, d.attempt = ctx, nil
	return d
}

// idOf is the entry ID of an attempt, or the UUID of its message where the transport has none.
func idOf(a *source.Attempt) string {
	if a.ID == "" && a.Message != nil {
		return a.Message.UUID
	}
	return a.ID
}

// Context ends when the delivery is ended, when another consumer has it by now, or when the
// reader is closed and waits no longer.
func (d Delivery[T]) Context() context.Context {
	switch {
	case d.ctx != nil:
		return d.ctx
	case d.attempt != nil:
		return d.attempt
	}
	return context.Background()
}

// Ack acknowledges the value: it is handled. It returns at once; the acknowledgement is
// written soon, with others, and before Close returns. In a batch with an ordering key it
// returns [ErrOutOfOrder] behind a value of the same key that is to be redelivered, and then the
// value is redelivered as well, without counting this delivery.
func (d Delivery[T]) Ack() error {
	return d.end("ack", source.Outcome{Kind: source.Ack})
}

// Nack has the value redelivered after NackBackoff. The delivery counts: after MaxDeliveries
// the value becomes a dead letter, or is skipped without a group.
func (d Delivery[T]) Nack() error {
	return d.end("nack", source.Outcome{Kind: source.Nack, Delay: source.OwnersDelay})
}

// NackAfter is Nack with this delay instead of NackBackoff. Where the transport has no
// delays it returns [ErrNotSupported], and the delivery is still to be ended.
func (d Delivery[T]) NackAfter(delay time.Duration) error {
	if delay < 0 {
		return invalidArgument("delay", fmt.Errorf("must not be negative, got %v", delay))
	}
	return d.end("nack", source.Outcome{Kind: source.Nack, Delay: delay})
}

// Postpone has the value redelivered after this delay, as if it had not been delivered: the
// delivery does not count. It is for a value whose time has not come, not for a failure. With
// MaxInFlight 1, or with an OrderingKey for those of its key, what is behind it waits. Where the
// transport has no delays it returns [ErrNotSupported], and the delivery is still to be ended.
func (d Delivery[T]) Postpone(delay time.Duration) error {
	if delay < 0 {
		return invalidArgument("delay", fmt.Errorf("must not be negative, got %v", delay))
	}
	return d.end("postpone", source.Outcome{Kind: source.Release, Delay: delay})
}

// Reject gives the value up, because no retry can help: it becomes a dead letter with this
// reason (at most 1,024 bytes of it are stored; it must not contain a secret), or is skipped
// without a group. Where the transport has no dead letters it returns [ErrNotSupported], and
// the delivery is still to be ended: a Nack would be redelivered without end.
func (d Delivery[T]) Reject(reason string) error {
	return d.end("reject", source.Outcome{Kind: source.Reject, Reason: reason})
}

// end ends the attempt.
func (d Delivery[T]) end(verb string, o source.Outcome) error {
	if d.attempt == nil {
		return fmt.Errorf("redischannels: %s %s, of which there is nothing to end: %w", verb, d.ID, ErrNotSupported)
	}
	return endAttempt(d.attempt, verb, d.ID, o, d.unacked)
}

// endAttempt ends an attempt and takes it from those that are found by their IDs.
func endAttempt(a *source.Attempt, verb, id string, o source.Outcome, unacked *unacked) error {
	err := endInOrder(a, o)
	if unacked != nil && !errors.Is(err, source.ErrNotSupported) {
		unacked.remove(id, a)
	}
	if err == nil {
		return nil
	}
	return fmt.Errorf("redischannels: %s %s: %w", verb, id, endError(err))
}

// endInOrder ends an attempt. One that is acknowledged behind one of its order that is to be redelivered is
// released instead, so that it is redelivered behind that; the error is ErrOutOfOrder.
func endInOrder(a *source.Attempt, o source.Outcome) error {
	err := a.End(o)
	if errors.Is(err, source.ErrOutOfOrder) {
		_ = a.End(source.Outcome{Kind: source.Release})
	}
	return err
}

// endHandled ends an attempt by what its handler has returned.
func endHandled(a *source.Attempt, o source.Outcome) error {
	err := endInOrder(a, o)
	if errors.Is(err, source.ErrNotSupported) { // the transport has neither delays nor dead letters
		err = a.End(source.Outcome{Kind: source.Nack, Delay: source.OwnersDelay})
	}
	return err
}

// endError makes a public error of one of source.Attempt.End.
func endError(err error) error {
	switch {
	case errors.Is(err, source.ErrNotPending):
		return ErrNotPending
	case errors.Is(err, source.ErrNotOwner):
		return ErrNotOwner
	case errors.Is(err, source.ErrNotSupported):
		return ErrNotSupported
	case errors.Is(err, source.ErrOutOfOrder):
		return ErrOutOfOrder
	}
	return err
}

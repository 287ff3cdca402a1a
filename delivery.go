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

// Delivery is a value with its ID, metadata and delivery count. A delivery that must be
// acknowledged (see [Reader]) is ended once, by one of its methods. Each method returns
// [ErrNotPending] if the delivery was ended before, also by [Reader.Ack], and [ErrNotOwner] if
// another consumer has claimed the value, because this process did not renew its lease. For
// deliveries of History and Follow the methods return [ErrNotSupported].
type Delivery[T any] struct {
	Value         T
	ID            string           // entry ID, or UUID of the message if the transport has no entry IDs
	DeliveryCount int              // 1 on the first delivery; 0 if the transport does not count
	Metadata      message.Metadata // metadata that was written with the value; may be nil
	Time          time.Time        // when the entry was written, or, if unknown, received

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

// shownDelivery returns a delivery of an attempt that has nothing to acknowledge.
func shownDelivery[T any](ctx context.Context, a *source.Attempt, value T, metadata message.Metadata) Delivery[T] {
	d := newDelivery(a, value, metadata)
	d.ctx, d.attempt = ctx, nil
	return d
}

// idOf is the entry ID of an attempt, or the UUID of its message if the transport has no entry
// IDs.
func idOf(a *source.Attempt) string {
	if a.ID == "" && a.Message != nil {
		return a.Message.UUID
	}
	return a.ID
}

// Context returns a context that ends when the delivery is ended, when another consumer has
// claimed the value, or when Close of the reader reaches its DrainTimeout.
func (d Delivery[T]) Context() context.Context {
	switch {
	case d.ctx != nil:
		return d.ctx
	case d.attempt != nil:
		return d.attempt
	}
	return context.Background()
}

// Ack acknowledges the value. It returns at once; the acknowledgement is written soon, together
// with others, and before Close returns. In a batch with an ordering key it returns
// [ErrOutOfOrder] behind a value of the same key that will be redelivered. The value is then
// redelivered too, and this delivery does not count.
func (d Delivery[T]) Ack() error {
	return d.end("ack", source.Outcome{Kind: source.Ack})
}

// Nack redelivers the value after NackBackoff. The delivery counts: after MaxDeliveries the value
// is dead-lettered, or skipped without a group.
func (d Delivery[T]) Nack() error {
	return d.end("nack", source.Outcome{Kind: source.Nack, Delay: source.OwnersDelay})
}

// NackAfter is Nack with this delay instead of NackBackoff. If the transport has no delays it
// returns [ErrNotSupported], and the delivery must still be ended.
func (d Delivery[T]) NackAfter(delay time.Duration) error {
	if delay < 0 {
		return invalidArgument("delay", fmt.Errorf("must not be negative, got %v", delay))
	}
	return d.end("nack", source.Outcome{Kind: source.Nack, Delay: delay})
}

// Postpone redelivers the value after this delay, and the delivery does not count. It is for a
// value that is too early to handle, not for a failure. With MaxInFlight 1 the values behind it
// wait, with an OrderingKey those of its key. If the transport has no delays it returns
// [ErrNotSupported], and the delivery must still be ended.
func (d Delivery[T]) Postpone(delay time.Duration) error {
	if delay < 0 {
		return invalidArgument("delay", fmt.Errorf("must not be negative, got %v", delay))
	}
	return d.end("postpone", source.Outcome{Kind: source.Release, Delay: delay})
}

// Reject dead-letters the value with this reason, or skips it without a group, because its
// handling cannot succeed. At most 1,024 bytes of the reason are stored; it must not contain a
// secret. If the transport has no dead letters it returns [ErrNotSupported], and the delivery
// must still be ended: after a Nack it would be redelivered without a limit.
func (d Delivery[T]) Reject(reason string) error {
	return d.end("reject", source.Outcome{Kind: source.Reject, Reason: reason})
}

// end ends the attempt.
func (d Delivery[T]) end(verb string, o source.Outcome) error {
	if d.attempt == nil {
		return fmt.Errorf("redischannels: %s %s, which needs no acknowledgement: %w", verb, d.ID, ErrNotSupported)
	}
	return endAttempt(d.attempt, verb, d.ID, o, d.unacked)
}

// endAttempt ends an attempt and removes it from those that are found by their IDs.
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

// endInOrder ends an attempt. An attempt that is acknowledged behind one of its order that will
// be redelivered is released instead, so that it is redelivered behind it; the error is
// ErrOutOfOrder.
func endInOrder(a *source.Attempt, o source.Outcome) error {
	err := a.End(o)
	if errors.Is(err, source.ErrOutOfOrder) {
		_ = a.End(source.Outcome{Kind: source.Release})
	}
	return err
}

// endHandled ends an attempt with the outcome of its handler.
func endHandled(a *source.Attempt, o source.Outcome) error {
	err := endInOrder(a, o)
	if errors.Is(err, source.ErrNotSupported) { // the transport has neither delays nor dead letters
		err = a.End(source.Outcome{Kind: source.Nack, Delay: source.OwnersDelay})
	}
	return err
}

// endError converts an error of source.Attempt.End to a public one.
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

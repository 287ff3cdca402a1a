package redischannels

import (
	"context"
	"fmt"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/flaminco/redischannels/internal/stream"
)

// Delivery is a value with what belongs to it. One of [Reader.Receive] and
// [Reader.Deliveries] must be settled, once, by one of its methods; each answers
// [ErrNotPending] when that was done before, also by [Reader.Ack], and [ErrNotOwner]
// when another consumer has the value now, because this process seemed dead. Those of
// History and Follow have nothing to settle and answer [ErrNotSupported].
type Delivery[T any] struct {
	Value         T
	ID            string           // entry ID; UUID of the message where the transport has none
	DeliveryCount int              // 1 on the first delivery; 0 where the transport does not tell
	Metadata      message.Metadata // what the writer has sent with the value
	Time          time.Time        // when the entry was written, or, where that is not told, received

	ctx  context.Context
	held *handled
}

func newDelivery[T any](msg *message.Message, value T, held *handled) Delivery[T] {
	d := Delivery[T]{Value: value, ID: idOf(msg), Metadata: msg.Metadata, ctx: msg.Context(), held: held}
	d.DeliveryCount, _ = DeliveryCountFromContext(d.ctx)
	d.Time = time.Now()
	if text, ok := EntryIDFromContext(d.ctx); ok {
		if id, err := stream.ParseID(text); err == nil {
			d.Time = time.UnixMilli(int64(id.Ms))
		}
	}
	return d
}

// Context ends when the delivery is settled, when another consumer has it now, or when
// the reader is closed and waits no longer.
func (d Delivery[T]) Context() context.Context {
	if d.ctx == nil {
		return context.Background()
	}
	return d.ctx
}

// Ack says that the value is handled. It returns at once; the acknowledgement is
// written soon, with others, and before Close returns.
func (d Delivery[T]) Ack() error {
	return d.settle((*feed).ack)
}

// Nack asks for the value once more, after NackBackoff. The delivery counts: after
// MaxDeliveries the value moves to the dead letters, or is passed without a group.
func (d Delivery[T]) Nack() error {
	return d.settle((*feed).nack)
}

// NackAfter is Nack with this delay instead of NackBackoff. Where the transport has no
// delays it answers [ErrNotSupported] and settles nothing.
func (d Delivery[T]) NackAfter(delay time.Duration) error {
	if delay < 0 {
		return invalidArgument("delay", fmt.Errorf("must not be negative, got %v", delay))
	}
	return d.settleMarked(func(msg *message.Message) bool { return RetryAfter(msg, delay) })
}

// Reject says that no retry can help: the value moves to the dead letters with this
// reason (at most 1,024 bytes of it are stored; it must hold no secret), or is passed
// without a group. Where the transport has no dead letters it answers
// [ErrNotSupported] and settles nothing.
func (d Delivery[T]) Reject(reason string) error {
	return d.settleMarked(func(msg *message.Message) bool { return Reject(msg, reason) })
}

func (d Delivery[T]) settle(how func(*feed, *message.Message)) error {
	if d.held == nil {
		return fmt.Errorf("redischannels: settle %s, which belongs to no group: %w", d.ID, ErrNotSupported)
	}
	return d.held.release(how)
}

func (d Delivery[T]) settleMarked(mark func(*message.Message) bool) error {
	if d.held != nil && d.held.feed.deliveryOf(d.held.msg) == nil {
		return fmt.Errorf("redischannels: settle %s other than by Ack or Nack: %w", d.ID, ErrNotSupported)
	}
	return d.settle(func(f *feed, msg *message.Message) {
		mark(msg)
		f.nack(msg)
	})
}

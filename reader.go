package redischannels

import (
	"context"
	"errors"
	"fmt"

	"github.com/ThreeDotsLabs/watermill/message"
)

// Reader is the reading side of a [Channel]. Several goroutines may read at once and
// share the values. Each method has one rule of settlement:
//
//	Read               acknowledges at once: at most once
//	Receive, Deliveries  you settle each Delivery: at least once
//	All                acknowledges a value when the loop asks for the next
//	Handle             acknowledges when the function returns nil, nacks otherwise
//	History, Follow    nothing to settle: they belong to no group
//
// The first use subscribes, which joins the consumer group, and returns the error of
// that; using it again tries again. From then on reading waits out every outage. A
// value that cannot be decoded is a *[DecodeError], and moves to the dead letters in a
// group, or is passed. Without a group a *[GapError] tells of entries that were
// trimmed away before they were read. Reading goes on after both. After Close the
// error is [ErrClosed].
//
// Up to MaxInFlight deliveries may be unacknowledged, and come in stream order as far
// as none is nacked. They, and what was read ahead, stay leased: however long they
// take, nobody else gets them while this process lives.
type Reader[T any] struct {
	feed      *feed
	transport transport
	code      coder[T]
}

// Receive returns the next delivery, which must be settled, and waits for it until ctx
// ends or Close.
func (r *Reader[T]) Receive(ctx context.Context) (Delivery[T], error) {
	msg, value, err := r.next(ctx)
	if err != nil {
		return Delivery[T]{}, err
	}
	return newDelivery(msg, value, r.feed.hold(msg)), nil
}

// TryReceive is Receive without waiting for a value: ok is false if none is ready. The
// first use subscribes and so waits for Redis. What was written just now may take a
// moment to be ready.
func (r *Reader[T]) TryReceive() (d Delivery[T], ok bool, err error) {
	for {
		msg, err := r.feed.tryNext()
		if msg == nil || err != nil {
			return Delivery[T]{}, false, err
		}
		value, err := r.decode(msg)
		if err == errSkip {
			continue
		}
		if err != nil {
			return Delivery[T]{}, false, err
		}
		return newDelivery(msg, value, r.feed.hold(msg)), true, nil
	}
}

// Read returns the next value and acknowledges it at once, so a value is lost if the
// process ends before it is handled: at most once. It waits until ctx ends or Close.
func (r *Reader[T]) Read(ctx context.Context) (T, error) {
	msg, value, err := r.next(ctx)
	if err == nil {
		r.feed.ack(msg)
	}
	return value, err
}

// WaitToRead waits until there is something to read (a value or an error that the next
// read returns) and reports true, or false when the reader is closed. It takes nothing,
// but another goroutine may: then the next read waits all the same. What is not read
// within a second may go to another consumer.
func (r *Reader[T]) WaitToRead(ctx context.Context) (bool, error) {
	for {
		msg, err := r.feed.next(ctx)
		var gap *GapError
		switch {
		case err == nil && r.code.skips(msg):
			r.feed.ack(msg)
		case err == nil || errors.As(err, &gap):
			r.feed.putNext(msg, err)
			return true, nil
		case r.feed.life.Err() != nil:
			return false, nil
		default:
			return false, err
		}
	}
}

// Ack acknowledges deliveries of this Reader by their IDs and returns how many were
// unacknowledged. The error joins one that wraps [ErrNotPending] for each ID that was
// settled before or that belongs to somebody else, and [ErrNotOwner] for each that
// the group has given to another consumer meanwhile. The acknowledgements are written
// soon, together, and before Close returns.
func (r *Reader[T]) Ack(ctx context.Context, ids ...string) (int, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	n := 0
	var errs []error
	for _, id := range ids {
		h, err := r.feed.find(id)
		if err == nil {
			err = h.ack()
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		n++
	}
	return n, errors.Join(errs...)
}

// Done is closed when the reader is closed and everything of it has ended.
func (r *Reader[T]) Done() <-chan struct{} { return r.feed.done }

// Err returns nil as long as values can be read, and an error that wraps [ErrClosed]
// afterwards.
func (r *Reader[T]) Err() error { return r.feed.closedError() }

// Close ends reading: what waits goes back to the group, calls that wait for a value
// return [ErrClosed], loops end. It waits up to Tuning.DrainTimeout for the deliveries
// that are out to be settled, writes every acknowledgement and returns when nothing is
// left behind; deliveries that are still out then stay pending for other consumers.
// It may be called often and always returns nil.
func (r *Reader[T]) Close() error {
	r.feed.close()
	return nil
}

// next returns a message with its value.
func (r *Reader[T]) next(ctx context.Context) (*message.Message, T, error) {
	for {
		msg, err := r.feed.next(ctx)
		if err != nil {
			var zero T
			return nil, zero, err
		}
		if value, err := r.decode(msg); err != errSkip {
			return msg, value, err
		}
	}
}

// decode returns the value of a message, or ends the message.
func (r *Reader[T]) decode(msg *message.Message) (T, error) {
	value, err := r.code.value(msg)
	switch {
	case err == errSkip:
		r.feed.ack(msg)
	case err != nil:
		r.feed.refuse(msg, err)
	}
	return value, err
}

// refuse ends a message that can never be handled: by a dead letter in a group, by
// passing it elsewhere.
func (f *feed) refuse(msg *message.Message, err error) {
	var failure *DecodeError
	reason := "undecodable"
	if errors.As(err, &failure) {
		reason = failure.Reason
	}
	if d := f.deliveryOf(msg); d != nil && d.from.group != "" && Reject(msg, reason) {
		f.nack(msg)
		return
	}
	f.report(Event{Kind: EventUndecodable, Topic: f.topic, EntryIDs: []string{idOf(msg)}, Err: err})
	f.ack(msg)
}

// notSupported is the error of what the transport cannot do.
func (r *Reader[T]) notSupported(what string) error {
	return fmt.Errorf("redischannels: %s of %q: %w", what, r.feed.topic, ErrNotSupported)
}

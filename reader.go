package redischannels

import (
	"context"
	"errors"
	"fmt"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/flaminco/redischannels/internal/source"
)

// Reader is the reading side of a [Channel]. Several goroutines may read at once and
// share the values. Each method has one rule of acknowledgement:
//
//	Read                 acknowledges at once: at most once
//	Receive, Deliveries  the caller ends each Delivery: at least once
//	All                  acknowledges a value when the loop asks for the next
//	Handle, HandleBatch  acknowledge when the function returns nil, nack otherwise
//	ReceiveBatch         the caller ends each Delivery of the batch
//	History, Follow      nothing to acknowledge: they belong to no group
//
// The first use subscribes, which joins the consumer group. If that fails it returns the error,
// and the next use tries again. From then on reading resumes after every outage. A value that
// cannot be decoded is a *[DecodeError]; it is dead-lettered in a group, and skipped without one.
// Without a group a *[GapError] reports entries that were trimmed before they were read. Reading
// continues after both. After Close the error is [ErrClosed].
//
// Up to MaxInFlight deliveries may be unacknowledged. They are in stream order as long as none is
// nacked. The leases of these and of buffered values are renewed: however long they take, no
// other consumer claims them while this process runs.
type Reader[T any] struct {
	source    *lazySource
	unacked   unacked
	transport transport
	code      coder[T]
}

func newReader[T any](t transport, code coder[T]) *Reader[T] {
	return &Reader[T]{source: newLazySource(t.topic, t.subscribe), transport: t, code: code}
}

// one is the limit of readers that take one value at a time.
var one = source.Limits{Max: 1}

// Receive waits for the next delivery, until ctx ends or the reader is closed, and returns it.
// The caller must end it.
func (r *Reader[T]) Receive(ctx context.Context) (Delivery[T], error) {
	var buf [1]*source.Attempt
	for {
		got, err := r.source.next(ctx, buf[:0], one)
		if err != nil {
			return Delivery[T]{}, err
		}
		if d, err := r.received(got[0]); !isSkip(err) {
			return d, err
		}
	}
}

// TryReceive is Receive without waiting for a value: ok is false if none is ready. The first use
// subscribes and so waits for Redis. A value that was just written may not be ready yet.
func (r *Reader[T]) TryReceive() (d Delivery[T], ok bool, err error) {
	var buf [1]*source.Attempt
	for {
		got, err := r.source.next(r.source.life.Context(), buf[:0], source.Limits{Max: 1, Try: true})
		if err != nil || len(got) == 0 {
			return Delivery[T]{}, false, err
		}
		if d, err := r.received(got[0]); !isSkip(err) {
			return d, err == nil, err
		}
	}
}

// received returns a delivery of an attempt, which the caller must end.
func (r *Reader[T]) received(a *source.Attempt) (Delivery[T], error) {
	value, metadata, err := r.decode(a)
	if err != nil {
		return Delivery[T]{}, err
	}
	d := r.delivery(a, value, metadata)
	d.unacked = &r.unacked
	r.unacked.add(d.ID, a)
	return d, nil
}

func (r *Reader[T]) delivery(a *source.Attempt, value T, metadata message.Metadata) Delivery[T] {
	d := newDelivery(a, value, metadata)
	d.ctx = r.transport.decoding.context(a)
	return d
}

// Read returns the next value and acknowledges it at once, so a value is lost if the process ends
// before it is handled: at most once. It waits until ctx ends or the reader is closed.
func (r *Reader[T]) Read(ctx context.Context) (T, error) {
	var buf [1]*source.Attempt
	for {
		got, err := r.source.next(ctx, buf[:0], one)
		if err != nil {
			var zero T
			return zero, err
		}
		value, _, err := r.decode(got[0])
		if err == nil {
			_ = got[0].End(source.Outcome{Kind: source.Ack}) // a lost lease is reported by an event
		}
		if !isSkip(err) {
			return value, err
		}
	}
}

// WaitToRead waits until the next read can return a value or an error, and returns true, or false
// if the reader is closed. Another goroutine may read the value first; then the next read waits.
// A value that is not read within a second may be released to another consumer.
func (r *Reader[T]) WaitToRead(ctx context.Context) (bool, error) {
	var buf [1]*source.Attempt
	for {
		got, err := r.source.next(ctx, buf[:0], source.Limits{Max: 1, Offer: true})
		switch {
		case err == nil && r.skips(got[0]):
		case err == nil:
			return true, nil
		case isReported(err):
			r.source.returnError(err)
			return true, nil
		case r.source.life.Err() != nil:
			return false, nil
		default:
			return false, err
		}
	}
}

// skips ends an offered attempt. If it has no value to read, skips acknowledges it and returns
// true; otherwise the attempt is undelivered again.
func (r *Reader[T]) skips(a *source.Attempt) (skip bool) {
	if _, metadata, err := r.transport.decoding.payload(a); err == nil {
		skip = completion(a, metadata) != nil || r.code.skip != nil && r.code.skip(metadata)
	}
	a.Entry.Release()
	if !skip {
		_ = a.End(source.Outcome{Kind: source.Withdraw})
		return false
	}
	a.Start()
	_ = a.End(source.Outcome{Kind: source.Ack})
	return true
}

// Ack acknowledges deliveries of this Reader by their IDs and returns how many were
// unacknowledged. The error joins one for each ID that failed: it wraps [ErrNotPending] if the
// delivery was ended before or belongs to another reader, and [ErrNotOwner] if another consumer
// has claimed the entry. The acknowledgements are written soon, together, and before Close
// returns.
func (r *Reader[T]) Ack(ctx context.Context, ids ...string) (int, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	n := 0
	var errs []error
	for _, id := range ids {
		a := r.unacked.find(id)
		if a == nil {
			errs = append(errs, fmt.Errorf("redischannels: ack %s: %w", id, ErrNotPending))
			continue
		}
		if err := endAttempt(a, "ack", id, source.Outcome{Kind: source.Ack}, &r.unacked); err != nil {
			errs = append(errs, err)
			continue
		}
		n++
	}
	return n, errors.Join(errs...)
}

// Done returns a channel that is closed when the reader is closed and all its goroutines have
// ended.
func (r *Reader[T]) Done() <-chan struct{} { return r.source.done }

// Err returns nil as long as values can be read, and then an error that wraps [ErrClosed].
func (r *Reader[T]) Err() error { return r.source.life.Err() }

// Close ends reading: buffered entries are released to the group, calls that wait for a value
// return [ErrClosed], and loops end. It waits up to Tuning.DrainTimeout for the deliveries in
// flight, writes every acknowledgement, and returns when no goroutine and no connection is left.
// Deliveries that are still in flight stay pending for other consumers. Close may be called
// several times. It returns [ErrCloseTimeout] 20 s after DrainTimeout.
func (r *Reader[T]) Close() error { return r.source.closeWithin(r.transport.drain) }

// decode returns the value of an attempt, or ends the attempt and returns a *DecodeError or errSkip.
func (r *Reader[T]) decode(a *source.Attempt) (value T, metadata message.Metadata, err error) {
	if value, metadata, err = r.value(a); err != nil {
		return value, metadata, r.refuse(a, err)
	}
	watchOne(a, metadata)
	return value, metadata, nil
}

// value returns the value of an attempt and releases its entry.
func (r *Reader[T]) value(a *source.Attempt) (value T, metadata message.Metadata, err error) {
	payload, metadata, err := r.transport.decoding.payload(a)
	if err == nil {
		value, err = r.code.of(payload, metadata)
	}
	a.Entry.Release()
	return value, metadata, err
}

// refuse ends an attempt that cannot be decoded, or that must be skipped, and returns the error
// of decode.
func (r *Reader[T]) refuse(a *source.Attempt, err error) error {
	if isSkip(err) {
		_ = a.End(source.Outcome{Kind: source.Ack})
		return err
	}
	failure := decodeFailure[T](a, err)
	_ = a.End(source.Outcome{Kind: source.Undecodable, Reason: failure.Reason, Err: failure})
	return failure
}

// decodeFailure is decodeError that names the entry.
func decodeFailure[T any](a *source.Attempt, err error) *DecodeError {
	failure := decodeError[T](err)
	failure.EntryID, failure.Topic = idOf(a), a.Topic
	return failure
}

// notSupported is the error of an operation that the transport does not have.
func (r *Reader[T]) notSupported(what string) error {
	return fmt.Errorf("redischannels: %s of %q: %w", what, r.source.topic, ErrNotSupported)
}

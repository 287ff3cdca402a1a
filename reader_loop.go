package redischannels

import (
	"context"
	"errors"
	"fmt"
	"iter"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/flaminco/redischannels/internal/live"
)

// All yields values and acknowledges each when the loop comes back for the next. When
// the body leaves the loop, by break, return or panic, the current value is handed
// back: it is the next that this reader, or after a second any other of the group,
// gets, and the delivery does not count. The loop ends when ctx does or by Close and
// never by itself: silence and outages are waited out.
//
// With an error the value is zero. A *[DecodeError] and a *[GapError] tell of what
// cannot be read; any other error is that of subscribing, which is tried again when
// the loop goes on, after a back-off. Only where a subscriber of [NewChannel] ends the
// subscription by itself is there nothing to go on with: that error is the last.
func (r *Reader[T]) All(ctx context.Context) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		for failed := 0; ; {
			msg, value, err := r.next(ctx)
			if err != nil {
				if r.feed.isEnd(ctx, err) || !yield(value, err) || r.feed.endedByTransport() {
					return
				}
				failed = r.rest(ctx, err, failed)
				continue
			}
			failed = 0
			if !r.lend(msg, value, yield) {
				return
			}
		}
	}
}

// lend gives a value to the body of a loop and settles it by how the body ends.
func (r *Reader[T]) lend(msg *message.Message, value T, yield func(T, error) bool) (more bool) {
	held := r.feed.lend(msg)
	defer func() {
		if more {
			_ = held.ack() // one that another consumer has by now is reported by an event
		} else {
			held.unread()
		}
	}()
	return yield(value, nil)
}

// Deliveries yields deliveries, which you settle, in the loop or after it. It ends, and
// yields errors, as All does.
func (r *Reader[T]) Deliveries(ctx context.Context) iter.Seq2[Delivery[T], error] {
	return func(yield func(Delivery[T], error) bool) {
		for failed := 0; ; {
			d, err := r.Receive(ctx)
			if err != nil && r.feed.isEnd(ctx, err) || !yield(d, err) || err != nil && r.feed.endedByTransport() {
				return
			}
			failed = r.rest(ctx, err, failed)
		}
	}
}

// rest waits before a subscription that failed is tried again, and returns how often
// that was needed in a row.
func (r *Reader[T]) rest(ctx context.Context, err error, failed int) int {
	var undecodable *DecodeError
	var gap *GapError
	if err == nil || errors.As(err, &undecodable) || errors.As(err, &gap) {
		return 0
	}
	failed++
	ending, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(r.feed.life, cancel)()
	pause(ending.Done(), retryDelay(failed))
	return failed
}

// History yields what is in the stream after from (zero means Oldest), up to what is
// the last entry when it begins, and ends. It belongs to no group, changes nothing in
// Redis, and is not concerned by what others read. A *[DecodeError] is yielded in the
// place of its entry, and a *[GapError] first where from was trimmed away; it goes on
// after both. Any other error is the last thing yielded.
func (r *Reader[T]) History(ctx context.Context, from Position) iter.Seq2[Delivery[T], error] {
	return func(yield func(Delivery[T], error) bool) {
		if r.transport.history == nil {
			yield(Delivery[T]{}, r.notSupported("history"))
			return
		}
		if err := r.Err(); err != nil {
			yield(Delivery[T]{}, err)
			return
		}
		for msg, err := range r.transport.history(ctx, from) {
			if closed := r.Err(); closed != nil {
				yield(Delivery[T]{}, closed)
				return
			}
			if !r.show(msg, err, yield) {
				return
			}
		}
	}
}

// Follow yields what is in the stream after from (zero means Oldest), and then what is
// written, as it comes: one cursor goes through both, so nothing is missing or twice
// where they meet. It belongs to no group and ends as All does; errors are those of
// History and All. All that is read without a group on one hub with equal settings, by
// this loop, others and readers, shares one connection per 256 streams (in Redis Cluster
// per hash slot), and who is slow holds up nobody else.
//
// Where the transport keeps nothing, Latest is the only position: the loop then has a
// subscription of its own, and sees what others see, as far as the transport gives every
// subscription every message (Pub/Sub does).
func (r *Reader[T]) Follow(ctx context.Context, from Position) iter.Seq2[Delivery[T], error] {
	return func(yield func(Delivery[T], error) bool) {
		source, err := r.transport.follow(from)
		if err != nil {
			yield(Delivery[T]{}, err)
			return
		}
		source.live = live.Told(ctx)
		defer r.feed.disown(source)
		if err := r.feed.adopt(source); err != nil {
			yield(Delivery[T]{}, err)
			return
		}
		for failed := 0; ; {
			msg, err := source.next(ctx)
			if err != nil && source.isEnd(ctx, err) {
				return
			}
			if msg != nil {
				msg.SetContext(context.WithoutCancel(msg.Context())) // what follows ends it
				source.ack(msg)                                      // the cursor goes on
			}
			if !r.show(msg, err, yield) || err != nil && source.endedByTransport() {
				return
			}
			failed = r.rest(ctx, err, failed)
		}
	}
}

// LastID returns the greatest entry ID that the stream has had, "0-0" if it has had none:
// History or Follow with [AfterID] of it begins with what is written after this call.
// Where the transport keeps nothing it answers [ErrNotSupported] without asking Redis.
// (XINFO STREAM last-generated-id)
func (r *Reader[T]) LastID(ctx context.Context) (string, error) {
	if r.transport.last == nil {
		return "", r.notSupported("last ID")
	}
	if err := r.Err(); err != nil {
		return "", err
	}
	id, err := r.transport.last(ctx)
	if err != nil {
		return "", fmt.Errorf("redischannels: last ID of %q: %w", r.feed.topic, err)
	}
	return id, nil
}

// show yields a message of which there is nothing to settle.
func (r *Reader[T]) show(msg *message.Message, err error, yield func(Delivery[T], error) bool) bool {
	if err != nil {
		return yield(Delivery[T]{}, err)
	}
	value, err := r.code.value(msg)
	if err == errSkip {
		return true
	}
	if err != nil {
		return yield(Delivery[T]{}, err)
	}
	return yield(newDelivery(msg, value, nil), nil)
}

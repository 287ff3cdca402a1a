package redischannels

import (
	"context"
	"fmt"
	"iter"

	"github.com/flaminco/redischannels/internal/backoff"
	"github.com/flaminco/redischannels/internal/bridge"
	"github.com/flaminco/redischannels/internal/source"
	"github.com/flaminco/redischannels/internal/stream"
)

// All yields values and acknowledges each when the loop comes back for the next. When
// the body leaves the loop, by break, return or panic, the current value is
// released: it is the next that this reader, or after a second any other of the group,
// gets, and the delivery does not count. The loop ends when ctx does or by Close and
// never by itself: silence and outages are waited out.
//
// With an error the value is zero. A *[DecodeError] and a *[GapError] report what cannot
// be read; any other error is that of subscribing, which is tried again when
// the loop continues, after a back-off. Only where a subscriber of [NewChannel] ends the
// subscription by itself is there nothing to continue with: that error is the last.
func (r *Reader[T]) All(ctx context.Context) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		buf := make([]*source.Attempt, 0, 1)
		for failed := 0; ; {
			got, err := r.source.next(ctx, buf, one)
			var value T
			if err == nil {
				if value, _, err = r.decode(got[0]); err == errSkip {
					continue
				}
			}
			if err != nil {
				if r.source.isEnd(ctx, err) || !yield(value, err) || r.source.endedByTransport() {
					return
				}
				failed = r.rest(ctx, err, failed)
				continue
			}
			failed = 0
			if !lend(got[0], value, yield) {
				return
			}
		}
	}
}

// lend gives a value to the body of a loop and ends its attempt by how the body ends.
func lend[T any](a *source.Attempt, value T, yield func(T, error) bool) (more bool) {
	defer func() {
		if more {
			_ = a.End(source.Outcome{Kind: source.Ack}) // one that is lost is reported by an event
		} else {
			_ = a.End(source.Outcome{Kind: source.Release})
		}
	}()
	return yield(value, nil)
}

// Deliveries yields deliveries, which you end, in the loop or after it. The loop ends, and
// yields errors, as that of All does.
func (r *Reader[T]) Deliveries(ctx context.Context) iter.Seq2[Delivery[T], error] {
	return func(yield func(Delivery[T], error) bool) {
		for failed := 0; ; {
			d, err := r.Receive(ctx)
			if err != nil && r.source.isEnd(ctx, err) || !yield(d, err) || err != nil && r.source.endedByTransport() {
				return
			}
			failed = r.rest(ctx, err, failed)
		}
	}
}

// rest waits before a subscription that failed is tried again, and returns how often
// that was needed in a row.
func (r *Reader[T]) rest(ctx context.Context, err error, failed int) int {
	if err == nil || isReported(err) {
		return 0
	}
	failed++
	ending, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(r.source.life.Context(), cancel)()
	backoff.Wait(ending.Done(), backoff.Redis.After(failed))
	return failed
}

// History yields what is in the stream after from (zero means Oldest), up to what is
// the last entry when it begins, and ends. It belongs to no group, changes nothing in
// Redis, and is not concerned by what others read. A *[DecodeError] is yielded in the
// place of its entry, and a *[GapError] first where from was trimmed away; it continues after
// both. Any other error is the last thing yielded.
func (r *Reader[T]) History(ctx context.Context, from Position) iter.Seq2[Delivery[T], error] {
	return r.history(ctx, from, nil)
}

// endFunc is called for the end of a stream, and reports whether the loop continues behind it. nil
// leaves it out.
type endFunc[T any] func(end *CompletedError, yield func(Delivery[T], error) bool) bool

// yieldEnd yields the end of a stream as an error, and continues.
func yieldEnd[T any](end *CompletedError, yield func(Delivery[T], error) bool) bool {
	return yield(Delivery[T]{}, end)
}

// history is History with what becomes of the end of a stream.
func (r *Reader[T]) history(ctx context.Context, from Position, end endFunc[T]) iter.Seq2[Delivery[T], error] {
	return func(yield func(Delivery[T], error) bool) {
		if r.transport.history == nil {
			yield(Delivery[T]{}, r.notSupported("history"))
			return
		}
		if err := r.Err(); err != nil {
			yield(Delivery[T]{}, err)
			return
		}
		for a, err := range r.transport.history(ctx, from) {
			if closed := r.Err(); closed != nil {
				yield(Delivery[T]{}, closed)
				return
			}
			if err != nil {
				if !yield(Delivery[T]{}, err) {
					return
				}
			} else if !r.show(source.NewContext(ctx, a), a, end, yield) {
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
// per hash slot), and a slow one holds up no other.
//
// In a stream that [Writer.CompleteStream] has completed the loop ends behind the last value. Its
// last pair has a zero Delivery and io.EOF, or a [*CompletedError].
//
// Where the transport keeps nothing, Latest is the only position: the loop then has a
// subscription of its own, and sees what others see, as far as the transport gives every
// subscription every message (Pub/Sub does).
func (r *Reader[T]) Follow(ctx context.Context, from Position) iter.Seq2[Delivery[T], error] {
	return r.follow(ctx, from, nil, func(end *CompletedError, yield func(Delivery[T], error) bool) bool {
		yield(Delivery[T]{}, end.end())
		return false
	})
}

// follow is Follow that calls live, if it is not nil, before the first delivery, when what is
// written from then on will come. start is the ID after which the loop begins, zero where the
// transport has none.
func (r *Reader[T]) follow(ctx context.Context, from Position, live func(start stream.ID), end endFunc[T]) iter.Seq2[Delivery[T], error] {
	return func(yield func(Delivery[T], error) bool) {
		reading, err := r.transport.follow(from, live)
		if err != nil {
			yield(Delivery[T]{}, err)
			return
		}
		defer r.source.disown(reading)
		if err := r.source.adopt(reading); err != nil {
			yield(Delivery[T]{}, err)
			return
		}
		for failed := 0; ; {
			a, err := reading.next(ctx)
			if err == nil {
				if failed = 0; !r.show(reading.context(a), a, end, yield) {
					return
				}
				continue
			}
			if reading.isEnd(ctx, err) || !yield(Delivery[T]{}, err) || reading.endedByTransport() {
				return
			}
			failed = r.rest(ctx, err, failed)
		}
	}
}

// followLatest is Follow from Latest for internal/bridge.
func (r *Reader[T]) followLatest(ctx context.Context, live func(start stream.ID)) any {
	return r.follow(ctx, Latest, live, yieldEnd[T])
}

// historyWithEnds is History for internal/bridge.
func (r *Reader[T]) historyWithEnds(ctx context.Context, from string) any {
	return r.history(ctx, Position(from), yieldEnd[T])
}

func init() {
	bridge.Follow = func(ctx context.Context, reader any, live func(start stream.ID)) any {
		return reader.(interface {
			followLatest(context.Context, func(stream.ID)) any
		}).followLatest(ctx, live)
	}
	bridge.History = func(ctx context.Context, reader any, from string) any {
		return reader.(interface {
			historyWithEnds(context.Context, string) any
		}).historyWithEnds(ctx, from)
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
		return "", fmt.Errorf("redischannels: last ID of %q: %w", r.source.topic, err)
	}
	return id, nil
}

// show yields the value of an attempt of which there is nothing to end. ctx is that of the
// delivery.
func (r *Reader[T]) show(ctx context.Context, a *source.Attempt, end endFunc[T], yield func(Delivery[T], error) bool) bool {
	value, metadata, err := r.value(a)
	switch {
	case err == errSkip:
		completed := completion(a, metadata)
		return completed == nil || end == nil || end(completed, yield)
	case err != nil:
		return yield(Delivery[T]{}, decodeFailure[T](a, err))
	}
	return yield(shownDelivery(ctx, a, value, metadata), nil)
}

// followedSource is a subscription that Reader.Follow reads.
type followedSource struct {
	*lazySource
	decoding decoding
	live     func(start stream.ID) // is called when it has begun; may be nil
}

// next implements followed.
func (s *followedSource) next(ctx context.Context) (*source.Attempt, error) {
	if s.live != nil {
		if _, err := s.open(ctx); err != nil {
			return nil, err
		}
		s.live(stream.ID{})
		s.live = nil
	}
	got, err := s.lazySource.next(ctx, nil, one)
	if err != nil {
		return nil, err
	}
	_ = got[0].End(source.Outcome{Kind: source.Ack}) // the place moves on
	return got[0], nil
}

// context implements followed.
func (s *followedSource) context(a *source.Attempt) context.Context {
	ctx := s.decoding.context(a)
	if ctx == nil {
		ctx = a
	}
	return context.WithoutCancel(ctx) // what follows ends it
}

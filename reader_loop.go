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

// All yields values and acknowledges each one when the loop asks for the next. If the body leaves
// the loop, by break, return or panic, the current value is kept for the next read of this
// reader, and after a second released to the group; the delivery does not count. The loop ends
// only with ctx or Close. It waits while no value arrives, and resumes after outages.
//
// With an error the value is zero. A *[DecodeError] and a *[GapError] report entries that cannot
// be read. Any other error is that of subscribing, which is retried after a back-off when the
// loop continues. If a subscriber of [NewChannel] ends the subscription by itself, its error is
// the last one.
func (r *Reader[T]) All(ctx context.Context) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		buf := make([]*source.Attempt, 0, 1)
		for failed := 0; ; {
			got, err := r.source.next(ctx, buf, one)
			var value T
			if err == nil {
				if value, _, err = r.decode(got[0]); isSkip(err) {
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

// lend passes a value to the body of a loop and ends its attempt according to the end of the
// body.
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

// Deliveries yields deliveries, which the caller must end, in the loop or after it. The loop
// ends, and yields errors, like that of All.
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

// rest waits before a failed subscription is retried, and returns the number of consecutive
// failures.
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

// History yields the entries of the stream after from (zero means Oldest), up to the last one
// when it begins, and ends. It belongs to no group, changes nothing in Redis, and does not depend
// on other readers. A *[DecodeError] is yielded in the place of its entry. If entries after from
// were trimmed, a *[GapError] is yielded first. History continues after both. Any other error
// ends it.
func (r *Reader[T]) History(ctx context.Context, from Position) iter.Seq2[Delivery[T], error] {
	return r.history(ctx, from, nil)
}

// endFunc is called for the end of a stream, and reports whether the loop continues behind it.
// nil skips the end.
type endFunc[T any] func(end *CompletedError, yield func(Delivery[T], error) bool) bool

// yieldEnd yields the end of a stream as an error, and continues.
func yieldEnd[T any](end *CompletedError, yield func(Delivery[T], error) bool) bool {
	return yield(Delivery[T]{}, end)
}

// history is History with a function for the end of a stream.
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

// Follow yields the entries of the stream after from (zero means Oldest), and then new ones as
// they are written. Both use one cursor, so no entry is missing or repeated between them. Follow
// belongs to no group and ends like All; its errors are those of History and All. Loops over
// Follow and readers without a group share one connection per 256 streams (in Redis Cluster per
// hash slot) on one hub, if their settings are equal. A slow one does not delay the others.
//
// In a stream that [Writer.CompleteStream] has completed the loop ends behind the last value. Its
// last pair has a zero Delivery and io.EOF, or a [*CompletedError].
//
// If the transport stores no messages, Latest is the only position. The loop then has its own
// subscription, and receives every message if the transport sends every message to every
// subscription, as Pub/Sub does.
func (r *Reader[T]) Follow(ctx context.Context, from Position) iter.Seq2[Delivery[T], error] {
	return r.follow(ctx, from, nil, func(end *CompletedError, yield func(Delivery[T], error) bool) bool {
		yield(Delivery[T]{}, end.end())
		return false
	})
}

// follow is Follow that calls live, if it is not nil, before the first delivery and when all
// entries written from then on will be yielded. start is the ID after which the loop begins, zero
// if the transport has no IDs.
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

// LastID returns the greatest entry ID that the stream has had, "0-0" if it has had no entry.
// History or Follow with [AfterID] of it begins with the entries written after this call. If the
// transport stores no messages it returns [ErrNotSupported] and sends no command. (XINFO STREAM
// last-generated-id)
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

// show yields the value of an attempt that needs no acknowledgement. ctx is the context of the
// delivery.
func (r *Reader[T]) show(ctx context.Context, a *source.Attempt, end endFunc[T], yield func(Delivery[T], error) bool) bool {
	value, metadata, err := r.value(a)
	switch {
	case isSkip(err):
		completed := completion(a, metadata)
		return completed == nil || end == nil || end(completed, yield)
	case err != nil:
		return yield(Delivery[T]{}, decodeFailure[T](a, err))
	}
	return yield(shownDelivery(ctx, a, value, metadata), nil)
}

// followedSource is the subscription of a Reader.Follow loop.
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

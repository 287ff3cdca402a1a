package redischannels

import (
	"context"
	"fmt"
	"maps"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/flaminco/redischannels/internal/backoff"
	"github.com/flaminco/redischannels/internal/delayed"
	"github.com/flaminco/redischannels/internal/lifecycle"
)

// roomInterval is the time between two looks of WaitToWrite.
var roomInterval = backoff.Backoff{Min: 5 * time.Millisecond, Max: 250 * time.Millisecond, Factor: 2}

// Writer is the writing side of a [Channel]. It is safe for concurrent use.
type Writer[T any] struct {
	transport  *transport
	life       *lifecycle.State // of the channel
	code       coder[T]
	metadata   message.Metadata
	metadataOf func(T) message.Metadata // nil but for NewChannel
}

// With returns a Writer of the same channel that adds metadata to every value that it
// writes, on top of what this one adds. The map is copied.
func (w *Writer[T]) With(metadata message.Metadata) *Writer[T] {
	other := *w
	other.metadata = maps.Clone(w.metadata)
	if other.metadata == nil {
		other.metadata = make(message.Metadata, len(metadata))
	}
	maps.Copy(other.metadata, metadata)
	return &other
}

// Write writes a value and returns when Redis has confirmed it, with the ID of its
// entry (where the transport has none, the UUID of its message). The error of a value
// that cannot be encoded is permanent; [ErrCompleted] and [ErrClosed] answer later
// writes; every other one is that of [Publisher.Append], whose [*PublishError] says
// whether the value may have been written. Nothing is written twice blindly.
func (w *Writer[T]) Write(ctx context.Context, value T) (id string, err error) {
	if err := w.Err(); err != nil {
		return "", err
	}
	msg, err := w.message(&value)
	if err != nil {
		return "", err
	}
	ids, err := w.transport.publish(ctx, []*message.Message{msg})
	if len(ids) == 1 {
		id = ids[0]
	}
	return id, err
}

// WriteAll writes values in their order, up to 500 of them in one transaction: see
// [Publisher]. One that cannot be encoded prevents all. With an error the IDs of
// those that are not known to be written are empty.
func (w *Writer[T]) WriteAll(ctx context.Context, values ...T) (ids []string, err error) {
	if err := w.Err(); err != nil {
		return nil, err
	}
	if len(values) == 0 {
		return nil, nil
	}
	msgs := make([]*message.Message, len(values))
	for i := range values {
		if msgs[i], err = w.message(&values[i]); err != nil {
			return nil, fmt.Errorf("value %d: %w", i, err)
		}
	}
	return w.transport.publish(ctx, msgs)
}

func (w *Writer[T]) message(value *T) (*message.Message, error) {
	metadata := w.metadata
	if w.metadataOf != nil {
		metadata = w.With(w.metadataOf(*value)).metadata
	}
	return w.code.message(value, metadata)
}

// encoder is a Writer of any type.
type encoder interface {
	encodeAny(value any) (*message.Message, error)
}

// encodeAny implements encoder. value is a *T.
func (w *Writer[T]) encodeAny(value any) (*message.Message, error) { return w.message(value.(*T)) }

// WriteAt writes a value that becomes part of the stream at a time, by the clock of the Redis
// server: until then it is stored in Redis, where [DelayedMessages] lists and cancels it. A time
// that is past writes it at once. The result has its delayed ID or its entry ID. Errors are those of
// Write, and [ErrNotSupported] where the transport cannot delay. See docs/delays.md for which
// processes append what is due.
func (w *Writer[T]) WriteAt(ctx context.Context, at time.Time, value T) (PublishResult, error) {
	return w.writeDue(ctx, delayed.At(at), value)
}

// WriteAfter is WriteAt for a delay, which begins when Redis has received the value. A delay of 0 or
// less writes it at once.
func (w *Writer[T]) WriteAfter(ctx context.Context, delay time.Duration, value T) (PublishResult, error) {
	return w.writeDue(ctx, delayed.After(delay), value)
}

func (w *Writer[T]) writeDue(ctx context.Context, due delayed.Due, value T) (PublishResult, error) {
	if err := w.Err(); err != nil {
		return PublishResult{}, err
	}
	if w.transport.delay == nil {
		return PublishResult{}, fmt.Errorf("redischannels: write to %q later: %w", w.transport.topic, ErrNotSupported)
	}
	msg, err := w.message(&value)
	if err != nil {
		return PublishResult{}, err
	}
	results, err := w.transport.delay(ctx, msg, due)
	if len(results) != 1 {
		return PublishResult{UUID: msg.UUID}, err
	}
	return results[0], err
}

// WaitToWrite returns nil when a value may be written: when fewer than MaxLag entries
// wait for the group and the stream has fewer than MaxLen, at once where neither is
// set. It looks again every 5 to 250 ms. Write itself never waits, so several writers
// together may exceed a bound by what each writes after one wait. The error is that
// of ctx, of Redis, or of [Writer.Err].
func (w *Writer[T]) WaitToWrite(ctx context.Context) error {
	for looks := 1; ; looks++ {
		if err := w.Err(); err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if w.transport.room == nil {
			return nil
		}
		if ok, err := w.transport.room(ctx); err != nil {
			return fmt.Errorf("redischannels: wait to write to %q: %w", w.transport.topic, err)
		} else if ok {
			return nil
		}
		backoff.Wait(ctx.Done(), roomInterval.After(looks))
	}
}

// Complete ends writing through this Channel value: later writes return
// [ErrCompleted], which wraps err as well if it is not nil. Nothing is sent, and
// no other call is concerned, not even the Reader of this channel. Only the first call
// has an effect; it reports whether this one was that.
func (w *Writer[T]) Complete(err error) bool {
	topic := w.transport.topic
	completed := fmt.Errorf("redischannels: write to %q: %w", topic, ErrCompleted)
	if err != nil {
		completed = fmt.Errorf("redischannels: write to %q: %w: %w", topic, ErrCompleted, err)
	}
	return w.life.End(completed)
}

// Err returns nil as long as values may be written, and otherwise the error that
// writing answers.
func (w *Writer[T]) Err() error { return w.life.Err() }

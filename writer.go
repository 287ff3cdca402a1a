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

// roomInterval is the time between two checks of WaitToWrite.
var roomInterval = backoff.Backoff{Min: 5 * time.Millisecond, Max: 250 * time.Millisecond, Factor: 2}

// Writer is the writing side of a [Channel]. It is safe for concurrent use.
type Writer[T any] struct {
	transport  *transport
	life       *lifecycle.State // of the channel
	code       coder[T]
	metadata   message.Metadata
	metadataOf func(T) message.Metadata // nil except for NewChannel
}

// With returns a Writer of the same channel that adds metadata to every value that it writes, in
// addition to the metadata of this one. The map is copied.
func (w *Writer[T]) With(metadata message.Metadata) *Writer[T] {
	other := *w
	other.metadata = maps.Clone(w.metadata)
	if other.metadata == nil {
		other.metadata = make(message.Metadata, len(metadata))
	}
	maps.Copy(other.metadata, metadata)
	return &other
}

// Write writes a value and returns when Redis has confirmed it. It returns the ID of its entry,
// or the UUID of its message if the transport has no entry IDs. The error of a value that cannot
// be encoded is permanent. After Complete or Close it is [ErrCompleted] or [ErrClosed]. Any other
// error is that of [Publisher.Append], whose [*PublishError] has the outcome: the value may or
// may not have been written. A value that may have been written is not sent again.
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

// WriteAll writes values in their order, up to 500 of them in one transaction: see [Publisher].
// If a value cannot be encoded, none is written. With an error the IDs of values that were not
// certainly written are empty.
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

// WriteAt writes a value that is appended to the stream at a given time, by the clock of the
// Redis server. Until then it is stored in Redis, where [DelayedMessages] lists and cancels it.
// If the time is past, the value is written at once. The result has its delayed ID or its entry
// ID. Errors are those of Write, and [ErrNotSupported] if the transport has no delays.
// docs/delays.md lists the processes that append due messages.
func (w *Writer[T]) WriteAt(ctx context.Context, at time.Time, value T) (PublishResult, error) {
	return w.writeDue(ctx, delayed.At(at), value)
}

// WriteAfter is WriteAt for a delay, which begins when Redis receives the value. With a delay of
// 0 or less the value is written at once.
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

// WaitToWrite waits until a value may be written: until the group has a lag below MaxLag and the
// stream has fewer than MaxLen entries. If neither is set it returns at once. It checks every 5
// to 250 ms. Write itself never waits, so several writers may together exceed a bound by the
// values that each writes after one wait. The error is that of ctx, of Redis, or of [Writer.Err].
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

// Complete ends writing through this Channel value: later writes return [ErrCompleted], which
// wraps err as well if it is not nil. It sends no command, and does not affect other calls or the
// Reader of this channel. Only the first call has an effect, and returns true.
func (w *Writer[T]) Complete(err error) bool {
	topic := w.transport.topic
	completed := fmt.Errorf("redischannels: write to %q: %w", topic, ErrCompleted)
	if err != nil {
		completed = fmt.Errorf("redischannels: write to %q: %w: %w", topic, ErrCompleted, err)
	}
	return w.life.End(completed)
}

// Err returns nil as long as values may be written, and then the error that writes return.
func (w *Writer[T]) Err() error { return w.life.Err() }

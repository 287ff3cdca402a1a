package redischannels

import (
	"context"
	"errors"
	"fmt"
	"iter"

	"github.com/ThreeDotsLabs/watermill/message"
)

// DeadValue is a dead letter with the value of its message.
type DeadValue[T any] struct {
	DeadLetter
	Value    T
	Metadata message.Metadata // metadata that was written with the value
}

// ChannelDeadLetters are the dead letters of a channel: [DeadLetters] of its stream, with values.
// It is safe for concurrent use, even while readers run, and needs no Close. All methods block
// until Redis has replied or ctx ends. If the transport has no dead letters they return
// [ErrNotSupported].
type ChannelDeadLetters[T any] struct {
	source *deadLetterSource
	topic  string
	code   coder[T]
}

// deadLetterSource has the dead letters of a channel.
type deadLetterSource struct {
	letters     *DeadLetters
	group       string
	unmarshaler Unmarshaler
}

// DeadLetters returns the dead letters of the channel's stream.
func (c *Channel[T]) DeadLetters() *ChannelDeadLetters[T] {
	t := c.writer.transport
	return &ChannelDeadLetters[T]{source: t.deadLetters, topic: t.topic, code: c.writer.code}
}

// List yields dead letters as [DeadLetters.List] does, with their values. An empty query.Group
// means the group of the channel, or all groups without one. A dead letter that cannot be decoded
// as a T is yielded with a *[DecodeError] and without a value, and the list continues. Any other
// error ends the list.
func (d *ChannelDeadLetters[T]) List(ctx context.Context, query DeadLetterQuery) iter.Seq2[DeadValue[T], error] {
	return func(yield func(DeadValue[T], error) bool) {
		letters, err := d.operator()
		if err != nil {
			yield(DeadValue[T]{}, err)
			return
		}
		if query.Group == "" {
			query.Group = d.source.group
		}
		for letter, err := range letters.List(ctx, d.topic, query) {
			found := DeadValue[T]{DeadLetter: letter}
			if err == nil {
				found.Value, found.Metadata, err = d.value(letter)
			}
			if !isSkip(err) && !yield(found, err) {
				return
			}
		}
	}
}

// Requeue returns dead letters to the consumer groups that failed: see [DeadLetters.Requeue].
func (d *ChannelDeadLetters[T]) Requeue(ctx context.Context, ids ...string) ([]RequeueResult, error) {
	letters, err := d.operator()
	if err != nil {
		return nil, err
	}
	return letters.Requeue(ctx, d.topic, ids...)
}

// Reappend appends the messages of dead letters to the stream as new entries for all groups: see
// [DeadLetters.Reappend].
func (d *ChannelDeadLetters[T]) Reappend(ctx context.Context, ids ...string) ([]RequeueResult, error) {
	letters, err := d.operator()
	if err != nil {
		return nil, err
	}
	return letters.Reappend(ctx, d.topic, ids...)
}

// Purge deletes dead letters and returns how many of the IDs existed: see
// [DeadLetters.Purge].
func (d *ChannelDeadLetters[T]) Purge(ctx context.Context, ids ...string) (int, error) {
	letters, err := d.operator()
	if err != nil {
		return 0, err
	}
	return letters.Purge(ctx, d.topic, ids...)
}

func (d *ChannelDeadLetters[T]) operator() (*DeadLetters, error) {
	if d.source == nil {
		return nil, fmt.Errorf("redischannels: dead letters of %q: %w", d.topic, ErrNotSupported)
	}
	return d.source.letters, nil
}

// value returns the value and the metadata of a dead letter. The error is a *DecodeError, or
// errSkip.
func (d *ChannelDeadLetters[T]) value(letter DeadLetter) (value T, metadata message.Metadata, err error) {
	msg, err := letter.Message(d.source.unmarshaler)
	if err != nil {
		return value, nil, err
	}
	value, err = d.code.value(msg)
	var failure *DecodeError
	if errors.As(err, &failure) {
		failure.Topic, failure.EntryID = letter.Topic, letter.EntryID
	}
	return value, msg.Metadata, err
}

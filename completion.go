package redischannels

import (
	"cmp"
	"context"
	"fmt"
	"io"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/flaminco/redischannels/internal/source"
	"github.com/flaminco/redischannels/internal/stream"
)

// CompletedKey is the metadata key of the message by which [Writer.CompleteStream] marks the end
// of a stream. Its value is the text of the error, or empty. Typed readers return no value for
// this message; a [Subscriber] delivers it like any message, with the payload {}.
const CompletedKey = "_redischannels_completed"

// CompletedError is the end of a loop over [Reader.Follow] in a stream that was completed with an
// error. If it was completed without an error, the end is io.EOF.
type CompletedError struct {
	Topic   string
	EntryID string // of the end
	Reason  string // the text of the error
}

// Error implements error.
func (e *CompletedError) Error() string {
	text := fmt.Sprintf("redischannels: topic %q was completed by entry %s", e.Topic, e.EntryID)
	if e.Reason != "" {
		text += ": " + e.Reason
	}
	return text
}

// end is the last error of a loop.
func (e *CompletedError) end() error {
	if e.Reason == "" {
		return io.EOF
	}
	return e
}

// completion returns the end of a stream if an attempt is at its mark, or nil.
func completion(a *source.Attempt, metadata message.Metadata) *CompletedError {
	reason, ok := metadata[CompletedKey]
	if !ok {
		return nil
	}
	return &CompletedError{Topic: a.Topic, EntryID: idOf(a), Reason: reason}
}

// CompleteStream marks the end of the stream for the readers of all processes: the loops of
// [Reader.Follow] end with io.EOF, or with a [*CompletedError] that has the text of err (at most
// 1,024 bytes, which must not contain a secret), and so do Server-Sent Events. It then does what
// Complete does. Readers of a group acknowledge the mark and return no value for it, and History
// skips it. Values that other writers write later are behind the end: only a loop that begins
// there reads them.
//
// The error is that of Write; the mark may be written again. On a transport without history it is
// [ErrNotSupported]. With a [Marshaler] that drops metadata, readers cannot recognize the mark,
// and return it as a value.
func (w *Writer[T]) CompleteStream(ctx context.Context, err error) error {
	if w.transport.history == nil {
		return fmt.Errorf("redischannels: complete %q: %w", w.transport.topic, ErrNotSupported)
	}
	if err := w.Err(); err != nil {
		return err
	}
	reason := ""
	if err != nil {
		reason = cmp.Or(stream.CapReason(err.Error()), "unknown error")
	}
	msg := message.NewMessage(watermill.NewUUID(), message.Payload("{}"))
	msg.Metadata[CompletedKey] = reason
	if _, err := w.transport.publish(ctx, []*message.Message{msg}); err != nil {
		return err
	}
	w.Complete(err)
	return nil
}

package redischannels

import (
	"context"
	"errors"
	"sync"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/flaminco/redischannels/internal/source"
)

// wrapped returns fn as a handler of messages within middleware, the first one outermost, or
// nil without any.
func wrapped[T any](code coder[T], fn func(context.Context, T) error, middleware []message.HandlerMiddleware) message.HandlerFunc {
	if len(middleware) == 0 {
		return nil
	}
	handler := untyped(code, func(ctx context.Context, value T) ([]*message.Message, error) { return nil, fn(ctx, value) })
	for i := len(middleware) - 1; i >= 0; i-- {
		handler = middleware[i](handler)
	}
	return handler
}

// handleMessage calls the middleware with the message of an attempt. A middleware may end the
// message, which ends the attempt at once.
func (h *handling[T]) handleMessage(ctx context.Context, w *worker, a *source.Attempt) {
	msg, err := h.reader.transport.decoding.message(a)
	a.Entry.Release()
	if err != nil {
		// A middleware that publishes what fails, or drops what it has seen before, would take
		// the empty payload of a message made for this for that of the entry.
		h.failed(a, h.reader.refuse(a, err))
		return
	}
	original := msg.Context()
	handling := h.begin(ctx, w, a)
	msg.SetContext(handling)
	returned := make(chan struct{})
	var watching sync.WaitGroup
	watching.Go(func() {
		select {
		case <-msg.Acked():
			_ = a.End(source.Outcome{Kind: source.Ack})
		case <-msg.Nacked():
			_ = a.End(a.Requested())
		case <-returned:
		}
	})
	err = safely(func() error {
		_, err := h.wrapped(msg)
		return err
	})
	close(returned)
	watching.Wait()
	w.end()
	msg.SetContext(original) // a middleware may have put another one there
	h.endMessage(a, msg, err)
}

// endMessage ends an attempt by what the middleware has done with the message, or returned.
func (h *handling[T]) endMessage(a *source.Attempt, msg *message.Message, err error) {
	select {
	case <-msg.Acked():
		_ = a.End(source.Outcome{Kind: source.Ack})
	case <-msg.Nacked():
		_ = a.End(a.Requested())
	default:
		h.endReturned(a, err)
		return
	}
	if err != nil {
		h.failed(a, err)
	}
}

func (h *handling[T]) endReturned(a *source.Attempt, err error) {
	// The function may return the error of another value that it has read.
	if failure := (*DecodeError)(nil); errors.As(err, &failure) && failure.EntryID == idOf(a) {
		h.failed(a, err)
		_ = a.End(source.Outcome{Kind: source.Undecodable, Reason: failure.Reason, Err: failure})
		return
	}
	h.end(a, err)
}

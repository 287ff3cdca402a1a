package redischannels

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/flaminco/redischannels/internal/backoff"
	"github.com/flaminco/redischannels/internal/source"
)

// DefaultConcurrency is the default number of values that Reader.Handle handles at a time.
const DefaultConcurrency = 1

// HandleConfig configures [Reader.Handle]. The zero value handles one value at a time.
type HandleConfig struct {
	// Concurrency is the number of values that are handled at a time, 1 to MaxInFlight of the
	// channel. Defaults to DefaultConcurrency.
	Concurrency int

	// Name is the name that message.HandlerNameFromCtx returns within fn and Middleware, for example
	// as a label of Watermill's components/metrics. Defaults to none.
	Name string

	// Middleware is Watermill middleware around fn, the first one outermost. Messages that it
	// returns for publishing are dropped, because Handle has no topic to publish to.
	Middleware []message.HandlerMiddleware
}

// Handle calls fn for each value until ctx ends or the reader is closed. It then waits for
// running calls and returns nil. A value is acknowledged when fn returns nil. It is nacked when
// fn returns an error or panics, which is logged. The last error is the reason of the dead
// letter, [Permanent] dead-letters at once, and [WithRetryAfter] sets the delay. [RetryAfter] and
// [Reject] work in a middleware. The context of fn is that of the delivery with the values of
// ctx. It is not canceled with ctx but DrainTimeout later, so that a running call can finish.
//
// If the subscription cannot be opened, Handle returns the error. Once it is open, only a
// subscriber of [NewChannel] that ends the subscription by itself causes an error. Several calls
// of Handle on one Reader share the values. Middleware does not receive an entry that the wire
// format cannot decode as a message.
func (r *Reader[T]) Handle(ctx context.Context, fn func(context.Context, T) error, config HandleConfig) error {
	config.Concurrency = orDefault(config.Concurrency, DefaultConcurrency)
	v := validation{prefix: "HandleConfig"}
	v.intRange("Concurrency", config.Concurrency, 1, orDefault(r.transport.limit, maxInFlightLimit), "")
	for i, middleware := range config.Middleware {
		if middleware == nil {
			v.check(errNil, fmt.Sprintf("Middleware[%d]", i))
		}
	}
	if err := errors.Join(missingFunction(fn == nil), v.err()); err != nil {
		return err
	}
	if config.Name != "" {
		ctx = context.WithValue(ctx, handlerNameKey(), config.Name)
	}
	h := &handling[T]{reader: r, fn: fn, logger: r.transport.logger, wrapped: wrapped(r.code, fn, config.Middleware)}
	return r.work(ctx, config.Concurrency, h.work)
}

// keyRecorder is a context that records the last key of which the value is asked for.
type keyRecorder struct {
	context.Context
	key any
}

func (r *keyRecorder) Value(key any) any {
	r.key = key
	return nil
}

// handlerNameKey returns the key of message.HandlerNameFromCtx, which Watermill does not export.
func handlerNameKey() any {
	r := &keyRecorder{Context: context.Background()}
	_ = message.HandlerNameFromCtx(r)
	return r.key
}

// work runs workers until ctx ends or the reader is closed, and waits for them. The context of a
// worker that still runs is canceled DrainTimeout after ctx.
func (r *Reader[T]) work(ctx context.Context, concurrency int, work func(ctx context.Context, w *worker)) error {
	if _, err := r.source.open(ctx); err != nil {
		return r.openError(ctx, err)
	}
	workers := make([]worker, concurrency)
	finished := make(chan struct{})
	var working, patience sync.WaitGroup
	patience.Go(func() {
		select {
		case <-ctx.Done():
		case <-finished:
			return
		}
		if backoff.Wait(finished, r.transport.drain) {
			for i := range workers {
				workers[i].stop()
			}
		}
	})
	for i := range workers {
		working.Go(func() { work(ctx, &workers[i]) })
	}
	working.Wait()
	close(finished)
	patience.Wait()
	if ctx.Err() == nil && r.source.endedByTransport() {
		return r.source.life.Err()
	}
	return nil
}

// openError returns the error of a subscription that cannot be opened: nil if ctx has ended.
func (r *Reader[T]) openError(ctx context.Context, err error) error {
	if ctx.Err() != nil && r.source.life.Err() == nil {
		return nil
	}
	return err
}

// worker is a goroutine that calls the function of the application. The context of the running
// call can be canceled.
type worker struct {
	mu      sync.Mutex
	attempt *source.Attempt    // whose context is that of the call, or
	cancel  context.CancelFunc // ends it; both are nil between two calls
	stopped bool
}

// begin records how to end the context of a call that begins; end must follow.
func (w *worker) begin(a *source.Attempt, cancel context.CancelFunc) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.attempt, w.cancel = a, cancel
	if w.stopped {
		w.cancelCall()
	}
}

func (w *worker) end() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.cancel != nil {
		w.cancel()
	}
	w.attempt, w.cancel = nil, nil
}

// stop ends the context of the running call, and those of later ones.
func (w *worker) stop() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.stopped = true
	w.cancelCall()
}

func (w *worker) cancelCall() {
	if w.attempt != nil {
		w.attempt.Cancel()
	}
	if w.cancel != nil {
		w.cancel()
	}
}

// handling is one call of Handle.
type handling[T any] struct {
	reader  *Reader[T]
	logger  watermill.LoggerAdapter
	fn      func(context.Context, T) error
	wrapped message.HandlerFunc // fn within the middleware; nil without any
}

// work handles values one after the other.
func (h *handling[T]) work(ctx context.Context, w *worker) {
	buf := make([]*source.Attempt, 0, 1)
	for {
		got, err := h.reader.source.next(ctx, buf, one)
		switch {
		case err == nil && h.wrapped == nil:
			h.handle(ctx, w, got[0])
		case err == nil:
			h.handleMessage(ctx, w, got[0])
		case isReported(err):
			h.logger.Error("Entries cannot be read", err, watermill.LogFields{"topic": h.reader.source.topic})
		default:
			return // ctx has ended, or the subscription
		}
	}
}

// handle calls fn with the value of an attempt.
func (h *handling[T]) handle(ctx context.Context, w *worker, a *source.Attempt) {
	value, _, err := h.reader.decode(a)
	if err != nil {
		if !isSkip(err) {
			h.failed(a, err)
		}
		return
	}
	handling := h.begin(ctx, w, a)
	err = safely(func() error { return h.fn(handling, value) })
	w.end()
	h.end(a, err)
}

// begin returns the context of a call.
func (h *handling[T]) begin(ctx context.Context, w *worker, a *source.Attempt) *valuesContext {
	if of := h.reader.transport.decoding.context(a); of != nil {
		handling, cancel := context.WithCancel(of)
		w.begin(nil, cancel)
		return &valuesContext{handling, ctx}
	}
	w.begin(a, nil)
	return &valuesContext{a, ctx}
}

// end ends an attempt with the result of the handler.
func (h *handling[T]) end(a *source.Attempt, err error) {
	o := source.Outcome{Kind: source.Ack}
	if err != nil {
		h.failed(a, err)
		o = failedOutcome(a.Requested(), err)
	}
	if err = endHandled(a, o); err != nil {
		h.logger.Info("The end of a delivery is ignored", watermill.LogFields{"topic": a.Topic, "id": idOf(a), "err": endError(err)})
	}
}

func (h *handling[T]) failed(a *source.Attempt, err error) {
	h.logger.Error("A value was not handled", err, watermill.LogFields{"topic": a.Topic, "id": idOf(a)})
}

// valuesContext is the context of a delivery with further values.
type valuesContext struct {
	context.Context
	values context.Context
}

// Value implements context.Context.
func (c *valuesContext) Value(key any) any {
	if v := c.Context.Value(key); v != nil {
		return v
	}
	return c.values.Value(key)
}

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
		// A middleware that publishes failed messages, or drops duplicates, would mistake the
		// empty payload of a substitute message for that of the entry.
		h.failed(a, h.reader.refuse(a, err))
		return
	}
	watchOne(a, msg.Metadata)
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
	msg.SetContext(original) // a middleware may have replaced it
	h.endMessage(a, msg, err)
}

// endMessage ends an attempt by the Ack or Nack of the middleware, or by the error that it has
// returned.
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

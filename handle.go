package redischannels

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"runtime/debug"
	"sync"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
)

// DefaultConcurrency is how many values Reader.Handle handles at a time.
const DefaultConcurrency = 1

// HandleConfig configures [Reader.Handle]. The zero value handles one value at a time.
type HandleConfig struct {
	// Concurrency is how many values are handled at a time, 1 to MaxInFlight of the
	// channel. Defaults to DefaultConcurrency.
	Concurrency int

	// Middleware of Watermill, the first outermost, sees the messages and runs the
	// function. What it makes the function publish is dropped: there is nowhere to
	// publish it to.
	Middleware []message.HandlerMiddleware
}

// Handle calls fn for each value until ctx ends or Close, which it returns as nil, when
// all calls under way have come back. A value is acknowledged when fn returns nil and
// nacked when it returns an error or panics, which is logged; [RetryAfter] and [Reject]
// work in a middleware. The context of fn is that of the delivery with the values of
// ctx: it is not cancelled with ctx, so that a call under way can finish, but
// DrainTimeout later.
//
// If the subscription cannot be opened at all Handle returns that error, which tells a
// wrong configuration; once it is open nothing else ends it, unless a subscriber of
// [NewChannel] ends the subscription by itself, which is an error as well. Several calls
// of Handle on one Reader share the values. Middleware does not see what is no message at
// all, because the wire format does not fit.
func (r *Reader[T]) Handle(ctx context.Context, fn func(context.Context, T) error, config HandleConfig) error {
	v := validation{prefix: "HandleConfig"}
	limit := r.feed.limit
	if limit == 0 {
		limit = maxInFlightLimit
	}
	v.intRange("Concurrency", config.Concurrency, 0, limit, "")
	for i, middleware := range config.Middleware {
		if middleware == nil {
			v.check(errNil, fmt.Sprintf("Middleware[%d]", i))
		}
	}
	if err := errors.Join(missingFunction(fn == nil), v.err()); err != nil {
		return err
	}
	if err := r.feed.open(ctx); err != nil {
		if ctx.Err() != nil && r.feed.life.Err() == nil {
			return nil
		}
		return err
	}

	handler := untyped(r.code, func(ctx context.Context, value T) ([]*message.Message, error) { return nil, fn(ctx, value) })
	for i := len(config.Middleware) - 1; i >= 0; i-- {
		handler = config.Middleware[i](handler)
	}
	w := &handling{feed: r.feed, logger: r.transport.logger, handler: handler, exposed: len(config.Middleware) > 0, running: make(map[*handled]*valuesContext)}
	finished := make(chan struct{})
	var workers, patience sync.WaitGroup
	patience.Go(func() {
		select {
		case <-ctx.Done():
		case <-finished:
			return
		}
		if pause(finished, r.transport.drain) {
			w.cancel()
		}
	})
	for range orDefault(config.Concurrency, DefaultConcurrency) {
		workers.Go(func() { w.work(ctx) })
	}
	workers.Wait()
	close(finished)
	patience.Wait()
	if ctx.Err() == nil && r.feed.endedByTransport() {
		return r.feed.closedError()
	}
	return nil
}

// handling is one call of Handle.
type handling struct {
	feed    *feed
	logger  watermill.LoggerAdapter
	handler message.HandlerFunc
	exposed bool // to middleware, which may settle messages itself

	mu        sync.Mutex
	running   map[*handled]*valuesContext
	cancelled bool
}

// work handles messages one after the other.
func (w *handling) work(ctx context.Context) {
	for {
		msg, err := w.feed.next(ctx)
		var gap *GapError
		switch {
		case err == nil:
			w.handle(ctx, msg)
		case errors.As(err, &gap):
			w.logger.Error("Entries cannot be read", err, watermill.LogFields{"topic": w.feed.topic})
		default:
			return // ctx has ended, or the subscription
		}
	}
}

func (w *handling) handle(ctx context.Context, msg *message.Message) {
	fields := watermill.LogFields{"topic": w.feed.topic, "id": idOf(msg)}
	if failure := undecodable(msg); failure != nil {
		// A middleware that publishes what fails, or drops what it has seen before, would
		// take its empty payload for that of the entry.
		w.logger.Error("A value was not handled", failure, fields)
		w.feed.refuse(msg, failure)
		return
	}
	held := w.feed.lend(msg)
	original := msg.Context()
	d := w.feed.deliveryOf(msg)
	if d != nil && w.exposed {
		d.watch(msg)
	}
	delivered := newValuesContext(original, ctx, d)
	if d == nil {
		defer delivered.cancel()
	}
	w.mu.Lock()
	w.running[held] = delivered
	cancelled := w.cancelled
	w.mu.Unlock()
	if cancelled {
		delivered.cancel()
	}
	msg.SetContext(delivered)
	err := w.call(msg)
	msg.SetContext(original) // middleware may have put another one there
	w.mu.Lock()
	delete(w.running, held)
	cancelled = w.cancelled
	w.mu.Unlock()

	settle := held.ack
	if err != nil {
		w.logger.Error("A value was not handled", err, fields)
		settle = held.nack
		// The function may return the error of something else that it has read.
		if refused := (*DecodeError)(nil); errors.As(err, &refused) && refused.EntryID == held.id {
			settle = func() error { return held.release(func(f *feed, msg *message.Message) { f.refuse(msg, refused) }) }
		}
	}
	// A context that was ended here looks like that of a value which somebody else has.
	if err := settle(); err != nil && !cancelled {
		w.logger.Info("A value cannot be settled", fields.Add(watermill.LogFields{"err": err}))
	}
}

// call runs the handler; a panic is an error.
func (w *handling) call(msg *message.Message) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("panic: %v\n%s", v, debug.Stack())
		}
	}()
	_, err = w.handler(msg)
	return err
}

// cancel ends the contexts of the calls under way.
func (w *handling) cancel() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cancelled = true
	for _, delivered := range w.running {
		delivered.cancel()
	}
}

// valuesContext is the context of a delivery with further values.
type valuesContext struct {
	context.Context
	values context.Context
	cancel func()
}

// newValuesContext makes one whose cancel ends the delivery, if there is one.
func newValuesContext(delivered, values context.Context, d *delivery) *valuesContext {
	if d != nil {
		return &valuesContext{delivered, values, d.end}
	}
	ctx, cancel := context.WithCancel(delivered)
	return &valuesContext{ctx, values, cancel}
}

// Value implements context.Context.
func (c *valuesContext) Value(key any) any {
	if v := c.Context.Value(key); v != nil {
		return v
	}
	return c.values.Value(key)
}

// untyped makes a handler of messages of a function of values. What does not decode is
// marked as rejected, so that its Nack makes a dead letter of it.
func untyped[T any](code coder[T], fn func(context.Context, T) ([]*message.Message, error)) message.HandlerFunc {
	return func(msg *message.Message) ([]*message.Message, error) {
		value, err := code.value(msg)
		if err == errSkip {
			return nil, nil
		}
		if err != nil {
			var failure *DecodeError
			errors.As(err, &failure)
			Reject(msg, failure.Reason)
			return nil, err
		}
		return fn(msg.Context(), value)
	}
}

// HandlerFunc makes a handler for a Watermill router, for AddConsumerHandler, of a
// function of values. A message that does not make a T is an error that wraps a
// *[DecodeError], and from a Subscriber of this package a dead letter after its Nack.
// A nil codec is JSON. The errors wrap [ErrInvalidArgument].
func HandlerFunc[T any](codec Codec, fn func(context.Context, T) error) (message.NoPublishHandlerFunc, error) {
	code, err := handlerCoder[T](codec, fn == nil)
	if err != nil {
		return nil, err
	}
	handler := untyped(code, func(ctx context.Context, value T) ([]*message.Message, error) { return nil, fn(ctx, value) })
	return func(msg *message.Message) error {
		_, err := handler(msg)
		return err
	}, nil
}

// ProducerHandlerFunc is HandlerFunc for AddHandler: the values that the function
// returns are published by the router, in their order.
func ProducerHandlerFunc[In, Out any](codec Codec, fn func(context.Context, In) ([]Out, error)) (message.HandlerFunc, error) {
	in, err := handlerCoder[In](codec, fn == nil)
	if err != nil {
		return nil, err
	}
	out, err := handlerCoder[Out](codec, false)
	if err != nil {
		return nil, err
	}
	return untyped(in, func(ctx context.Context, value In) ([]*message.Message, error) {
		values, err := fn(ctx, value)
		if err != nil {
			return nil, err
		}
		msgs := make([]*message.Message, len(values))
		for i := range values {
			if msgs[i], err = out.message(&values[i], nil); err != nil {
				return nil, fmt.Errorf("value %d: %w", i, err)
			}
		}
		return msgs, nil
	}), nil
}

func handlerCoder[T any](codec Codec, noFunction bool) (coder[T], error) {
	code, err := newCoder[T](codec)
	if err != nil {
		err = invalidArgument("codec for "+reflect.TypeFor[T]().String(), err)
	}
	return code, errors.Join(err, missingFunction(noFunction))
}

func missingFunction(missing bool) error {
	if missing {
		return invalidArgument("fn", errNil)
	}
	return nil
}

package redischannels

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"runtime/debug"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/flaminco/redischannels/internal/source"
	"github.com/flaminco/redischannels/internal/stream"
)

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

// permanentError is what Permanent returns.
type permanentError struct{ error }

func (e *permanentError) Unwrap() error { return e.error }

// retryError is what WithRetryAfter returns.
type retryError struct {
	error
	delay time.Duration
}

func (e *retryError) Unwrap() error { return e.error }

// Permanent marks the error of a handler as one that no retry can help: its message becomes a
// dead letter at once, or is skipped without a group. [Reader.Handle] understands it, and in a
// router [HandlerErrors]. It wraps err and has its text; nil stays nil. Where the transport has
// no dead letters it is an error like any other.
func Permanent(err error) error {
	if err == nil {
		return nil
	}
	return &permanentError{err}
}

// IsPermanent reports whether the error, or one that it wraps, is of [Permanent]. Retries within
// a delivery, such as those of Watermill's middleware Retry, have no use for it.
func IsPermanent(err error) bool {
	var permanent *permanentError
	return errors.As(err, &permanent)
}

// WithRetryAfter has the message of a handler that returns this error redelivered after a delay
// instead of NackBackoff. [Reader.Handle] understands it, and in a router [HandlerErrors]. It
// wraps err and has its text; nil stays nil, and with a negative delay err is returned as it is.
// Where the transport has no delays it is an error like any other.
func WithRetryAfter(err error, delay time.Duration) error {
	if err == nil || delay < 0 {
		return err
	}
	return &retryError{err, delay}
}

// HandlerErrors is a message.HandlerMiddleware for routers, to be added before all others, so
// that it is the outermost: the error that the handler returns at last is the reason of the dead
// letter after MaxDeliveries, [Permanent] makes one at once, and [WithRetryAfter] sets the delay.
// Of a panic the value is the reason, without the stack; the panic continues. What the handler
// has asked for by [Reject], [RetryAfter] or [Postpone] counts, unless its error asks for
// something else. [SubscriberConfig.HideHandlerErrors] keeps errors out of Redis. Messages of
// other subscribers pass unchanged.
func HandlerErrors(next message.HandlerFunc) message.HandlerFunc {
	return func(msg *message.Message) (produced []*message.Message, err error) {
		defer func() {
			if v := recover(); v != nil {
				requestFor(msg, &panicError{value: v})
				panic(v)
			}
		}()
		produced, err = next(msg)
		if err != nil {
			requestFor(msg, err)
		}
		return produced, err
	}
}

// requestFor says how the Nack of a message is meant whose handler has returned an error.
func requestFor(msg *message.Message, err error) {
	if a := source.FromContext(msg.Context()); a != nil {
		a.Request(failedOutcome(a.Requested(), err))
	}
}

// failedOutcome returns how an attempt ends whose handler has returned an error, and which would end
// as o otherwise.
func failedOutcome(o source.Outcome, err error) source.Outcome {
	problem := safely(func() error { // the methods of the error are the application's
		var retry *retryError
		switch {
		case IsPermanent(err):
			o = source.Outcome{Kind: source.Reject, Reason: o.Reason}
		case errors.As(err, &retry):
			o = source.Outcome{Kind: source.Nack, Delay: retry.delay, Split: o.Split}
		}
		o.Cause = stream.CapReason(causeOf(err))
		return nil
	})
	if problem != nil {
		o.Cause = "the error of the handler panicked"
	}
	return o
}

// causeOf returns the text of the error of a handler. Of a panic it is the value.
func causeOf(err error) string {
	var own *panicError
	if errors.As(err, &own) {
		return own.text()
	}
	for cause := err; cause != nil; cause = errors.Unwrap(cause) {
		// RecoveredPanicError of Watermill's Recoverer, whose package needs other modules.
		v := reflect.ValueOf(cause)
		if v.Kind() != reflect.Struct || v.Type().Name() != "RecoveredPanicError" {
			continue
		}
		if value := v.FieldByName("V"); value.IsValid() && value.CanInterface() {
			return (&panicError{value: value.Interface()}).text()
		}
	}
	return err.Error()
}

// panicError is a panic of a function of the application.
type panicError struct {
	value any
	stack []byte
}

func (e *panicError) text() string { return fmt.Sprintf("panic: %v", e.value) }

// Error implements error. The text is for the log.
func (e *panicError) Error() string { return fmt.Sprintf("%s\n%s", e.text(), e.stack) }

// safely calls a function of the application; a panic is an error.
func safely(f func() error) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = &panicError{v, debug.Stack()}
		}
	}()
	return f()
}

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

// untyped returns a message handler for a function of values. A message that cannot be decoded is
// marked as rejected, so that its Nack dead-letters it.
func untyped[T any](code coder[T], fn func(context.Context, T) ([]*message.Message, error)) message.HandlerFunc {
	return func(msg *message.Message) ([]*message.Message, error) {
		value, err := code.value(msg)
		if isSkip(err) {
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

// HandlerFunc returns a handler for AddConsumerHandler of a Watermill router that calls a
// function of values. For a message that cannot be decoded as T the handler returns an error that
// wraps a *[DecodeError], and a Subscriber of this package dead-letters it after its Nack. A nil
// codec means JSON. The errors of HandlerFunc wrap [ErrInvalidArgument].
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

// ProducerHandlerFunc is HandlerFunc for AddHandler: the router publishes the values that the
// function returns, in their order.
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

// permanentError is the error that Permanent returns.
type permanentError struct{ error }

func (e *permanentError) Unwrap() error { return e.error }

// retryError is the error that WithRetryAfter returns.
type retryError struct {
	error
	delay time.Duration
}

func (e *retryError) Unwrap() error { return e.error }

// Permanent marks the error of a handler as permanent: retries cannot succeed, so the message is
// dead-lettered at once, or skipped without a group. [Reader.Handle] uses the mark, and in a
// router [HandlerErrors]. The returned error wraps err and has its text; for nil it is nil. If
// the transport has no dead letters it is an error like any other.
func Permanent(err error) error {
	if err == nil {
		return nil
	}
	return &permanentError{err}
}

// IsPermanent reports whether err, or an error that it wraps, is one of [Permanent]. Retries
// within a delivery, such as those of Watermill's middleware Retry, should stop at such an error.
func IsPermanent(err error) bool {
	var permanent *permanentError
	return errors.As(err, &permanent)
}

// WithRetryAfter marks the error of a handler with the delay of the redelivery, which replaces
// NackBackoff. [Reader.Handle] uses the mark, and in a router [HandlerErrors]. The returned error
// wraps err and has its text; for nil it is nil, and for a negative delay it is err. If the
// transport has no delays it is an error like any other.
func WithRetryAfter(err error, delay time.Duration) error {
	if err == nil || delay < 0 {
		return err
	}
	return &retryError{err, delay}
}

// HandlerErrors is a message.HandlerMiddleware for routers. Add it before all others, so that it
// is the outermost. The last error of the handler is then the reason of the dead letter after
// MaxDeliveries, [Permanent] dead-letters at once, and [WithRetryAfter] sets the delay. For a
// panic the reason is its value, without the stack; the panic is not recovered. A request by
// [Reject], [RetryAfter] or [Postpone] applies, unless the error of the handler has another one.
// [SubscriberConfig.HideHandlerErrors] keeps errors out of Redis. HandlerErrors does not change
// messages of other subscribers.
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

// requestFor sets the outcome of the Nack of a message whose handler has returned an error.
func requestFor(msg *message.Message, err error) {
	if a := source.FromContext(msg.Context()); a != nil {
		a.Request(failedOutcome(a.Requested(), err))
	}
}

// failedOutcome returns the outcome of an attempt whose handler has returned an error, given its
// outcome without the error.
func failedOutcome(o source.Outcome, err error) source.Outcome {
	problem := safely(func() error { // the methods of the error belong to the application
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

// causeOf returns the text of the error of a handler. For a panic it is the value.
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

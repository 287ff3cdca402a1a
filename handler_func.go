package redischannels

import (
	"context"
	"errors"
	"fmt"
	"reflect"

	"github.com/ThreeDotsLabs/watermill/message"
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

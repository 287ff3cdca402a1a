package redischannels

import (
	"bytes"
	"errors"
	"fmt"
	"reflect"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
)

// coder is where values of T become messages and payloads values; everything below it
// knows only messages and entries.
type coder[T any] struct {
	encode func(v *T, msg *message.Message) error
	decode func(payload []byte, metadata message.Metadata, v *T) error
	skip   func(metadata message.Metadata) bool // decode would return errSkip; nil: never
	plain  bool                                 // T is []byte or string, and a payload is its value
}

// newCoder makes a coder of a codec, JSON if it is nil, or says why it cannot work.
func newCoder[T any](codec Codec) (coder[T], error) {
	codec, err := checkCodec(codec, reflect.TypeFor[T]())
	if err != nil {
		return coder[T]{}, err
	}
	return coder[T]{
		encode: func(v *T, msg *message.Message) (err error) {
			msg.Payload, err = codec.Encode(v)
			return err
		},
		decode: func(payload []byte, _ message.Metadata, v *T) error { return codec.Decode(payload, v) },
		plain:  codec == Bytes && reflect.TypeFor[T]() == reflect.TypeFor[[]byte]() || codec == String && reflect.TypeFor[T]() == reflect.TypeFor[string](),
	}, nil
}

func checkCodec(codec Codec, t reflect.Type) (Codec, error) {
	if codec == nil {
		codec = JSON
	}
	if v := reflect.ValueOf(codec); v.Kind() == reflect.Pointer && v.IsNil() {
		return nil, fmt.Errorf("must not be a nil %T: leave it out for JSON", codec)
	}
	if c, ok := codec.(TypeChecker); ok {
		if err := c.CheckType(t); err != nil {
			return nil, err
		}
	}
	return codec, nil
}

// message makes the message of a value. A panic of the codec is an error of the value.
func (c coder[T]) message(v *T, metadata message.Metadata) (msg *message.Message, err error) {
	msg = message.NewMessage(watermill.NewUUID(), nil)
	for key, value := range metadata {
		msg.Metadata[key] = value
	}
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("the codec panicked: %v", r)
		}
		if err != nil {
			msg, err = nil, fmt.Errorf("redischannels: encode a %s: %w", reflect.TypeFor[T](), err)
		}
	}()
	return msg, c.encode(v, msg)
}

// value makes the value of a message. The error is a *DecodeError, or errSkip.
func (c coder[T]) value(msg *message.Message) (T, error) {
	v, err := c.of(msg.Payload, msg.Metadata)
	if err == nil || err == errSkip {
		return v, err
	}
	failure := decodeError[T](err)
	failure.EntryID = msg.UUID
	if id, ok := EntryIDFromContext(msg.Context()); ok {
		failure.EntryID = id
	}
	failure.Topic, _ = TopicFromContext(msg.Context())
	return v, failure
}

// of makes a value of a payload.
func (c coder[T]) of(payload []byte, metadata message.Metadata) (v T, err error) {
	if !c.plain {
		return c.decoded(payload, metadata)
	}
	switch v := any(&v).(type) { // a codec would have each value allocated
	case *[]byte:
		*v = bytes.Clone(payload)
	case *string:
		*v = string(payload)
	}
	return v, nil
}

func (c coder[T]) decoded(payload []byte, metadata message.Metadata) (v T, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = plainError("makes the codec panic")
		}
		if err != nil {
			var zero T
			v = zero
		}
	}()
	err = c.decode(payload, metadata, &v)
	return v, err
}

// decodeError returns the error of decoding as a *DecodeError of the caller's own. Its reason
// has nothing of the payload.
func decodeError[T any](err error) *DecodeError {
	var failure *DecodeError
	var plain plainError
	switch {
	case errors.As(err, &failure):
		own := *failure
		return &own
	case errors.As(err, &plain):
		return &DecodeError{Reason: "the payload " + string(plain)}
	}
	return &DecodeError{Reason: "the payload does not make a " + reflect.TypeFor[T]().String(), Err: err}
}

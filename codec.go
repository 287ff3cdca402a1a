package redischannels

import (
	"bytes"
	"errors"
	"fmt"
	"reflect"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/flaminco/redischannels/internal/jsontext"
)

// Codec encodes values as payloads and decodes them. In both methods v is a pointer to the value:
// a *T on a Channel[T]. A Codec must be safe for concurrent use. Decode must not keep data. If
// the codec implements [TypeChecker], it checks T when a channel is created.
type Codec interface {
	Encode(v any) ([]byte, error)
	Decode(data []byte, v any) error
}

// TypeChecker is an optional interface of a [Codec], which refuses a type that it does not
// support when a channel is created and not at the first message.
type TypeChecker interface {
	CheckType(t reflect.Type) error
}

// BasicCodec is a codec of this package; its constants are the names of the codecs. Package
// protocodec has a codec for Protocol Buffers.
type BasicCodec string

const (
	// JSON is encoding/json, and the default. Unknown members are ignored. The JSON text null is
	// an error, unless T is a slice, a map or an interface: it would decode to a zero value that
	// was never written. Text that is not UTF-8 is an error, whereas encoding/json replaces it.
	// Unexported fields are not written. A number in an interface, such as a value of
	// map[string]any, becomes a float64, which rounds integers beyond 2^53; NumberJSON does not.
	JSON BasicCodec = "JSON"
	// StrictJSON is JSON that refuses members that T does not have, that occur twice, or whose
	// names differ in case.
	StrictJSON BasicCodec = "StrictJSON"
	// NumberJSON is JSON that decodes a number in an interface as a json.Number.
	NumberJSON BasicCodec = "NumberJSON"
	// Bytes uses payloads unchanged; T is []byte or a type of that kind.
	Bytes BasicCodec = "Bytes"
	// String uses payloads unchanged; T is string or a type of that kind.
	String BasicCodec = "String"
)

// Encode implements [Codec].
func (c BasicCodec) Encode(v any) ([]byte, error) {
	switch c {
	case JSON, StrictJSON, NumberJSON:
		return jsontext.Encode(v)
	case Bytes:
		return encodeBytes(v), nil
	case String:
		return []byte(reflect.ValueOf(v).Elem().String()), nil
	}
	return nil, c.unknown()
}

// Decode implements [Codec].
func (c BasicCodec) Decode(data []byte, v any) error {
	switch c {
	case JSON:
		return jsontext.Decode(data, v, jsontext.Plain)
	case StrictJSON:
		return jsontext.Decode(data, v, jsontext.Strict)
	case NumberJSON:
		return jsontext.Decode(data, v, jsontext.Number)
	case Bytes:
		decodeBytes(data, v)
		return nil
	case String:
		reflect.ValueOf(v).Elem().SetString(string(data))
		return nil
	}
	return c.unknown()
}

// CheckType implements [TypeChecker].
func (c BasicCodec) CheckType(t reflect.Type) error {
	switch {
	case c == JSON, c == StrictJSON, c == NumberJSON:
		return jsontext.CheckType(t)
	case c != Bytes && c != String:
		return c.unknown()
	case c == Bytes && (t.Kind() != reflect.Slice || t.Elem().Kind() != reflect.Uint8):
		return fmt.Errorf("the codec Bytes is for []byte, not for %s", t)
	case c == String && t.Kind() != reflect.String:
		return fmt.Errorf("the codec String is for strings, not for %s", t)
	}
	return nil
}

func (c BasicCodec) unknown() error {
	return fmt.Errorf("must be JSON, StrictJSON, NumberJSON, Bytes or String, got BasicCodec(%q)", string(c))
}

func encodeBytes(v any) []byte {
	if b, ok := v.(*[]byte); ok {
		return bytes.Clone(*b)
	}
	return bytes.Clone(reflect.ValueOf(v).Elem().Bytes())
}

func decodeBytes(data []byte, v any) {
	if b, ok := v.(*[]byte); ok {
		*b = bytes.Clone(data)
		return
	}
	reflect.ValueOf(v).Elem().SetBytes(bytes.Clone(data))
}

// coder encodes values of T as messages and decodes payloads. The layers below it know only
// messages and entries.
type coder[T any] struct {
	encode func(v *T, msg *message.Message) error
	decode func(payload []byte, metadata message.Metadata, v *T) error
	skip   func(metadata message.Metadata) bool // decode would return errSkip; nil: never
	plain  bool                                 // T is []byte or string, and a payload is its value
}

// newCoder returns a coder for a codec, JSON if it is nil, or the reason why the codec does not
// support T.
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

// message encodes a value as a message. A panic of the codec is an error of the value.
func (c coder[T]) message(v *T, metadata message.Metadata) (msg *message.Message, err error) {
	msg = message.NewMessage(watermill.NewUUID(), nil)
	if _, reserved := metadata[CompletedKey]; reserved {
		return nil, invalidArgument("metadata", fmt.Errorf("the key %s is reserved for the end of a stream", CompletedKey))
	}
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

// value decodes the value of a message. The error is a *DecodeError, or errSkip.
func (c coder[T]) value(msg *message.Message) (T, error) {
	v, err := c.of(msg.Payload, msg.Metadata)
	if err == nil || isSkip(err) {
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

// of decodes a payload. The error is errSkip for the end of a stream.
func (c coder[T]) of(payload []byte, metadata message.Metadata) (v T, err error) {
	if _, end := metadata[CompletedKey]; end {
		return v, errSkip
	}
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
			err = jsontext.Problem("makes the codec panic")
		}
		if err != nil {
			var zero T
			v = zero
		}
	}()
	err = c.decode(payload, metadata, &v)
	return v, err
}

// decodeError returns the error of decoding as a new *DecodeError. Its reason contains nothing of
// the payload.
func decodeError[T any](err error) *DecodeError {
	var failure *DecodeError
	var plain jsontext.Problem
	switch {
	case errors.As(err, &failure):
		own := *failure
		return &own
	case errors.As(err, &plain):
		return &DecodeError{Reason: "the payload " + string(plain)}
	}
	return &DecodeError{Reason: "the payload does not make a " + reflect.TypeFor[T]().String(), Err: err}
}

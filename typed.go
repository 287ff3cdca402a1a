package redischannels

import (
	"errors"
	"fmt"
	"reflect"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
)

// coder is where values of T become messages and messages values; everything below it
// knows only messages.
type coder[T any] struct {
	encode func(v *T, msg *message.Message) error
	decode func(msg *message.Message, v *T) error
	skip   func(msg *message.Message) bool // decode would return errSkip; nil: never
}

func (c coder[T]) skips(msg *message.Message) bool { return c.skip != nil && c.skip(msg) }

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
		decode: func(msg *message.Message, v *T) error { return codec.Decode(msg.Payload, v) },
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
func (c coder[T]) value(msg *message.Message) (v T, err error) {
	var zero T
	if failure := undecodable(msg); failure != nil {
		return zero, failure
	}
	if err = c.decodeSafely(msg, &v); err == nil {
		return v, nil
	}
	if err == errSkip {
		return zero, err
	}
	var failure *DecodeError
	var plain plainError
	switch {
	case errors.As(err, &failure):
	case errors.As(err, &plain):
		failure = &DecodeError{Reason: "the payload " + string(plain)}
	default:
		failure = &DecodeError{Reason: "the payload does not make a " + reflect.TypeFor[T]().String(), Err: err}
	}
	return zero, failure.of(msg)
}

// of says which message the error is about.
func (e *DecodeError) of(msg *message.Message) *DecodeError {
	e.EntryID = idOf(msg)
	e.Topic, _ = TopicFromContext(msg.Context())
	return e
}

func (c coder[T]) decodeSafely(msg *message.Message, v *T) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = errors.New("the codec panicked")
		}
	}()
	return c.decode(msg, v)
}

// undecodableKey marks a message that stands for an entry which makes none, so that
// the reader of a channel is told of it. The entry in Redis is not touched by that.
const undecodableKey = "\x00redischannels undecodable"

// undecodable returns the error of a message that stands for an entry which makes none, and
// nil for others.
func undecodable(msg *message.Message) *DecodeError {
	reason, ok := msg.Metadata[undecodableKey]
	if !ok {
		return nil
	}
	return (&DecodeError{Reason: reason}).of(msg)
}

// tellingUnmarshaler makes such messages, also of entries that are too large.
type tellingUnmarshaler struct {
	Unmarshaler
	maxPayload int // UnlimitedPayload: none is
}

// Unmarshal implements Unmarshaler.
func (u tellingUnmarshaler) Unmarshal(entry Entry) (*message.Message, error) {
	size := 0
	for i := range entry.Fields {
		size += len(entry.Fields[i].Name) + len(entry.Fields[i].Value)
	}
	return telling(entry.ID, func() (*message.Message, error) {
		if u.maxPayload > 0 && size > u.maxPayload {
			return nil, &DecodeError{Reason: tooLarge(size, u.maxPayload)}
		}
		return u.Unmarshaler.Unmarshal(entry)
	}), nil
}

// tellingPubSubUnmarshaler does the same for Pub/Sub.
type tellingPubSubUnmarshaler struct{ PubSubUnmarshaler }

// Unmarshal implements PubSubUnmarshaler.
func (u tellingPubSubUnmarshaler) Unmarshal(topic string, data []byte) (*message.Message, error) {
	return telling(watermill.NewUUID(), func() (*message.Message, error) { return u.PubSubUnmarshaler.Unmarshal(topic, data) }), nil
}

// telling returns what unmarshal does, or the message that stands for its failure.
func telling(uuid string, unmarshal func() (*message.Message, error)) (msg *message.Message) {
	reason := "the unmarshaler failed"
	defer func() {
		if r := recover(); r != nil {
			msg, reason = nil, "the unmarshaler panicked"
		}
		if msg == nil {
			msg = message.NewMessage(uuid, nil)
			msg.Metadata[undecodableKey] = reason
		}
	}()
	msg, err := unmarshal()
	if err != nil {
		msg = nil
		var d *DecodeError
		if errors.As(err, &d) {
			reason = d.Reason
		}
	}
	return msg
}

// idOf is the entry ID of a message, or its UUID where the transport has none.
func idOf(msg *message.Message) string {
	if id, ok := EntryIDFromContext(msg.Context()); ok {
		return id
	}
	return msg.UUID
}

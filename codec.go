package redischannels

import (
	"bytes"
	"fmt"
	"reflect"
)

// Codec turns values into payloads and back. In both methods v is a pointer to the
// value: a *T on a Channel[T]. It is called from several goroutines at once. Decode
// must not keep data. A codec that also has the method of [TypeChecker] is asked, when
// a channel is made, whether it can do T at all.
type Codec interface {
	Encode(v any) ([]byte, error)
	Decode(data []byte, v any) error
}

// TypeChecker is what a [Codec] may have so that a type for which it can never work is
// refused at construction and not by the first message.
type TypeChecker interface {
	CheckType(t reflect.Type) error
}

// BasicCodec is one of the codecs of this package, a constant by its name. Package
// protocodec has one for Protocol Buffers.
type BasicCodec string

const (
	// JSON is encoding/json, and the default. Unknown members are ignored. The JSON
	// text null is no value, unless T is a slice, a map or an interface: it would
	// become a zero value that was never written. Text that is not UTF-8 is an error, where
	// encoding/json replaces it. Fields that are not exported are not written. A number in an
	// interface, such as a value of map[string]any, becomes a float64, which rounds integers
	// beyond 2^53: NumberJSON does not.
	JSON BasicCodec = "JSON"
	// StrictJSON is JSON that refuses members which T does not have, which come twice, or
	// whose names differ in case.
	StrictJSON BasicCodec = "StrictJSON"
	// NumberJSON is JSON that makes a json.Number of a number in an interface.
	NumberJSON BasicCodec = "NumberJSON"
	// Bytes takes payloads as they are; T is []byte or a type of that kind.
	Bytes BasicCodec = "Bytes"
	// String takes payloads as they are; T is string or a type of that kind.
	String BasicCodec = "String"
)

// Encode implements [Codec].
func (c BasicCodec) Encode(v any) ([]byte, error) {
	switch c {
	case JSON, StrictJSON, NumberJSON:
		return encodeJSON(v)
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
	case JSON, StrictJSON, NumberJSON:
		return decodeJSON(data, v, c)
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
		return checkJSONType(t, nil)
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

// plainError is an error whose text has nothing of a payload, so that it may stand in
// the reason of a dead letter.
type plainError string

func (e plainError) Error() string { return string(e) }

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

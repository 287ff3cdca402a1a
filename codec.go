package redischannels

import (
	"bytes"
	"encoding"
	"encoding/json"
	"errors"
	"fmt"
	"io"
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
	// become a zero value that was never written.
	JSON BasicCodec = "JSON"
	// StrictJSON is JSON that refuses members which T does not have.
	StrictJSON BasicCodec = "StrictJSON"
	// Bytes takes payloads as they are; T is []byte or a type of that kind.
	Bytes BasicCodec = "Bytes"
	// String takes payloads as they are; T is string or a type of that kind.
	String BasicCodec = "String"
)

// Encode implements [Codec].
func (c BasicCodec) Encode(v any) ([]byte, error) {
	switch c {
	case JSON, StrictJSON:
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
	case JSON, StrictJSON:
		return decodeJSON(data, v, c == StrictJSON)
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
	case c == JSON, c == StrictJSON:
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
	return fmt.Errorf("must be JSON, StrictJSON, Bytes or String, got BasicCodec(%q)", string(c))
}

// plainError is an error whose text has nothing of a payload, so that it may stand in
// the reason of a dead letter.
type plainError string

func (e plainError) Error() string { return string(e) }

const errNull = plainError("is the JSON text null")

func encodeJSON(v any) ([]byte, error) {
	data, err := json.Marshal(v)
	if err == nil && isNull(data) && !nullable(reflect.TypeOf(v)) {
		return nil, errNull
	}
	return data, err
}

func decodeJSON(data []byte, v any, strict bool) error {
	if isNull(data) && !nullable(reflect.TypeOf(v)) {
		return errNull
	}
	if !strict {
		return jsonProblem(json.Unmarshal(data, v))
	}
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(v); err != nil {
		return jsonProblem(err)
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return plainError("has more than one JSON text")
	}
	return nil
}

func isNull(data []byte) bool {
	return string(bytes.TrimSpace(data)) == "null"
}

// nullable reports whether null stands for a value of the type behind the pointer.
func nullable(pointer reflect.Type) bool {
	switch pointer.Elem().Kind() {
	case reflect.Slice, reflect.Map, reflect.Interface:
		return true
	}
	return false
}

// jsonProblem says what is wrong without what was read.
func jsonProblem(err error) error {
	if err == nil {
		return nil
	}
	var syntax *json.SyntaxError
	var kind *json.UnmarshalTypeError
	switch {
	case errors.As(err, &syntax):
		return plainError(fmt.Sprintf("is not JSON: byte %d", syntax.Offset))
	case errors.As(err, &kind) && kind.Field != "":
		return plainError(fmt.Sprintf("has another type than %s in the member %s, byte %d", kind.Type, kind.Field, kind.Offset))
	case errors.As(err, &kind):
		return plainError(fmt.Sprintf("has another type than %s, byte %d", kind.Type, kind.Offset))
	}
	return err
}

var (
	jsonMarshaler = reflect.TypeFor[json.Marshaler]()
	textMarshaler = reflect.TypeFor[encoding.TextMarshaler]()

	textUnmarshaler = reflect.TypeFor[encoding.TextUnmarshaler]()
)

// checkJSONType reports a type that encoding/json refuses, or can write but not read.
func checkJSONType(t reflect.Type, seen []reflect.Type) error {
	for _, s := range seen {
		if s == t {
			return nil
		}
	}
	seen = append(seen, t)
	if p := reflect.PointerTo(t); p.Implements(jsonMarshaler) || p.Implements(textMarshaler) {
		return nil
	}
	switch t.Kind() {
	case reflect.Func, reflect.Chan, reflect.Complex64, reflect.Complex128, reflect.UnsafePointer:
		return fmt.Errorf("JSON has no form for %s", t)
	case reflect.Interface:
		if t.NumMethod() > 0 {
			return fmt.Errorf("JSON cannot say which type to make for the interface %s: an EventBus can", t)
		}
	case reflect.Map:
		if err := checkJSONKey(t.Key()); err != nil {
			return err
		}
		return checkJSONType(t.Elem(), seen)
	case reflect.Pointer, reflect.Slice, reflect.Array:
		return checkJSONType(t.Elem(), seen)
	case reflect.Struct:
		for i := range t.NumField() {
			f := t.Field(i)
			if !f.IsExported() && !f.Anonymous || f.Tag.Get("json") == "-" {
				continue
			}
			if err := checkJSONType(f.Type, seen); err != nil {
				return fmt.Errorf("field %s: %w", f.Name, err)
			}
		}
	}
	return nil
}

// checkJSONKey reports a type that cannot name the members of an object.
func checkJSONKey(t reflect.Type) error {
	switch t.Kind() {
	case reflect.String,
		reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64,
		reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64, reflect.Uintptr:
		return nil
	}
	if t.Implements(textMarshaler) && reflect.PointerTo(t).Implements(textUnmarshaler) {
		return nil
	}
	return fmt.Errorf("JSON has no form for %s as the key of a map", t)
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

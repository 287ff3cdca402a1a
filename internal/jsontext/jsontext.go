// Package jsontext encodes and decodes values as JSON, and refuses what encoding/json changes silently.
package jsontext

import (
	"bytes"
	"cmp"
	"encoding"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Mode is how strict [Decode] is.
type Mode uint8

const (
	Plain  Mode = iota // unknown members are ignored
	Strict             // members that the type does not have, that come twice, or differ in case are errors
	Number             // a number in an interface becomes a json.Number
)

// Problem is an error whose text has nothing of what was read.
type Problem string

func (p Problem) Error() string { return string(p) }

// ErrNotUTF8 means that a text, of a value or of JSON, is not UTF-8.
const ErrNotUTF8 = Problem("has text that is not UTF-8")

const errNull = Problem("is the JSON text null")

// replaced is what encoding/json writes in the place of bytes that are not UTF-8. The
// character itself it writes as it is.
var replaced = []byte(`\ufffd`)

// Encode returns the JSON text of the value behind a pointer. The text null stands only for a slice, a map or
// an interface. Text that is not UTF-8 is an error.
func Encode(v any) ([]byte, error) {
	data, err := json.Marshal(v)
	switch {
	case err != nil:
		return nil, err
	case isNull(data) && !nullable(reflect.TypeOf(v)):
		return nil, errNull
	case bytes.Contains(data, replaced) && hasInvalidText(reflect.ValueOf(v)):
		return nil, ErrNotUTF8
	}
	return data, nil
}

// hasInvalidText reports whether encoding/json finds text in a value that is not UTF-8. Types that
// write JSON themselves are not asked.
func hasInvalidText(v reflect.Value) bool {
	if !v.IsValid() || v.Type().Implements(marshaler) || v.CanAddr() && reflect.PointerTo(v.Type()).Implements(marshaler) {
		return false
	}
	if text, ok := v.Interface().(encoding.TextMarshaler); ok && (v.Kind() != reflect.Pointer || !v.IsNil()) {
		b, err := text.MarshalText()
		return err == nil && !utf8.Valid(b)
	}
	switch v.Kind() {
	case reflect.String:
		return !utf8.ValidString(v.String())
	case reflect.Pointer, reflect.Interface:
		return !v.IsNil() && hasInvalidText(v.Elem())
	case reflect.Slice, reflect.Array:
		for i := range v.Len() {
			if hasInvalidText(v.Index(i)) {
				return true
			}
		}
	case reflect.Map:
		for member := v.MapRange(); member.Next(); {
			if hasInvalidText(member.Key()) || hasInvalidText(member.Value()) {
				return true
			}
		}
	case reflect.Struct:
		return fieldsHaveInvalidText(v)
	}
	return false
}

func fieldsHaveInvalidText(v reflect.Value) bool {
	for i := range v.NumField() {
		f := v.Type().Field(i)
		switch {
		case f.Tag.Get("json") == "-":
		case f.Anonymous && f.Type.Kind() == reflect.Struct && !f.IsExported(): // of which the fields are written
			if fieldsHaveInvalidText(v.Field(i)) {
				return true
			}
		case f.IsExported() && hasInvalidText(v.Field(i)):
			return true
		}
	}
	return false
}

// Decode sets the value behind a pointer. Its error is a [Problem] as far as what was read could be quoted.
func Decode(data []byte, v any, mode Mode) error {
	switch {
	case isNull(data) && !nullable(reflect.TypeOf(v)):
		return errNull
	case !utf8.Valid(data), hasLoneSurrogate(data):
		return ErrNotUTF8
	case mode == Plain:
		return problemOf(json.Unmarshal(data, v))
	}
	decoder := json.NewDecoder(bytes.NewReader(data))
	if mode == Number {
		decoder.UseNumber()
	} else {
		decoder.DisallowUnknownFields()
	}
	if err := decoder.Decode(v); err != nil {
		return problemOf(err)
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return Problem("has more than one JSON text")
	}
	if mode == Strict {
		decoder = json.NewDecoder(bytes.NewReader(data))
		decoder.UseNumber()
		return checkMembers(decoder, reflect.TypeOf(v).Elem())
	}
	return nil
}

// hasLoneSurrogate reports whether an escape of a valid JSON text is a half of a character, which
// encoding/json replaces.
func hasLoneSurrogate(data []byte) bool {
	for i := 0; i+1 < len(data); i++ {
		if data[i] != '\\' {
			continue
		}
		i++
		first, ok := escape(data, i)
		if !ok || first < 0xd800 || first > 0xdfff {
			continue
		}
		second, ok := escape(data, i+6)
		if first > 0xdbff || !ok || data[i+5] != '\\' || second < 0xdc00 || second > 0xdfff {
			return true
		}
		i += 10
	}
	return false
}

// escape returns the number of the escape whose u is at i.
func escape(data []byte, i int) (uint64, bool) {
	if i+5 > len(data) || data[i] != 'u' {
		return 0, false
	}
	n, err := strconv.ParseUint(string(data[i+1:i+5]), 16, 16)
	return n, err == nil
}

// checkMembers reads the next value, of a type or of nil for any, and refuses a member that comes
// twice, or whose name is that of a field in another case.
func checkMembers(decoder *json.Decoder, t reflect.Type) error {
	token, err := decoder.Token()
	if err != nil {
		return problemOf(err)
	}
	for t != nil && t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if t != nil && reflect.PointerTo(t).Implements(unmarshaler) {
		t = nil
	}
	switch token {
	case json.Delim('['):
		var of reflect.Type
		if t != nil && (t.Kind() == reflect.Slice || t.Kind() == reflect.Array) {
			of = t.Elem()
		}
		for decoder.More() {
			if err := checkMembers(decoder, of); err != nil {
				return err
			}
		}
	case json.Delim('{'):
		if err := checkObject(decoder, t); err != nil {
			return err
		}
	default:
		return nil
	}
	_, err = decoder.Token() // the end of the array or object
	return problemOf(err)
}

func checkObject(decoder *json.Decoder, t reflect.Type) error {
	var fields map[string]reflect.Type
	var of reflect.Type
	if t != nil {
		switch t.Kind() {
		case reflect.Struct:
			fields = fieldsOf(t)
		case reflect.Map:
			of = t.Elem()
		}
	}
	seen := make(map[string]bool)
	for decoder.More() {
		token, err := decoder.Token()
		if err != nil {
			return problemOf(err)
		}
		name, _ := token.(string)
		if seen[name] {
			return Problem("has a member twice")
		}
		seen[name] = true
		if fields != nil {
			var known bool
			if of, known = fields[name]; !known {
				return Problem("has a member whose name differs in case")
			}
		}
		if err := checkMembers(decoder, of); err != nil {
			return err
		}
	}
	return nil
}

// fieldsOf returns the types of the fields of a struct by the names of their members.
func fieldsOf(t reflect.Type) map[string]reflect.Type {
	fields := make(map[string]reflect.Type)
	addFields(fields, t, nil)
	return fields
}

// addFields adds the fields of a struct, of which seen are outer ones. Those of embedded structs
// come after its own, which hide them.
func addFields(fields map[string]reflect.Type, t reflect.Type, seen []reflect.Type) {
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if slices.Contains(seen, t) {
		return
	}
	var embedded []reflect.Type
	for i := range t.NumField() {
		f := t.Field(i)
		tag := f.Tag.Get("json")
		name, _, _ := strings.Cut(tag, ",")
		switch {
		case tag == "-":
		case f.Anonymous && name == "" && isStruct(f.Type):
			embedded = append(embedded, f.Type)
		case f.IsExported():
			if name = cmp.Or(name, f.Name); fields[name] == nil {
				fields[name] = f.Type
			}
		}
	}
	for _, e := range embedded {
		addFields(fields, e, append(seen, t))
	}
}

func isStruct(t reflect.Type) bool {
	return t.Kind() == reflect.Struct || t.Kind() == reflect.Pointer && t.Elem().Kind() == reflect.Struct
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

// problemOf says what is wrong without what was read.
func problemOf(err error) error {
	if err == nil {
		return nil
	}
	var syntax *json.SyntaxError
	var kind *json.UnmarshalTypeError
	switch {
	case errors.As(err, &syntax):
		return Problem(fmt.Sprintf("is not JSON: byte %d", syntax.Offset))
	case errors.As(err, &kind) && kind.Field != "":
		return Problem(fmt.Sprintf("has another type than %s in the member %s, byte %d", kind.Type, kind.Field, kind.Offset))
	case errors.As(err, &kind):
		return Problem(fmt.Sprintf("has another type than %s, byte %d", kind.Type, kind.Offset))
	}
	return err
}

var (
	marshaler     = reflect.TypeFor[json.Marshaler]()
	textMarshaler = reflect.TypeFor[encoding.TextMarshaler]()

	unmarshaler     = reflect.TypeFor[json.Unmarshaler]()
	textUnmarshaler = reflect.TypeFor[encoding.TextUnmarshaler]()
)

// CheckType reports a type that encoding/json refuses, or can write but not read.
func CheckType(t reflect.Type) error { return checkType(t, nil) }

func checkType(t reflect.Type, seen []reflect.Type) error {
	for _, s := range seen {
		if s == t {
			return nil
		}
	}
	seen = append(seen, t)
	if p := reflect.PointerTo(t); p.Implements(marshaler) || p.Implements(textMarshaler) {
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
		if err := checkKey(t.Key()); err != nil {
			return err
		}
		return checkType(t.Elem(), seen)
	case reflect.Pointer, reflect.Slice, reflect.Array:
		return checkType(t.Elem(), seen)
	case reflect.Struct:
		if t.NumField() > 0 && !hasMembers(t) {
			return fmt.Errorf("JSON has no member for %s, which has no exported field", t)
		}
		for i := range t.NumField() {
			f := t.Field(i)
			if !f.IsExported() && !f.Anonymous || f.Tag.Get("json") == "-" || f.Anonymous && isStruct(f.Type) && !hasMembers(f.Type) {
				continue
			}
			if err := checkType(f.Type, seen); err != nil {
				return fmt.Errorf("field %s: %w", f.Name, err)
			}
		}
	}
	return nil
}

// hasMembers reports whether a struct, or one behind a pointer, has a field that JSON writes.
func hasMembers(t reflect.Type) bool {
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	for i := range t.NumField() {
		f := t.Field(i)
		if f.Tag.Get("json") == "-" {
			continue
		}
		if f.Anonymous && isStruct(f.Type) && f.Type.Kind() == reflect.Struct {
			if hasMembers(f.Type) {
				return true
			}
			continue
		}
		if f.IsExported() || f.Anonymous {
			return true
		}
	}
	return false
}

// checkKey reports a type that cannot name the members of an object.
func checkKey(t reflect.Type) error {
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

package compat

import (
	"encoding"
	"errors"
	"fmt"
	"net"
	"reflect"
	"slices"
	"strconv"
	"time"

	"github.com/ThreeDotsLabs/watermill-redisstream/pkg/redisstream"
	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/flaminco/redischannels"
)

// Marshaler adapts a marshaller of watermill-redisstream. Its map has no order: the fields are
// written sorted by name. Values become the bytes that go-redis would write: text and byte slices
// unchanged, numbers in decimal, true and false as 1 and 0, a time.Time in RFC 3339 with
// nanoseconds, a time.Duration in nanoseconds, an encoding.BinaryMarshaler in its own encoding,
// nil as no bytes. A pointer is written as the value it points to, or as the zero value if nil.
// Other types, including named ones such as `type Kind string`, are an error, as in go-redis.
func Marshaler(m redisstream.Marshaller) redischannels.Marshaler { return marshaler{m} }

type marshaler struct{ redisstream.Marshaller }

func (m marshaler) Marshal(topic string, msg *message.Message) ([]redischannels.Field, error) {
	values, err := m.Marshaller.Marshal(topic, msg)
	if err != nil {
		return nil, err
	}
	fields := make([]redischannels.Field, 0, len(values))
	for name, v := range values {
		b, err := encode(v)
		if err != nil {
			return nil, fmt.Errorf("compat: field %q: %w", name, err)
		}
		fields = append(fields, redischannels.Field{Name: name, Value: b})
	}
	slices.SortFunc(fields, func(a, b redischannels.Field) int {
		if a.Name < b.Name {
			return -1
		}
		return 1
	})
	return fields, nil
}

// encode returns the bytes that go-redis writes for a value.
func encode(v any) ([]byte, error) {
	switch v := v.(type) {
	case nil:
		return nil, nil
	case string:
		return []byte(v), nil
	case []byte:
		return v, nil
	case bool:
		if v {
			return []byte{'1'}, nil
		}
		return []byte{'0'}, nil
	case time.Time:
		return v.AppendFormat(nil, time.RFC3339Nano), nil
	case time.Duration:
		return strconv.AppendInt(nil, v.Nanoseconds(), 10), nil
	case net.IP:
		return v, nil
	}
	rv := reflect.ValueOf(v)
	if rv.Kind() == reflect.Pointer && scalar(rv.Type().Elem()) {
		if rv.IsNil() {
			return encode(reflect.Zero(rv.Type().Elem()).Interface())
		}
		return encode(rv.Elem().Interface())
	}
	if b, ok := v.(encoding.BinaryMarshaler); ok {
		return b.MarshalBinary()
	}
	if !scalar(rv.Type()) {
		return nil, fmt.Errorf("cannot write a %T: make it a string or a []byte, or implement encoding.BinaryMarshaler", v)
	}
	switch {
	case rv.CanInt():
		return strconv.AppendInt(nil, rv.Int(), 10), nil
	case rv.CanUint():
		return strconv.AppendUint(nil, rv.Uint(), 10), nil
	default:
		return strconv.AppendFloat(nil, rv.Float(), 'f', -1, 64), nil
	}
}

var (
	timeType     = reflect.TypeFor[time.Time]()
	durationType = reflect.TypeFor[time.Duration]()
)

// scalar reports whether go-redis writes values of this type, and pointers to them, without a
// method of theirs. Of named types these are time.Time and time.Duration.
func scalar(t reflect.Type) bool {
	if t == timeType || t == durationType {
		return true
	}
	if t.PkgPath() != "" {
		return false
	}
	switch t.Kind() {
	case reflect.String, reflect.Bool, reflect.Float32, reflect.Float64,
		reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64,
		reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64, reflect.Uintptr:
		return true
	default:
		return false
	}
}

// Unmarshaler adapts an unmarshaller of watermill-redisstream. It gets the fields in the form of
// go-redis: a map from name to string, with the last of several fields of one name. For a dead
// letter the map also has the fields whose names begin with `_dead_`.
func Unmarshaler(u redisstream.Unmarshaller) redischannels.Unmarshaler { return unmarshaler{u} }

type unmarshaler struct{ redisstream.Unmarshaller }

func (u unmarshaler) Unmarshal(entry redischannels.Entry) (*message.Message, error) {
	values := make(map[string]any, len(entry.Fields))
	for _, f := range entry.Fields {
		values[f.Name] = string(f.Value)
	}
	msg, err := u.Unmarshaller.Unmarshal(values)
	if err == nil && msg == nil {
		err = errors.New("compat: the unmarshaller returned neither a message nor an error")
	}
	return msg, err
}

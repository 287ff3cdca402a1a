// Package protocodec is the codec of Protocol Buffers for channels of package redischannels. It
// is a separate package so that only programs that use it link the Protocol Buffers library.
package protocodec

import (
	"fmt"
	"reflect"

	"google.golang.org/protobuf/proto"

	"github.com/flaminco/redischannels"
)

// Codec encodes messages in the binary format of Protocol Buffers. T is a generated message, best
// as a pointer: Channel[*pb.Order]. The zero value is valid and safe for concurrent use.
type Codec struct{}

var (
	_ redischannels.Codec       = Codec{}
	_ redischannels.TypeChecker = Codec{}
)

// Encode implements redischannels.Codec. A nil message is an error.
func (Codec) Encode(v any) ([]byte, error) {
	msg, ok := v.(proto.Message)
	if !ok {
		msg, ok = reflect.ValueOf(v).Elem().Interface().(proto.Message)
	}
	if !ok || !msg.ProtoReflect().IsValid() {
		return nil, fmt.Errorf("%T is not a Protocol Buffers message, or is nil", v)
	}
	return proto.Marshal(msg)
}

// Decode implements redischannels.Codec.
func (Codec) Decode(data []byte, v any) error {
	if msg, ok := v.(proto.Message); ok {
		return proto.Unmarshal(data, msg)
	}
	value := reflect.ValueOf(v).Elem()
	msg := reflect.New(value.Type().Elem())
	if err := proto.Unmarshal(data, msg.Interface().(proto.Message)); err != nil {
		return err
	}
	value.Set(msg)
	return nil
}

var message = reflect.TypeFor[proto.Message]()

// CheckType implements redischannels.TypeChecker.
func (Codec) CheckType(t reflect.Type) error {
	if t.Kind() == reflect.Pointer && t.Implements(message) || reflect.PointerTo(t).Implements(message) && t.Kind() == reflect.Struct {
		return nil
	}
	return fmt.Errorf("%s is not a Protocol Buffers message", t)
}

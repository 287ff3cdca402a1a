package redischannels

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"
)

// What a type cannot be is found when the channel is made, however deep it lies.
func TestJSONTypes(t *testing.T) {
	t.Parallel()
	type tree struct {
		Left, Right *tree
		hidden      chan int
		Skipped     func() `json:"-"`
		When        time.Time
		Any         any
	}
	_ = tree{hidden: nil}
	for _, good := range []any{map[time.Time]int{}, map[uint8]int{}, 1, "", []byte(nil), tree{}, &tree{}, map[string]tree{}, [2]int{}, time.Time{}} {
		require.NoError(t, checkJSONType(reflect.TypeOf(good), nil), "%T", good)
	}
	require.NoError(t, checkJSONType(reflect.TypeFor[any](), nil))
	for _, bad := range []reflect.Type{
		reflect.TypeFor[func()](), reflect.TypeFor[chan int](), reflect.TypeFor[complex128](), reflect.TypeFor[fmt.Stringer](),
		reflect.TypeFor[map[float64]int](), reflect.TypeFor[map[any]int](), reflect.TypeFor[map[struct{ A int }]int](),
		reflect.TypeFor[[]map[string]*chan int](), reflect.TypeFor[struct{ A struct{ B func() } }](),
	} {
		require.Error(t, checkJSONType(bad, nil), bad)
	}
	err := checkJSONType(reflect.TypeFor[struct{ A struct{ B func() } }](), nil)
	require.ErrorContains(t, err, "field A: field B: ")
}

// The errors of decoding have nothing of what was read.
func TestDecodeErrorsHaveNoPayload(t *testing.T) {
	t.Parallel()
	type card struct{ Number int }
	code, err := newCoder[card](nil)
	require.NoError(t, err)
	for _, payload := range []string{strings.Repeat(" ", 100) + "null" + strings.Repeat("\n", 100), `{"Number":"4111"}`, `4111`, `{"Number":4111`, `"4111"`, `{"Number":4111.5}`, "", "null"} {
		_, err := code.value(message.NewMessage("u", []byte(payload)))
		var failure *DecodeError
		require.ErrorAs(t, err, &failure)
		require.NotContains(t, err.Error(), "4111", payload)
		require.Equal(t, "u", failure.EntryID)
	}
	strict, err := newCoder[card](StrictJSON)
	require.NoError(t, err)
	for _, payload := range []string{`{"Other":1}`, `{"Number":1}{}`, `{"Number":1} x`} {
		_, err := strict.value(message.NewMessage("u", []byte(payload)))
		require.Error(t, err, payload)
		_, err = code.value(message.NewMessage("u", []byte(`{"Number":1,"Other":2}`)))
		require.NoError(t, err)
	}
}

type panickyCodec struct{}

func (panickyCodec) Encode(any) ([]byte, error) { panic("secret") }
func (panickyCodec) Decode([]byte, any) error   { panic("secret") }

// A codec that panics makes an error of one value, not the end of the process.
func TestCodecPanics(t *testing.T) {
	t.Parallel()
	code, err := newCoder[int](panickyCodec{})
	require.NoError(t, err)
	v := 1
	_, err = code.message(&v, nil)
	require.ErrorContains(t, err, "panicked")
	_, err = code.value(message.NewMessage("u", nil))
	var failure *DecodeError
	require.ErrorAs(t, err, &failure)
	require.NotContains(t, err.Error(), "secret")
}

// The codecs are constants: they can be compared, printed, and cannot be replaced.
func TestBasicCodec(t *testing.T) {
	t.Parallel()
	const named = JSON
	require.Equal(t, StreamChannelConfig{Codec: named}, StreamChannelConfig{Codec: JSON})
	require.NotEqual(t, StreamChannelConfig{Codec: JSON}, StreamChannelConfig{Codec: StrictJSON})
	type text string
	for _, test := range []struct {
		codec BasicCodec
		value any // a pointer
		data  string
	}{
		{JSON, &map[string]int{"a": 1}, `{"a":1}`},
		{StrictJSON, &map[string]int{"a": 1}, `{"a":1}`},
		{Bytes, &[]byte{'a', 0}, "a\x00"},
		{Bytes, &json.RawMessage{'1'}, "1"},
		{String, new(text), ""},
	} {
		require.NoError(t, test.codec.CheckType(reflect.TypeOf(test.value).Elem()))
		data, err := test.codec.Encode(test.value)
		require.NoError(t, err)
		require.Equal(t, test.data, string(data))
		got := reflect.New(reflect.TypeOf(test.value).Elem())
		require.NoError(t, test.codec.Decode(data, got.Interface()))
		require.EqualValues(t, test.value, got.Interface())
	}
	unknown := BasicCodec("YAML")
	_, err := unknown.Encode(new(int))
	for _, err := range []error{err, unknown.Decode(nil, new(int)), unknown.CheckType(reflect.TypeFor[int]())} {
		require.ErrorContains(t, err, `must be JSON, StrictJSON, Bytes or String, got BasicCodec("YAML")`)
	}
}

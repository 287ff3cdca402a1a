package redischannels

import (
	"encoding/json"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels/internal/jsontext"
)

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
		require.ErrorContains(t, err, `must be JSON, StrictJSON, NumberJSON, Bytes or String, got BasicCodec("YAML")`)
	}
}

// The value comes back as it was, or there is an error: text that is not UTF-8 was written and read
// with U+FFFD, a struct without exported fields as {}, a member in another case was taken.
func TestJSON_SubstitutesNothing(t *testing.T) {
	type inner struct{ Text string }
	type value struct {
		Text string            `json:"text"`
		Map  map[string]string `json:"map"`
		List []any
		inner
		P *inner
	}
	for _, v := range []value{
		{Text: "\xff"}, {Map: map[string]string{"\xff": ""}}, {Map: map[string]string{"": "a\xc0"}},
		{List: []any{1, "\xed\xa0\x80"}}, {inner: inner{"\xff"}}, {P: &inner{"\xff"}},
	} {
		_, err := JSON.Encode(&v)
		require.ErrorIs(t, err, jsontext.ErrNotUTF8, "%+v", v)
	}
	for _, v := range []value{{Text: "\ufffd"}, {Text: `\ufffd`}, {Text: `\\ufffd`}, {Text: "😀"}} {
		data, err := JSON.Encode(&v)
		require.NoError(t, err)
		var got value
		require.NoError(t, JSON.Decode(data, &got))
		require.Equal(t, v, got)
	}
	raw := json.RawMessage(`"\ufffd"`)
	_, err := JSON.Encode(&raw)
	require.NoError(t, err, "written by the caller")

	for _, text := range []string{"\"\xff\"", `"\ud800"`, `"\udc00"`, `"\ud800\ud800"`, `"\ud83dx"`, `"\ud83d\n"`} {
		for _, codec := range []BasicCodec{JSON, StrictJSON, NumberJSON} {
			var got string
			require.ErrorIs(t, codec.Decode([]byte(text), &got), jsontext.ErrNotUTF8, text)
		}
	}
	for text, want := range map[string]string{`"\ud83d\ude00"`: "😀", `"\\ud800"`: `\ud800`, `"\ufffd"`: "\ufffd"} {
		var got string
		require.NoError(t, JSON.Decode([]byte(text), &got), text)
		require.Equal(t, want, got)
	}

	type hidden struct{ a int }
	type ignored struct {
		A int `json:"-"`
	}
	type embedding struct{ hidden }
	for _, typ := range []reflect.Type{
		reflect.TypeFor[hidden](), reflect.TypeFor[ignored](), reflect.TypeFor[embedding](), reflect.TypeFor[[]*hidden](), reflect.TypeFor[struct{ F hidden }](),
	} {
		require.Error(t, JSON.CheckType(typ), "%s", typ)
	}
	for _, typ := range []reflect.Type{
		reflect.TypeFor[struct{}](), reflect.TypeFor[value](), reflect.TypeFor[time.Time](), reflect.TypeFor[struct {
			sync.Mutex
			A int
		}](),
	} {
		require.NoError(t, JSON.CheckType(typ), "%s", typ)
	}
	_ = embedding{}.hidden.a
}

// StrictJSON took a member twice, or in another case.
func TestStrictJSON_MembersAreExact(t *testing.T) {
	type inner struct {
		B  int
		Of map[string]int
	}
	type value struct {
		A    int `json:"a"`
		In   inner
		List []inner `json:"list"`
		Any  any
		T    time.Time
	}
	good := `{"a":1,"In":{"B":2,"Of":{"x":1,"X":2}},"list":[{"B":3}],"Any":{"p":1,"P":[{"q":1}]},"T":"2026-01-02T03:04:05Z"}`
	require.NoError(t, StrictJSON.Decode([]byte(good), new(value)))
	for _, bad := range []string{
		`{"A":1}`, `{"a":1,"a":1}`, `{"in":{}}`, `{"In":{"b":1}}`, `{"In":{"B":1,"B":2}}`, `{"list":[{"b":1}]}`,
		`{"In":{"Of":{"x":1,"x":2}}}`, `{"Any":{"p":1,"p":2}}`, `{"Any":[[{"p":1,"p":2}]]}`, `{"z":1}`,
	} {
		require.Error(t, StrictJSON.Decode([]byte(bad), new(value)), bad)
	}
}

// An integer in map[string]any came back rounded; NumberJSON keeps it.
func TestNumberJSON_KeepsNumbers(t *testing.T) {
	var got map[string]any
	require.NoError(t, NumberJSON.Decode([]byte(`{"id":9007199254740993}`), &got))
	require.Equal(t, json.Number("9007199254740993"), got["id"])
	data, err := NumberJSON.Encode(&got)
	require.NoError(t, err)
	require.JSONEq(t, `{"id":9007199254740993}`, string(data))
	require.Error(t, NumberJSON.Decode([]byte(`{} {}`), &got))
}

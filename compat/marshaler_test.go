package compat_test

import (
	"net"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill-redisstream/pkg/redisstream"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/compat"
	"github.com/flaminco/redischannels/internal/redistest"
)

// codec answers with what a test gives it.
type codec struct {
	values map[string]any
	msg    *message.Message
	err    error
	got    map[string]any
}

func (c *codec) Marshal(string, *message.Message) (map[string]any, error) { return c.values, c.err }
func (c *codec) Unmarshal(values map[string]any) (*message.Message, error) {
	c.got = values
	return c.msg, c.err
}

type binary struct{ err error }

func (b binary) MarshalBinary() ([]byte, error) { return []byte{0, 1, 255}, b.err }

type kind string

// Every type is written as go-redis writes it, which a real stream shows.
func TestMarshalerWritesAsGoRedis(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	now := time.Date(2024, 2, 29, 13, 4, 5, 123456789, time.FixedZone("", 3600))
	for name, v := range map[string]any{
		"nil": nil, "string": "a\r\nb", "bytes": []byte{0, 1, 2}, "nil bytes": []byte(nil),
		"int": -1, "int8": int8(-2), "int16": int16(-3), "int32": int32(-4), "int64": int64(-1 << 63),
		"uint": uint(1), "uint8": uint8(2), "uint16": uint16(3), "uint32": uint32(4), "uint64": uint64(1<<64 - 1), "uintptr": uintptr(5),
		"float32": float32(0.1), "float64": 1e21, "true": true, "false": false,
		"time": now, "duration": time.Minute, "binary": binary{}, "*binary": &binary{}, "ip": net.ParseIP("127.0.0.1"),
		"*string": new("s"), "*int": new(-1), "*uint64": new(uint64(7)), "*float32": new(float32(0.1)), "*bool": new(true),
		"*time": &now, "*duration": new(time.Minute),
		"nil *string": (*string)(nil), "nil *int": (*int)(nil), "nil *float64": (*float64)(nil), "nil *bool": (*bool)(nil),
		"nil *time": (*time.Time)(nil), "nil *duration": (*time.Duration)(nil),
	} {
		t.Run(name, func(t *testing.T) {
			key := redistest.Key(t)
			require.NoError(t, client.XAdd(t.Context(), &redis.XAddArgs{Stream: key, Values: map[string]any{"v": v}}).Err())
			want := client.XRange(t.Context(), key, "-", "+").Val()[0].Values["v"]

			fields, err := compat.Marshaler(&codec{values: map[string]any{"v": v}}).Marshal("t", nil)
			require.NoError(t, err)
			require.Len(t, fields, 1)
			require.Equal(t, want, string(fields[0].Value))
		})
	}
	for name, v := range map[string]any{
		"named": kind("x"), "struct": struct{}{}, "slice": []int{1}, "map": map[string]any{}, "*bytes": new([]byte("x")),
		"*named": new(kind("x")), "payload": message.Payload("x"), "binary that fails": binary{errCodec}, "**int": new(new(1)),
	} {
		t.Run(name, func(t *testing.T) {
			require.Error(t, client.XAdd(t.Context(), &redis.XAddArgs{Stream: redistest.Key(t), Values: map[string]any{"v": v}}).Err())
			_, err := compat.Marshaler(&codec{values: map[string]any{"v": v}}).Marshal("t", nil)
			require.ErrorContains(t, err, `field "v"`)
		})
	}
}

func TestMarshalerSortsNames(t *testing.T) {
	t.Parallel()
	fields, err := compat.Marshaler(&codec{values: map[string]any{"c": 1, "a": 2, "b": 3, "": 4}}).Marshal("t", nil)
	require.NoError(t, err)
	require.Equal(t, []redischannels.Field{{Name: "", Value: []byte("4")}, {Name: "a", Value: []byte("2")}, {Name: "b", Value: []byte("3")}, {Name: "c", Value: []byte("1")}}, fields)
	_, err = compat.Marshaler(&codec{err: errCodec}).Marshal("t", nil)
	require.ErrorIs(t, err, errCodec)
}

func TestUnmarshaler(t *testing.T) {
	t.Parallel()
	msg := message.NewMessage("1", nil)
	c := &codec{msg: msg}
	value := []byte("x")
	got, err := compat.Unmarshaler(c).Unmarshal(redischannels.Entry{Fields: []redischannels.Field{{Name: "a", Value: []byte("1")}, {Name: "b", Value: value}, {Name: "a", Value: []byte("2")}}})
	require.NoError(t, err)
	require.Same(t, msg, got)
	value[0] = 'y'
	require.Equal(t, map[string]any{"a": "2", "b": "x"}, c.got, "the reader's buffers are not kept")

	_, err = compat.Unmarshaler(&codec{err: errCodec}).Unmarshal(redischannels.Entry{})
	require.ErrorIs(t, err, errCodec)
	_, err = compat.Unmarshaler(&codec{}).Unmarshal(redischannels.Entry{})
	require.ErrorContains(t, err, "neither a message nor an error")
}

// The adapted default codec reads what our marshaler writes, and the reverse.
func TestAdaptedDefaultCodec(t *testing.T) {
	t.Parallel()
	theirs := redisstream.DefaultMarshallerUnmarshaller{}
	msg := message.NewMessage("uuid", []byte("payload\x00"))
	msg.Metadata.Set("key", "value")
	for _, m := range []redischannels.Marshaler{compat.Marshaler(theirs), redischannels.WatermillMarshaler{}} {
		for _, u := range []redischannels.Unmarshaler{compat.Unmarshaler(theirs), redischannels.WatermillMarshaler{}} {
			fields, err := m.Marshal("t", msg)
			require.NoError(t, err)
			got, err := u.Unmarshal(redischannels.Entry{Topic: "t", ID: "1-1", Fields: fields})
			require.NoError(t, err)
			require.True(t, msg.Equals(got), "%v", got)
		}
	}
}

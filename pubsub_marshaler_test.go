package redischannels

import (
	"bytes"
	"encoding/hex"
	"errors"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"
)

func TestEnvelopeBytes(t *testing.T) {
	msg := message.NewMessage("u1", []byte(`{"n":1}`))
	msg.Metadata = message.Metadata{"name": "order", "a": ""}
	data, err := EnvelopeMarshaler{}.Marshal("t", msg)
	require.NoError(t, err)
	require.Equal(t, "01"+"02"+"7531"+"02"+"01"+"61"+"00"+"04"+"6e616d65"+"05"+"6f72646572"+hex.EncodeToString([]byte(`{"n":1}`)),
		hex.EncodeToString(data), "as docs/wire.md has it")

	read, err := EnvelopeMarshaler{}.Unmarshal("t", data)
	require.NoError(t, err)
	require.True(t, msg.Equals(read))
	clear(data)
	require.True(t, msg.Equals(read), "the message has memory of its own")
}

func TestEnvelopeRefuses(t *testing.T) {
	for name, data := range map[string]string{
		"nothing":              "",
		"JSON":                 `{"n":1}`,
		"a later version":      "\x02\x00\x00",
		"no UUID":              "\x01",
		"UUID cut short":       "\x01\x05abc",
		"no pairs":             "\x01\x00",
		"value cut short":      "\x01\x00\x01\x01k\x05v",
		"more pairs than room": "\x01\x00\xff\xff\xff\xff\x0f",
		"a long form":          "\x01\x80\x00\x00",
		"beyond 64 bits":       "\x01\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
		"keys not sorted":      "\x01\x00\x02\x01b\x00\x01a\x00",
		"a key twice":          "\x01\x00\x02\x01a\x00\x01a\x00",
	} {
		msg, err := EnvelopeMarshaler{}.Unmarshal("orders", []byte(data))
		require.Nil(t, msg, name)
		var decode *DecodeError
		require.ErrorAs(t, err, &decode, name)
		require.Equal(t, "orders", decode.Topic)
		require.ErrorContains(t, err, "cannot decode message of topic")
	}
}

func TestRawPayload(t *testing.T) {
	msg := message.NewMessage("u1", []byte(`{"n":1}`))
	data, err := RawPayload{}.Marshal("t", msg)
	require.NoError(t, err)
	require.Equal(t, `{"n":1}`, string(data))

	msg.Metadata.Set("k", "secret")
	_, err = RawPayload{}.Marshal("t", msg)
	require.ErrorContains(t, err, "DropMetadata")
	require.NotContains(t, err.Error(), "secret")
	data, err = RawPayload{DropMetadata: true}.Marshal("t", msg)
	require.NoError(t, err)
	require.Equal(t, `{"n":1}`, string(data))

	read, err := RawPayload{}.Unmarshal("t", data)
	require.NoError(t, err)
	require.Equal(t, `{"n":1}`, string(read.Payload))
	require.Len(t, read.UUID, 36)
	require.NotNil(t, read.Metadata)
	data[0] = 'x'
	require.Equal(t, `{"n":1}`, string(read.Payload), "the message has memory of its own")
}

// Whatever comes over a channel makes a message, whose bytes are exactly these, or a
// DecodeError.
func FuzzEnvelope(f *testing.F) {
	msg := message.NewMessage("uuid", []byte("payload"))
	msg.Metadata = message.Metadata{"k": "v", "": "empty", "long": string(bytes.Repeat([]byte("x"), 200))}
	data, err := EnvelopeMarshaler{}.Marshal("t", msg)
	require.NoError(f, err)
	f.Add(data)
	f.Add([]byte("\x01\x00\x00"))
	f.Add([]byte("\x01\x80\x00\x00"))
	f.Add([]byte(`{"json":true}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		msg, err := EnvelopeMarshaler{}.Unmarshal("t", data)
		if err != nil {
			var decode *DecodeError
			if msg != nil || !errors.As(err, &decode) {
				t.Fatalf("%v, %v", msg, err)
			}
			return
		}
		again, err := EnvelopeMarshaler{}.Marshal("t", msg)
		if err != nil || !bytes.Equal(again, data) {
			t.Fatalf("%x became %x, %v", data, again, err)
		}
	})
}

package redischannels

import (
	"fmt"
	"strings"
	"testing"

	"github.com/ThreeDotsLabs/watermill-redisstream/pkg/redisstream"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"
)

// The bytes that docs/wire.md shows. They are written down here, so that a new
// version of a library cannot change them unnoticed.
func TestWatermillMarshalGolden(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name                    string
		msg                     *message.Message
		uuid, metadata, payload string
	}{
		{"plain", newMessage("u-1", "hello"), "u-1", "", "hello"},
		{"empty", newMessage("", ""), "", "", ""},
		{"nothing", &message.Message{}, "", "", ""},
		{"binary", newMessage("u-1", "\x00\xff\r\n"), "u-1", "", "\x00\xff\r\n"},
		{"one pair", newMessage("u-1", "hello", "name", "order"), "u-1", "\x81\xa4name\xa5order", "hello"},
		{
			"sorted",
			newMessage("u-1", "", "b", "2", "a", "1", "", "0", "aa", "3"),
			"u-1", "\x84\xa0\xa10\xa1a\xa11\xa2aa\xa13\xa1b\xa12", "",
		},
		{"unicode", newMessage("ü", "日本", "ключ", "значение"), "ü", "\x81\xa8ключ\xb0значение", "日本"},
		{"32 bytes", newMessage("", "", "k", strings.Repeat("v", 32)), "", "\x81\xa1k\xd9\x20" + strings.Repeat("v", 32), ""},
		{"256 bytes", newMessage("", "", "k", strings.Repeat("v", 256)), "", "\x81\xa1k\xda\x01\x00" + strings.Repeat("v", 256), ""},
		{"65536 bytes", newMessage("", "", "k", strings.Repeat("v", 65536)), "", "\x81\xa1k\xdb\x00\x01\x00\x00" + strings.Repeat("v", 65536), ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			fields, err := WatermillMarshaler{}.Marshal("orders", tc.msg)
			require.NoError(t, err)
			require.Len(t, fields, 3)
			require.Equal(t, []string{"_watermill_message_uuid", "metadata", "payload"},
				[]string{fields[0].Name, fields[1].Name, fields[2].Name})
			require.Equal(t, tc.uuid, string(fields[0].Value))
			require.Equal(t, tc.metadata, string(fields[1].Value))
			require.Equal(t, tc.payload, string(fields[2].Value))
		})
	}
}

// asRedisstreamReads is the entry as go-redis gives it to watermill-redisstream.
func asRedisstreamReads(fields []Field) map[string]any {
	values := make(map[string]any, len(fields))
	for _, f := range fields {
		values[f.Name] = string(f.Value)
	}
	return values
}

// asRedisstreamWrites is an entry as Redis keeps what go-redis was given.
func asRedisstreamWrites(t *testing.T, values map[string]any) Entry {
	t.Helper()
	var fields []Field
	for name, value := range values {
		switch value := value.(type) {
		case string:
			fields = append(fields, pair(name, value))
		case []byte:
			fields = append(fields, Field{Name: name, Value: value})
		default:
			t.Fatalf("field %s is a %T", name, value)
		}
	}
	return entryOf(fields...)
}

// Both libraries must be able to share a stream, in both directions.
func TestWatermillMarshalerIsThatOfRedisstream(t *testing.T) {
	t.Parallel()
	theirs := redisstream.DefaultMarshallerUnmarshaller{}
	many := newMessage("many", "x")
	for i := range 70_000 {
		many.Metadata.Set(fmt.Sprint("key-", i), "v")
	}
	for name, msg := range map[string]*message.Message{
		"plain":           newMessage("u-1", "hello"),
		"empty":           newMessage("", ""),
		"nothing":         {},
		"binary":          newMessage("\xff\x00", "\x00\xff\r\n", "\xfe", "\x00"),
		"unicode":         newMessage("ü", "日本", "ключ", "значение"),
		"one pair":        newMessage("u-1", "hello", "name", "order"),
		"15 pairs":        newMessage("u-1", "hello", metadataPairs(15)...),
		"16 pairs":        newMessage("u-1", "hello", metadataPairs(16)...),
		"70,000 pairs":    many,
		"values of 31":    newMessage("u-1", "", "k", strings.Repeat("v", 31)),
		"values of 32":    newMessage("u-1", "", "k", strings.Repeat("v", 32)),
		"values of 255":   newMessage("u-1", "", "k", strings.Repeat("v", 255)),
		"values of 256":   newMessage("u-1", "", "k", strings.Repeat("v", 256)),
		"values of 65535": newMessage("u-1", "", "k", strings.Repeat("v", 65535)),
		"values of 65536": newMessage("u-1", "", "k", strings.Repeat("v", 65536)),
		"reserved, empty": newMessage("u-1", "", uuidField, ""),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ours, err := WatermillMarshaler{}.Marshal("orders", msg)
			require.NoError(t, err)
			read, err := theirs.Unmarshal(asRedisstreamReads(ours))
			require.NoError(t, err)
			requireEqualMessage(t, msg, read)

			values, err := theirs.Marshal("orders", msg)
			require.NoError(t, err)
			written := asRedisstreamWrites(t, values)
			read, err = WatermillMarshaler{}.Unmarshal(written)
			require.NoError(t, err)
			requireEqualMessage(t, msg, read)

			// The bytes are the same but for the order of the pairs, which is random
			// in theirs.
			require.Len(t, written.Fields, len(ours))
			for _, f := range ours {
				value, ok := written.Get(f.Name)
				require.True(t, ok, f.Name)
				require.Len(t, value, len(f.Value))
				if f.Name != metadataField || len(msg.Metadata) < 2 {
					require.Equal(t, string(f.Value), string(value), f.Name)
				}
			}
		})
	}
}

// metadataPairs makes n pairs of metadata.
func metadataPairs(n int) []string {
	var metadata []string
	for i := range n {
		metadata = append(metadata, fmt.Sprint("key-", i), fmt.Sprint("value-", i))
	}
	return metadata
}

func TestWatermillUnmarshalFields(t *testing.T) {
	t.Parallel()
	uuid, payload := pair(uuidField, "u-1"), pair(payloadField, marker)
	for _, tc := range []struct {
		name   string
		fields []Field
		want   *message.Message
		reason string
	}{
		{name: "UUID alone", fields: []Field{uuid}, want: newMessage("u-1", "")},
		{name: "empty UUID", fields: []Field{pair(uuidField, ""), payload}, want: newMessage("", marker)},
		{name: "nil values", fields: []Field{{Name: uuidField}, {Name: metadataField}, {Name: payloadField}}, want: newMessage("", "")},
		{name: "any order", fields: []Field{payload, pair(metadataField, "\x81\xa1k\xa1v"), uuid}, want: newMessage("u-1", marker, "k", "v")},
		{name: "further fields", fields: []Field{pair("x", "1"), uuid, pair("", "2"), payload, pair("x", "3")}, want: newMessage("u-1", marker)},
		{name: "no UUID", fields: []Field{pair(metadataField, ""), payload}, reason: "field _watermill_message_uuid is missing"},
		{name: "foreign", fields: []Field{pair("data", marker)}, reason: "field _watermill_message_uuid is missing"},
		{name: "UUID twice", fields: []Field{uuid, payload, uuid}, reason: "field _watermill_message_uuid occurs more than once"},
		{name: "metadata twice", fields: []Field{uuid, pair(metadataField, ""), pair(metadataField, "")}, reason: "field metadata occurs more than once"},
		{name: "payload twice", fields: []Field{uuid, payload, payload}, reason: "field payload occurs more than once"},
		{name: "payload three times", fields: []Field{uuid, payload, payload, payload}, reason: "field payload occurs more than once"},
		{name: "1 MiB of garbage", fields: []Field{pair(strings.Repeat(marker, 1<<16), strings.Repeat(marker, 1<<16))}, reason: "field _watermill_message_uuid is missing"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			got, err := WatermillMarshaler{}.Unmarshal(entryOf(tc.fields...))
			if tc.reason != "" {
				require.Nil(t, got)
				requireUndecodable(t, err, tc.reason)
				return
			}
			require.NoError(t, err)
			requireEqualMessage(t, tc.want, got)
		})
	}
}

// BenchmarkWatermillMarshaler measures one message with 256 bytes of payload and
// three pairs of metadata, beside watermill-redisstream.
func BenchmarkWatermillMarshaler(b *testing.B) {
	msg := newMessage("01890f3e-5f6a-7c1e-8a51-0b8f3c1d2e4f", strings.Repeat("x", 256),
		"correlation_id", "c-1", "name", "orders.OrderPlaced", "tenant", "t-1")
	fields, err := WatermillMarshaler{}.Marshal("orders", msg)
	require.NoError(b, err)
	theirs := redisstream.DefaultMarshallerUnmarshaller{}
	values := asRedisstreamReads(fields)

	b.Run("Marshal", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			_, _ = WatermillMarshaler{}.Marshal("orders", msg)
		}
	})
	b.Run("Marshal/redisstream", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			_, _ = theirs.Marshal("orders", msg)
		}
	})
	b.Run("Unmarshal", func(b *testing.B) {
		entry := entryOf(fields...)
		b.ReportAllocs()
		for b.Loop() {
			_, _ = WatermillMarshaler{}.Unmarshal(entry)
		}
	})
	b.Run("Unmarshal/redisstream", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			_, _ = theirs.Unmarshal(values)
		}
	})
}

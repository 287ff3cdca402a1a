package redischannels

import (
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"
)

// format is the interface of all three wire formats.
type format interface {
	Marshaler
	Unmarshaler
}

// formats are the wire formats with a message that each of them can carry.
var formats = []struct {
	name    string
	format  format
	payload string
}{
	{"Watermill", WatermillMarshaler{}, "\x00any\xff"},
	{"Flaminco", FlamincoMarshaler{}, `{"ID":1}`},
	{"Fields", FieldsMarshaler{}, `{"id":"1","amount":"5"}`},
}

// marker stands for a secret: it may occur in payloads and metadata and must
// never occur in an error.
const marker = "s3cr3t-marker"

// pair is a field with a readable value.
func pair(name, value string) Field { return Field{Name: name, Value: []byte(value)} }

// entryOf is an entry with an address, so that errors can be seen to carry it.
func entryOf(fields ...Field) Entry {
	return Entry{Topic: "orders", ID: "1700000000000-7", Fields: fields}
}

// newMessage makes a message with pairs of metadata.
func newMessage(uuid, payload string, metadata ...string) *message.Message {
	msg := message.NewMessage(uuid, []byte(payload))
	for i := 0; i < len(metadata); i += 2 {
		msg.Metadata.Set(metadata[i], metadata[i+1])
	}
	return msg
}

// requireUndecodable checks everything that is promised about the error of an
// entry that was made by entryOf.
func requireUndecodable(t *testing.T, err error, reason string) {
	t.Helper()
	var decode *DecodeError
	require.ErrorAs(t, err, &decode)
	require.Equal(t, "orders", decode.Topic)
	require.Equal(t, "1700000000000-7", decode.EntryID)
	require.Equal(t, reason, decode.Reason)
	require.NotContains(t, err.Error(), marker)
}

func requireEqualMessage(t *testing.T, want, got *message.Message) {
	t.Helper()
	require.Equal(t, want.UUID, got.UUID)
	require.Equal(t, string(want.Payload), string(got.Payload))
	require.NotNil(t, got.Metadata)
	require.Len(t, got.Metadata, len(want.Metadata))
	for key, value := range want.Metadata {
		require.Equal(t, value, got.Metadata[key])
	}
}

func TestMarshalersRoundTrip(t *testing.T) {
	t.Parallel()
	for _, f := range formats {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			for _, msg := range []*message.Message{
				newMessage("u-1", f.payload),
				newMessage("u-1", f.payload, "correlation_id", "c-1"),
				newMessage("u-ü-\xff", f.payload, "", "", "kéy", "välue", "raw\xff", "\x00\xfe"),
				{UUID: "u-1", Payload: message.Payload(f.payload)}, // Metadata is nil
			} {
				fields, err := f.format.Marshal("orders", msg)
				require.NoError(t, err)
				got, err := f.format.Unmarshal(entryOf(fields...))
				require.NoError(t, err)
				requireEqualMessage(t, msg, got)
			}
		})
	}
}

// Two configurations with the same marshaler must compare as equal.
func TestMarshalersAreComparable(t *testing.T) {
	t.Parallel()
	for _, f := range formats {
		require.True(t, f.format == f.format) //nolint:staticcheck // panics when it is not comparable
	}
	require.True(t, Unmarshaler(WatermillMarshaler{}) == Unmarshaler(WatermillMarshaler{}))
}

// A message that claims the UUID field by its metadata would have two UUIDs.
func TestMarshalersRefuseReservedMetadata(t *testing.T) {
	t.Parallel()
	for _, f := range formats {
		_, err := f.format.Marshal("orders", newMessage("u-1", f.payload, uuidField, marker))
		require.ErrorContains(t, err, "reserved", f.name)
		require.ErrorContains(t, err, `"u-1"`, f.name)
		require.NotContains(t, err.Error(), marker, f.name)
	}
}

// Bug: an entry whose fields were deleted (XDEL, trimmed while pending) has none
// at all, and a decoder that takes them for granted panics.
func TestUnmarshalWithoutFields(t *testing.T) {
	t.Parallel()
	reasons := []string{
		"field _watermill_message_uuid is missing",
		"field data is missing",
		"entry has no fields",
	}
	for i, f := range formats {
		for _, entry := range []Entry{entryOf(), entryOf([]Field{}...), entryOf(pair(deadReasonField, marker))} {
			_, err := f.format.Unmarshal(entry)
			requireUndecodable(t, err, reasons[i])
		}
	}
}

// Bug: the values lie in the buffer that the next reply is read into. A message
// that shares it changes under its handler.
func TestUnmarshalCopies(t *testing.T) {
	t.Parallel()
	for _, f := range formats {
		want := newMessage("u-1", f.payload, "key", "value")
		fields, err := f.format.Marshal("orders", want)
		require.NoError(t, err)
		fields = append(fields, pair(deadTimeField, "now"))
		want.Metadata.Set(DeadTimeKey, "now")
		for i := range fields {
			fields[i].Value = slices.Clone(fields[i].Value)
		}
		got, err := f.format.Unmarshal(entryOf(fields...))
		require.NoError(t, err)
		for i := range fields {
			for j := range fields[i].Value {
				fields[i].Value[j] = '!'
			}
		}
		requireEqualMessage(t, want, got)
	}
}

// Marshal must leave the message alone, and what it returned must not change
// with the next call.
func TestMarshalKeepsMessage(t *testing.T) {
	t.Parallel()
	for _, f := range formats {
		msg := newMessage("u-1", f.payload, "key", "value")
		fields, err := f.format.Marshal("orders", msg)
		require.NoError(t, err)
		requireEqualMessage(t, newMessage("u-1", f.payload, "key", "value"), msg)

		_, err = f.format.Marshal("orders", newMessage("u-2", f.payload, "KEY", "VALUE"))
		require.NoError(t, err)
		got, err := f.format.Unmarshal(entryOf(fields...))
		require.NoError(t, err)
		requireEqualMessage(t, msg, got)

		// Neither may one field grow into another one.
		for _, field := range fields[:len(fields)-1] {
			_ = append(field.Value, "overwritten"...)
		}
		got, err = f.format.Unmarshal(entryOf(fields...))
		require.NoError(t, err)
		requireEqualMessage(t, msg, got)
	}
}

// Encoders and decoders are pooled; no goroutine may see another one's.
func TestMarshalersAreSafeForConcurrentUse(t *testing.T) {
	t.Parallel()
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 500 {
				f := formats[i%len(formats)]
				want := newMessage(fmt.Sprint(g, i), f.payload, "g", fmt.Sprint(g), "i", strings.Repeat("x", i))
				fields, err := f.format.Marshal("orders", want)
				if err != nil {
					t.Error(err)
					return
				}
				got, err := f.format.Unmarshal(entryOf(fields...))
				if err != nil || !want.Equals(got) {
					t.Errorf("%s: got %v, %v", f.name, got, err)
					return
				}
			}
		})
	}
	wg.Wait()
}

func TestUnmarshalDeadLetter(t *testing.T) {
	t.Parallel()
	dead := []Field{
		pair(deadReasonField, "too many deliveries"),
		pair(deadEntryIDField, "1600000000000-1"),
		pair(deadTopicField, "orders"),
		pair(deadGroupField, "billing"),
		pair(deadConsumerField, "host-1"),
		pair(deadCountField, "21"),
		pair(deadTimeField, "2025-01-02T03:04:05Z"),
	}
	shown := []string{
		"reason_poisoned", "too many deliveries",
		"topic_poisoned", "orders",
		"handler_poisoned", "billing",
		"subscriber_poisoned", "host-1",
		"_dead_entry_id", "1600000000000-1",
		"_dead_count", "21",
		"_dead_time", "2025-01-02T03:04:05Z",
	}
	for _, f := range formats {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			marshal := func(metadata ...string) []Field {
				fields, err := f.format.Marshal("orders", newMessage("u-1", f.payload, metadata...))
				require.NoError(t, err)
				return fields
			}
			check := func(fields []Field, metadata ...string) {
				t.Helper()
				got, err := f.format.Unmarshal(entryOf(fields...))
				require.NoError(t, err)
				requireEqualMessage(t, newMessage("u-1", f.payload, metadata...), got)
			}
			own := append(slices.Clone(shown), "key", "value")
			check(append(marshal(), dead...), shown...)
			check(append(marshal("key", "value"), dead...), own...)
			// Some may be missing, and they may stand anywhere.
			check(append(slices.Clone(dead[:1]), marshal()...), shown[:2]...)
			// Metadata of an earlier dead letter is replaced.
			check(append(marshal("key", "value", "reason_poisoned", "old"), dead...), own...)
			// An entry that dies in a dead-letter stream has them twice.
			again := append(marshal(), dead...)
			again = append(again, pair(deadReasonField, "rejected"))
			check(again, append(slices.Clone(shown), "reason_poisoned", "rejected")...)
		})
	}
}

// Names that merely look like those of dead letters belong to the producer.
func TestUnmarshalUnknownDeadField(t *testing.T) {
	t.Parallel()
	got, err := WatermillMarshaler{}.Unmarshal(entryOf(pair(uuidField, "u"), pair("_dead_letter", "x")))
	require.NoError(t, err)
	require.Empty(t, got.Metadata)
	got, err = FieldsMarshaler{}.Unmarshal(entryOf(pair("_dead_letter", "x")))
	require.NoError(t, err)
	require.Empty(t, got.Metadata)
	require.JSONEq(t, `{"_dead_letter":"x"}`, string(got.Payload))
}

// hostileMetadata is metadata that no message can be made of.
var hostileMetadata = []struct {
	name, raw, reason string
}{
	{"2^31 pairs in five bytes", "\xdf\x80\x00\x00\x00", "metadata is cut short"},
	{"2^32-1 pairs in five bytes", "\xdf\xff\xff\xff\xff", "metadata is cut short"},
	{"65535 pairs in three bytes", "\xde\xff\xff", "metadata is cut short"},
	{"length of the map cut", "\xde\xff", "metadata is cut short"},
	{"key of 4 GiB", "\x81\xdb\xff\xff\xff\xffk", "metadata is cut short"},
	{"binary key of 2 GiB", "\x81\xc6\x80\x00\x00\x00k", "metadata is cut short"},
	{"value of 4 GiB", "\x81\xa1k\xdb\xff\xff\xff\xff" + marker, "metadata is cut short"},
	{"value one byte short", "\x81\xa1k\xa2v", "metadata is cut short"},
	{"value missing", "\x81\xa1k", "metadata is cut short"},
	{"length of the value cut", "\x81\xa1k\xd9", "metadata is cut short"},
	{"key missing", "\x81", "metadata is cut short"},
	{"one byte behind", "\x81\xa1k\xa1v\x00", "metadata is followed by other bytes"},
	{"bytes behind nil", "\xc0" + marker, "metadata is followed by other bytes"},
	{"text", marker, "metadata is not a msgpack map of strings"},
	{"JSON", `{"key":"` + marker + `"}`, "metadata is not a msgpack map of strings"},
	{"integer", "\x05", "metadata is not a msgpack map of strings"},
	{"array", "\x92\xa1k\xa1v", "metadata is not a msgpack map of strings"},
	{"string", "\xa1k", "metadata is not a msgpack map of strings"},
	{"extension", "\xc7\x01\x00\x81\xa1k\xa1v", "metadata is not a msgpack map of strings"},
	{"fixed extension before a map", "\xd4\x00\x81\xa1k\xa1v", "metadata is not a msgpack map of strings"},
	{"integer key", "\x81\x01\xa1v", "metadata is not a msgpack map of strings"},
	{"integer value", "\x81\xa1k\x01", "metadata is not a msgpack map of strings"},
	{"boolean value", "\x81\xa1k\xc3", "metadata is not a msgpack map of strings"},
	{"float value", "\x81\xa1k\xcb\x3f\xf0\x00\x00\x00\x00\x00\x00", "metadata is not a msgpack map of strings"},
	{"map as value", "\x81\xa1k\x81\xa1k\xa1v", "metadata is not a msgpack map of strings"},
	{"maps 100,000 deep", strings.Repeat("\x81\xa1k", 100_000), "metadata is not a msgpack map of strings"},
	{"never used code", "\x81\xa1k\xc1", "metadata is not a msgpack map of strings"},
	{"key twice", "\x82\xa1k\xa1v\xa1k\xa1w", "metadata has a key twice"},
	{"key as string and as binary", "\x82\xa1k\xa1v\xc4\x01k\xa1w", "metadata has a key twice"},
	{"reserved key", "\x81\xb7_watermill_message_uuid\xa1x", "metadata has the reserved key _watermill_message_uuid"},
}

// withMetadata are the fields of a message with raw metadata, per format.
func withMetadata(raw string) [][]Field {
	return [][]Field{
		{pair(uuidField, "u-1"), pair(metadataField, raw), pair(payloadField, marker)},
		{pair(dataField, `"`+marker+`"`), pair(metadataField, raw)},
		{pair("id", marker), pair(flatMetadataField, raw)},
	}
}

func TestUnmarshalHostileMetadata(t *testing.T) {
	t.Parallel()
	for _, h := range hostileMetadata {
		t.Run(h.name, func(t *testing.T) {
			t.Parallel()
			for i, fields := range withMetadata(h.raw) {
				msg, err := formats[i].format.Unmarshal(entryOf(fields...))
				require.Nil(t, msg)
				requireUndecodable(t, err, h.reason)
			}
		})
	}
	// A reader of hostile metadata goes back to the pool and must still be good.
	msg, err := WatermillMarshaler{}.Unmarshal(entryOf(withMetadata("\x81\xa1k\xa1v")[0]...))
	require.NoError(t, err)
	require.Equal(t, message.Metadata{"k": "v"}, msg.Metadata)
}

// Announced lengths must not be paid for in advance: 5 bytes that announce 2^31
// pairs, or a key of 4 GiB, could otherwise end the process.
func TestUnmarshalHostileMetadataIsCheap(t *testing.T) {
	const runs = 20
	for _, h := range hostileMetadata {
		for i, fields := range withMetadata(h.raw) {
			entry := entryOf(fields...)
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			for range runs {
				_, _ = formats[i].format.Unmarshal(entry)
			}
			runtime.ReadMemStats(&after)
			each := (after.TotalAlloc - before.TotalAlloc) / runs
			require.Less(t, each, uint64(4096+4*len(h.raw)), "bytes for %s in %s", h.name, formats[i].name)
		}
	}
}

// Encodings of other producers for no metadata, or instead of a string.
func TestUnmarshalLenientMetadata(t *testing.T) {
	t.Parallel()
	for raw, want := range map[string]message.Metadata{
		"":                           {},
		"\xc0":                       {}, // nil
		"\x80":                       {},
		"\xdf\x00\x00\x00\x00":       {}, // empty map in its longest form
		"\x81\xa1k\xc0":              {"k": ""},
		"\x81\xc0\xa1v":              {"": "v"},
		"\x81\xc4\x01k\xc5\x00\x01v": {"k": "v"}, // binary
		"\xde\x00\x01\xdb\x00\x00\x00\x01k\xda\x00\x01v": {"k": "v"}, // longer forms than needed
	} {
		for i, fields := range withMetadata(raw) {
			msg, err := formats[i].format.Unmarshal(entryOf(fields...))
			require.NoError(t, err, "%q in %s", raw, formats[i].name)
			require.Equal(t, want, msg.Metadata, "%q in %s", raw, formats[i].name)
		}
	}
}

// The hot path: its allocations determine the cost at 300,000 messages a second.
func TestMarshalerAllocations(t *testing.T) {
	if raceDetector {
		t.Skip("allocations are counted without the race detector: go test -run TestMarshalerAllocations .")
	}
	bare := newMessage("01890f3e-5f6a-7c1e-8a51-0b8f3c1d2e4f", strings.Repeat("x", 256))
	full := newMessage(bare.UUID, string(bare.Payload),
		"correlation_id", "c-1", "traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "name", "orders.OrderPlaced")
	for _, tc := range []struct {
		name                        string
		msg                         *message.Message
		marshal, unmarshal, payload float64
	}{
		// The slice of fields, and one buffer for UUID and metadata.
		// Watermill's message (itself, two channels, the map), UUID and payload.
		{"no metadata", bare, 2, 6, 0},
		// One copy of all metadata, and the table of the map.
		{"three pairs", full, 2, 8, 3},
	} {
		fields, err := WatermillMarshaler{}.Marshal("orders", tc.msg)
		require.NoError(t, err)
		entry := entryOf(fields...)
		require.LessOrEqual(t, testing.AllocsPerRun(1000, func() {
			_, _ = WatermillMarshaler{}.Marshal("orders", tc.msg)
		}), tc.marshal, "Marshal, %s", tc.name)
		require.LessOrEqual(t, testing.AllocsPerRun(1000, func() {
			_, _ = WatermillMarshaler{}.Unmarshal(entry)
		}), tc.unmarshal, "Unmarshal, %s", tc.name)
		require.LessOrEqual(t, testing.AllocsPerRun(1000, func() {
			_, _, _ = WatermillMarshaler{}.UnmarshalPayload(entry)
		}), tc.payload, "UnmarshalPayload, %s", tc.name)
	}
}

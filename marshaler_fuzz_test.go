package redischannels

import (
	"encoding/binary"
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/ThreeDotsLabs/watermill-redisstream/pkg/redisstream"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"
)

// fuzzNames are the field names that mean something to a format, and a few that
// do not. A fuzzer would need ages to find them by itself.
var fuzzNames = []string{
	uuidField, metadataField, payloadField, dataField, flatMetadataField,
	deadReasonField, deadEntryIDField, deadTopicField, deadGroupField,
	deadConsumerField, deadCountField, deadTimeField,
	"id", "amount", "", "_dead_", "\xff",
}

// fuzzEntry makes an entry of any bytes. Each field is: one byte that picks a name, or, beyond
// the known ones, is followed by a name (one byte of length); then a value (two bytes of length).
// A missing end is ignored.
func fuzzEntry(data []byte) Entry {
	take := func(n int) []byte {
		n = min(n, len(data))
		part := data[:n:n]
		data = data[n:]
		return part
	}
	entry := entryOf()
	for len(data) > 0 {
		var f Field
		if i := int(take(1)[0]); i < len(fuzzNames) {
			f.Name = fuzzNames[i]
		} else if n := take(1); len(n) == 1 {
			f.Name = string(take(int(n[0])))
		}
		if n := take(2); len(n) == 2 {
			f.Value = take(int(binary.BigEndian.Uint16(n)))
		}
		entry.Fields = append(entry.Fields, f)
	}
	return entry
}

// fuzzBytes is the inverse of fuzzEntry, for seeds.
func fuzzBytes(fields ...Field) []byte {
	var data []byte
	for _, f := range fields {
		if i := slices.Index(fuzzNames, f.Name); i >= 0 {
			data = append(data, byte(i))
		} else {
			data = append(data, 0xff, byte(len(f.Name)))
			data = append(data, f.Name...)
		}
		data = binary.BigEndian.AppendUint16(data, uint16(len(f.Value)))
		data = append(data, f.Value...)
	}
	return data
}

// addEntries seeds a fuzz test with everything that the other tests know.
func addEntries(f *testing.F) {
	f.Add([]byte(nil))
	for _, c := range formats {
		for _, metadata := range [][]string{nil, {"k", "v"}, metadataPairs(16)} {
			fields, err := c.format.Marshal("orders", newMessage("u-1", c.payload, metadata...))
			require.NoError(f, err)
			f.Add(fuzzBytes(fields...))
			f.Add(fuzzBytes(append(fields, pair(deadReasonField, "why"), pair(deadCountField, "21"))...))
			f.Add(fuzzBytes(append(fields, fields...)...))
		}
	}
	for _, h := range hostileMetadata {
		if len(h.raw) > 1024 {
			continue
		}
		for _, fields := range withMetadata(h.raw) {
			f.Add(fuzzBytes(fields...))
		}
	}
	for _, tc := range notJSON {
		if len(tc.text) <= 1024 {
			f.Add(fuzzBytes(pair(dataField, tc.text)))
		}
	}
	f.Add(fuzzBytes(pair("id", "\"\\\x00\u2028"), pair("amount", "5"), pair("näme", "1")))
}

// checkUnmarshal checks what holds for the unmarshaler of every format: it does
// not panic, its error is a DecodeError with an address, and a message that it
// makes can be published again and is then read as the same.
func checkUnmarshal(t *testing.T, f format, entry Entry) *message.Message {
	t.Helper()
	before := make([]Field, len(entry.Fields))
	for i, field := range entry.Fields {
		before[i] = pair(field.Name, string(field.Value))
	}
	msg, err := f.Unmarshal(entry)
	for i, field := range entry.Fields {
		require.Equal(t, before[i].Name, field.Name)
		require.Equal(t, string(before[i].Value), string(field.Value))
	}
	checkPayload(t, f, entry, msg, err)
	if err != nil {
		require.Nil(t, msg)
		var decode *DecodeError
		require.ErrorAs(t, err, &decode)
		require.Equal(t, entry.Topic, decode.Topic)
		require.Equal(t, entry.ID, decode.EntryID)
		require.NotEmpty(t, decode.Reason)
		require.Less(t, len(decode.Error()), 300)
		require.True(t, utf8.ValidString(decode.Error()))
		return nil
	}
	fields, err := f.Marshal(entry.Topic, msg)
	require.NoError(t, err)
	again, err := f.Unmarshal(entryOf(fields...))
	require.NoError(t, err)
	requireEqualMessage(t, msg, again)
	same, err := f.Marshal(entry.Topic, again)
	require.NoError(t, err)
	require.Equal(t, fields, same)
	return msg
}

// checkPayload checks that UnmarshalPayload returns what the message has, or its error.
func checkPayload(t *testing.T, f format, entry Entry, msg *message.Message, failure error) {
	t.Helper()
	payload, metadata, err := f.(PayloadUnmarshaler).UnmarshalPayload(entry)
	require.Equal(t, failure, err)
	if err != nil {
		require.Nil(t, payload)
		require.Nil(t, metadata)
		return
	}
	require.Equal(t, string(msg.Payload), string(payload))
	if len(msg.Metadata) == 0 {
		require.Nil(t, metadata)
	} else {
		require.Equal(t, msg.Metadata, metadata)
	}
}

func FuzzWatermillUnmarshal(f *testing.F) {
	addEntries(f)
	theirs := redisstream.DefaultMarshallerUnmarshaller{}
	f.Fuzz(func(t *testing.T, data []byte) {
		entry := fuzzEntry(data)
		msg := checkUnmarshal(t, WatermillMarshaler{}, entry)
		if msg == nil || slices.ContainsFunc(entry.Fields, func(f Field) bool { return deadKey(f.Name) != "" }) {
			return
		}
		// An entry that decodes to a message decodes to the same message in
		// watermill-redisstream.
		want, err := theirs.Unmarshal(asRedisstreamReads(entry.Fields))
		require.NoError(t, err)
		if want.Metadata == nil { // it makes that of msgpack nil
			want.Metadata = message.Metadata{}
		}
		requireEqualMessage(t, want, msg)
	})
}

func FuzzWatermillRoundTrip(f *testing.F) {
	f.Add("u-1", []byte("hello"), "name", "order", "", "", uint16(0))
	f.Add("", []byte(nil), "", "", "", "\xff", uint16(16))
	f.Add("ü", []byte("\x00\xff"), uuidField, "x", "k", strings.Repeat("v", 300), uint16(1))
	theirs := redisstream.DefaultMarshallerUnmarshaller{}
	f.Fuzz(func(t *testing.T, uuid string, payload []byte, k1, v1, k2, v2 string, more uint16) {
		msg := newMessage(uuid, string(payload), append(metadataPairs(int(more%1000)), k1, v1, k2, v2)...)
		fields, err := WatermillMarshaler{}.Marshal("orders", msg)
		if msg.Metadata.Get(uuidField) != "" {
			require.Error(t, err)
			return
		}
		require.NoError(t, err)
		got, err := WatermillMarshaler{}.Unmarshal(entryOf(fields...))
		require.NoError(t, err)
		requireEqualMessage(t, msg, got)

		got, err = theirs.Unmarshal(asRedisstreamReads(fields))
		require.NoError(t, err)
		requireEqualMessage(t, msg, got)
		values, err := theirs.Marshal("orders", msg)
		require.NoError(t, err)
		got, err = WatermillMarshaler{}.Unmarshal(asRedisstreamWrites(t, values))
		require.NoError(t, err)
		requireEqualMessage(t, msg, got)
	})
}

func FuzzFlamincoUnmarshal(f *testing.F) {
	addEntries(f)
	f.Fuzz(func(t *testing.T, data []byte) {
		entry := fuzzEntry(data)
		msg := checkUnmarshal(t, FlamincoMarshaler{}, entry)
		if msg == nil {
			return
		}
		require.True(t, json.Valid(msg.Payload))
		raw, _ := entry.Get(dataField)
		require.Equal(t, string(raw), string(msg.Payload))
		require.NotEmpty(t, msg.UUID)
	})
}

func FuzzFieldsUnmarshal(f *testing.F) {
	addEntries(f)
	f.Fuzz(func(t *testing.T, data []byte) {
		entry := fuzzEntry(data)
		msg := checkUnmarshal(t, FieldsMarshaler{}, entry)
		if msg == nil {
			return
		}
		// The object has each field of the payload, nothing else, in their order.
		var object map[string]string
		require.NoError(t, json.Unmarshal(msg.Payload, &object))
		var own []Field
		for _, field := range entry.Fields {
			if !reservedName(field.Name) {
				own = append(own, pair(field.Name, string(field.Value)))
				value, ok := object[field.Name]
				require.True(t, ok)
				require.Equal(t, string(field.Value), value)
			}
		}
		require.Len(t, object, len(own))
		fields, err := FieldsMarshaler{}.Marshal("orders", msg)
		require.NoError(t, err)
		for i := range own {
			require.Equal(t, own[i].Name, fields[i].Name)
			require.Equal(t, string(own[i].Value), string(fields[i].Value))
		}
	})
}

func FuzzFieldsRoundTrip(f *testing.F) {
	for _, payload := range []string{
		`{}`, `{"id":"1","amount":5,"paid":true}`, `{"a":null}`, `{"a":{}}`, `{"a":1,"a":2}`, `[]`, `nope`,
		`{"\u0061":"\ud83d\ude00","b":-1.5E+3}`, `{"metadata":"m","_watermill_metadata":"x"}`, `{"half":"\ud800"}`,
	} {
		f.Add("u-1", []byte(payload), "k", "v")
		f.Add("", []byte(payload), uuidField, "")
	}
	f.Fuzz(func(t *testing.T, uuid string, payload []byte, key, value string) {
		msg := newMessage(uuid, string(payload), key, value)
		fields, err := FieldsMarshaler{}.Marshal("orders", msg)
		if err != nil {
			require.Nil(t, fields)
			return
		}
		got, err := FieldsMarshaler{}.Unmarshal(entryOf(fields...))
		require.NoError(t, err)
		if uuid == "" {
			msg.UUID = entryOf().ID
		}

		// Types are lost by design; texts are not.
		var before map[string]any
		d := json.NewDecoder(strings.NewReader(string(payload)))
		d.UseNumber()
		require.NoError(t, d.Decode(&before))
		var after map[string]string
		require.NoError(t, json.Unmarshal(got.Payload, &after))
		require.Len(t, after, len(before))
		for name, value := range before {
			switch value := value.(type) {
			case bool:
				require.Equal(t, map[bool]string{true: "true", false: "false"}[value], after[name])
			case json.Number:
				require.Equal(t, value.String(), after[name])
			default:
				require.Equal(t, value, after[name])
			}
		}
		msg.Payload = got.Payload
		requireEqualMessage(t, msg, got)
	})
}

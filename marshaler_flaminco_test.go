package redischannels

import (
	"strings"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"
)

func TestFlamincoMarshalGolden(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name string
		msg  *message.Message
		want []Field
	}{
		{"as .NET writes it", newMessage("", `{"Id":1}`), []Field{pair("data", `{"Id":1}`)}},
		{"UUID", newMessage("u-1", `"text"`), []Field{pair("data", `"text"`), pair("_watermill_message_uuid", "u-1")}},
		{"metadata", newMessage("", ` [1] `, "k", "v"), []Field{pair("data", " [1] "), pair("metadata", "\x81\xa1k\xa1v")}},
		{
			"both", newMessage("u-1", "null", "k", "v"),
			[]Field{pair("data", "null"), pair("_watermill_message_uuid", "u-1"), pair("metadata", "\x81\xa1k\xa1v")},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			got, err := FlamincoMarshaler{}.Marshal("orders", tc.msg)
			require.NoError(t, err)
			require.Equal(t, tc.want, got)
		})
	}
}

// notJSON are texts that neither side may accept as JSON, with their errors.
var notJSON = []struct{ name, text, reason string }{
	{"empty", "", "is not JSON: it is empty"},
	{"blank", " \n", "is not JSON: it is empty"},
	{"text", marker, "is not JSON: byte 1 of 13"},
	{"cut", `{"a":"` + marker, "is not JSON: byte 19 of 19"},
	{"two texts", `{} "` + marker + `"`, "is not JSON: byte 4 of 18"},
	{"number too long for JSON", "01", "is not JSON: byte 2 of 2"},
	{"not UTF-8", `"` + marker + "\xff\"", "is not UTF-8"},
	{"byte order mark", "\ufeff{}", "is not JSON: byte 1 of 5"},
	{"too deep", strings.Repeat("[", 20_000) + strings.Repeat("]", 20_000), "is not JSON: byte 10001 of 40000"},
}

func TestFlamincoMarshalRefusesInvalidJSON(t *testing.T) {
	t.Parallel()
	for _, tc := range notJSON {
		fields, err := FlamincoMarshaler{}.Marshal("orders", newMessage("u-1", tc.text))
		require.Nil(t, fields)
		require.EqualError(t, err, `redischannels: cannot marshal message "u-1" for topic "orders": payload `+tc.reason, tc.name)
	}
}

func TestFlamincoUnmarshal(t *testing.T) {
	t.Parallel()
	data := pair("data", `{"Id":1}`)
	const id = "1700000000000-7"
	for _, tc := range []struct {
		name   string
		fields []Field
		want   *message.Message
		reason string
	}{
		{name: "as .NET writes it", fields: []Field{data}, want: newMessage(id, `{"Id":1}`)},
		{name: "UUID", fields: []Field{data, pair(uuidField, "u-1")}, want: newMessage("u-1", `{"Id":1}`)},
		{name: "empty UUID", fields: []Field{pair(uuidField, ""), data}, want: newMessage(id, `{"Id":1}`)},
		{name: "metadata", fields: []Field{pair(metadataField, "\x81\xa1k\xa1v"), data}, want: newMessage(id, `{"Id":1}`, "k", "v")},
		{name: "null", fields: []Field{pair("data", "null")}, want: newMessage(id, "null")},
		{name: "further fields", fields: []Field{pair("x", ""), data, pair("x", "")}, want: newMessage(id, `{"Id":1}`)},
		{name: "no data", fields: []Field{pair(uuidField, "u-1"), pair(payloadField, marker)}, reason: "field data is missing"},
		{name: "other case", fields: []Field{pair("Data", marker)}, reason: "field data is missing"},
		{name: "data twice", fields: []Field{data, data}, reason: "field data occurs more than once"},
		{name: "UUID twice", fields: []Field{data, pair(uuidField, "1"), pair(uuidField, "1")}, reason: "field _watermill_message_uuid occurs more than once"},
		{name: "metadata twice", fields: []Field{data, pair(metadataField, ""), pair(metadataField, "")}, reason: "field metadata occurs more than once"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			got, err := FlamincoMarshaler{}.Unmarshal(entryOf(tc.fields...))
			if tc.reason != "" {
				require.Nil(t, got)
				requireUndecodable(t, err, tc.reason)
				return
			}
			require.NoError(t, err)
			requireEqualMessage(t, tc.want, got)
		})
	}
	for _, tc := range notJSON {
		_, err := FlamincoMarshaler{}.Unmarshal(entryOf(pair("data", tc.text)))
		requireUndecodable(t, err, "field data "+tc.reason)
	}
}

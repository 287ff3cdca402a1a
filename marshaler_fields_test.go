package redischannels

import (
	"fmt"
	"strings"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"
)

func TestFieldsUnmarshal(t *testing.T) {
	t.Parallel()
	const id = "1700000000000-7"
	for _, tc := range []struct {
		name   string
		fields []Field
		want   *message.Message
		reason string
	}{
		{name: "as redis-cli writes it", fields: []Field{pair("id", "1"), pair("amount", "5")}, want: newMessage(id, `{"id":"1","amount":"5"}`)},
		{name: "order is kept", fields: []Field{pair("z", ""), pair("a", ""), pair("m", "")}, want: newMessage(id, `{"z":"","a":"","m":""}`)},
		{name: "empty name", fields: []Field{pair("", "x")}, want: newMessage(id, `{"":"x"}`)},
		{name: "nil value", fields: []Field{{Name: "a"}}, want: newMessage(id, `{"a":""}`)},
		{
			name:   "escapes",
			fields: []Field{pair("\"\\/", "\x00\x1f\x7f\n\r\t\b"), pair("<&>'", "\u2028é日😀")},
			want:   newMessage(id, `{"\"\\/":"\u0000\u001f`+"\x7f"+`\n\r\t\u0008","<&>'":"`+"\u2028"+`é日😀"}`),
		},
		{name: "payload and metadata of the producer", fields: []Field{pair("payload", "p"), pair("metadata", "m")}, want: newMessage(id, `{"payload":"p","metadata":"m"}`)},
		{
			name:   "UUID and metadata of ours",
			fields: []Field{pair(uuidField, "u-1"), pair("id", "1"), pair(flatMetadataField, "\x81\xa1k\xa1v")},
			want:   newMessage("u-1", `{"id":"1"}`, "k", "v"),
		},
		{name: "UUID alone", fields: []Field{pair(uuidField, "u-1")}, want: newMessage("u-1", "{}")},
		{name: "empty UUID", fields: []Field{pair(uuidField, ""), pair("id", "1")}, want: newMessage(id, `{"id":"1"}`)},
		{name: "name twice", fields: []Field{pair("id", marker), pair("a", ""), pair("id", marker)}, reason: "field 3 has the name of an earlier one"},
		{name: "name twice among many", fields: append(flat(40), pair("f-3", marker)), reason: "field 41 has the name of an earlier one"},
		{name: "UUID twice", fields: []Field{pair(uuidField, "1"), pair(uuidField, "1")}, reason: "field _watermill_message_uuid occurs more than once"},
		{name: "metadata twice", fields: []Field{pair(flatMetadataField, ""), pair(flatMetadataField, "")}, reason: "field _watermill_metadata occurs more than once"},
		{name: "name is not UTF-8", fields: []Field{pair("id", "1"), pair(marker+"\xff", "")}, reason: "name of field 2 is not UTF-8"},
		{name: "value is not UTF-8", fields: []Field{pair("id", marker+"\xff")}, reason: "value of field 1 is not UTF-8"},
		{name: "half a surrogate pair", fields: []Field{pair("id", "\xed\xa0\x80")}, reason: "value of field 1 is not UTF-8"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			got, err := FieldsMarshaler{}.Unmarshal(entryOf(tc.fields...))
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

// flat makes n fields with different names.
func flat(n int) []Field {
	var fields []Field
	for i := range n {
		fields = append(fields, pair(fmt.Sprint("f-", i), "v"))
	}
	return fields
}

func TestFieldsMarshal(t *testing.T) {
	t.Parallel()
	const problem = `redischannels: cannot marshal message "u-1" for topic "orders": `
	for _, tc := range []struct {
		name    string
		payload string
		want    []Field
		err     string
	}{
		{name: "scalars", payload: `{"s":"x","i":1,"b":true,"n":false}`, want: []Field{pair("s", "x"), pair("i", "1"), pair("b", "true"), pair("n", "false")}},
		{name: "numbers as they are", payload: `{"a":1.50,"b":1E5,"c":12345678901234567890,"d":-0}`, want: []Field{pair("a", "1.50"), pair("b", "1E5"), pair("c", "12345678901234567890"), pair("d", "-0")}},
		{name: "order is kept", payload: " {\"z\" : \"\" , \"a\":\"\"}\n", want: []Field{pair("z", ""), pair("a", "")}},
		{name: "escapes", payload: `{"\u0061\n":"\"\u0000\ud83d\ude00é"}`, want: []Field{pair("a\n", "\"\x00😀é")}},
		{name: "empty name", payload: `{"":"x"}`, want: []Field{pair("", "x")}},
		{name: "payload and metadata", payload: `{"payload":"p","metadata":"m"}`, want: []Field{pair("payload", "p"), pair("metadata", "m")}},
		{name: "empty object", payload: `{}`},
		{name: "null member", payload: `{"a":"` + marker + `","b":null}`, err: "member 2 of the payload is null"},
		{name: "object member", payload: `{"` + marker + `":{}}`, err: "member 1 of the payload is an object or an array"},
		{name: "array member", payload: `{"a":["` + marker + `"]}`, err: "member 1 of the payload is an object or an array"},
		{name: "name twice", payload: `{"a":"` + marker + `","\u0061":1}`, err: "member 2 of the payload has the name of an earlier one"},
		{name: "UUID", payload: `{"_watermill_message_uuid":"` + marker + `"}`, err: "member 1 of the payload has a reserved name"},
		{name: "metadata", payload: `{"_watermill_metadata":"` + marker + `"}`, err: "member 1 of the payload has a reserved name"},
		{name: "dead letter", payload: `{"a":1,"_dead_count":"` + marker + `"}`, err: "member 2 of the payload has a reserved name"},
		{name: "array", payload: `["` + marker + `"]`, err: "payload is not a JSON object"},
		{name: "string", payload: `"` + marker + `"`, err: "payload is not a JSON object"},
		{name: "null", payload: `null`, err: "payload is not a JSON object"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			got, err := FieldsMarshaler{}.Marshal("orders", newMessage("u-1", tc.payload, "k", "v"))
			if tc.err != "" {
				require.Nil(t, got)
				require.EqualError(t, err, problem+tc.err)
				return
			}
			require.NoError(t, err)
			require.Equal(t, append(tc.want, pair(uuidField, "u-1"), pair(flatMetadataField, "\x81\xa1k\xa1v")), got)

			// Entries for other languages have no additional fields unless needed.
			got, err = FieldsMarshaler{}.Marshal("orders", newMessage("", tc.payload))
			if len(tc.want) == 0 {
				require.ErrorContains(t, err, "an empty object without UUID and metadata makes no field")
				return
			}
			require.NoError(t, err)
			require.Equal(t, tc.want, got)
		})
	}
	for _, tc := range notJSON {
		_, err := FieldsMarshaler{}.Marshal("orders", newMessage("u-1", tc.text))
		require.EqualError(t, err, problem+"payload "+tc.reason, tc.name)
	}
}

// Names are compared by a table from a certain number on; both ways must agree.
func TestRepeatedName(t *testing.T) {
	t.Parallel()
	for n := range 40 {
		require.Equal(t, -1, repeatedName(flat(n)), n)
		if n > 0 {
			require.Equal(t, n, repeatedName(append(flat(n), pair("f-0", ""), pair("f-0", ""))), n)
			require.Equal(t, n, repeatedName(append(flat(n), flat(n)[n-1])), n)
		}
		// Dead-letter fields may well occur twice.
		require.Equal(t, -1, repeatedName(append(flat(n), pair(deadCountField, ""), pair(deadCountField, ""))), n)
	}
}

// Bug: comparing every name with every other one takes minutes for an entry of
// 300,000 fields. Allocations show which way is taken without a clock.
func TestRepeatedNameTable(t *testing.T) {
	few, many := flat(16), flat(17)
	require.Zero(t, testing.AllocsPerRun(10, func() { repeatedName(few) }))
	require.NotZero(t, testing.AllocsPerRun(10, func() { repeatedName(many) }))
}

// Every string must come back from JSON as it was.
func TestAppendJSONString(t *testing.T) {
	t.Parallel()
	var all strings.Builder
	for c := range rune(0x250) {
		all.WriteRune(c)
	}
	got, err := FieldsMarshaler{}.Unmarshal(entryOf(pair(all.String(), all.String())))
	require.NoError(t, err)
	fields, err := FieldsMarshaler{}.Marshal("orders", newMessage("", string(got.Payload)))
	require.NoError(t, err)
	require.Equal(t, []Field{pair(all.String(), all.String())}, fields)
}

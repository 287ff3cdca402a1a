package redischannels

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"unicode/utf8"

	"github.com/ThreeDotsLabs/watermill/message"
)

// flatMetadataField is the field of the metadata among flat fields. It is not named `metadata`
// because a producer may have its own field of that name.
const flatMetadataField = "_watermill_metadata"

// FieldsMarshaler reads flat fields of any producer as a JSON object, and writes flat JSON
// objects as fields. `XADD orders * id 1 amount 5` is read as
//
//	{"id":"1","amount":"5"}
//
// Fields have no types, so every value is read as a JSON string. Two further fields are written
// after those of the payload, and are not part of it:
//
//	_watermill_message_uuid  the UUID, only if there is one
//	_watermill_metadata      a msgpack map of strings, only if there is metadata
//
// It is safe for concurrent use and has no state.
type FieldsMarshaler struct{}

// Marshal implements [Marshaler]. The payload must be one JSON object in UTF-8 without repeated
// names. Its members become fields in their order: strings unchanged, numbers and booleans as
// their JSON text. null, objects and arrays are errors because they cannot be a field, and so are
// names that this format uses itself (`_watermill_message_uuid`, `_watermill_metadata`, the
// `_dead_` ones).
func (FieldsMarshaler) Marshal(topic string, msg *message.Message) ([]Field, error) {
	fields, err := objectFields(msg.Payload)
	if err != nil {
		return nil, marshalError(topic, msg, err.Error())
	}
	uuid, metadata, err := marshalIDs(topic, msg)
	if err != nil {
		return nil, err
	}
	fields = appendPresent(fields, Field{uuidField, uuid}, Field{flatMetadataField, metadata})
	if len(fields) == 0 {
		return nil, marshalError(topic, msg, "an empty object without UUID and metadata makes no field")
	}
	return fields, nil
}

// Unmarshal implements [Unmarshaler]. The message has its own memory, its payload is one JSON
// object with a string per field in the order of the entry, and its metadata is never nil.
// Without a UUID the entry ID is used. Dead-letter fields become metadata and are not part of the
// object. Every error is a [*DecodeError]: no fields, a name twice (an object would lose one), a
// name or value that is not UTF-8 (JSON cannot represent it), or metadata that
// [WatermillMarshaler] refuses.
func (m FieldsMarshaler) Unmarshal(entry Entry) (*message.Message, error) {
	p, err := m.parts(entry)
	if err != nil {
		return nil, err
	}
	return entry.message(p.uuidOr(entry.ID), p, p.payload)
}

// UnmarshalPayload implements [PayloadUnmarshaler].
func (m FieldsMarshaler) UnmarshalPayload(entry Entry) ([]byte, message.Metadata, error) {
	p, err := m.parts(entry)
	if err != nil {
		return nil, nil, err
	}
	return entry.payload(p)
}

// parts returns a payload with its own memory.
func (FieldsMarshaler) parts(entry Entry) (p parts, err error) {
	uuid := once{name: uuidField}
	metadata := once{name: flatMetadataField}
	size, own := len("{}"), 0
	for i := range entry.Fields {
		f := &entry.Fields[i]
		switch {
		case f.Name == uuidField:
			uuid.set(f.Value)
		case f.Name == flatMetadataField:
			metadata.set(f.Value)
		case deadKey(f.Name) != "":
		case !utf8.ValidString(f.Name):
			return p, entry.undecodable(fmt.Sprintf("name of field %d is not UTF-8", i+1))
		case !utf8.Valid(f.Value):
			return p, entry.undecodable(fmt.Sprintf("value of field %d is not UTF-8", i+1))
		default:
			size += len(`"":"",`) + len(f.Name) + len(f.Value)
			own++
		}
	}
	if own+uuid.count+metadata.count == 0 {
		return p, entry.undecodable("entry has no fields")
	}
	if err := entry.checkOnce(&uuid, &metadata); err != nil {
		return p, err
	}
	if i := repeatedName(entry.Fields); i >= 0 {
		return p, entry.undecodable(fmt.Sprintf("field %d has the name of an earlier one", i+1))
	}
	p.uuid, p.metadata, p.payload = uuid.value, metadata.value, fieldsObject(entry.Fields, size)
	p.dead = len(entry.Fields) > own+uuid.count+metadata.count
	return p, nil
}

// fieldsObject returns the fields of a payload as a JSON object of about this size.
func fieldsObject(fields []Field, size int) []byte {
	object := append(make([]byte, 0, size), '{')
	for i := range fields {
		f := &fields[i]
		if reservedName(f.Name) {
			continue
		}
		if len(object) > 1 {
			object = append(object, ',')
		}
		object = appendJSONString(object, f.Name)
		object = append(object, ':')
		object = appendJSONString(object, f.Value)
	}
	return append(object, '}')
}

// objectFields converts a JSON object to fields. Its errors refer to members by their position:
// names may be as private as values.
func objectFields(payload []byte) ([]Field, error) {
	if err := checkJSON(payload); err != nil {
		return nil, fmt.Errorf("payload %w", err)
	}
	// From here on the syntax is valid.
	d := json.NewDecoder(bytes.NewReader(payload))
	d.UseNumber()
	if token, err := d.Token(); err != nil || token != json.Delim('{') {
		return nil, errors.New("payload is not a JSON object")
	}
	var fields []Field
	for n := 1; d.More(); n++ {
		name, err := d.Token()
		if err != nil {
			return nil, fmt.Errorf("member %d of the payload cannot be read", n)
		}
		f := Field{Name: name.(string)}
		if reservedName(f.Name) {
			return nil, fmt.Errorf("member %d of the payload has a reserved name", n)
		}
		value, err := d.Token()
		if err != nil {
			return nil, fmt.Errorf("member %d of the payload cannot be read", n)
		}
		switch value := value.(type) {
		case string:
			f.Value = []byte(value)
		case json.Number:
			f.Value = []byte(value)
		case bool:
			f.Value = fmt.Append(nil, value)
		case nil:
			return nil, fmt.Errorf("member %d of the payload is null", n)
		default:
			return nil, fmt.Errorf("member %d of the payload is an object or an array", n)
		}
		fields = append(fields, f)
	}
	if i := repeatedName(fields); i >= 0 {
		return nil, fmt.Errorf("member %d of the payload has the name of an earlier one", i+1)
	}
	return fields, nil
}

// reservedName reports whether a field does not belong to the payload.
func reservedName(name string) bool {
	return name == uuidField || name == flatMetadataField || deadKey(name) != ""
}

// repeatedName returns the index of the first field of the payload whose name has occurred
// before, or -1. A few names are compared with each other; for many names, whose comparison takes
// quadratic time, a map is used.
func repeatedName(fields []Field) int {
	const few = 16
	var seen map[string]struct{}
	if len(fields) > few {
		seen = make(map[string]struct{}, len(fields))
	}
	for i := range fields {
		name := fields[i].Name
		if reservedName(name) {
			continue
		}
		if seen != nil {
			if _, ok := seen[name]; ok {
				return i
			}
			seen[name] = struct{}{}
			continue
		}
		for j := range fields[:i] {
			if fields[j].Name == name {
				return i
			}
		}
	}
	return -1
}

// appendJSONString appends UTF-8 text as a JSON string, with only the escapes that JSON requires.
func appendJSONString[T string | []byte](b []byte, text T) []byte {
	const hex = "0123456789abcdef"
	b = append(b, '"')
	from := 0
	for i := 0; i < len(text); i++ {
		c := text[i]
		if c >= ' ' && c != '"' && c != '\\' {
			continue
		}
		b = append(b, text[from:i]...)
		from = i + 1
		switch c {
		case '"', '\\':
			b = append(b, '\\', c)
		case '\n':
			b = append(b, `\n`...)
		case '\r':
			b = append(b, `\r`...)
		case '\t':
			b = append(b, `\t`...)
		default:
			b = append(b, `\u00`...)
			b = append(b, hex[c>>4], hex[c&15])
		}
	}
	b = append(b, text[from:]...)
	return append(b, '"')
}

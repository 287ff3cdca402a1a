package redischannels

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/ThreeDotsLabs/watermill/message"
)

// dataField is the only field of an entry that the .NET library writes and reads.
const dataField = "data"

// FlamincoMarshaler is the wire format of the .NET library
// Flaminco.RedisChannels, so that Go and .NET services can share a stream:
//
//	data                     the payload, a JSON text
//	_watermill_message_uuid  the UUID, only if there is one
//	metadata                 a msgpack map of strings, only if there is metadata
//
// The .NET library writes only `data` and ignores the other two. It skips the JSON text `null`
// without a report, so do not publish it.
//
// It is safe for concurrent use and has no state.
type FlamincoMarshaler struct{}

// Marshal implements [Marshaler]. The payload must be one JSON text in UTF-8; it is written
// unchanged, without a copy. A message whose metadata has a value under `_watermill_message_uuid`
// is an error.
func (FlamincoMarshaler) Marshal(topic string, msg *message.Message) ([]Field, error) {
	if err := checkJSON(msg.Payload); err != nil {
		return nil, marshalError(topic, msg, "payload "+err.Error())
	}
	uuid, metadata, err := marshalIDs(topic, msg)
	if err != nil {
		return nil, err
	}
	fields := append(make([]Field, 0, 3), Field{Name: dataField, Value: msg.Payload})
	return appendPresent(fields, Field{uuidField, uuid}, Field{metadataField, metadata}), nil
}

// Unmarshal implements [Unmarshaler]. The message has its own memory, its payload is one JSON
// text in UTF-8, and its metadata is never nil. Without a UUID the entry ID is used. Other fields
// are ignored, except those of a dead letter, which become metadata. Every error is a
// [*DecodeError]: no `data`, one of the three fields twice, content other than JSON, or metadata
// that [WatermillMarshaler] refuses.
func (m FlamincoMarshaler) Unmarshal(entry Entry) (*message.Message, error) {
	p, err := m.parts(entry)
	if err != nil {
		return nil, err
	}
	return entry.message(p.uuidOr(entry.ID), p, bytes.Clone(p.payload))
}

// UnmarshalPayload implements [PayloadUnmarshaler]. The payload is a part of the entry.
func (m FlamincoMarshaler) UnmarshalPayload(entry Entry) ([]byte, message.Metadata, error) {
	p, err := m.parts(entry)
	if err != nil {
		return nil, nil, err
	}
	return entry.payload(p)
}

func (FlamincoMarshaler) parts(entry Entry) (p parts, err error) {
	data := once{name: dataField}
	uuid := once{name: uuidField}
	metadata := once{name: metadataField}
	for i := range entry.Fields {
		switch f := &entry.Fields[i]; f.Name {
		case dataField:
			data.set(f.Value)
		case uuidField:
			uuid.set(f.Value)
		case metadataField:
			metadata.set(f.Value)
		default:
			p.dead = p.dead || strings.HasPrefix(f.Name, deadPrefix)
		}
	}
	if data.count == 0 {
		return p, entry.undecodable("field " + dataField + " is missing")
	}
	if err := entry.checkOnce(&data, &uuid, &metadata); err != nil {
		return p, err
	}
	if err := checkJSON(data.value); err != nil {
		return p, entry.undecodable("field " + dataField + " " + err.Error())
	}
	p.uuid, p.metadata, p.payload = uuid.value, metadata.value, data.value
	return p, nil
}

// uuidOr returns the UUID of a message, or id if its producer has set none.
func (p parts) uuidOr(id string) string {
	if len(p.uuid) == 0 {
		return id
	}
	return string(p.uuid)
}

// appendPresent appends the fields that have a value.
func appendPresent(fields []Field, more ...Field) []Field {
	for _, f := range more {
		if len(f.Value) > 0 {
			fields = append(fields, f)
		}
	}
	return fields
}

// checkJSON reports why text is not one JSON text. Errors of encoding/json quote the text, so
// only the position is used. UTF-8 is checked separately: encoding/json replaces invalid bytes.
func checkJSON(text []byte) error {
	if json.Valid(text) {
		if !utf8.Valid(text) {
			return errors.New("is not UTF-8")
		}
		return nil
	}
	if len(bytes.TrimSpace(text)) == 0 {
		return errors.New("is not JSON: it is empty")
	}
	var syntax *json.SyntaxError
	var raw json.RawMessage
	if err := json.Unmarshal(text, &raw); errors.As(err, &syntax) {
		return fmt.Errorf("is not JSON: byte %d of %d", syntax.Offset, len(text))
	}
	return errors.New("is not JSON")
}

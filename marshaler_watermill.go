package redischannels

import (
	"bytes"
	"strings"

	"github.com/ThreeDotsLabs/watermill/message"
)

// WatermillMarshaler is the default wire format: that of watermill-redisstream,
// byte for byte, so that publishers and subscribers of both libraries can share
// a stream. An entry has three fields, always in this order:
//
//	_watermill_message_uuid  the UUID
//	metadata                 a msgpack map of strings, empty without metadata
//	payload                  the payload as it is
//
// It is safe for concurrent use and has no state.
type WatermillMarshaler struct{}

// Marshal implements [Marshaler]. Equal messages have equal fields: the metadata
// is sorted by key. The field `payload` is the payload itself, not a copy. A
// message whose metadata has a value under `_watermill_message_uuid` is an error.
func (WatermillMarshaler) Marshal(topic string, msg *message.Message) ([]Field, error) {
	uuid, metadata, err := marshalIDs(topic, msg)
	if err != nil {
		return nil, err
	}
	return []Field{
		{Name: uuidField, Value: uuid},
		{Name: metadataField, Value: metadata},
		{Name: payloadField, Value: msg.Payload},
	}, nil
}

// Unmarshal implements [Unmarshaler]. The message has memory of its own, and its
// metadata is never nil. Missing fields other than the UUID are empty, further
// fields are ignored, apart from those of a dead letter, which become metadata.
// Every error is a [*DecodeError]: no UUID, one of the three fields twice, or
// metadata that is anything else than one whole msgpack map of strings (binary
// and nil are taken as strings) without repeated keys.
func (WatermillMarshaler) Unmarshal(entry Entry) (*message.Message, error) {
	uuid := once{name: uuidField}
	metadata := once{name: metadataField}
	payload := once{name: payloadField}
	dead := false
	for i := range entry.Fields {
		switch f := &entry.Fields[i]; f.Name {
		case uuidField:
			uuid.set(f.Value)
		case metadataField:
			metadata.set(f.Value)
		case payloadField:
			payload.set(f.Value)
		default:
			dead = dead || strings.HasPrefix(f.Name, deadPrefix)
		}
	}
	if uuid.count == 0 {
		return nil, entry.undecodable("field " + uuidField + " is missing")
	}
	if err := entry.checkOnce(&uuid, &metadata, &payload); err != nil {
		return nil, err
	}
	return entry.message(string(uuid.value), metadata.value, bytes.Clone(payload.value), dead)
}

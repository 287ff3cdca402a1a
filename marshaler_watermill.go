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
func (w WatermillMarshaler) Unmarshal(entry Entry) (*message.Message, error) {
	p, err := w.parts(entry)
	if err != nil {
		return nil, err
	}
	return entry.message(string(p.uuid), p, bytes.Clone(p.payload))
}

// UnmarshalPayload implements [PayloadUnmarshaler]. The payload is a part of the entry.
func (w WatermillMarshaler) UnmarshalPayload(entry Entry) ([]byte, message.Metadata, error) {
	p, err := w.parts(entry)
	if err != nil {
		return nil, nil, err
	}
	return entry.payload(p)
}

func (WatermillMarshaler) parts(entry Entry) (p parts, err error) {
	uuid := once{name: uuidField}
	metadata := once{name: metadataField}
	payload := once{name: payloadField}
	for i := range entry.Fields {
		switch f := &entry.Fields[i]; f.Name {
		case uuidField:
			uuid.set(f.Value)
		case metadataField:
			metadata.set(f.Value)
		case payloadField:
			payload.set(f.Value)
		default:
			p.dead = p.dead || strings.HasPrefix(f.Name, deadPrefix)
		}
	}
	if uuid.count == 0 {
		return p, entry.undecodable("field " + uuidField + " is missing")
	}
	p.uuid, p.metadata, p.payload = uuid.value, metadata.value, payload.value
	return p, entry.checkOnce(&uuid, &metadata, &payload)
}

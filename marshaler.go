package redischannels

import (
	"bytes"
	"fmt"
	"reflect"
	"strings"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/flaminco/redischannels/internal/metadata"
	"github.com/flaminco/redischannels/internal/stream"
)

// Field is one field of a stream entry. Redis keeps the order of fields and
// allows a name to occur more than once.
type Field struct {
	Name  string
	Value []byte
}

// Entry is a stream entry for an [Unmarshaler].
type Entry struct {
	Topic  string  // Redis key of the stream
	ID     string  // entry ID, `milliseconds-sequence`
	Fields []Field // in the order in which they were written
}

// Get returns the value of the first field of that name.
func (e Entry) Get(name string) (value []byte, ok bool) {
	for i := range e.Fields {
		if e.Fields[i].Name == name {
			return e.Fields[i].Value, true
		}
	}
	return nil, false
}

// Message returns the message of the entry, decoded by an Unmarshaler: the one of the consumers, or
// WatermillMarshaler if it is nil. The error is a *[DecodeError].
func (e Entry) Message(unmarshaler Unmarshaler) (*message.Message, error) {
	if unmarshaler == nil {
		unmarshaler = WatermillMarshaler{}
	}
	return unmarshalMessage(unmarshaler, e)
}

// Marshaler encodes a message as the fields of a stream entry. It must not keep or change the
// message, and must be safe for concurrent use. It must return at least one field: Redis has no
// empty entries.
type Marshaler interface {
	Marshal(topic string, msg *message.Message) ([]Field, error)
}

// Unmarshaler decodes a stream entry as a message. It must be safe for concurrent use. The Fields
// slice and its values belong to the reader and are valid only until Unmarshal returns, so it
// must copy those that it keeps; names, Topic and ID may be kept. An error or a panic marks the
// entry as undecodable. Its text is written to logs and to the dead letter, so it must contain
// nothing of the payload.
type Unmarshaler interface {
	Unmarshal(entry Entry) (*message.Message, error)
}

// PayloadUnmarshaler is an [Unmarshaler] that can also return payload and metadata without
// allocating a message, which is the largest cost for small values. Typed channels use it. The
// formats of this package implement it.
//
// For a type that embeds another PayloadUnmarshaler its Unmarshal is used, because the inherited
// UnmarshalPayload may not match.
type PayloadUnmarshaler interface {
	Unmarshaler
	// UnmarshalPayload returns the payload and the metadata of an entry. The payload may be a
	// part of a field: it is valid only as long as the fields are. The caller owns the metadata,
	// which is nil if there is none. Errors are those of Unmarshal.
	UnmarshalPayload(entry Entry) (payload []byte, metadata message.Metadata, err error)
}

// payloadUnmarshaler returns an Unmarshaler as a PayloadUnmarshaler, or nil.
func payloadUnmarshaler(u Unmarshaler) PayloadUnmarshaler {
	p, ok := u.(PayloadUnmarshaler)
	if !ok {
		return nil
	}
	t := reflect.TypeOf(u)
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	for i := 0; t.Kind() == reflect.Struct && i < t.NumField(); i++ {
		field := t.Field(i)
		if _, promoted := field.Type.MethodByName("UnmarshalPayload"); field.Anonymous && promoted {
			return nil
		}
	}
	return p
}

// Names of the fields beside the payload. The first two are those of watermill-redisstream.
const (
	uuidField     = metadata.UUIDField
	metadataField = "metadata"
	payloadField  = "payload"
)

// Fields that a dead letter has after those of the entry. All begin with deadPrefix.
const (
	deadPrefix        = "_dead_"
	deadReasonField   = stream.DeadReasonField
	deadEntryIDField  = stream.DeadEntryIDField
	deadTopicField    = stream.DeadTopicField
	deadGroupField    = stream.DeadGroupField
	deadConsumerField = stream.DeadConsumerField
	deadCountField    = stream.DeadCountField
	deadTimeField     = stream.DeadTimeField
)

// Metadata keys of a message that was read from a dead-letter stream, beside
// those of Watermill's PoisonQueue middleware: `reason_poisoned`,
// `topic_poisoned`, `handler_poisoned` (the consumer group) and
// `subscriber_poisoned` (the consumer).
const (
	DeadEntryIDKey = "_dead_entry_id" // ID of the entry in its original stream
	DeadCountKey   = "_dead_count"    // number of deliveries to a handler, decimal
	DeadTimeKey    = "_dead_time"     // when it was dead-lettered, RFC 3339 in UTC with milliseconds
)

// deadKey returns the metadata key of a dead-letter field, or an empty string for any other
// field. The names of the poison keys are repeated here because their package has more
// dependencies.
func deadKey(field string) string {
	switch field {
	case deadReasonField:
		return "reason_poisoned"
	case deadTopicField:
		return "topic_poisoned"
	case deadGroupField:
		return "handler_poisoned"
	case deadConsumerField:
		return "subscriber_poisoned"
	case deadEntryIDField:
		return DeadEntryIDKey
	case deadCountField:
		return DeadCountKey
	case deadTimeField:
		return DeadTimeKey
	}
	return ""
}

// showDeadLetter adds the values of the dead-letter fields to the metadata. If one occurs twice,
// because the entry was dead-lettered from a dead-letter stream, the last one is used.
func showDeadLetter(metadata message.Metadata, fields []Field) {
	for i := range fields {
		if key := deadKey(fields[i].Name); key != "" {
			metadata[key] = string(fields[i].Value)
		}
	}
}

// once is a field that an entry may have at most once.
type once struct {
	name  string
	value []byte
	count int
}

func (o *once) set(value []byte) {
	o.value = value
	o.count++
}

// parts are the parts of a message in the fields of an entry.
type parts struct {
	uuid, metadata, payload []byte
	dead                    bool // there may be dead-letter fields
}

// message returns a message with its own memory, except for the payload.
func (e Entry) message(uuid string, p parts, payload []byte) (*message.Message, error) {
	msg := message.NewMessage(uuid, payload)
	if err := e.unmarshalMetadata(msg.Metadata, p); err != nil {
		return nil, err
	}
	return msg, nil
}

// payload returns the payload and the metadata, which is nil if there is none.
func (e Entry) payload(p parts) ([]byte, message.Metadata, error) {
	if len(p.metadata) == 0 && !p.dead {
		return p.payload, nil, nil
	}
	all := make(message.Metadata)
	if err := e.unmarshalMetadata(all, p); err != nil {
		return nil, nil, err
	}
	return p.payload, all, nil
}

func (e Entry) unmarshalMetadata(to message.Metadata, p parts) error {
	if err := metadata.Unmarshal(to, p.metadata); err != nil {
		return e.undecodable(err.Error())
	}
	if p.dead {
		showDeadLetter(to, e.Fields)
	}
	return nil
}

// undecodable returns the error of an entry that cannot be decoded. The reason is written to logs
// and to dead-letter streams, so it must contain nothing of the entry.
func (e Entry) undecodable(reason string) error {
	return &DecodeError{Topic: e.Topic, EntryID: e.ID, Reason: reason}
}

// checkOnce reports the first of the fields that occurs twice. The intended value of the two is
// unknown.
func (e Entry) checkOnce(fields ...*once) error {
	for _, f := range fields {
		if f.count > 1 {
			return e.undecodable("field " + f.name + " occurs more than once")
		}
	}
	return nil
}

// marshalIDs returns the UUID and the metadata in wire form.
func marshalIDs(topic string, msg *message.Message) (uuid, raw []byte, err error) {
	uuid, raw, err = metadata.Marshal(msg.UUID, msg.Metadata)
	if err != nil {
		return nil, nil, marshalError(topic, msg, err.Error())
	}
	return uuid, raw, nil
}

// marshalError reports a message that has no wire form. The reason must contain nothing of its
// payload or metadata.
func marshalError(topic string, msg *message.Message, reason string) error {
	return fmt.Errorf("redischannels: cannot marshal message %q for topic %q: %s", msg.UUID, topic, reason)
}

// WatermillMarshaler is the default wire format: that of watermill-redisstream,
// byte for byte, so that publishers and subscribers of both libraries can share
// a stream. An entry has three fields, always in this order:
//
//	_watermill_message_uuid  the UUID
//	metadata                 a msgpack map of strings, empty without metadata
//	payload                  the payload, unchanged
//
// It is safe for concurrent use and has no state.
type WatermillMarshaler struct{}

// Marshal implements [Marshaler]. Equal messages have equal fields: the metadata
// is sorted by key. The field `payload` is the payload itself, not a copy. A
// message whose metadata has a value under `_watermill_message_uuid` is an error.
func (WatermillMarshaler) Marshal(topic string, msg *message.Message) ([]Field, error) {
	uuid, raw, err := marshalIDs(topic, msg)
	if err != nil {
		return nil, err
	}
	return []Field{
		{Name: uuidField, Value: uuid},
		{Name: metadataField, Value: raw},
		{Name: payloadField, Value: msg.Payload},
	}, nil
}

// Unmarshal implements [Unmarshaler]. The message has its own memory, and its metadata is never
// nil. Missing fields other than the UUID are empty. Other fields are ignored, except those of a
// dead letter, which become metadata. Every error is a [*DecodeError]: no UUID, one of the three
// fields twice, or metadata that is not one complete msgpack map of strings (binary and nil are
// accepted as strings) without repeated keys.
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

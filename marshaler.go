package redischannels

import (
	"fmt"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/flaminco/redischannels/internal/stream"
)

// Field is one field of a stream entry. Redis keeps the order of fields and
// allows a name to occur more than once.
type Field struct {
	Name  string
	Value []byte
}

// Entry is a stream entry as an [Unmarshaler] sees it.
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

// Marshaler turns a message into the fields of a stream entry. It must not keep
// or change the message, and is called from several goroutines at once. At least
// one field is needed: Redis has no empty entries.
type Marshaler interface {
	Marshal(topic string, msg *message.Message) ([]Field, error)
}

// Unmarshaler turns a stream entry into a message. It is called from several
// goroutines at once. The Fields slice and the values in it belong to the reader
// and are valid only until Unmarshal returns: what is kept must be copied; names,
// Topic and ID may be kept. An error, or a panic, marks the entry as undecodable; its
// text ends in logs and in the dead letter, so it must have nothing of the payload.
type Unmarshaler interface {
	Unmarshal(entry Entry) (*message.Message, error)
}

// Names of the fields that carry what no payload has room for. The first two are
// those of watermill-redisstream.
const (
	uuidField     = "_watermill_message_uuid"
	metadataField = "metadata"
	payloadField  = "payload"
)

// Fields that an entry gets on its way to a dead-letter stream, behind its own.
// All begin with deadPrefix.
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
	DeadCountKey   = "_dead_count"    // how often it was handed to a handler, a decimal number
	DeadTimeKey    = "_dead_time"     // when it was given up, RFC 3339 in UTC with milliseconds
)

// deadKey returns the metadata key under which a dead-letter field is shown, or
// an empty string for every other field. The names of the poison keys are
// repeated here because their package would bring dependencies with it.
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

// showDeadLetter adds what the dead-letter fields say to the metadata. Where one
// occurs twice, because the entry died in a dead-letter stream, the last counts.
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

// message makes a message with memory of its own from fields that were taken out
// of the entry. Only dead tells whether to look for dead-letter fields.
func (e Entry) message(uuid string, metadata, payload []byte, dead bool) (*message.Message, error) {
	msg := message.NewMessage(uuid, payload)
	if err := unmarshalMetadata(msg.Metadata, metadata); err != nil {
		return nil, e.undecodable(err.Error())
	}
	if dead {
		showDeadLetter(msg.Metadata, e.Fields)
	}
	return msg, nil
}

// undecodable makes the error of an entry that is no message. The reason must
// not contain anything that was read from the entry: it ends in logs and in
// dead-letter streams.
func (e Entry) undecodable(reason string) error {
	return &DecodeError{Topic: e.Topic, EntryID: e.ID, Reason: reason}
}

// checkOnce reports the first of the fields that occurs twice. Which of the two
// values was meant cannot be known.
func (e Entry) checkOnce(fields ...*once) error {
	for _, f := range fields {
		if f.count > 1 {
			return e.undecodable("field " + f.name + " occurs more than once")
		}
	}
	return nil
}

// marshalError reports a message that has no wire form. The reason must not
// contain anything of its payload or metadata.
func marshalError(topic string, msg *message.Message, reason string) error {
	return fmt.Errorf("redischannels: cannot marshal message %q for topic %q: %s", msg.UUID, topic, reason)
}

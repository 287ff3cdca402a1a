package redischannels

import (
	"github.com/ThreeDotsLabs/watermill/message"
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
// Topic and ID may be kept. An error, or a panic, marks the entry as undecodable.
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

// deadPrefix begins the names of the fields that an entry gets on its way to a
// dead-letter stream.
const deadPrefix = "_dead_"

// Fields that an entry gets on its way to a dead-letter stream, behind its own.
const (
	deadReasonField   = deadPrefix + "reason"
	deadEntryIDField  = deadPrefix + "entry_id"
	deadTopicField    = deadPrefix + "topic"
	deadGroupField    = deadPrefix + "group"
	deadConsumerField = deadPrefix + "consumer"
	deadCountField    = deadPrefix + "count"
	deadTimeField     = deadPrefix + "time"
)

// Metadata keys of a message that was read from a dead-letter stream, beside
// those of Watermill's PoisonQueue middleware: `reason_poisoned`,
// `topic_poisoned`, `handler_poisoned` (the consumer group) and
// `subscriber_poisoned` (the consumer).
const (
	DeadEntryIDKey = deadEntryIDField // ID of the entry in its original stream
	DeadCountKey   = deadCountField   // how often it was handed to a handler, a decimal number
	DeadTimeKey    = deadTimeField    // when it was given up
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

// undecodable makes the error of an entry that is no message. The reason must
// not contain anything that was read from the entry.
func (e Entry) undecodable(reason string) error {
	return &DecodeError{Topic: e.Topic, EntryID: e.ID, Reason: reason}
}

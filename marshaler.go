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

// WatermillMarshaler is the default wire format.
type WatermillMarshaler struct{}

// Marshal implements Marshaler.
func (WatermillMarshaler) Marshal(string, *message.Message) ([]Field, error) { panic("not yet") }

// Unmarshal implements Unmarshaler.
func (WatermillMarshaler) Unmarshal(Entry) (*message.Message, error) { panic("not yet") }

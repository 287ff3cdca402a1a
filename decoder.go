package redischannels

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/flaminco/redischannels/internal/source"
	"github.com/flaminco/redischannels/internal/stream"
)

// maxNames bounds the number of field names that a decoder keeps, and the length of each: entries
// of foreign producers may have any names.
const maxNames = 256

// entryDecoder decodes the entries of a topic as messages or payloads. Its errors are
// *DecodeError. It is safe for concurrent use and holds no lock while an Unmarshaler runs.
type entryDecoder struct {
	topic       string
	unmarshaler Unmarshaler
	payloads    PayloadUnmarshaler // the same, nil if it makes only messages
	maxPayload  int
}

func newEntryDecoder(topic string, unmarshaler Unmarshaler, maxPayload int) *entryDecoder {
	return &entryDecoder{
		topic: topic, unmarshaler: unmarshaler, payloads: payloadUnmarshaler(unmarshaler), maxPayload: maxPayload,
	}
}

// message returns the message of an entry.
func (d *entryDecoder) message(e *stream.Entry) (msg *message.Message, err error) {
	err = d.decode(e, func(entry Entry) (err error) {
		msg, err = unmarshalMessage(d.unmarshaler, entry)
		return err
	})
	return msg, err
}

// payload returns the payload and the metadata of the message of an entry. The payload is
// valid only as long as the entry.
func (d *entryDecoder) payload(e *stream.Entry) (payload []byte, metadata message.Metadata, err error) {
	if d.payloads == nil {
		msg, err := d.message(e)
		if err != nil {
			return nil, nil, err
		}
		return msg.Payload, msg.Metadata, nil
	}
	err = d.decode(e, func(entry Entry) error {
		return unmarshalSafely(entry, func(entry Entry) (err error) {
			payload, metadata, err = d.payloads.UnmarshalPayload(entry)
			return err
		})
	})
	return payload, metadata, err
}

// decode calls unmarshal with an entry; unmarshal must not panic.
func (d *entryDecoder) decode(e *stream.Entry, unmarshal func(Entry) error) error {
	if d.maxPayload > 0 && e.Size > d.maxPayload {
		return &DecodeError{Topic: d.topic, EntryID: e.Text, Reason: tooLarge(e.Size, d.maxPayload)}
	}
	fields := spareFields.Get().(*entryFields)
	defer func() {
		fields.forget()
		spareFields.Put(fields)
	}()
	e.Fields(fields.add)
	return unmarshal(Entry{Topic: d.topic, ID: e.Text, Fields: fields.list})
}

// unmarshalMessage returns the message of an entry, or a *DecodeError.
func unmarshalMessage(unmarshaler Unmarshaler, entry Entry) (msg *message.Message, err error) {
	err = unmarshalSafely(entry, func(entry Entry) (err error) {
		if msg, err = unmarshaler.Unmarshal(entry); msg == nil && err == nil {
			return errNoMessage
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return msg, nil
}

var errNoMessage = errors.New("returned neither message nor error")

// unmarshalSafely returns a panic or an error of an Unmarshaler as a *DecodeError. Its text may
// quote the payload, so it is the cause of the error and not part of the reason.
func unmarshalSafely(entry Entry, unmarshal func(Entry) error) (err error) {
	failure := func(reason string, cause error) error {
		return &DecodeError{Topic: entry.Topic, EntryID: entry.ID, Reason: reason, Err: cause}
	}
	defer func() {
		if v := recover(); v != nil {
			err = failure("the unmarshaler panicked", fmt.Errorf("panic: %v", v))
		}
	}()
	err = unmarshal(entry)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, errNoMessage):
		return failure("the unmarshaler "+errNoMessage.Error(), nil)
	case !isDecodeError(err):
		return failure("the unmarshaler failed", err)
	}
	return err
}

// isDecodeError reports whether an error is a *DecodeError itself: the text of one that wraps it
// may quote the payload.
func isDecodeError(err error) bool {
	_, ok := err.(*DecodeError) //nolint:errorlint // see above
	return ok
}

func tooLarge(size, limit int) string {
	return fmt.Sprintf("has %d bytes, more than MaxPayload %d", size, limit)
}

// entryFields are the fields of one entry. They keep the names for the next entry, so that the
// same names are not allocated for each entry.
type entryFields struct {
	list  []Field
	names map[string]string
}

var spareFields = sync.Pool{New: func() any { return &entryFields{names: make(map[string]string)} }}

func (f *entryFields) add(name, value []byte) {
	n := len(f.list)
	if n < cap(f.list) { // usually the names are those of the previous entry
		if last := &f.list[:n+1][n]; last.Name == string(name) {
			last.Value = value
			f.list = f.list[:n+1]
			return
		}
	}
	s, ok := f.names[string(name)]
	if !ok {
		s = string(name)
		if len(f.names) < maxNames && len(s) <= maxNames {
			f.names[s] = s
		}
	}
	f.list = append(f.list, Field{Name: s, Value: value})
}

// forget drops the values and keeps names that the next entry is likely to have.
func (f *entryFields) forget() {
	if len(f.list) > maxNames {
		f.list = nil
	}
	for i := range f.list {
		f.list[i].Value = nil // keeps no reply alive
		if len(f.list[i].Name) > maxNames {
			f.list[i].Name = ""
		}
	}
	f.list = f.list[:0]
}

// decoding decodes the payloads and messages of attempts of a transport. Errors other than
// *DecodeError may quote the payload.
type decoding interface {
	// payload returns the payload, which is valid until the entry of the attempt is released, and
	// the metadata, which may be nil.
	payload(a *source.Attempt) ([]byte, message.Metadata, error)
	// message returns a new message for each attempt.
	message(a *source.Attempt) (*message.Message, error)
	// context returns the context of the handler, or nil if the attempt is its context.
	context(a *source.Attempt) context.Context
}

// messageDecoding is that of attempts which have a message of another subscriber.
type messageDecoding struct{}

func (messageDecoding) payload(a *source.Attempt) ([]byte, message.Metadata, error) {
	return a.Message.Payload, a.Message.Metadata, nil
}

func (messageDecoding) message(a *source.Attempt) (*message.Message, error) {
	return a.Message, nil
}

// context returns the context of the message, which ends with the message. It belongs to the
// attempt of the message, or to none, whatever the values of other contexts.
func (messageDecoding) context(a *source.Attempt) context.Context {
	ctx := a.Message.Context()
	return source.NewContext(ctx, source.FromContext(ctx))
}

// entryDecoding is that of attempts at entries of a stream.
type entryDecoding struct{ *entryDecoder }

func (s *Subscriber) decoding(topic string) entryDecoding {
	return entryDecoding{newEntryDecoder(topic, s.cfg.Unmarshaler, s.cfg.MaxPayload)}
}

func (d entryDecoding) payload(a *source.Attempt) ([]byte, message.Metadata, error) {
	if a.Message != nil { // made for the ordering key
		return a.Message.Payload, a.Message.Metadata, nil
	}
	return d.entryDecoder.payload(&a.Entry)
}

func (d entryDecoding) message(a *source.Attempt) (*message.Message, error) {
	if a.Message != nil {
		return a.Message, nil
	}
	return d.entryDecoder.message(&a.Entry)
}

func (entryDecoding) context(*source.Attempt) context.Context { return nil }

// pubSubDecoding is that of attempts at messages of Pub/Sub.
type pubSubDecoding struct{ subscriber *PubSubSubscriber }

func (d pubSubDecoding) payload(a *source.Attempt) ([]byte, message.Metadata, error) {
	msg, err := d.message(a)
	if err != nil {
		return nil, nil, err
	}
	return msg.Payload, msg.Metadata, nil
}

func (d pubSubDecoding) message(a *source.Attempt) (*message.Message, error) {
	return d.subscriber.message(a)
}

func (pubSubDecoding) context(*source.Attempt) context.Context { return nil }

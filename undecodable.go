package redischannels

import (
	"errors"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/flaminco/redischannels/internal/source"
)

// undecodableKey marks a message that stands for an entry which makes none, so that
// the reader of a channel is told of it. The entry in Redis is not touched by that.
const undecodableKey = "\x00redischannels undecodable"

// undecodable returns the error of a message that stands for an entry which makes none, and
// nil for others.
func undecodable(msg *message.Message) *DecodeError {
	reason, ok := msg.Metadata[undecodableKey]
	if !ok {
		return nil
	}
	return &DecodeError{Reason: reason}
}

// tellingUnmarshaler makes such messages, also of entries that are too large.
type tellingUnmarshaler struct {
	Unmarshaler
	maxPayload int // UnlimitedPayload: none is
}

// Unmarshal implements Unmarshaler.
func (u tellingUnmarshaler) Unmarshal(entry Entry) (*message.Message, error) {
	size := 0
	for i := range entry.Fields {
		size += len(entry.Fields[i].Name) + len(entry.Fields[i].Value)
	}
	return telling(entry.ID, func() (*message.Message, error) {
		if u.maxPayload > 0 && size > u.maxPayload {
			return nil, &DecodeError{Reason: tooLarge(size, u.maxPayload)}
		}
		return u.Unmarshaler.Unmarshal(entry)
	}), nil
}

// tellingPubSubUnmarshaler does the same for Pub/Sub.
type tellingPubSubUnmarshaler struct{ PubSubUnmarshaler }

// Unmarshal implements PubSubUnmarshaler.
func (u tellingPubSubUnmarshaler) Unmarshal(topic string, data []byte) (*message.Message, error) {
	return telling(watermill.NewUUID(), func() (*message.Message, error) { return u.PubSubUnmarshaler.Unmarshal(topic, data) }), nil
}

// telling returns what unmarshal does, or the message that stands for its failure.
func telling(uuid string, unmarshal func() (*message.Message, error)) (msg *message.Message) {
	reason := "the unmarshaler failed"
	defer func() {
		if r := recover(); r != nil {
			msg, reason = nil, "the unmarshaler panicked"
		}
		if msg == nil {
			msg = message.NewMessage(uuid, nil)
			msg.Metadata[undecodableKey] = reason
		}
	}()
	msg, err := unmarshal()
	if err != nil {
		msg = nil
		var d *DecodeError
		if errors.As(err, &d) {
			reason = d.Reason
		}
	}
	return msg
}

// markedDecoding is messageDecoding for messages that may be such.
type markedDecoding struct{ messageDecoding }

func (d markedDecoding) payload(a *source.Attempt) ([]byte, message.Metadata, error) {
	if failure := undecodable(a.Message); failure != nil {
		return nil, nil, failure
	}
	return d.messageDecoding.payload(a)
}

func (d markedDecoding) message(a *source.Attempt) (*message.Message, error) {
	if failure := undecodable(a.Message); failure != nil {
		return nil, failure
	}
	return a.Message, nil
}

package redischannels

import (
	"context"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/flaminco/redischannels/internal/source"
)

// decoding is how a transport makes payloads and messages of attempts. Errors that are no
// *DecodeError may quote the payload.
type decoding interface {
	// payload returns the payload, which is valid until the entry of the attempt is released, and
	// the metadata, which may be nil.
	payload(a *source.Attempt) ([]byte, message.Metadata, error)
	// message returns a message of its own for each attempt.
	message(a *source.Attempt) (*message.Message, error)
	// context returns the context of the handler if it is not the attempt, or nil.
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

// context returns that of the message, which ends when the message does. It belongs to the
// attempt that the message stands for, or to none, whatever the values of other contexts.
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

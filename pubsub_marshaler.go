package redischannels

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
)

// PubSubMarshaler encodes a message as the bytes that are published to a Pub/Sub channel. It must
// not keep or change the message, and must be safe for concurrent use.
type PubSubMarshaler interface {
	Marshal(topic string, msg *message.Message) ([]byte, error)
}

// PubSubUnmarshaler decodes the bytes from a Pub/Sub channel as a message. It must be safe for
// concurrent use. The bytes belong to the subscriber: it must not change them, and must copy
// those that it keeps. An error or a panic marks the message as undecodable. Its text is written
// to logs, so it must contain nothing of the payload.
type PubSubUnmarshaler interface {
	Unmarshal(topic string, data []byte) (*message.Message, error)
}

// envelopeVersion is the first byte of an envelope. JSON and printable text do not begin with it.
const envelopeVersion = 1

// EnvelopeMarshaler is the wire format of Pub/Sub messages among services that use
// this library: UUID, metadata and payload in one string of bytes.
//
//	version   one byte, 1
//	UUID      its length, its bytes
//	metadata  the number of pairs; for each the key and the value, each as length and
//	          bytes, sorted by key
//	payload   the remaining bytes
//
// Lengths and the number are unsigned LEB128 in the shortest form. Equal messages
// have equal bytes. It is safe for concurrent use and has no state.
type EnvelopeMarshaler struct{}

var (
	_ PubSubMarshaler   = EnvelopeMarshaler{}
	_ PubSubUnmarshaler = EnvelopeMarshaler{}
	_ PubSubMarshaler   = RawPayload{}
	_ PubSubUnmarshaler = RawPayload{}
)

// Marshal implements [PubSubMarshaler]. It never fails.
func (EnvelopeMarshaler) Marshal(_ string, msg *message.Message) ([]byte, error) {
	const most = binary.MaxVarintLen32
	size := 1 + most + len(msg.UUID) + most + len(msg.Payload)
	for key, value := range msg.Metadata {
		size += most + len(key) + most + len(value)
	}
	data := append(make([]byte, 0, size), envelopeVersion)
	data = appendText(data, msg.UUID)
	data = binary.AppendUvarint(data, uint64(len(msg.Metadata)))
	if len(msg.Metadata) > 0 {
		for _, key := range slices.Sorted(maps.Keys(msg.Metadata)) {
			data = appendText(data, key)
			data = appendText(data, msg.Metadata[key])
		}
	}
	return append(data, msg.Payload...), nil
}

func appendText(data []byte, text string) []byte {
	data = binary.AppendUvarint(data, uint64(len(text)))
	return append(data, text...)
}

// Unmarshal implements [PubSubUnmarshaler]. The message has its own memory, and its metadata is
// never nil. Every error is a [*DecodeError]: another version, a part that ends early, a length
// that is not in its shortest form, or metadata that is not sorted or has a key twice.
func (EnvelopeMarshaler) Unmarshal(topic string, data []byte) (*message.Message, error) {
	r := envelopeReader{rest: data}
	uuid, metadata, err := r.head()
	if err != nil {
		return nil, &DecodeError{Topic: topic, Reason: err.Error()}
	}
	msg := message.NewMessage(uuid, bytes.Clone(r.rest))
	for i := range metadata {
		msg.Metadata[metadata[i][0]] = metadata[i][1]
	}
	return msg, nil
}

var (
	errEnvelopeEmpty  = errors.New("it is empty; an envelope begins with its version")
	errEnvelopeCut    = errors.New("the envelope is cut short")
	errEnvelopeNumber = errors.New("the envelope has a length that is not in its shortest form")
	errEnvelopeOrder  = errors.New("the envelope has metadata that is not sorted, or a key twice")
)

// envelopeReader reads an envelope. It compares each length with the remaining bytes before it
// uses the length.
type envelopeReader struct{ rest []byte }

func (r *envelopeReader) head() (uuid string, metadata [][2]string, err error) {
	if len(r.rest) == 0 {
		return "", nil, errEnvelopeEmpty
	}
	if v := r.rest[0]; v != envelopeVersion {
		return "", nil, fmt.Errorf("it is not an envelope of version %d: the first byte is 0x%02x", envelopeVersion, v)
	}
	r.rest = r.rest[1:]
	if uuid, err = r.text(); err != nil {
		return "", nil, err
	}
	pairs, err := r.number()
	if err != nil {
		return "", nil, err
	}
	if pairs > uint64(len(r.rest)/2) { // a pair has at least two lengths
		return "", nil, errEnvelopeCut
	}
	for i := range pairs {
		var pair [2]string
		for k := range pair {
			if pair[k], err = r.text(); err != nil {
				return "", nil, err
			}
		}
		if i > 0 && pair[0] <= metadata[i-1][0] {
			return "", nil, errEnvelopeOrder
		}
		metadata = append(metadata, pair)
	}
	return uuid, metadata, nil
}

func (r *envelopeReader) number() (uint64, error) {
	v, n := binary.Uvarint(r.rest)
	switch {
	case n == 0:
		return 0, errEnvelopeCut
	case n < 0 || n > 1 && r.rest[n-1] == 0:
		return 0, errEnvelopeNumber
	}
	r.rest = r.rest[n:]
	return v, nil
}

func (r *envelopeReader) text() (string, error) {
	n, err := r.number()
	if err != nil {
		return "", err
	}
	if n > uint64(len(r.rest)) {
		return "", errEnvelopeCut
	}
	text := string(r.rest[:n])
	r.rest = r.rest[n:]
	return text, nil
}

// RawPayload publishes only the payload, for producers and consumers without this library, such
// as those of the .NET library Flaminco.RedisChannels, whose payload is a JSON text. A message
// that is read gets a new UUID and no metadata.
//
// It is safe for concurrent use.
type RawPayload struct {
	// DropMetadata publishes messages with metadata without it. Otherwise they are refused,
	// because the metadata would be lost without a report. Watermill's middleware and its cqrs
	// component set metadata. The UUID is never published.
	DropMetadata bool
}

// Marshal implements [PubSubMarshaler]. The payload is sent unchanged, without a copy.
func (r RawPayload) Marshal(topic string, msg *message.Message) ([]byte, error) {
	if len(msg.Metadata) > 0 && !r.DropMetadata {
		return nil, marshalError(topic, msg, "RawPayload has no place for its metadata; set DropMetadata to publish without")
	}
	return msg.Payload, nil
}

// Unmarshal implements [PubSubUnmarshaler]. It never fails.
func (RawPayload) Unmarshal(_ string, data []byte) (*message.Message, error) {
	return message.NewMessage(watermill.NewUUID(), bytes.Clone(data)), nil
}

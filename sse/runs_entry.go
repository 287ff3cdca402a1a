package sse

import (
	"errors"
	"fmt"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/feed"
	"github.com/flaminco/redischannels/internal/stream"
)

// Names of the events of runs besides those of pieces.
const (
	// EventStart is the first event of a viewer that begins at the beginning. A viewer whose run
	// was restarted also receives it, and must discard the earlier pieces. Its data is a
	// [RunStart] as JSON.
	EventStart = "start"
	// EventEnd is the last event of a run, and of a channel whose stream was completed
	// ([redischannels.Writer.CompleteStream]): the response ends. Its data is a [RunEnd] as JSON.
	EventEnd = "end"
)

// RunStart is the data of EventStart, the same for all viewers.
type RunStart struct {
	ID       string            `json:"id"`
	Epoch    string            `json:"epoch"`
	Started  time.Time         `json:"started"`
	Metadata map[string]string `json:"metadata,omitempty"`
}

// RunEnd is the data of EventEnd.
type RunEnd struct {
	Status RunStatus `json:"status"`
	Error  string    `json:"error,omitempty"` // of RunFailed
}

// runFormat decodes the entries of runs as messages: the payload is that of a piece, or the text
// of an end; the other fields are metadata.
type runFormat struct{}

// Unmarshal implements redischannels.Unmarshaler.
func (f runFormat) Unmarshal(entry redischannels.Entry) (*message.Message, error) {
	payload, metadata, err := f.UnmarshalPayload(entry)
	if err != nil {
		return nil, err
	}
	msg := message.NewMessage(entry.ID, append([]byte(nil), payload...))
	msg.Metadata = metadata
	return msg, nil
}

// UnmarshalPayload implements redischannels.PayloadUnmarshaler.
func (runFormat) UnmarshalPayload(entry redischannels.Entry) (payload []byte, metadata message.Metadata, err error) {
	metadata = make(message.Metadata, 2)
	for _, field := range entry.Fields {
		if field.Name == stream.RunPayloadField {
			payload = field.Value
		} else {
			metadata[field.Name] = string(field.Value)
		}
	}
	if payload == nil {
		return nil, nil, errors.New("not an entry of a run")
	}
	return payload, metadata, nil
}

// event converts a delivery or error of a reader of a run to an event, or returns an error that
// has no event.
func (h *RunsHandler[T]) event(d redischannels.Delivery[[]byte], err error) (*feed.Event, error) {
	if err != nil {
		return h.problem(err, func(text string) (stream.ID, string) { id, _ := stream.ParseID(text); return id, text })
	}
	id, _ := stream.ParseID(d.ID) // the text of an ID
	if status := d.Metadata[stream.RunEndField]; status != "" {
		return newEnd(id, d.ID, RunEnd{RunStatus(status), string(d.Value)}), nil
	}
	piece := redischannels.Delivery[T]{ID: d.ID, DeliveryCount: d.DeliveryCount, Metadata: d.Metadata, Time: d.Time}
	if err := h.decode(d.Value, &piece.Value); err != nil {
		h.options.OnError(fmt.Errorf("redischannels/sse: decode %s of a run: %w", d.ID, err))
		return newUndecodable(id, d.ID), nil
	}
	return h.value(piece, id, d.ID), nil
}

// decode decodes a payload. A panic of the codec is an error.
func (h *RunsHandler[T]) decode(payload []byte, value *T) (err error) {
	defer recovered(&err, "the codec")
	return h.runs.codec.Decode(payload, value)
}

package sse

import (
	"encoding/json"
	"errors"
	"fmt"
	"unicode/utf8"

	gosse "github.com/tmaxmax/go-sse"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/feed"
	"github.com/flaminco/redischannels/internal/stream"
)

// event makes an event of what a reader yields, or returns the error that is none.
func (h *Handler[T]) event(d redischannels.Delivery[T], err error) (*feed.Event, error) {
	var gap *redischannels.GapError
	var undecodable *redischannels.DecodeError
	switch {
	case errors.As(err, &gap):
		return newGap(gap), nil
	case errors.As(err, &undecodable):
		h.options.OnError(err)
		return h.undecodable(undecodable.EntryID), nil
	case err != nil:
		return nil, err
	}
	e, err := h.value(d)
	if err != nil {
		h.options.OnError(fmt.Errorf("redischannels/sse: event of %s: %w", d.ID, err))
		return h.undecodable(d.ID), nil
	}
	return e, nil
}

// value makes the event of a value. A panic of the application's functions is an error.
func (h *Handler[T]) value(d redischannels.Delivery[T]) (e *feed.Event, err error) {
	defer func() {
		if r := recover(); r != nil {
			e, err = nil, fmt.Errorf("Event or Encode panicked: %v", r)
		}
	}()
	var m gosse.Message
	if h.options.Event != nil {
		switch name := h.options.Event(d); name {
		case "":
		case EventGap, EventUndecodable:
			return nil, fmt.Errorf("Event returned %q, which is an event of the Handler's own", name)
		default:
			if m.Type, err = gosse.NewType(name); err != nil {
				return nil, err
			}
		}
	}
	var data []byte
	if h.options.Encode != nil {
		data, err = h.options.Encode(d)
	} else {
		data, err = json.Marshal(d.Value)
	}
	if err != nil {
		return nil, fmt.Errorf("encode: %w", err)
	}
	if !utf8.Valid(data) {
		return nil, errors.New("encode: not UTF-8")
	}
	id := h.id(d.ID)
	e = &feed.Event{ID: id, Wire: encode(&m, wireID(id), string(data))}
	if h.options.Filter != nil {
		e.Value = &d
	}
	return e, nil
}

func (h *Handler[T]) undecodable(text string) *feed.Event {
	id := h.id(text)
	return &feed.Event{ID: id, Wire: encodeUndecodable(wireID(id), wireID(id))}
}

// id is the ID of an entry, zero where the transport has none.
func (h *Handler[T]) id(text string) stream.ID {
	if !h.keeps {
		return stream.ID{}
	}
	id, _ := stream.ParseID(text) // it was made of one
	return id
}

// wireID is an ID as clients know it, empty where there is none.
func wireID(id stream.ID) string {
	if id.IsZero() {
		return ""
	}
	return id.String()
}

func encodeUndecodable(id, entryID string) []byte {
	return encode(&gosse.Message{Type: gosse.Type(EventUndecodable)}, id, toJSON(Undecodable{ID: entryID}))
}

// encodeGap returns an EventGap. It has no `id:`, so a client that has seen nothing else sees it
// again after a reconnection.
func encodeGap(from, to string) []byte {
	return encode(&gosse.Message{Type: gosse.Type(EventGap)}, "", toJSON(Gap{From: from, To: to}))
}

func newGap(gap *redischannels.GapError) *feed.Event {
	return &feed.Event{Gap: true, Wire: encodeGap(gap.After, gap.FirstAvailable)}
}

// encode returns an event as it is sent.
func encode(m *gosse.Message, id, data string) []byte {
	if data == "" {
		data = "\n" // one empty line: without any, browsers do not dispatch the event
	}
	m.AppendData(data)
	if id != "" {
		m.ID = gosse.ID(id)
	}
	return toBytes(m)
}

func toBytes(m *gosse.Message) []byte {
	text, _ := m.MarshalText() // never an error: it writes to memory
	return text
}

func toJSON(v any) string {
	text, _ := json.Marshal(v) // structs of strings
	return string(text)
}

package sse

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"unicode/utf8"

	gosse "github.com/tmaxmax/go-sse"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/feed"
	"github.com/flaminco/redischannels/internal/stream"
)

// reserved are the names of events other than values.
var reserved = []string{EventGap, EventUndecodable, EventStart, EventEnd}

// event converts a delivery or error of a reader to an event, or returns an error that has no
// event.
func (h *Handler[T]) event(d redischannels.Delivery[T], err error) (*feed.Event, error) {
	if err != nil {
		return h.problem(err, func(text string) (stream.ID, string) { id := h.id(text); return id, wireID(id) })
	}
	id := h.id(d.ID)
	return h.value(d, id, wireID(id)), nil
}

// problem converts an error in the place of a value to an event, or returns it. ids returns the
// ID of an entry, and its text on the wire.
func (s *server[T]) problem(err error, ids func(text string) (stream.ID, string)) (*feed.Event, error) {
	var gap *redischannels.GapError
	var undecodable *redischannels.DecodeError
	var end *redischannels.CompletedError
	switch {
	case errors.As(err, &gap):
		return &feed.Event{Gap: true, Wire: encodeGap(gap.After, gap.FirstAvailable)}, nil
	case errors.As(err, &undecodable):
		s.options.OnError(err)
		return newUndecodable(ids(undecodable.EntryID)), nil
	case errors.As(err, &end):
		id, text := ids(end.EntryID)
		if end.Reason != "" {
			return newEnd(id, text, RunEnd{RunFailed, end.Reason}), nil
		}
		return newEnd(id, text, RunEnd{Status: RunDone}), nil
	}
	return nil, err
}

// value returns the event of a value, or an EventUndecodable.
func (s *server[T]) value(d redischannels.Delivery[T], id stream.ID, text string) *feed.Event {
	wire, err := s.encode(d, text)
	if err != nil {
		s.options.OnError(fmt.Errorf("redischannels/sse: event of %s: %w", d.ID, err))
		return newUndecodable(id, text)
	}
	e := &feed.Event{ID: id, Wire: wire}
	if s.options.Filter != nil {
		e.Value = &d
	}
	return e
}

// encode returns the wire form of a value. A panic of the application's functions is an error.
func (s *server[T]) encode(d redischannels.Delivery[T], id string) (wire []byte, err error) {
	defer recovered(&err, "Event or Encode")
	var m gosse.Message
	if s.options.Event != nil {
		name := s.options.Event(d)
		if slices.Contains(reserved, name) {
			return nil, fmt.Errorf("Event returned %q, which is reserved for the Handler", name)
		}
		if name != "" {
			if m.Type, err = gosse.NewType(name); err != nil {
				return nil, err
			}
		}
	}
	var data []byte
	if s.options.Encode != nil {
		data, err = s.options.Encode(d)
	} else {
		data, err = json.Marshal(d.Value)
	}
	if err != nil {
		return nil, fmt.Errorf("encode: %w", err)
	}
	if !utf8.Valid(data) {
		return nil, errors.New("encode: not UTF-8")
	}
	return encode(&m, id, string(data)), nil
}

func newEnd(id stream.ID, text string, end RunEnd) *feed.Event {
	return &feed.Event{ID: id, Last: true, Wire: encode(&gosse.Message{Type: gosse.Type(EventEnd)}, text, toJSON(end))}
}

func newUndecodable(id stream.ID, text string) *feed.Event {
	entry := ""
	if !id.IsZero() {
		entry = id.String()
	}
	return &feed.Event{ID: id, Wire: encode(&gosse.Message{Type: gosse.Type(EventUndecodable)}, text, toJSON(Undecodable{ID: entry}))}
}

// id returns the ID of an entry, zero if the transport has no IDs.
func (h *Handler[T]) id(text string) stream.ID {
	if !h.keeps {
		return stream.ID{}
	}
	id, _ := stream.ParseID(text) // the text of an ID
	return id
}

// wireID returns an ID in its wire form, empty without one.
func wireID(id stream.ID) string {
	if id.IsZero() {
		return ""
	}
	return id.String()
}

// encodeGap returns an EventGap. It has no `id:`, so a client that has received no other event
// receives it again after a reconnect.
func encodeGap(from, to string) []byte {
	return encode(&gosse.Message{Type: gosse.Type(EventGap)}, "", toJSON(Gap{From: from, To: to}))
}

// encode returns the wire form of an event.
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

// recovered is deferred around code of the application: a panic becomes the error.
func recovered(err *error, code string) {
	if v := recover(); v != nil {
		*err = fmt.Errorf("%s panicked: %v", code, v)
	}
}

func toBytes(m *gosse.Message) []byte {
	text, _ := m.MarshalText() // never an error: it writes to memory
	return text
}

func toJSON(v any) string {
	text, _ := json.Marshal(v) // structs of strings
	return string(text)
}

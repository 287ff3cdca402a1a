package feed

import (
	"sync"

	"github.com/flaminco/redischannels/internal/stream"
)

// eventSize is the approximate memory of an event without its bytes on the wire.
const eventSize = 256

// Event is an event for clients, encoded once for all of them.
type Event struct {
	ID    stream.ID // of its entry; zero where the transport has none
	Gap   bool      // entries before it are missing: ID is only its place among others
	Last  bool      // the stream of a client ends with it
	Value any       // the value for filters; nil is always sent
	Wire  []byte

	once  sync.Once
	frame []byte
	life  int // of the stream, which may be deleted and restart
}

func (e *Event) size() int { return eventSize + len(e.Wire) }

// Frame returns the event in the form of another transport: the result of frame for its bytes,
// computed once for all clients.
func (e *Event) Frame(frame func(wire []byte) []byte) []byte {
	e.once.Do(func() { e.frame = frame(e.Wire) })
	return e.frame
}

package feed

import (
	"sync"

	"github.com/flaminco/redischannels/internal/stream"
)

// eventSize is what an event costs beside its bytes on the wire, about.
const eventSize = 256

// Event is what clients are sent, encoded once for all of them.
type Event struct {
	ID    stream.ID // of its entry; zero where the transport has none
	Gap   bool      // entries before it are missing: ID is only its place among others
	Last  bool      // the stream of a client ends with it
	Value any       // what filters are asked about; nil is always sent
	Wire  []byte

	once  sync.Once
	frame []byte
	life  int // of the stream, which may be deleted and restart
}

func (e *Event) size() int { return eventSize + len(e.Wire) }

// Frame returns the event as another transport sends it: what frame makes of its bytes, once for all
// clients.
func (e *Event) Frame(frame func(wire []byte) []byte) []byte {
	e.once.Do(func() { e.frame = frame(e.Wire) })
	return e.frame
}

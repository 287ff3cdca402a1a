// Package feed sends one stream of events to any number of clients. It is the core of package
// sse; its users define the events and the transport.
//
// A [Feed] follows its [Source] while it has clients. One goroutine, the broadcast, keeps the
// latest events in a ring; a [Client] is the goroutine of its request, with a place in the ring.
// A client that is behind the ring reads pages of history, a few clients at a time, until it is
// inside.
//
// Locks: those of a Feed and of its broadcast are never taken under each other, nor held during
// waits.
package feed

import (
	"context"
	"errors"
	"iter"
	"sync"

	"github.com/flaminco/redischannels/internal/lifecycle"
	"github.com/flaminco/redischannels/internal/stream"
)

// CatchUps is the number of clients of a handler that read from Redis at once. Each keeps a page.
const CatchUps = 8

var (
	// ErrSlow means that a client did not read in time, or fell behind the ring.
	ErrSlow = errors.New("client is too slow")
	// ErrCompleted means that the stream has ended, and that the client has received the end or
	// begins behind it. Nothing was written to it.
	ErrCompleted = errors.New("the stream is completed")
	// ErrLast means that a client was sent the last event of the stream.
	ErrLast = errors.New("the stream is complete")
	// ErrEnded means that the stream has ended, or that its handler is closed.
	ErrEnded = errors.New("the stream has ended")
)

// Position is the text of a redischannels.Position.
type Position string

// The positions that clients begin at, besides those after an ID.
const (
	Latest Position = "latest"
	Oldest Position = "oldest"
)

// After returns the position behind an ID.
func After(id stream.ID) Position { return Position("after:" + id.String()) }

// Source is the stream that a feed sends. Its methods are called from several goroutines.
type Source interface {
	// Keeps reports whether events have IDs and a history.
	Keeps() bool
	// Follow yields new events. It calls live once, before the first event; start is the ID after
	// which it begins. An error after which it cannot continue is its last pair.
	Follow(ctx context.Context, live func(start stream.ID)) iter.Seq2[*Event, error]
	// History yields the existing events after a position. An error is its last pair.
	History(ctx context.Context, from Position) iter.Seq2[*Event, error]
	// LastID returns the greatest ID that the stream has had.
	LastID(ctx context.Context) (stream.ID, error)
	// IsClosed reports an error of the source after its Close.
	IsClosed(err error) bool
}

// Config is fixed for the life of a [Feed].
type Config struct {
	Source      Source
	Epochs      bool                         // see [Client.At]
	Gap         func(from, to string) []byte // encodes an event about entries that are missing
	Buffer      int                          // events in the ring
	BufferBytes int                          // of them
	OnError     func(error)
	Slots       chan struct{}    // taken by clients that read from Redis; may be shared by feeds
	Life        *lifecycle.State // of the handler: clients are calls, the broadcast a goroutine
}

// Feed is one stream of events. It is safe for concurrent use.
type Feed struct {
	config Config

	mu      sync.Mutex
	clients int
	current *broadcast // nil without clients
}

// New returns a feed. It starts no goroutine; the first client does.
func New(config Config) *Feed { return &Feed{config: config} }

// Disconnect ends the streams of all clients with ErrEnded. They may reconnect.
func (f *Feed) Disconnect() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.current != nil {
		f.current.stop()
	}
}

// Clients returns the number of clients.
func (f *Feed) Clients() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.clients
}

// Serve sends events to a client until ctx ends, the client is too slow, or the stream ends, and
// returns the reason. The caller ends ctx when Serve has returned, which ends the reads for this
// client. It is called within a call of Config.Life. The last client of a feed ends the broadcast
// and waits for it.
func (f *Feed) Serve(ctx context.Context, c *Client) error {
	b := f.join()
	defer f.leave(b)
	c.ctx, c.feed, c.broadcast = ctx, f, b
	return c.serve()
}

// join counts a client and returns the broadcast that serves it.
func (f *Feed) join() *broadcast {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.current == nil || f.current.ctx.Err() != nil {
		f.current = newBroadcast(f)
		f.config.Life.Go(f.current.run)
	}
	f.clients++
	f.current.clients++
	return f.current
}

// leave undoes join.
func (f *Feed) leave(b *broadcast) {
	f.mu.Lock()
	f.clients--
	b.clients--
	last := b.clients == 0
	if last && f.current == b {
		f.current = nil
	}
	f.mu.Unlock()
	if last {
		b.stop()
		<-b.done
	}
}

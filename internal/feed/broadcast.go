package feed

import (
	"context"
	"sync"

	"github.com/flaminco/redischannels/internal/stream"
)

// broadcast follows the source for all clients of a feed, from the first one until the last one
// has left. It has one goroutine; clients read the ring in their own.
type broadcast struct {
	feed    *Feed
	ctx     context.Context // ends with the broadcast
	stop    context.CancelFunc
	live    chan struct{} // closed when the ring has a place where clients can begin
	done    chan struct{} // closed when run has ended
	clients int           // guarded by the lock of the feed

	mu      sync.RWMutex
	ring    ring
	changed chan struct{} // closed and replaced with every change of the ring
}

func newBroadcast(f *Feed) *broadcast {
	b := &broadcast{
		feed:    f,
		live:    make(chan struct{}),
		done:    make(chan struct{}),
		changed: make(chan struct{}),
		ring:    ring{maxEvents: f.config.Buffer, maxBytes: f.config.BufferBytes},
	}
	b.ctx, b.stop = context.WithCancel(f.config.Life.Context())
	return b
}

// run follows the source until stop, or until the source is closed.
func (b *broadcast) run() {
	defer close(b.done)
	defer b.stop()
	source := b.feed.config.Source
	follow := source.Follow(b.ctx, func(start stream.ID) {
		b.ring.floor, b.ring.end = start, start
		b.ring.ended = !b.feed.config.Epochs && b.isLast(start)
		close(b.live)
	})
	failed := false
	for e, err := range follow {
		if err == nil {
			b.add(e)
		} else if !failed && b.ctx.Err() == nil && !source.IsClosed(err) {
			failed = true // Follow tries until it is live, and has no errors then
			b.feed.config.OnError(err)
		}
	}
}

// isLast reports whether the event of an ID is the last one of the stream.
func (b *broadcast) isLast(id stream.ID) bool {
	if id.IsZero() {
		return false
	}
	for e, err := range b.feed.config.Source.History(b.ctx, After(id.Prev())) {
		if err != nil || !e.Gap {
			return err == nil && e.Last && e.ID == id
		}
	}
	return false
}

// add puts an event into the ring and wakes the clients.
func (b *broadcast) add(e *Event) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case e.Gap:
		// Its place is before the remaining entries, and behind the end: a client at the end must
		// receive it.
		e.ID = b.ring.end.Next()
	case e.ID.IsZero():
	case !b.ring.end.Less(e.ID) && b.feed.config.Epochs:
		return // it is known, and is read again because Redis has lost later entries
	case !b.ring.end.Less(e.ID):
		old := b.ring.end
		b.ring.renew()
		b.ring.add(b.feed.gap(old.String(), e.ID.String()))
	}
	b.ring.add(e)
	close(b.changed)
	b.changed = make(chan struct{})
}

// take returns events from a number on, or, if there are none yet, a channel that is closed when
// there are. It reports false when they are no longer in the ring.
func (b *broadcast) take(number uint64, into []*Event) (n int, changed <-chan struct{}, ok bool) {
	b.mu.RLock()
	defer b.mu.RUnlock()
	n, ok = b.ring.take(number, into)
	return n, b.changed, ok
}

// locate returns the number of the first event after an ID, if it is inside of the ring,
// of the next one, if it is ahead, and the life of the stream.
func (b *broadcast) locate(id stream.ID) (number uint64, where place, life int) {
	b.mu.RLock()
	defer b.mu.RUnlock()
	number, where = b.ring.locate(id)
	return number, where, b.ring.life
}

// edge is the begin and the end of the ring.
type edge struct {
	floor stream.ID // it has everything after it
	end   stream.ID // up to here
	next  uint64    // number of the event that comes then
	life  int       // of the stream
	ended bool      // with the event at end
}

func (b *broadcast) edge() edge {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return edge{b.ring.floor, b.ring.end, b.ring.next(), b.ring.life, b.ring.ended}
}

// gap makes an event about missing entries. It has no `id:`, so a client that receives only this
// event receives it again after a reconnection.
func (f *Feed) gap(from, to string) *Event {
	return &Event{Gap: true, Wire: f.config.Gap(from, to)}
}

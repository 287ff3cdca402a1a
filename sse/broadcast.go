package sse

import (
	"context"
	"errors"
	"iter"
	"sync"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/bridge"
	"github.com/flaminco/redischannels/internal/stream"
)

// broadcast follows the channel for all clients of a Handler, from the first that comes
// until the last has left. It has one goroutine; clients read the ring in theirs.
type broadcast[T any] struct {
	handler *Handler[T]
	ctx     context.Context // ends with the broadcast
	stop    context.CancelFunc
	live    chan struct{} // closed when the ring has a place where clients can begin
	done    chan struct{} // closed when run has ended
	clients int           // guarded by the handler's lock

	mu      sync.RWMutex
	ring    ring[T]
	changed chan struct{} // closed and replaced with every change of the ring
}

func newBroadcast[T any](h *Handler[T]) *broadcast[T] {
	b := &broadcast[T]{
		handler: h,
		live:    make(chan struct{}),
		done:    make(chan struct{}),
		changed: make(chan struct{}),
		ring:    ring[T]{maxEvents: h.options.Buffer, maxBytes: h.options.BufferBytes},
	}
	b.ctx, b.stop = context.WithCancel(h.life.Context())
	return b
}

// run follows the channel until stop, or until the channel is closed.
func (b *broadcast[T]) run() {
	defer close(b.done)
	defer b.stop()
	follow := bridge.Follow(b.ctx, b.handler.channel.Reader(), func(start stream.ID) {
		b.ring.floor, b.ring.end = start, start
		close(b.live)
	})
	failed := false
	for d, err := range follow.(iter.Seq2[redischannels.Delivery[T], error]) {
		e, err := b.handler.event(d, err)
		if err == nil {
			b.add(e)
		} else if !failed && b.ctx.Err() == nil && !errors.Is(err, redischannels.ErrClosed) {
			failed = true // Follow tries until it is live, and has no errors then
			b.handler.options.OnError(err)
		}
	}
}

// add puts an event into the ring and wakes the clients.
func (b *broadcast[T]) add(e *event[T]) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case e.gap:
		// Its place is before the entries that are left, and behind the end: a client that
		// has come to the end is to see it.
		e.id = b.ring.end.Next()
	case e.id.IsZero():
	case !b.ring.end.Less(e.id):
		old := b.ring.end
		b.ring.renew()
		b.ring.add(newGap[T](old.String(), e.id.String()))
	}
	b.ring.add(e)
	close(b.changed)
	b.changed = make(chan struct{})
}

// take returns events from a number on, or, if there are none yet, what is closed when
// there are. It reports false when they are lost.
func (b *broadcast[T]) take(number uint64, into []*event[T]) (n int, changed <-chan struct{}, ok bool) {
	b.mu.RLock()
	defer b.mu.RUnlock()
	n, ok = b.ring.take(number, into)
	return n, b.changed, ok
}

// locate returns the number of the first event after an ID, if it is inside of the ring,
// of the next one, if it is ahead, and the life of the stream.
func (b *broadcast[T]) locate(id stream.ID) (number uint64, where place, life int) {
	b.mu.RLock()
	defer b.mu.RUnlock()
	number, where = b.ring.locate(id)
	return number, where, b.ring.life
}

// edge is where the ring begins and ends.
type edge struct {
	floor stream.ID // it has everything after it
	end   stream.ID // up to here
	next  uint64    // number of the event that comes then
	life  int       // of the stream
}

func (b *broadcast[T]) edge() edge {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return edge{b.ring.floor, b.ring.end, b.ring.next(), b.ring.life}
}

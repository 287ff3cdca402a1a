package consumer

import (
	"sync"
	"sync/atomic"

	"github.com/redis/go-redis/v9"

	"github.com/flaminco/redischannels/internal/stream"
	"github.com/flaminco/redischannels/internal/window"
)

// identity is who the consumer is in Redis. The name belongs to the reader, which may change it
// between two reads.
type identity struct {
	keys  []string
	group string
	name  atomic.Pointer[string]
}

func (id *identity) consumer() string { return *id.name.Load() }

// on returns the consumer in one of the streams, for commands by a client.
func (id *identity) on(client redis.UniversalClient, of int) *stream.Group {
	return &stream.Group{Client: client, Key: id.keys[of], Name: id.group, Consumer: id.consumer()}
}

// each calls f for each stream of which there are items.
func (id *identity) each(items []*window.Item, f func(of int, items []*window.Item) error) error {
	if len(items) == 0 {
		return nil
	}
	if len(id.keys) == 1 {
		return f(0, items)
	}
	for of := range id.keys {
		var some []*window.Item
		for _, it := range items {
			if it.Stream == of {
				some = append(some, it)
			}
		}
		if len(some) == 0 {
			continue
		}
		if err := f(of, some); err != nil {
			return err
		}
	}
	return nil
}

// gate stops reading and claiming while it is shut.
type gate struct {
	mu   sync.Mutex
	shut chan struct{} // closed when it opens; nil while it is open
}

func newGate() *gate { return &gate{} }

// set shuts or opens the gate.
func (g *gate) set(open bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case open && g.shut != nil:
		close(g.shut)
		g.shut = nil
	case !open && g.shut == nil:
		g.shut = make(chan struct{})
	}
}

// wait returns a channel that is closed when the gate opens, or nil if it is open.
func (g *gate) wait() <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.shut
}

package consumer

import (
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

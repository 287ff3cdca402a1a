package consumer

import (
	"sync/atomic"

	"github.com/redis/go-redis/v9"

	"github.com/flaminco/redischannels/internal/delayed"
	"github.com/flaminco/redischannels/internal/keys"
	"github.com/flaminco/redischannels/internal/stream"
	"github.com/flaminco/redischannels/internal/window"
)

// identity is the identity of the consumer in Redis. The name belongs to the reader, which may
// change it between two reads.
type identity struct {
	keys    []string         // of the streams: the topic, and the return stream of the group
	targets []delayed.Target // that append to these
	group   string
	name    atomic.Pointer[string]
}

func newIdentity(topic keys.Topic, group string) *identity {
	return &identity{
		keys:    []string{topic.Name, topic.Return(group)},
		targets: []delayed.Target{{Topic: topic}, {Topic: topic, Group: group}},
		group:   group,
	}
}

func (id *identity) consumer() string { return *id.name.Load() }

// on returns the consumer in one of the streams, for commands by a client.
func (id *identity) on(client redis.UniversalClient, of int) *stream.Group {
	return &stream.Group{Client: client, Key: id.keys[of], Name: id.group, Consumer: id.consumer(), Returns: of > 0}
}

// each calls f for each stream of which there are items.
func (id *identity) each(items []*window.Item, f func(of int, items []*window.Item) error) error {
	if len(items) == 0 {
		return nil
	}
	for of := range id.keys {
		var some []*window.Item
		for _, it := range items {
			if it.Stream == of {
				some = append(some, it)
			}
		}
		if len(some) == len(items) {
			return f(of, items)
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

package consumer

import (
	"sync/atomic"

	"github.com/redis/go-redis/v9"

	"github.com/flaminco/redischannels/internal/delayed"
	"github.com/flaminco/redischannels/internal/keys"
	"github.com/flaminco/redischannels/internal/stream"
	"github.com/flaminco/redischannels/internal/window"
)

// identity is the identity of the consumer in Redis. The name belongs to the reader, which changes
// it between two reads after a seek of the group.
type identity struct {
	keys    []string         // of the streams: the topic, and the return stream of the group
	targets []delayed.Target // that append to these
	control string
	records redis.UniversalClient
	group   string
	self    atomic.Pointer[self]
	sought  atomic.Pointer[stream.Sought] // the last one that was newer than the name; see newer
}

// self is a name, and how often the group had been sought when it was taken. It is the fencing token
// of a seek: what is delivered after the seek is never owned by an older name.
type self struct {
	name   string
	sought int64
}

func newIdentity(client redis.UniversalClient, topic keys.Topic, group string) *identity {
	return &identity{
		keys:    []string{topic.Name, topic.Return(group)},
		targets: []delayed.Target{{Topic: topic}, {Topic: topic, Group: group}},
		control: topic.Control(),
		records: client,
		group:   group,
	}
}

func (id *identity) consumer() string { return id.self.Load().name }

// saw records a seek that is newer than the name: the reader takes a new one.
func (id *identity) saw(sought stream.Sought) {
	if sought.Generation > id.self.Load().sought {
		id.sought.Store(&sought)
	}
}

// newer returns a known seek that is newer than the name, or nil.
func (id *identity) newer() *stream.Sought {
	if sought := id.sought.Load(); sought != nil && sought.Generation > id.self.Load().sought {
		return sought
	}
	return nil
}

// on returns the consumer in one of the streams, for commands by a client.
func (id *identity) on(client redis.UniversalClient, of int) *stream.Group {
	self := id.self.Load()
	return &stream.Group{Client: client, Key: id.keys[of], Name: id.group, Consumer: self.name, Control: id.control, Sought: self.sought, Records: id.records, Returns: of > 0}
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

package redischannels

import (
	"context"
	"fmt"
)

// snapshotter is a subscription with numbers. ok is false when it has ended.
type snapshotter interface {
	snapshot() (stats SubscriptionStats, ok bool)
}

// Stats describes the subscriptions of the channel that have not ended: that of its Reader
// from the first use on, and on Pub/Sub those of Follow loops, which read a stream without a
// subscription. It is empty for a channel over another library's subscriber. It talks to no
// server: see [Subscriber.Stats].
func (c *Channel[T]) Stats() []SubscriptionStats {
	return sortStats(c.reader.source.stats(nil))
}

// GroupStats asks Redis where the consumer group of the channel stands, its lag above all: see
// [Subscriber.GroupStats]. On other transports than a stream of a hub it returns
// [ErrNotSupported].
func (c *Channel[T]) GroupStats(ctx context.Context) (GroupStats, error) {
	t := c.writer.transport
	if t.groupStats == nil {
		return GroupStats{}, fmt.Errorf("redischannels: stats of the group of %q: %w", t.topic, ErrNotSupported)
	}
	return t.groupStats(ctx, t.topic)
}

// Stats describes the subscriptions of all channels of the hub, by topic and consumer: see
// [Channel.Stats].
func (h *Hub) Stats() []SubscriptionStats {
	h.mu.Lock()
	channels := make([]hubChannel, 0, len(h.channels))
	for channel := range h.channels {
		channels = append(channels, channel)
	}
	h.mu.Unlock()
	var all []SubscriptionStats
	for _, channel := range channels {
		all = append(all, channel.Stats()...)
	}
	return sortStats(all)
}

// stats appends what the subscription of a Reader, and those of its Follow loops, are at.
func (s *lazySource) stats(all []SubscriptionStats) []SubscriptionStats {
	if opened := s.opened.Load(); opened != nil {
		if sub, ok := (*opened).(snapshotter); ok {
			if stats, live := sub.snapshot(); live {
				all = append(all, stats)
			}
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for child := range s.children {
		if following, ok := child.(*followedSource); ok {
			all = following.stats(all)
		}
	}
	return all
}

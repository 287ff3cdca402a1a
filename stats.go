package redischannels

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/flaminco/redischannels/internal/control"
	"github.com/flaminco/redischannels/internal/stream"
)

// SubscriptionState says whether a subscription makes progress.
type SubscriptionState uint8

// The states of a subscription. One that has ended is not listed any more.
const (
	// StateLive: reading and settling work.
	StateLive SubscriptionState = iota + 1
	// StateDisconnected: between EventDisconnected and EventReconnected. It is
	// retried with back-off.
	StateDisconnected
	// StateClosing: the context of Subscribe has ended or Close was called, and
	// messages are still in flight or acknowledgements are being written.
	StateClosing
	// StatePaused: the group is paused (package inspect). Nothing is read or delivered until
	// it is resumed; handlers in progress finish.
	StatePaused
)

var subscriptionStateNames = [...]string{
	StateLive:         "live",
	StateDisconnected: "disconnected",
	StateClosing:      "closing",
	StatePaused:       "paused",
}

// String returns the state in one word.
func (s SubscriptionState) String() string { return enumName(subscriptionStateNames[:], "state", s) }

// MarshalText returns the same, for JSON and logs.
func (s SubscriptionState) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText sets the value of that name. The error wraps [ErrInvalidArgument].
func (s *SubscriptionState) UnmarshalText(text []byte) error {
	return parseEnum(subscriptionStateNames[:], "state", text, s)
}

// SubscriptionStats is what one subscription does and has done since Subscribe
// returned. The counts only grow; each has the event that reports the same.
type SubscriptionStats struct {
	Topic    string
	Group    string // empty without a consumer group
	Consumer string // consumer name in Redis, empty without a consumer group
	State    SubscriptionState

	// LastRead is when Redis has answered a read the last time, with entries or
	// without; zero before the first. A live and idle subscription reads every
	// BlockTime, and in a group at least every third of MinIdle. One whose
	// application takes no messages does not read. Pub/Sub has no reads.
	LastRead time.Time

	InFlight   int // offered to the application, or handled by it
	Buffered   int // fetched, not yet offered
	BackingOff int // nacked, their delay is not over
	Acking     int // acknowledged or nacked, not yet confirmed by Redis
	Bytes      int // size of all of these

	Delivered    uint64 // messages that the application has received, redeliveries included
	Redelivered  uint64 // those with a delivery count of 2 or more
	DeadLettered uint64 // EventDeadLettered
	Deferred     uint64 // retries that were stored in Redis (SubscriberConfig.DeferAfter)
	Skipped      uint64 // without a group: EventSkipped and EventUndecodable
	Dropped      uint64 // Pub/Sub: EventDropped
	LostLeases   uint64 // entries that another consumer has taken over: EventLeaseLost
	Recovered    uint64 // entries taken over, or found again: EventRecovered
	Trimmed      uint64 // entries lost by trimming, at least: EventTrimmed and EventGap
	Reconnects   uint64 // outages that are over: EventReconnected
}

// Stats describes the subscriptions that have not ended, by topic and consumer. It
// talks to no server and takes no lock for longer than it takes to read a few
// numbers, so it suits a health check. The numbers of one subscription are read one
// after the other while it works.
func (s *Subscriber) Stats() []SubscriptionStats {
	s.mu.Lock()
	subs := make([]*subscription, 0, len(s.subs))
	for sub := range s.subs {
		subs = append(subs, sub)
	}
	s.mu.Unlock()

	return statsOf(subs)
}

func statsOf[S snapshotter](subs []S) []SubscriptionStats {
	all := make([]SubscriptionStats, 0, len(subs))
	for _, sub := range subs {
		if stats, ok := sub.snapshot(); ok {
			all = append(all, stats)
		}
	}
	return sortStats(all)
}

func sortStats(all []SubscriptionStats) []SubscriptionStats {
	slices.SortFunc(all, func(a, b SubscriptionStats) int {
		return cmp.Or(cmp.Compare(a.Topic, b.Topic), cmp.Compare(a.Consumer, b.Consumer))
	})
	return all
}

// GroupStats is where a consumer group stands, all its consumers together.
type GroupStats struct {
	// Lag is how many entries of the stream were not yet delivered to the group.
	// Entries that were trimmed or deleted do not count.
	Lag int64
	// Pending is how many were delivered and not yet acknowledged, Deferred and Returned
	// included.
	Pending int64
	// Deferred is how many of them wait in Redis for their retry (SubscriberConfig.DeferAfter).
	Deferred int64
	// Returned is how many of them have come back to the group, after that or from the dead
	// letters.
	Returned int64
	// Consumers is how many consumers Redis knows of, dead ones included until
	// ConsumerTimeout.
	Consumers int64
	// LastDelivered is the ID of the last entry that was delivered to the group.
	LastDelivered string
	// Paused says that the group is paused (package inspect), so that Lag grows until it is
	// resumed: PausedFor is the time until that happens by itself, 0 where it does not. PauseReason is
	// what the operator has given.
	Paused      bool
	PausedFor   time.Duration
	PauseReason string
}

// GroupStats asks Redis where the consumer group stands on a topic.
//
// XINFO GROUPS has a lag since Redis 7.0 only, and a wrong one after trimming, deleting,
// XGROUP SETID, and a restart from an append-only file. So from Redis 7 on a group is created
// at the same ID, asked, and destroyed, in one script; without the permission to do so, and
// where the server cannot know, the entries after the last one delivered are counted inside
// Redis, 200 at a time. That takes longer the more and the larger they are; ctx bounds it.
//
// The error wraps [ErrInvalidConfig] without a group, [ErrPermission], [ErrWrongType],
// or is the reply NOGROUP of Redis if the group or its stream does not exist.
func (s *Subscriber) GroupStats(ctx context.Context, topic string) (GroupStats, error) {
	if err := validateTopic(topic); err != nil {
		return GroupStats{}, err
	}
	if s.cfg.ConsumerGroup == "" {
		return GroupStats{}, fmt.Errorf("redischannels: stats of topic %q: %w: without a ConsumerGroup", topic, ErrInvalidConfig)
	}
	of, err := sideKeys(topic, s.cfg.SideKeys, s.cfg.Client)
	if err != nil {
		return GroupStats{}, err
	}
	if err := s.life.Enter(); err != nil {
		return GroupStats{}, fmt.Errorf("redischannels: %w", err)
	}
	defer s.life.Leave()
	group := &stream.Group{Client: s.cfg.Client, Key: topic, Name: s.cfg.ConsumerGroup}
	found, err := group.Lag(ctx)
	var deferred, returned *redis.IntCmd
	if err == nil {
		pipe := s.cfg.Client.Pipeline()
		deferred, returned = pipe.ZCard(ctx, of.Due(s.cfg.ConsumerGroup)), pipe.XLen(ctx, of.Return(s.cfg.ConsumerGroup))
		_, err = pipe.Exec(ctx)
	}
	var pause control.Paused
	if err == nil {
		pause, err = control.Look(ctx, s.cfg.Client, of, s.cfg.ConsumerGroup)
	}
	if err != nil {
		return GroupStats{}, fmt.Errorf("redischannels: stats of group %q of topic %q: %w", s.cfg.ConsumerGroup, topic, redisError(err))
	}
	return GroupStats{
		Lag: found.Lag, Pending: found.Pending + deferred.Val() + returned.Val(), Deferred: deferred.Val(), Returned: returned.Val(),
		Consumers: found.Consumers, LastDelivered: found.LastDelivered,
		Paused: pause.Paused, PausedFor: pause.Left, PauseReason: pause.Reason,
	}, nil
}

// counters are the numbers of one subscription that the window does not have.
type counters struct {
	lastRead    atomic.Int64 // Unix time in nanoseconds, 0 for never
	delivered   atomic.Uint64
	redelivered atomic.Uint64
	deferred    atomic.Uint64
	events      [len(eventKindNames)]atomic.Uint64 // entries, or events that name none, by kind
}

func (c *counters) read() { c.lastRead.Store(time.Now().UnixNano()) }

func (c *counters) delivery(count int) {
	c.delivered.Add(1)
	if count > 1 {
		c.redelivered.Add(1)
	}
}

func (c *counters) event(e Event) { c.events[e.Kind].Add(uint64(max(1, e.Count))) }

// snapshot implements snapshotter.
func (s *subscription) snapshot() (stats SubscriptionStats, ok bool) {
	select {
	case <-s.finished:
		return stats, false
	default:
	}
	state := StateLive // looked at first: a subscription that is live again has read
	switch {
	case s.Closing():
		state = StateClosing
	case s.Down():
		state = StateDisconnected
	case s.Paused():
		state = StatePaused
	}
	sizes := s.Sizes()
	of := func(kind EventKind) uint64 { return s.counters.events[kind].Load() }
	stats = SubscriptionStats{
		Topic: s.topic, Group: s.group, Consumer: s.ConsumerName(), State: state,
		InFlight: sizes.InFlight, Buffered: sizes.Buffered, BackingOff: sizes.BackingOff, Acking: sizes.Acking,
		Bytes:     sizes.Bytes,
		Delivered: s.counters.delivered.Load(), Redelivered: s.counters.redelivered.Load(),
		DeadLettered: of(EventDeadLettered),
		Deferred:     s.counters.deferred.Load(),
		Skipped:      of(EventSkipped) + of(EventUndecodable),
		LostLeases:   of(EventLeaseLost),
		Recovered:    of(EventRecovered),
		Trimmed:      of(EventTrimmed) + of(EventGap),
		Reconnects:   of(EventReconnected),
	}
	if at := s.counters.lastRead.Load(); at != 0 {
		stats.LastRead = time.Unix(0, at)
	}
	return stats, true
}

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

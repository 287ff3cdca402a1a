package redischannels

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/flaminco/redischannels/internal/survey"
)

// SubscriptionState is the state of a subscription.
type SubscriptionState uint8

// The states of a subscription. A subscription that has ended is no longer listed.
const (
	// StateLive: reading and acknowledging work.
	StateLive SubscriptionState = iota + 1
	// StateDisconnected: between EventDisconnected and EventReconnected. Commands are retried
	// with back-off.
	StateDisconnected
	// StateClosing: the context of Subscribe has ended or Close was called, and
	// messages are still in flight or acknowledgements are being written.
	StateClosing
	// StatePaused: the group is paused (package inspect). Nothing is read or delivered until it
	// is resumed; running handlers finish.
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

// SubscriptionStats has the state of one subscription, and counts since Subscribe returned. The
// counts never decrease; the comment of each names the event that reports it.
type SubscriptionStats struct {
	Topic    string
	Group    string // empty without a consumer group
	Consumer string // consumer name in Redis, empty without a consumer group
	State    SubscriptionState

	// LastRead is the time of the last reply to a read, with or without entries; zero before the
	// first. A live and idle subscription reads every BlockTime, and in a group at least every
	// third of MinIdle. A subscription whose application receives no messages does not read.
	// Pub/Sub has no reads.
	LastRead time.Time

	InFlight   int // offered to the application, or handled by it
	Buffered   int // fetched, not yet offered
	BackingOff int // nacked, waiting for their retry
	Acking     int // acknowledged or nacked, not yet confirmed by Redis
	Bytes      int // size of all of these

	Delivered    uint64 // messages that the application has received, including redeliveries
	Redelivered  uint64 // those with a delivery count of 2 or more
	DeadLettered uint64 // EventDeadLettered
	Deferred     uint64 // retries that were stored in Redis (SubscriberConfig.DeferAfter)
	Skipped      uint64 // without a group: EventSkipped and EventUndecodable
	Dropped      uint64 // Pub/Sub: EventDropped
	LostLeases   uint64 // entries that another consumer has claimed: EventLeaseLost
	Recovered    uint64 // entries claimed from other consumers or lost replies: EventRecovered
	Trimmed      uint64 // entries lost by trimming, at least: EventTrimmed and EventGap
	Reconnects   uint64 // outages that are over: EventReconnected
}

// Stats returns the state of the subscriptions that have not ended, by topic and consumer. It
// sends no commands to Redis and holds locks only to read a few numbers, so it is suitable for a
// health check. The numbers of one subscription are read one after the other while it runs, so
// they may be of slightly different times.
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

// GroupStats is the state of a consumer group, with all its consumers.
type GroupStats struct {
	// Lag is the number of entries of the stream that are not yet delivered to the group, without
	// those that were trimmed or deleted. If Redis does not know the lag, up to 10,000 entries are
	// counted, and Lag is a lower bound beyond that.
	Lag int64
	// LagAtMost is an upper bound of the lag: Lag if that is exact, otherwise the length of the
	// stream.
	LagAtMost int64
	// Pending is the number of entries that are delivered and not yet acknowledged, including
	// Deferred and Returned.
	Pending int64
	// Deferred is the number of these that wait in Redis for their retry
	// (SubscriberConfig.DeferAfter).
	Deferred int64
	// Returned is the number of these that have returned to the group, after a deferred retry or
	// as requeued dead letters.
	Returned int64
	// Consumers is the number of consumers in Redis, including crashed ones until
	// ConsumerTimeout.
	Consumers int64
	// LastDelivered is the ID of the last entry that was delivered to the group.
	LastDelivered string
	// Paused means that the group is paused (package inspect), so Lag grows until it is resumed.
	// PausedFor is the time until the pause ends by itself, 0 if it does not. PauseReason is the
	// reason that the operator has set.
	Paused      bool
	PausedFor   time.Duration
	PauseReason string
}

// GroupStats reads the state of the consumer group on a topic from Redis.
//
// XINFO GROUPS has a lag only since Redis 7.0, and a wrong one after trimming, deleting, XGROUP
// SETID, and a restart from an append-only file. From Redis 7 on, one script therefore creates a
// group at the same ID, reads its lag, and destroys it. Without the permission for that, and if
// the server does not know the lag, the entries after the last delivered one are counted inside
// Redis, 200 at a time and 10,000 at most. The time for this grows with their size; ctx bounds it.
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
	found, err := survey.LookAtGroup(ctx, s.cfg.Client, of, s.cfg.ConsumerGroup)
	if err != nil {
		return GroupStats{}, fmt.Errorf("redischannels: stats of group %q of topic %q: %w", s.cfg.ConsumerGroup, topic, redisError(err))
	}
	return GroupStats{
		Lag: found.Lag.Lag, LagAtMost: found.LagAtMost, Pending: found.AllPending(), Deferred: found.Deferred, Returned: found.Returned,
		Consumers: found.Consumers, LastDelivered: found.LastDelivered,
		Paused: found.Pause.Paused, PausedFor: found.Pause.Left, PauseReason: found.Pause.Reason,
	}, nil
}

// counters are the counts of one subscription that the window does not have.
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
	state := StateLive // read first: a subscription that is live again has read
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

// Stats returns the state of the subscriptions of the channel that have not ended: that of its
// Reader from the first use on, and on Pub/Sub those of Follow loops, which need no subscription
// on a stream. It is empty for a channel over another library's subscriber. It sends no commands
// to Redis: see [Subscriber.Stats].
func (c *Channel[T]) Stats() []SubscriptionStats {
	return sortStats(c.reader.source.stats(nil))
}

// GroupStats reads the state of the consumer group of the channel from Redis, such as its lag:
// see [Subscriber.GroupStats]. On transports other than a stream of a hub it returns
// [ErrNotSupported].
func (c *Channel[T]) GroupStats(ctx context.Context) (GroupStats, error) {
	t := c.writer.transport
	if t.groupStats == nil {
		return GroupStats{}, fmt.Errorf("redischannels: stats of the group of %q: %w", t.topic, ErrNotSupported)
	}
	return t.groupStats(ctx, t.topic)
}

// Stats returns the state of the subscriptions of all channels of the hub, by topic and consumer:
// see [Channel.Stats].
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

// stats appends the states of the subscription of a Reader and of its Follow loops.
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

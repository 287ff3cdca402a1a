package inspect

import (
	"context"
	"fmt"
	"iter"
	"slices"
	"strconv"
	"time"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/keys"
	"github.com/flaminco/redischannels/internal/stream"
	"github.com/flaminco/redischannels/internal/survey"
)

// Count is a number of which only bounds may be known.
type Count struct {
	AtLeast int64 `json:"atLeast"`
	AtMost  int64 `json:"atMost"`
}

// Exact reports whether the number is known.
func (c Count) Exact() bool { return c.AtLeast == c.AtMost }

// String returns the number, such as 12, or its lower bound, such as 10000+.
func (c Count) String() string {
	if c.Exact() {
		return strconv.FormatInt(c.AtLeast, 10)
	}
	return fmt.Sprintf("%d+", c.AtLeast)
}

// Group is where a consumer group stands on a topic.
type Group struct {
	Topic string `json:"topic"`
	Name  string `json:"group"`
	// Lag is how many entries were not yet delivered to the group. Where Redis does not know that they are
	// counted, up to 10,000; beyond that AtMost is the length of the stream.
	Lag Count `json:"lag"`
	// Pending is how many were delivered and not acknowledged, Deferred (a retry that waits in Redis) and
	// Returned (back in the group, after that or from the dead letters) included.
	Pending  int64 `json:"pending"`
	Deferred int64 `json:"deferred"`
	Returned int64 `json:"returned"`
	// OldestPending is when the oldest pending entry of the topic was appended, zero without one.
	OldestPending time.Time `json:"oldestPending,omitzero"`
	LastDelivered string    `json:"lastDelivered"` // ID of the last entry that was delivered
	Consumers     int       `json:"consumers"`
	Alive         int       `json:"alive"` // those that are, see Consumer.Alive

	Paused      bool          `json:"paused"`
	PausedFor   time.Duration `json:"pausedForNs,omitempty"` // until it resumes by itself, 0 if it does not
	PauseReason string        `json:"pauseReason,omitempty"`

	At    time.Time `json:"at"`    // when this was read, by the clock of this process
	Added int64     `json:"added"` // entries that were ever appended to the topic, -1 before Redis 7
}

// Backlog is what the group has still to do: at least its lag, and everything that is pending.
func (g Group) Backlog() int64 { return g.Lag.AtLeast + g.Pending }

// Rate is how quickly a topic grows and a group works it off, in entries per second.
type Rate struct {
	Appended float64 `json:"appended"` // to the topic
	Finished float64 `json:"finished"` // acknowledged, or dead-lettered
	// Drain is how long it takes at these rates until the group has no backlog. It is negative where the
	// backlog does not shrink.
	Drain time.Duration `json:"drainNs"`
}

// Since returns the rates between two looks at the same group, the earlier of which is before. ok is false where
// they cannot be known: before Redis 7, where a lag is not exact, or where entries left the group otherwise,
// by trimming or a requeue of dead letters.
func (g Group) Since(before Group) (rate Rate, ok bool) {
	seconds := g.At.Sub(before.At).Seconds()
	if g.Topic != before.Topic || g.Name != before.Name || seconds <= 0 || before.Added < 0 || g.Added < before.Added ||
		!g.Lag.Exact() || !before.Lag.Exact() {
		return Rate{}, false
	}
	rate.Appended = float64(g.Added-before.Added) / seconds
	rate.Finished = rate.Appended - float64(g.Backlog()-before.Backlog())/seconds
	if rate.Finished < 0 {
		return Rate{}, false
	}
	switch shrinks := rate.Finished - rate.Appended; {
	case g.Backlog() == 0:
	case shrinks <= 0:
		rate.Drain = -1
	default:
		rate.Drain = time.Duration(min(float64(g.Backlog())/shrinks, maxDrain.Seconds()) * float64(time.Second))
	}
	return rate, true
}

// maxDrain keeps Rate.Drain within a time.Duration.
const maxDrain = 100 * 365 * 24 * time.Hour

// Groups yields the consumer groups of a topic, in the order of their names. Each is looked at by a few round trips when
// it is its turn. An error ends the loop; it wraps [ErrNoTopic] where there is no stream.
// (XINFO STREAM, XINFO GROUPS, XINFO CONSUMERS, XPENDING, XRANGE, XLEN, ZCARD, HGET, TIME)
func (i *Inspector) Groups(ctx context.Context, topic string) iter.Seq2[Group, error] {
	return func(yield func(Group, error) bool) {
		of, err := i.sideKeys(topic)
		if err != nil {
			yield(Group{}, err)
			return
		}
		found, err := i.config.Client.XInfoGroups(ctx, topic).Result()
		if err != nil {
			yield(Group{}, readError("groups", topic, "", err))
			return
		}
		names := make([]string, len(found))
		for n := range found {
			names[n] = found[n].Name
		}
		slices.Sort(names)
		for _, name := range names {
			g, err := i.lookAtGroup(ctx, of, name)
			if err != nil {
				yield(Group{}, readError("look at", topic, name, err))
				return
			}
			if !yield(g, nil) {
				return
			}
		}
	}
}

// Group returns where a consumer group stands. The error wraps [ErrNoGroup] where there is none. (as Groups)
func (i *Inspector) Group(ctx context.Context, topic, group string) (Group, error) {
	of, err := i.group(topic, group)
	if err != nil {
		return Group{}, err
	}
	g, err := i.lookAtGroup(ctx, of.Topic, group)
	if err != nil {
		return Group{}, readError("look at", topic, group, err)
	}
	return g, nil
}

func (i *Inspector) lookAtGroup(ctx context.Context, of keys.Topic, name string) (Group, error) {
	found, err := survey.LookAtGroup(ctx, i.config.Client, of, name)
	if err != nil {
		return Group{}, err
	}
	members, err := survey.LookAtMembers(ctx, i.config.Client, of, name)
	if err != nil {
		return Group{}, err
	}
	g := Group{
		Topic: of.Name, Name: name, Lag: Count{found.Lag.Lag, found.LagAtMost}, Pending: found.AllPending(),
		Deferred: found.Deferred, Returned: found.Returned, OldestPending: timeOf(members.Oldest),
		LastDelivered: found.LastDelivered, Consumers: len(members.Consumers),
		Paused: found.Pause.Paused, PausedFor: found.Pause.Left, PauseReason: found.Pause.Reason,
		At: time.Now(), Added: members.Added,
	}
	for _, c := range consumersOf(members) {
		if c.Alive {
			g.Alive++
		}
	}
	return g, nil
}

// Consumer is a consumer of a group.
type Consumer struct {
	Name    string        `json:"consumer"`
	Pending int64         `json:"pending"` // entries, those in the return stream included
	Idle    time.Duration `json:"idleNs"`  // since it has read, or tried to
	// Alive is whether it was idle for less than MinIdle of the group's subscriptions, which read at least
	// every third of that. The consumer `requeue`, which holds released entries, never is.
	Alive bool `json:"alive"`
}

// Consumers returns the consumers of a group, in the order of their names. The error wraps [ErrNoGroup] where
// there is no such group. (XINFO CONSUMERS, XINFO STREAM, XPENDING, HGET)
func (i *Inspector) Consumers(ctx context.Context, topic, group string) ([]Consumer, error) {
	of, err := i.group(topic, group)
	if err != nil {
		return nil, err
	}
	members, err := survey.LookAtMembers(ctx, i.config.Client, of.Topic, group)
	if err != nil {
		return nil, readError("consumers", topic, group, err)
	}
	return consumersOf(members), nil
}

// minIdleOf returns for how long an idle consumer of the group is alive.
func minIdleOf(members survey.Members) time.Duration {
	if members.MinIdle == 0 {
		return redischannels.DefaultMinIdle
	}
	return members.MinIdle
}

func consumersOf(members survey.Members) []Consumer {
	consumers := make([]Consumer, 0, len(members.Consumers))
	for _, c := range members.Consumers {
		consumers = append(consumers, Consumer{c.Name, c.Pending, c.Idle, c.Name != stream.RequeueConsumer && c.Idle < minIdleOf(members)})
	}
	return consumers
}

// Backlog is the work of a group that can be done now: what an autoscaler needs.
type Backlog struct {
	Topic   string `json:"topic"`
	Group   string `json:"group"`
	Lag     int64  `json:"lag"`     // entries that were not delivered yet, at least
	Pending int64  `json:"pending"` // delivered and not acknowledged, or returned; without deferred ones
	Due     int64  `json:"due"`     // delayed and deferred messages that are due, and that no process has appended yet
	Backlog int64  `json:"backlog"` // their sum
}

// Backlog returns the work of a group. Messages that are due are appended by a process of the group: with none,
// they are the only sign that one is needed. The error wraps [ErrNoGroup] where there is no such group. (as Groups; ZCOUNT)
func (i *Inspector) Backlog(ctx context.Context, topic, group string) (Backlog, error) {
	of, err := i.group(topic, group)
	if err != nil {
		return Backlog{}, err
	}
	found, err := survey.LookAtGroup(ctx, i.config.Client, of.Topic, group)
	if err != nil {
		return Backlog{}, readError("look at", topic, group, err)
	}
	due, err := survey.LookAtDue(ctx, i.config.Client, of.Topic, group)
	if err != nil {
		return Backlog{}, readError("look at", topic, group, err)
	}
	b := Backlog{Topic: topic, Group: group, Lag: found.Lag.Lag, Pending: found.Pending + found.Returned, Due: due.Delayed + due.Deferred}
	b.Backlog = b.Lag + b.Pending + b.Due
	return b, nil
}

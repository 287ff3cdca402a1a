package stream

import (
	"context"
	"time"

	"github.com/flaminco/redischannels/internal/redisconn"
)

// Standing is the position of a group, and the entries that it has lost.
type Standing struct {
	LastDelivered ID        // of the group
	Oldest        ID        // pending entry, zero without one
	Read          int64     // entries that the group has read, by the counter of Redis 7, or -1
	Removed       bool      // the stream may have lost ReapOptions.Base or entries before it
	Lost          int64     // see lua/reap.lua; 0 for none, -1 for an unknown number
	LostUntilNow  int64     // see lua/reap.lua; -1 unless the group has read everything
	Others        []Idle    // consumers that may be alive
	Sent          time.Time // when it was asked for
}

// Idle is for how long a consumer has not been seen.
type Idle struct {
	Name string
	Idle time.Duration
}

// Counting is how thoroughly Reap counts lost entries.
type Counting string

// The ways to count.
const (
	CountNone Counting = "none" // not at all
	CountNew  Counting = "new"  // where none are known: a group that has read everything has lost none
	CountAll  Counting = "all"
)

// ReapOptions selects the consumers to remove, and the checks.
type ReapOptions struct {
	Timeout time.Duration // after which idle consumers without pending entries are removed
	Alive   time.Duration // consumers that were idle for less are listed
	Count   Counting      // lost entries
	Base    ID            // not zero: whether it or entries before it were removed
	Control string        // key of the topic's control record
}

// Reap removes idle consumers that have nothing pending, here and in other streams of the group,
// and returns the standing of the group here. (XINFO CONSUMERS, XINFO GROUPS, XPENDING, XGROUP
// CREATE, XGROUP DESTROY, XGROUP DELCONSUMER, HGET; XINFO STREAM of an empty stream)
func (g *Group) Reap(ctx context.Context, opts ReapOptions, others ...string) (Standing, error) {
	standing := Standing{Sent: time.Now()}
	base := ""
	if !opts.Base.IsZero() {
		base = opts.Base.String()
	}
	reply, err := runScript(ctx, g.Client, reapScript, append([]string{g.Key, opts.Control}, others...), g.Name, g.Consumer,
		opts.Timeout.Milliseconds(), opts.Alive.Milliseconds(), RequeueConsumer, string(opts.Count), base).Slice()
	if err != nil {
		return Standing{}, err
	}
	if len(reply) < 6 || len(reply)%2 != 0 {
		return Standing{}, redisconn.ErrMalformed
	}
	for i, id := range []*ID{&standing.LastDelivered, &standing.Oldest} {
		text, _ := reply[i].(string)
		if *id, err = ParseID(text); err != nil {
			return Standing{}, redisconn.ErrMalformed
		}
	}
	standing.Read, standing.Removed = toInt(reply[2]), toInt(reply[3]) == 1
	standing.Lost, standing.LostUntilNow = toInt(reply[4]), toInt(reply[5])
	for i := 6; i < len(reply); i += 2 {
		name, _ := reply[i].(string)
		standing.Others = append(standing.Others, Idle{name, time.Duration(toInt(reply[i+1])) * time.Millisecond})
	}
	return standing, nil
}

// Leave removes this consumer from the group if it has nothing pending.
func (g *Group) Leave(ctx context.Context) error {
	return runScript(ctx, g.Client, leaveScript, []string{g.Key}, g.Name, g.Consumer).Err()
}

// Restored is the result of Restore.
type Restored struct {
	Created bool     // false if another call was faster
	Lost    bool     // a reply did not come, also beside an error: that command may have done it
	Start   string   // position of the group
	Entries []string // that were restored
}

// Span is the delivered part of a stream.
type Span struct {
	First ID    // entry that was delivered here first, zero before
	Last  ID    // the greatest ID that is known to be delivered to the group
	Added int64 // entries that had been added up to Last, at least
}

// Reach remembers that an entry was delivered to the group.
func (s *Span) Reach(id ID) {
	if s.Last.Less(id) {
		s.Last = id
	}
}

// Restore creates a lost group again after the last ID that was delivered, and puts the
// held entries back into it. If the stream is another one it begins at 0-0 instead, and
// nothing is put back: its own last ID is less then, or it has fewer entries up to the last
// that was delivered than had been added. Before Redis 7, which counts them, it is also taken
// for another one where it begins in the millisecond of that ID although the old one was older.
// In a return stream it begins at 0-0, since everything in it is outstanding, and what is held is put
// back.
func (g *Group) Restore(ctx context.Context, span Span, held []Pending) (Restored, error) {
	if span.First.IsZero() {
		span.First = span.Last
	}
	args := make([]any, 0, 4+2*len(held))
	last := span.Last.String()
	if g.Returns {
		last = ""
	}
	args = append(args, last, span.First.String(), span.Added, g.Sought)
	for _, h := range held {
		args = append(args, h.Text, h.Count)
	}
	cmd, lost := g.fenced(ctx, restoreScript, LessLua+BehindLua+PausedLua+restoreSource, args...)
	done := Restored{Lost: lost}
	reply, err := cmd.Slice()
	if err != nil {
		return done, err
	}
	if len(reply) < 2 {
		return done, redisconn.ErrMalformed
	}
	done.Created, done.Entries = toInt(reply[0]) == 1, toStrings(reply[2:])
	done.Start, _ = reply[1].(string)
	return done, nil
}

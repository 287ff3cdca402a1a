package stream

import (
	"context"
	"time"

	"github.com/flaminco/redischannels/internal/redisconn"
)

// Standing is where a group stands, and how much it has lost.
type Standing struct {
	LastDelivered ID        // of the group
	Oldest        ID        // pending entry, zero without one
	Removed       ID        // the stream may have lost entries before this ID
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

// Reap removes consumers that were idle for timeout and have nothing pending, and returns where
// the group stands, with its consumers that were idle for less than alive.
// (XINFO CONSUMERS, XINFO GROUPS, XINFO STREAM, XPENDING, XGROUP DELCONSUMER)
func (g *Group) Reap(ctx context.Context, timeout, alive time.Duration) (Standing, error) {
	standing := Standing{Sent: time.Now()}
	reply, err := reapScript.Run(ctx, g.Client, []string{g.Key}, g.Name, g.Consumer,
		timeout.Milliseconds(), alive.Milliseconds(), RequeueConsumer).Slice()
	if err != nil {
		return Standing{}, err
	}
	if len(reply) < 5 || len(reply)%2 != 1 {
		return Standing{}, redisconn.ErrMalformed
	}
	for i, id := range []*ID{&standing.LastDelivered, &standing.Oldest, &standing.Removed} {
		text, _ := reply[i].(string)
		if *id, err = ParseID(text); err != nil {
			return Standing{}, redisconn.ErrMalformed
		}
	}
	standing.Lost, standing.LostUntilNow = toInt(reply[3]), toInt(reply[4])
	for i := 5; i < len(reply); i += 2 {
		name, _ := reply[i].(string)
		standing.Others = append(standing.Others, Idle{name, time.Duration(toInt(reply[i+1])) * time.Millisecond})
	}
	return standing, nil
}

// Leave removes this consumer from the group if it has nothing pending.
func (g *Group) Leave(ctx context.Context) error {
	return leaveScript.Run(ctx, g.Client, []string{g.Key}, g.Name, g.Consumer).Err()
}

// Restored is what Restore has done.
type Restored struct {
	Created bool     // false if another call was faster
	Lost    bool     // a reply did not come, also beside an error: that command may have done it
	Start   string   // where the group stands
	Entries []string // that were put back
}

// Restore creates a lost group again after the last ID that was delivered, and puts the
// held entries back into it. If the stream was re-created it begins at 0-0 instead, and
// nothing is put back: its own last ID is less then, or it begins in the millisecond of
// last although the old one was older, since first.
func (g *Group) Restore(ctx context.Context, first, last ID, held []Pending) (Restored, error) {
	args := make([]any, 0, 2+2*len(held))
	args = append(args, last.String(), first.String())
	for _, h := range held {
		args = append(args, h.Text, h.Count)
	}
	cmd, lost := g.run(ctx, 2, restoreScript, lessSource+restoreSource, args...)
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

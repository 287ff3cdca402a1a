package delayed

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/flaminco/redischannels/internal/keys"
	"github.com/flaminco/redischannels/internal/stream"
)

// Limits of one call of Move: a page blocks the server while it is copied.
const (
	pageEntries = 100
	pageBytes   = 256 << 10
)

// LeadsFor is the maximum time until the next entry for a mover to stay the leader.
const LeadsFor = time.Second

// leaderTTL is how long a mover leads without a further call.
const leaderTTL = time.Second

// Target is the stream for the entries of a due set: the topic, or the return stream of a group.
type Target struct {
	Topic keys.Topic
	Group string // empty for the topic
}

// Due returns the key of its due set.
func (t Target) Due() string { return t.Topic.Due(t.Group) }

func (t Target) stream() string {
	if t.Group == "" {
		return t.Topic.Name
	}
	return t.Topic.Return(t.Group)
}

// Page is the result of one call of Move.
type Page struct {
	Leads   bool          // this mover is the leader; otherwise nothing was moved
	Other   bool          // another one leads
	Next    time.Duration // until the next entry is due; negative if the due set is empty
	Moved   int           // entries that were appended to the target
	Letters []Letter      // entries that became dead letters in place of it
}

// Letter is a stored entry that became a dead letter.
type Letter struct {
	ID     string // in the store; of a retry that of the original in the topic
	Reason string
}

// Move appends one page of due entries to the target, and deletes them from the store in the same
// step. After an error reply nothing was moved. After a lost reply call Move again: moved entries
// are no longer stored. mover is a unique name of the caller. The client does not retry it.
func Move(ctx context.Context, client redis.UniversalClient, target Target, mover string) (Page, error) {
	t := target.Topic
	reply, err := moveScript.once(ctx, client,
		[]string{target.Due(), t.Delayed(), target.stream(), t.Control(), t.Dead(), t.Mover(target.Group), t.Schedules()},
		t.Name, target.Group, mover, leaderTTL.Milliseconds(), LeadsFor.Milliseconds(), pageEntries, pageBytes, time.Now().UTC().Format(stream.DeadTimeLayout))
	if err != nil {
		return Page{}, err
	}
	return parsePage(reply)
}

// ProbeMove adds commands to a pipeline that change nothing, and of which one is refused if a
// permission for Move to the target is missing, except TIME, XADD, XINFO GROUPS and the scripts.
func ProbeMove(ctx context.Context, pipe redis.Pipeliner, target Target) {
	t, due, mover := target.Topic, target.Due(), target.Topic.Mover(target.Group)
	pipe.Type(ctx, target.stream())
	pipe.ZRange(ctx, due, 0, 0)
	pipe.ZRangeByScore(ctx, due, &redis.ZRangeBy{Min: "-inf", Max: "-inf"})
	pipe.ZRem(ctx, due, "")
	pipe.HGet(ctx, t.Control(), "topic")
	pipe.Do(ctx, "HSTRLEN", t.Delayed(), "")
	pipe.HDel(ctx, t.Delayed(), "")
	pipe.HGet(ctx, t.Schedules(), "")
	pipe.Do(ctx, "HSET", t.Schedules(), "", "", "") // as below: one of the arguments is missing
	pipe.Get(ctx, mover)
	pipe.Do(ctx, "SET", mover, "", "NX", "XX") // a missing permission is found before the wrong options
}

var errMoveReply = errors.New("delayed: unexpected reply of the mover's script")

func parsePage(reply any) (Page, error) {
	items, ok := reply.([]any)
	if !ok || len(items) < 4 || len(items)%2 != 0 {
		return Page{}, errMoveReply
	}
	words := make([]string, len(items))
	for i, item := range items {
		words[i] = fmt.Sprint(item)
	}
	p := Page{Leads: words[0] == "leads", Other: words[0] == "other"}
	var err error
	if p.Next, err = untilDue(words[1], words[2]); err != nil {
		return Page{}, err
	}
	if p.Moved, err = strconv.Atoi(words[3]); err != nil {
		return Page{}, errMoveReply
	}
	for i := 4; i < len(words); i += 2 {
		p.Letters = append(p.Letters, Letter{ID: words[i], Reason: words[i+1]})
	}
	return p, nil
}

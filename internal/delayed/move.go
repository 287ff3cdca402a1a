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

// Bounds of what one call of Move appends: a page blocks the server while it is copied.
const (
	pageEntries = 100
	pageBytes   = 256 << 10
)

// LeadsFor is how near the next entry must be for a mover to stay the leader.
const LeadsFor = time.Second

// leaderTTL is how long a mover leads without a further call.
const leaderTTL = time.Second

// Target is where entries of a due set go: to the topic, or to the return stream of a group.
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

// Page is what one call of Move has done.
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

// Move appends one page of what is due to the target, in one step with taking it out of the
// store. An error reply means that nothing was moved, or what it says. After a lost reply Move
// is simply called again: what was moved is not in the store any more. mover names the caller
// among all processes. The client does not repeat it.
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

// ProbeMove adds commands to a pipeline that change nothing, and of which one is refused where a
// permission is missing that Move to the target needs, but for TIME, XADD, XINFO GROUPS and the
// scripts.
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

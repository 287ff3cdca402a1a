// Package control is the control record of a topic as far as it is about its groups: what operators have
// asked for, and how far that is.
package control

import (
	"context"
	_ "embed" // the scripts
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/flaminco/redischannels/internal/delayed"
	"github.com/flaminco/redischannels/internal/keys"
	"github.com/flaminco/redischannels/internal/redisconn"
	"github.com/flaminco/redischannels/internal/stream"
)

var (
	//go:embed lua/common.lua
	commonLua string
	//go:embed lua/look.lua
	lookLua string
	//go:embed lua/pause.lua
	pauseLua string
	//go:embed lua/resume.lua
	resumeLua string
	//go:embed lua/remove_group.lua
	removeGroupLua string

	//go:embed lua/note.lua
	noteLua string
	//go:embed lua/skip.lua
	skipLua string
	//go:embed lua/remove_consumer.lua
	removeConsumerLua string

	lookScript   = redis.NewScript(stream.PausedLua + lookLua)
	pauseScript  = newScript(pauseLua)
	resumeScript = newScript(resumeLua)

	removeGroupScript = newScript(removeGroupLua)
	noteScript        = newScript(noteLua)
	skipScript        = newScript(stream.OriginalLua + stream.DeadCommonLua + skipLua)

	removeConsumerScript = newScript(removeConsumerLua)
)

func newScript(text string) *redis.Script {
	return redis.NewScript(delayed.CommonLua + stream.PausedLua + commonLua + text)
}

// Group is a consumer group of a topic, and the actor.
type Group struct {
	Topic keys.Topic
	Name  string
	Actor string
}

// run runs a script of this package, which the client may repeat.
func (g Group) run(ctx context.Context, client redis.UniversalClient, script *redis.Script, args ...any) *redis.Cmd {
	return g.runOn(ctx, client, script, nil, args...)
}

// runOn is run for a script that has more keys.
func (g Group) runOn(ctx context.Context, client redis.UniversalClient, script *redis.Script, more []string, args ...any) *redis.Cmd {
	return script.Run(ctx, client, append([]string{g.Topic.Control(), g.Topic.Audit(), g.Topic.Name}, more...),
		append([]any{g.Topic.Name, g.Name, g.Actor}, args...)...)
}

// Note adds a line to the audit stream of the topic, with names and values of details.
func (g Group) Note(ctx context.Context, client redis.UniversalClient, action string, details ...any) error {
	return g.run(ctx, client, noteScript, append([]any{action}, details...)...).Err()
}

// Skip is a pending entry to be ended.
type Skip struct {
	Key       string // where it is pending: the topic, or the return stream of the group
	DeadTopic string // in the same hash slot
	ID        string
	Drop      bool          // no dead letter is made of it
	Reason    string        // of the dead letter, and in the audit stream
	MinIdle   time.Duration // for a group of which none is known
}

// Skipped is what became of it.
type Skipped struct {
	Outcome    string // see lua/skip.lua
	Consumer   string
	Count      int64
	EntryID    string // of the original in the topic
	DeadLetter string
	Wait       time.Duration // until no lease on the entry is valid
}

// SkipStep is a step of Skip: see lua/skip.lua.
type SkipStep string

// The steps.
const (
	SkipLook SkipStep = "look"
	SkipTake SkipStep = "take"
	SkipKeep SkipStep = "keep"
	SkipEnd  SkipStep = "end"
)

// Skip does a step of the end of a pending entry. (XPENDING, XRANGE, HGET, XCLAIM, XADD, XACK, XDEL, XGROUP DELCONSUMER)
func (g Group) Skip(ctx context.Context, client redis.UniversalClient, s Skip, step SkipStep) (done Skipped, err error) {
	mode := "dead"
	if s.Drop {
		mode = "drop"
	}
	reply, err := g.runOn(ctx, client, skipScript, []string{s.Key, s.DeadTopic}, s.ID, mode, stream.CapReason(s.Reason),
		stream.DeadTime(time.Now()), s.MinIdle.Milliseconds(), string(step)).Slice()
	if err != nil {
		return done, err
	}
	if len(reply) != 6 {
		return done, redisconn.ErrMalformed
	}
	for i, to := range map[int]*string{0: &done.Outcome, 1: &done.Consumer, 3: &done.EntryID, 4: &done.DeadLetter} {
		*to, _ = reply[i].(string)
	}
	done.Count, _ = reply[2].(int64)
	wait, _ := reply[5].(int64)
	done.Wait = time.Duration(wait) * time.Millisecond
	return done, nil
}

// Removed is what became of a consumer that was to be removed.
type Removed struct {
	Outcome string // see lua/remove_consumer.lua
	Pending int64
	Idle    time.Duration
}

// RemoveConsumer removes a consumer without pending entries that was idle for at least `alive`.
// (XINFO CONSUMERS, XGROUP DELCONSUMER)
func (g Group) RemoveConsumer(ctx context.Context, client redis.UniversalClient, consumer string, alive time.Duration, released int, dryRun bool) (r Removed, err error) {
	dry := ""
	if dryRun {
		dry = "1"
	}
	reply, err := g.runOn(ctx, client, removeConsumerScript, []string{g.Topic.Return(g.Name)}, consumer, alive.Milliseconds(), released, dry).Slice()
	if err != nil {
		return r, err
	}
	if len(reply) != 3 {
		return r, redisconn.ErrMalformed
	}
	r.Outcome, _ = reply[0].(string)
	r.Pending, _ = reply[1].(int64)
	idle, _ := reply[2].(int64)
	r.Idle = time.Duration(idle) * time.Millisecond
	return r, nil
}

// Paused says how a group is paused.
type Paused struct {
	Paused bool
	Left   time.Duration // until it resumes by itself, 0 if it does not
	Reason string
	Sought stream.Sought
}

// Look returns how a group is paused, and what was sought. (HGET, TIME)
func Look(ctx context.Context, client redis.UniversalClient, topic keys.Topic, group string) (Paused, error) {
	reply, err := lookScript.Run(ctx, client, []string{topic.Control()}, group).Slice()
	if err != nil {
		return Paused{}, err
	}
	if len(reply) != 4 {
		return Paused{}, redisconn.ErrMalformed
	}
	ms, ok := reply[0].(int64)
	reason, _ := reply[1].(string)
	if !ok {
		return Paused{}, redisconn.ErrMalformed
	}
	return Paused{Paused: ms != 0, Left: time.Duration(max(0, ms)) * time.Millisecond, Reason: reason, Sought: stream.ToSought(reply[2:])}, nil
}

// Pause pauses the group until a time, or until Resume if that is zero, and returns the server's time.
// ok is false, and nothing has changed, where the time is past.
func (g Group) Pause(ctx context.Context, client redis.UniversalClient, until time.Time, reason string) (now time.Time, ok bool, err error) {
	stop := int64(0)
	if !until.IsZero() {
		stop = max(1, until.UnixMilli())
	}
	reply, err := g.run(ctx, client, pauseScript, stop, reason).Slice()
	if err != nil {
		return now, false, err
	}
	var ms, done int64
	if len(reply) != 2 {
		return now, false, redisconn.ErrMalformed
	}
	if _, err := fmt.Sscan(fmt.Sprintln(reply...), &ms, &done); err != nil {
		return now, false, redisconn.ErrMalformed
	}
	return time.UnixMilli(ms), done == 1, nil
}

// Resume ends a pause, and reports whether there was one.
func (g Group) Resume(ctx context.Context, client redis.UniversalClient) (bool, error) {
	return g.run(ctx, client, resumeScript).Bool()
}

// RemovedGroup is what was removed with a group, or the consumers that prevent it.
type RemovedGroup struct {
	Busy                        []string // consumers at work; nothing was done
	Pending, Returned, Deferred int64
}

// Remove removes the group with everything that waits for it, unless one of its consumers was idle for less than
// its MinIdle, which is minIdle where none is noted.
// (XINFO CONSUMERS, XINFO GROUPS, XLEN, ZCARD, ZRANGE, XGROUP DESTROY, DEL, HDEL)
func (g Group) Remove(ctx context.Context, client redis.UniversalClient, minIdle time.Duration, dryRun bool) (r RemovedGroup, err error) {
	dry := ""
	if dryRun {
		dry = "1"
	}
	keys := []string{g.Topic.Return(g.Name), g.Topic.Due(g.Name), g.Topic.Delayed()}
	reply, err := g.runOn(ctx, client, removeGroupScript, keys, minIdle.Milliseconds(), stream.RequeueConsumer, dry).Slice()
	if err != nil {
		return r, err
	}
	if len(reply) < 4 {
		return r, redisconn.ErrMalformed
	}
	for i, to := range []*int64{nil, &r.Pending, &r.Returned, &r.Deferred} {
		if to != nil {
			*to, _ = reply[i].(int64)
		}
	}
	for _, item := range reply[4:] {
		name, _ := item.(string)
		r.Busy = append(r.Busy, name)
	}
	return r, nil
}

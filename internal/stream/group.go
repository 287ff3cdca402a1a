package stream

import (
	"context"
	_ "embed" // the scripts
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/flaminco/redischannels/internal/redisconn"
)

//go:embed lua/hold.lua
var holdSource string

//go:embed lua/ack.lua
var ackSource string

//go:embed lua/release.lua
var releaseSource string

//go:embed lua/scan.lua
var scanSource string

// PausedLua precedes the scripts that check whether a group is paused, or was sought.
//
//go:embed lua/paused.lua
var PausedLua string

//go:embed lua/reclaim.lua
var reclaimSource string

//go:embed lua/own.lua
var ownSource string

//go:embed lua/fetch.lua
var fetchSource string

// LessLua stands before the scripts that compare entry IDs.
//
//go:embed lua/less.lua
var LessLua string

//go:embed lua/reap.lua
var reapSource string

//go:embed lua/leave.lua
var leaveSource string

//go:embed lua/restore.lua
var restoreSource string

var (
	holdScript    = redis.NewScript(PausedLua + holdSource)
	releaseScript = redis.NewScript(releaseSource)
	scanScript    = redis.NewScript(PausedLua + scanSource)
	reclaimScript = redis.NewScript(reclaimSource)
	ackScript     = redis.NewScript(PausedLua + ackSource)
	ownScript     = redis.NewScript(ownSource)
	fetchScript   = redis.NewScript(fetchSource)
	reapScript    = redis.NewScript(LessLua + BehindLua + reapSource)
	leaveScript   = redis.NewScript(leaveSource)
	restoreScript = redis.NewScript(LessLua + BehindLua + PausedLua + restoreSource)
	currentScript = redis.NewScript(PausedLua + "return superseded(KEYS[1], ARGV[1], ARGV[2]) or 1")
)

// State is the state of an entry of a consumer, as found by a script.
type State int64

// The states of an entry.
const (
	// Owned: the entry is pending for this consumer and the script did its work.
	Owned State = 1
	// OtherOwner: the entry is pending for another consumer.
	OtherOwner State = 0
	// NotPending: the entry is not, or no longer, pending in the group.
	NotPending State = -1
	// Trimmed: the entry was pending here and is no longer in the stream; it is no longer
	// pending.
	Trimmed State = -2
	// Late: the deadline of the command was over, so nothing was done.
	Late State = -3
)

// KeepCount leaves the delivery count as it is.
const KeepCount = -1

// Group is one consumer of one group of one stream. It is safe for concurrent use. Every command
// is bounded by the client's own timeouts. The client retries commands unless noted: they may be
// executed twice without harm.
type Group struct {
	Client   redis.UniversalClient
	Key      string
	Name     string
	Consumer string

	Control string                // key of the topic's control record
	Sought  int64                 // how often the group had been sought when the consumer took its name
	Records redis.UniversalClient // for the control record while its hash slot moves; Client may know one server only

	// Returns says that the stream is the group's return stream: it contains only outstanding
	// entries, so acknowledged ones are deleted.
	Returns bool
}

// Ensure creates the group, and the stream, after the given ID unless it exists.
// (XGROUP CREATE key group id MKSTREAM)
func (g *Group) Ensure(ctx context.Context, start string) (existed bool, err error) {
	err = g.Client.XGroupCreateMkStream(ctx, g.Key, g.Name, start).Err()
	if redisconn.Classify(err) == redisconn.KindBusyGroup {
		return true, nil
	}
	return false, err
}

// probeID is an ID that no entry has in practice; commands on it do nothing.
const probeID = "0-1"

// Probe fails if one of the commands of a consumer would be refused, including appending to the
// stream deadKey of its dead letters. more adds others, of which only a missing permission is an
// error. It may be nil.
func (g *Group) Probe(ctx context.Context, deadKey string, more func(context.Context, redis.Pipeliner)) error {
	probe := []Pending{{Text: probeID, Count: KeepCount}}
	if _, err := g.Hold(ctx, probe); err != nil {
		return err
	}
	if _, _, err := g.AckOwned(ctx, []string{probeID}); err != nil {
		return err
	}
	if _, err := g.Fetch(ctx, []string{probeID}); err != nil {
		return err
	}
	// The scripts stop at XPENDING for an ID that is not pending.
	pipe := g.Client.Pipeline()
	pipe.Do(ctx, "XCLAIM", g.Key, g.Name, g.Consumer, 0, probeID, "JUSTID")
	pipe.XAck(ctx, g.Key, g.Name, probeID)
	pipe.XRange(ctx, g.Key, probeID, probeID)
	pipe.XGroupDelConsumer(ctx, g.Key, g.Name, g.Consumer+"-probe")
	if g.Returns {
		pipe.XDel(ctx, g.Key, probeID)
	}
	own := pipe.Len()
	// A missing permission is found before the wrong argument, without which the reply would have
	// complete entries.
	pipe.Do(ctx, "XINFO", "STREAM", g.Key, "probe")
	// Redis refuses the ID 0-0 before it looks at the key, and a missing permission
	// before that. Whatever else is wrong with the dead-letter stream can be mended.
	pipe.Do(ctx, "XADD", deadKey, "NOMKSTREAM", "0-0", "probe", "")
	pipe.XRevRangeN(ctx, deadKey, probeID, probeID, 1)
	pipe.XDel(ctx, deadKey, probeID)
	if more != nil {
		more(ctx, pipe)
	}
	cmds, _ := pipe.Exec(ctx)
	for i, cmd := range cmds {
		err := cmd.Err()
		if err == nil || errors.Is(err, redis.Nil) || i >= own && redisconn.Classify(err) != redisconn.KindNoPerm {
			continue
		}
		return err
	}
	return nil
}

// Ack acknowledges entries without checking the owner and returns how many were pending. ids
// point at entry IDs. The client does not retry it: after a lost reply a second one would find no
// pending entries. With an error, sent reports whether it may have been executed. (XACK)
func (g *Group) Ack(ctx context.Context, ids []*string) (n int64, sent bool, err error) {
	name := &redisconn.TrackedArg{Text: g.Name}
	args := make([]any, 3, 3+len(ids))
	args[0], args[1], args[2] = "XACK", &g.Key, name
	for _, id := range ids {
		args = append(args, id)
	}
	cmd := redisconn.OnceInt{IntCmd: redis.NewIntCmd(ctx, args...)}
	err = redisconn.Process(ctx, g.Client, cmd)
	return cmd.Val(), name.Sent(), err
}

// AckOwned acknowledges the entries that this consumer still owns. (XACK, after XPENDING; of a
// return stream XDEL as well.) lost means, even with an error, that a reply was lost: that
// command may have acknowledged the entries that are not pending.
func (g *Group) AckOwned(ctx context.Context, ids []string) (found []State, lost bool, err error) {
	args := append(make([]any, 0, 2+len(ids)), "", g.Sought)
	if g.Returns {
		args[0] = "delete"
	}
	for _, id := range ids {
		args = append(args, id)
	}
	cmd, lost := g.fenced(ctx, ackScript, PausedLua+ackSource, args...)
	found, err = states(cmd, len(ids))
	return found, lost, err
}

// run runs a script with the stream and then the side keys as its keys, and with the group and
// the consumer as its first arguments, up to so many times while the connection fails. The client
// does not retry it: lost means that a reply was lost.
func (g *Group) run(ctx context.Context, times int, script *redis.Script, source string, side []string, args ...any) (cmd *redis.Cmd, lost bool) {
	sent := false
	send := func(command, text string) {
		name := &redisconn.TrackedArg{Text: g.Name}
		words := []any{command, text, 1 + len(side), g.Key}
		for _, key := range side {
			words = append(words, key)
		}
		cmd = redis.NewCmd(ctx, append(append(words, name, g.Consumer), args...)...)
		cmd.SetFirstKeyPos(3)
		_ = redisconn.Process(ctx, g.Client, redisconn.OnceCmd{Cmd: cmd})
		sent = name.Sent()
	}
	for range times {
		send("evalsha", script.Hash())
		if redisconn.Classify(cmd.Err()) == redisconn.KindNoScript {
			send("eval", source)
		}
		if redisconn.Classify(cmd.Err()) != redisconn.KindNetwork {
			break
		}
		lost = lost || sent
	}
	return cmd, lost
}

// fenced is run for a script that a consumer cannot run that is older than a seek of its group.
func (g *Group) fenced(ctx context.Context, script *redis.Script, source string, args ...any) (cmd *redis.Cmd, lost bool) {
	cmd, lost = g.run(ctx, 2, script, source, []string{g.Control}, args...)
	if moving(cmd.Err()) {
		if err := g.current(ctx); err != nil {
			cmd.SetErr(err)
			return cmd, lost
		}
		return g.run(ctx, 2, script, source, nil, args...)
	}
	return cmd, lost
}

// moving reports that the keys of a script are on two servers, because their hash slot moves. It can take long.
func moving(err error) bool { return redis.HasErrorPrefix(err, "TRYAGAIN") }

// current fails if the consumer is older than a seek of its group. (HGET)
func (g *Group) current(ctx context.Context) error {
	return runScript(ctx, g.Records, currentScript, []string{g.Control}, g.Name, g.Sought).Err()
}

// scriptBatch is the number of entries that one script renews or releases.
const scriptBatch = 200

// Hold renews the claims of entries that are still owned, and sets the delivery count of each
// unless it is KeepCount. It sends one pipeline for any number of entries. It never raises the
// count. (XCLAIM ... RETRYCOUNT n JUSTID, after XPENDING and HGET)
func (g *Group) Hold(ctx context.Context, entries []Pending) ([]State, error) {
	hold := func(keys ...string) ([]State, error) {
		return g.each(ctx, holdScript, keys, len(entries), func(i int, args []any) []any {
			return append(args, entries[i].Text, entries[i].Count)
		}, g.Name, g.Consumer, g.Sought)
	}
	states, err := hold(g.Key, g.Control)
	if moving(err) {
		if err = g.current(ctx); err == nil {
			return hold(g.Key)
		}
	}
	return states, err
}

// Released is an entry to release.
type Released struct {
	Pending
	Idle time.Duration // its idle time at the release
}

// Release returns entries that are still owned to the group, and sets their delivery counts and
// idle times: any consumer claims them when they are idle for long enough. From deadline on, by the
// server's clock, it does nothing.
// (XCLAIM key group requeue 0 id IDLE ms RETRYCOUNT n JUSTID, after XPENDING)
func (g *Group) Release(ctx context.Context, entries []Released, deadline time.Time) ([]State, error) {
	return g.each(ctx, releaseScript, []string{g.Key}, len(entries), func(i int, args []any) []any {
		e := &entries[i]
		return append(args, e.Text, max(0, e.Idle.Milliseconds()), e.Count)
	}, g.Name, g.Consumer, RequeueConsumer, deadline.UnixMilli())
}

// each runs a script for n entries, scriptBatch of them at a time, in one pipeline. The client may
// repeat it: the scripts may be executed twice without harm.
func (g *Group) each(ctx context.Context, script *redis.Script, keys []string, n int, add func(i int, args []any) []any, head ...any) ([]State, error) {
	var batches [][]any
	for at := 0; at < n; at += scriptBatch {
		args := append(make([]any, 0, len(head)+3*scriptBatch), head...)
		for i := at; i < min(n, at+scriptBatch); i++ {
			args = add(i, args)
		}
		batches = append(batches, args)
	}
	found := make([]State, 0, n)
	if len(batches) == 1 {
		return states(runScript(ctx, g.Client, script, keys, batches[0]...), n)
	}
	for _, cmd := range runAll(ctx, g.Client, script, keys, batches) {
		some, err := states(cmd, min(scriptBatch, n-len(found)))
		if err != nil {
			return nil, err
		}
		found = append(found, some...)
	}
	return found, nil
}

// Pending is an entry of the PEL.
type Pending struct {
	ID    ID
	Text  string
	Count int // delivery count
}

// Own lists up to limit entries after an ID that are pending for this consumer.
// (XPENDING key group start + limit consumer)
func (g *Group) Own(ctx context.Context, after ID, limit int) ([]Pending, error) {
	start := "-"
	if !after.IsZero() {
		start = after.Next().String()
	}
	flat, err := runScript(ctx, g.Client, ownScript, []string{g.Key}, g.Name, g.Consumer, start, limit).Slice()
	if err != nil {
		return nil, err
	}
	pending := make([]Pending, 0, len(flat)/2)
	for i := 0; i+1 < len(flat); i += 2 {
		text, _ := flat[i].(string)
		id, err := ParseID(text)
		if err != nil {
			return nil, redisconn.ErrMalformed
		}
		pending = append(pending, Pending{ID: id, Text: text, Count: int(toInt(flat[i+1]))})
	}
	return pending, nil
}

// Fetched is an entry that was read by its ID.
type Fetched struct {
	State State
	Count int // delivery count in Redis
	Entry Entry
}

// fetchBytes is the approximate size of the entries of one reply.
const fetchBytes = chunkSize

// Fetch reads the first of some owned entries again without counting it as a delivery:
// one or more, as many as the network brings in time. Trimmed ones leave the group.
// (XPENDING and XRANGE per entry)
func (g *Group) Fetch(ctx context.Context, ids []string) ([]Fetched, error) {
	args := make([]any, 0, 3+len(ids))
	args = append(args, g.Name, g.Consumer, fetchBytes)
	for _, id := range ids {
		args = append(args, id)
	}
	reply, err := runScript(ctx, g.Client, fetchScript, []string{g.Key}, args...).Slice()
	if err != nil {
		return nil, err
	}
	if len(reply) == 0 || len(reply) > len(ids) {
		return nil, redisconn.ErrMalformed
	}
	out := make([]Fetched, len(reply))
	for i, item := range reply {
		parts, _ := item.([]any)
		if len(parts) == 0 {
			return nil, redisconn.ErrMalformed
		}
		out[i].State = State(toInt(parts[0]))
		id, err := ParseID(ids[i])
		if err != nil {
			return nil, err
		}
		if out[i].State != Owned {
			out[i].Entry = Entry{ID: id, Text: ids[i]}
			continue
		}
		if len(parts) != 3 {
			return nil, redisconn.ErrMalformed
		}
		out[i].Count = int(toInt(parts[1]))
		out[i].Entry = NewEntry(id, toStrings(parts[2]))
	}
	return out, nil
}

// Scanned is the result of one step of a claim scan.
type Scanned struct {
	Of       int      // stream that was scanned: 0 the group's own, or one of those behind it
	Next     ID       // where to continue in it, zero at its end
	IDs      []string // that were claimed
	Released []string // those of them that were released by a consumer, not left by one
	Trimmed  []string // that were trimmed from the stream and have left the group
	Lost     bool     // with an error: the reply was lost, and the IDs in it
	Pause    Pause
	Sought   Sought

	// Due is the time until the first entry of each due set is due, negative for an empty one. It
	// is empty if the sets could not be read.
	Due []time.Duration
}

// Pause is the pause state of a group in the control hash of a topic.
type Pause uint8

// The states of a group.
const (
	PauseUnknown Pause = iota // it could not be read
	Running
	Paused
)

// Beside are other keys of a topic that a claim scan reads.
type Beside struct {
	Streams []string // that come behind the group's own
	Due     []string // sorted sets of when delayed messages are due
}

// maxWait is the longest time.Duration in milliseconds.
const maxWait = math.MaxInt64 / int64(time.Millisecond)

// Scan takes over up to count entries that have been idle for minIdle, from cursor on,
// without counting it as a delivery. Where nothing is pending in the stream it scans the first of
// those behind it in which something is. With a count of 0 it only shows others that this consumer
// is alive, as it does while the group is paused. Before Redis 7 trimmed entries are among those that were
// claimed. The due sets of delayed messages and the control record cannot make it fail by their type.
// After an error entries may have been claimed unseen; the client does not repeat it, since
// the second one would not return what the first one took.
// (XAUTOCLAIM key group consumer min-idle cursor COUNT count JUSTID, XPENDING, XREADGROUP, ZRANGE, HGET)
func (g *Group) Scan(ctx context.Context, minIdle time.Duration, cursor ID, count int, beside Beside) (Scanned, error) {
	behind, due := beside.Streams, beside.Due
	scan := func(behind, due, control []string) (*redis.Cmd, bool) {
		return g.run(ctx, 1, scanScript, PausedLua+scanSource, slices.Concat(behind, due, control), RequeueConsumer,
			minIdle.Milliseconds(), cursor.String(), count, 1+len(behind), len(due), g.Sought)
	}
	cmd, lost := scan(behind, due, []string{g.Control})
	if moving(cmd.Err()) {
		cmd, lost = scan(nil, nil, nil)
	}
	reply, err := cmd.Slice()
	if err != nil {
		return Scanned{Lost: lost}, err
	}
	if len(reply) != 7 {
		return Scanned{}, redisconn.ErrMalformed
	}
	of := toInt(reply[0])
	text, _ := reply[1].(string)
	next, err := ParseID(text)
	waits, _ := reply[5].([]any)
	if err != nil || len(waits) > len(due) || of < 0 || of > int64(len(behind)) {
		return Scanned{}, redisconn.ErrMalformed
	}
	found := Scanned{Of: int(of), Next: next, IDs: toStrings(reply[2]), Released: toStrings(reply[3]), Trimmed: toStrings(reply[4])}
	found.Pause, found.Sought = state(reply[6])
	for _, ms := range waits {
		found.Due = append(found.Due, time.Duration(min(toInt(ms), maxWait))*time.Millisecond)
	}
	return found, nil
}

// state parses for how many milliseconds the group is paused, and what was sought, which may be missing.
func state(reply any) (Pause, Sought) {
	words, _ := reply.([]any)
	if len(words) != 3 {
		return PauseUnknown, Sought{}
	}
	sought := ToSought(words[1:])
	if toInt(words[0]) != 0 {
		return Paused, sought
	}
	return Running, sought
}

// Sought is the last seek of a group.
type Sought struct {
	Generation int64 // how often it was sought
	After      ID    // the entry after which it began to read then
}

// ToSought reads what the Lua function sought returns.
func ToSought(words []any) (s Sought) {
	s.Generation = toInt(words[0])
	text, _ := words[1].(string)
	s.After, _ = ParseID(text) // empty before the first
	return s
}

// SoughtBy returns the seek that an error of a script is about.
func SoughtBy(err error) (s Sought) {
	var text string
	if _, scanErr := fmt.Sscanf(err.Error(), "SOUGHT %d %s", &s.Generation, &text); scanErr == nil {
		s.After, _ = ParseID(text)
	}
	return s
}

// Reclaimed are released entries that were claimed.
type Reclaimed struct {
	IDs     []string
	Idle    []time.Duration // of each: its back-off is over when it is idle for as long as others must wait
	Trimmed []string        // that were trimmed from the stream and have left the group
}

// Reclaim claims up to limit released entries, the oldest first. Errors are as with Scan.
// (XPENDING, XCLAIM ... JUSTID)
func (g *Group) Reclaim(ctx context.Context, limit int) (Reclaimed, error) {
	cmd, _ := g.run(ctx, 1, reclaimScript, reclaimSource, nil, RequeueConsumer, limit)
	reply, err := cmd.Slice()
	if err != nil {
		return Reclaimed{}, err
	}
	if len(reply) != 3 {
		return Reclaimed{}, redisconn.ErrMalformed
	}
	found := Reclaimed{IDs: toStrings(reply[0]), Trimmed: toStrings(reply[2])}
	idle, _ := reply[1].([]any)
	for _, ms := range idle {
		found.Idle = append(found.Idle, time.Duration(toInt(ms))*time.Millisecond)
	}
	if len(found.Idle) != len(found.IDs) {
		return Reclaimed{}, redisconn.ErrMalformed
	}
	return found, nil
}

func states(cmd *redis.Cmd, want int) ([]State, error) {
	reply, err := cmd.Slice()
	if err != nil {
		return nil, err
	}
	if len(reply) != want {
		return nil, fmt.Errorf("%w: %d states for %d entries", redisconn.ErrMalformed, len(reply), want)
	}
	out := make([]State, want)
	for i, v := range reply {
		out[i] = State(toInt(v))
	}
	return out, nil
}

func toInt(v any) int64 {
	switch v := v.(type) {
	case int64:
		return v
	case string:
		n, _ := strconv.ParseInt(v, 10, 64)
		return n
	}
	return 0
}

// toStrings returns the strings of a reply; nils, which Redis 6.2 has in place of
// trimmed entries, are left out.
func toStrings(v any) []string {
	items, _ := v.([]any)
	out := make([]string, 0, len(items))
	for _, item := range items {
		if s, ok := item.(string); ok {
			out = append(out, s)
		}
	}
	return out
}

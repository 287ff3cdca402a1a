package stream

import (
	"context"
	_ "embed" // the scripts
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/flaminco/redischannels/internal/redisconn"
)

//go:embed lua/hold.lua
var holdSource string

//go:embed lua/ack.lua
var ackSource string

//go:embed lua/own.lua
var ownSource string

//go:embed lua/fetch.lua
var fetchSource string

//go:embed lua/less.lua
var lessSource string

//go:embed lua/reap.lua
var reapSource string

//go:embed lua/leave.lua
var leaveSource string

//go:embed lua/restore.lua
var restoreSource string

var (
	holdScript    = redis.NewScript(holdSource)
	ackScript     = redis.NewScript(ackSource)
	ownScript     = redis.NewScript(ownSource)
	fetchScript   = redis.NewScript(fetchSource)
	reapScript    = redis.NewScript(lessSource + reapSource)
	leaveScript   = redis.NewScript(leaveSource)
	restoreScript = redis.NewScript(lessSource + restoreSource)
)

// State is what a script found out about an entry of a consumer.
type State int64

// The states of an entry.
const (
	// Owned: the entry is pending for this consumer and the script did its work.
	Owned State = 1
	// OtherOwner: the entry is pending for another consumer.
	OtherOwner State = 0
	// NotPending: the entry is not pending in the group (any more).
	NotPending State = -1
	// Trimmed: the entry was pending here and is gone from the stream; it is
	// not pending any more.
	Trimmed State = -2
)

// KeepCount leaves the delivery count as it is.
const KeepCount = -1

// KeepIdle starts the idle time of entries anew.
const KeepIdle time.Duration = -1

// Group is one consumer of one group of one stream. It is safe for concurrent use.
// Every command is bounded by the client's own timeouts. The client retries those that say
// nothing of it here: they may be executed twice without harm.
type Group struct {
	Client   redis.UniversalClient
	Key      string
	Name     string
	Consumer string
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

// Probe fails where one of the commands that a consumer needs would be refused,
// that of appending to the stream deadKey of its dead letters included.
func (g *Group) Probe(ctx context.Context, deadKey string) error {
	if _, err := g.hold(ctx, KeepIdle, []any{probeID, KeepCount}); err != nil {
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
	own := pipe.Len()
	// Redis refuses the ID 0-0 before it looks at the key, and a missing right
	// before that. Whatever else is wrong with the dead-letter stream can be mended.
	pipe.Do(ctx, "XADD", deadKey, "NOMKSTREAM", "0-0", "probe", "")
	pipe.XRevRangeN(ctx, deadKey, probeID, probeID, 1)
	pipe.XDel(ctx, deadKey, probeID)
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

// Ack acknowledges entries without asking who owns them and returns how many were
// pending. ids point at entry IDs. The client does not repeat it: a second one would find
// nothing pending where the reply to the first was lost. sent says, beside an error, whether
// it may have been executed. (XACK)
func (g *Group) Ack(ctx context.Context, ids []*string) (n int64, sent bool, err error) {
	name := &redisconn.TrackedArg{Text: g.Name}
	args := make([]any, 3, 3+len(ids))
	args[0], args[1], args[2] = "XACK", &g.Key, name
	for _, id := range ids {
		args = append(args, id)
	}
	cmd := redisconn.OnceInt{IntCmd: redis.NewIntCmd(ctx, args...)}
	err = g.Client.Process(ctx, cmd)
	return cmd.Val(), name.Sent(), err
}

// AckOwned acknowledges the entries that this consumer still owns. lost says, also beside an
// error, that a reply did not come: that command may have acknowledged what is not pending.
func (g *Group) AckOwned(ctx context.Context, ids []string) (found []State, lost bool, err error) {
	args := make([]any, len(ids))
	for i, id := range ids {
		args[i] = id
	}
	cmd, lost := g.runTwice(ctx, ackScript, ackSource, args...)
	found, err = states(cmd, len(ids))
	return found, lost, err
}

// runTwice runs a script with the group and the consumer as its first arguments, and once
// more where the connection fails. The client does not repeat it unseen: lost says that a
// reply did not come.
func (g *Group) runTwice(ctx context.Context, script *redis.Script, source string, args ...any) (cmd *redis.Cmd, lost bool) {
	sent := false
	run := func(command, text string) {
		name := &redisconn.TrackedArg{Text: g.Name}
		cmd = redis.NewCmd(ctx, append([]any{command, text, 1, g.Key, name, g.Consumer}, args...)...)
		cmd.SetFirstKeyPos(3)
		_ = g.Client.Process(ctx, redisconn.OnceCmd{Cmd: cmd})
		sent = name.Sent()
	}
	for range 2 {
		run("evalsha", script.Hash())
		if redisconn.Classify(cmd.Err()) == redisconn.KindNoScript {
			run("eval", source)
		}
		if redisconn.Classify(cmd.Err()) != redisconn.KindNetwork {
			break
		}
		lost = lost || sent
	}
	return cmd, lost
}

// Hold starts the idle time of owned entries anew, or sets it to idle, and sets
// the delivery count of each unless it is KeepCount. The count is never raised by
// it. (XCLAIM ... IDLE ms RETRYCOUNT n JUSTID, after XPENDING)
func (g *Group) Hold(ctx context.Context, idle time.Duration, ids []string, counts []int) ([]State, error) {
	pairs := make([]any, 0, 2*len(ids))
	for i, id := range ids {
		count := KeepCount
		if counts != nil {
			count = counts[i]
		}
		pairs = append(pairs, id, count)
	}
	return g.hold(ctx, idle, pairs)
}

func (g *Group) hold(ctx context.Context, idle time.Duration, pairs []any) ([]State, error) {
	ms := int64(-1)
	if idle >= 0 {
		ms = idle.Milliseconds()
	}
	args := append([]any{g.Name, g.Consumer, ms}, pairs...)
	return states(holdScript.Run(ctx, g.Client, []string{g.Key}, args...), len(pairs)/2)
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
	flat, err := ownScript.Run(ctx, g.Client, []string{g.Key}, g.Name, g.Consumer, start, limit).Slice()
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

// Fetched is an entry that was read again.
type Fetched struct {
	State State
	Count int // delivery count in Redis
	Entry Entry
}

// fetchBytes is about how large the entries of one reply are together.
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
	reply, err := fetchScript.Run(ctx, g.Client, []string{g.Key}, args...).Slice()
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

// Claim takes over up to count entries that nobody has touched for minIdle, from
// cursor on, without counting it as a delivery. deleted names entries that were
// trimmed from the stream and have left the group (Redis 7; older servers return
// them as claimed). next is where to go on, zero at the end.
// After an error entries may have been claimed unseen; the client does not repeat it, since
// the second one would not return what the first one took.
// (XAUTOCLAIM key group consumer min-idle cursor COUNT count JUSTID)
func (g *Group) Claim(ctx context.Context, minIdle time.Duration, cursor ID, count int) (ids, deleted []string, next ID, err error) {
	claim := redisconn.OnceSlice{SliceCmd: redis.NewSliceCmd(ctx, "XAUTOCLAIM", g.Key, g.Name, g.Consumer,
		minIdle.Milliseconds(), cursor.String(), "COUNT", count, "JUSTID")}
	_ = g.Client.Process(ctx, claim)
	reply, err := claim.Result()
	if err != nil {
		return nil, nil, ID{}, err
	}
	if len(reply) < 2 {
		return nil, nil, ID{}, redisconn.ErrMalformed
	}
	text, _ := reply[0].(string)
	if next, err = ParseID(text); err != nil {
		return nil, nil, ID{}, redisconn.ErrMalformed
	}
	ids = toStrings(reply[1])
	if len(reply) > 2 {
		deleted = toStrings(reply[2])
	}
	return ids, deleted, next, nil
}

// Standing is where a group stands, and how much it has lost.
type Standing struct {
	Others        int   // other consumers that were active of late
	LastDelivered ID    // of the group
	Lost          int64 // see lua/reap.lua; 0 for none, -1 for an unknown number
	LostUntilNow  int64 // see lua/reap.lua; -1 unless the group has read everything
}

// Reap removes consumers that were idle for timeout and have nothing pending, and
// returns where the group stands.
// (XINFO CONSUMERS, XINFO GROUPS, XINFO STREAM, XGROUP DELCONSUMER)
func (g *Group) Reap(ctx context.Context, timeout time.Duration) (Standing, error) {
	reply, err := reapScript.Run(ctx, g.Client, []string{g.Key}, g.Name, g.Consumer, timeout.Milliseconds()).Slice()
	if err != nil {
		return Standing{}, err
	}
	if len(reply) < 4 {
		return Standing{}, redisconn.ErrMalformed
	}
	text, _ := reply[1].(string)
	last, err := ParseID(text)
	if err != nil {
		return Standing{}, redisconn.ErrMalformed
	}
	return Standing{
		Others: int(toInt(reply[0])), LastDelivered: last, Lost: toInt(reply[2]), LostUntilNow: toInt(reply[3]),
	}, nil
}

// Leave removes this consumer from the group if it has nothing pending.
func (g *Group) Leave(ctx context.Context) error {
	return leaveScript.Run(ctx, g.Client, []string{g.Key}, g.Name, g.Consumer).Err()
}

// Restored is what Restore has done.
type Restored struct {
	Created bool     // false if somebody else was faster
	Lost    bool     // a reply did not come, also beside an error: that command may have done it
	Start   string   // where the group stands
	Entries []string // that were put back
}

// Restore creates a lost group again after the last ID that was delivered, and puts the
// held entries back into it. If the stream was made anew it begins at 0-0 instead, and
// nothing is put back: its own last ID is less then, or it begins in the millisecond of
// last although the old one was older, since first.
func (g *Group) Restore(ctx context.Context, first, last ID, held []Pending) (Restored, error) {
	args := make([]any, 0, 2+2*len(held))
	args = append(args, last.String(), first.String())
	for _, h := range held {
		args = append(args, h.Text, h.Count)
	}
	cmd, lost := g.runTwice(ctx, restoreScript, lessSource+restoreSource, args...)
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

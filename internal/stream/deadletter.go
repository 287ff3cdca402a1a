package stream

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/redis/go-redis/v9"

	"github.com/flaminco/redischannels/internal/redisconn"
)

// The fields that a dead letter has after those of the entry, in this order. An
// entry that was a dead letter before keeps its own: the last ones are valid.
const (
	DeadReasonField   = "_dead_reason"   // why, at most MaxDeadReason bytes
	DeadEntryIDField  = "_dead_entry_id" // ID of the entry in its stream
	DeadTopicField    = "_dead_topic"    // key of that stream
	DeadGroupField    = "_dead_group"    // consumer group that dead-lettered the entry
	DeadConsumerField = "_dead_consumer" // consumer that moved it
	DeadCountField    = "_dead_count"    // number of deliveries to a handler
	DeadTimeField     = "_dead_time"     // when, as DeadTimeLayout in UTC, by the mover's clock
)

const (
	// DeadTimeLayout is RFC 3339 with milliseconds.
	DeadTimeLayout = "2006-01-02T15:04:05.000Z07:00"

	// MaxDeadReason is the greatest length of a reason in bytes.
	MaxDeadReason = 1024

	// maxScriptFields is how many names and values a script can pass on to XADD:
	// Lua's unpack ends at 8,000 values, the call's other arguments included.
	maxScriptFields = 7900
)

var (
	// DeadCommonLua stands before the scripts on dead letters.
	//
	//go:embed lua/dead_common.lua
	DeadCommonLua string
	//go:embed lua/dead_letter.lua
	deadLetterLua string
	//go:embed lua/dead_guard.lua
	deadGuardLua string

	deadLetterScript = redis.NewScript(OriginalLua + DeadCommonLua + PausedLua + deadLetterLua)
)

// DeadLetterMove describes one move to the dead-letter stream.
type DeadLetterMove struct {
	Stream    string // where the entry is pending: the topic, or the group's return stream
	Topic     string
	DeadTopic string // dead-letter stream, in the same hash slot
	Group     string
	Consumer  string    // the owner; nothing happens when it is another one
	Control   string    // key of the topic's control record, in the same hash slot
	Sought    int64     // how often the group had been sought when the consumer took its name
	ID        string    // of the entry in the stream
	EntryID   string    // of the original in the topic
	Reason    string    // capped; must hold no payload
	Count     int       // deliveries so far
	Time      time.Time // zero means now

	// Again says that this call was made before and has failed.
	Again bool

	// Trim bounds the dead-letter stream while it is appended to. Exact must not be
	// set beside MaxAge: an exact MINID on a stream that had deletions, as requeueing
	// makes them, can leave a node without entries, and such a stream does not load
	// from an RDB file (redis#15808).
	Trim Trim

	// Fields, when not nil, writes these names and values (name, value, name, ...)
	// instead of those in Redis: for an entry of which MoveToDeadLetter has said
	// DeadLetterGone.
	Fields []string
}

// DeadLetterOutcome is the outcome of a move.
type DeadLetterOutcome uint8

// The outcomes of MoveToDeadLetter.
const (
	// DeadLetterMoved: the entry is in the dead-letter stream and acknowledged.
	DeadLetterMoved DeadLetterOutcome = iota + 1
	// DeadLetterOtherOwner: another consumer owns the entry. Nothing was done.
	DeadLetterOtherOwner
	// DeadLetterSettled: the entry is not pending, another consumer has acknowledged
	// it. Nothing was done.
	DeadLetterSettled
	// DeadLetterGone: the stream does not have the entry any more. Nothing was
	// done; a second call with Fields writes it from memory.
	DeadLetterGone
)

// DeadLetterResult is the answer of MoveToDeadLetter.
type DeadLetterResult struct {
	Outcome DeadLetterOutcome
	ID      string // of the dead letter, with DeadLetterMoved
	Owner   string // the other consumer, with DeadLetterOtherOwner
}

// MoveToDeadLetters appends each entry of one stream to its dead-letter stream and acknowledges it, in
// one atomic step and only while the consumer owns it. The moves are sent in one pipeline; each has a
// result or an error of its own. The fields are copied inside of Redis, in their order and with
// duplicates. After an error the entry is still pending, unless the reply was lost: then it is
// not known. Either way the same move can be repeated, with Again, and at most one dead letter
// comes of it.
//
// With Fields the entry may have left the pending entries list, because Redis
// sweeps trimmed entries out of it. It is written then all the same, unless one
// of the newest 100 dead letters is this entry's.
func MoveToDeadLetters(ctx context.Context, client redis.UniversalClient, moves []DeadLetterMove) ([]DeadLetterResult, []error) {
	results, errs := make([]DeadLetterResult, len(moves)), make([]error, len(moves))
	var args [][]any
	var scripted []int
	for i := range moves {
		m := &moves[i]
		if m.Time.IsZero() {
			m.Time = time.Now()
		}
		m.Reason = CapReason(m.Reason)
		switch {
		case m.Fields != nil && (len(m.Fields) == 0 || len(m.Fields)%2 != 0):
			errs[i] = fmt.Errorf("dead letter of entry %s: %d names and values in memory make no entry", m.EntryID, len(m.Fields))
		case len(m.Fields) > maxScriptFields:
			results[i], errs[i] = m.transaction(ctx, client, m.Fields, "memory")
		default:
			args, scripted = append(args, m.scriptArgs()), append(scripted, i)
		}
	}
	if len(args) == 0 {
		return results, errs
	}
	cmds := runAll(ctx, client, deadLetterScript, []string{moves[0].Stream, moves[0].DeadTopic, moves[0].Control}, args)
	for n, i := range scripted {
		results[i], errs[i] = moves[i].finish(ctx, client, cmds[n])
	}
	return results, errs
}

// finish completes a move whose script was run.
func (m *DeadLetterMove) finish(ctx context.Context, client redis.UniversalClient, cmd *redis.Cmd) (DeadLetterResult, error) {
	reply, err := cmd.StringSlice()
	if err != nil {
		return DeadLetterResult{}, err
	}
	if len(reply) > 0 && reply[0] == "large" {
		return m.transaction(ctx, client, reply[1:], "copy")
	}
	return deadLetterResult(reply)
}

// scriptArgs are the arguments of dead_letter.lua.
func (m *DeadLetterMove) scriptArgs() []any {
	args := make([]any, 0, 14+len(m.Fields))
	args = append(args, m.Group, m.Consumer, m.ID, m.Reason, m.Count, DeadTime(m.Time))
	switch {
	case m.Trim.MaxLen > 0:
		args = append(args, "maxlen", m.Trim.Operator(), m.Trim.MaxLen)
	case m.Trim.MaxAge > 0:
		args = append(args, "maxage", m.Trim.Operator(), m.Trim.MaxAge.Milliseconds())
	default:
		args = append(args, "", "", "")
	}
	again := ""
	if m.Again {
		again = "again"
	}
	if m.Fields == nil {
		return append(args, "copy", again, m.Topic, m.EntryID, m.Sought)
	}
	args = append(args, "memory", again, m.Topic, m.EntryID, m.Sought)
	for _, f := range m.Fields {
		args = append(args, f)
	}
	return args
}

// transaction moves an entry with more fields than a script can append. The
// guard is sent whole: an EVALSHA that the server does not know would fail alone,
// behind an append that has taken place.
func (m *DeadLetterMove) transaction(ctx context.Context, client redis.UniversalClient, fields []string, mode string) (DeadLetterResult, error) {
	values := make([]any, 0, len(fields)+14)
	for _, f := range fields {
		values = append(values, f)
	}
	values = append(values,
		DeadReasonField, m.Reason, DeadEntryIDField, m.EntryID, DeadTopicField, m.Topic,
		DeadGroupField, m.Group, DeadConsumerField, m.Consumer,
		DeadCountField, strconv.Itoa(m.Count), DeadTimeField, DeadTime(m.Time))

	add := []any{"xadd", m.DeadTopic}
	switch {
	case m.Trim.MaxLen > 0:
		add = append(add, "maxlen", m.Trim.Operator(), m.Trim.MaxLen)
	case m.Trim.MaxAge > 0:
		now, err := Time(ctx, client, m.DeadTopic)
		if err != nil {
			return DeadLetterResult{}, err
		}
		add = append(add, "minid", m.Trim.Operator(), m.Trim.MinID(now))
	}
	tx := client.TxPipeline()
	added := tx.Do(ctx, append(append(add, "*"), values...)...)
	guard := tx.Eval(ctx, DeadCommonLua+PausedLua+deadGuardLua, []string{m.Stream, m.DeadTopic, m.Control}, m.Group, m.Consumer, m.ID, mode, m.Topic, m.EntryID, m.Sought)
	err := redisconn.Guard(func() error { _, err := tx.Exec(ctx); return err })
	if added.Err() != nil {
		return DeadLetterResult{}, added.Err()
	}
	if err != nil {
		return DeadLetterResult{}, err
	}
	reply, err := guard.StringSlice()
	if err != nil {
		return DeadLetterResult{}, err
	}
	return deadLetterResult(reply)
}

// deadLetterResult reads the answer of dead_letter.lua or dead_guard.lua.
func deadLetterResult(reply []string) (DeadLetterResult, error) {
	switch {
	case len(reply) == 2 && reply[0] == "moved":
		return DeadLetterResult{Outcome: DeadLetterMoved, ID: reply[1]}, nil
	case len(reply) == 2 && reply[0] == "owner":
		return DeadLetterResult{Outcome: DeadLetterOtherOwner, Owner: reply[1]}, nil
	case len(reply) == 1 && reply[0] == "settled":
		return DeadLetterResult{Outcome: DeadLetterSettled}, nil
	case len(reply) == 1 && reply[0] == "gone":
		return DeadLetterResult{Outcome: DeadLetterGone}, nil
	case len(reply) == 1 && reply[0] == "failed":
		return DeadLetterResult{}, errors.New("dead letter: the append left no trace")
	default:
		return DeadLetterResult{}, fmt.Errorf("dead letter: unexpected reply of %d items", len(reply))
	}
}

// DeadTime returns the text of the time of a dead letter.
func DeadTime(t time.Time) string { return t.UTC().Format(DeadTimeLayout) }

// CapReason makes valid UTF-8 of at most MaxDeadReason bytes, cut between runes.
func CapReason(s string) string {
	s = strings.ToValidUTF8(s, string(utf8.RuneError))
	if len(s) <= MaxDeadReason {
		return s
	}
	end := MaxDeadReason
	for !utf8.RuneStart(s[end]) {
		end--
	}
	return s[:end]
}

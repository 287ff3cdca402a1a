package stream

import (
	"context"
	_ "embed"
	"errors"
	"slices"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"
)

const (
	// RequeueConsumer has the released entries until a consumer claims them. It is never active,
	// and the delivery counts of its entries are exact.
	RequeueConsumer = "requeue"

	// requeueBatch bounds how long one script blocks Redis.
	requeueBatch = 32
	// deleteBatch bounds one XDEL.
	deleteBatch = 512
)

var (
	//go:embed lua/dead_group.lua
	deadGroupLua string
	//go:embed lua/dead_requeue.lua
	deadRequeueLua string
	//go:embed lua/dead_reappend.lua
	deadReappendLua string

	deadGroupScript    = redis.NewScript(DeadCommonLua + deadGroupLua)
	deadRequeueScript  = redis.NewScript(DeadCommonLua + LessLua + deadRequeueLua)
	deadReappendScript = redis.NewScript(DeadCommonLua + deadReappendLua)
)

var errDeadReply = errors.New("dead letters: unexpected reply of redis")

// DeadEntry is an entry of a dead-letter stream, its block of fields taken off.
type DeadEntry struct {
	RangeEntry // Values are those of the original entry, Size is that of both

	// The values of the block. All are zero for an entry that MoveToDeadLetter has not written.
	Topic, Group, Consumer, EntryID, Reason string
	Count                                   int
	Time                                    time.Time
}

// LastEntryID returns the ID of the newest entry of a stream, or an empty string
// when there is none. (XREVRANGE)
func LastEntryID(ctx context.Context, client redis.UniversalClient, key string) (string, error) {
	entries, err := ReadRange(ctx, client, "XREVRANGE", key, "+", "-", 1)
	if err != nil || len(entries) == 0 {
		return "", err
	}
	return entries[0].ID, nil
}

// RangeDeadLetters returns up to count entries of a dead-letter stream after one
// ID and up to another. A missing stream has none. (XRANGE)
func RangeDeadLetters(ctx context.Context, client redis.UniversalClient, key string, after ID, last string, count int) ([]DeadEntry, error) {
	found, err := ReadRange(ctx, client, "XRANGE", key, "("+after.String(), last, count)
	entries := make([]DeadEntry, len(found))
	for i := range found {
		entries[i].RangeEntry = found[i]
		entries[i].takeBlock()
	}
	return entries, err
}

// takeBlock moves the last 14 values into the fields of the struct, if they are
// the block of a dead letter.
func (e *DeadEntry) takeBlock() {
	n := len(e.Values) - 14
	if n < 0 {
		return
	}
	block := e.Values[n:]
	for i, name := range [...]string{
		DeadReasonField, DeadEntryIDField, DeadTopicField, DeadGroupField, DeadConsumerField, DeadCountField, DeadTimeField,
	} {
		if block[2*i] != name {
			return
		}
	}
	e.Reason, e.EntryID, e.Topic, e.Group, e.Consumer = block[1], block[3], block[5], block[7], block[9]
	// An invalid count or time of another program is zero; the other values are used.
	e.Count, _ = strconv.Atoi(block[11])
	e.Time, _ = time.Parse(DeadTimeLayout, block[13])
	e.Values = e.Values[:n:n]
}

// RequeueOutcome is the outcome of one dead letter.
type RequeueOutcome uint8

// The outcomes, which dead_requeue.lua and dead_reappend.lua document.
const (
	Requeued RequeueOutcome = iota
	Reappended
	RequeueNotFound
	RequeueForeign
	RequeueGroupMissing
	RequeueStillPending
	RequeueNoReader
	RequeueNotDelivered
	RequeueTooLarge
)

// requeueOutcomes are the outcomes by the words of the scripts.
var requeueOutcomes = map[string]RequeueOutcome{
	"requeued":      Requeued,
	"reappended":    Reappended,
	"not found":     RequeueNotFound,
	"foreign":       RequeueForeign,
	"group missing": RequeueGroupMissing,
	"still pending": RequeueStillPending,
	"no reader":     RequeueNoReader,
	"not delivered": RequeueNotDelivered,
	"too large":     RequeueTooLarge,
}

// RequeueAnswer is the result of one dead letter.
type RequeueAnswer struct {
	Outcome        RequeueOutcome
	EntryID, Group string
	NewID          string // of ReappendDeadLetters
}

// RequeueDeadLetters appends dead letters to the return streams of their groups, whose key `back`
// returns, and deletes them. Each is one atomic step. The answers are in the order of the IDs;
// after an error they are those of the IDs that were done before. The scripts can be sent twice:
// the second run does not find dead letters that the first has requeued.
func RequeueDeadLetters(ctx context.Context, client redis.UniversalClient, topic, dead string, back func(group string) string, ids []string) ([]RequeueAnswer, error) {
	answers := make([]RequeueAnswer, 0, len(ids))
	for batch := range slices.Chunk(ids, requeueBatch) {
		found, err := requeueScriptOn(ctx, client, deadGroupScript, []string{dead}, topic, batch)
		if err != nil {
			return answers, err
		}
		for len(batch) > 0 {
			n := 1
			for n < len(batch) && found[n] == found[0] {
				n++
			}
			outcome, group := found[0][0], found[0][1]
			done := found[:n]
			if outcome == "" {
				if done, err = requeueScriptOn(ctx, client, deadRequeueScript, []string{topic, dead, back(group)}, group, batch[:n]); err != nil {
					return answers, err
				}
			}
			for _, words := range done {
				a := RequeueAnswer{EntryID: words[1]}
				var ok bool
				if a.Outcome, ok = requeueOutcomes[words[0]]; !ok {
					return answers, errDeadReply
				}
				if a.EntryID != "" {
					a.Group = group
				}
				answers = append(answers, a)
			}
			batch, found = batch[n:], found[n:]
		}
	}
	return answers, nil
}

// requeueScriptOn runs a script that returns two words for each ID.
func requeueScriptOn(ctx context.Context, client redis.UniversalClient, script *redis.Script, keys []string, first string, ids []string) ([][2]string, error) {
	args := []any{first}
	for _, id := range ids {
		args = append(args, id)
	}
	reply, err := script.Run(ctx, client, keys, args...).Slice()
	if err != nil {
		return nil, err
	}
	if len(reply) != len(ids) {
		return nil, errDeadReply
	}
	out := make([][2]string, len(reply))
	for i, item := range reply {
		words, ok := item.([]any)
		if !ok || len(words) != 2 {
			return nil, errDeadReply
		}
		out[i][0], _ = words[0].(string)
		out[i][1], _ = words[1].(string)
	}
	return out, nil
}

// ReappendDeadLetters appends the fields of dead letters to their topic and
// deletes the dead letters, each in one atomic step. Answers and errors are those
// of RequeueDeadLetters.
func ReappendDeadLetters(ctx context.Context, client redis.UniversalClient, topic, dead string, ids []string) ([]RequeueAnswer, error) {
	// A missing permission to delete must be detected before the first append. The script cannot
	// look for it, since nothing may be written before its XADD. No entry has the ID 0-0.
	if err := client.XDel(ctx, dead, "0-0").Err(); err != nil {
		return nil, err
	}
	answers := make([]RequeueAnswer, 0, len(ids))
	for _, id := range ids {
		words, err := deadReappendScript.Run(ctx, client, []string{topic, dead}, id).StringSlice()
		if err != nil {
			return answers, err
		}
		if len(words) != 4 {
			return answers, errDeadReply
		}
		outcome, ok := requeueOutcomes[words[0]]
		if !ok {
			return answers, errDeadReply
		}
		answers = append(answers, RequeueAnswer{Outcome: outcome, EntryID: words[1], Group: words[2], NewID: words[3]})
	}
	return answers, nil
}

// DeleteEntries deletes entries of a stream and returns how many there were. (XDEL)
func DeleteEntries(ctx context.Context, client redis.UniversalClient, key string, ids []string) (int, error) {
	deleted := 0
	for len(ids) > 0 {
		batch := ids[:min(len(ids), deleteBatch)]
		ids = ids[len(batch):]
		n, err := client.XDel(ctx, key, batch...).Result()
		if err != nil {
			return deleted, err
		}
		deleted += int(n)
	}
	return deleted, nil
}

package delayed

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/flaminco/redischannels/internal/stream"
)

// Retry is a pending entry whose retry will be deferred.
type Retry struct {
	ID      string // in its stream
	EntryID string // of its original in the topic
	Reason  string // capped; must hold no payload
	Count   int    // deliveries that count
	Delay   time.Duration
	Size    int // bytes of all names and values
}

// DeferOutcome is the outcome of a retry.
type DeferOutcome string

// The outcomes, which defer.lua documents.
const (
	Deferred      DeferOutcome = "deferred"
	DeferOwner    DeferOutcome = "owner"
	DeferSettled  DeferOutcome = "settled"
	DeferFull     DeferOutcome = "full"
	DeferTooLarge DeferOutcome = "large"
	DeferGone     DeferOutcome = "gone"
)

// Owner is the consumer of entries, and how often its group had been sought when it took its name.
type Owner struct {
	Consumer string
	Sought   int64
}

// Defer stores entries that are pending for a consumer in a stream (the topic, or the return
// stream of the target's group) until their delays are over, and acknowledges them, a page of
// them in one step. At most `most` may be deferred in the group. It returns the outcomes of the
// first retries, all of them without an error, and the time until the first entry of the due set
// is due. After an error reply the others are unchanged. After a lost reply they may or may not
// be deferred; a further call finds those that are. The client does not retry it.
func Defer(ctx context.Context, client redis.UniversalClient, target Target, key string, owner Owner, most int, retries []Retry) (outcomes []DeferOutcome, next time.Duration, err error) {
	t := target.Topic
	next = -1
	for len(retries) > 0 {
		n := pageOf(retries)
		args := []any{t.Name, target.Group, owner.Consumer, most, MaxBytes, owner.Sought}
		for _, r := range retries[:n] {
			args = append(args, r.ID, r.EntryID, stream.CapReason(r.Reason), r.Count, milliseconds(r.Delay))
		}
		reply, err := deferScript.once(ctx, client, []string{key, target.Due(), t.Delayed(), t.Control()}, args...)
		if err != nil {
			return outcomes, next, err
		}
		words, ok := reply.([]any)
		if !ok || len(words) != 2+n {
			return outcomes, next, errors.New("delayed: unexpected reply of the script that defers")
		}
		if next, err = untilDue(fmt.Sprint(words[0]), fmt.Sprint(words[1])); err != nil {
			return outcomes, next, err
		}
		for _, word := range words[2:] {
			outcomes = append(outcomes, DeferOutcome(fmt.Sprint(word)))
		}
		retries = retries[n:]
	}
	return outcomes, next, nil
}

// ProbeDefer adds commands to a pipeline that change nothing, and of which one is refused if a
// permission for Defer is missing, except those of a consumer, TIME and the scripts.
func ProbeDefer(ctx context.Context, pipe redis.Pipeliner, target Target) {
	t, due := target.Topic, target.Due()
	pipe.ZCard(ctx, due)
	pipe.ZAddXX(ctx, due, redis.Z{Member: ""})
	pipe.HLen(ctx, t.Delayed())
	pipe.HExists(ctx, t.Delayed(), "")
	for _, key := range []string{t.Delayed(), t.Control()} {
		pipe.Do(ctx, "HSET", key, "a", "b", "c") // a missing permission is found before the wrong number of values
	}
}

// pageOf returns the number of retries for one call of the script.
func pageOf(retries []Retry) int {
	size := 0
	for i, r := range retries[:min(len(retries), pageEntries)] {
		if size += r.Size; i > 0 && size > pageBytes {
			return i
		}
	}
	return min(len(retries), pageEntries)
}

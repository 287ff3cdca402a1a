// Package retention removes the entries of a stream that no consumer group needs any more, by a policy that
// is the topic's and lies in its control record. It has no state; internal/housekeeper decides when
// to look.
package retention

import (
	"context"
	_ "embed" // the script
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/flaminco/redischannels/internal/delayed"
	"github.com/flaminco/redischannels/internal/keys"
	"github.com/flaminco/redischannels/internal/redisconn"
	"github.com/flaminco/redischannels/internal/stream"
)

//go:embed lua/trim.lua
var trimLua string

var trimScript = redis.NewScript(delayed.CommonLua + stream.LessLua + trimLua)

// pageEntries is how many entries one call removes at most: Redis does nothing else meanwhile.
const pageEntries = 10_000

// leadsFor is how long a trimmer leads after it has looked.
const leadsFor = 10 * time.Second

// Policy says which entries are kept although every group has acknowledged them, and which groups there must
// be.
type Policy struct {
	Groups      []string
	Keep        time.Duration
	StaleAfter  time.Duration
	IgnoreStale bool
}

// String returns the policy as the control record has it.
func (p Policy) String() string {
	ignore := 0
	if p.IgnoreStale {
		ignore = 1
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%d %d %d", p.Keep.Milliseconds(), p.StaleAfter.Milliseconds(), ignore)
	for _, group := range p.Groups {
		fmt.Fprintf(&b, " %d:%s", len(group), group)
	}
	return b.String()
}

// Kind is the kind of what pins a stream.
type Kind string

// The kinds.
const (
	PinnedByNothing  Kind = ""         // or by the age of the entries
	PinnedByGroup    Kind = "group"    // it has not read them, or not acknowledged
	PinnedByDeleted  Kind = "deleted"  // a group that was there before
	PinnedByRequired Kind = "required" // a group of the policy that does not exist
	PinnedByNoGroup  Kind = "none"
)

// Pin is what pins a stream.
type Pin struct {
	Kind  Kind
	Group string
	For   time.Duration
	Stale bool // for longer than Policy.StaleAfter
}

// Look is what one check at a stream has found and done.
type Look struct {
	Other    bool // another trimmer leads; nothing was done but to note the policy
	Removed  int64
	More     bool   // it was a full page
	Length   int64  // entries that are left
	Replaced string // policy that was noted before, empty for none or the same
	Pin      Pin
}

// Trim notes a policy, or keeps to the noted one where that is empty, and removes one page of what no
// group needs. self names the caller among all processes.
// (TYPE, TIME, HGETALL, XINFO GROUPS, XPENDING, XREVRANGE, XTRIM MINID, HSET, XLEN)
func Trim(ctx context.Context, client redis.UniversalClient, topic keys.Topic, self, policy string) (Look, error) {
	return look(ctx, client, []string{topic.Name, topic.Control()}, policy, pageEntries, self, leadsFor.Milliseconds())
}

// Operate is Trim by an operator, whoever trims otherwise, with a line in the audit stream if something is removed. It
// notes no policy; one without groups and Keep counts where none is noted. (XADD)
func Operate(ctx context.Context, client redis.UniversalClient, topic keys.Topic, actor string, without Policy) (Look, error) {
	return look(ctx, client, []string{topic.Name, topic.Control(), topic.Audit()}, without.String(), pageEntries, "", 0, actor)
}

// LookAt is Operate without a change.
func LookAt(ctx context.Context, client redis.UniversalClient, topic keys.Topic, without Policy) (Look, error) {
	return look(ctx, client, []string{topic.Name, topic.Control()}, without.String(), 0, "", 0)
}

func look(ctx context.Context, client redis.UniversalClient, keys []string, args ...any) (Look, error) {
	reply, err := trimScript.Run(ctx, client, keys, append([]any{keys[0]}, args...)...).Slice()
	if err != nil {
		return Look{}, err
	}
	return parseLook(reply)
}

func parseLook(reply []any) (look Look, err error) {
	if len(reply) != 8 {
		return look, redisconn.ErrMalformed
	}
	words := make([]string, len(reply))
	for i, item := range reply {
		words[i] = fmt.Sprint(item)
	}
	var numbers [3]int64
	for i, at := range []int{1, 2, 6} {
		if numbers[i], err = strconv.ParseInt(words[at], 10, 64); err != nil {
			return look, redisconn.ErrMalformed
		}
	}
	return Look{
		Other: words[0] == "other", Removed: numbers[0], More: numbers[0] > pageEntries/2, Length: numbers[1], Replaced: words[3],
		Pin: Pin{Kind(words[4]), words[5], time.Duration(numbers[2]) * time.Millisecond, words[7] == "1"},
	}, nil
}

package control

import (
	"context"
	"crypto/rand"
	_ "embed" // the scripts
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/flaminco/redischannels/internal/delayed"
	"github.com/flaminco/redischannels/internal/redisconn"
	"github.com/flaminco/redischannels/internal/stream"
)

var (
	//go:embed lua/seek_common.lua
	seekCommonLua string
	//go:embed lua/seek_plan.lua
	seekPlanLua string
	//go:embed lua/seek_count.lua
	seekCountLua string
	//go:embed lua/seek.lua
	seekLua string

	planScript  = newSeekScript(seekPlanLua)
	countScript = redis.NewScript(seekCountLua)
	seekScript  = newSeekScript(seekLua)
)

func newSeekScript(text string) *redis.Script {
	return redis.NewScript(stream.LessLua + stream.BehindLua + delayed.CommonLua + stream.PausedLua + commonLua + seekCommonLua + text)
}

// Seek is where a group is to read.
type Seek struct {
	After   string        // entry ID, or $ for the newest entry
	Drop    bool          // what is pending, deferred and returned
	MinIdle time.Duration // where no subscription has noted one
}

// Plan is what a seek would do.
type Plan struct {
	Paused                     bool
	From, To                   stream.ID // last entry that was delivered, before and then
	First                      stream.ID // entry of the stream, zero without one
	Removed                    bool      // entries before First were removed
	Redelivered, Skipped       int64     // entries between From and To
	Pending, Deferred, Returns int64     // entries that are kept or dropped
	Busy                       []string  // consumers at work
}

// countPage is how many entries one script counts: Redis reads them whole.
const countPage = 500

func (g Group) seek(ctx context.Context, client redis.UniversalClient, script *redis.Script, s Seek, args ...any) ([]string, error) {
	t := g.Topic
	return script.Run(ctx, client, []string{t.Control(), t.Audit(), t.Name, t.Return(g.Name), t.Due(g.Name), t.Delayed()},
		append([]any{t.Name, g.Name, g.Actor, s.After, stream.RequeueConsumer, s.MinIdle.Milliseconds()}, args...)...).StringSlice()
}

// Plan returns what Seek would do now.
func (g Group) Plan(ctx context.Context, client redis.UniversalClient, s Seek) (plan Plan, err error) {
	words, err := g.seek(ctx, client, planScript, s)
	if err != nil {
		return plan, err
	}
	if len(words) < 8 {
		return plan, redisconn.ErrMalformed
	}
	if s.After == "$" {
		s.After = words[2]
	}
	plan.From, _ = stream.ParseID(words[1])
	plan.To, _ = stream.ParseID(s.After)
	plan.First, _ = stream.ParseID(words[3])
	plan.Paused, plan.Removed, plan.Busy = words[0] != "0", words[4] == "1", words[8:]
	if _, err := fmt.Sscan(words[5]+" "+words[6]+" "+words[7], &plan.Pending, &plan.Deferred, &plan.Returns); err != nil {
		return plan, redisconn.ErrMalformed
	}
	if plan.To.Less(plan.From) {
		plan.Redelivered, err = g.count(ctx, client, plan.To, plan.From)
	} else {
		plan.Skipped, err = g.count(ctx, client, plan.From, plan.To)
	}
	return plan, err
}

// count counts the entries after an ID, up to another.
func (g Group) count(ctx context.Context, client redis.UniversalClient, after, to stream.ID) (total int64, err error) {
	for at := after.String(); at != ""; {
		words, err := countScript.Run(ctx, client, []string{g.Topic.Name}, at, to.String(), countPage).StringSlice()
		if err != nil {
			return 0, err
		}
		var n int64
		if len(words) != 2 {
			return 0, redisconn.ErrMalformed
		}
		if _, err := fmt.Sscan(words[0], &n); err != nil {
			return 0, redisconn.ErrMalformed
		}
		total, at = total+n, words[1]
	}
	return total, nil
}

// Seek puts a paused group at another position. running says that it is not paused, busy names the consumers at
// work: then nothing has changed.
func (g Group) Seek(ctx context.Context, client redis.UniversalClient, s Seek) (running bool, busy []string, err error) {
	pending := "keep"
	if s.Drop {
		pending = "drop"
	}
	words, err := g.seek(ctx, client, seekScript, s, pending, rand.Text())
	if err != nil {
		return false, nil, err
	}
	if len(words) == 0 {
		return false, nil, redisconn.ErrMalformed
	}
	switch words[0] {
	case "running":
		return true, nil, nil
	case "busy":
		return false, words[1:], nil
	}
	return false, nil, nil
}

package stream

import (
	"context"
	_ "embed" // the scripts
	"math"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/flaminco/redischannels/internal/redisconn"
)

var (
	//go:embed lua/run_common.lua
	runCommonLua string
	//go:embed lua/run_start.lua
	runStartLua string
	//go:embed lua/run_append.lua
	runAppendLua string
	//go:embed lua/run_end.lua
	runEndLua string
	//go:embed lua/run_look.lua
	runLookLua string

	runStartScript  = redis.NewScript(runCommonLua + runStartLua)
	runAppendScript = redis.NewScript(runCommonLua + runAppendLua)
	runEndScript    = redis.NewScript(runCommonLua + runEndLua)
	runLookScript   = redis.NewScript(runCommonLua + runLookLua)
)

// Names of the fields of the entries of a run. A piece has its payload, an end how the epoch ended, and
// as payload the text of the failure.
const (
	RunPayloadField = "p"
	RunEndField     = "end"
)

// RunStart returns the ID behind which the entries of an epoch stand. IDs of one epoch have the same
// milliseconds.
func RunStart(epoch uint64) ID { return ID{Ms: epoch} }

// IsRunEnd reports whether an ID is that of the end of an epoch.
func IsRunEnd(id ID) bool { return id.Seq == math.MaxUint64 }

// RunID names a run and its keys, which are in one hash slot.
type RunID struct {
	ID                     string
	Record, Entries, Index string
}

func (r RunID) keys() []string { return []string{r.Record, r.Entries, r.Index} }

// RunOutcome is the outcome of a call about a run.
type RunOutcome uint8

// The outcomes, which the scripts document.
const (
	RunStarted RunOutcome = iota + 1
	RunRunning
	RunAppended
	RunEnded
	RunSuperseded
	RunMissing
)

var runOutcomes = map[string]RunOutcome{
	"started": RunStarted, "running": RunRunning, "appended": RunAppended,
	"ended": RunEnded, "superseded": RunSuperseded, "missing": RunMissing,
}

// RunAnswer is the result of a call about a run.
type RunAnswer struct {
	Outcome RunOutcome
	// Text is the epoch that was started, or how the run has ended.
	Text string
}

// RunTimes are how long the keys of a run are kept, and its writer need not be heard of.
type RunTimes struct{ TTL, Lease time.Duration }

// StartRun starts an epoch. token distinguishes this call, and what is sent again for it, from others.
func (r RunID) StartRun(ctx context.Context, client redis.UniversalClient, times RunTimes, token, metadata string) (RunAnswer, error) {
	return r.run(ctx, client, runStartScript, times.TTL.Milliseconds(), times.Lease.Milliseconds(), token, metadata)
}

// AppendRun appends pieces of a writer, of which the first has this number. Without pieces it only
// renews the lease.
func (r RunID) AppendRun(ctx context.Context, client redis.UniversalClient, times RunTimes, epoch string, first uint64, pieces [][]byte) (RunAnswer, error) {
	args := make([]any, 0, 4+len(pieces))
	args = append(args, times.TTL.Milliseconds(), times.Lease.Milliseconds(), epoch, first)
	for _, piece := range pieces {
		args = append(args, piece)
	}
	return r.run(ctx, client, runAppendScript, args...)
}

// EndRun ends the epoch of a writer whose last piece has this number; without an epoch the current
// one, whatever its number.
func (r RunID) EndRun(ctx context.Context, client redis.UniversalClient, ttl time.Duration, epoch, state, text string, last uint64) (RunAnswer, error) {
	return r.run(ctx, client, runEndScript, ttl.Milliseconds(), epoch, state, CapReason(text), last)
}

// run runs a script whose answer is a word and a text.
func (r RunID) run(ctx context.Context, client redis.UniversalClient, script *redis.Script, args ...any) (RunAnswer, error) {
	reply, err := runOnce(ctx, client, script, r.keys(), append([]any{r.ID}, args...)).Slice()
	if err != nil {
		return RunAnswer{}, err
	}
	var a RunAnswer
	if len(reply) > 0 {
		word, _ := reply[0].(string)
		a.Outcome = runOutcomes[word]
	}
	if len(reply) > 1 {
		a.Text, _ = reply[1].(string)
	}
	if a.Outcome == 0 {
		return RunAnswer{}, redisconn.ErrMalformed
	}
	return a, nil
}

// RunState is the state of a run.
type RunState struct {
	Epoch       uint64 // 0: there is no such run
	State, Text string
	Left        time.Duration // of the writer's lease
	Started     time.Time
	Pieces      int64
	Metadata    string
	Previous    uint64 // the epoch before this one, whose entries are kept; or 0
}

// LookRun returns the state of a run, and ends it if its writer is lost.
func (r RunID) LookRun(ctx context.Context, client redis.UniversalClient, ttl time.Duration) (RunState, error) {
	return runState(runOnce(ctx, client, runLookScript, r.keys(), []any{r.ID, ttl.Milliseconds()}))
}

// LookRuns is LookRun for several runs of one bucket, by two round trips.
func LookRuns(ctx context.Context, client redis.UniversalClient, runs []RunID, ttl time.Duration) ([]RunState, error) {
	states := make([]RunState, len(runs))
	if len(runs) == 0 {
		return states, nil
	}
	var err error
	if states[0], err = runs[0].LookRun(ctx, client, ttl); err != nil { // the server knows the script then
		return nil, err
	}
	cmds := make([]*redis.Cmd, len(runs))
	pipe := client.Pipeline()
	for i, r := range runs[1:] {
		cmds[i+1] = runLookScript.EvalSha(ctx, pipe, r.keys(), r.ID, ttl.Milliseconds())
	}
	redisconn.ExecAll(ctx, pipe, cmds[1:]...)
	for i := range runs[1:] {
		if states[i+1], err = runState(cmds[i+1]); err != nil {
			return nil, err
		}
	}
	return states, nil
}

func runState(cmd *redis.Cmd) (RunState, error) {
	reply, err := cmd.Slice()
	if err != nil || len(reply) == 0 {
		return RunState{}, err
	}
	if len(reply) != 8 {
		return RunState{}, redisconn.ErrMalformed
	}
	text := func(i int) string { s, _ := reply[i].(string); return s }
	number := func(i int) int64 { n, _ := strconv.ParseInt(text(i), 10, 64); return n }
	return RunState{
		Epoch: uint64(number(0)), State: text(1), Text: text(2), Left: time.Duration(toInt(reply[3])) * time.Millisecond,
		Started: time.UnixMilli(number(4)), Pieces: number(5), Metadata: text(6), Previous: uint64(number(7)),
	}, nil
}

package sse

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
)

// errLoading is an error of Redis after which commands are sent again. It does not concern the
// network, so the client stays in use.
var errLoading = redisError("LOADING Redis is loading the dataset in memory")

type redisError string

func (e redisError) Error() string { return string(e) }
func (redisError) RedisError()     {}

// fakeCall is a script call about a run: "start", "append" with its pieces, "end" with its state, or
// "look".
type fakeCall struct {
	kind   string
	at     time.Duration // since the test began
	first  uint64
	pieces []string
	state  string
}

// fakeRedis replies to the scripts of runs in place of a server, so that the clock of a test can be
// that of synctest.
type fakeRedis struct {
	began time.Time

	mu    sync.Mutex
	calls []fakeCall
	reply func(fakeCall) ([]any, error) // nil: success
}

func (f *fakeRedis) DialHook(redis.DialHook) redis.DialHook {
	return func(context.Context, string, string) (net.Conn, error) {
		return nil, errors.New("no server")
	}
}

func (f *fakeRedis) ProcessPipelineHook(redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(context.Context, []redis.Cmder) error { return errors.New("no pipelines") }
}

func (f *fakeRedis) ProcessHook(redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		err := ctx.Err()
		if err == nil {
			err = f.answer(cmd)
		}
		if err != nil {
			cmd.SetErr(err)
		}
		return err
	}
}

func (f *fakeRedis) answer(cmd redis.Cmder) error {
	call := parseCall(cmd.Args()[7:]) // after the script, the keys and the ID
	call.at = time.Since(f.began)
	f.mu.Lock()
	f.calls = append(f.calls, call)
	reply := f.reply
	f.mu.Unlock()
	values := map[string][]any{"start": {"started", "7"}, "append": {"appended"}, "end": {"ended", call.state}, "look": {}}[call.kind]
	if reply != nil {
		replaced, err := reply(call)
		if err != nil {
			return err
		}
		if replaced != nil {
			values = replaced
		}
	}
	setCmd(cmd, values)
	return nil
}

// setCmd sets the reply of a command that a wrapper may hold.
func setCmd(cmd redis.Cmder, values []any) {
	cmd.(interface{ SetVal(any) }).SetVal(values)
}

// parseCall parses the arguments of a script after the ID of the run.
func parseCall(args []any) fakeCall {
	if len(args) == 1 {
		return fakeCall{kind: "look"}
	}
	if _, ended := args[1].(string); ended {
		return fakeCall{kind: "end", state: args[2].(string)}
	}
	first, appended := args[3].(uint64)
	if !appended {
		return fakeCall{kind: "start"}
	}
	call := fakeCall{kind: "append", first: first}
	for _, piece := range args[4:] {
		call.pieces = append(call.pieces, string(piece.([]byte)))
	}
	return call
}

// set sets what replies to calls from now on.
func (f *fakeRedis) set(reply func(fakeCall) ([]any, error)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.reply = reply
}

// take returns the calls since the last take.
func (f *fakeRedis) take() (calls []fakeCall) {
	f.mu.Lock()
	defer f.mu.Unlock()
	calls, f.calls = f.calls, nil
	return calls
}

// calls as texts, without their times.
func texts(calls []fakeCall) (lines []string) {
	for _, c := range calls {
		switch c.kind {
		case "append":
			lines = append(lines, fmt.Sprintf("append %d %q", c.first, c.pieces))
		case "end":
			lines = append(lines, "end "+c.state)
		default:
			lines = append(lines, c.kind)
		}
	}
	return lines
}

// inBubble calls test with runs on a fake Redis, under a clock that goes on when all goroutines wait.
func inBubble[T any](t *testing.T, config RunsConfig, test func(t *testing.T, runs *Runs[T], redis *fakeRedis)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		fake := &fakeRedis{began: time.Now()}
		client := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1"})
		client.AddHook(fake)
		defer func() { require.NoError(t, client.Close()) }()
		hub, err := redischannels.NewHub(client, redischannels.HubConfig{})
		require.NoError(t, err)
		defer func() { require.NoError(t, hub.Close()) }()
		runs, err := NewRuns[T](hub, config)
		require.NoError(t, err)
		test(t, runs, fake)
		fake.set(nil) // Close ends the runs
	})
}

// startFake starts a run, and forgets the call.
func startFake[T any](t *testing.T, runs *Runs[T], fake *fakeRedis) *Run[T] {
	t.Helper()
	run, err := runs.Start(t.Context(), "a")
	require.NoError(t, err)
	fake.take()
	return run
}

package redisconn

import (
	"context"
	"errors"
	"io"
	"testing"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
)

// The outcome was taken from the type of the error alone. go-redis keeps the MOVED of a first
// attempt when the reply to the second one is lost, and the error of a pipeline that was cut
// also for commands whose reply was read.
func TestTracker(t *testing.T) {
	const moved = ReplyError("MOVED 1 a:1")
	write := func(tr *Tracker) { require.NoError(t, tr.Write()) }
	for name, c := range map[string]struct {
		events                      func(*Tracker)
		err                         error
		sent, accepted, notExecuted bool
	}{
		"nothing":               {func(*Tracker) {}, nil, false, false, true},
		"never written":         {func(tr *Tracker) { tr.Reply(io.EOF) }, io.EOF, false, false, true},
		"answered":              {func(tr *Tracker) { write(tr); tr.Reply(nil) }, nil, true, true, false},
		"answered, then cut":    {func(tr *Tracker) { write(tr); tr.Reply(nil); tr.Reply(io.EOF) }, io.EOF, true, true, false},
		"refused":               {func(tr *Tracker) { write(tr); tr.Reply(ReplyError("OOM")) }, ReplyError("OOM"), true, false, true},
		"lost":                  {func(tr *Tracker) { write(tr); tr.Reply(io.EOF) }, io.EOF, true, false, false},
		"moved, then lost":      {func(tr *Tracker) { write(tr); tr.Reply(moved); write(tr) }, moved, true, false, false},
		"moved, never reached":  {func(tr *Tracker) { write(tr); tr.Reply(moved) }, moved, true, false, true},
		"moved, then accepted":  {func(tr *Tracker) { write(tr); tr.Reply(moved); write(tr); tr.Reply(nil) }, nil, true, true, false},
		"refused, hook's error": {func(tr *Tracker) { write(tr); tr.Reply(moved) }, errors.New("hook"), true, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			var tr Tracker
			c.events(&tr)
			require.Equal(t, c.sent, tr.Sent())
			require.Equal(t, c.accepted, tr.Accepted())
			require.Equal(t, c.notExecuted, tr.NotExecuted(c.err))
			tr.Reset(nil)
			require.False(t, tr.Sent())
			require.True(t, tr.NotExecuted(nil))
		})
	}
}

func TestGate(t *testing.T) {
	var gate Gate
	var first, second Tracker
	first.Reset(&gate)
	second.Reset(&gate)
	require.NoError(t, first.Write())
	require.False(t, gate.Withdraw(), "one of them was written")
	require.NoError(t, second.Write())

	var other Gate
	first.Reset(&other)
	require.True(t, other.Withdraw())
	require.True(t, other.Withdrawn())
	require.ErrorIs(t, first.Write(), ErrWithdrawn)
	require.False(t, first.Sent())
}

func TestGuard(t *testing.T) {
	require.ErrorContains(t, Guard(func() error { panic("boom") }), "boom")
	require.ErrorIs(t, Guard(func() error { return io.EOF }), io.EOF)
	require.NoError(t, Guard(func() error { return nil }))
}

// A hook that panics is called once for the pipeline: the commands that have no reply yet have the panic as
// their error, and one that has a reply keeps it.
func TestExecAll_PanicInAHook(t *testing.T) {
	client := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1"})
	t.Cleanup(func() { require.NoError(t, client.Close()) })
	client.AddHook(pipelineHook(func(cmds []redis.Cmder) {
		cmds[0].(*redis.Cmd).SetVal("reply")
		panic("hook")
	}))
	pipe := client.Pipeline()
	answered, lost := pipe.Do(t.Context(), "echo", "a"), pipe.Do(t.Context(), "echo", "b")
	ExecAll(t.Context(), pipe, answered, lost)
	require.NoError(t, answered.Err())
	require.Equal(t, "reply", answered.Val())
	require.ErrorIs(t, lost.Err(), ErrPanic)
}

type pipelineHook func(cmds []redis.Cmder)

func (pipelineHook) DialHook(next redis.DialHook) redis.DialHook          { return next }
func (pipelineHook) ProcessHook(next redis.ProcessHook) redis.ProcessHook { return next }
func (h pipelineHook) ProcessPipelineHook(redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(_ context.Context, cmds []redis.Cmder) error {
		h(cmds)
		return nil
	}
}

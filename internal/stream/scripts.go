package stream

import (
	"context"

	"github.com/redis/go-redis/v9"

	"github.com/flaminco/redischannels/internal/redisconn"
)

// runAll runs a script once for each list of arguments, all in one pipeline, and in a second one
// those that the server did not know the script for: the first of these brings it along.
func runAll(ctx context.Context, client redis.UniversalClient, script *redis.Script, keys []string, args [][]any) []*redis.Cmd {
	cmds := make([]*redis.Cmd, len(args))
	pipe := client.Pipeline()
	for i := range args {
		cmds[i] = script.EvalSha(ctx, pipe, keys, args[i]...)
	}
	redisconn.ExecAll(ctx, pipe, cmds...)
	run := script.Eval
	for i, cmd := range cmds {
		if redisconn.Classify(cmd.Err()) == redisconn.KindNoScript {
			cmds[i] = run(ctx, pipe, keys, args[i]...)
			run = script.EvalSha
		}
	}
	if pipe.Len() > 0 {
		redisconn.ExecAll(ctx, pipe, cmds...)
	}
	return cmds
}

// Call is one run of a script.
type Call struct {
	Keys []string
	Args []any
}

// RunEach runs a script once for each call, all in one pipeline. Where a server does not know the script the
// call is sent again by its text.
func RunEach(ctx context.Context, client redis.UniversalClient, script *redis.Script, calls []Call) []*redis.Cmd {
	cmds := make([]*redis.Cmd, len(calls))
	pipe := client.Pipeline()
	for i, call := range calls {
		cmds[i] = script.EvalSha(ctx, pipe, call.Keys, call.Args...)
	}
	redisconn.ExecAll(ctx, pipe, cmds...)
	for i, call := range calls {
		if redisconn.Classify(cmds[i].Err()) == redisconn.KindNoScript {
			cmds[i] = eval(ctx, client, script, call.Keys, call.Args...)
		}
	}
	return cmds
}

// runOnce runs a script without sending it again after a network error: where that is harmless the
// caller does it, over a connection that works.
func runOnce(ctx context.Context, client redis.UniversalClient, script *redis.Script, keys []string, args []any) *redis.Cmd {
	all := make([]any, 0, 3+len(keys)+len(args))
	all = append(all, "evalsha", script.Hash(), len(keys))
	for _, key := range keys {
		all = append(all, key)
	}
	cmd := redis.NewCmd(ctx, append(all, args...)...)
	_ = redisconn.Process(ctx, client, redisconn.OnceCmd{Cmd: cmd}) // it is the error of the command
	if redisconn.Classify(cmd.Err()) == redisconn.KindNoScript {
		cmd = eval(ctx, client, script, keys, args...)
	}
	return cmd
}

// runScript runs a script, which the client may repeat. A panic of a hook is its error.
func runScript(ctx context.Context, client redis.UniversalClient, script *redis.Script, keys []string, args ...any) *redis.Cmd {
	return guarded(ctx, func() *redis.Cmd { return script.Run(ctx, client, keys, args...) })
}

// eval runs a script by its text.
func eval(ctx context.Context, client redis.UniversalClient, script *redis.Script, keys []string, args ...any) *redis.Cmd {
	return guarded(ctx, func() *redis.Cmd { return script.Eval(ctx, client, keys, args...) })
}

func guarded(ctx context.Context, send func() *redis.Cmd) (cmd *redis.Cmd) {
	if err := redisconn.Guard(func() error { cmd = send(); return nil }); err != nil {
		cmd = redis.NewCmd(ctx)
		cmd.SetErr(err)
	}
	return cmd
}

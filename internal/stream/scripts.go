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
	_, _ = pipe.Exec(ctx) // each command has its error
	run := script.Eval
	for i, cmd := range cmds {
		if redisconn.Classify(cmd.Err()) == redisconn.KindNoScript {
			cmds[i] = run(ctx, pipe, keys, args[i]...)
			run = script.EvalSha
		}
	}
	if pipe.Len() > 0 {
		_, _ = pipe.Exec(ctx)
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
	_ = client.Process(ctx, redisconn.OnceCmd{Cmd: cmd}) // it is the error of the command
	if redisconn.Classify(cmd.Err()) == redisconn.KindNoScript {
		cmd = script.Eval(ctx, client, keys, args...)
	}
	return cmd
}

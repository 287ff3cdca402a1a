package delayed

import (
	"context"

	"github.com/redis/go-redis/v9"

	"github.com/flaminco/redischannels/internal/redisconn"
)

// script is a script with its text.
type script struct {
	*redis.Script
	text string
}

func newScript(text string) script {
	text = CommonLua + text
	return script{redis.NewScript(text), text}
}

// once runs the script by a command that the client does not send again.
func (s script) once(ctx context.Context, client redis.UniversalClient, keys []string, args ...any) (any, error) {
	run := func(command, script string) (any, error) {
		words := []any{command, script, len(keys)}
		for _, key := range keys {
			words = append(words, key)
		}
		cmd := redisconn.OnceCmd{Cmd: redis.NewCmd(ctx, append(words, args...)...)}
		_ = client.Process(ctx, cmd) // the command has the error
		return cmd.Result()
	}
	reply, err := run("evalsha", s.Hash())
	if redisconn.Classify(err) == redisconn.KindNoScript {
		return run("eval", s.text)
	}
	return reply, err
}

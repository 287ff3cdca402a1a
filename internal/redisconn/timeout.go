package redisconn

import (
	"context"
	"time"

	"github.com/redis/go-redis/v9"
)

// WithTimeout returns a client with the connections and the hooks of another one, and with another
// timeout for reading and for writing. [redis.Client.WithTimeout] alone leaves out the hooks.
func WithTimeout(client *redis.Client, timeout time.Duration) *redis.Client {
	c := client.WithTimeout(timeout)
	c.AddHook(hooksOf{client})
	return c
}

// hooksOf is a hook that calls those of a client, the later ones too. go-redis has no function for
// this, but [redis.Client.Conn] copies the hooks: one that is added to the copy, and is thus the last
// one, sends the command. The copy is never connected.
type hooksOf struct{ client *redis.Client }

// DialHook implements [redis.Hook]. The connections are dialed by the other client.
func (h hooksOf) DialHook(next redis.DialHook) redis.DialHook { return next }

// ProcessHook implements [redis.Hook].
func (h hooksOf) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		hooks := h.client.Conn()
		hooks.AddHook(lastHook{process: next})
		return hooks.Process(ctx, cmd)
	}
}

// ProcessPipelineHook implements [redis.Hook]. The commands of a transaction have MULTI and EXEC, so
// they pass the hooks as a pipeline.
func (h hooksOf) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		hooks := h.client.Conn()
		hooks.AddHook(lastHook{pipeline: next})
		return Exec(ctx, hooks.Pipeline(), cmds)
	}
}

// lastHook sends commands in place of the client that calls it.
type lastHook struct {
	process  redis.ProcessHook
	pipeline redis.ProcessPipelineHook
}

// DialHook implements [redis.Hook].
func (lastHook) DialHook(next redis.DialHook) redis.DialHook { return next }

// ProcessHook implements [redis.Hook].
func (h lastHook) ProcessHook(redis.ProcessHook) redis.ProcessHook { return h.process }

// ProcessPipelineHook implements [redis.Hook].
func (h lastHook) ProcessPipelineHook(redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return h.pipeline
}

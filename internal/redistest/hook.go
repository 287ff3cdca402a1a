package redistest

import (
	"context"
	"fmt"
	"maps"
	"net"
	"strings"
	"sync"

	"github.com/redis/go-redis/v9"
)

// HookFunc is called by a [Hook]. cmd is the command that matched; in a pipeline the first
// one that did, and the call stands before or after the whole pipeline.
type HookFunc func(ctx context.Context, cmd redis.Cmder) error

// Hook is a go-redis hook (client.AddHook) that counts commands and acts exactly before or
// after some of them, also in pipelines and transactions. Commands are named as in
// [Command], for example "xadd" or "XGROUP CREATE".
type Hook struct {
	mu     sync.Mutex
	counts map[string]int
	acts   []*hookAct
}

type hookAct struct {
	words []string
	after bool
	left  int // negative: without end
	fn    HookFunc
}

var _ redis.Hook = (*Hook)(nil)

// NewHook returns a hook that only counts until it is given something to do.
func NewHook() *Hook { return &Hook{counts: make(map[string]int)} }

// Before returns a new hook with [Hook.Before].
func Before(name string, fn HookFunc) *Hook { return NewHook().Before(name, fn) }

// After returns a new hook with [Hook.After].
func After(name string, fn HookFunc) *Hook { return NewHook().After(name, fn) }

// Before calls fn before each command of this name is sent. An error of fn becomes the
// outcome, and nothing is sent; in a pipeline none of its commands.
func (h *Hook) Before(name string, fn HookFunc) *Hook { return h.add(name, false, -1, fn) }

// BeforeOnce is Before for the next such command only.
func (h *Hook) BeforeOnce(name string, fn HookFunc) *Hook { return h.add(name, false, 1, fn) }

// After calls fn when the reply to a command of this name has come. An error of fn becomes
// the outcome although the server has executed the command; in a pipeline that of this
// command.
func (h *Hook) After(name string, fn HookFunc) *Hook { return h.add(name, true, -1, fn) }

// AfterOnce is After for the next such command only.
func (h *Hook) AfterOnce(name string, fn HookFunc) *Hook { return h.add(name, true, 1, fn) }

func (h *Hook) add(name string, after bool, n int, fn HookFunc) *Hook {
	h.mu.Lock()
	defer h.mu.Unlock()
	words := strings.Fields(strings.ToLower(name))
	h.acts = append(h.acts, &hookAct{words: words, after: after, left: n, fn: fn})
	return h
}

// Count is how many commands of this name, without a subcommand, were given to the client.
// A retry inside of the client is not counted.
func (h *Hook) Count(name string) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.counts[strings.ToLower(name)]
}

// Counts is [Hook.Count] of all commands.
func (h *Hook) Counts() map[string]int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return maps.Clone(h.counts)
}

// Reset sets the counters to zero.
func (h *Hook) Reset() {
	h.mu.Lock()
	defer h.mu.Unlock()
	clear(h.counts)
}

func (h *Hook) count(cmds ...redis.Cmder) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, cmd := range cmds {
		h.counts[cmd.Name()]++
	}
}

// take returns the functions that act on cmd now. They are used up before they are called,
// so that fn may issue the same command by the same client.
func (h *Hook) take(cmd redis.Cmder, after bool) []HookFunc {
	h.mu.Lock()
	defer h.mu.Unlock()
	var fns []HookFunc
	for _, act := range h.acts {
		if act.after == after && act.left != 0 && isCommand(cmd, act.words) {
			act.left--
			fns = append(fns, act.fn)
		}
	}
	return fns
}

func isCommand(cmd redis.Cmder, words []string) bool {
	args := cmd.Args()
	if len(args) < len(words) {
		return false
	}
	for i, w := range words {
		if strings.ToLower(fmt.Sprint(args[i])) != w {
			return false
		}
	}
	return true
}

// call runs what acts on cmd and returns the first error.
func (h *Hook) call(ctx context.Context, cmd redis.Cmder, after bool) error {
	var first error
	for _, fn := range h.take(cmd, after) {
		if err := fn(ctx, cmd); err != nil && first == nil {
			first = err
		}
	}
	return first
}

// DialHook is part of [redis.Hook]; it changes nothing.
func (h *Hook) DialHook(next redis.DialHook) redis.DialHook {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		return next(ctx, network, addr)
	}
}

// ProcessHook is part of [redis.Hook].
func (h *Hook) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		h.count(cmd)
		if err := h.call(ctx, cmd, false); err != nil {
			return err
		}
		err := next(ctx, cmd)
		if hookErr := h.call(ctx, cmd, true); hookErr != nil {
			return hookErr
		}
		return err
	}
}

// ProcessPipelineHook is part of [redis.Hook].
func (h *Hook) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		h.count(cmds...)
		for _, cmd := range cmds {
			if err := h.call(ctx, cmd, false); err != nil {
				for _, c := range cmds {
					c.SetErr(err)
				}
				return err
			}
		}
		err := next(ctx, cmds)
		for _, cmd := range cmds {
			if hookErr := h.call(ctx, cmd, true); hookErr != nil {
				cmd.SetErr(hookErr)
				if err == nil {
					err = hookErr
				}
			}
		}
		return err
	}
}

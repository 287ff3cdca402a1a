package stream

import (
	"sync/atomic"

	"github.com/redis/go-redis/v9"
)

// Commands that go-redis never repeats, by the kind of their reply.
type (
	onceCmd   struct{ *redis.Cmd }
	onceInt   struct{ *redis.IntCmd }
	onceSlice struct{ *redis.SliceCmd }
	onceRaw   struct{ *redis.RawCmd }
)

// NoRetry is part of [redis.Cmder].
func (onceCmd) NoRetry() bool   { return true }
func (onceInt) NoRetry() bool   { return true }
func (onceSlice) NoRetry() bool { return true }
func (onceRaw) NoRetry() bool   { return true }

// sentArg is an argument that knows whether go-redis has written it: then its command must be
// taken as sent.
type sentArg struct {
	text string
	sent atomic.Bool
}

// MarshalBinary is called by go-redis when it writes the argument.
func (a *sentArg) MarshalBinary() ([]byte, error) {
	a.sent.Store(true)
	return []byte(a.text), nil
}

// String is what hooks print.
func (a *sentArg) String() string { return a.text }

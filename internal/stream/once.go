package stream

import "github.com/redis/go-redis/v9"

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

package stream

import (
	"context"
	_ "embed" // the script

	"github.com/redis/go-redis/v9"
)

//go:embed lua/room.lua
var roomSource string

var roomScript = redis.NewScript(roomSource)

// Bound limits what waits in a stream. A zero limit is none.
type Bound struct {
	Client redis.UniversalClient
	Key    string
	Group  string
	MaxLag int64 // entries that the group has still to read
	MaxLen int64 // entries of the stream
}

// Room reports whether the stream is below its limits. (XLEN, XINFO GROUPS)
func (b Bound) Room(ctx context.Context) (bool, error) {
	n, err := roomScript.Run(ctx, b.Client, []string{b.Key}, b.Group, b.MaxLag, b.MaxLen).Int()
	return n == 1, err
}

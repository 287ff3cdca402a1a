package stream

import (
	"context"
	_ "embed" // the script
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

//go:embed lua/room.lua
var roomSource string

var roomScript = redis.NewScript(BehindLua + roomSource)

// recount is how many times as long as it took entries are not counted again: Redis reads them
// whole meanwhile, however large they are.
const recount = 20

// Room limits what waits in a stream. A zero limit is none.
type Room struct {
	Client redis.UniversalClient
	Key    string
	Group  string
	MaxLag int64 // entries that the group has still to read
	MaxLen int64 // entries of the stream

	mu   sync.Mutex
	next time.Time // when entries may be counted again
}

// Look reports whether the stream is below its limits. (XLEN, XINFO GROUPS, XGROUP CREATE, XGROUP DESTROY, XRANGE)
func (r *Room) Look(ctx context.Context) (bool, error) {
	count := "0"
	began := time.Now()
	r.mu.Lock()
	if began.After(r.next) {
		count = "1"
	}
	r.mu.Unlock()
	n, err := runScript(ctx, r.Client, roomScript, []string{r.Key}, r.Group, r.MaxLag, r.MaxLen, count).Int()
	if count == "1" && n == 0 {
		r.mu.Lock()
		r.next = time.Now().Add(recount * time.Since(began))
		r.mu.Unlock()
	}
	return n == 1, err
}

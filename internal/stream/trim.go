package stream

import (
	"context"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/flaminco/redischannels/internal/redisconn"
)

// Trim bounds a stream while it is appended to. At most one of MaxLen and MaxAge is above 0;
// the zero value trims nothing.
type Trim struct {
	MaxLen int64
	MaxAge time.Duration // by the clock of the server, of which entry IDs are made
	Exact  bool
}

// Operator returns the operator of MAXLEN and MINID.
func (t Trim) Operator() string {
	if t.Exact {
		return "="
	}
	return "~"
}

// MinID returns the milliseconds of the oldest ID that MaxAge keeps when it is now on the
// server. It is 0, which trims nothing, for an age beyond the epoch.
func (t Trim) MinID(now time.Time) int64 { return max(0, now.Add(-t.MaxAge).UnixMilli()) }

// Time returns the time of the server that owns the key. The client does not repeat it. (TIME)
func Time(ctx context.Context, client redis.UniversalClient, key string) (time.Time, error) {
	node, err := redisconn.Master(ctx, client, key)
	if err != nil {
		return time.Time{}, err
	}
	cmd := redisconn.OnceTime{TimeCmd: redis.NewTimeCmd(ctx, "time")}
	if err := redisconn.Process(ctx, node, cmd); err != nil {
		return time.Time{}, err
	}
	return cmd.Val(), nil
}

package redistest

import (
	"context"
	"testing"

	"github.com/redis/go-redis/v9"
)

// NeedsRedis7 skips a test of what servers before Redis 7 cannot do: shard channels, and telling
// what of a stream they have deleted. What is different with them stands in docs/guarantees.md.
func NeedsRedis7(tb testing.TB, client redis.UniversalClient) {
	tb.Helper()
	if !IsRedis7(tb, client) {
		tb.Skip("this server is older than Redis 7: docs/guarantees.md tells what is different with it")
	}
}

// IsRedis7 reports whether the server is not older than Redis 7. One that does not tell, because
// the user may not ask, is none.
func IsRedis7(tb testing.TB, client redis.UniversalClient) bool {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), countTimeout)
	defer cancel()
	reply, err := client.Do(ctx, "COMMAND", "INFO", "SSUBSCRIBE").Slice()
	return err != nil || len(reply) == 1 && reply[0] != nil
}

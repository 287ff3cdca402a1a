package redistest

import (
	"context"
	"testing"

	"github.com/redis/go-redis/v9"
)

// NeedsRedis7 skips a test of what servers before Redis 7 cannot do, and says what that is: a
// difference that docs/guarantees.md describes, or something that the test itself needs.
func NeedsRedis7(tb testing.TB, client redis.UniversalClient, what string) {
	tb.Helper()
	if !IsRedis7(tb, client) {
		tb.Skipf("%s: this server is older than Redis 7 (docs/guarantees.md, Redis 6.2)", what)
	}
}

// IsRedis7 reports whether the server is Redis 7, Valkey or newer: it has shard channels, and
// reports which entries of a stream it has deleted. One that does not answer, because the user may not
// ask, is taken for one, so that its test is not skipped.
func IsRedis7(tb testing.TB, client redis.UniversalClient) bool {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), countTimeout)
	defer cancel()
	reply, err := client.Do(ctx, "COMMAND", "INFO", "SSUBSCRIBE").Slice()
	return err != nil || len(reply) == 1 && reply[0] != nil
}

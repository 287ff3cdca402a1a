package redistest

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
)

// Tests would be skipped where they must run.
func TestIsRedis7(t *testing.T) {
	t.Parallel()
	client, key := Shared(t).Client(t), Key(t)
	require.NoError(t, client.XGroupCreateMkStream(t.Context(), key, "g", "$").Err())
	info, err := client.Do(t.Context(), "XINFO", "STREAM", key).Result()
	require.NoError(t, err)
	if !IsRedis7(t, client) {
		require.NotContains(t, fmt.Sprint(info), "max-deleted-entry-id")
		return
	}
	require.Contains(t, fmt.Sprint(info), "max-deleted-entry-id")
	require.False(t, IsRedis7(t, Start(t, Arg("rename-command", "SSUBSCRIBE", "")).Client(t)))
}

package redistest

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// A set is ready when it is returned, and elects a new master when the old one dies.
func TestSentinels(t *testing.T) {
	t.Parallel()
	start := time.Now()
	set := StartSentinels(t, 2)
	t.Logf("ready after %s", time.Since(start))
	require.Len(t, set.Servers, 3)
	old := set.Master()
	require.Same(t, set.Servers[0], old)
	client := set.Client(t)
	require.NoError(t, client.Set(t.Context(), "k", "v", 0).Err())
	require.EqualValues(t, 2, client.Wait(t.Context(), 2, time.Second).Val())

	old.Kill()
	start = time.Now()
	next := set.AwaitFailover(old)
	t.Logf("failed over after %s", time.Since(start))
	require.NotSame(t, old, next)
	Eventually(t, 10*time.Second, func() bool { return client.Set(t.Context(), "k", "w", 0).Err() == nil }, "the client follows")
	require.Equal(t, "w", next.Client(t).Get(t.Context(), "k").Val())

	old.Restart()
	Eventually(t, 20*time.Second, func() bool { return old.Client(t).Get(t.Context(), "k").Val() == "w" }, "the old master follows the new one")
}

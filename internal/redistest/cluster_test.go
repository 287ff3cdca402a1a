package redistest

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestCluster(t *testing.T) {
	t.Parallel()
	c := StartCluster(t, 3)
	replica := c.AddReplica(0)
	require.Len(t, c.Nodes, 4)
	client := c.Client(t)
	key := Key(t)
	require.NoError(t, client.Set(t.Context(), key, "v", 0).Err())
	require.NoError(t, client.Del(t.Context(), key).Err())

	to := (c.Owner(0, key) + 1) % 3
	c.MoveSlot(key, to)
	require.NoError(t, client.Set(t.Context(), key, "v", 0).Err(), "the client follows")
	for range 6 {
		to = (to + 1) % 3
		c.MoveSlot(key, to)
		for asked := range 3 {
			require.Equal(t, to, c.Owner(asked, key))
		}
		require.Equal(t, "v", c.Admin(to).Get(t.Context(), key).Val(), "with its data")
	}
	require.Contains(t, c.text(3, "info", "replication"), "role:slave")
	require.NotEmpty(t, replica.Addr())
}

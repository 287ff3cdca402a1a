package redischannels

import (
	"testing"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
)

// go-redis' parsers read the URL; scheme and parameters say which client it is for.
func TestNewRedisClient(t *testing.T) {
	t.Parallel()
	for url, check := range map[string]func(c redis.UniversalClient) bool{
		"redis://h:1/3": func(c redis.UniversalClient) bool {
			o := c.(*redis.Client).Options()
			return o.Addr == "h:1" && o.DB == 3 && o.TLSConfig == nil
		},
		"rediss://u:p@h:1?pool_size=7": func(c redis.UniversalClient) bool {
			o := c.(*redis.Client).Options()
			return o.TLSConfig != nil && o.Username == "u" && o.PoolSize == 7
		},
		"unix:///tmp/x.sock":        func(c redis.UniversalClient) bool { return c.(*redis.Client).Options().Network == "unix" },
		"redis+cluster://h:1":       func(c redis.UniversalClient) bool { return len(c.(*redis.ClusterClient).Options().Addrs) == 1 },
		"redis://h:1?addr=i:2":      func(c redis.UniversalClient) bool { return len(c.(*redis.ClusterClient).Options().Addrs) == 2 },
		"rediss+cluster://h:1":      func(c redis.UniversalClient) bool { return c.(*redis.ClusterClient).Options().TLSConfig != nil },
		"redis://h:1?master_name=m": func(c redis.UniversalClient) bool { return c.(*redis.Client).Options().Addr == "FailoverClient" },
		"redis+sentinel://h:1/2?master_name=m&addr=i:2": func(c redis.UniversalClient) bool {
			return c.(*redis.Client).Options().DB == 2
		},
	} {
		client, err := NewRedisClient(url)
		require.NoError(t, err, url)
		require.True(t, check(client), url)
		require.NoError(t, client.Close())
	}
	// An error must not contain the password.
	for _, url := range []string{
		"redis://u:secret@h:x", "redis://u:secret@h/%zz", "x://u:secret@h", "redis+cluster://:secret@h:x", "u:secret@h:1",
		"redis://u:secret@h/x", "redis://u:secret@h?x=1", "redis+sentinel://u:secret@h:1", "redis://u:secret@h?db=x",
		// Characters that end the host are in the password, with digits before them, like a port.
		"redis://u:1/secret@h:6379", "redis://:1/secret@h", "redis://:1/se/cret/secret@h", "redis://u:1?secret@h:6379",
		"redis://u:1/secret?@h", "redis://u:1#secret@h", "redis://u:1@2/secret@h", "redis+cluster://:1?secret@h",
		"redis+sentinel://:1/secret@h?master_name=m", "redis://:1/secret@h?addr=i:2",
	} {
		_, err := NewRedisClient(url)
		require.ErrorIs(t, err, ErrInvalidArgument, url)
		require.NotContains(t, err.Error(), "secret")
	}
	client, err := NewRedisClient("redis://h:1?client_name=a@b")
	require.NoError(t, err, "an @ elsewhere is no mistake")
	require.NoError(t, client.Close())
}

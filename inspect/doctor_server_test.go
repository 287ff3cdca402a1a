package inspect

import (
	"maps"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels/internal/redistest"
)

func TestMain(m *testing.M) { redistest.Main(m) }

// What a server reports that no test can bring about in time, or that depends on its version.
func TestServerChecks(t *testing.T) {
	t.Parallel()
	healthy := map[string]string{
		"redis_version": "8.2.2", "role": "master", "connected_slaves": "1", "slave0": "ip=10.0.0.2,port=6379,state=online,offset=1,lag=0",
		"aof_enabled": "1", "aof_last_write_status": "ok", "rdb_last_bgsave_status": "ok", "maxmemory": "0",
		"maxmemory_policy": "noeviction", "used_memory": "1000",
	}
	for _, c := range []struct {
		check   string
		info    map[string]string
		problem string // a part; empty: nothing is found
	}{
		{"version", map[string]string{"redis_version": "6.0.16"}, "Redis 6.0.16"},
		{"version", map[string]string{"redis_version": "255.255.255"}, ""},
		{"defects", map[string]string{"redis_version": "6.2.19"}, "Redis 6.2.19"},
		{"defects", map[string]string{"redis_version": "6.2.20"}, ""},
		{"defects", map[string]string{"redis_version": "7.0.15"}, "Redis 7.0.15"},
		{"defects", map[string]string{"redis_version": "7.4.5"}, "Redis 7.4.5"},
		{"defects", map[string]string{"redis_version": "8.4.0"}, ""},
		{"defects", map[string]string{"redis_version": "7.2.4", "valkey_version": "8.1.3"}, "Valkey 8.1.3"},
		{"defects", map[string]string{"redis_version": "7.2.4", "valkey_version": "9.0.0"}, ""},
		{"memory", map[string]string{"maxmemory": "1000", "used_memory": "801"}, "801 of 1000"},
		{"memory", map[string]string{"maxmemory": "1000", "used_memory": "800"}, ""},
		{"disk", map[string]string{"aof_last_write_status": "err"}, "append-only file"},
		{"disk", map[string]string{"rdb_last_bgsave_status": "err"}, "snapshot"},
		{"disk", map[string]string{"aof_last_bgrewrite_status": "err"}, "rewrite"},
		{"replicas", map[string]string{"slave0": "ip=10.0.0.2,port=6379,state=online,offset=1,lag=11"}, "10.0.0.2:6379 is behind"},
		{"replicas", map[string]string{"slave0": "ip=10.0.0.2,port=6379,state=wait_bgsave"}, "wait_bgsave"},
		{"role", map[string]string{"role": "slave", "connected_slaves": "0", "slave_read_only": "0"}, ""},
		{"", nil, ""},
	} {
		s := server{info: maps.Clone(healthy)}
		maps.Copy(s.info, c.info)
		found := map[string]string{}
		for _, check := range serverChecks {
			if f, ok := check(s); ok {
				found[f.Check] = f.Problem
				require.NotEmpty(t, f.Severity)
				require.NotEmpty(t, f.Action)
			}
		}
		if c.problem == "" {
			require.Empty(t, found, "%v", c.info)
			continue
		}
		require.Len(t, found, 1, "%v", c.info)
		require.Contains(t, found[c.check], c.problem)
	}
}

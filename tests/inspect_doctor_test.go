package tests

import (
	"context"
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels/inspect"
	"github.com/flaminco/redischannels/internal/redistest"
)

// diagnosis returns what the doctor finds, by the names of its checks, without a defect of the version that the
// tests run on.
func diagnosis(t *testing.T, client redis.UniversalClient) map[string]inspect.Finding {
	t.Helper()
	findings, err := newInspector(t, client).Doctor(t.Context(), inspect.DoctorQuery{})
	require.NoError(t, err)
	found := make(map[string]inspect.Finding)
	for _, f := range findings {
		require.NotEmpty(t, f.Problem)
		require.NotEmpty(t, f.Action)
		if f.Check != "defects" {
			found[f.Check] = f
		}
	}
	return found
}

func TestDoctor_Servers(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name     string
		options  []redistest.Option
		check    string
		severity inspect.Severity
	}{
		{"healthy", nil, "", ""},
		{"eviction of all keys", []redistest.Option{redistest.Arg("maxmemory", "1gb"), redistest.Arg("maxmemory-policy", "allkeys-lru")}, "eviction", inspect.SeverityCritical},
		{"eviction of keys with a TTL", []redistest.Option{redistest.Arg("maxmemory", "1gb"), redistest.Arg("maxmemory-policy", "volatile-ttl")}, "eviction", inspect.SeverityWarning},
		{"eviction without a limit", []redistest.Option{redistest.Arg("maxmemory-policy", "allkeys-lru")}, "", ""},
		{"full", []redistest.Option{redistest.Arg("maxmemory", "1mb")}, "memory", inspect.SeverityWarning},
		{"no persistence", []redistest.Option{redistest.Arg("appendonly", "no")}, "persistence", inspect.SeverityWarning},
		{"clock", []redistest.Option{redistest.ClockOffset(-10 * time.Minute)}, "clock", inspect.SeverityWarning},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			server := redistest.Start(t, append([]redistest.Option{redistest.AOF()}, c.options...)...)
			found := diagnosis(t, server.Client(t))
			require.Equal(t, inspect.SeverityInfo, found["replicas"].Severity)
			require.Equal(t, server.Addr(), found["replicas"].Node)
			delete(found, "replicas")
			if c.check == "" {
				require.Empty(t, found)
				return
			}
			require.Len(t, found, 1)
			require.Equal(t, c.severity, found[c.check].Severity)
		})
	}
}

// A client of a replica cannot publish; its master has a replica.
func TestDoctor_Replica(t *testing.T) {
	t.Parallel()
	master, replica := redistest.Start(t, redistest.AOF()), redistest.Start(t, redistest.AOF())
	host, port, err := net.SplitHostPort(master.Addr())
	require.NoError(t, err)
	require.NoError(t, replica.Client(t).ReplicaOf(t.Context(), host, port).Err())
	redistest.Eventually(t, soon, func() bool { return len(diagnosis(t, master.Client(t))) == 0 }, "the replica is online")
	found := diagnosis(t, replica.Client(t))
	require.Len(t, found, 1)
	require.Equal(t, inspect.SeverityCritical, found["role"].Severity)
}

// What the user is not permitted to look at is a finding, and so is a server that runs no scripts.
func TestDoctor_Permissions(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t, redistest.AOF(), redistest.WithACL("blind on >pw ~* &* +@all -info", "mute on >pw ~* &* +@all -eval"))
	as := func(name string) *redis.Client {
		return server.Client(t, func(o *redis.Options) { o.Username, o.Password = name, "pw" })
	}
	found := diagnosis(t, as("blind"))
	require.Len(t, found, 1)
	require.Contains(t, found["permission"].Action, "+info")
	require.Equal(t, inspect.SeverityCritical, diagnosis(t, as("mute"))["scripting"].Severity)
}

// In a cluster every master is checked, and the most urgent findings come first.
func TestDoctor_Cluster(t *testing.T) {
	t.Parallel()
	cluster := redistest.StartCluster(t, 3)
	findings, err := newInspector(t, cluster.Client(t)).Doctor(t.Context(), inspect.DoctorQuery{})
	require.NoError(t, err)
	nodes := make(map[string]bool)
	order := map[inspect.Severity]int{inspect.SeverityCritical: 0, inspect.SeverityWarning: 1, inspect.SeverityInfo: 2}
	for i, f := range findings {
		nodes[f.Node] = true
		require.True(t, i == 0 || order[findings[i-1].Severity] <= order[f.Severity], fmt.Sprint(findings))
	}
	require.Len(t, nodes, 3)
}

// A server that is silent ends the call with its context, and not with a clean bill.
func TestDoctor_SilentServer(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	client := server.Client(t)
	require.NoError(t, client.Ping(t.Context()).Err())
	server.Pause()
	defer server.Resume()
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	_, err := newInspector(t, client).Doctor(ctx, inspect.DoctorQuery{})
	require.ErrorContains(t, err, "doctor")
}

package tests

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels/internal/redisconn"
	"github.com/flaminco/redischannels/internal/redistest"
	"github.com/flaminco/redischannels/internal/stream"
)

func ping(t *testing.T, control *redisconn.Control) error {
	t.Helper()
	client, err := control.Client(t.Context())
	require.NoError(t, err)
	return client.Ping(t.Context()).Err()
}

// A subscription that holds nothing needs no connection for renewals.
func TestControl_OpensOnFirstUse(t *testing.T) {
	t.Parallel()
	proxy := redistest.NewProxy(t, redistest.Shared(t).Addr())
	base := redistest.Shared(t).Client(t, redistest.Via(proxy), func(o *redis.Options) { o.MinIdleConns = 0 })
	before := proxy.Accepted()
	var seen []*redis.Client
	control := redisconn.NewControl(base, redistest.Key(t), time.Minute, func(c *redis.Client) { seen = append(seen, c) })
	defer control.Close()
	require.Empty(t, seen)
	client, err := control.Client(t.Context())
	require.NoError(t, err)
	require.Equal(t, []*redis.Client{client}, seen)
	require.Equal(t, before, proxy.Accepted())

	var pings sync.WaitGroup
	for range 20 {
		pings.Go(func() { _ = client.Ping(t.Context()).Err() })
	}
	pings.Wait()
	require.LessOrEqual(t, proxy.Accepted(), before+2)
}

// Each idle connection that had become silent cost a command the ReadTimeout of the caller,
// which may be far longer than a lease.
func TestControl_SilentConnections(t *testing.T) {
	t.Parallel()
	proxy := redistest.NewProxy(t, redistest.Shared(t).Addr())
	base := redistest.Shared(t).Client(t, redistest.Via(proxy), func(o *redis.Options) {
		o.ReadTimeout, o.DialTimeout, o.PoolTimeout, o.MaxRetries = time.Minute, time.Minute, time.Minute, 10
	})
	control := redisconn.NewControl(base, redistest.Key(t), 100*time.Millisecond, nil)
	defer control.Close()
	require.NoError(t, ping(t, control))
	proxy.Blackhole(true)
	start := time.Now()
	require.Error(t, ping(t, control), "on the connection that it has")
	require.Error(t, ping(t, control), "on one that it dials")
	require.Less(t, time.Since(start), soon)
	proxy.Blackhole(false)
	control.Reset()
	require.NoError(t, ping(t, control))
}

// After Reset every command dials, whatever connections there were.
func TestControl_ResetDials(t *testing.T) {
	t.Parallel()
	proxy := redistest.NewProxy(t, redistest.Shared(t).Addr())
	control := redisconn.NewControl(redistest.Shared(t).Client(t, redistest.Via(proxy)), redistest.Key(t), time.Minute, nil)
	defer control.Close()
	for i := range 3 {
		require.NoError(t, ping(t, control))
		require.NoError(t, ping(t, control))
		require.Equal(t, i+1, proxy.Accepted())
		control.Reset()
	}
	redistest.Eventually(t, soon, func() bool { return proxy.Connections() == 0 }, "connections stay open")
}

func TestControl_Close(t *testing.T) {
	t.Parallel()
	proxy := redistest.NewProxy(t, redistest.Shared(t).Addr())
	control := redisconn.NewControl(redistest.Shared(t).Client(t, redistest.Via(proxy)), redistest.Key(t), time.Minute, nil)
	client, err := control.Client(t.Context())
	require.NoError(t, err)
	require.NoError(t, client.Ping(t.Context()).Err())
	control.Close()
	control.Close()
	require.ErrorIs(t, client.Ping(t.Context()).Err(), redis.ErrClosed)
	_, err = control.Client(t.Context())
	require.ErrorIs(t, err, redis.ErrClosed)
	redistest.Eventually(t, soon, func() bool { return proxy.Connections() == 0 }, "connections stay open")
}

// Renewals continue while the reader resets the control after a reconnect.
func TestControl_ConcurrentUse(t *testing.T) {
	t.Parallel()
	proxy := redistest.NewProxy(t, redistest.Shared(t).Addr())
	control := redisconn.NewControl(redistest.Shared(t).Client(t, redistest.Via(proxy)), redistest.Key(t), time.Minute, func(*redis.Client) {})
	var users sync.WaitGroup
	for range 4 {
		users.Go(func() {
			for {
				client, err := control.Client(context.Background())
				if err != nil {
					return // closed
				}
				_ = client.Ping(context.Background()).Err()
			}
		})
	}
	for range 50 {
		control.Reset()
		require.NoError(t, redistest.Shared(t).Client(t).Ping(t.Context()).Err())
	}
	control.Close()
	users.Wait()
	redistest.Eventually(t, soon, func() bool { return proxy.Connections() == 0 }, "connections stay open")
}

// The first commands after a reconnect run on the connection of the reader.
func TestReader_DoUsesItsConnection(t *testing.T) {
	t.Parallel()
	server := redistest.Shared(t)
	key := redistest.Key(t)
	proxy := redistest.NewProxy(t, server.Addr())
	reader := stream.NewReader(server.Client(t, redistest.Via(proxy)), key, time.Second, nil, nil)
	defer reader.Close()
	for range 2 {
		require.NoError(t, reader.Do(t.Context(), func(client *redis.Client) error {
			group := stream.Group{Client: client, Key: key, Name: "g", Consumer: "c"}
			if _, err := group.Ensure(t.Context(), "$"); err != nil {
				return err
			}
			_, err := group.Own(t.Context(), stream.ID{}, 10) // a script
			return err
		}))
		require.NoError(t, server.Client(t).XAdd(t.Context(), &redis.XAddArgs{Stream: key, Values: []string{"f", "v"}}).Err())
		pages, err := reader.ReadGroup(t.Context(), "g", "c", []string{key}, 10)
		require.NoError(t, err)
		require.Len(t, pages, 1)
		require.Len(t, pages[0].Entries, 1)
	}
	require.Equal(t, 1, proxy.Accepted())
}

// The master of a key can change while the control has a client for the old one.
func TestControl_ResetFindsTheMaster(t *testing.T) {
	t.Parallel()
	cluster := redistest.StartCluster(t, 2)
	key := redistest.Key(t)
	base := cluster.Client(t)
	require.NoError(t, base.Ping(t.Context()).Err())
	control := redisconn.NewControl(base, key, time.Minute, nil)
	defer control.Close()
	add := func() error {
		client, err := control.Client(t.Context())
		require.NoError(t, err)
		return client.XAdd(t.Context(), &redis.XAddArgs{Stream: key, Values: []string{"f", "v"}}).Err()
	}
	require.NoError(t, add())
	cluster.MoveSlot(key, 1-cluster.Owner(0, key))
	require.Equal(t, redisconn.KindUnavailable, redisconn.Classify(add()))
	redistest.Eventually(t, soon/2, func() bool {
		control.Reset()
		return add() == nil
	}, "the new master is not found")
}

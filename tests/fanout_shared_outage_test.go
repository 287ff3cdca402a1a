package tests

import (
	"context"
	"net"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
)

// The connection of the shared reader cannot be made (maxclients, a firewall, an exhausted
// range of ports) while those of the caller's client work: each subscription read by itself,
// joined and was expelled again, thousands of times a second, and nobody was told. (F15, F16)
func TestFanOut_SharedReaderWithoutAConnection(t *testing.T) {
	t.Parallel()
	server := redistest.Shared(t)
	topic := redistest.Key(t)
	var refuse atomic.Bool
	var refused atomic.Int64
	client := server.Client(t, func(o *redis.Options) {
		o.PoolSize = 1
		o.Dialer = func(ctx context.Context, network, addr string) (net.Conn, error) {
			if refuse.Load() {
				refused.Add(1)
				return nil, &net.OpError{Op: "dial", Net: network, Err: syscall.ECONNREFUSED}
			}
			return (&net.Dialer{}).DialContext(ctx, network, addr)
		}
	})
	require.NoError(t, client.Ping(t.Context()).Err())
	refuse.Store(true)
	own := redistest.NewHook()
	client.AddHook(own)
	sub := newSub(t, client, fanOut)
	messages := sub.subscribe(t, topic)
	event := sub.events.wait(t, redischannels.EventDisconnected)
	require.Equal(t, topic, event.Topic)
	redistest.Eventually(t, soon, func() bool { return refused.Load() > 5 }, "it tries again")
	before := own.Count("xread")
	redistest.Never(t, time.Second, func() bool { return own.Count("xread")-before > 8 }, "it reads without end")

	other := server.Client(t)
	publish(t, other, topic, "during")
	require.Equal(t, []string{"during"}, receiveAcked(t, messages, 1))
	require.Len(t, sub.events.of(redischannels.EventDisconnected), 1, "one event per outage")
	sub.events.none(t, redischannels.EventReconnected)

	refuse.Store(false)
	sub.events.wait(t, redischannels.EventReconnected)
	publish(t, other, topic, "after")
	require.Equal(t, []string{"after"}, receiveAcked(t, messages, 1))
	require.Len(t, sub.events.of(redischannels.EventDisconnected), 1)
	require.Len(t, sub.events.of(redischannels.EventReconnected), 1)
}

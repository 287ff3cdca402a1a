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

// An error that stays, for a subscription without a group.
func TestFanOut_OutageIsWaitedOut(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]lastingFault{
		"NOPERM":      {fail: aclRule("-xread"), mend: aclRule("+xread")},
		"WRONGTYPE":   wrongType,
		"server down": serverDown,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := redistest.Start(t, redistest.AOF(), redistest.WithACL("app on >secret ~* +@all"))
			fault.isWaitedOut(t, server, fanOut)
		})
	}
}

// A fan-out subscription that was reading when the server went away continues behind what it had:
// nothing is missing and nothing comes twice.
func TestFanOut_ResumesAfterAnOutage(t *testing.T) {
	t.Parallel()
	for _, state := range []string{"blocked", "behind"} {
		t.Run(state, func(t *testing.T) {
			t.Parallel()
			server := redistest.Start(t, redistest.AOF())
			client, topic := server.Client(t), redistest.Key(t)
			sub := newSub(t, client, fanOut, tuned(func(c *redischannels.Tuning) { c.Prefetch = 2 }))
			messages := sub.subscribe(t, topic)
			want := numbered(20)
			got := 0
			if state == "behind" { // its window is full, the rest is in Redis
				publish(t, client, topic, want[:10]...)
				require.Equal(t, want[:1], receiveAcked(t, messages, 1))
				got = 1
			} else {
				redistest.Eventually(t, soon, func() bool { return redistest.BlockedClients(t, client) == 1 }, "the reader waits")
			}
			server.Stop()
			if state == "blocked" {
				sub.events.wait(t, redischannels.EventDisconnected)
			}
			server.Restart()
			if state == "blocked" {
				publish(t, client, topic, want[:10]...)
			}
			publish(t, client, topic, want[10:]...)
			require.Equal(t, want[got:], receiveAcked(t, messages, len(want)-got))
			noMessage(t, messages)
			require.LessOrEqual(t, len(sub.events.of(redischannels.EventDisconnected)), 1)
			sub.events.none(t, redischannels.EventRewound, redischannels.EventGap, redischannels.EventError)
		})
	}
}

// The connection of the shared reader cannot be made (maxclients, a firewall, an exhausted
// range of ports) while those of the caller's client work: each subscription read by itself,
// joined and was expelled again, thousands of times a second, and nothing was reported.
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

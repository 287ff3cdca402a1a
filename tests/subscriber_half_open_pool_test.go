package tests

import (
	"fmt"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
)

// halfOpen is a client whose established connections can go silent while new ones work.
type halfOpen struct {
	old    *redistest.Proxy
	way    switched
	server *redistest.Server
	client *redis.Client // with go-redis' default timeouts
	direct *redis.Client
}

func newHalfOpen(t *testing.T) *halfOpen {
	t.Helper()
	server := redistest.Start(t)
	h := &halfOpen{server: server, old: redistest.NewProxy(t, server.Addr()), direct: server.Client(t)}
	h.way.to.Store(h.old)
	h.client = server.Client(t, h.way.option)
	return h
}

// silence makes every connection silent that is open now, n idle ones of the pool among them.
func (h *halfOpen) silence(t *testing.T, n int) {
	t.Helper()
	var conns []*redis.Conn
	for range n {
		conn := h.client.Conn()
		require.NoError(t, conn.Ping(t.Context()).Err())
		conns = append(conns, conn)
	}
	for _, conn := range conns {
		require.NoError(t, conn.Close())
	}
	require.GreaterOrEqual(t, int(h.client.PoolStats().IdleConns), n)
	h.way.to.Store(redistest.NewProxy(t, h.server.Addr()))
	h.old.Blackhole(true)
}

// end closes the silent connections, as their peer does when it is back, so that the test ends soon.
func (h *halfOpen) end() { h.old.Cut() }

// After a network that became half-open, each dead idle connection of the caller's pool cost one
// ReadTimeout before the next message: 27 seconds in a group, 33 without one.
func TestHalfOpen_NextMessageDespiteDeadIdleConnections(t *testing.T) {
	t.Parallel()
	const block = time.Second
	tuning := redischannels.Tuning{BlockTime: block, DrainTimeout: time.Second}
	for name, consume := range map[string]func(*testing.T, *redis.Client, string, redischannels.Tuning, func(string)){
		"strict order":    consumeWithSubscriber(inFlight(1)),
		"MaxInFlight 16":  consumeWithSubscriber(inFlight(16)),
		"fan-out":         consumeWithSubscriber(fanOut),
		"Reader, fan-out": consumeWithReader(redischannels.NoConsumerGroup),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHalfOpen(t)
			topic := redistest.Key(t)
			got := make(chan string, 10)
			consume(t, h.client, topic, tuning, func(payload string) { got <- payload })
			blocked := func() bool { return redistest.BlockedClients(t, h.direct) > 0 }
			redistest.Eventually(t, soon, blocked, "it reads")
			publish(t, h.direct, topic, "before")
			require.Equal(t, "before", <-got)
			redistest.Eventually(t, soon, blocked, "it waits for the next one")

			h.silence(t, 5)
			defer h.end()
			publish(t, h.direct, topic, "next")
			select {
			case payload := <-got:
				require.Equal(t, "next", payload)
			case <-time.After(block + 2*time.Second):
				require.FailNow(t, "no message", "within BlockTime and two seconds after the network became half-open")
			}
		})
	}
}

// Renewals went through the caller's pool as well: the leases ran out while they waited for its
// dead connections, and another consumer was given a message that this one handles.
func TestHalfOpen_LeasesOfMessagesInFlight(t *testing.T) {
	t.Parallel()
	const idle = 3 * time.Second
	for _, n := range []int{1, 16} {
		t.Run(fmt.Sprintf("MaxInFlight %d", n), func(t *testing.T) {
			t.Parallel()
			h := newHalfOpen(t)
			topic := redistest.Key(t)
			sub := newSub(t, h.client, inFlight(n), minIdle(idle))
			messages := sub.subscribe(t, topic)
			publish(t, h.direct, topic, numbered(n)...)
			var held []*message.Message
			for range n {
				held = append(held, receive(t, messages))
			}

			h.silence(t, 5)
			defer h.end()
			other := newSub(t, h.direct, inFlight(n), minIdle(idle))
			select {
			case msg := <-other.subscribe(t, topic):
				require.FailNow(t, "another consumer was given a message that is being handled", string(msg.Payload))
			case <-time.After(2*idle + idle/2):
			}
			for _, msg := range held {
				require.NoError(t, msg.Context().Err())
				msg.Ack()
			}
			h.end()
			eventuallyPending(t, h.direct, topic, 0)
			sub.events.none(t, redischannels.EventLeaseLost, redischannels.EventAckIgnored)
		})
	}
}

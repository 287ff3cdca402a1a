package tests

import (
	"context"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
)

// Where packets vanish each attempt of the client takes all the time that dialing may, and a
// Subscribe went through all of them: also when its context had ended, to take back what it had
// made, or when its subscriber was closed, which waited for it.
func TestNetwork_SubscribeEndsWhilePacketsVanish(t *testing.T) {
	t.Parallel()
	for _, first := range []string{"context", "subscriber"} {
		t.Run(first, func(t *testing.T) {
			t.Parallel()
			var vanish atomic.Bool
			over, end := context.WithCancel(context.Background())
			proxy, client, _ := pubProxy(t, func(o *redis.Options) {
				o.DialTimeout = 2 * time.Second
				o.Dialer = func(ctx context.Context, network, addr string) (net.Conn, error) {
					if vanish.Load() {
						select {
						case <-ctx.Done():
						case <-over.Done():
						}
					}
					return new(net.Dialer).DialContext(ctx, network, addr)
				}
			})
			rule := proxy.BeforeReply(1, scriptOf(t, "scan"), func() {
				vanish.Store(true)
				proxy.Cut()
			})
			sub := newSub(t, client)
			t.Cleanup(end)
			ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
			defer cancel()
			failed := make(chan error, 1)
			go func() {
				_, err := sub.Subscribe(ctx, redistest.Key(t))
				failed <- err
			}()
			rule.Wait(t, soon)
			if first == "context" {
				cancel()
			}
			start := time.Now()
			require.NoError(t, sub.Close())
			require.Error(t, <-failed)
			require.Less(t, time.Since(start), 10*time.Second, "five seconds, and little more")
		})
	}
}

// A subscription is closed while its connection is dead and the server has handed an entry to
// that: no handler has seen it, and another consumer would have to wait for MinIdle.
func TestNetwork_CloseReleasesEntriesOfALostReply(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	direct, topic := server.Client(t), redistest.Key(t)
	dead := redistest.NewProxy(t, server.Addr())
	var way switched
	way.to.Store(dead)
	client := server.Client(t, way.option, func(o *redis.Options) { o.ReadTimeout = 200 * time.Millisecond })
	sub := newSub(t, client, tuned(func(c *redischannels.Tuning) { c.MinIdle, c.BlockTime = time.Minute, 10*time.Second }))
	messages := sub.subscribe(t, topic)
	redistest.Eventually(t, soon, func() bool { return redistest.BlockedClients(t, direct) == 1 }, "the reader waits")
	dead.Blackhole(true)
	way.to.Store(redistest.NewProxy(t, server.Addr()))
	publish(t, direct, topic, "m")
	eventuallyPending(t, direct, topic, 1)
	sub.closeSoon(t)
	waitClosed(t, messages)

	heir := newSub(t, direct, minIdle(time.Minute))
	msg := receive(t, heir.subscribe(t, topic))
	require.Equal(t, 1, countOf(t, msg), "no handler has had it before")
	msg.Ack()
	eventuallyPending(t, direct, topic, 0)
}

// Close cannot reach the server, which is down or silent: it gives up in time, reports what it
// leaves behind, and another consumer gets that when it has aged.
func TestNetwork_CloseDuringAnOutage(t *testing.T) {
	t.Parallel()
	const drain, timeout = 500 * time.Millisecond, time.Second
	for name, fault := range map[string]func(*redistest.Proxy, bool){
		"refused": (*redistest.Proxy).Refuse, "silent": (*redistest.Proxy).Blackhole,
	} {
		for kind, change := range map[string]func(*redischannels.SubscriberConfig){"group": inFlight(3), "fan-out": fanOut} {
			t.Run(name+", "+kind, func(t *testing.T) {
				t.Parallel()
				goroutines := redistest.Goroutines(t)
				proxy, client, direct := pubProxy(t, func(o *redis.Options) { o.ReadTimeout, o.MaxRetries = timeout, 20 })
				topic := redistest.Key(t)
				sub := newSub(t, client, change, tuned(func(c *redischannels.Tuning) { c.DrainTimeout, c.MinIdle = drain, 2*time.Second }))
				messages := sub.subscribe(t, topic)
				publish(t, direct, topic, numbered(5)...)
				acked := receive(t, messages)
				if kind == "group" {
					receive(t, messages) // and is handled forever
				}
				fault(proxy, true)
				acked.Ack()
				start := time.Now()
				require.NoError(t, sub.Close())
				took := time.Since(start)
				t.Logf("Close took %s", took)
				if kind == "group" {
					require.Less(t, took, 12*time.Second, "five seconds and a few timeouts, not 20 attempts")
				} else {
					require.Less(t, took, drain+3*timeout)
				}
				waitClosed(t, messages)
				fault(proxy, false)
				goroutines.Wait(soon)
				if kind == "group" {
					sub.events.wait(t, redischannels.EventAbandoned)
					heir := newSub(t, direct, inFlight(5), minIdle(2*time.Second))
					require.ElementsMatch(t, numbered(5), receiveAcked(t, heir.subscribe(t, topic), 5))
					eventuallyPending(t, direct, topic, 0)
				}
			})
		}
	}
}

// A client without a ReadTimeout waits for a silent server forever, and so did Close.
func TestNetwork_CloseWithoutAReadTimeout(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*redischannels.SubscriberConfig){"group": inFlight(3), "fan-out": fanOut} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			proxy, client, direct := pubProxy(t, func(o *redis.Options) { o.ReadTimeout = -1 })
			topic := redistest.Key(t)
			sub := newSub(t, client, change, tuned(func(c *redischannels.Tuning) { c.DrainTimeout = 100 * time.Millisecond }))
			messages := sub.subscribe(t, topic)
			publish(t, direct, topic, "acked", "never")
			acked := receive(t, messages)
			proxy.Blackhole(true)
			acked.Ack()
			closed := make(chan struct{})
			go func() {
				defer close(closed)
				_ = sub.Close()
			}()
			select {
			case <-closed:
			case <-time.After(30 * time.Second): // five seconds, and a few timeouts of five
				proxy.Blackhole(false)
				require.FailNow(t, "Close does not return")
			}
			waitClosed(t, messages)
		})
	}
}

// The connection that is read from is half-open while others work: Redis says that it has woken
// the reader, which never hears of it, and Close waited for as long as a read may block.
func TestNetwork_CloseWithADeadReadConnection(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*redischannels.SubscriberConfig){"group": inFlight(2), "fan-out": fanOut} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := redistest.Start(t)
			direct := server.Client(t)
			dead := redistest.NewProxy(t, server.Addr())
			var way switched
			way.to.Store(dead)
			client := server.Client(t, way.option, func(o *redis.Options) { o.ConnMaxIdleTime = time.Nanosecond }) // but that of the reader
			sub := newSub(t, client, change, tuned(func(c *redischannels.Tuning) { c.MinIdle, c.BlockTime = time.Minute, 10*time.Second }))
			messages := sub.subscribe(t, redistest.Key(t))
			redistest.Eventually(t, soon, func() bool { return redistest.BlockedClients(t, direct) == 1 }, "the reader waits")
			way.to.Store(redistest.NewProxy(t, server.Addr()))
			dead.Blackhole(true)
			require.Less(t, sub.closeSoon(t), 3*time.Second)
			waitClosed(t, messages)
			sub.events.none(t, redischannels.EventDisconnected, redischannels.EventAbandoned)
		})
	}
}

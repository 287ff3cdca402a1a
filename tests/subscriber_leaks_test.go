package tests

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"runtime/debug"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
)

// Each Subscribe that fails leaves a goroutine, a context and a connection behind.
func TestSubscriber_FailedSubscribesLeaveNothing(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t, redistest.WithACL("poor on >secret ~* +@all -xreadgroup -xread"))
	client := server.Client(t)
	topic := redistest.Key(t)
	require.NoError(t, client.Set(t.Context(), topic+":string", "s", 0).Err())
	poor := server.Client(t, redistest.As("poor", "secret"))
	require.NoError(t, poor.Ping(t.Context()).Err())
	nobody := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1", MaxRetries: -1, DialerRetries: 1})
	defer nobody.Close()
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	goroutines := redistest.Goroutines(t)
	connections := redistest.Connections(t, client)
	for _, change := range []func(*redischannels.SubscriberConfig){inFlight(1), fanOut} {
		closed := newSub(t, client, change)
		require.NoError(t, closed.Close())
		for _, c := range []struct {
			sub   *testSub
			ctx   context.Context
			topic string
			want  error
		}{
			{newSub(t, client, change), t.Context(), topic + ":string", redischannels.ErrWrongType},
			{newSub(t, client, change), canceled, topic, context.Canceled},
			{newSub(t, client, change), t.Context(), "", redischannels.ErrInvalidArgument},
			{newSub(t, poor, change), t.Context(), topic, redischannels.ErrPermission},
			{newSub(t, nobody, change), t.Context(), topic, nil},
			{closed, t.Context(), topic, redischannels.ErrClosed},
		} {
			for range 200 {
				messages, err := c.sub.Subscribe(c.ctx, c.topic)
				require.Error(t, err)
				require.Nil(t, messages)
				if c.want != nil {
					require.ErrorIs(t, err, c.want)
				}
			}
		}
	}
	goroutines.Wait(time.Second)
	redistest.Eventually(t, soon, func() bool { return redistest.Connections(t, client) <= connections }, "connections are left")
	if groups, err := client.XInfoGroups(t.Context(), topic).Result(); err == nil {
		for _, g := range groups {
			require.Zero(t, g.Consumers, "consumers of subscriptions that never were")
		}
	}
}

// A subscription that has ended continues to claim and read, and steals messages that will
// not be handled.
func TestSubscriber_NothingRunsAfterTheEnd(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	client := server.Client(t)
	goroutines := redistest.Goroutines(t)
	for name, end := range map[string]func(sub *testSub, cancel context.CancelFunc){
		"cancel": func(_ *testSub, cancel context.CancelFunc) { cancel() },
		"close":  func(sub *testSub, _ context.CancelFunc) { sub.closeSoon(t) },
	} {
		for _, kind := range []string{"idle", "busy", "outage", "fan-out"} {
			t.Run(name+" "+kind, func(t *testing.T) {
				topic := redistest.Key(t)
				change := inFlight(2)
				if kind == "fan-out" {
					change = fanOut
				}
				sub := newSub(t, client, change, tuned(func(c *redischannels.Tuning) { c.DrainTimeout = 50 * time.Millisecond }))
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				messages, err := sub.Subscribe(ctx, topic)
				require.NoError(t, err)
				switch kind {
				case "busy":
					publish(t, client, topic, "a", "b", "c")
					receive(t, messages)
				case "outage":
					require.NoError(t, client.Set(t.Context(), topic, "no stream", 0).Err())
					sub.events.wait(t, redischannels.EventDisconnected)
					require.NoError(t, client.Del(t.Context(), topic).Err())
				}
				end(sub, cancel)
				waitClosed(t, messages)
				goroutines.Wait(time.Second)
				redistest.Eventually(t, soon, func() bool { return redistest.BlockedClients(t, client) == 0 }, "a blocked client is left")
				if kind == "fan-out" {
					return
				}
				pending := 0
				if kind == "busy" {
					pending = len(pendingOf(t, client, topic))
				}
				publish(t, client, topic, "later")
				_ = client.XGroupCreate(t.Context(), topic, "g", "0").Err()
				redistest.Never(t, quiet, func() bool { return len(pendingOf(t, client, topic)) != pending }, "entries are taken after the end")
			})
		}
	}
}

// Each restart leaves a consumer behind, and each reader without a group a group of its own:
// 38 million consumers.
func TestSubscriber_ConsumersAndGroupsDoNotPileUp(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)

	t.Run("restarts", func(t *testing.T) {
		t.Parallel()
		topic := redistest.Key(t)
		for i := range 100 {
			sub := newSub(t, client)
			messages := sub.subscribe(t, topic)
			if i%10 == 0 {
				publish(t, client, topic, "m")
				receiveAcked(t, messages, 1)
			}
			require.Len(t, consumersOf(t, client, topic), 1)
			sub.closeSoon(t)
		}
		require.Empty(t, consumersOf(t, client, topic))
	})
	t.Run("crashes", func(t *testing.T) {
		t.Parallel()
		topic := redistest.Key(t)
		require.NoError(t, client.XGroupCreateMkStream(t.Context(), topic, "g", "0").Err())
		for i := range 100 {
			require.NoError(t, client.XGroupCreateConsumer(t.Context(), topic, "g", fmt.Sprint("crashed", i)).Err())
		}
		redistest.Eventually(t, soon, func() bool {
			consumers, err := client.XInfoConsumers(t.Context(), topic, "g").Result()
			require.NoError(t, err)
			return consumers[99].Idle > 20*time.Millisecond
		}, "idle consumers")
		newSub(t, client, tuned(func(c *redischannels.Tuning) { c.ConsumerTimeout = 20 * time.Millisecond })).subscribe(t, topic)
		require.Len(t, consumersOf(t, client, topic), 1)
	})
	t.Run("fan-out", func(t *testing.T) {
		t.Parallel()
		topic := redistest.Key(t)
		for range 20 {
			sub := newSub(t, client, fanOut)
			messages := sub.subscribe(t, topic)
			publish(t, client, topic, "m")
			receiveAcked(t, messages, 1)
			for range sub.History(t.Context(), topic, redischannels.Oldest, redischannels.Latest) {
				continue
			}
			sub.closeSoon(t)
		}
		groups, err := client.XInfoGroups(t.Context(), topic).Result()
		require.NoError(t, err)
		require.Empty(t, groups)
	})
}

// What a subscription has opened stays behind: goroutines, blocked clients, consumers,
// connections. Not parallel: nothing is collected meanwhile.
func TestSubscriber_CloseLeavesNothing(t *testing.T) {
	// A connection that was forgotten is closed when it is collected.
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	server := redistest.Start(t)
	client := server.Client(t, func(o *redis.Options) { o.PoolSize, o.PipelinePoolSize = 2, -1 })
	topic := redistest.Key(t)
	require.NoError(t, client.Ping(t.Context()).Err())
	goroutines := redistest.Goroutines(t)
	connections := redistest.Connections(t, client)

	for n := range 100 {
		sub := newSub(t, client, inFlight(1+n%3))
		messages := sub.subscribe(t, topic)
		idle := sub.subscribe(t, topic)
		publish(t, client, topic, fmt.Sprint(n))
		var msg *message.Message
		select {
		case msg = <-messages:
		case msg = <-idle:
		case <-time.After(soon):
			require.FailNow(t, "no message")
		}
		msg.Ack()
		require.NoError(t, sub.Close())
		require.Empty(t, pendingOf(t, client, topic))
		require.Empty(t, consumersOf(t, client, topic))
	}
	fan := newSub(t, client, fanOut)
	fan.subscribe(t, topic)
	fan.subscribe(t, redistest.Key(t))
	fan.closeSoon(t)

	goroutines.Wait(soon)
	redistest.Eventually(t, soon, func() bool { return redistest.BlockedClients(t, client) == 0 }, "no client is blocked")
	redistest.Eventually(t, soon, func() bool { return redistest.Connections(t, client) <= connections+1 }, "only the pool's connections are left")
}

package tests

import (
	"context"
	"fmt"
	"runtime/debug"
	"slices"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
)

// Watermill's suite gives each test adapters of its own, so it does not see that closing one
// of them closes the client of all.
func TestClient_SharedByManyAdapters(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	topic := redistest.Key(t)
	var pubs []*redischannels.Publisher
	for range 3 {
		pub, err := redischannels.NewPublisher(redischannels.PublisherConfig{Client: client}, nil)
		require.NoError(t, err)
		t.Cleanup(func() { _ = pub.Close() })
		pubs = append(pubs, pub)
	}
	group, other, all := newSub(t, client), newSub(t, client), newSub(t, client, fanOut)
	messages := group.subscribe(t, topic)
	closedSoon := other.subscribe(t, topic)
	every := all.subscribe(t, topic)

	require.NoError(t, pubs[0].Close())
	other.closeSoon(t)
	waitClosed(t, closedSoon)
	require.NoError(t, client.Ping(t.Context()).Err())
	require.NoError(t, pubs[1].Publish(topic, message.NewMessage("u", []byte("m"))))
	require.Equal(t, []string{"m"}, receiveAcked(t, messages, 1))
	require.Equal(t, []string{"m"}, receiveAcked(t, every, 1))

	require.ErrorIs(t, pubs[0].Publish(topic, message.NewMessage("u", nil)), redischannels.ErrClosed)
	_, err := other.Subscribe(t.Context(), topic)
	require.ErrorIs(t, err, redischannels.ErrClosed)
	require.ErrorIs(t, other.SubscribeInitialize(topic), redischannels.ErrClosed)

	for _, pub := range pubs {
		require.NoError(t, pub.Close())
	}
	group.closeSoon(t)
	all.closeSoon(t)
	require.NoError(t, client.Ping(t.Context()).Err(), "the client is the caller's")
}

// A subscription that was cancelled takes messages that are published afterwards with it.
func TestSubscriber_CancelThenPublish(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	topic := redistest.Key(t)
	sub := newSub(t, client, func(c *redischannels.SubscriberConfig) {
		c.Tuning.ConsumerTimeout = 100 * time.Millisecond
	})
	got := map[string]int{}
	take := func(msg *message.Message) {
		require.Equal(t, 1, countOf(t, msg), "message %s was handed to nobody before", msg.Payload)
		got[string(msg.Payload)]++
		msg.Ack()
	}
	for n := range 20 {
		ctx, cancel := context.WithCancel(t.Context())
		messages, err := sub.Subscribe(ctx, topic)
		require.NoError(t, err)
		cancel()
		if n%2 == 0 { // every other time nobody waits for the end
			for msg := range messages { // one that is being handed over may still come
				take(msg)
			}
		}
		publish(t, client, topic, fmt.Sprint(n))
	}
	messages := sub.subscribe(t, topic)
	for len(got) < 20 {
		take(receive(t, messages))
	}
	for payload, times := range got {
		require.Equal(t, 1, times, "message %s", payload)
	}
	eventuallyPending(t, client, topic, 0)
	// Those that had to leave an entry to others are removed by them.
	redistest.Eventually(t, soon, func() bool { return len(consumersOf(t, client, topic)) == 1 }, "only the last consumer is left")

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := sub.Subscribe(ctx, topic)
	require.ErrorIs(t, err, context.Canceled)
}

// A consumer with a slow handler keeps messages that it fetched ahead, while another one of
// the group is idle.
func TestSubscriber_SlowConsumerLeavesMessagesToOthers(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	for name, warm := range map[string]int{"slow from the start": 0, "slow after fast messages": 300} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			topic := redistest.Key(t)
			slow := newSub(t, client).subscribe(t, topic)
			for n := range warm { // its prefetch grows
				publish(t, client, topic, fmt.Sprint("warm", n))
				receive(t, slow).Ack()
			}
			quick := newSub(t, client)
			messages := quick.subscribe(t, topic)
			payloads := make([]string, 60)
			for n := range payloads {
				payloads[n] = fmt.Sprint(n)
			}
			publish(t, client, topic, payloads...)
			stuck := receive(t, slow) // and is handled until the end
			want := slices.DeleteFunc(slices.Clone(payloads), func(p string) bool { return p == string(stuck.Payload) })
			var got []string
			for range want {
				msg := receive(t, messages)
				require.Equal(t, 1, countOf(t, msg))
				got = append(got, string(msg.Payload))
				msg.Ack()
			}
			require.ElementsMatch(t, want, got)
			require.NoError(t, stuck.Context().Err())
			stuck.Ack()
			eventuallyPending(t, client, topic, 0)
		})
	}
}

// F3: each quiet subscription holds a connection of the pool, until publishing and settling
// time out. 20 of them and a publisher share a pool of 2, at one connection for each in a group
// and one for all others.
func TestClient_QuietSubscriptionsLeaveThePoolAlone(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	admin := server.Admin(t)
	require.NoError(t, admin.Ping(t.Context()).Err())
	before := redistest.Connections(t, admin)
	client := server.Client(t, func(o *redis.Options) {
		o.PoolSize = 2
		o.PipelinePoolSize = -1 // pipelines use the same two
		o.PoolTimeout = 2 * time.Second
	})
	topic := redistest.Key(t)
	sub, all := newSub(t, client), newSub(t, client, fanOut)
	var channels []<-chan *message.Message
	for n := range 10 {
		channels = append(channels, sub.subscribe(t, fmt.Sprint(topic, n)), all.subscribe(t, fmt.Sprint(topic, n)))
	}
	redistest.Eventually(t, soon, func() bool { return redistest.BlockedClients(t, admin) == 10+1 }, "all wait for messages")
	require.LessOrEqual(t, redistest.Connections(t, admin), before+2+10+1)
	pub, err := redischannels.NewPublisher(redischannels.PublisherConfig{Client: client}, nil)
	require.NoError(t, err)
	defer pub.Close()
	for round := range 5 {
		for n := range 10 {
			start := time.Now()
			require.NoError(t, pub.Publish(fmt.Sprint(topic, n), message.NewMessage("u", []byte(fmt.Sprint(round)))))
			require.Less(t, time.Since(start), time.Second)
		}
		for _, messages := range channels {
			require.Equal(t, []string{fmt.Sprint(round)}, receiveAcked(t, messages, 1))
		}
	}
	require.LessOrEqual(t, redistest.Connections(t, admin), before+2+10+1)
	for n := range 10 {
		eventuallyPending(t, client, fmt.Sprint(topic, n), 0)
	}
	for _, s := range []*testSub{sub, all} {
		s.events.mu.Lock()
		require.Empty(t, s.events.seen)
		s.events.mu.Unlock()
		s.closeSoon(t)
	}
	redistest.Eventually(t, soon, func() bool { return redistest.Connections(t, admin) <= before+2 }, "the connections are closed")
}

// Close waits for the block time of the read, or longer. The test takes the median of some
// rounds, since one of them may meet a loaded machine.
func TestSubscriber_CloseWhileIdleIsQuick(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*redischannels.SubscriberConfig){
		"group":   inFlight(1),
		"fan-out": fanOut,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			client := redistest.Start(t).Client(t)
			var took []time.Duration
			for range 9 {
				sub := newSub(t, client, change, func(c *redischannels.SubscriberConfig) { c.Tuning = redischannels.Tuning{} })
				topic := redistest.Key(t)
				messages := sub.subscribe(t, topic)
				publish(t, client, topic, "m")
				require.Equal(t, []string{"m"}, receiveAcked(t, messages, 1))
				redistest.Eventually(t, soon, func() bool { return redistest.BlockedClients(t, client) == 1 }, "the reader waits in Redis")
				took = append(took, sub.closeSoon(t))
				waitClosed(t, messages)
				redistest.Eventually(t, soon, func() bool { return redistest.BlockedClients(t, client) == 0 }, "nobody waits in Redis")
			}
			slices.Sort(took)
			t.Logf("median %s, longest %s", took[4], took[8])
			require.Less(t, took[4], 100*time.Millisecond)
		})
	}
}

// What a subscription has opened stays behind: goroutines, blocked clients, consumers,
// connections. Not parallel, since goroutines are those of the process.
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

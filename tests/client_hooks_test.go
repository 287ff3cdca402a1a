package tests

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
)

// The next attempt sent the arguments that a hook had changed: with a hook that adds a prefix to
// keys a retry went to app:app:orders, and nil was returned.
func TestPublisher_HookThatChangesKeysOnARetry(t *testing.T) {
	t.Parallel()
	for _, n := range []int{1, 3} {
		for name, cancellable := range map[string]bool{"by the caller": false, "by a sender": true} {
			t.Run(fmt.Sprint(n, " ", name), func(t *testing.T) {
				t.Parallel()
				client, topic := redistest.Shared(t).Client(t), redistest.Key(t)
				p := newTestPublisher(t, client)
				pubWarm(t, p)
				client.AddHook(redistest.PrefixKeys("app:"))
				fails := redistest.NewHook()
				for range 3 {
					fails.BeforeOnce("xadd", func(context.Context, redis.Cmder) error { return io.EOF })
				}
				client.AddHook(fails)
				ctx := context.Background()
				if cancellable {
					var cancel context.CancelFunc
					ctx, cancel = context.WithCancel(ctx)
					defer cancel()
				}
				_, err := p.Append(ctx, topic, pubMessages("m", n)...)
				require.NoError(t, err)
				keys, err := client.Keys(t.Context(), "*"+topic).Result()
				require.NoError(t, err)
				require.Equal(t, []string{"app:" + topic}, keys)
				require.EqualValues(t, n, client.XLen(t.Context(), "app:"+topic).Val())
			})
		}
	}
}

// A hook that replaces the argument by which a command knows that it was sent: a lost reply passed for
// an append that was never sent, and the message was appended again.
func TestPublisher_HookThatReplacesArguments(t *testing.T) {
	t.Parallel()
	for _, n := range []int{1, 3} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			t.Parallel()
			proxy, client, direct := pubProxy(t)
			topic := redistest.Key(t)
			p := newTestPublisher(t, client)
			pubWarm(t, p)
			client.AddHook(redistest.ChangeArgs(func(args []any) {
				for i := range args {
					args[i] = fmt.Sprint(args[i])
				}
			}))
			require.NoError(t, p.Publish(topic, pubMessages("m", n)...))
			proxy.DropReply(1, redistest.Command("xadd"))
			requireOutcomes(t, p.Publish(topic, pubMessages("m", n)...), redischannels.OutcomeUnknown, n)
			require.EqualValues(t, 2*n, direct.XLen(t.Context(), topic).Val())
		})
	}
}

// Calls whose hook blocks kept the places of all senders, so that no other call was sent.
func TestPublisher_HookThatBlocks(t *testing.T) {
	t.Parallel()
	for _, n := range []int{1, 3} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			t.Parallel()
			client, topic := redistest.Shared(t).Client(t), redistest.Key(t)
			p := newTestPublisher(t, client, pubTimeout(6*time.Second))
			pubWarm(t, p)
			over := make(chan struct{})
			var blocked atomic.Int32
			client.AddHook(redistest.Before("xadd", func(_ context.Context, cmd redis.Cmder) error {
				if cmd.Args()[1] == topic+"-blocked" {
					blocked.Add(1)
					<-over
				}
				return nil
			}))
			var calls sync.WaitGroup
			defer calls.Wait()
			defer close(over)
			for i := range map[int]int32{1: 4, 3: 8}[n] { // as many as are sent at once
				calls.Go(func() { _ = p.Publish(topic+"-blocked", pubMessages("m", n)...) })
				redistest.Eventually(t, soon, func() bool { return blocked.Load() > i }, "the hook blocks")
			}
			require.NoError(t, p.Publish(topic, pubMessages("m", n)...))
		})
	}
}

// A hook that panicked in a goroutine of a subscription, for instance while it acknowledged, renewed,
// claimed or wrote dead letters, ended the process. It is an error of that command, and tried again.
func TestClient_PanicsInHooks(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	client := server.Client(t, func(o *redis.Options) { o.PoolTimeout = time.Minute }) // a login that panics keeps its place
	direct, topic := server.Client(t), redistest.Key(t)
	var on atomic.Bool
	var panics atomic.Int64
	hook := redistest.ChangeArgs(func([]any) {
		if on.Load() && rand.IntN(3) == 0 {
			panics.Add(1)
			panic("hook")
		}
	})
	client.AddHook(hook)
	frequent := func(c *redischannels.SubscriberConfig) {
		onReads(hook)(c)
		c.Tuning.MinIdle, c.MaxDeliveries, c.MaxInFlight = 300*time.Millisecond, 3, 8
		c.Tuning.ClaimInterval = 20 * time.Millisecond
	}
	group, all := newSub(t, client, frequent), newSub(t, client, fanOut, onReads(hook))
	grouped, every := group.subscribe(t, topic), all.subscribe(t, topic)
	p := newTestPublisher(t, client, watermillFormat)

	var mu sync.Mutex
	handled := make(map[string]int)
	var handling sync.WaitGroup
	handle := func(name string, messages <-chan *message.Message) {
		handling.Go(func() {
			for msg := range messages {
				payload := string(msg.Payload)
				mu.Lock()
				handled[name+payload]++
				n := handled[name+payload]
				mu.Unlock()
				switch {
				case name == "group " && payload[0] == 'd':
					redischannels.Reject(msg, "bad")
					msg.Nack()
				case n == 1:
					msg.Nack()
				default:
					msg.Ack()
				}
			}
		})
	}
	handle("group ", grouped)
	handle("fan-out ", every)
	on.Store(true)
	for n := range 40 {
		publish(t, direct, topic, fmt.Sprint([]string{"g", "d"}[n%2], n))
		_ = p.Publish(topic, message.NewMessage("p", []byte("g")))
		seen := panics.Load()
		redistest.Eventually(t, soon, func() bool { return panics.Load() > seen }, "the hook is called")
	}
	on.Store(false)
	publish(t, direct, topic, "g-last")
	redistest.Eventually(t, soon, func() bool {
		mu.Lock()
		defer mu.Unlock()
		return handled["group g-last"] > 0 && handled["fan-out g-last"] > 0
	}, "both go on")
	eventuallyPending(t, direct, topic, 0)
	mu.Lock()
	for n := range 40 {
		require.Positive(t, handled[fmt.Sprint("group ", []string{"g", "d"}[n%2], n)], n)
	}
	mu.Unlock()
	require.GreaterOrEqual(t, direct.XLen(t.Context(), deadStream(topic)).Val(), int64(20), "a lost reply may repeat one")
	group.closeSoon(t)
	all.closeSoon(t)
	handling.Wait()
}

// The same of a function of the caller that receives clients, which is called where a connection is
// opened again.
func TestClient_PanicInOnReadClient(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	client, direct, topic := server.Client(t), server.Client(t), redistest.Key(t)
	var on atomic.Bool
	var panics atomic.Int32
	opened := func(*redis.Client) {
		if on.Load() {
			panics.Add(1)
			panic("OnReadClient")
		}
	}
	reads := func(c *redischannels.SubscriberConfig) { c.OnReadClient = opened }
	live := newPubSub(t, client, func(c *redischannels.PubSubSubscriberConfig) { c.OnReadClient = opened })
	group, all := newSub(t, client, reads), newSub(t, client, fanOut, reads)
	heard, grouped, every := live.subscribe(t, topic), group.subscribe(t, topic), all.subscribe(t, topic)

	on.Store(true)
	redistest.Eventually(t, soon, func() bool {
		// Some of them have a connection left that opens no client.
		for _, kind := range []string{"normal", "pubsub"} {
			require.NoError(t, direct.ClientKillByFilter(t.Context(), "type", kind, "skipme", "yes").Err())
		}
		return panics.Load() >= 10
	}, "clients are opened again")
	on.Store(false)
	live.events.wait(t, redischannels.EventReconnected)
	publish(t, direct, topic, "a")
	require.Equal(t, []string{"a"}, receiveAcked(t, grouped, 1))
	require.Equal(t, []string{"a"}, receiveAcked(t, every, 1))
	require.NoError(t, newPubSubPub(t, direct).Publish(topic, pubMessages("b", 1)...))
	require.NotNil(t, receive(t, heard))
}

// A client with another timeout had no hooks, so those of the caller missed large messages, messages with
// Durability, and, if the timeouts of its client were long or off, all messages. They see each append
// once, and so do hooks that are added later.
func TestPublisher_HooksSeeEachAppend(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*redischannels.PublisherConfig){
		"":              func(*redischannels.PublisherConfig) {},
		"short timeout": func(c *redischannels.PublisherConfig) { c.Timeout = 2 * time.Second },
		"Durability": func(c *redischannels.PublisherConfig) {
			c.Durability.Replicas, c.Durability.Timeout = 1, time.Millisecond
		},
	} {
		for _, size := range []int{10, 20 << 10, 50 << 10, 1 << 20} {
			for _, n := range []int{1, 3} {
				t.Run(fmt.Sprint(name, " ", size, " ", n), func(t *testing.T) {
					t.Parallel()
					client, topic := redistest.Shared(t).Client(t), redistest.Key(t)
					first, later := redistest.NewHook(), redistest.NewHook()
					client.AddHook(first)
					p := newTestPublisher(t, client, change)
					for i, hooks := range [][]*redistest.Hook{{first}, {first, later}} {
						if i == 1 {
							client.AddHook(later)
						}
						first.Reset()
						messages := pubMessages(fmt.Sprint(i), n)
						for _, msg := range messages {
							msg.Payload = make([]byte, size)
						}
						_, err := p.Append(t.Context(), topic, messages...)
						if name == "Durability" {
							require.ErrorIs(t, err, redischannels.ErrUnderReplicated)
						} else {
							require.NoError(t, err)
						}
						for _, hook := range hooks {
							require.Equal(t, n, hook.Count("xadd"))
						}
					}
					require.EqualValues(t, 2*n, client.XLen(t.Context(), topic).Val())
				})
			}
		}
	}
}

// The same for a subscriber, whose commands on a client without timeouts have one.
func TestSubscriber_HooksOfAClientWithoutTimeouts(t *testing.T) {
	t.Parallel()
	client, topic := redistest.Shared(t).Client(t, func(o *redis.Options) { o.ReadTimeout, o.WriteTimeout = -1, -1 }), redistest.Key(t)
	hook := redistest.NewHook()
	client.AddHook(hook)
	sub := newSub(t, client)
	messages := sub.subscribe(t, topic)
	require.NoError(t, newTestPublisher(t, redistest.Shared(t).Client(t), func(c *redischannels.PublisherConfig) { c.Marshaler = nil }).Publish(topic, pubMessages("m", 1)...))
	receiveAcked(t, messages, 1)
	require.NoError(t, sub.Close())
	require.Positive(t, hook.Count("xgroup"))
	require.Positive(t, hook.Count("xack"))
}

package tests

import (
	"context"
	"fmt"
	"net"
	"slices"
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

// The connections that are open go silent while new ones work. The reads after the reconnect
// went through the caller's pool, where each idle connection took a ReadTimeout: 33 s until
// the next message, where BlockTime and two seconds are possible.
func TestFanOut_RecoversWhateverThePoolHolds(t *testing.T) {
	t.Parallel()
	const block, idle = time.Second, 5
	server := redistest.Start(t)
	direct := server.Client(t)
	dead := redistest.NewProxy(t, server.Addr())
	var way switched
	way.to.Store(dead)
	client := server.Client(t, way.option, func(o *redis.Options) { o.ReadTimeout, o.PoolSize = 5*time.Second, 2*idle })
	// Before a read covers all topics some are still read by commands that are sent over the pool.
	topics := []string{"one", "two", "three"}
	all := make(chan struct{}, 1)
	hook := redistest.Before("xread", func(_ context.Context, cmd redis.Cmder) error {
		for _, topic := range topics {
			if !slices.Contains(cmd.Args(), any(topic)) {
				return nil
			}
		}
		select {
		case all <- struct{}{}:
		default:
		}
		return nil
	})
	sub := newSub(t, client, fanOut, func(c *redischannels.SubscriberConfig) {
		c.OnReadClient = func(own *redis.Client) { own.AddHook(hook) }
	})
	hub := newHub(t, client)
	numbers := streamOf[int](t, hub, "numbers")
	var channels []<-chan *message.Message
	for _, topic := range topics {
		channels = append(channels, sub.subscribe(t, topic))
	}
	follows := follow(t, numbers, redischannels.Oldest)
	other := streamOf[int](t, newHub(t, direct), "numbers")
	write(t, other, 1)
	require.Equal(t, 1, follows.next(t))
	waitFor(t, all)
	redistest.Eventually(t, soon, func() bool { return redistest.BlockedClients(t, direct) == 2 }, "all share a read")
	var pinging sync.WaitGroup
	for range 4 * idle {
		pinging.Go(func() { _ = client.Do(t.Context(), "BLPOP", "nothing", "0.1").Err() })
	}
	pinging.Wait()
	require.GreaterOrEqual(t, client.PoolStats().IdleConns, uint32(idle))

	redistest.Eventually(t, soon, func() bool {
		pool := client.PoolStats()
		return pool.TotalConns == pool.IdleConns
	}, "no command is under way, which would have to wait for its timeout")

	way.to.Store(redistest.NewProxy(t, server.Addr()))
	dead.Blackhole(true)
	silent := time.Now()
	for _, topic := range topics {
		publish(t, direct, topic, "after")
	}
	write(t, other, 2)
	for _, messages := range channels {
		require.Equal(t, []string{"after"}, receiveAcked(t, messages, 1))
	}
	require.Equal(t, 2, follows.next(t))
	require.Less(t, time.Since(silent), block+2*time.Second)
}

// renaming is a hook that puts a prefix before the keys of what reads streams, as hooks that
// give each tenant its keys do.
type renaming struct{ on atomic.Bool }

func (h *renaming) rename(cmd redis.Cmder) {
	if !h.on.Load() {
		return
	}
	args := cmd.Args()
	for i := range args {
		if args[i] == "STREAMS" {
			for k := i + 1; k < i+1+(len(args)-i-1)/2; k++ {
				args[k] = "app:" + fmt.Sprint(args[k])
			}
			return
		}
	}
}

func (h *renaming) DialHook(next redis.DialHook) redis.DialHook { return next }

func (h *renaming) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		h.rename(cmd)
		return next(ctx, cmd)
	}
}

func (h *renaming) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

// A hook that changes keys makes a read return a stream that was not asked for: the process
// ended by a nil pointer.
func TestFanOut_HookThatChangesKeys(t *testing.T) {
	t.Parallel()
	server := redistest.Shared(t)
	for name, reads := range map[string]bool{"of the client": false, "of reads": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			topic, direct := redistest.Key(t), server.Client(t)
			client, hook := server.Client(t), new(renaming)
			change := func(*redischannels.SubscriberConfig) {}
			if reads {
				change = onReads(hook)
			} else {
				client.AddHook(hook)
			}
			sub := newSub(t, client, fanOut, change)
			hook.on.Store(true)
			if !reads {
				_, err := sub.Subscribe(t.Context(), topic)
				require.ErrorContains(t, err, "app:"+topic)
				return
			}
			messages := sub.subscribe(t, topic)
			publish(t, direct, "app:"+topic, "of another")
			event := sub.events.wait(t, redischannels.EventDisconnected)
			require.ErrorContains(t, event.Err, "app:"+topic)
			publish(t, direct, topic, "ours")
			require.Equal(t, []string{"ours"}, receiveAcked(t, messages, 1))
			hook.on.Store(false)
			sub.events.wait(t, redischannels.EventReconnected)
			publish(t, direct, topic, "on")
			require.Equal(t, []string{"on"}, receiveAcked(t, messages, 1))
		})
	}
}

// foreign is a hook that sends another command in the place of a blocked read.
type foreign struct {
	renaming
	key string
}

func (h *foreign) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		if args := cmd.Args(); len(args) == 8 && args[6] != h.key && h.on.Load() {
			defer func(key any) { args[6] = key }(args[6])
			args[6] = h.key
		}
		return next(ctx, cmd)
	}
}

// The same of a hook that leaves no trace in the command: only the reply shows it.
func TestFanOut_ReplyOfAnotherStream(t *testing.T) {
	t.Parallel()
	client, topic := redistest.Shared(t).Client(t), redistest.Key(t)
	hook := &foreign{key: redistest.Key(t, "other")}
	sub := newSub(t, client, fanOut, onReads(hook))
	hook.on.Store(true)
	messages := sub.subscribe(t, topic)
	publish(t, client, hook.key, "of another")
	event := sub.events.wait(t, redischannels.EventDisconnected)
	require.ErrorContains(t, event.Err, hook.key)
	hook.on.Store(false)
	publish(t, client, topic, "ours")
	require.Equal(t, []string{"ours"}, receiveAcked(t, messages, 1))
	sub.events.wait(t, redischannels.EventReconnected)
}

// A panic of the application's code in a goroutine of the library ended the process.
func TestFanOut_PanicOfTheApplication(t *testing.T) {
	t.Parallel()
	server := redistest.Shared(t)
	for name, tt := range map[string]func(c *redischannels.SubscriberConfig, panics *atomic.Bool){
		"OnReadClient": func(c *redischannels.SubscriberConfig, panics *atomic.Bool) {
			c.OnReadClient = func(*redis.Client) {
				if panics.Load() {
					panic("on purpose")
				}
			}
		},
		"hook of reads": func(c *redischannels.SubscriberConfig, panics *atomic.Bool) {
			onReads(redistest.Before("xread", func(context.Context, redis.Cmder) error {
				if panics.Load() {
					panic("on purpose")
				}
				return nil
			}))(c)
		},
		"dialer": func(c *redischannels.SubscriberConfig, panics *atomic.Bool) {
			c.Client = server.Client(t, func(o *redis.Options) {
				o.PoolSize = 1
				o.Dialer = func(ctx context.Context, network, addr string) (net.Conn, error) {
					if panics.Load() {
						panic("on purpose")
					}
					return (&net.Dialer{}).DialContext(ctx, network, addr)
				}
			})
			require.NoError(t, c.Client.Ping(t.Context()).Err())
		},
		"login": func(c *redischannels.SubscriberConfig, panics *atomic.Bool) {
			c.Client = server.Client(t, func(o *redis.Options) {
				o.PoolSize = 1
				o.OnConnect = func(context.Context, *redis.Conn) error {
					if panics.Load() {
						panic("on purpose")
					}
					return nil
				}
			})
			require.NoError(t, c.Client.Ping(t.Context()).Err())
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			topic, direct := redistest.Key(t), server.Client(t)
			var panics atomic.Bool
			sub := newSub(t, server.Client(t), fanOut, func(c *redischannels.SubscriberConfig) { tt(c, &panics) })
			panics.Store(true)
			messages := sub.subscribe(t, topic)
			event := sub.events.wait(t, redischannels.EventDisconnected)
			require.ErrorContains(t, event.Err, "panic") // go-redis hides that of a dialer
			publish(t, direct, topic, "during")
			require.Equal(t, []string{"during"}, receiveAcked(t, messages, 1), "the caller's client reads")
			panics.Store(false)
			sub.events.wait(t, redischannels.EventReconnected)
			publish(t, direct, topic, "after")
			require.Equal(t, []string{"after"}, receiveAcked(t, messages, 1))
		})
	}
	t.Run("hook of the client", func(t *testing.T) {
		t.Parallel()
		topic, client := redistest.Key(t), server.Client(t)
		var panics atomic.Bool
		client.AddHook(redistest.Before("xread", func(context.Context, redis.Cmder) error {
			if panics.Load() {
				panic("on purpose")
			}
			return nil
		}))
		sub := newSub(t, client, fanOut)
		panics.Store(true)
		_, err := sub.Subscribe(t.Context(), topic)
		require.ErrorContains(t, err, "on purpose")
		panics.Store(false)
		messages := sub.subscribe(t, topic)
		publish(t, server.Client(t), topic, "m")
		require.Equal(t, []string{"m"}, receiveAcked(t, messages, 1))
	})
}

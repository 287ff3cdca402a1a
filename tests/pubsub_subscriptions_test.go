package tests

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
)

// A message comes once per matching pattern, and applications in different databases get each
// other's.
func TestPubSub_OverlappingNamesDeliverOnce(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	pub := newPubSubPub(t, client)
	base := redistest.Key(t)
	sub := newPubSub(t, client, patterns)
	overlapping := sub.subscribe(t, base+":eu:1", base+":*", base+":eu:*", base+":eu:?", base+":eu:1")
	exact := sub.subscribe(t, base+":eu:1")
	wide := sub.subscribe(t, base+":*")
	narrow := sub.subscribe(t, base+":[e]u:*")

	// Equal messages one behind the other are still two.
	same := message.NewMessage("same", []byte("same"))
	require.NoError(t, pub.Publish(base+":eu:1", same, same, same))
	say(t, pub, base+":us", "us")
	say(t, pub, base+":eu:22", "eu")
	say(t, pub, base+":eu:1", "end")
	require.Equal(t, []string{"same", "same", "same", "us", "eu", "end"}, receiveAcked(t, overlapping, 6))
	require.Equal(t, []string{"same", "same", "same", "end"}, receiveAcked(t, exact, 4))
	require.Equal(t, []string{"same", "same", "same", "us", "eu", "end"}, receiveAcked(t, wide, 6))
	require.Equal(t, []string{"same", "same", "same", "eu", "end"}, receiveAcked(t, narrow, 5))
	for _, messages := range []<-chan *message.Message{overlapping, exact, wide, narrow} {
		noMessage(t, messages)
	}

	t.Run("the channel is in the context", func(t *testing.T) {
		for _, channel := range []string{":us", ":eu:1", ":eu:22"} {
			say(t, pub, base+channel, "m")
			msg := receive(t, wide)
			topic, ok := redischannels.TopicFromContext(msg.Context())
			require.True(t, ok)
			require.Equal(t, base+channel, topic)
			msg.Ack()
		}
	})

	t.Run("prefixes keep applications apart", func(t *testing.T) {
		prefix := func(p string) func(*redischannels.PubSubSubscriberConfig) {
			return func(c *redischannels.PubSubSubscriberConfig) { c.ChannelPrefix = p }
		}
		topic := redistest.Key(t)
		for _, p := range []string{"app-a:", `odd*[1]?\:`} {
			mine := newPubSub(t, client, prefix(p), patterns)
			exact, glob := mine.subscribe(t, topic), mine.subscribe(t, topic+"*")
			theirs := newPubSub(t, client, prefix("app-b:")).subscribe(t, topic)
			pub := newPubSubPub(t, client, func(c *redischannels.PubSubPublisherConfig) { c.ChannelPrefix = p })
			say(t, pub, topic, "mine")
			for _, messages := range []<-chan *message.Message{exact, glob} {
				msg := receive(t, messages)
				of, _ := redischannels.TopicFromContext(msg.Context())
				require.Equal(t, topic, of, "without the prefix, so that a handler can answer there")
				msg.Ack()
			}
			noMessage(t, theirs)
			require.Equal(t, 1, subscribers(t, client, p+topic))
		}
	})
}

// RESP3 and short names hang or lose messages when the bytes come one by one.
func TestPubSub_RepliesSplitAtEveryByte(t *testing.T) {
	t.Parallel()
	for _, protocol := range []int{2, 3} {
		t.Run(fmt.Sprint("RESP", protocol), func(t *testing.T) {
			t.Parallel()
			proxy, client, direct := pubProxy(t, func(o *redis.Options) { o.Protocol = protocol })
			proxy.ByteWise(true)
			const n = 10_000
			sub := newPubSub(t, client, patterns, buffer(n, redischannels.DropOldest))
			messages, glob := sub.subscribe(t, "c"), sub.subscribe(t, "[c]")
			pub := newPubSubPub(t, direct)
			want := counted(1, n)
			say(t, pub, "c", want...)
			require.Equal(t, want, receiveAcked(t, messages, n))
			require.Equal(t, want, receiveAcked(t, glob, n))
			sub.events.none(t, redischannels.EventDisconnected, redischannels.EventDropped, redischannels.EventUndecodable)
		})
	}
}

// Closing one reader unsubscribes the others.
func TestPubSub_SubscriptionsAreIndependent(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	client := server.Client(t)
	pub := newPubSubPub(t, client)
	topic := redistest.Key(t)
	sub := newPubSub(t, client, patterns)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended, err := sub.SubscribeAll(ctx, topic, topic+"*")
	require.NoError(t, err)
	same, glob := sub.subscribe(t, topic), sub.subscribe(t, topic+"*")
	other := newPubSub(t, client).subscribe(t, topic)
	say(t, pub, topic, "1")
	for _, messages := range []<-chan *message.Message{ended, same, glob, other} {
		require.Equal(t, []string{"1"}, receiveAcked(t, messages, 1))
	}
	redistest.ResetStats(t, client)
	cancel()
	waitClosed(t, ended)
	say(t, pub, topic, "2")
	for _, messages := range []<-chan *message.Message{same, glob, other} {
		require.Equal(t, []string{"2"}, receiveAcked(t, messages, 1))
	}
	stats := redistest.CommandStats(t, client)
	require.Zero(t, stats["unsubscribe"])
	require.Zero(t, stats["punsubscribe"])
	require.Equal(t, 2, pubSubConnections(t, client))
}

// Subscribing and unsubscribing the same channel over and over, also while connections are
// cut: each subscriber gets what is published from then on, and no other subscription
// ends.
func TestPubSub_ChurnOfOneChannel(t *testing.T) {
	t.Parallel()
	proxy, client, direct := pubProxy(t)
	for name, cuts := range map[string]bool{"quiet": false, "cuts": true} {
		t.Run(name, func(t *testing.T) {
			sub := newPubSub(t, client, patterns)
			pub := newPubSubPub(t, direct)
			topic := redistest.Key(t)
			steady := sub.subscribe(t, topic+":steady")
			var wg sync.WaitGroup
			var rounds atomic.Int64
			for worker := range 8 {
				wg.Go(func() {
					for round := range 60 {
						ctx, cancel := context.WithCancel(t.Context())
						name := topic
						if rand.IntN(3) == 0 {
							name += "*"
						}
						messages, err := sub.Subscribe(ctx, name)
						if err != nil {
							t.Error(err)
							cancel()
							return
						}
						if !cuts {
							payload := fmt.Sprint(worker, "/", round)
							say(t, pub, topic, payload)
							for msg := range messages {
								found := string(msg.Payload) == payload
								msg.Ack()
								if found {
									break
								}
							}
						} else if rounds.Add(1)%50 == 0 {
							proxy.Cut()
						}
						cancel()
						for msg := range messages {
							msg.Ack()
						}
					}
				})
			}
			wg.Wait()
			if cuts {
				redistest.Eventually(t, soon, func() bool { return subscribers(t, direct, topic+":steady") == 1 }, "subscribed again")
			} else {
				sub.events.none(t, redischannels.EventDisconnected, redischannels.EventInterrupted)
			}
			say(t, pub, topic+":steady", "m")
			require.Equal(t, []string{"m"}, receiveAcked(t, steady, 1))
			redistest.Eventually(t, soon, func() bool { return subscribers(t, direct, topic) == 0 }, "unsubscribed")
			require.Equal(t, 1, pubSubConnections(t, direct))
			sub.closeSoon(t)
		})
	}
}

// 10,000 channels: one connection, and others lose nothing while they come and go.
func TestPubSub_TenThousandChannels(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	client := server.Client(t, func(o *redis.Options) { o.PoolSize = 2 })
	sub := newPubSub(t, client, buffer(100_000, redischannels.DropOldest))
	pub := newPubSubPub(t, client)
	steady := redistest.Key(t)
	messages := sub.subscribe(t, steady)

	stop := make(chan struct{})
	var published atomic.Int64
	var load sync.WaitGroup
	load.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				n := published.Add(1)
				say(t, pub, steady, fmt.Sprint(n))
			}
		}
	})

	const n = 10_000
	topics := topicsOf(t, n)
	type open struct {
		messages <-chan *message.Message
		cancel   context.CancelFunc
	}
	subs := make([]open, n)
	var wg sync.WaitGroup
	for worker := range 100 {
		wg.Go(func() {
			for i := worker; i < n; i += 100 {
				ctx, cancel := context.WithCancel(t.Context())
				m, err := sub.Subscribe(ctx, topics[i])
				if err != nil {
					t.Error(err)
				}
				subs[i] = open{m, cancel}
			}
		})
	}
	wg.Wait()
	require.False(t, t.Failed())
	require.Equal(t, 1, pubSubConnections(t, client))
	for i, topic := range topics {
		if i%10 == 0 {
			say(t, pub, topic, topic)
		}
	}
	for i := range subs {
		if i%10 == 0 {
			require.Equal(t, []string{topics[i]}, receiveAcked(t, subs[i].messages, 1))
		}
	}
	for i := range subs {
		subs[i].cancel()
	}
	for i := range subs {
		waitClosed(t, subs[i].messages)
	}
	close(stop)
	load.Wait()
	total := int(published.Load())
	require.Equal(t, counted(1, total), receiveAcked(t, messages, total), "in order, without a gap")
	redistest.Eventually(t, soon, func() bool {
		channels, err := client.PubSubChannels(t.Context(), "*").Result()
		require.NoError(t, err)
		return len(channels) == 1 && strings.HasPrefix(channels[0], steady)
	}, "all others are unsubscribed")
	sub.events.none(t, redischannels.EventDisconnected, redischannels.EventDropped)
}

// A subscription of 10,000 channels comes back after an outage, with one event for each.
func TestPubSub_TenThousandChannelsComeBack(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	client := server.Client(t)
	sub := newPubSub(t, client)
	topics := topicsOf(t, 10_000)
	messages := sub.subscribe(t, topics...)
	for round := 1; round <= 2; round++ {
		require.NoError(t, client.Do(t.Context(), "client", "kill", "type", "pubsub").Err())
		sub.events.waitN(t, redischannels.EventReconnected, round)
		redistest.Eventually(t, soon, func() bool {
			return len(sub.events.of(redischannels.EventInterrupted)) == round*len(topics)
		}, "an event for each topic")
		require.Len(t, sub.events.of(redischannels.EventDisconnected), round)
		for _, i := range []int{0, 4999, 9999} {
			say(t, newPubSubPub(t, client), topics[i], topics[i])
			require.Equal(t, []string{topics[i]}, receiveAcked(t, messages, 1))
		}
	}
}

package tests

import (
	"context"
	"fmt"
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

// A connection and a blocked read per subscription: 1,000 clients of one process are 1,000
// connections.
func TestFanOut_SharedReaderOfOneTopic(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	admin, topic := server.Admin(t), redistest.Key(t)
	client := server.Client(t, func(o *redis.Options) { o.PoolSize = 4 })
	before := redistest.Connections(t, admin)
	const subscriptions, n = 1000, 20
	var readClients atomic.Int32
	sub := newSub(t, client, fanOut, func(c *redischannels.SubscriberConfig) {
		c.OnReadClient = func(*redis.Client) { readClients.Add(1) }
	})
	channels := make([]<-chan *message.Message, subscriptions)
	for i := range channels {
		channels[i] = sub.subscribe(t, topic)
	}
	redistest.Eventually(t, soon, func() bool { return redistest.BlockedClients(t, admin) == 1 }, "one blocked read")
	want := numbered(n)
	publish(t, admin, topic, want...)
	var wg sync.WaitGroup
	wrong := make(chan []string, subscriptions)
	for _, messages := range channels {
		wg.Go(func() {
			var seen []string
			for range n {
				select {
				case msg := <-messages:
					seen = append(seen, string(msg.Payload))
					msg.Ack()
				case <-time.After(soon):
				}
			}
			if fmt.Sprint(seen) != fmt.Sprint(want) {
				wrong <- seen
			}
		})
	}
	wg.Wait()
	require.Empty(t, wrong)
	require.EqualValues(t, 1, readClients.Load())
	require.Less(t, redistest.Connections(t, admin), before+20, "the pools' and one more")
	require.LessOrEqual(t, redistest.BlockedClients(t, admin), 1)
	require.Less(t, sub.closeSoon(t), 5*time.Second)
	require.Zero(t, redistest.BlockedClients(t, admin))
}

// A topic that joins has the read under way ended, so that the next one has it too. Where the
// server was silent to that the client's retries, each with its timeout, blocked who waited.
func TestFanOut_SharedReaderUnblocksOnce(t *testing.T) {
	t.Parallel()
	proxy, client, direct := pubProxy(t, func(o *redis.Options) { o.ReadTimeout, o.MaxRetries = time.Second, 20 })
	sub := newSub(t, client, fanOut, tuned(func(c *redischannels.Tuning) { c.BlockTime = time.Minute }))
	first := sub.subscribe(t, "first")
	redistest.Eventually(t, soon, func() bool { return redistest.BlockedClients(t, direct) == 1 }, "it is read")
	asked, released := make(chan struct{}, 100), make(chan struct{})
	t.Cleanup(func() { close(released) })
	proxy.BeforeRequest(-1, redistest.Command("CLIENT UNBLOCK"), func() {
		asked <- struct{}{}
		<-released
	})
	second := sub.subscribe(t, "second")
	<-asked
	publish(t, direct, "second", "m")
	require.Equal(t, []string{"m"}, receiveAcked(t, second, 1))
	publish(t, direct, "first", "m")
	require.Equal(t, []string{"m"}, receiveAcked(t, first, 1))
}

// Topics come and go under a read that is blocked: each new one must be read at once, not
// when the block time is over.
func TestFanOut_SharedReaderOfManyTopics(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	client, topic := server.Client(t), redistest.Key(t)
	sub := newSub(t, client, fanOut, tuned(func(c *redischannels.Tuning) { c.BlockTime = time.Minute }))
	const topics = 600 // three readers
	channels := make([]<-chan *message.Message, topics)
	name := func(i int) string { return fmt.Sprintf("%s:%d", topic, i) }
	for i := range channels {
		channels[i] = sub.subscribe(t, name(i))
	}
	redistest.Eventually(t, soon, func() bool { return redistest.BlockedClients(t, client) == 3 }, "three blocked reads")
	pub, err := redischannels.NewPublisher(redischannels.PublisherConfig{Client: client}, nil)
	require.NoError(t, err)
	t.Cleanup(func() { _ = pub.Close() })
	for i := topics - 1; i >= 0; i-- { // the last one alone first, so that no other message ends the read
		require.NoError(t, pub.Publish(name(i), message.NewMessage("u", fmt.Appendf(nil, "%d", i))))
		if i%100 == 99 {
			require.Equal(t, []string{fmt.Sprint(i)}, receiveAcked(t, channels[i], 1))
		}
	}
	for i, messages := range channels {
		if i%100 != 99 {
			require.Equal(t, []string{fmt.Sprint(i)}, receiveAcked(t, messages, 1))
		}
	}
	sub.events.none(t, redischannels.EventDisconnected, redischannels.EventError)
}

// A full window of one subscription delays the others, or takes memory without end.
func TestFanOut_SharedReaderLeavesTheSlowBehind(t *testing.T) {
	t.Parallel()
	client, topic := redistest.Shared(t).Client(t), redistest.Key(t)
	own := redistest.NewHook()
	client.AddHook(own)
	sub := newSub(t, client, fanOut, tuned(func(c *redischannels.Tuning) { c.Prefetch = 5 }))
	slow, quick := sub.subscribe(t, topic), sub.subscribe(t, topic)
	want := numbered(500)
	for i := 0; i < len(want); i += 50 {
		publish(t, client, topic, want[i:i+50]...)
		require.Equal(t, want[i:i+50], receiveAcked(t, quick, 50))
	}
	before := own.Count("xread")
	require.Equal(t, want, receiveAcked(t, slow, len(want)))
	require.GreaterOrEqual(t, own.Count("xread")-before, len(want)/6-10, "it held no more than 6")
	publish(t, client, topic, "live again")
	require.Equal(t, []string{"live again"}, receiveAcked(t, slow, 1))
	require.Equal(t, []string{"live again"}, receiveAcked(t, quick, 1))
	sub.events.none(t, redischannels.EventGap, redischannels.EventRewound)
}

// One stream that cannot be read makes every read that covers it fail.
func TestFanOut_SharedReaderBesideABadStream(t *testing.T) {
	t.Parallel()
	client, topic := redistest.Shared(t).Client(t), redistest.Key(t)
	bad := redistest.Key(t, "bad")
	sub := newSub(t, client, fanOut)
	messages, broken := sub.subscribe(t, topic), sub.subscribe(t, bad)
	publish(t, client, bad, "one")
	require.Equal(t, []string{"one"}, receiveAcked(t, broken, 1))
	require.NoError(t, client.Set(t.Context(), bad, "no stream", 0).Err())
	event := sub.events.wait(t, redischannels.EventDisconnected)
	require.Equal(t, bad, event.Topic)
	require.ErrorIs(t, event.Err, redischannels.ErrWrongType)
	for _, n := range numbered(50) {
		publish(t, client, topic, n)
		require.Equal(t, []string{n}, receiveAcked(t, messages, 1))
	}
	require.NoError(t, client.Del(t.Context(), bad).Err())
	publish(t, client, bad, "two")
	require.Equal(t, []string{"two"}, receiveAcked(t, broken, 1))
	for _, e := range sub.events.of(redischannels.EventDisconnected) {
		require.Equal(t, bad, e.Topic)
	}
}

// Subscriptions that begin and end while others read the same topic at full speed lose
// nothing and see nothing twice.
func TestFanOut_SharedReaderUnderChange(t *testing.T) {
	t.Parallel()
	client, topic := redistest.Shared(t).Client(t), redistest.Key(t)
	sub := newSub(t, client, fanOut, tuned(func(c *redischannels.Tuning) { c.Prefetch = 20 }))
	const n, readers = 1500, 6
	var wg sync.WaitGroup
	failures := make(chan string, readers)
	for reader := range readers {
		wg.Go(func() {
			// Each takes the stream in parts, by a subscription of its own for each.
			part := 50 + 37*reader
			from, next := redischannels.Oldest, 0
			for next < n {
				ctx, cancel := context.WithCancel(t.Context())
				messages, err := sub.SubscribeFrom(ctx, topic, from)
				if err != nil {
					failures <- err.Error()
					cancel()
					return
				}
				for range min(part, n-next) {
					select {
					case msg := <-messages:
						if got, want := string(msg.Payload), fmt.Sprint(next); got != want {
							failures <- fmt.Sprintf("reader %d: %s instead of %s", reader, got, want)
							cancel()
							return
						}
						id, _ := redischannels.EntryIDFromContext(msg.Context())
						from = redischannels.AfterID(id)
						next++
						msg.Ack()
					case <-time.After(soon):
						failures <- fmt.Sprintf("reader %d: no %d", reader, next)
						cancel()
						return
					}
				}
				cancel()
				for msg := range messages { // of the next part
					msg.Ack()
				}
			}
		})
	}
	for i := 0; i < n; i += 10 {
		publish(t, client, topic, numbered(n)[i:i+10]...)
	}
	wg.Wait()
	close(failures)
	for f := range failures {
		t.Error(f)
	}
}

// The entries between a subscription and the shared reader were deleted: it reads again and
// again and never joins.
func TestFanOut_SharedReaderAheadOfDeletedEntries(t *testing.T) {
	t.Parallel()
	client, topic := redistest.Shared(t).Client(t), redistest.Key(t)
	own := redistest.NewHook()
	client.AddHook(own)
	sub := newSub(t, client, fanOut)
	first := sub.subscribe(t, topic)
	ids := publish(t, client, topic, "a", "b")
	require.Equal(t, []string{"a", "b"}, receiveAcked(t, first, 2))
	require.NoError(t, client.XDel(t.Context(), topic, ids[1]).Err())
	second, err := sub.SubscribeFrom(t.Context(), topic, redischannels.Oldest)
	require.NoError(t, err)
	require.Equal(t, []string{"a"}, receiveAcked(t, second, 1))
	redistest.Never(t, quiet, func() bool { return own.Count("xread") > 20 }, "it reads without end")
	publish(t, client, topic, "c")
	require.Equal(t, []string{"c"}, receiveAcked(t, first, 1))
	require.Equal(t, []string{"c"}, receiveAcked(t, second, 1))
}

package tests

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"slices"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
)

// Close returns while a handler runs, whose success is lost, and leaves what was fetched
// pending until it has aged: duplicates and a gap with every deploy.
func TestSubscriber_CloseWaitsForHandlersAndReleasesTheRest(t *testing.T) {
	t.Parallel()
	server := redistest.Shared(t)
	client, topic := server.Client(t), redistest.Key(t)
	publish(t, client, topic, "handled", "b", "c", "d")
	first := newSub(t, client, inFlight(4), minIdle(time.Minute))
	messages := first.subscribe(t, topic)
	msg := receive(t, messages)
	eventuallyPending(t, client, topic, 4) // three are fetched and wait
	second := newSub(t, server.Client(t), inFlight(4), minIdle(time.Minute))
	other := second.subscribe(t, topic)

	const handling = 300 * time.Millisecond
	live := make(chan error, 1)
	go func() {
		time.Sleep(handling) // the handler's work
		live <- msg.Context().Err()
		msg.Ack()
	}()
	start := time.Now()
	closed := make(chan time.Duration, 1)
	go func() { closed <- first.closeSoon(t) }()
	require.ElementsMatch(t, []string{"b", "c", "d"}, receiveAcked(t, other, 3))
	require.Less(t, time.Since(start), handling+time.Second, "another consumer has to wait for MinIdle")
	require.GreaterOrEqual(t, <-closed, handling-10*time.Millisecond)
	require.NoError(t, <-live, "the context of the handler ends with Close")
	eventuallyPending(t, client, topic, 0)
	waitClosed(t, messages)
	require.Len(t, consumersOf(t, client, topic), 1, "the consumer that has left is still there")
	first.events.none(t, redischannels.EventAbandoned, redischannels.EventAckIgnored)
}

// A handler that does not end keeps Close from returning, or its message is acknowledged behind
// its back.
func TestSubscriber_CloseIsBounded(t *testing.T) {
	t.Parallel()
	client, topic := redistest.Shared(t).Client(t), redistest.Key(t)
	ids := publish(t, client, topic, "a", "b")
	const drain = 100 * time.Millisecond
	sub := newSub(t, client, inFlight(2), tuned(func(c *redischannels.Tuning) { c.DrainTimeout = drain }))
	messages := sub.subscribe(t, topic)
	leased := []*message.Message{receive(t, messages), receive(t, messages)}
	took := sub.closeSoon(t)
	require.GreaterOrEqual(t, took, drain)
	require.Less(t, took, drain+2*time.Second)
	require.ElementsMatch(t, ids, sub.events.wait(t, redischannels.EventAbandoned).EntryIDs)
	for _, msg := range leased {
		require.Error(t, msg.Context().Err())
		msg.Ack() // too late, and harmless
	}
	require.Len(t, pendingOf(t, client, topic), 2)
	again := newSub(t, client, inFlight(2)).subscribe(t, topic)
	for range ids {
		msg := receive(t, again)
		require.Equal(t, 2, countOf(t, msg))
		msg.Ack()
	}
	eventuallyPending(t, client, topic, 0)
}

// A message that is nacked while its subscriber closes comes again elsewhere, after its
// back-off.
func TestSubscriber_NackDuringClose(t *testing.T) {
	t.Parallel()
	server := redistest.Shared(t)
	client, topic := server.Client(t), redistest.Key(t)
	publish(t, client, topic, "m")
	sub := newSub(t, client, minIdle(time.Minute))
	messages := sub.subscribe(t, topic)
	msg := receive(t, messages)
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		sub.closeSoon(t)
	}()
	other := newSub(t, server.Client(t), minIdle(time.Minute)).subscribe(t, topic)
	noMessage(t, other)
	msg.Nack()
	<-closed
	again := receive(t, other)
	require.Equal(t, 2, countOf(t, again))
	again.Ack()
	eventuallyPending(t, client, topic, 0)
}

// Closing one subscriber closes the caller's client, and its siblings die in silence.
func TestSubscriber_CloseLeavesTheClientOpen(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	topics := []string{redistest.Key(t), redistest.Key(t)}
	pub, err := redischannels.NewPublisher(redischannels.PublisherConfig{Client: client}, nil)
	require.NoError(t, err)
	subs := []*testSub{newSub(t, client), newSub(t, client)}
	var channels []<-chan *message.Message
	for i, sub := range subs {
		channels = append(channels, sub.subscribe(t, topics[i]))
	}
	subs[0].closeSoon(t)
	waitClosed(t, channels[0])
	require.NoError(t, pub.Publish(topics[1], message.NewMessage(watermill.NewUUID(), []byte("m"))))
	require.Equal(t, []string{"m"}, receiveAcked(t, channels[1], 1))
	eventuallyPending(t, client, topics[1], 0)
	require.NoError(t, pub.Close())
	publish(t, client, topics[1], "n")
	require.Equal(t, []string{"n"}, receiveAcked(t, channels[1], 1))
	require.NoError(t, client.Ping(t.Context()).Err())
}

// Close waits for an application that no longer receives.
func TestSubscriber_CloseNeedsNoReceiver(t *testing.T) {
	t.Parallel()
	server := redistest.Shared(t)
	goroutines := redistest.Goroutines(t)
	for name, change := range map[string]func(*redischannels.SubscriberConfig){
		"strict": inFlight(1), "parallel": inFlight(16), "fan-out": fanOut,
	} {
		t.Run(name, func(t *testing.T) {
			client, topic := server.Client(t), redistest.Key(t)
			sub := newSub(t, client, change, func(c *redischannels.SubscriberConfig) { c.StartFrom = redischannels.Oldest })
			publish(t, client, topic, numbered(100)...)
			messages := sub.subscribe(t, topic)
			if name != "fan-out" {
				redistest.Eventually(t, soon, func() bool { return len(pendingOf(t, client, topic)) > 0 }, "fetched entries")
			}
			require.Less(t, sub.closeSoon(t), time.Second)
			waitClosed(t, messages)
			goroutines.Wait(500 * time.Millisecond)
		})
	}
}

// A read that is blocked at Close takes one more message with it, which then waits until it
// has aged.
func TestSubscriber_CloseTakesNoMessageAlong(t *testing.T) {
	t.Parallel()
	server := redistest.Shared(t)
	client, topic := server.Client(t), redistest.Key(t)
	const rounds = 200
	pub, err := redischannels.NewPublisher(redischannels.PublisherConfig{Client: server.Client(t)}, nil)
	require.NoError(t, err)
	seen := make(map[string]int)
	var mu sync.Mutex
	note := func(m delivered, _ *message.Message) bool {
		mu.Lock()
		defer mu.Unlock()
		seen[m.payload]++
		return true
	}
	sub := newSub(t, client, minIdle(time.Minute))
	for i := range rounds {
		ctx, cancel := context.WithCancel(t.Context())
		messages, err := sub.Subscribe(ctx, topic)
		require.NoError(t, err)
		h := handle(messages, 1, note)
		published := make(chan error, 1)
		go func() {
			published <- pub.Publish(topic, message.NewMessage(watermill.NewUUID(), []byte(fmt.Sprint(i))))
		}()
		cancel()
		require.NoError(t, <-published)
		<-h.done
	}
	start := time.Now()
	handle(sub.subscribe(t, topic), 1, note)
	redistest.Eventually(t, soon, func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(seen) == rounds
	}, "some wait until they have aged")
	require.Less(t, time.Since(start), 5*time.Second)
	eventuallyPending(t, client, topic, 0)
	mu.Lock()
	defer mu.Unlock()
	for payload, n := range seen {
		require.Equal(t, 1, n, "message %s", payload)
	}
}

// An Ack that is given just before Close is lost although it was logged.
func TestSubscriber_AckThenClose(t *testing.T) {
	t.Parallel()
	client, topic := redistest.Shared(t).Client(t), redistest.Key(t)
	for i := range 100 {
		publish(t, client, topic, fmt.Sprint(i))
		sub := newSub(t, client, minIdle(time.Minute))
		messages := sub.subscribe(t, topic)
		require.Equal(t, []string{fmt.Sprint(i)}, receiveAcked(t, messages, 1))
		sub.closeSoon(t)
		require.Empty(t, pendingOf(t, client, topic))
	}
}

// An Ack that waits for the one before it to be written is forgotten by Close.
func TestSubscriber_CloseWritesAcksBehindOneUnderWay(t *testing.T) {
	t.Parallel()
	server := redistest.Shared(t)
	direct, topic := server.Client(t), redistest.Key(t)
	for range 10 {
		client := server.Client(t)
		writing, release := make(chan struct{}), make(chan struct{})
		var once sync.Once
		client.AddHook(redistest.NewHook().Before("xack", func(_ context.Context, cmd redis.Cmder) error {
			if cmd.Args()[len(cmd.Args())-1] != "0-1" { // not the probe of Subscribe
				once.Do(func() { close(writing) })
				<-release
			}
			return nil
		}))
		sub := newSub(t, client, inFlight(2), minIdle(time.Minute))
		messages := sub.subscribe(t, topic)
		publish(t, direct, topic, "a", "b")
		receive(t, messages).Ack()
		<-writing
		receive(t, messages).Ack()
		time.AfterFunc(50*time.Millisecond, func() { close(release) }) // Close waits for it
		sub.closeSoon(t)
		require.Empty(t, pendingOf(t, direct, topic))
	}
}

// A subscriber that waits for messages in a blocked read closes only when the read ends, or
// when its connection is cut.
func TestSubscriber_CloseWhileIdle(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	client := server.Client(t)
	for _, change := range []func(*redischannels.SubscriberConfig){inFlight(1), fanOut} {
		quickest := time.Hour
		for range 10 { // the machine may delay some of them
			sub := newSub(t, client, change, minIdle(time.Minute), tuned(func(c *redischannels.Tuning) { c.BlockTime = 10 * time.Second }))
			sub.subscribe(t, redistest.Key(t))
			redistest.Eventually(t, soon, func() bool { return redistest.BlockedClients(t, client) == 1 }, "a blocked read")
			quickest = min(quickest, sub.closeSoon(t))
		}
		t.Logf("Close took %v", quickest)
		require.Less(t, quickest, 100*time.Millisecond)
	}
}

// A renewal that has begun before Close is carried out after the release, and another consumer waits
// for MinIdle.
func TestSubscriber_RenewalUnderWayDoesNotUndoARelease(t *testing.T) {
	t.Parallel()
	server := redistest.Shared(t)
	client, topic := server.Client(t), redistest.Key(t)
	const idle = 3 * time.Second
	hook := redistest.NewHook()
	client.AddHook(hook)
	sub := newSub(t, client, inFlight(4), minIdle(idle), onReads(hook))
	var armed atomic.Bool
	closed, handed := make(chan error, 1), make(chan struct{}, 8)
	hook.Before("evalsha", func(_ context.Context, cmd redis.Cmder) error {
		if isScript(t, cmd, "hold", topic) && armed.CompareAndSwap(true, false) {
			go func() { closed <- sub.Close() }()
			select {
			case <-handed:
			case <-time.After(quiet):
			}
		}
		return nil
	}).After("evalsha", func(_ context.Context, cmd redis.Cmder) error {
		if isScript(t, cmd, "release", topic) {
			handed <- struct{}{}
		}
		return nil
	})
	sub.subscribe(t, topic)
	publish(t, client, topic, numbered(4)...)
	eventuallyPending(t, client, topic, 4)
	armed.Store(true)
	select {
	case <-closed:
	case <-time.After(soon):
		require.FailNow(t, "Close does not return")
	}
	for _, p := range pendingOf(t, client, topic) {
		require.GreaterOrEqual(t, p.Idle, idle, p.ID)
	}
}

// A step of the claim scan was under way while a subscription ended: what it claimed came
// behind the last release, and waited for MinIdle in the name of a consumer that had ended.
func TestSubscriber_CloseReleasesWhatAClaimScanTakesOver(t *testing.T) {
	t.Parallel()
	server := redistest.Shared(t)
	admin, topic := server.Client(t), redistest.Key(t)
	publish(t, admin, topic, "m")
	ids := deliverTo(t, admin, topic, "dead", 1, 0)

	client := server.Client(t)
	var claimed atomic.Bool
	ended := make(chan struct{})
	hook := redistest.After("evalsha", func(_ context.Context, cmd redis.Cmder) error {
		if !isScript(t, cmd, "scan", topic) {
			return nil
		}
		reply, err := cmd.(interface{ Slice() ([]any, error) }).Slice()
		if err == nil && len(reply[2].([]any)) > 0 {
			claimed.Store(true)
		}
		return nil
	})
	client.AddHook(hook)
	sub := newSub(t, client, minIdle(time.Minute))
	hook.After("evalsha", func(_ context.Context, cmd redis.Cmder) error {
		if isScript(t, cmd, "scan", topic) || !claimed.CompareAndSwap(true, false) {
			return nil
		}
		go func() {
			defer close(ended)
			sub.closeSoon(t)
		}()
		redistest.Eventually(t, soon, func() bool {
			stats := sub.Stats()
			return len(stats) == 1 && stats[0].State == redischannels.StateClosing
		}, "Close has begun")
		return nil
	})
	sub.subscribe(t, topic)
	setIdle(t, admin, topic, "dead", time.Hour, ids...)
	select {
	case <-ended:
	case <-time.After(2 * soon):
		require.FailNow(t, "no end")
	}
	pending := pendingOf(t, admin, topic)
	require.Len(t, pending, 1)
	require.GreaterOrEqual(t, pending[0].Idle, time.Minute, "no other consumer can claim it")
	require.Zero(t, pending[0].RetryCount, "it was delivered to no handler")
}

// A subscription that was canceled takes messages that are published afterwards with it.
func TestSubscriber_CancelThenPublish(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	topic := redistest.Key(t)
	sub := newSub(t, client, func(c *redischannels.SubscriberConfig) {
		c.Tuning.ConsumerTimeout = 100 * time.Millisecond
	})
	got := map[string]int{}
	take := func(msg *message.Message) {
		require.Equal(t, 1, countOf(t, msg), "message %s was not delivered before", msg.Payload)
		got[string(msg.Payload)]++
		msg.Ack()
	}
	for n := range 20 {
		ctx, cancel := context.WithCancel(t.Context())
		messages, err := sub.Subscribe(ctx, topic)
		require.NoError(t, err)
		cancel()
		if n%2 == 0 { // every other time the end is not waited for
			for msg := range messages { // one that is being delivered may still come
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
				redistest.Eventually(t, soon, func() bool { return redistest.BlockedClients(t, client) == 0 }, "no client waits in Redis")
			}
			slices.Sort(took)
			t.Logf("median %s, longest %s", took[4], took[8])
			require.Less(t, took[4], 100*time.Millisecond)
		})
	}
}

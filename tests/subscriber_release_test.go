package tests

import (
	"context"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
)

// The keeper took a stale entry out of the window to release it; the reader, which looked
// for entries that are ours and not held, took it for such a one and leased it again; then
// the release reached Redis. Another consumer claimed the entry while it was handled here under a
// lease that was believed to hold.
func TestSubscriber_ReleaseIsNotUndoneByARead(t *testing.T) {
	t.Parallel()
	server := redistest.Shared(t)
	admin, topic := server.Client(t), redistest.Key(t)
	client := server.Client(t)
	var once sync.Once
	handing, received := make(chan struct{}), make(chan struct{})
	hook := redistest.NewHook()
	for _, name := range []string{"evalsha", "eval"} {
		hook.Before(name, func(_ context.Context, cmd redis.Cmder) error {
			if isScript(t, cmd, "release", topic) {
				once.Do(func() {
					close(handing)
					select { // it is slow, or no consumer claims the entry meanwhile
					case <-received:
					case <-time.After(2 * time.Second): // longer than a read blocks
					}
				})
			}
			return nil
		})
	}
	sub := newSub(t, client, inFlight(8), minIdle(time.Minute), func(c *redischannels.SubscriberConfig) {
		c.OnReadClient = func(own *redis.Client) { own.AddHook(hook) }
	})
	messages := sub.subscribe(t, topic)
	livingConsumer(t, admin, topic, "peer")
	publish(t, admin, topic, "a", "b", "c")
	eventuallyPending(t, admin, topic, 3)
	receive(t, messages).Ack() // b is offered, c waits
	waitFor(t, handing)
	receive(t, messages).Ack() // the reader continues, and looks for c
	c := receive(t, messages)
	close(received)
	sub.events.wait(t, redischannels.EventReleased)
	claimed, _, err := admin.XAutoClaimJustID(t.Context(), &redis.XAutoClaimArgs{
		Stream: topic, Group: "g", Consumer: "peer", MinIdle: time.Minute, Start: "0-0",
	}).Result()
	require.NoError(t, err)
	require.Empty(t, claimed, "another consumer handles it as well")
	require.Equal(t, 1, countOf(t, c), "it was not delivered before")
	c.Ack()
	eventuallyPending(t, admin, topic, 0)
}

// A release did not reach Redis, and the entry came back from our own pending entries: the
// read, which counts in advance, was taken for a delivery.
func TestSubscriber_FailedReleaseDoesNotCount(t *testing.T) {
	t.Parallel()
	proxy, client, direct := pubProxy(t, func(o *redis.Options) { o.MaxRetries = -1 })
	topic := redistest.Key(t)
	sub := newSub(t, client, inFlight(8), minIdle(time.Minute))
	messages := sub.subscribe(t, topic)
	livingConsumer(t, direct, topic, "peer")
	lost := proxy.DropRequest(1, scriptOf(t, "release"))
	publish(t, direct, topic, "a", "b")
	eventuallyPending(t, direct, topic, 2)
	lost.Wait(t, soon) // b waits, and cannot be released
	for _, payload := range []string{"a", "b"} {
		msg := receive(t, messages)
		require.Equal(t, payload, string(msg.Payload))
		require.Equal(t, 1, countOf(t, msg), payload)
		msg.Ack()
	}
	eventuallyPending(t, direct, topic, 0)
}

// A release did not reach Redis, and nothing was received until the end: the entry was taken
// for one that others have, and kept from them for MinIdle, with a delivery that there never was.
func TestSubscriber_FailedReleaseIsRepeatedByClose(t *testing.T) {
	t.Parallel()
	proxy, client, direct := pubProxy(t, func(o *redis.Options) { o.MaxRetries = -1 })
	topic := redistest.Key(t)
	sub := newSub(t, client, inFlight(8), minIdle(time.Minute))
	sub.subscribe(t, topic)
	livingConsumer(t, direct, topic, "peer")
	lost := proxy.DropRequest(1, scriptOf(t, "release"))
	publish(t, direct, topic, "a", "b")
	eventuallyPending(t, direct, topic, 2)
	lost.Wait(t, soon)
	sub.closeSoon(t)
	heir := newSub(t, direct, inFlight(8), minIdle(time.Minute)).subscribe(t, topic)
	for _, payload := range []string{"a", "b"} {
		msg := receive(t, heir)
		require.Equal(t, payload, string(msg.Payload))
		require.Equal(t, 1, countOf(t, msg), payload)
		msg.Ack()
	}
	eventuallyPending(t, direct, topic, 0)
}

// While entries of an order were on their way to other consumers the reader looked for what is ours
// and not held, and took them back: then they were released under the lease of their handlers.
func TestSubscriber_ReleaseOfAnOrderIsNotUndoneByARead(t *testing.T) {
	t.Parallel()
	server := redistest.Shared(t)
	admin, topic := server.Client(t), redistest.Key(t)
	handing, looked := make(chan struct{}), make(chan struct{})
	var release, look sync.Once
	hook := redistest.NewHook()
	hook.Before("evalsha", func(_ context.Context, cmd redis.Cmder) error {
		if isScript(t, cmd, "release", topic) {
			release.Do(func() {
				close(handing)
				select { // it is slow
				case <-looked:
				case <-time.After(time.Second):
				}
			})
		}
		return nil
	}).After("evalsha", func(ctx context.Context, cmd redis.Cmder) error {
		switch {
		case isScript(t, cmd, "fetch", topic):
			look.Do(func() { close(looked) })
		case isScript(t, cmd, "release", topic):
			return admin.Do(ctx, "XAUTOCLAIM", topic, "g", "peer", 0, "0-0", "JUSTID").Err()
		}
		return nil
	})
	sub := newSub(t, server.Client(t), inFlight(8), minIdle(time.Minute), func(c *redischannels.SubscriberConfig) {
		c.OrderingKey = func(msg *message.Message) string { return string(msg.Payload) }
		c.OnReadClient = func(own *redis.Client) { own.AddHook(hook) }
	})
	messages := sub.subscribe(t, topic)
	livingConsumer(t, admin, topic, "peer")
	publish(t, admin, topic, "a", "b")
	eventuallyPending(t, admin, topic, 2)
	waitFor(t, handing)
	receive(t, messages).Ack() // the reader continues
	sub.events.wait(t, redischannels.EventReleased)
	publish(t, admin, topic, "c")
	c := receive(t, messages)
	require.Equal(t, "c", string(c.Payload), "another consumer has b")
	c.Ack()
	eventuallyPending(t, admin, topic, 1)
}

// A release that was cut off was executed later, when its entry was ours again: another consumer
// claimed it while it was handled here under a lease that was believed to hold.
func TestSubscriber_LateReleaseTakesNothing(t *testing.T) {
	t.Parallel()
	server := redistest.Shared(t)
	admin, topic := server.Client(t), redistest.Key(t)
	cut := make(chan []any, 1)
	hook := redistest.Before("evalsha", func(_ context.Context, cmd redis.Cmder) error {
		if !isScript(t, cmd, "release", topic) {
			return nil
		}
		select {
		case cut <- append([]any{"EVAL", scriptText(t, "release")}, cmd.Args()[2:]...):
			return &net.OpError{Op: "read", Err: os.ErrDeadlineExceeded}
		default:
			return nil
		}
	})
	sub := newSub(t, server.Client(t), inFlight(8), minIdle(time.Minute), func(c *redischannels.SubscriberConfig) {
		c.OnReadClient = func(own *redis.Client) { own.AddHook(hook) }
	})
	messages := sub.subscribe(t, topic)
	livingConsumer(t, admin, topic, "peer")
	publish(t, admin, topic, "a", "b")
	eventuallyPending(t, admin, topic, 2)
	var late []any
	select { // b waits, and is released
	case late = <-cut:
	case <-time.After(soon):
		require.FailNow(t, "no release")
	}
	receive(t, messages).Ack()
	b := receive(t, messages)
	require.Equal(t, "b", string(b.Payload))
	before := pendingOf(t, admin, topic)
	require.Len(t, before, 1)
	require.Equal(t, []any{int64(-3)}, must(admin.Do(t.Context(), late...).Slice()))
	after := pendingOf(t, admin, topic)
	require.Len(t, after, 1)
	require.Equal(t, before[0].Consumer, after[0].Consumer)
	b.Ack()
	eventuallyPending(t, admin, topic, 0)
}

// livingConsumer keeps a consumer that takes nothing alive until the test ends: it reads its own
// pending entries behind all there can be.
func livingConsumer(t *testing.T, client redis.UniversalClient, topic, name string) {
	t.Helper()
	touch := func(ctx context.Context) error {
		return client.XReadGroup(ctx, &redis.XReadGroupArgs{
			Group: "g", Consumer: name, Streams: []string{topic, "18446744073709551614-0"}, Block: -1,
		}).Err()
	}
	require.NoError(t, touch(t.Context()))
	ctx, cancel := context.WithCancel(t.Context())
	var alive sync.WaitGroup
	alive.Go(func() {
		for every := time.NewTicker(testClaimInterval / 5); ; {
			select {
			case <-ctx.Done():
				every.Stop()
				return
			case <-every.C:
				_ = touch(ctx)
			}
		}
	})
	t.Cleanup(func() {
		cancel()
		alive.Wait()
	})
}

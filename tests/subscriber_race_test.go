package tests

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
)

// Subscribe, Close, acking and canceling race with each other: WaitGroup misuse, a send on
// a closed channel.
func TestSubscriber_ConcurrentUse(t *testing.T) {
	t.Parallel()
	client, topic := redistest.Shared(t).Client(t), redistest.Key(t)
	pub, err := redischannels.NewPublisher(redischannels.PublisherConfig{Client: client}, nil)
	require.NoError(t, err)
	for round := range 6 {
		sub := newSub(t, client, inFlight(1+round%3))
		ctx, cancel := context.WithCancel(t.Context())
		var all, handlers sync.WaitGroup
		// The end comes at once, or when the subscriptions work.
		var working atomic.Int32
		going := make(chan struct{})
		if round%2 == 0 {
			close(going)
		}
		for i := range 6 {
			all.Go(func() {
				ctx := ctx
				if i%2 == 0 { // ends with this goroutine
					own, stop := context.WithCancel(ctx)
					defer stop()
					ctx = own
				}
				messages, err := sub.Subscribe(ctx, topic)
				if err != nil {
					if !errors.Is(err, redischannels.ErrClosed) && !errors.Is(err, context.Canceled) {
						t.Errorf("subscribe: %v", err)
					}
					return
				}
				if working.Add(1) == 3 && round%2 == 1 {
					close(going)
				}
				handlers.Go(func() {
					n := 0
					for msg := range messages {
						if n++; n%3 == 0 {
							msg.Nack()
						} else {
							msg.Ack()
						}
					}
				})
			})
			all.Go(func() {
				for range 5 {
					if err := pub.Publish(topic, message.NewMessage(watermill.NewUUID(), nil)); err != nil {
						t.Errorf("publish: %v", err)
					}
				}
			})
			all.Go(func() { _ = sub.SubscribeInitialize(topic) })
			all.Go(func() {
				for range sub.History(ctx, topic, redischannels.Oldest, redischannels.Latest) {
					break
				}
			})
		}
		for range 2 {
			all.Go(func() {
				<-going
				_ = sub.Close()
			})
		}
		all.Go(func() {
			<-going
			cancel()
		})
		all.Wait()
		handlers.Wait()
		_, err := sub.Subscribe(t.Context(), topic)
		require.ErrorIs(t, err, redischannels.ErrClosed)
		require.ErrorIs(t, sub.SubscribeInitialize(topic), redischannels.ErrClosed)
		cancel()
	}
}

// A subscription that is opened while its subscriber closes belongs to no owner: Close has not seen it,
// and waits for it forever.
func TestSubscriber_CloseDuringSubscribe(t *testing.T) {
	t.Parallel()
	for command, call := range map[string]func(t *testing.T, sub *testSub, topic string) error{
		"scan": func(t *testing.T, sub *testSub, topic string) error {
			_, err := sub.Subscribe(t.Context(), topic)
			return err
		},
		"xgroup": func(_ *testing.T, sub *testSub, topic string) error { return sub.SubscribeInitialize(topic) },
	} {
		t.Run(command, func(t *testing.T) {
			t.Parallel()
			server := redistest.Shared(t)
			client, topic := server.Client(t), redistest.Key(t)
			var sub *testSub
			closed := make(chan struct{})
			whileClosing := func(context.Context, redis.Cmder) error {
				go func() {
					defer close(closed)
					_ = sub.Close()
				}()
				redistest.Eventually(t, soon, func() bool {
					for _, err := range sub.History(t.Context(), topic, redischannels.Oldest, redischannels.Latest) {
						return errors.Is(err, redischannels.ErrClosed)
					}
					return false
				}, "Close has begun")
				return nil
			}
			hook := redistest.NewHook()
			if command == "scan" {
				beforeScriptOnce(t, hook, command, topic, whileClosing)
			} else {
				hook.BeforeOnce(command, whileClosing)
			}
			client.AddHook(hook)
			sub = newSub(t, client)
			require.ErrorIs(t, call(t, sub, topic), redischannels.ErrClosed)
			select {
			case <-closed:
			case <-time.After(soon):
				t.Fatal("Close does not return")
			}
			if command == "scan" {
				require.Empty(t, consumersOf(t, client, topic), "nothing is left behind")
			}
		})
	}
}

package tests

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
)

// RecoveredPanicError is that of Watermill's Recoverer, whose package needs further modules.
type RecoveredPanicError struct {
	V          any
	Stacktrace string
}

func (e RecoveredPanicError) Error() string { return fmt.Sprintf("panic: %v\n%s", e.V, e.Stacktrace) }

// hostileError panics in its methods.
type hostileError struct{}

func (hostileError) Error() string { panic("of the error") }

// A dead letter said "delivered 2 times without success" whatever the handler had returned.
func TestHandlerErrors_AreTheReasonsOfDeadLetters(t *testing.T) {
	t.Parallel()
	cases := map[string]struct {
		fail   func(count int) error
		reason string
		count  int
	}{
		"the last error": {func(count int) error { return fmt.Errorf("card declined (%d)", count) }, "card declined (2)", 2},
		"permanent":      {func(int) error { return fmt.Errorf("charge: %w", redischannels.Permanent(errors.New("no such card"))) }, "charge: no such card", 1},
		"panic":          {func(int) error { panic("out of cards") }, "panic: out of cards", 2},
		"recovered":      {func(int) error { return fmt.Errorf("x: %w", RecoveredPanicError{"out of cards", "goroutine 1"}) }, "panic: out of cards", 2},
		"too long":       {func(int) error { return errors.New(strings.Repeat("x", 5000)) }, strings.Repeat("x", 1024), 2},
		"hostile":        {func(int) error { return hostileError{} }, "the error of the handler panicked", 2},
	}
	client := redistest.Shared(t).Client(t)
	for name, run := range map[string]func(t *testing.T, topic string, config redischannels.SubscriberConfig, fail func(count int) error){
		"router": failInRouter, "Handle": failInHandle, "Handle with the middleware": failInMiddleware,
		"HandleBatch": failInBatch, "HandleBatch, a part": failInPart,
	} {
		for kind, c := range cases {
			t.Run(name+"/"+kind, func(t *testing.T) {
				t.Parallel()
				topic := redistest.Key(t)
				run(t, topic, failingConfig(client), c.fail)
				publish(t, client, topic, `"m"`)
				letter := onlyDeadLetter(t, client, topic)
				require.Equal(t, c.reason, letter.Reason)
				require.Equal(t, c.count, letter.Count)
			})
		}
		t.Run(name+"/hidden", func(t *testing.T) {
			t.Parallel()
			config := failingConfig(client)
			config.HideHandlerErrors = true
			topic := redistest.Key(t)
			run(t, topic, config, func(int) error { return errors.New("card 4711 declined") })
			publish(t, client, topic, `"m"`)
			require.Equal(t, "delivered 2 times without success", onlyDeadLetter(t, client, topic).Reason)
		})
		t.Run(name+"/delayed", func(t *testing.T) {
			t.Parallel()
			config := failingConfig(client)
			config.NackBackoff = redischannels.Backoff{Min: time.Hour, Max: time.Hour}
			topic := redistest.Key(t)
			run(t, topic, config, func(int) error {
				return fmt.Errorf("x: %w", redischannels.WithRetryAfter(errors.New("busy"), 10*time.Millisecond))
			})
			publish(t, client, topic, `"m"`)
			require.Equal(t, "x: busy", onlyDeadLetter(t, client, topic).Reason)
		})
	}
}

// A request of the handler itself applies.
func TestHandlerErrors_RequestsOfTheHandlerCount(t *testing.T) {
	t.Parallel()
	client, topic := redistest.Shared(t).Client(t), redistest.Key(t)
	router(t, topic, failingConfig(client), func(msg *message.Message) error {
		redischannels.Reject(msg, "no such customer")
		return errors.New("see the log")
	})
	publish(t, client, topic, "m")
	letter := onlyDeadLetter(t, client, topic)
	require.Equal(t, "no such customer", letter.Reason)
	require.Equal(t, 1, letter.Count)
}

func failingConfig(client redis.UniversalClient) redischannels.SubscriberConfig {
	return redischannels.SubscriberConfig{
		Client: client, ConsumerGroup: "g", MaxDeliveries: 2, NackBackoff: quickBackoff(), Tuning: quickTuning(),
	}
}

// router runs a router with HandlerErrors.
func router(t *testing.T, topic string, config redischannels.SubscriberConfig, handle message.NoPublishHandlerFunc) {
	t.Helper()
	sub, err := redischannels.NewSubscriber(config, watermill.NopLogger{})
	require.NoError(t, err)
	r, err := message.NewRouter(message.RouterConfig{CloseTimeout: time.Second}, watermill.NopLogger{})
	require.NoError(t, err)
	r.AddMiddleware(redischannels.HandlerErrors)
	r.AddConsumerHandler("handler", topic, sub, handle)
	go func() { _ = r.Run(context.WithoutCancel(t.Context())) }()
	t.Cleanup(func() { _ = r.Close() })
	waitFor(t, r.Running())
}

func failInRouter(t *testing.T, topic string, config redischannels.SubscriberConfig, fail func(count int) error) {
	router(t, topic, config, func(msg *message.Message) error {
		count, _ := redischannels.DeliveryCountFromContext(msg.Context())
		return fail(count)
	})
}

func failInHandle(t *testing.T, topic string, config redischannels.SubscriberConfig, fail func(count int) error) {
	handleFailing(t, topic, config, fail, redischannels.HandleConfig{})
}

func failInMiddleware(t *testing.T, topic string, config redischannels.SubscriberConfig, fail func(count int) error) {
	handleFailing(t, topic, config, fail, redischannels.HandleConfig{
		Middleware: []message.HandlerMiddleware{redischannels.HandlerErrors},
	})
}

func failInBatch(t *testing.T, topic string, config redischannels.SubscriberConfig, fail func(count int) error) {
	batchFailing(t, topic, config, fail)
}

// failInPart fails for a value that the error names.
func failInPart(t *testing.T, topic string, config redischannels.SubscriberConfig, fail func(count int) error) {
	batchFailing(t, topic, config, func(count int) error {
		return &redischannels.BatchError{Failed: []int{0}, Err: fail(count)}
	})
}

func batchFailing(t *testing.T, topic string, config redischannels.SubscriberConfig, fail func(count int) error) {
	t.Helper()
	hub := newHub(t, config.Client)
	config.Client = nil
	c := streamOf[string](t, hub, topic, redischannels.StreamChannelConfig{Subscriber: config})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- c.Reader().HandleBatch(ctx, func(_ context.Context, batch []redischannels.Delivery[string]) error {
			return fail(batch[0].DeliveryCount)
		}, redischannels.BatchConfig{Size: 10})
	}()
	t.Cleanup(func() {
		cancel()
		require.NoError(t, <-ended)
	})
}

// A permanent error of a batch that fails as a whole is not one of each of its values: they come again
// alone, and the reason of the one that fails is its own.
func TestHandlerErrors_PermanentErrorOfABatch(t *testing.T) {
	t.Parallel()
	client, topic := redistest.Shared(t).Client(t), redistest.Key(t)
	hub := newHub(t, client)
	c := streamOf[int](t, hub, topic, redischannels.StreamChannelConfig{Subscriber: redischannels.SubscriberConfig{
		ConsumerGroup: "g", NackBackoff: quickBackoff(), Tuning: quickTuning(),
	}})
	write(t, c, 0, 1, 2, 3)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan int, 10)
	ended := handlingBatches(ctx, c, redischannels.BatchConfig{Size: 4, Wait: soon}, func(_ context.Context, batch []redischannels.Delivery[int]) error {
		for _, d := range batch {
			if d.Value == 2 {
				return redischannels.Permanent(fmt.Errorf("2 is bad, among %d", len(batch)))
			}
		}
		for _, d := range batch {
			done <- d.Value
		}
		return nil
	})
	var handled []int
	for range 3 {
		select {
		case n := <-done:
			handled = append(handled, n)
		case <-time.After(soon):
			t.Fatal("a value is not handled")
		}
	}
	require.ElementsMatch(t, []int{0, 1, 3}, handled)
	letter := onlyDeadLetter(t, client, topic)
	require.Equal(t, "2 is bad, among 1", letter.Reason)
	require.Equal(t, 2, letter.Count)
	cancel()
	require.NoError(t, <-ended)
}

func handleFailing(t *testing.T, topic string, config redischannels.SubscriberConfig, fail func(count int) error, how redischannels.HandleConfig) {
	t.Helper()
	hub := newHub(t, config.Client)
	config.Client = nil
	c := streamOf[string](t, hub, topic, redischannels.StreamChannelConfig{Subscriber: config})
	ctx, cancel := context.WithCancel(t.Context())
	ended := handling(ctx, c, func(ctx context.Context, _ string) error {
		count, _ := redischannels.DeliveryCountFromContext(ctx)
		return fail(count)
	}, how)
	t.Cleanup(func() {
		cancel()
		require.NoError(t, <-ended)
	})
}

// onlyDeadLetter waits for the first dead letter of a topic.
func onlyDeadLetter(t *testing.T, client redis.UniversalClient, topic string) (letter redischannels.DeadLetter) {
	t.Helper()
	letters := newDeadLetters(t, client)
	redistest.Eventually(t, soon, func() bool {
		for l, err := range letters.List(t.Context(), topic, redischannels.DeadLetterQuery{}) {
			require.NoError(t, err)
			letter = l
			return true
		}
		return false
	}, "a dead letter")
	return letter
}

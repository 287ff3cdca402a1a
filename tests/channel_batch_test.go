package tests

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/pubsub/gochannel"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
)

// batchSeen records the calls of a batch handler.
type batchSeen struct {
	mu        sync.Mutex
	delivered map[int]int // deliveries by value
	handled   []int       // values of batches that were acknowledged
	batches   [][]int
}

func (s *batchSeen) add(values []int, err error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.delivered == nil {
		s.delivered = make(map[int]int)
	}
	for _, v := range values {
		s.delivered[v]++
	}
	s.batches = append(s.batches, values)
	if err == nil {
		s.handled = append(s.handled, values...)
	}
	return err
}

func (s *batchSeen) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.handled)
}

func valuesOf(batch []redischannels.Delivery[int]) []int {
	values := make([]int, len(batch))
	for i := range batch {
		values[i] = batch[i].Value
	}
	return values
}

// handlingBatches runs HandleBatch until the end of the test and returns how it ends.
func handlingBatches(ctx context.Context, c *redischannels.Channel[int], config redischannels.BatchConfig, fn func(context.Context, []redischannels.Delivery[int]) error) <-chan error {
	ended := make(chan error, 1)
	go func() { ended <- c.Reader().HandleBatch(ctx, fn, config) }()
	return ended
}

// A batch is one call, is acknowledged by one command, and comes in stream order.
func TestChannel_HandleBatch(t *testing.T) {
	t.Parallel()
	hub, key := newHubOf(t), redistest.Key(t)
	numbers := streamOf[int](t, hub, key)
	write(t, numbers, consecutive(0, 1000)...)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var seen batchSeen
	ended := handlingBatches(ctx, numbers, redischannels.BatchConfig{Size: 500, Wait: soon}, func(_ context.Context, batch []redischannels.Delivery[int]) error {
		return seen.add(valuesOf(batch), nil)
	})
	redistest.Eventually(t, soon, func() bool { return seen.count() == 1000 }, "not all handled")
	require.Equal(t, consecutive(0, 1000), seen.handled)
	require.Len(t, seen.batches, 2, "MaxInFlight is raised to Size")
	eventuallyPending(t, hub.client, key, 0)
	cancel()
	require.NoError(t, <-ended)
}

// ReceiveBatch returns at least one delivery, and each is ended by itself.
func TestChannel_ReceiveBatch(t *testing.T) {
	t.Parallel()
	for name, config := range map[string]redischannels.StreamChannelConfig{"group": {}, "no group": noGroup} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			hub, key := newHubOf(t), redistest.Key(t)
			config.Subscriber.StartFrom = redischannels.Oldest
			numbers := streamOf[int](t, hub, key, config)
			ids := write(t, numbers, consecutive(0, 400)...)
			batch, err := numbers.Reader().ReceiveBatch(soonCtx(t), 300, soon)
			require.NoError(t, err)
			require.Equal(t, consecutive(0, 300), valuesOf(batch))
			n, err := numbers.Reader().Ack(soonCtx(t), ids[:299]...)
			require.NoError(t, err)
			require.Equal(t, 299, n)
			require.NoError(t, batch[299].Nack())
			var rest []int
			for len(rest) < 101 {
				batch, err := numbers.Reader().ReceiveBatch(soonCtx(t), 1000, 0)
				require.NoError(t, err)
				for _, d := range batch {
					require.NoError(t, d.Ack())
				}
				rest = append(rest, valuesOf(batch)...)
			}
			slices.Sort(rest)
			require.Equal(t, consecutive(299, 101), rest)
		})
	}
}

// With Ordered what is redelivered comes before what is behind it, and a failed value blocks
// the later ones of its batch.
func TestChannel_HandleBatchOrdered(t *testing.T) {
	t.Parallel()
	hub, key := newHubOf(t), redistest.Key(t)
	numbers := streamOf[int](t, hub, key)
	_, _, err := numbers.Reader().TryReceive() // opened before it is known that order is wanted
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var handled []int
	var counts []int
	var mu sync.Mutex
	ended := handlingBatches(ctx, numbers, redischannels.BatchConfig{Size: 10, Wait: 50 * time.Millisecond, Ordered: true}, func(_ context.Context, batch []redischannels.Delivery[int]) error {
		mu.Lock()
		defer mu.Unlock()
		for i, d := range batch {
			if d.Value%7 == 3 && d.DeliveryCount == 1 {
				return &redischannels.BatchError{Failed: []int{i}}
			}
			handled, counts = append(handled, d.Value), append(counts, d.DeliveryCount)
		}
		return nil
	})
	write(t, numbers, consecutive(0, 50)...)
	redistest.Eventually(t, soon, func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(handled) >= 50
	}, "not all handled")
	cancel()
	require.NoError(t, <-ended)
	require.Equal(t, consecutive(0, 50), handled)
	for v, count := range counts {
		require.Equal(t, map[bool]int{true: 2, false: 1}[v%7 == 3], count, "what was released behind another one does not count: %d", v)
	}
	eventuallyPending(t, hub.client, key, 0)
}

const (
	batchKeys   = 20
	batchPoison = 700
)

// keyedBatches is the configuration of a channel whose values have an ordering key.
func keyedBatches() redischannels.StreamChannelConfig {
	return redischannels.StreamChannelConfig{Subscriber: redischannels.SubscriberConfig{
		ConsumerGroup: "g", MaxDeliveries: 5, MaxInFlight: 500, NackBackoff: quickBackoff(), Tuning: quickTuning(),
		OrderingKey: func(msg *message.Message) string {
			v, _ := strconv.Atoi(string(msg.Payload))
			return strconv.Itoa(v % batchKeys)
		},
	}}
}

var batchLimits = redischannels.BatchConfig{Size: 500, Wait: 100 * time.Millisecond}

// batchChild handles batches of CHILD_TOPIC and kills itself in the first one that has the poison.
// For each batch it says "batch VALUE,VALUE,...", and "handled" behind those that it acknowledges.
var batchChild = redistest.ChildMain("batches", func() {
	fail := func(err error) {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	options, err := redis.ParseURL(os.Getenv("CHILD_URL"))
	if err != nil {
		fail(err)
	}
	client, topic := redis.NewClient(options), os.Getenv("CHILD_TOPIC")
	hub, err := redischannels.NewHub(client, redischannels.HubConfig{})
	if err != nil {
		fail(err)
	}
	numbers, err := redischannels.NewStreamChannel[int](hub, topic, keyedBatches())
	if err != nil {
		fail(err)
	}
	fail(numbers.Reader().HandleBatch(context.Background(), func(_ context.Context, batch []redischannels.Delivery[int]) error {
		values := valuesOf(batch)
		fmt.Println("batch", strings.Trim(strings.ReplaceAll(fmt.Sprint(values), " ", ","), "[]"))
		if slices.Contains(values, batchPoison) {
			acked := func() bool { // the batches before
				pending, err := client.XPendingExt(context.Background(), &redis.XPendingExtArgs{
					Stream: topic, Group: "g", Start: "-", End: batch[0].ID, Count: 2,
				}).Result()
				return err == nil && len(pending) == 1
			}
			for !acked() {
				time.Sleep(time.Millisecond)
			}
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
		fmt.Println("handled")
		return nil
	}, batchLimits))
})

// handleKeyed handles batches of a channel of keyedBatches, which fail as a whole when they have the poison,
// until ctx ends. The channel that it returns has a value then.
type handleKeyed func(ctx context.Context, t *testing.T, client *redis.Client, key string, seen *batchSeen) <-chan error

func keyedByReader(ctx context.Context, t *testing.T, client *redis.Client, key string, seen *batchSeen) <-chan error {
	numbers := streamOf[int](t, newHub(t, client), key, keyedBatches())
	return handlingBatches(ctx, numbers, batchLimits, func(_ context.Context, batch []redischannels.Delivery[int]) error {
		return seen.add(valuesOf(batch), poisonError(valuesOf(batch)))
	})
}

func keyedBySubscriber(ctx context.Context, t *testing.T, client *redis.Client, key string, seen *batchSeen) <-chan error {
	sub := newSub(t, client, func(c *redischannels.SubscriberConfig) {
		*c = keyedBatches().Subscriber
		c.Client = client
	})
	batches, err := sub.SubscribeBatch(ctx, key, batchLimits)
	require.NoError(t, err)
	ended := make(chan error, 1)
	go func() {
		for batch := range batches {
			values := numbersOf(batch)
			if seen.add(values, poisonError(values)) == nil {
				endAll(batch, (*message.Message).Ack)
			} else {
				endAll(batch, (*message.Message).Nack)
			}
		}
		ended <- nil
	}()
	return ended
}

func poisonError(values []int) error {
	if slices.Contains(values, batchPoison) {
		return errors.New("the database refuses it")
	}
	return nil
}

// A value that always fails becomes the only dead letter, after MaxDeliveries, although it comes in
// batches and a process is killed in one of them. Its neighbors are delivered a few times, and every key
// stays in order.
func TestChannel_BatchPoisonWithACrash(t *testing.T) {
	t.Parallel()
	poisonWithACrash(t, keyedByReader)
}

func TestSubscriber_BatchPoisonWithACrash(t *testing.T) {
	t.Parallel()
	poisonWithACrash(t, keyedBySubscriber)
}

func poisonWithACrash(t *testing.T, handle handleKeyed) {
	const n = 1500
	server := redistest.Shared(t)
	client, key := server.Client(t), redistest.Key(t)
	ids := write(t, streamOf[int](t, newHub(t, client), key), consecutive(0, n)...)
	seen := batchSeen{delivered: make(map[int]int)}
	killInBatch(t, server, key, &seen)
	// Entries that are claimed later would be behind entries that are read until then.
	redistest.Eventually(t, soon, func() bool {
		pending := pendingOf(t, client, key)
		return len(pending) > 0 && !slices.ContainsFunc(pending, func(p redis.XPendingExt) bool { return p.Idle < testMinIdle })
	}, "nothing to claim")

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := handle(ctx, t, client, key, &seen)
	redistest.Eventually(t, 4*soon, func() bool {
		return client.XLen(t.Context(), deadStream(key)).Val() > 0 && seen.count() >= n-1
	}, "not all handled")
	eventuallyPending(t, client, key, 0)
	cancel()
	require.NoError(t, <-ended)

	letters := fieldsOf(t, client, deadStream(key))
	require.Len(t, letters, 1)
	require.Equal(t, ids[batchPoison], letters[0]["_dead_entry_id"])
	require.Equal(t, "5", letters[0]["_dead_count"])
	require.LessOrEqual(t, seen.delivered[batchPoison], 6)
	requireKeyOrder(t, seen.handled)
	require.Len(t, seen.handled, n-1, "each is handled once")
	for v, times := range seen.delivered {
		if v != batchPoison {
			require.LessOrEqual(t, times, 4, v)
		}
	}
}

// killInBatch runs a batchChild until it has killed itself.
func killInBatch(t *testing.T, server *redistest.Server, key string, seen *batchSeen) {
	t.Helper()
	options := server.Options()
	address := url.URL{Scheme: "redis", Host: options.Addr, Path: "/" + strconv.Itoa(options.DB)}
	if options.Password != "" {
		address.User = url.UserPassword(options.Username, options.Password)
	}
	child := redistest.StartChild(t, batchChild, "CHILD_URL="+address.String(), "CHILD_TOPIC="+key)
	var last []int
	for line := range child.Lines() {
		if text, ok := strings.CutPrefix(line, "batch "); ok {
			last = nil
			for _, v := range strings.Split(text, ",") {
				v, err := strconv.Atoi(v)
				require.NoError(t, err)
				last = append(last, v)
				seen.delivered[v]++
			}
		} else if line == "handled" {
			seen.handled = append(seen.handled, last...)
		}
	}
	require.Contains(t, last, batchPoison, "it was killed in that batch")
}

// requireKeyOrder fails the test if a value of a key was handled before an earlier one.
func requireKeyOrder(t *testing.T, handled []int) {
	t.Helper()
	last := make(map[int]int)
	for _, v := range handled {
		if before, ok := last[v%batchKeys]; ok {
			require.Less(t, before, v, "of key %d", v%batchKeys)
		}
		last[v%batchKeys] = v
	}
}

// An explicit MaxInFlight that is less than a batch needs is an error, also one of the hub.
func TestChannel_BatchesAndMaxInFlight(t *testing.T) {
	t.Parallel()
	hub := newHubOf(t, func(c *redischannels.HubConfig) { c.Stream.Subscriber.MaxInFlight = 50 })
	nothing := func(context.Context, []redischannels.Delivery[int]) error { return nil }
	sub := newSub(t, hub.client, inFlight(50))
	for name, c := range map[string]*redischannels.Channel[int]{
		"of the subscriber": must(redischannels.NewChannel(nil, sub.Subscriber, redistest.Key(t), redischannels.ChannelConfig[int]{})),
		"of the hub":        streamOf[int](t, hub, redistest.Key(t)),
		"of the channel":    streamOf[int](t, newHubOf(t), redistest.Key(t), redischannels.StreamChannelConfig{Subscriber: redischannels.SubscriberConfig{MaxInFlight: 50}}),
	} {
		require.ErrorIs(t, c.Reader().HandleBatch(t.Context(), nothing, redischannels.BatchConfig{Size: 51}), redischannels.ErrInvalidConfig, name)
		_, err := c.Reader().ReceiveBatch(t.Context(), 51, 0)
		require.ErrorIs(t, err, redischannels.ErrInvalidArgument, name)
		err = c.Reader().Handle(t.Context(), func(context.Context, int) error { return nil }, redischannels.HandleConfig{Concurrency: 51})
		require.ErrorIs(t, err, redischannels.ErrInvalidConfig, name)
	}
}

// Over Pub/Sub a value that always fails is isolated as well, and is skipped alone.
func TestChannel_BatchPoisonOverPubSub(t *testing.T) {
	t.Parallel()
	const n, poison = 200, 77
	hub, name := newHubOf(t), redistest.Key(t)
	c := must(redischannels.NewPubSubChannel[int](hub.Hub, name, redischannels.PubSubChannelConfig{
		Subscriber: redischannels.PubSubSubscriberConfig{MaxDeliveries: 5, NackBackoff: quickBackoff()},
	}))
	_, _, err := c.Reader().TryReceive() // subscribes
	require.NoError(t, err)
	write(t, c, consecutive(0, n)...)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var seen batchSeen
	ended := handlingBatches(ctx, c, redischannels.BatchConfig{Size: n, Wait: time.Second}, func(_ context.Context, batch []redischannels.Delivery[int]) error {
		if slices.Contains(valuesOf(batch), poison) {
			return seen.add(valuesOf(batch), errors.New("no"))
		}
		return seen.add(valuesOf(batch), nil)
	})
	event := hub.events.wait(t, redischannels.EventSkipped)
	require.Equal(t, 1, event.Count)
	redistest.Eventually(t, soon, func() bool { return seen.count() == n-1 }, "not all handled")
	cancel()
	require.NoError(t, <-ended)
	require.Equal(t, 5, seen.delivered[poison])
	for v, times := range seen.delivered {
		require.True(t, v == poison || times <= 3, "%d was delivered %d times", v, times)
	}
}

// Over another subscriber a batch has what that sends before the first message is acknowledged, and a value that
// fails is isolated as well.
func TestChannel_BatchesOverGoChannel(t *testing.T) {
	t.Parallel()
	transport := gochannel.NewGoChannel(gochannel.Config{Persistent: true}, watermill.NopLogger{})
	t.Cleanup(func() { _ = transport.Close() })
	c := must(redischannels.NewChannel(transport, transport, "numbers", redischannels.ChannelConfig[int]{}))
	t.Cleanup(func() { _ = c.Close() })
	write(t, c, consecutive(0, 20)...)
	batch, err := c.Reader().ReceiveBatch(soonCtx(t), 5, soon)
	require.NoError(t, err)
	require.Len(t, batch, 5)
	for _, d := range batch {
		require.NoError(t, d.Nack())
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var seen batchSeen
	ended := handlingBatches(ctx, c, redischannels.BatchConfig{Size: 5, Wait: redischannels.NoBatchWait}, func(_ context.Context, batch []redischannels.Delivery[int]) error {
		seen.mu.Lock()
		fails := slices.Contains(valuesOf(batch), 7) && seen.delivered[7] < 2
		seen.mu.Unlock()
		if fails {
			return seen.add(valuesOf(batch), errors.New("no"))
		}
		return seen.add(valuesOf(batch), nil)
	})
	redistest.Eventually(t, soon, func() bool { return seen.count() == 20 }, "not all handled")
	cancel()
	require.NoError(t, <-ended)
	require.ElementsMatch(t, consecutive(0, 20), seen.handled)
	require.Equal(t, 3, seen.delivered[7])
}

package tests

import (
	"context"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
)

// numbersOf returns the payloads of messages as numbers.
func numbersOf(batch []*message.Message) []int {
	numbers := make([]int, len(batch))
	for i, msg := range batch {
		numbers[i], _ = strconv.Atoi(string(msg.Payload))
	}
	return numbers
}

// endAll ends messages by Ack or Nack.
func endAll(batch []*message.Message, end func(*message.Message) bool) {
	for _, msg := range batch {
		end(msg)
	}
}

// decimals returns the numbers from 0 to n-1 as payloads.
func decimals(n int) []string {
	payloads := make([]string, n)
	for i := range payloads {
		payloads[i] = strconv.Itoa(i)
	}
	return payloads
}

func subscribeBatch(t *testing.T, sub *testSub, topic string, config redischannels.BatchConfig) <-chan []*message.Message {
	t.Helper()
	batches, err := sub.SubscribeBatch(t.Context(), topic, config)
	require.NoError(t, err)
	return batches
}

func receiveBatch(t *testing.T, batches <-chan []*message.Message) []*message.Message {
	t.Helper()
	select {
	case batch, open := <-batches:
		require.True(t, open, "the channel of batches is closed")
		require.NotEmpty(t, batch)
		return batch
	case <-time.After(soon):
		require.FailNow(t, "no batch")
		return nil
	}
}

// Where MaxInFlight is not set batches come in stream order, one at a time. Each message has the context of
// a single one.
func TestSubscriber_SubscribeBatch(t *testing.T) {
	t.Parallel()
	client, topic := redistest.Shared(t).Client(t), redistest.Key(t)
	type key struct{}
	sub := newSub(t, client)
	ctx, cancel := context.WithCancel(context.WithValue(t.Context(), key{}, "value"))
	defer cancel()
	batches, err := sub.SubscribeBatch(ctx, topic, redischannels.BatchConfig{Size: 500, Wait: 200 * time.Millisecond})
	require.NoError(t, err)
	ids := publish(t, client, topic, decimals(1000)...)
	first := receiveBatch(t, batches)
	require.Equal(t, consecutive(0, 500), numbersOf(first))
	for i, msg := range first {
		require.Equal(t, ids[i], entryIDOf(t, msg))
		require.Equal(t, 1, countOf(t, msg))
		require.Equal(t, "value", msg.Context().Value(key{}))
		require.NoError(t, msg.Context().Err())
	}
	first[499].Nack()
	waitDone(t, first[499].Context())
	endAll(first[:499], (*message.Message).Ack)
	second := receiveBatch(t, batches)
	require.Equal(t, consecutive(499, 500), numbersOf(second), "the nacked one is first")
	require.Equal(t, 2, countOf(t, second[0]))
	require.NotSame(t, first[499], second[0])
	for _, msg := range first {
		require.Error(t, msg.Context().Err())
	}
	cancel()
	redistest.Eventually(t, soon, func() bool { return sub.Stats()[0].State == redischannels.StateClosing }, "closing")
	endAll(second, (*message.Message).Ack)
	_, open := <-batches
	require.False(t, open)
	pending := pendingOf(t, client, topic)
	require.Len(t, pending, 1, "acks that were given are written")
	require.Equal(t, ids[999], pending[0].ID)
}

// A batch that is not received is released when the subscription ends, and does not count.
func TestSubscriber_BatchIsReleasedByClose(t *testing.T) {
	t.Parallel()
	client, topic := redistest.Shared(t).Client(t), redistest.Key(t)
	sub := newSub(t, client, minIdle(time.Minute))
	batches := subscribeBatch(t, sub, topic, redischannels.BatchConfig{Size: 10})
	publish(t, client, topic, decimals(20)...)
	eventuallyPending(t, client, topic, 10)
	sub.closeSoon(t)
	_, open := <-batches
	require.False(t, open)
	again := subscribeBatch(t, newSub(t, client, minIdle(time.Minute)), topic, redischannels.BatchConfig{Size: 20, Wait: soon})
	batch := receiveBatch(t, again)
	require.Equal(t, consecutive(0, 20), numbersOf(batch))
	for _, msg := range batch {
		require.Equal(t, 1, countOf(t, msg))
		msg.Ack()
	}
	eventuallyPending(t, client, topic, 0)
}

// Where there is an order a batch that waits for more is completed by an entry that was claimed meanwhile. It took
// all of its Wait.
func TestSubscriber_ClaimedEntryJoinsOrderedBatch(t *testing.T) {
	t.Parallel()
	client, topic := redistest.Shared(t).Client(t), redistest.Key(t)
	ids := publish(t, client, topic, decimals(2)...)
	require.NoError(t, client.XGroupCreate(t.Context(), topic, "g", "0").Err())
	for range ids {
		readAs(t, client, topic, "g", "crashed")
	}
	abandon := func(id string) {
		require.NoError(t, client.Do(t.Context(), "XCLAIM", topic, "g", "crashed", 0, id, "IDLE", time.Hour.Milliseconds(), "JUSTID").Err())
	}
	abandon(ids[0])
	sub := newSub(t, client, minIdle(time.Minute))
	batches := subscribeBatch(t, sub, topic, redischannels.BatchConfig{Size: 2, Wait: 2 * soon})
	redistest.Eventually(t, soon, func() bool { return sub.Stats()[0].InFlight == 1 }, "the batch has begun")
	abandon(ids[1])
	batch := receiveBatch(t, batches)
	require.Equal(t, consecutive(0, 2), numbersOf(batch))
	endAll(batch, (*message.Message).Ack)
	eventuallyPending(t, client, topic, 0)
}

// An application that does not receive kept all of its batch but the last message from other consumers.
func TestSubscriber_OfferedBatchIsReleasedToAnIdleConsumer(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*redischannels.SubscriberConfig){"ordered": inFlight(1), "not ordered": inFlight(10)} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := redistest.Shared(t)
			client, topic := server.Client(t), redistest.Key(t)
			deaf := newSub(t, client, change, minIdle(shortIdle))
			_ = subscribeBatch(t, deaf, topic, redischannels.BatchConfig{Size: 10, Wait: redischannels.NoBatchWait})
			publish(t, client, topic, decimals(10)...)
			eventuallyPending(t, client, topic, 10)
			other := newSub(t, server.Client(t), inFlight(1), minIdle(shortIdle)).subscribe(t, topic)
			require.ElementsMatch(t, decimals(10), receiveAcked(t, other, 10))
			deaf.events.wait(t, redischannels.EventReleased)
			eventuallyPending(t, client, topic, 0)
		})
	}
}

// The configuration of batches is checked before anything is done.
func TestSubscriber_SubscribeBatchConfig(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	for _, c := range []struct {
		field, text string
		batch       redischannels.BatchConfig
		maxInFlight int
	}{
		{"BatchConfig.Size", "MaxInFlight of the subscriber (101)", redischannels.BatchConfig{Size: 51, Concurrency: 2}, 101},
		{"BatchConfig.Size", "got 101 times 1", redischannels.BatchConfig{Size: 101}, 100},
		{"BatchConfig.Size", "got -1", redischannels.BatchConfig{Size: -1}, 0},
		{"BatchConfig.Concurrency", "must be 1", redischannels.BatchConfig{Concurrency: 2}, 1},
		{"BatchConfig.Ordered", "got 2", redischannels.BatchConfig{Ordered: true, Concurrency: 2}, 1000},
		{"BatchConfig.Wait", "half of Tuning.MinIdle", redischannels.BatchConfig{Wait: time.Second}, 0},
	} {
		_, err := newSub(t, client, inFlight(c.maxInFlight)).SubscribeBatch(t.Context(), redistest.Key(t), c.batch)
		require.ErrorIs(t, err, redischannels.ErrInvalidConfig)
		require.ErrorContains(t, err, c.field)
		require.ErrorContains(t, err, c.text)
	}
	sub := newSub(t, client)
	_, err := sub.SubscribeBatch(t.Context(), "", redischannels.BatchConfig{})
	require.ErrorIs(t, err, redischannels.ErrInvalidArgument)
	sub.closeSoon(t)
	_, err = sub.SubscribeBatch(t.Context(), "t", redischannels.BatchConfig{})
	require.ErrorIs(t, err, redischannels.ErrClosed)
}

// A batch is read and acknowledged with few commands, however many messages it has: what is acknowledged
// while a command is under way is written by the next one. So each is blocked until all that the
// application has is acknowledged.
func TestSubscriber_CommandsPerBatch(t *testing.T) {
	t.Parallel()
	const n, size = 5000, 500
	limits := redischannels.BatchConfig{Size: size, Wait: soon / 2}
	type statsFunc func() []redischannels.SubscriptionStats
	for name, consume := range map[string]func(t *testing.T, client *redis.Client, topic string, received func(int)) statsFunc{
		"SubscribeBatch": func(t *testing.T, client *redis.Client, topic string, received func(int)) statsFunc {
			sub := newSub(t, client, usualTuning)
			batches := subscribeBatch(t, sub, topic, limits)
			go func() {
				for batch := range batches {
					received(len(batch))
					endAll(batch, (*message.Message).Ack)
				}
			}()
			return sub.Stats
		},
		"HandleBatch": func(t *testing.T, client *redis.Client, topic string, received func(int)) statsFunc {
			hub := newHub(t, client, func(c *redischannels.HubConfig) { c.Stream.Subscriber.Tuning = redischannels.Tuning{} })
			reader := streamOf[int](t, hub, topic).Reader()
			go func() {
				_ = reader.HandleBatch(t.Context(), func(_ context.Context, batch []redischannels.Delivery[int]) error {
					received(len(batch))
					return nil
				}, limits)
			}()
			return hub.Stats
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := redistest.Start(t)
			direct, topic := server.Client(t), redistest.Key(t)
			publish(t, direct, topic, decimals(n)...)
			redistest.ResetStats(t, direct)
			client, held, proceed := server.Client(t), make(chan int), make(chan struct{})
			var batches, received atomic.Int64
			client.AddHook(redistest.Before("xack", func(_ context.Context, cmd redis.Cmder) error {
				if received.Load() == 0 {
					return nil // the subscription is being opened
				}
				select {
				case held <- len(cmd.Args()) - 3: // all but XACK, key and group
				case <-t.Context().Done():
					return t.Context().Err()
				}
				select {
				case <-proceed:
				case <-t.Context().Done():
				}
				return t.Context().Err()
			}))
			statsOf := consume(t, client, topic, func(n int) {
				batches.Add(1)
				received.Add(int64(n))
			})
			commands := 0
			for written := 0; written < n; commands++ {
				select {
				case ids := <-held:
					redistest.Eventually(t, soon, func() bool {
						return written+statsOf()[0].Acking == int(received.Load())
					}, "the application has acknowledged what it has")
					proceed <- struct{}{}
					written += ids
				case <-time.After(soon):
					require.FailNow(t, "no acknowledgement is written")
				}
			}
			eventuallyPending(t, direct, topic, 0)
			stats := redistest.CommandStats(t, direct)
			require.EqualValues(t, n/size, batches.Load())
			require.LessOrEqual(t, commands, 2*n/size)
			require.LessOrEqual(t, stats["xreadgroup"], int64(5*n/size), "%v", stats)
			var others int64
			for command, calls := range stats {
				if !slices.Contains([]string{"xack", "xreadgroup", "xpending", "info", "client|setinfo"}, command) && !strings.HasPrefix(command, "config") {
					others += calls
				}
			}
			require.LessOrEqual(t, others, int64(110), "to open the subscription, on two streams: %v", stats)
		})
	}
}

// Without a group a message that always fails is isolated as well, and is skipped alone, also where the second
// delivery is the last.
func TestSubscriber_BatchPoisonInFanOut(t *testing.T) {
	t.Parallel()
	for _, deliveries := range []int{2, 5} {
		t.Run(strconv.Itoa(deliveries), func(t *testing.T) {
			t.Parallel()
			const n, poison = 200, 77
			client, topic := redistest.Shared(t).Client(t), redistest.Key(t)
			sub := newSub(t, client, fanOut, func(c *redischannels.SubscriberConfig) { c.MaxDeliveries = deliveries })
			batches := subscribeBatch(t, sub, topic, redischannels.BatchConfig{Size: n, Wait: 200 * time.Millisecond})
			ids := publish(t, client, topic, decimals(n)...)
			delivered, acked := make(map[int]int), make(map[int]bool)
			for len(acked) < n-1 || delivered[poison] < deliveries {
				batch := receiveBatch(t, batches)
				for _, v := range numbersOf(batch) {
					delivered[v]++
				}
				if slices.Contains(numbersOf(batch), poison) {
					endAll(batch, (*message.Message).Nack)
					continue
				}
				for i, v := range numbersOf(batch) {
					require.False(t, acked[v])
					acked[v] = true
					batch[i].Ack()
				}
			}
			require.Equal(t, []string{ids[poison]}, sub.events.wait(t, redischannels.EventSkipped).EntryIDs)
			for v, times := range delivered {
				require.True(t, v == poison || times <= 3, "%d was delivered %d times", v, times)
			}
		})
	}
}

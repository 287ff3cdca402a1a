package redischannels

import (
	"context"
	"slices"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels/internal/dispatch"
	"github.com/flaminco/redischannels/internal/source"
	"github.com/flaminco/redischannels/internal/stream"
	"github.com/flaminco/redischannels/internal/window"
)

// batchKit is a batchPump over a window that needs no Redis.
type batchKit struct {
	*dispatch.Dispatcher
	win  *window.Window
	pump *batchPump
	done chan struct{} // the pump has ended

	mu      sync.Mutex
	acked   []int
	givenUp []int
	ignored int
}

// batchPolicy handles the deliveries of a batchKit.
type batchPolicy batchKit

func (k *batchPolicy) Delivered(int)           {}
func (k *batchPolicy) Recalled([]*window.Item) {}
func (k *batchPolicy) TimedOut(string)         {}

func (k *batchPolicy) AckIgnored(string, error) {
	k.mu.Lock()
	k.ignored++
	k.mu.Unlock()
}

func (k *batchPolicy) Acked(it *window.Item) (late bool) {
	k.mu.Lock()
	k.acked = append(k.acked, int(it.ID.Ms))
	k.mu.Unlock()
	k.win.Finish(it)
	return false
}

func (k *batchPolicy) Defer(*window.Item, source.Outcome, time.Duration, bool) bool { return false }

func (k *batchPolicy) GiveUp(it *window.Item, _ source.Outcome) {
	k.mu.Lock()
	k.givenUp = append(k.givenUp, int(it.ID.Ms))
	k.mu.Unlock()
	k.win.Finish(it)
}

func (k *batchKit) Close(context.Context) error { return nil }

const batchKitBackoff = time.Minute

// newWindowKit returns a batchKit without a pump.
func newWindowKit(c window.Config, timeout time.Duration) *batchKit {
	k := &batchKit{}
	c.From = &source.Origin{Topic: "t", Values: context.Background(), Timeout: timeout}
	c.Prefetch, c.PrefetchBytes = 1000, 1<<20
	k.win = window.New(c)
	k.Dispatcher = dispatch.New(dispatch.Config{
		Window: k.win, Policy: (*batchPolicy)(k), Backoff: func(int) time.Duration { return batchKitBackoff },
	})
	c.From.Owner = k.Dispatcher
	return k
}

// numberDecoding is that of the attempts of a batchKit: their values are their numbers.
type numberDecoding struct{ messageDecoding }

func (numberDecoding) payload(a *source.Attempt) ([]byte, message.Metadata, error) {
	return strconv.AppendUint(nil, a.Entry.ID.Ms, 10), nil, nil
}

func (numberDecoding) context(*source.Attempt) context.Context { return nil }

// newBatchKit returns a pump that runs until stop. Messages have the odd and the even numbers as their keys if
// c is Keyed.
func newBatchKit(config BatchConfig, c window.Config, timeout time.Duration) *batchKit {
	config = config.withDefaults()
	c.MaxInFlight = max(config.Size*config.Concurrency, c.MaxInFlight)
	k := newWindowKit(c, timeout)
	k.done = make(chan struct{})
	k.pump = &batchPump{
		src: k, limits: config.limits(), inOrder: c.Ordered || c.Keyed,
		slots: make(chan struct{}, config.Concurrency), out: make(chan []*message.Message),
		decode: func(a *source.Attempt) (*message.Message, error) { return message.NewMessage(a.ID, nil), nil },
	}
	k.pump.limits.Offer = true
	go func() {
		k.pump.run()
		close(k.done)
	}()
	return k
}

// admit has the numbers from 1 to n delivered.
func (k *batchKit) admit(n int) {
	var items []window.Item
	for i := 1; i <= n; i++ {
		items = append(items, window.Item{
			Entry: stream.NewEntry(stream.ID{Ms: uint64(i)}, []string{"name", "value"}), Counted: true, Key: strconv.Itoa(i % 2),
		})
	}
	k.win.Admit(items, time.Now())
}

// stop ends the pump, which waits for the messages in flight for a minute.
func (k *batchKit) stop(t *testing.T) {
	t.Helper()
	k.Stop()
	require.Empty(t, k.Drain(time.Minute))
	<-k.done
}

// next returns the numbers of the next batch, which must come within the time.
func (k *batchKit) next(t *testing.T, within time.Duration) (batch []*message.Message, numbers []int) {
	t.Helper()
	begun := time.Now()
	batch = <-k.pump.out
	require.Equal(t, within, time.Since(begun))
	for _, msg := range batch {
		numbers = append(numbers, numberOf(msg))
	}
	return batch, numbers
}

func numberOf(msg *message.Message) int {
	id, _ := stream.ParseID(msg.UUID)
	return int(id.Ms)
}

func sequence(first, last int) (numbers []int) {
	for n := first; n <= last; n++ {
		numbers = append(numbers, n)
	}
	return numbers
}

func each(batch []*message.Message, f func(*message.Message) bool) {
	for _, msg := range batch {
		f(msg)
	}
}

// A batch of which all messages are nacked comes again in 16 parts, then singly, without a back-off. Only a
// message that was alone backs off.
func TestSubscribeBatch_AllNacked(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		k := newBatchKit(BatchConfig{Size: 32, Wait: NoBatchWait}, window.Config{}, 0)
		k.admit(32)
		batch, numbers := k.next(t, 0)
		require.Equal(t, sequence(1, 32), numbers)
		slices.Reverse(batch) // it is the application's own
		each(batch, (*message.Message).Nack)
		part, numbers := k.next(t, 0)
		require.Equal(t, []int{1, 2}, numbers)
		part[1].Nack()
		synctest.Wait()
		require.NoError(t, part[0].Context().Err())
		part[0].Nack()
		<-part[0].Context().Done()
		one, numbers := k.next(t, 0)
		require.Equal(t, []int{1}, numbers)
		one[0].Nack()
		two, numbers := k.next(t, 0)
		require.Equal(t, []int{2}, numbers)
		two[0].Ack()
		for first := 3; first < 33; first += 2 {
			part, numbers := k.next(t, 0)
			require.Equal(t, sequence(first, first+1), numbers)
			each(part, (*message.Message).Ack)
		}
		again, numbers := k.next(t, batchKitBackoff)
		require.Equal(t, []int{1}, numbers)
		require.NotSame(t, one[0], again[0])
		count, _ := DeliveryCountFromContext(again[0].Context())
		require.Equal(t, 4, count)
		again[0].Ack()
		k.stop(t)
		require.Len(t, k.acked, 32)
	})
}

// Messages that are nacked in a batch of which others end in another way back off, whenever they were nacked.
func TestSubscribeBatch_SomeNacked(t *testing.T) {
	t.Parallel()
	for name, other := range map[string]func(*message.Message) bool{
		"acked":     (*message.Message).Ack,
		"rejected":  func(msg *message.Message) bool { return Reject(msg, "no") && msg.Nack() },
		"postponed": func(msg *message.Message) bool { return Postpone(msg, time.Hour) && msg.Nack() },
		"retried":   func(msg *message.Message) bool { return RetryAfter(msg, time.Hour) && msg.Nack() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				k := newBatchKit(BatchConfig{Size: 3, Wait: NoBatchWait}, window.Config{}, 0)
				k.admit(3)
				batch, _ := k.next(t, 0)
				batch[0].Nack()
				<-batch[0].Context().Done()
				time.Sleep(time.Hour)
				require.NoError(t, batch[1].Context().Err())
				other(batch[1])
				synctest.Wait()
				batch[2].Nack()
				again, numbers := k.next(t, batchKitBackoff)
				require.Equal(t, []int{1, 3}, numbers)
				each(again, (*message.Message).Ack)
				if name == "postponed" || name == "retried" {
					again, numbers := k.next(t, time.Hour-batchKitBackoff)
					require.Equal(t, []int{2}, numbers)
					each(again, (*message.Message).Ack)
				}
				k.stop(t)
			})
		})
	}
}

// An acknowledgement that is given behind a nack in the same order is refused, although another goroutine
// awaits each: the message is redelivered behind the nacked one, which does not count.
func TestSubscribeBatch_ReleasesBehindNacked(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]window.Config{"ordered": {Ordered: true}, "keyed": {Keyed: true}} {
		for range 20 {
			synctest.Test(t, func(t *testing.T) {
				k := newBatchKit(BatchConfig{Size: 10, Wait: NoBatchWait}, c, 0)
				k.admit(10)
				batch, numbers := k.next(t, 0)
				require.Equal(t, sequence(1, 10), numbers)
				for _, msg := range batch {
					if numberOf(msg) == 3 {
						msg.Nack()
					} else {
						msg.Ack()
					}
				}
				again, numbers := k.next(t, batchKitBackoff)
				want, acked := sequence(3, 10), []int{1, 2}
				if name == "keyed" {
					want, acked = []int{3, 5, 7, 9}, []int{1, 2, 4, 6, 8, 10}
				}
				require.Equal(t, want, numbers)
				slices.Sort(k.acked)
				require.Equal(t, acked, k.acked)
				for i, msg := range again {
					count, _ := DeliveryCountFromContext(msg.Context())
					require.Equal(t, 1+min(1, max(0, 1-i)), count)
				}
				each(again, (*message.Message).Ack)
				k.stop(t)
			})
		}
	}
}

// A batch whose timeout runs out has failed as a whole. The next batch does not wait for its handler, unless
// there is an order. An end that comes later changes nothing.
func TestSubscribeBatch_Timeout(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		k := newBatchKit(BatchConfig{Size: 32, Wait: NoBatchWait}, window.Config{}, time.Second)
		k.admit(32)
		late, _ := k.next(t, 0)
		part, numbers := k.next(t, time.Second)
		require.Equal(t, []int{1, 2}, numbers)
		require.ErrorIs(t, late[0].Context().Err(), context.DeadlineExceeded)
		each(late, (*message.Message).Nack)
		for numbers[0] < 31 {
			each(part, (*message.Message).Ack)
			part, numbers = k.next(t, 0)
			require.Len(t, numbers, 2)
		}
		each(part, (*message.Message).Ack)
		k.stop(t)
		require.Len(t, k.acked, 32)
		require.Zero(t, k.win.Sizes())
	})
	synctest.Test(t, func(t *testing.T) {
		k := newBatchKit(BatchConfig{Size: 32, Wait: NoBatchWait}, window.Config{Ordered: true}, time.Second)
		k.admit(33)
		late, _ := k.next(t, 0)
		time.AfterFunc(time.Minute, func() { each(late, (*message.Message).Nack) })
		part, numbers := k.next(t, time.Minute)
		require.Equal(t, []int{1, 2}, numbers)
		each(part, (*message.Message).Ack)
		for numbers[0] < 33 {
			part, numbers = k.next(t, 0)
			each(part, (*message.Message).Ack)
		}
		k.stop(t)
		require.Equal(t, sequence(1, 33), k.acked)
	})
}

// An end that comes together with the timeout, and with the end of waiting, counts.
func TestAwait_EndCountsBeforeTimeout(t *testing.T) {
	t.Parallel()
	a := &source.Attempt{From: &source.Origin{}}
	timeout, drained := make(chan time.Time), make(chan struct{})
	close(timeout)
	for range 100 {
		msg := message.NewMessage("1-0", nil)
		require.Equal(t, source.Expire, await(a, msg, timeout, make(chan struct{})).Kind)
		msg.Ack()
		require.Equal(t, source.Ack, await(a, msg, timeout, make(chan struct{})).Kind)
	}
	close(drained)
	for range 100 {
		msg := message.NewMessage("1-0", nil)
		require.Zero(t, await(a, msg, timeout, drained).Kind)
		msg.Nack()
		require.Equal(t, a.Requested(), await(a, msg, timeout, drained))
	}
}

// A batch that is not received is withdrawn as a whole when its source ends, and nothing of it counts.
func TestSubscribeBatch_Withdrawn(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		k := newBatchKit(BatchConfig{Size: 3, Wait: NoBatchWait}, window.Config{}, 0)
		k.admit(5)
		synctest.Wait()
		require.Equal(t, 3, k.win.Sizes().InFlight)
		k.stop(t)
		items := k.win.Close()
		require.Len(t, items, 5)
		for _, it := range items {
			require.Zero(t, it.Delivered)
		}
	})
}

// A message that is never ended keeps its batch, but not the acknowledgements of the others. Up to Concurrency
// batches are in flight.
func TestSubscribeBatch_Concurrency(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		k := newBatchKit(BatchConfig{Size: 2, Wait: NoBatchWait, Concurrency: 2}, window.Config{MaxInFlight: 100}, 0)
		k.admit(6)
		first, _ := k.next(t, 0)
		second, _ := k.next(t, 0)
		first[0].Ack()
		second[1].Ack()
		synctest.Wait()
		require.ElementsMatch(t, []int{1, 4}, k.acked)
		select {
		case batch := <-k.pump.out:
			require.Empty(t, batch, "a third batch")
		default:
		}
		second[0].Ack()
		third, _ := k.next(t, 0)
		each(third, (*message.Message).Ack)
		k.Stop()
		require.Len(t, k.Drain(time.Minute), 1)
		<-k.done
		first[1].Ack()
		synctest.Wait()
		require.Len(t, k.acked, 5)
	})
}

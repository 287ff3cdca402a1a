package dispatch

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels/internal/source"
	"github.com/flaminco/redischannels/internal/window"
)

// A nack is redelivered after the delay that it asks for, or after the back-off of the owner; a release
// does not count.
func TestEnded_Redelivery(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKit(nil)
		k.admit(1)
		limits := source.Limits{Max: 1}
		a := k.one(t, 1)
		for i, c := range []struct {
			end   source.Outcome
			after time.Duration
			count int
		}{
			{nack, backoff, 2},
			{source.Outcome{Kind: source.Nack}, 0, 3},
			{source.Outcome{Kind: source.Nack, Delay: time.Hour}, time.Hour, 4},
			{source.Outcome{Kind: source.Release}, 0, 4},
			{source.Outcome{Kind: source.Release, Delay: time.Hour}, time.Hour, 4},
			{source.Outcome{Kind: source.Release, Delay: source.OwnersDelay}, 0, 4},
			{nack, backoff, 5},
		} {
			end(t, c.end, a)
			require.ErrorIs(t, a.End(ack), source.ErrNotPending)
			a = k.next(t, limits, c.after, 1)[0]
			require.Equal(t, c.count, a.Count, "after end %d", i)
		}
		end(t, ack, a)
		require.Equal(t, []int{1, 4}, k.seen().backoffs)
		k.idle(t)
	})
}

// A message that is rejected, cannot be decoded or has failed too often is given up.
func TestEnded_GiveUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKit(func(_ *window.Config, _ *source.Origin, c *Config) { c.MaxDeliveries = 2 })
		k.admit(1, 2, 3)
		reject := source.Outcome{Kind: source.Reject, Reason: "no use"}
		end(t, reject, k.one(t, 1))
		undecodable := source.Outcome{Kind: source.Undecodable, Reason: "undecodable", Err: errors.New("not JSON")}
		offered := k.next(t, source.Limits{Max: 1, Offer: true}, 0, 2)
		end(t, undecodable, offered...)
		end(t, nack, k.one(t, 3))
		end(t, source.Outcome{Kind: source.Release}, k.next(t, source.Limits{Max: 1}, backoff, 3)...)
		end(t, nack, k.one(t, 3))
		require.Equal(t, []source.Outcome{reject, undecodable, {
			Kind: source.Reject, Delay: source.OwnersDelay, Reason: "delivered 2 times without success",
		}}, k.seen().givenUp)
		require.Equal(t, []int{1, 1, 2, 2}, k.seen().delivered, "what cannot be decoded was not delivered")
		k.idle(t)
	})
}

// The end of what belongs to another consumer by now is ignored, and said so.
func TestEnded_Lost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKit(nil)
		k.admit(1, 2, 3)
		batch := k.next(t, source.Limits{Max: 3}, 0, 1, 2, 3)
		for _, a := range batch {
			attempt, first := k.win.Leases.Lose(a.Held.(*window.Item), false)
			require.True(t, first)
			require.Same(t, a, attempt)
			attempt.Lose()
		}
		require.ErrorIs(t, batch[0].End(ack), source.ErrNotOwner)
		require.ErrorIs(t, batch[1].End(nack), source.ErrNotOwner)
		require.ErrorIs(t, batch[2].End(source.Outcome{Kind: source.Reject}), source.ErrNotOwner)
		require.Equal(t, []string{"1-0", "2-0", "3-0"}, k.seen().ignored)
		require.Empty(t, k.seen().acked)
		require.Empty(t, k.seen().givenUp)
		require.Zero(t, k.win.Sizes())
		k.idle(t)
	})
}

// An offer counts when it is started; withdrawn, it is as if it had not been made, unless the source
// wanted it back.
func TestEnded_Offer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKit(nil)
		k.admit(1, 2)
		limits := source.Limits{Max: 1, Offer: true}
		withdraw := source.Outcome{Kind: source.Withdraw}
		a := k.next(t, limits, 0, 1)[0]
		require.Empty(t, k.seen().delivered)
		require.False(t, k.Dispatcher.Recalled(a))
		end(t, withdraw, a)
		a = k.next(t, limits, 0, 1)[0]
		require.Equal(t, 1, a.Count)
		a.Start()
		require.Equal(t, []int{1}, k.seen().delivered)
		end(t, source.Outcome{Kind: source.Nack}, a)
		a = k.next(t, limits, 0, 1)[0]
		require.Equal(t, 2, a.Count, "it was started")
		a.Start()
		end(t, ack, a)

		a = k.next(t, limits, 0, 2)[0]
		time.Sleep(time.Minute)
		_, recalled := k.win.Room.TakeStale(time.Hour, time.Second)
		require.True(t, recalled)
		k.Ask()
		k.Ask()
		<-k.Recall()
		require.True(t, k.Dispatcher.Recalled(a))
		end(t, withdraw, a)
		require.Equal(t, []string{"2-0"}, k.seen().recalled)

		k.admit(3, 4)
		a = k.next(t, limits, 0, 3)[0]
		k.win.Leases.Lose(a.Held.(*window.Item), true)
		require.True(t, k.Dispatcher.Recalled(a))
		end(t, withdraw, a)
		require.Len(t, k.seen().recalled, 1)
		a = k.next(t, limits, 0, 4)[0]
		time.Sleep(time.Minute)
		_, recalled = k.win.Room.TakeStale(time.Hour, time.Second)
		require.True(t, recalled)
		k.Stop()
		<-k.Recall()
		require.True(t, k.Dispatcher.Recalled(a))
		end(t, withdraw, a)
		require.Len(t, k.seen().recalled, 1)
		require.Len(t, k.win.Close(), 1, "it is released with the others")
		k.idle(t)
	})
}

// A batch is offered, and recalled, as a whole: an application that does not receive kept all but
// its last message from other consumers. A trimmed entry is only in memory, and stays.
func TestEnded_OfferOfABatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKit(nil)
		withdraw := source.Outcome{Kind: source.Withdraw}
		k.admit(1, 2)
		time.Sleep(time.Second)
		k.admit(3, 4)
		batch := k.next(t, source.Limits{Max: 3, Offer: true}, 0, 1, 2, 3)
		require.Equal(t, time.Second, k.win.Room.Oldest())
		k.win.Leases.Trim(batch[1].Held.(*window.Item))
		_, recalled := k.win.Room.TakeStale(time.Hour, time.Second)
		require.False(t, recalled)
		time.Sleep(time.Nanosecond)
		_, recalled = k.win.Room.TakeStale(time.Hour, time.Second)
		require.True(t, recalled)
		for i, a := range batch {
			require.Equal(t, i != 1, k.Dispatcher.Recalled(a))
		}
		end(t, withdraw, batch[:2]...)
		require.Zero(t, k.seen().recalls, "they are released together")
		k.none(t) // in the meantime
		end(t, withdraw, batch[2])
		require.Equal(t, []string{"1-0", "3-0"}, k.seen().recalled)
		require.Equal(t, 1, k.seen().recalls)
		end(t, ack, k.next(t, source.Limits{Max: 2}, 0, 2, 4)...)
		k.idle(t)
	})
}

// Without an order, what takes longer than its timeout is redelivered while its handler continues. A late
// end is of no use, but whether a drain waits for it.
func TestEnded_Timeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKit(func(w *window.Config, o *source.Origin, _ *Config) { o.Timeout, w.MaxInFlight = time.Second, 1 })
		k.admit(1, 2)
		a := k.one(t, 1)
		b := k.next(t, source.Limits{Max: 1}, time.Second, 2)[0] // the slot is free
		<-a.Done()
		synctest.Wait()
		require.Equal(t, []string{"1-0"}, k.seen().timedOut)
		end(t, ack, b)
		require.EqualValues(t, 1, k.running.Load())
		c := k.next(t, source.Limits{Max: 1}, backoff, 1)[0]
		require.Equal(t, 2, c.Count)
		require.ErrorIs(t, a.End(ack), source.ErrNotOwner)
		require.Equal(t, []string{"1-0: " + errLate.Error()}, k.seen().ignored)
		require.True(t, k.win.InFlight(c))
		end(t, ack, c)
		require.Equal(t, []string{"2-0", "1-0"}, k.seen().acked)
		k.idle(t)
	})
}

// The request of the handler for its nack applies to the timeout too.
func TestEnded_TimeoutAsRequested(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKit(func(_ *window.Config, o *source.Origin, _ *Config) { o.Timeout = time.Second })
		k.admit(1)
		a := k.one(t, 1)
		a.Request(source.Outcome{Kind: source.Nack, Delay: time.Hour})
		k.next(t, source.Limits{Max: 1}, time.Second+time.Hour, 1)
		synctest.Wait()
		require.Empty(t, k.seen().backoffs)
	})
}

// In order nothing is delivered before the handler has ended, however late. Its ack comes too late to
// count.
func TestEnded_TimeoutInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKit(func(w *window.Config, o *source.Origin, _ *Config) { o.Timeout, w.Ordered = time.Second, true })
		k.admit(1, 2)
		a := k.one(t, 1)
		time.AfterFunc(time.Minute, func() { _ = a.End(ack) })
		b := k.next(t, source.Limits{Max: 1}, time.Minute+backoff, 1)[0]
		synctest.Wait()
		require.Equal(t, 2, b.Count)
		require.Equal(t, []string{"1-0"}, k.seen().timedOut)
		require.Equal(t, []string{"1-0: " + errLate.Error()}, k.seen().ignored)
		time.AfterFunc(time.Minute, func() { _ = b.End(source.Outcome{Kind: source.Reject}) })
		k.next(t, source.Limits{Max: 1}, time.Minute, 2)
		synctest.Wait()
		require.Len(t, k.seen().givenUp, 1)
	})
}

// An attempt that had timed out without an order ended after order was asked for: it took the item, which
// was in flight again, for its own.
func TestEnded_LateAfterAdjust(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKit(func(_ *window.Config, o *source.Origin, _ *Config) { o.Timeout = time.Hour })
		k.admit(1)
		a := k.one(t, 1)
		time.Sleep(2 * time.Hour)
		synctest.Wait()
		b := k.one(t, 1)
		k.Adjust(1, true)
		require.ErrorIs(t, a.End(nack), source.ErrNotOwner)
		require.True(t, k.win.InFlight(b))
		end(t, ack, b)
		require.Zero(t, k.win.Sizes())
		k.idle(t)
	})
}

// An ack behind a message of its batch and key that is to be redelivered is refused, and the attempt continues.
func TestEnded_OutOfOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKit(func(w *window.Config, _ *source.Origin, _ *Config) { w.Keyed = true })
		k.admit(1, 2, 3)
		batch := k.next(t, source.Limits{Max: 3}, 0, 1, 2, 3)
		end(t, source.Outcome{Kind: source.Nack}, batch[1])
		require.ErrorIs(t, batch[2].End(ack), source.ErrOutOfOrder)
		require.EqualValues(t, 2, k.running.Load())
		k.none(t)
		end(t, ack, batch[0])
		end(t, source.Outcome{Kind: source.Release}, batch[2])
		batch = k.next(t, source.Limits{Max: 3}, 0, 2, 3)
		require.Equal(t, []int{2, 1}, []int{batch[0].Count, batch[1].Count})
		end(t, ack, batch...)
		require.Equal(t, []string{"1-0", "2-0", "3-0"}, k.seen().acked)
		require.Empty(t, k.seen().ignored)
		k.idle(t)
	})
}

package window

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels/internal/source"
)

// Items that are buffered for too long are released; offered ones only when they are older, and
// items that exist only in memory never. Nothing is read until the application receives again.
func TestRoom_TakeStale(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := New(config(4))
		w.Admit(items(1, 4), time.Now())
		require.Zero(t, New(config(1)).Room.Oldest())
		first := start(t, w, 1)
		second := offer(t, w, 2)
		time.Sleep(time.Second)
		w.Admit(items(5, 5), time.Now())
		require.Equal(t, time.Second, w.Room.Oldest())
		w.Leases.Trim(w.waiting.head)

		stale, recalled := w.Room.TakeStale(999*time.Millisecond, time.Second)
		require.Len(t, stale, 1)
		require.Equal(t, uint64(4), stale[0].ID.Ms)
		require.False(t, recalled)
		require.False(t, w.Recalled(second))
		require.True(t, w.Room.Paused())
		require.Zero(t, w.Room.BeginRead(1))
		require.Zero(t, w.Room.Claim())

		_, recalled = w.Room.TakeStale(time.Second, 999*time.Millisecond)
		require.True(t, recalled)
		require.True(t, w.Recalled(second))
		w.Rest(time.Second)
		w.Remove(second)
		require.Equal(t, time.Second, none(t, w))
		require.True(t, w.Room.Paused(), "resting is not receiving")
		time.Sleep(time.Second)
		signalled(w.Room.Changed)
		third := offer(t, w, 3)
		require.True(t, w.Room.Paused(), "an offer is not received yet")
		w.Start(third) // the application receives
		require.False(t, w.Room.Paused())
		require.True(t, signalled(w.Room.Changed))
		ack(t, w, first, third, start(t, w, 5))
		empty(t, w)
	})
}

// Items that were taken for a release, or withdrawn, are ours in Redis until Released.
func TestRoom_LeavingUntilReleased(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := New(config(4))
		w.Admit(items(1, 3), time.Now())
		offered := offer(t, w, 1)
		require.False(t, w.Leaving())
		time.Sleep(time.Second + 1)
		stale, recalled := w.Room.TakeStale(time.Second, time.Second)
		require.Len(t, stale, 2)
		require.True(t, recalled)
		w.Withdraw(offered)
		require.Len(t, w.Withdrawn(), 1)
		signalled(w.Room.Changed)
		w.Released(len(stale))
		require.True(t, w.Leaving())
		require.True(t, signalled(w.Room.Changed))
		w.Released(1)
		require.False(t, w.Leaving())
	})
}

// Each way of receiving ends the pause: to start what was offered, to take, and to wait.
func TestRoom_PauseEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := New(config(4))
		stale := func() {
			w.Admit(items(1, 1), time.Now())
			time.Sleep(time.Second)
			w.Admit(items(2, 3), time.Now())
			items, _ := w.Room.TakeStale(time.Second-1, time.Hour)
			require.Len(t, items, 1)
			require.True(t, w.Room.Paused())
		}
		stale()
		require.Zero(t, w.Room.BeginRead(1))
		require.Zero(t, w.Room.Claim())
		w.Room.reserved = 1 // a read that began before
		signalled(w.Room.Changed)
		ack(t, w, start(t, w, 2))
		require.False(t, w.Room.Paused())
		require.True(t, signalled(w.Room.Changed))
		require.NotZero(t, w.Room.Claim())
		w.Room.EndRead(0)
		ack(t, w, start(t, w, 3))
		stale()
		w.Remove(w.waiting.head, w.waiting.tail)
		require.True(t, w.Room.Paused())
		none(t, w)
		require.False(t, w.Room.Paused())
		empty(t, w)
	})
}

// Where there is an order all that is not in flight is released as soon as one item is stale: a
// later one must not overtake it. An item that only waits for its key is not stale.
func TestRoom_TakeStaleInOrder(t *testing.T) {
	for _, c := range []Config{config(1), byKey(2)} {
		synctest.Test(t, func(t *testing.T) {
			w := New(c)
			w.Admit(items(2, 4), time.Now())
			second := start(t, w, 2)
			none(t, w)
			time.Sleep(2 * time.Second)
			if c.Keyed {
				require.Equal(t, 2, w.keys.queued)
				items, _ := w.Room.TakeStale(time.Second, time.Hour)
				require.Empty(t, items)
				w.Admit([]Item{keyed(5, "b"), keyed(6, "b")}, time.Now())
				time.Sleep(2 * time.Second)
			} else {
				w.Admit(items(5, 6), time.Now())
			}
			w.Admit(items(7, 8), time.Now())
			trimmed := w.waiting.tail
			w.Leases.Trim(trimmed)
			items, _ := w.Room.TakeStale(time.Second, time.Hour)
			var ids []uint64
			for _, it := range items {
				ids = append(ids, it.ID.Ms)
			}
			require.ElementsMatch(t, []uint64{3, 4, 5, 6, 7}, ids)
			w.Finish(second)
			w.Finish(start(t, w, 8))
			empty(t, w)
		})
	}
}

// A read that was sent before a release brought new entries after it: they were delivered before
// those that had been released were back.
func TestRoom_ReleaseAndRead(t *testing.T) {
	for _, c := range []Config{config(1), byKey(2), counted(2)} {
		synctest.Test(t, func(t *testing.T) {
			order := c.Ordered || c.Keyed
			w := New(c)
			w.Admit(items(1, 2), time.Now())
			sent := time.Now()
			time.Sleep(time.Minute)
			released, _ := w.Room.TakeStale(time.Second, time.Hour)
			require.Len(t, released, 2)
			w.Admit(items(3, 3), sent)
			if !order {
				require.False(t, w.Drained())
				start(t, w, 3)
				return
			}
			none(t, w)
			require.False(t, w.Room.Paused())
			require.True(t, w.Drained())
			require.Zero(t, w.Room.BeginRead(1), "nothing new is read before they are back")
			require.Equal(t, 1+c.MaxInFlight/2, w.Room.Claim())
			time.Sleep(time.Nanosecond)
			w.Admit(items(1, 2), time.Now()) // reclaimed
			w.BeginPass()
			w.EndPass(false) // an error
			require.True(t, w.Drained())
			w.BeginPass()
			w.Admit(items(3, 4), time.Now())
			w.EndPass(true)
			require.False(t, w.Drained())
			handle(t, w, 1, 4)
			require.NotZero(t, w.Room.BeginRead(1))
			empty(t, w)
		})
	}
}

// Items that are released while pending entries are read again are behind the position of the
// pass.
func TestRoom_ReleaseDuringPass(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := New(config(1))
		w.BeginPass()
		w.Admit(items(1, 2), time.Now())
		time.Sleep(2 * time.Second)
		released, _ := w.Room.TakeStale(time.Second, time.Hour)
		require.Len(t, released, 2)
		time.Sleep(time.Nanosecond)
		w.Admit(items(3, 4), time.Now())
		none(t, w)
		w.EndPass(true)
		require.True(t, w.Drained())
		w.BeginPass()
		w.Admit(items(1, 4), time.Now())
		w.EndPass(true)
		start(t, w, 1)
	})
}

// An item that is to be redelivered before one that is in flight or backs off stays: released, it
// would come back after that one.
func TestRoom_ReleaseBehindRedelivery(t *testing.T) {
	ordered := counted(4)
	ordered.Ordered = true
	for _, c := range []Config{ordered, byKey(4)} {
		synctest.Test(t, func(t *testing.T) {
			w := New(c)
			w.Admit(items(1, 4), time.Now())
			other := item(1)
			other.Stream = 1 // which has an order of its own
			batch := take(t, w, source.Limits{Max: 2}, 1, 2)
			w.Backoff(batch[0], 0, 0)
			none(t, w) // it is due
			w.Admit([]Item{other}, time.Now())
			none(t, w)
			w.Backoff(batch[1], time.Minute, 0)
			w.Admit([]Item{keyed(9, "b")}, time.Now())
			time.Sleep(2 * time.Second)
			released, _ := w.Room.TakeStale(time.Second, time.Hour)
			var ids []string
			for _, it := range released {
				ids = append(ids, fmt.Sprint(it.Stream, " ", it.Text))
			}
			require.ElementsMatch(t, []string{"0 3-0", "0 4-0", "0 9-0", "1 1-0"}, ids)
			released, recalled := w.Room.TakeStale(time.Second, time.Hour)
			require.Empty(t, released)
			require.False(t, recalled)
		})
	}
}

// Without an order an item is released whatever is in flight.
func TestRoom_ReleaseWithoutOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := New(counted(4))
		w.Admit(items(1, 2), time.Now())
		first := start(t, w, 1)
		start(t, w, 2)
		w.Backoff(first, 0, 0)
		require.Zero(t, w.Room.Oldest()) // its back-off is over, also where no caller looks
		time.Sleep(time.Second)
		require.Same(t, first, offer(t, w, 1))
		require.Equal(t, time.Second, w.Room.Oldest())
		time.Sleep(time.Minute)
		require.Equal(t, time.Second+time.Minute, w.Room.Oldest(), "an offer counts")
		w.Return(first)
		released, _ := w.Room.TakeStale(time.Second, time.Hour)
		require.Equal(t, []*Item{first}, released)
	})
}

// A recalled offer takes the others with it where there is an order: they would be delivered before it
// is back.
func TestRoom_RecallInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := New(config(1))
		w.Admit(items(1, 1), time.Now())
		offered := offer(t, w, 1)
		time.Sleep(time.Minute - 1)
		w.Admit(items(2, 2), time.Now())
		time.Sleep(2 * time.Nanosecond)
		released, recalled := w.Room.TakeStale(time.Second, time.Minute)
		require.True(t, recalled)
		require.Len(t, released, 1)
		w.Remove(offered)
		empty(t, w)
	})
}

// A caller waited for an item that was not prepared; when that was released the next one, which was
// ready, had no caller that looked.
func TestRoom_ReleaseMakesReady(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := New(config(4))
		first := item(1)
		first.Counted = false
		w.Admit([]Item{first}, time.Now())
		time.Sleep(2 * time.Second)
		w.Admit(items(2, 2), time.Now())
		none(t, w)
		signalled(w.Ready)
		released, _ := w.Room.TakeStale(time.Second, time.Hour)
		require.Len(t, released, 1)
		require.True(t, signalled(w.Ready))
		start(t, w, 2)
	})
}

// An offer that was trimmed since is in memory only, and is not taken back.
func TestRoom_RecallOfTrimmed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := New(config(2))
		w.Admit(items(1, 1), time.Now())
		it := offer(t, w, 1)
		time.Sleep(2 * time.Second)
		_, recalled := w.Room.TakeStale(time.Second, time.Second)
		require.True(t, recalled)
		w.Leases.Trim(it)
		require.False(t, w.Recalled(it))
		_, recalled = w.Room.TakeStale(time.Second, time.Second)
		require.False(t, recalled)
	})
}

// An offer that the application received although it was recalled is not taken back from its next
// attempt.
func TestRoom_RecallOfAnEarlierOffer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := config(1)
		c.LeaseTime = 0
		w := New(c)
		w.Admit(items(1, 1), time.Now())
		it := offer(t, w, 1)
		time.Sleep(2 * time.Second)
		_, recalled := w.Room.TakeStale(time.Second, time.Second)
		require.True(t, recalled)
		require.True(t, w.Recalled(it))
		w.Start(it)
		w.Backoff(it, 0, 0)
		require.Same(t, it, offer(t, w, 1))
		require.False(t, w.Recalled(it))
	})
}

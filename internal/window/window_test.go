package window

import (
	"fmt"
	"math"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels/internal/stream"
)

// item makes an item of the n-th entry.
func item(n int) Item {
	return Item{Entry: stream.NewEntry(stream.ID{Ms: uint64(n)}, []string{"name", "value"}), Counted: true}
}

// items makes items of the entries first to last.
func items(first, last int) []Item {
	var all []Item
	for n := first; n <= last; n++ {
		all = append(all, item(n))
	}
	return all
}

// config is that of a usual window.
func config(maxInFlight int) Config {
	return Config{MaxInFlight: maxInFlight, Prefetch: 100, PrefetchBytes: 1 << 20, LeaseTime: 10 * time.Second}
}

// next takes the next item, which must be that of the n-th entry.
func next(t *testing.T, w *Window, n int) *Item {
	t.Helper()
	it, _ := w.Next()
	require.NotNil(t, it)
	require.Equal(t, uint64(n), it.ID.Ms)
	return it
}

// start takes the next item and lets the application receive it.
func start(t *testing.T, w *Window, n int) *Item {
	t.Helper()
	it := next(t, w, n)
	w.Offer(it, fmt.Sprint(n))
	require.False(t, w.Started(it))
	return it
}

// none asserts that nothing may be handed out, and returns the time to wait.
func none(t *testing.T, w *Window) time.Duration {
	t.Helper()
	it, wait := w.Next()
	require.Nil(t, it)
	return wait
}

// empty asserts that nothing is left of anything.
func empty(t *testing.T, w *Window) {
	t.Helper()
	require.Zero(t, w.Len())
	require.Zero(t, w.bytes)
	require.Zero(t, w.blocked)
	require.Empty(t, w.keys)
	require.False(t, w.alone)
	require.Nil(t, w.offered)
}

// signalled reports whether a channel has a signal, and takes it.
func signalled(c chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// In strict order a nacked item holds back those behind it until its back-off is over.
func TestStrictBackoffHoldsBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := New(config(1))
		w.Admit(items(1, 3), time.Now())
		first := start(t, w, 1)
		require.Zero(t, none(t, w), "one is in flight")
		w.Backoff(first, 5*time.Second)
		require.True(t, signalled(w.Ready))
		require.Equal(t, 5*time.Second, none(t, w))
		time.Sleep(4 * time.Second)
		require.Equal(t, time.Second, none(t, w))
		require.Equal(t, time.Second, w.Due(first))
		time.Sleep(time.Second)
		require.Equal(t, 1, first.Handed)
		require.False(t, first.Counted)
		w.Settle(start(t, w, 1))
		require.Equal(t, 2, first.Handed)
		require.True(t, signalled(w.Flush))
		start(t, w, 2)
	})
}

// Otherwise it holds back nothing and takes no slot.
func TestBackoffHoldsNoSlot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := New(config(2))
		w.Admit(items(1, 4), time.Now())
		w.Backoff(start(t, w, 1), 2*time.Second)
		w.Backoff(start(t, w, 2), time.Second)
		third, fourth := start(t, w, 3), start(t, w, 4)
		require.Equal(t, time.Second, none(t, w), "the one that is due first")
		time.Sleep(2 * time.Second)
		none(t, w)
		w.Finish(third)
		w.Finish(fourth)
		w.Finish(start(t, w, 1)) // in stream order, not in that of their due times
		w.Finish(start(t, w, 2))
		empty(t, w)
	})
}

// The items of one key follow each other in stream order, also behind one in back-off, and
// what is freed is not overtaken by what is admitted meanwhile.
func TestKeys(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := config(8)
		c.Keyed = true
		w := New(c)
		keyed := func(n int, key string) Item {
			it := item(n)
			it.Key = key
			return it
		}
		w.Admit([]Item{keyed(1, "a"), keyed(2, "a"), keyed(3, "b"), keyed(4, "a")}, time.Now())
		a1 := start(t, w, 1)
		b3 := start(t, w, 3)
		none(t, w)
		require.Equal(t, 2, w.blocked)
		w.Backoff(a1, time.Second)
		require.Equal(t, time.Second, none(t, w))
		w.Finish(b3)
		time.Sleep(time.Second)
		w.Settle(start(t, w, 1))
		w.Admit([]Item{keyed(5, "a")}, time.Now())
		a2 := start(t, w, 2)
		none(t, w)
		w.Done(a1, a2)
		w.Finish(start(t, w, 4))
		w.Finish(start(t, w, 5))
		empty(t, w)
	})
}

// An item that may kill the process is handled while nothing else is.
func TestAlone(t *testing.T) {
	w := New(config(4))
	killer := item(2)
	killer.Alone = true
	w.Admit([]Item{item(1), killer, item(3)}, time.Now())
	first := start(t, w, 1)
	none(t, w)
	w.Finish(first)
	it := start(t, w, 2)
	none(t, w)
	w.Settle(it)
	require.False(t, w.alone)
	w.Done(it, start(t, w, 3))
	empty(t, w)
}

// What waits too long is given away, but not what is offered until it is older than that, nor
// the only item that its key waits for, nor what exists in memory only. Nothing is fetched
// until the application receives again.
func TestStale(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := New(config(4))
		w.Admit(items(1, 4), time.Now())
		require.Zero(t, New(config(1)).Oldest())
		first := start(t, w, 1)
		second := next(t, w, 2)
		w.Offer(second, "offer")
		time.Sleep(time.Second)
		w.Admit(items(5, 5), time.Now())
		require.Equal(t, time.Second, w.Oldest())
		gone := w.waiting.head
		require.Contains(t, w.IDs(), gone.ID)
		w.SetGone(gone)
		require.NotContains(t, w.IDs(), gone.ID, "an entry with this ID is another one")

		stale, recalled := w.TakeStale(999*time.Millisecond, time.Second)
		require.Len(t, stale, 1)
		require.Equal(t, uint64(4), stale[0].ID.Ms)
		require.False(t, recalled)
		require.False(t, w.Recalled(second))
		require.True(t, w.Paused())
		require.Zero(t, w.BeginRead())
		require.Zero(t, w.ClaimRoom())

		_, recalled = w.TakeStale(time.Second, 999*time.Millisecond)
		require.True(t, recalled)
		require.True(t, w.Recalled(second))
		w.Rest(time.Second)
		w.Done(second)
		require.Equal(t, time.Second, none(t, w))
		require.True(t, w.Paused(), "resting is not receiving")
		time.Sleep(time.Second)
		signalled(w.Room)
		third := start(t, w, 3) // the application receives
		require.False(t, w.Paused())
		require.True(t, signalled(w.Room))
		w.Done(first, third, start(t, w, 5))
		empty(t, w)
	})
}

// A lease runs from the sending of its command; a reconnect voids all of them.
func TestLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := New(config(1))
		sent := time.Now()
		time.Sleep(3 * time.Second) // the reply was long under way
		w.Admit(items(1, 1), sent)
		it := start(t, w, 1)
		require.True(t, leased(w, it))
		require.Empty(t, w.Expiring(5*time.Second))
		time.Sleep(7*time.Second - 1)
		require.True(t, leased(w, it))
		require.Len(t, w.Expiring(5*time.Second), 1)
		time.Sleep(time.Nanosecond)
		require.False(t, leased(w, it))
		_, _, no := w.Unexpired([]*Item{it})
		require.Len(t, no, 1)
		w.Renewed(time.Now(), it)
		require.True(t, leased(w, it))
		yes, pending, _ := w.Unexpired([]*Item{it})
		require.Len(t, yes, 1)
		require.Equal(t, []stream.Pending{{ID: it.ID, Text: it.Text, Count: 1}}, pending)

		time.Sleep(time.Nanosecond)
		before := time.Now()
		time.Sleep(time.Nanosecond)
		w.Void()
		require.False(t, leased(w, it))
		require.Len(t, w.Expiring(5*time.Second), 1)
		w.Renewed(before, it) // sent on the old connection
		require.False(t, leased(w, it))
		time.Sleep(time.Nanosecond)
		w.Renewed(time.Now(), it)
		require.True(t, leased(w, it))

		value, first := w.Lose(it, false)
		require.True(t, first)
		require.Equal(t, "1", value)
		require.False(t, leased(w, it))
		_, first = w.Lose(it, false)
		require.False(t, first)
		require.Empty(t, w.Expiring(0))
		w.Finish(it)
		empty(t, w)
	})
}

// An entry that is not pending is lost, unless that is the work of its own settlement.
func TestLose(t *testing.T) {
	w := New(config(4))
	w.Admit(items(1, 3), time.Now())
	settled := start(t, w, 1)
	w.Settle(settled)
	_, first := w.Lose(settled, true)
	require.False(t, first)
	require.False(t, w.Lost(settled))
	_, first = w.Lose(settled, false)
	require.True(t, first)
	waiting := w.waiting.head
	_, first = w.Lose(waiting, true)
	require.True(t, first)
	require.Equal(t, 2, w.Len(), "one that nobody handles is forgotten")
	offered := next(t, w, 3)
	w.Offer(offered, nil)
	w.Lose(offered, true)
	require.True(t, w.Recalled(offered))
	require.True(t, w.Started(offered), "lost while it was offered")
	w.Done(settled, offered)
	empty(t, w)
}

func leased(w *Window, it *Item) bool {
	return w.Standings([]*Item{it}, nil)[0] == StandingLeased
}

// Close returns what nobody handles and hands nothing out any more.
func TestClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := config(4)
		c.Keyed = true
		w := New(c)
		w.Admit(items(1, 6), time.Now()) // all of one key
		active := start(t, w, 1)
		none(t, w)
		back := w.Close()
		require.Len(t, back, 5)
		require.Zero(t, w.BeginRead())
		require.Zero(t, w.ClaimRoom())
		none(t, w)
		w.Backoff(active, time.Second) // nacked while the handlers are waited for
		back = w.Close()
		require.Equal(t, []*Item{active}, back)
		require.Equal(t, time.Second, w.Due(active))
		empty(t, w)
	})
}

// A delivery that nobody has used is as if it had not happened: it comes next, and Redis'
// count includes the next hand-over again.
func TestUnhand(t *testing.T) {
	w := New(config(3))
	w.Admit(items(1, 3), time.Now())
	first, second := start(t, w, 1), start(t, w, 2)
	w.Unhand(first)
	require.Zero(t, first.Handed)
	require.True(t, first.Counted)
	again := start(t, w, 1)
	require.Same(t, first, again)
	require.Equal(t, 1, again.Handed)
	require.False(t, again.Counted)
	third := start(t, w, 3)
	for _, it := range []*Item{again, second, third} {
		w.Finish(it)
	}
	empty(t, w)
}

// A delay that no clock lives to see the end of is not over at once.
func TestBackoffForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := New(config(2))
		w.Admit(items(1, 2), time.Now())
		time.Sleep(time.Second)
		first := start(t, w, 1)
		w.Backoff(start(t, w, 2), time.Minute)
		w.Backoff(first, math.MaxInt64)
		require.Equal(t, time.Minute, none(t, w))
		require.Greater(t, w.Due(first), 200*365*24*time.Hour)
		w.Rest(math.MaxInt64)
		require.Greater(t, none(t, w), 200*365*24*time.Hour)
	})
}

// What was recalled when the application received it after all is not taken back from its
// next attempt.
func TestRecallOfAnEarlierOffer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := New(config(1))
		w.Admit(items(1, 1), time.Now())
		it := next(t, w, 1)
		w.Offer(it, "first")
		time.Sleep(2 * time.Second)
		_, recalled := w.TakeStale(time.Second, time.Second)
		require.True(t, recalled)
		require.True(t, w.Recalled(it))
		require.False(t, w.Started(it))
		w.Backoff(it, 0)
		w.Offer(next(t, w, 1), "second")
		require.False(t, w.Recalled(it))
	})
}

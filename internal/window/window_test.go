package window

import (
	"math"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels/internal/source"
)

// In strict order a nacked item blocks those behind it until its back-off is over.
func TestWindow_OrderedBackoffHoldsBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := New(config(1))
		w.Admit(items(1, 3), time.Now())
		first := start(t, w, 1)
		require.Zero(t, none(t, w), "one is in flight")
		w.Backoff(first, 5*time.Second, 0)
		require.True(t, signalled(w.Ready))
		require.Equal(t, 5*time.Second, none(t, w))
		time.Sleep(4 * time.Second)
		require.Equal(t, time.Second, none(t, w))
		time.Sleep(time.Second)
		require.Equal(t, 1, first.Delivered)
		require.False(t, first.Counted)
		require.Zero(t, none(t, w), "its next delivery is not counted in Redis yet")
		require.Equal(t, []*Item{first}, wanted(w, 1))
		w.Leases.Prepared(time.Now(), first)
		require.Same(t, first, start(t, w, 1))
		require.Equal(t, 2, first.Delivered)
		require.False(t, first.Counted)
		require.False(t, w.Acks.Ack(first))
		require.True(t, signalled(w.Acks.Flush))
		start(t, w, 2)
	})
}

// Otherwise it blocks nothing and takes no slot.
func TestWindow_BackoffTakesNoSlot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := config(2)
		c.LeaseTime = 0
		w := New(c)
		w.Admit(items(1, 4), time.Now())
		w.Backoff(start(t, w, 1), 2*time.Second, 0)
		w.Backoff(start(t, w, 2), time.Second, 0)
		third, fourth := start(t, w, 3), start(t, w, 4)
		require.Equal(t, time.Second, none(t, w), "the one that is due first")
		time.Sleep(2 * time.Second)
		require.Zero(t, none(t, w))
		w.Finish(third)
		w.Finish(fourth)
		w.Finish(start(t, w, 1)) // in stream order, not in that of their due times
		w.Finish(start(t, w, 2))
		empty(t, w)
	})
}

// An item that may kill the process is delivered while nothing else is.
func TestWindow_Alone(t *testing.T) {
	w := New(config(4))
	killer := item(2)
	killer.Alone = true
	w.Admit([]Item{item(1), killer, item(3)}, time.Now())
	first := start(t, w, 1)
	none(t, w)
	w.Finish(first)
	it := start(t, w, 2)
	none(t, w)
	require.False(t, w.Acks.Ack(it))
	require.False(t, w.alone)
	ack(t, w, start(t, w, 3))
	w.Remove(it)
	empty(t, w)
}

// Close returns what is not in flight and delivers nothing any more.
func TestWindow_Close(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := config(4)
		c.Keyed = true
		w := New(c)
		w.Admit(items(1, 6), time.Now()) // all of one key
		active := start(t, w, 1)
		none(t, w)
		require.Equal(t, Sizes{Buffered: 5, InFlight: 1, Bytes: 6 * active.Size}, w.Sizes())
		require.Len(t, w.Close(), 5)
		require.True(t, signalled(w.Ready))
		require.True(t, signalled(w.Room.Changed))
		require.Zero(t, w.Room.BeginRead(1))
		require.Zero(t, w.Room.Claim())
		entries, bytes := w.Room.Spare()
		require.Zero(t, entries+bytes)
		none(t, w)
		require.Len(t, w.Attempts(), 1)
		w.Backoff(active, time.Second, 0) // nacked while the window drains
		require.Empty(t, w.Attempts())
		require.Equal(t, []*Item{active}, w.Close())
		require.Equal(t, time.Second, active.Delay())
		w.Admit(items(7, 7), time.Now())
		empty(t, w)
	})
}

// Ends while the window drains are written.
func TestWindow_CloseLeavesAcks(t *testing.T) {
	w := New(config(4))
	w.Admit(items(1, 3), time.Now())
	acked, rejected, active := start(t, w, 1), start(t, w, 2), start(t, w, 3)
	require.False(t, w.Acks.Ack(acked))
	w.Acks.Move(rejected, "no use")
	require.True(t, signalled(w.Acks.Moves))
	require.Empty(t, w.Close())
	require.False(t, w.Acks.Ack(active))
	require.Equal(t, []*Item{acked, active}, w.Acks.Pending(nil))
	require.Equal(t, []*Item{rejected}, w.Acks.PendingMoves(nil))
	require.Equal(t, "no use", rejected.Reason)
	w.Remove(acked, rejected, active)
	empty(t, w)
}

// An end that comes while its attempt is being abandoned finds nothing in flight: the entry is released
// already, and its key may be forgotten.
func TestWindow_EndAfterAbandon(t *testing.T) {
	for _, c := range []Config{counted(4), byKey(4)} {
		for _, end := range []func(w *Window, it *Item){
			func(w *Window, it *Item) { w.Backoff(it, 0, 0) },
			func(w *Window, it *Item) { w.Uncount(it, 0) },
			func(w *Window, it *Item) { w.Return(it) },
			func(w *Window, it *Item) { w.Finish(it) },
			func(w *Window, it *Item) { w.Acks.Move(it, "no use") },
			func(w *Window, it *Item) { require.True(t, w.Acks.Ack(it)) },
		} {
			w := New(c)
			w.Admit(items(1, 1), time.Now())
			it := start(t, w, 1)
			w.Close()
			require.Equal(t, []*Item{it}, w.Abandon(time.Hour))
			require.Equal(t, time.Hour, it.Delay())
			require.Equal(t, 1, it.Delivered)
			end(w, it)
			require.Empty(t, w.Acks.Pending(nil))
			require.Empty(t, w.Close())
			empty(t, w)
		}
	}
}

// A delivery that does not count is as if it had not happened: the item comes next, and Redis'
// count includes the next delivery again.
func TestWindow_Uncount(t *testing.T) {
	w := New(config(3))
	w.Admit(items(1, 3), time.Now())
	first, second := start(t, w, 1), start(t, w, 2)
	w.Uncount(first, 0)
	require.Zero(t, first.Delivered)
	require.True(t, first.Counted)
	again := start(t, w, 1)
	require.Same(t, first, again)
	require.Equal(t, 1, again.Delivered)
	require.False(t, again.Counted)
	third := start(t, w, 3)
	for _, it := range []*Item{again, second, third} {
		w.Finish(it)
	}
	empty(t, w)
}

// A delay beyond the end of the clock is not over at once.
func TestWindow_BackoffForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := New(config(2))
		w.Admit(items(1, 2), time.Now())
		time.Sleep(time.Second)
		first := start(t, w, 1)
		w.Backoff(start(t, w, 2), time.Minute, 0)
		w.Backoff(first, math.MaxInt64, 0)
		require.Equal(t, time.Minute, none(t, w))
		w.Rest(math.MaxInt64)
		require.Greater(t, none(t, w), 200*365*24*time.Hour)
		w.Close()
		require.Greater(t, first.Delay(), 200*365*24*time.Hour)
	})
}

// An item that a caller returns, because its offer was withdrawn, is as before the offer: it has
// its place and age, and its delivery does not count.
func TestWindow_Return(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := New(config(2))
		w.Admit(items(1, 3), time.Now())
		time.Sleep(time.Second)
		it := offer(t, w, 1)
		require.Equal(t, time.Second, w.Room.Oldest())
		signalled(w.Ready)
		w.Return(it)
		require.True(t, signalled(w.Ready), "another caller may have it")
		require.Zero(t, it.Delivered)
		require.True(t, it.Counted)
		require.Equal(t, time.Second, w.Room.Oldest())
		ack(t, w, start(t, w, 1), start(t, w, 2))
		ack(t, w, start(t, w, 3))
		w.Start(it) // too late
		empty(t, w)
	})
}

// The attempt of each delivery has its count, and its own share of the entry.
func TestWindow_Attempt(t *testing.T) {
	c := config(1)
	c.LeaseTime = 0
	w := New(c)
	it := item(1)
	it.Delivered = 3
	decoded := message.NewMessage("id", nil)
	it.Message = decoded
	w.Admit([]Item{it}, time.Now())
	for count := range 3 {
		a := w.Take(nil, source.Limits{Max: 1}, &Batch{})[0]
		require.Equal(t, 4+count, a.Count)
		require.Equal(t, "topic", a.Topic)
		require.Equal(t, "1-0", a.ID)
		require.NoError(t, a.Err())
		if count == 0 {
			require.Same(t, decoded, a.Message)
		} else {
			require.Nil(t, a.Message, "a message has one end")
		}
		n := 0
		a.Entry.Fields(func(name, value []byte) {
			require.Equal(t, "name value", string(name)+" "+string(value))
			n++
		})
		require.Equal(t, 1, n)
		a.Entry.Release()
		w.Backoff(a.Held.(*Item), 0, 0)
	}
}

// An attempt is in flight until it has ended, whatever becomes of its item after that.
func TestWindow_InFlight(t *testing.T) {
	w := New(counted(1))
	w.Admit(items(1, 1), time.Now())
	first := w.Take(nil, source.Limits{Max: 1}, &Batch{})[0]
	require.True(t, w.InFlight(first))
	it := first.Held.(*Item)
	w.Backoff(it, 0, 0)
	require.False(t, w.InFlight(first))
	second := w.Take(nil, source.Limits{Max: 1}, &Batch{})[0]
	require.Same(t, it, second.Held)
	require.False(t, w.InFlight(first))
	require.True(t, w.InFlight(second))
	require.Equal(t, []*source.Attempt{second}, w.Attempts())
}

// An item that stays for long gets its own memory: it would keep its complete reply.
func TestWindow_Detach(t *testing.T) {
	w := New(counted(3))
	w.Admit(items(1, 4), time.Now())
	nacked, released, renewed := start(t, w, 1), start(t, w, 2), start(t, w, 3)
	require.False(t, nacked.detached)
	w.Backoff(nacked, time.Hour, 0)
	w.Uncount(released, time.Hour)
	w.Leases.Renewed(time.Now(), renewed, w.waiting.head)
	for _, it := range []*Item{nacked, released, renewed} {
		require.True(t, it.detached)
	}
	require.False(t, w.waiting.head.detached, "it comes soon")
}

// An item that backed off is as old as the end of that, and nothing comes during a rest.
func TestWindow_AgeAfterBackoff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := New(counted(2))
		w.Admit(items(1, 1), time.Now())
		it := start(t, w, 1)
		w.Backoff(it, time.Hour, 0)
		require.Zero(t, w.Room.Oldest())
		time.Sleep(time.Hour)
		signalled(w.Ready)
		w.Room.Oldest()
		require.True(t, signalled(w.Ready), "a caller may be about to ask when it is due")
		require.Zero(t, w.Due())
		w.Rest(time.Second)
		require.True(t, signalled(w.Ready), "a caller has another time to look")
		require.Equal(t, time.Second, none(t, w))
		time.Sleep(time.Second)
		it = offer(t, w, 1)
		time.Sleep(time.Minute)
		w.Return(it)
		require.Equal(t, time.Minute+time.Second, w.Room.Oldest())
	})
}

// Callers that wait although there is work are reported once, until something moves.
func TestWindow_Stalled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := config(2)
		c.Prefetch, c.LeaseTime = 1, 0
		w := New(c)
		w.Admit(items(1, 3), time.Now())
		first := start(t, w, 1)
		var waiting Batch
		w.Want(&waiting, 1)
		time.Sleep(time.Minute)
		_, ok := w.Stalled(time.Minute)
		require.False(t, ok, "held are as many as may be, but the caller can have one of them")
		second := start(t, w, 2)
		time.Sleep(time.Minute - 1)
		_, ok = w.Stalled(time.Minute)
		require.False(t, ok, "one has started less than a minute ago")
		time.Sleep(time.Nanosecond)
		w.Want(&waiting, 0)
		_, ok = w.Stalled(time.Minute)
		require.False(t, ok, "no caller waits")
		w.Want(&waiting, 1)
		stalled, ok := w.Stalled(time.Minute)
		require.True(t, ok)
		require.Equal(t, Stalled{InFlight: 2}, stalled)
		require.Equal(t, errUnacknowledged, stalled.Reason())
		time.Sleep(time.Hour)
		_, ok = w.Stalled(time.Minute)
		require.False(t, ok, "it was reported")
		w.Backoff(first, time.Hour, 0)
		w.Backoff(second, time.Hour, 0)
		third := start(t, w, 3)
		time.Sleep(time.Minute)
		stalled, ok = w.Stalled(time.Minute)
		require.True(t, ok, "held are as many as may be")
		require.Equal(t, Stalled{InFlight: 1, BackingOff: 2}, stalled)
		require.Equal(t, errBackingOff, stalled.Reason())
		w.Remove(first, second, third)
		empty(t, w)
		killer := item(4)
		killer.Alone = true
		w.Admit([]Item{killer}, time.Now())
		start(t, w, 4)
		w.Admit(items(5, 5), time.Now())
		time.Sleep(time.Minute)
		stalled, ok = w.Stalled(time.Minute)
		require.True(t, ok)
		require.Equal(t, Stalled{InFlight: 1, Alone: true}, stalled)
		require.Equal(t, errAlone, stalled.Reason())
		w.Close()
		_, ok = w.Stalled(0)
		require.False(t, ok)
	})
}

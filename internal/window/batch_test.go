package window

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels/internal/source"
)

// counted is a usual window whose items need no preparation.
func counted(maxInFlight int) Config {
	c := config(maxInFlight)
	c.LeaseTime = 0
	return c
}

// sized makes items of a size.
func sized(size int, entries ...int) []Item {
	var all []Item
	for _, n := range entries {
		it := item(n)
		it.Size = size
		all = append(all, it)
	}
	return all
}

// A batch that was taken in several steps had the bound of bytes once for each of them.
func TestBatch_BytesOfAllTakes(t *testing.T) {
	w := New(counted(10))
	limits := source.Limits{Max: 10, Bytes: 100}
	var b Batch
	w.Admit(sized(30, 1, 2), time.Now())
	join(t, w, limits, &b, 1, 2)
	require.False(t, b.Full)
	w.Admit(sized(40, 3), time.Now())
	join(t, w, limits, &b, 3)
	require.True(t, b.Full)

	w.Admit(sized(60, 4, 5), time.Now())
	b = Batch{}
	join(t, w, limits, &b, 4)
	require.True(t, b.Full, "the next one does not fit")
	w.Admit(sized(1, 6), time.Now())
	join(t, w, limits, &b)
	take(t, w, limits, 5, 6)
	w.Admit(sized(200, 7), time.Now())
	b = Batch{}
	join(t, w, limits, &b, 7)
	require.True(t, b.Full, "one may exceed it")
}

// Max is of the whole batch.
func TestBatch_MaxOfAllTakes(t *testing.T) {
	w := New(counted(10))
	var b Batch
	w.Admit(items(1, 2), time.Now())
	join(t, w, source.Limits{Max: 3}, &b, 1, 2)
	w.Admit(items(3, 4), time.Now())
	join(t, w, source.Limits{Max: 3}, &b, 3)
	join(t, w, source.Limits{Max: 3}, &b)
	take(t, w, source.Limits{Max: 3}, 4)
}

// A batch that was taken in several steps mixed messages that were to be apart.
func TestBatch_SplitOfAllTakes(t *testing.T) {
	w := New(counted(10))
	w.Admit(items(1, 5), time.Now())
	all := take(t, w, source.Limits{Max: 10}, 1, 2, 3, 4, 5)
	for i, split := range []int{7, 7, 8, source.Single, source.Single} {
		w.Backoff(all[i], 0, split)
	}
	var b Batch
	limits := source.Limits{Max: 10}
	require.Equal(t, 7, w.Take(nil, source.Limits{Max: 1}, &b)[0].Split)
	require.False(t, b.Full)
	join(t, w, limits, &b, 2)
	require.True(t, b.Full, "the next one is of another number")
	w.Backoff(all[0], 0, 8)
	join(t, w, limits, &b)
	take(t, w, limits, 1, 3)
	b = Batch{}
	a := w.Take(nil, limits, &b)
	require.Len(t, a, 1)
	require.Equal(t, source.Single, a[0].Split)
	require.True(t, b.Full, "at once, without a check at what is next")
	w.Remove(all[4])
	w.Admit(items(6, 6), time.Now())
	join(t, w, limits, &b)
	take(t, w, limits, 6)
}

// A batch that fails each time must not make dead letters of the others in it.
func TestBatch_LastDeliveryIsAlone(t *testing.T) {
	c := counted(10)
	c.MaxDeliveries = 3
	w := New(c)
	limits := source.Limits{Max: 10}
	w.Admit(items(1, 3), time.Now())
	all := take(t, w, limits, 1, 2, 3)
	for _, it := range all {
		w.Backoff(it, 0, 0)
	}
	all = take(t, w, limits, 1, 2, 3)
	w.Uncount(all[1], 0) // was not delivered for the second time
	w.Backoff(all[0], 0, 0)
	w.Backoff(all[2], 0, 0)
	w.Admit(items(4, 4), time.Now())
	take(t, w, limits, 1)
	take(t, w, limits, 2)
	take(t, w, limits, 3)
	take(t, w, limits, 4)

	c.MaxDeliveries = 1
	w = New(c)
	w.Admit(items(1, 3), time.Now())
	take(t, w, limits, 1, 2, 3) // each delivery is the last one
}

// An item whose timeout ran out while its batch waited for more came into the same batch again.
func TestBatch_NotTwice(t *testing.T) {
	for _, c := range []Config{counted(10), byKey(10)} {
		w := New(c)
		w.Admit(items(1, 2), time.Now())
		limits := source.Limits{Max: 10}
		var b Batch
		batch := join(t, w, limits, &b, 1, 2)
		w.Backoff(batch[0], 0, 0)
		join(t, w, limits, &b)
		w.Finish(batch[1])
		join(t, w, limits, &b)
		require.True(t, b.Full)
		take(t, w, limits, 1)
	}
}

// An entry that may kill the process is delivered alone, even if a batch has room.
func TestBatch_Alone(t *testing.T) {
	w := New(counted(10))
	all := items(1, 4)
	all[2].Alone = true
	w.Admit(all, time.Now())
	var b Batch
	limits := source.Limits{Max: 10}
	taken := join(t, w, limits, &b, 1, 2)
	require.True(t, b.Full, "nothing can be delivered before these have ended")
	ack(t, w, taken...)
	b = Batch{}
	alone := join(t, w, limits, &b, 3)
	require.True(t, b.Full)
	take(t, w, limits)
	ack(t, w, alone...)
	take(t, w, limits, 4)
}

// A batch that has all slots does not wait for more.
func TestBatch_AllSlots(t *testing.T) {
	w := New(counted(2))
	w.Admit(items(1, 4), time.Now())
	var b Batch
	first := join(t, w, source.Limits{Max: 10}, &b, 1, 2)
	require.True(t, b.Full)
	ack(t, w, first[0])
	b = Batch{}
	join(t, w, source.Limits{Max: 10}, &b, 3)
	require.False(t, b.Full, "another slot may become free")
}

// In order, what comes later joined a batch in no case: while one had something in flight nothing
// was delivered, not even to itself. Every batch waited its whole time.
func TestBatch_OrderedJoins(t *testing.T) {
	c := counted(10)
	c.Ordered = true
	w := New(c)
	limits := source.Limits{Max: 10}
	w.Admit(items(1, 2), time.Now())
	var b, other Batch
	first := join(t, w, limits, &b, 1, 2)
	w.Admit(items(3, 3), time.Now())
	join(t, w, limits, &other)
	third := join(t, w, limits, &b, 3)
	w.Admit(items(4, 5), time.Now())
	join(t, w, limits, &other)
	ack(t, w, first...)
	join(t, w, limits, &other)
	ack(t, w, third...)
	join(t, w, limits, &other, 4, 5)
	join(t, w, limits, &Batch{})
}

// From Adjust on batches come one at a time, in stream order.
func TestBatch_Adjust(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := New(counted(2))
		limits := source.Limits{Max: 10}
		w.Admit(items(1, 6), time.Now())
		first, second := start(t, w, 1), start(t, w, 2)
		take(t, w, limits)
		w.Adjust(1, false)
		take(t, w, limits)
		require.False(t, w.Ordered())
		signalled(w.Ready)
		w.Adjust(4, true)
		require.True(t, signalled(w.Ready))
		require.True(t, w.Ordered())
		w.Adjust(3, false)
		require.True(t, w.Ordered())
		take(t, w, limits)
		ack(t, w, second)
		w.Backoff(first, time.Second, 0)
		take(t, w, limits)
		time.Sleep(time.Second)
		batch := take(t, w, limits, 1, 3, 4, 5)
		ack(t, w, batch[0])
		w.Backoff(batch[2], time.Second, 0)
		take(t, w, limits)
		ack(t, w, batch[1])
		require.True(t, w.OutOfOrder(batch[3]))
		w.Uncount(batch[3], 0)
		take(t, w, limits)
		time.Sleep(time.Second)
		take(t, w, limits, 4, 5, 6)
	})
}

// In strict order the ack of an entry was refused when an older one had been claimed meanwhile: it
// was taken for one that is to be redelivered.
func TestWindow_OutOfOrderOnlyInBatch(t *testing.T) {
	for _, c := range []Config{counted(1), byKey(4)} {
		w := New(c)
		w.Admit(items(10, 10), time.Now())
		it := start(t, w, 10)
		w.Admit(items(5, 6), time.Now())
		none(t, w)
		require.False(t, w.OutOfOrder(it))
		ack(t, w, it)
		again := start(t, w, 5)
		w.Backoff(again, 0, 0)
		ack(t, w, start(t, w, 5))
		ack(t, w, start(t, w, 6))
		empty(t, w)
	}
}

// Behind one of its batch that is to be redelivered, however it came to that, an item must not be
// acknowledged: it would be handled before the other.
func TestWindow_OutOfOrder(t *testing.T) {
	ordered := counted(10)
	ordered.Ordered = true
	for _, c := range []Config{ordered, byKey(10)} {
		for name, end := range map[string]func(w *Window, it *Item){
			"nack":          func(w *Window, it *Item) { w.Backoff(it, time.Hour, 0) },
			"nack, at once": func(w *Window, it *Item) { w.Backoff(it, 0, 0) },
			"release":       func(w *Window, it *Item) { w.Uncount(it, 0) },
			"return":        func(w *Window, it *Item) { w.Return(it) },
		} {
			t.Run(name, func(t *testing.T) {
				w := New(c)
				w.Admit(items(1, 4), time.Now())
				all := take(t, w, source.Limits{Max: 3, Offer: true}, 1, 2, 3)
				w.Start(all[0])
				w.Start(all[2])
				end(w, all[1])
				w.Admit(items(5, 5), time.Now())
				none(t, w) // with keys, what is due waits for those of its key that are in flight
				require.False(t, w.OutOfOrder(all[0]))
				require.True(t, w.OutOfOrder(all[2]))
				w.Uncount(all[2], 0)
				ack(t, w, all[0])
				if all[1].in == &w.backoff && all[1].due > w.now() {
					w.Remove(all[1])
				} else {
					require.Same(t, all[1], start(t, w, 2))
					ack(t, w, all[1])
				}
				ack(t, w, start(t, w, 3))
				ack(t, w, start(t, w, 4))
				ack(t, w, start(t, w, 5))
				empty(t, w)
			})
		}
	}
}

// Nothing behind the entry of a bar is delivered; what comes before it is, also where a busy key holds
// it up.
func TestWindow_Bar(t *testing.T) {
	w := New(byKey(4))
	w.Admit([]Item{keyed(1, "a"), keyed(2, "a"), keyed(3, "b"), keyed(4, "b")}, time.Now())
	require.False(t, w.AtBar())
	w.Bar(keyed(3, "").ID)
	first := start(t, w, 1)
	var b Batch
	limits := source.Limits{Max: 10}
	third := join(t, w, limits, &b, 3)
	require.True(t, b.Full)
	require.False(t, w.AtBar(), "2 waits for 1")
	ack(t, w, third...)
	ack(t, w, first)
	require.False(t, w.AtBar())
	signalled(w.Ready)
	b = Batch{}
	second := join(t, w, limits, &b, 2)
	require.True(t, w.AtBar())
	require.True(t, b.Full)
	require.True(t, signalled(w.Ready), "callers look what is at the bar")
	take(t, w, limits)
	require.True(t, signalled(w.Ready))
	w.Bar(keyed(4, "").ID)
	require.True(t, signalled(w.Ready), "more may be delivered")
	w.Unbar()
	require.True(t, signalled(w.Ready))
	require.False(t, w.AtBar())
	ack(t, w, second...)
	ack(t, w, start(t, w, 4))
	empty(t, w)
	w.Bar(keyed(9, "").ID)
	require.True(t, w.AtBar(), "there is nothing before it")
}

// A batch that ends at the bar does not wait for more, also when nothing is behind it.
func TestWindow_BarEndsBatch(t *testing.T) {
	w := New(counted(4))
	w.Admit(items(1, 1), time.Now())
	w.Bar(item(1).ID)
	var b Batch
	join(t, w, source.Limits{Max: 2}, &b, 1)
	require.True(t, b.Full)
}

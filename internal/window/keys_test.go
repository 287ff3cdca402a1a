package window

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels/internal/source"
)

// byKey is a usual window with ordering keys.
func byKey(maxInFlight int) Config {
	c := config(maxInFlight)
	c.Keyed, c.Ordered, c.LeaseTime = true, false, 0
	return c
}

// The items of one key follow each other in stream order, also behind one that backs off, and
// what is freed is not overtaken by what is admitted meanwhile.
func TestKeys_Order(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := New(byKey(8))
		w.Admit([]Item{keyed(1, "a"), keyed(2, "a"), keyed(3, "b"), keyed(4, "a")}, time.Now())
		a1 := start(t, w, 1)
		b3 := start(t, w, 3)
		none(t, w)
		require.Equal(t, 2, w.keys.queued)
		w.Backoff(a1, time.Second, 0)
		require.Equal(t, time.Second, none(t, w))
		w.Finish(b3)
		time.Sleep(time.Second)
		require.False(t, w.Acks.Ack(start(t, w, 1)))
		w.Admit([]Item{keyed(5, "a")}, time.Now())
		a2 := start(t, w, 2)
		none(t, w)
		w.Remove(a1, a2)
		w.Finish(start(t, w, 4))
		w.Finish(start(t, w, 5))
		empty(t, w)
	})
}

// several makes items of a key.
func several(key string, entries ...int) []Item {
	var all []Item
	for _, n := range entries {
		all = append(all, keyed(n, key))
	}
	return all
}

// The items of a key are delivered in one batch as far as it goes, and in no other beside it.
func TestKeys_Batch(t *testing.T) {
	w := New(byKey(10))
	w.Admit(append(several("a", 1, 2, 3, 5), several("b", 4, 6)...), time.Now())
	limits := source.Limits{Max: 2}
	batch := take(t, w, limits, 1, 2)
	other := take(t, w, limits, 4, 6)
	take(t, w, limits)
	ack(t, w, batch[0])
	take(t, w, limits)
	ack(t, w, other...)
	ack(t, w, batch[1])
	ack(t, w, take(t, w, limits, 3, 5)...)
	empty(t, w)
}

// Behind a busy key items wait in a queue. When it became free one of them left it: every later batch
// of the key had one item.
func TestKeys_BatchOutOfQueue(t *testing.T) {
	w := New(byKey(10))
	w.Admit(append(several("a", 1, 2, 3, 4, 5), several("b", 6)...), time.Now())
	first := start(t, w, 1)
	other := start(t, w, 6)
	require.Equal(t, 4, w.keys.queued)
	ack(t, w, first)
	var b Batch
	limits := source.Limits{Max: 3}
	batch := join(t, w, limits, &b, 2, 3, 4)
	w.Admit(several("b", 7), time.Now())
	ack(t, w, other)
	take(t, w, limits, 7)
	ack(t, w, batch...)
	take(t, w, limits, 5)
}

// One that leaves the queue for a batch and does not fit comes next, and behind what it was behind.
func TestKeys_BatchOutOfQueueFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := New(byKey(10))
		all := append(sized(10, 1), sized(60, 2, 3, 4)...)
		for i := range all {
			all[i].Key = "a"
		}
		w.Admit(all, time.Now())
		limits := source.Limits{Max: 3, Bytes: 100}
		first := start(t, w, 1)
		take(t, w, limits)
		ack(t, w, first)
		batch := take(t, w, limits, 2)
		take(t, w, limits)
		w.Backoff(batch[0], time.Second, 0)
		w.Admit(several("a", 0), time.Now()) // claimed
		ack(t, w, take(t, w, limits, 0)...)
		take(t, w, limits)
		time.Sleep(time.Second)
		ack(t, w, take(t, w, limits, 2)...)
		ack(t, w, take(t, w, limits, 3)...)
		ack(t, w, take(t, w, limits, 4)...)
		empty(t, w)
	})
}

// An item that is to be redelivered waits until the others of its batch and key have ended: their
// handler is the same call.
func TestKeys_RedeliveryWaitsForBatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := New(byKey(10))
		w.Admit(append(several("a", 1, 2, 3), several("b", 4)...), time.Now())
		limits := source.Limits{Max: 10}
		batch := take(t, w, limits, 1, 2, 3, 4)
		w.Backoff(batch[0], 0, 0)
		take(t, w, limits)
		w.Backoff(batch[1], time.Second, 0)
		ack(t, w, batch[3])
		take(t, w, limits)
		w.Uncount(batch[2], 0)
		again := take(t, w, limits, 1)
		time.Sleep(time.Second)
		take(t, w, limits)
		w.Backoff(again[0], time.Second, 0) // now 2 is due, and behind 1
		take(t, w, limits)
		time.Sleep(time.Second)
		ack(t, w, take(t, w, limits, 1, 2, 3)...)
		empty(t, w)
	})
}

// A nacked item blocks the later ones of its key, and no others of its batch.
func TestKeys_OutOfOrderByKey(t *testing.T) {
	w := New(byKey(10))
	w.Admit([]Item{keyed(1, "a"), keyed(2, "b"), keyed(3, "b"), keyed(4, "a")}, time.Now())
	batch := take(t, w, source.Limits{Max: 10}, 1, 2, 3, 4)
	w.Backoff(batch[0], 0, 0)
	w.Backoff(batch[2], 0, 0)
	require.False(t, w.OutOfOrder(batch[1]))
	require.True(t, w.OutOfOrder(batch[3]))
}

// Of two that were nacked the later one was due first, and waited behind the other; then an older
// entry of their key was claimed, which waited for both. It was first in the queue, and so the one that
// came next was never found: the key stood still. It waits for none of them.
func TestKeys_ClaimedBehindNacked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := New(byKey(10))
		limits := source.Limits{Max: 10}
		w.Admit(several("a", 11, 12), time.Now())
		batch := take(t, w, limits, 11, 12)
		w.Backoff(batch[0], time.Second, 0)
		w.Backoff(batch[1], 0, 0)
		take(t, w, limits)
		w.Admit(several("a", 1), time.Now())
		claimed := take(t, w, limits, 1)
		time.Sleep(time.Second)
		take(t, w, limits)
		ack(t, w, claimed...)
		ack(t, w, start(t, w, 11))
		ack(t, w, start(t, w, 12))
		empty(t, w)
	})
}

// An item that could not be delivered because it was not prepared was taken for one that is to be
// redelivered: what was in flight of its key could not be acknowledged.
func TestKeys_UnpreparedIsNotDelivered(t *testing.T) {
	c := byKey(10)
	c.LeaseTime = time.Minute
	w := New(c)
	w.Admit(several("a", 10, 12), time.Now())
	var b Batch
	limits := source.Limits{Max: 10}
	batch := join(t, w, limits, &b, 10, 12)
	claimed := several("a", 11)
	claimed[0].Counted = false
	w.Admit(claimed, time.Now())
	w.Admit(several("b", 13), time.Now())
	batch = append(batch, join(t, w, limits, &b, 13)...) // it delays no other key
	ack(t, w, batch[1])
	ack(t, w, batch[0])
	take(t, w, limits)
	require.True(t, signalled(w.Leases.Prepare))
	ack(t, w, batch[2])
	w.Leases.Prepared(time.Now(), wanted(w, 1)...)
	ack(t, w, start(t, w, 11))
	empty(t, w)

	all := several("a", 21, 22, 23)
	all[1].Counted = false
	w.Admit(all, time.Now())
	take(t, w, limits, 21) // 23 does not overtake 22
}

// reach admits items of a key and returns how many entered the window.
func reach(w *Window, key string, first, last int) int {
	before := w.held()
	var all []Item
	for n := first; n <= last; n++ {
		all = append(all, keyed(n, key))
	}
	w.Admit(all, time.Now())
	return w.held() - before
}

// handle delivers and acknowledges entries one by one.
func handle(t *testing.T, w *Window, first, last int) {
	t.Helper()
	for n := first; n <= last; n++ {
		ack(t, w, start(t, w, n))
	}
}

// A key whose item backs off holds so many and no more: the last ones leave the window, and what
// comes later of it does not enter, until the pending entries are read again in order.
func TestKeys_Bound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := New(byKey(10)) // 16 of each key
		require.Equal(t, 30, reach(w, "a", 101, 130), "it gets on")
		first := start(t, w, 101)
		none(t, w)
		w.Backoff(first, time.Second, 0)
		require.Equal(t, 16, w.held())
		require.Zero(t, reach(w, "a", 131, 131))
		require.Zero(t, reach(w, "a", 50, 50))
		require.Equal(t, 20, reach(w, "b", 201, 220))
		handle(t, w, 201, 220)
		require.False(t, w.Drained())

		w.BeginPass()
		require.Zero(t, reach(w, "a", 117, 117), "it has no room yet")
		w.EndPass(true)
		require.Zero(t, reach(w, "a", 132, 132))
		time.Sleep(time.Second)
		handle(t, w, 101, 115)
		require.False(t, w.Drained())
		w.Room.BeginRead(1)
		signalled(w.Room.Changed)
		handle(t, w, 116, 116)
		require.True(t, w.Drained())
		require.True(t, signalled(w.Room.Changed), "the reader waits for it, also without room")
		w.Room.EndRead(0)

		require.Zero(t, reach(w, "a", 117, 117), "outside of a pass")
		w.BeginPass()
		require.Equal(t, 4, reach(w, "a", 117, 120))
		w.EndPass(false) // an error
		require.False(t, w.Drained())
		require.Zero(t, reach(w, "a", 121, 121))
		handle(t, w, 117, 120)
		require.True(t, w.Drained())
		w.BeginPass()
		require.Equal(t, 16, reach(w, "a", 121, 140), "not more than the bound")
		handle(t, w, 121, 121)
		require.Zero(t, reach(w, "a", 138, 138), "one before it was left out")
		w.EndPass(true)
		handle(t, w, 122, 136)
		w.BeginPass()
		require.Equal(t, 4, reach(w, "a", 137, 140))
		w.EndPass(true)
		require.Equal(t, 30, reach(w, "a", 141, 170), "all of it was admitted")
		handle(t, w, 137, 170)
		require.False(t, w.Drained())
		empty(t, w)

		reach(w, "a", 1, 20)
		w.Backoff(start(t, w, 1), time.Hour, 0)
		require.Len(t, w.Close(), 16)
		require.False(t, w.Drained(), "nothing is read any more")
	})
}

// An older entry that was claimed left the window before those that it came before.
func TestKeys_BoundShedsTheLast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := New(byKey(10))
		reach(w, "a", 101, 115)
		first := start(t, w, 101)
		none(t, w)
		reach(w, "a", 51, 60)
		reach(w, "a", 116, 120)
		reach(w, "b", 121, 121)
		w.Backoff(first, time.Second, 0)
		handle(t, w, 51, 60)
		handle(t, w, 121, 121)
		time.Sleep(time.Second)
		handle(t, w, 101, 106)
		none(t, w)
		require.True(t, w.Drained())
	})
}

// Items of a key that were left out behind the position of a pass were forgotten at the end of
// the pass.
func TestKeys_BoundDuringPass(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := New(byKey(10))
		reach(w, "a", 1, 16)
		first := start(t, w, 1)
		none(t, w)
		w.Backoff(first, time.Second, 0)
		require.Zero(t, reach(w, "a", 17, 20))
		time.Sleep(time.Second)
		handle(t, w, 1, 16)
		w.BeginPass()
		require.Equal(t, 4, reach(w, "a", 17, 20))
		handle(t, w, 17, 20)
		reach(w, "b", 101, 120)
		first = start(t, w, 101)
		none(t, w)
		w.Backoff(first, time.Second, 0)
		w.EndPass(true)
		time.Sleep(time.Second)
		handle(t, w, 101, 116)
		require.True(t, w.Drained())
		w.BeginPass()
		require.Equal(t, 4, reach(w, "b", 117, 120))
		w.EndPass(true)
		handle(t, w, 117, 120)
		empty(t, w)
	})
}

// Those that are to be redelivered stay, however many one batch has taken.
func TestKeys_BoundKeepsRedeliveries(t *testing.T) {
	w := New(byKey(20))
	reach(w, "a", 1, 25)
	var b Batch
	batch := w.Take(nil, source.Limits{Max: 20}, &b)
	require.Len(t, batch, 20)
	for i, a := range batch {
		w.Backoff(a.Held.(*Item), 0, 0)
		if i < 19 {
			none(t, w)
		}
	}
	require.Equal(t, 20, w.held())
	handle(t, w, 1, 20)
	require.True(t, w.Drained())
}

// An entry that its stream has no more is in memory only: it does not leave the window.
func TestKeys_BoundKeepsTrimmed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := New(byKey(10))
		reach(w, "a", 1, 20)
		first := start(t, w, 1)
		w.Leases.Trim(w.waiting.tail)
		w.Backoff(first, time.Second, 0)
		require.Equal(t, 16, w.held())
		time.Sleep(time.Second)
		handle(t, w, 1, 15)
		handle(t, w, 20, 20)
		require.True(t, w.Drained())
	})
}

// An entry that comes before one whose back-off was resumed stays: given up, it would come back after it.
func TestKeys_BoundKeepsWhatComesBefore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := New(byKey(10))
		var all []Item
		for n := range 20 {
			all = append(all, keyed(n+1, "a"))
		}
		all[18].Backoff = time.Second
		w.Admit(all, time.Now())
		require.Equal(t, 19, w.held())
		handle(t, w, 1, 18)
		require.Equal(t, time.Second, none(t, w))
		time.Sleep(time.Second)
		handle(t, w, 19, 19)
		require.True(t, w.Drained())
	})
}

// A key of which one is in flight for long is bounded like one of which one backs off. Items
// behind the released ones are ready.
func TestKeys_BlockLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := New(byKey(10))
		reach(w, "a", 1, 16)
		killer := keyed(17, "a")
		killer.Alone = true
		w.Admit([]Item{killer, keyed(18, "b")}, time.Now())
		first := start(t, w, 1)
		time.Sleep(time.Second)
		none(t, w)
		w.BlockLong(time.Second)
		require.Equal(t, 18, w.held())
		time.Sleep(time.Nanosecond)
		signalled(w.Ready)
		w.BlockLong(time.Second)
		require.Equal(t, 17, w.held())
		require.True(t, signalled(w.Ready))
		handle(t, w, 18, 18)
		require.Zero(t, reach(w, "a", 19, 19))
		ack(t, w, first)
		handle(t, w, 2, 16)
		require.True(t, w.Drained())
		require.False(t, first.detached)
	})
}

// The rest of a back-off that began in another consumer blocks the entries behind its entry, and
// bounds its key. Entries before it, and its dead letter, do not wait for it.
func TestKeys_ResumedBackoff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := New(byKey(10))
		all := several("a", 5, 10, 11)
		all[1].Backoff = time.Hour
		unreadable := keyed(12, "a")
		unreadable.Backoff, unreadable.Reason = time.Hour, "not readable"
		w.Admit(append(all, unreadable), time.Now())
		require.Equal(t, 1, w.Sizes().BackingOff)
		require.Len(t, w.Acks.PendingMoves(nil), 1)
		w.Remove(w.Acks.PendingMoves(nil)...)
		require.Equal(t, 13, reach(w, "a", 13, 30), "it is blocked")
		handle(t, w, 5, 5)
		require.Equal(t, time.Hour, none(t, w))
		time.Sleep(time.Hour)
		handle(t, w, 10, 11)
		handle(t, w, 13, 25)
		require.True(t, w.Drained())
	})
}

// An entry that a crashed process may have been delivered, left out and taken back, was taken for one of
// which all deliveries had ended: it was not delivered alone.
func TestKeys_LeftOutStaysAlone(t *testing.T) {
	w := New(byKey(10))
	w.Admit(several("a", 1), time.Now())
	w.Backoff(start(t, w, 1), time.Hour, 0)
	require.Less(t, reach(w, "a", 2, 100), 99)
	suspect := keyed(200, "a")
	suspect.Delivered, suspect.Alone = 2, true
	w.Admit([]Item{suspect}, time.Now())
	require.False(t, w.Exact(suspect.Identity()))
}

// An entry that was delivered, released and taken back, and then left out because its key had too many, was
// taken for one that was only read: its delivery was not counted.
func TestKeys_LeftOutKeepsItsCount(t *testing.T) {
	w := New(byKey(10))
	w.Admit(several("a", 1), time.Now())
	w.Backoff(start(t, w, 1), time.Hour, 0)
	require.Less(t, reach(w, "a", 2, 100), 99)
	released, unread := keyed(200, "a"), keyed(201, "a")
	released.Delivered = 1
	w.Admit([]Item{released, unread}, time.Now())
	require.True(t, w.Exact(released.Identity()))
	require.False(t, w.Exact(unread.Identity()))

	w.BeginPass()
	w.Admit([]Item{released}, time.Now())
	w.EndPass(true)
	require.True(t, w.Exact(released.Identity()), "it was left out again")
	w.BeginPass()
	w.EndPass(false)
	require.True(t, w.Exact(released.Identity()), "not all was checked")
	w.BeginPass()
	w.EndPass(true)
	require.False(t, w.Exact(released.Identity()), "another consumer has it")
}

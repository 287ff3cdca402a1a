package window

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels/internal/source"
	"github.com/flaminco/redischannels/internal/stream"
)

// A lease runs from the sending of its command; a reconnect voids all of them.
func TestLeases_Validity(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := New(config(1))
		sent := time.Now()
		time.Sleep(3 * time.Second) // the reply was long under way
		w.Admit(items(1, 1), sent)
		it := start(t, w, 1)
		require.True(t, leased(w, it))
		require.Empty(t, w.Leases.Expiring(5*time.Second))
		time.Sleep(7*time.Second - 1)
		require.True(t, leased(w, it))
		require.Len(t, w.Leases.Expiring(5*time.Second), 1)
		time.Sleep(time.Nanosecond)
		require.False(t, leased(w, it))
		_, no := w.Leases.Unexpired([]*Item{it})
		require.Len(t, no, 1)
		w.Leases.Renewed(time.Now(), it)
		require.True(t, leased(w, it))
		yes, no := w.Leases.Unexpired([]*Item{it})
		require.Len(t, yes, 1)
		require.Empty(t, no)
		require.Equal(t, []stream.Pending{{ID: it.ID, Text: it.Text, Count: 1}}, w.Leases.Counts(yes))

		time.Sleep(time.Nanosecond)
		before := time.Now()
		time.Sleep(time.Nanosecond)
		w.Leases.Void()
		require.False(t, leased(w, it))
		require.Len(t, w.Leases.Expiring(5*time.Second), 1)
		w.Leases.Renewed(before, it) // sent on the old connection
		require.False(t, leased(w, it))
		time.Sleep(time.Nanosecond)
		w.Leases.Renewed(time.Now(), it)
		require.True(t, leased(w, it))

		attempt, first := w.Leases.Lose(it, false)
		require.True(t, first)
		require.Equal(t, "1-0", attempt.ID)
		require.Same(t, it, attempt.Held)
		require.False(t, leased(w, it))
		require.Equal(t, []Standing{Lost}, w.Acks.Standings([]*Item{it}, nil))
		_, first = w.Leases.Lose(it, false)
		require.False(t, first)
		require.Empty(t, w.Leases.Expiring(0))
		require.True(t, w.Acks.Ack(it), "the acknowledgement of a lost entry is never written")
		empty(t, w)
	})
}

// An entry that is not pending is lost, unless that is the work of its own acknowledgement.
func TestLeases_Lose(t *testing.T) {
	w := New(config(4))
	w.Admit(items(1, 3), time.Now())
	acked := start(t, w, 1)
	require.False(t, w.Acks.Ack(acked))
	_, first := w.Leases.Lose(acked, true)
	require.False(t, first)
	require.False(t, w.Leases.Lost(acked))
	_, first = w.Leases.Lose(acked, false)
	require.True(t, first)
	require.Equal(t, []Standing{Lost}, w.Acks.Standings([]*Item{acked}, nil))
	waiting := w.waiting.head
	_, first = w.Leases.Lose(waiting, true)
	require.True(t, first)
	require.Equal(t, 2, w.held(), "one that is not in flight is forgotten")
	_, first = w.Leases.Lose(waiting, false)
	require.False(t, first)
	offered := offer(t, w, 3)
	require.False(t, w.Recalled(offered))
	w.Leases.Lose(offered, true)
	require.True(t, w.Recalled(offered))
	w.Start(offered)
	require.True(t, w.Leases.Lost(offered), "lost while it was offered")
	w.Remove(acked, offered)
	empty(t, w)
}

// An item is delivered when its delivery is counted in Redis and its lease is valid; until then it is
// wanted, by as many as there are callers. A trimmed one needs neither.
func TestLeases_Prepared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := New(config(3))
		uncounted := items(1, 4)
		for i := range uncounted {
			uncounted[i].Counted = false
		}
		w.Admit(uncounted, time.Now())
		require.False(t, signalled(w.Leases.Prepare))
		none(t, w)
		require.True(t, signalled(w.Leases.Prepare), "the next one is to be prepared")
		require.Empty(t, w.Leases.Wanted(), "no caller waits")
		require.Len(t, wanted(w, 1), 1)
		require.Len(t, wanted(w, 10), 3, "more may not be in flight")
		two := wanted(w, 2)
		signalled(w.Ready)
		w.Leases.Prepared(time.Now(), two...)
		require.True(t, signalled(w.Ready))
		start(t, w, 1)
		time.Sleep(10 * time.Second)
		none(t, w)
		require.Len(t, wanted(w, 10), 2)
		w.Leases.Renewed(time.Now(), two...)
		start(t, w, 2)
		none(t, w)
		w.Leases.Trim(w.waiting.head)
		start(t, w, 3)
		require.Empty(t, wanted(w, 10), "all slots are taken")
	})
}

// A caller that does not wait counts as a waiting one for a second: an item that it could not
// have because it was not prepared is there when it comes again.
func TestLeases_Tried(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := New(config(3))
		w.Tried()
		require.False(t, signalled(w.Leases.Prepare), "there is nothing")
		time.Sleep(time.Minute)
		uncounted := items(1, 2)
		uncounted[0].Counted, uncounted[1].Counted = false, false
		w.Admit(uncounted, time.Now())
		require.Empty(t, w.Leases.Wanted())
		w.Tried()
		require.True(t, signalled(w.Leases.Prepare))
		time.Sleep(time.Second - 1)
		require.Len(t, w.Leases.Wanted(), 1)
		time.Sleep(time.Nanosecond)
		require.Empty(t, w.Leases.Wanted())
	})
}

// A caller slept on although its entry was ready: its lease, which was void, had been renewed before
// the keeper looked which entry is to be prepared.
func TestLeases_RenewedIsReady(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := New(config(3))
		w.Admit(items(1, 2), time.Now())
		first := start(t, w, 1)
		w.Leases.Void()
		none(t, w)
		require.True(t, signalled(w.Leases.Prepare))
		signalled(w.Ready)
		time.Sleep(time.Nanosecond)
		w.Leases.Renewed(time.Now(), first)
		require.False(t, signalled(w.Ready))
		w.Leases.Renewed(time.Now(), w.Leases.Expiring(0)...)
		require.Empty(t, wanted(w, 1))
		require.True(t, signalled(w.Ready))
		start(t, w, 2)
	})
}

// Nothing is prepared that may not be delivered anyway.
func TestLeases_WantedOnlyNext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := New(config(1))
		uncounted := items(1, 2)
		uncounted[1].Counted = false
		w.Admit(uncounted, time.Now())
		first := start(t, w, 1)
		require.Empty(t, wanted(w, 1), "in order, behind one in flight")
		w.Backoff(first, time.Minute, 0)
		require.Empty(t, wanted(w, 1), "in order, behind one that backs off")
		w.Remove(first)
		require.Len(t, wanted(w, 1), 1)
		w.Rest(time.Second)
		require.Empty(t, wanted(w, 1))
		time.Sleep(time.Second)
		require.Len(t, wanted(w, 1), 1)
		require.NotZero(t, w.Due(), "a caller that has looked before has not slept it out yet")
		w.Close()
		require.Empty(t, wanted(w, 1))

		c := config(4)
		c.Ordered = true
		w = New(c)
		more := items(1, 4)
		more[1].Counted, more[2].Counted, more[3].Counted = false, false, false
		w.Admit(more, time.Now())
		var b Batch
		limits := source.Limits{Max: 3}
		w.Want(&b, limits.Max)
		join(t, w, limits, &b, 1)
		require.True(t, signalled(w.Leases.Prepare))
		two := w.Leases.Wanted()
		require.Len(t, two, 2, "in order, in the batch that has begun and waits for more")
		require.Len(t, wanted(w, 1), 3, "another caller does not end that")
		w.Leases.Prepared(time.Now(), two[0])
		join(t, w, limits, &b, 2)
		require.Equal(t, two[1:], w.Leases.Wanted(), "as many as it waits for")
		w.Want(&b, 0)
		require.Empty(t, wanted(w, 1), "in order, behind a batch that does not wait any more")

		w = New(config(3))
		killer := item(2)
		killer.Alone, killer.Counted = true, false
		w.Admit([]Item{item(1), killer}, time.Now())
		start(t, w, 1)
		require.Empty(t, wanted(w, 2), "one that is delivered alone waits for those in flight")
	})
}

// A message killed its process again and again, and the one behind it, which was counted in advance each
// time, became a dead letter without a delivery.
func TestLeases_WantedIsNotBeyondWhatCallersTake(t *testing.T) {
	w := New(config(3))
	claimed := items(1, 3)
	for i := range claimed {
		claimed[i].Counted, claimed[i].Suspect = false, true
	}
	w.Admit(claimed, time.Now())
	first := wanted(w, 1)
	require.Len(t, first, 1)
	w.Leases.Prepared(time.Now(), first...)
	require.Empty(t, wanted(w, 1), "the caller takes the one that is prepared")
	require.Len(t, wanted(w, 2), 1)

	w = New(config(3))
	claimed = items(1, 3)
	for i := range claimed {
		claimed[i].Counted, claimed[i].Delivered, claimed[i].Alone = false, 2, i < 2
	}
	w.Admit(claimed, time.Now())
	first = wanted(w, 3)
	require.Len(t, first, 1, "nothing is delivered beside one that is delivered alone")
	w.Leases.Prepared(time.Now(), first...)
	require.Empty(t, wanted(w, 3))
	start(t, w, 1)
	require.Empty(t, wanted(w, 2))
	ack(t, w, first...)
	require.Len(t, wanted(w, 3), 1)
}

// An entry that the stream has no more is reported once, is never renewed, and is not the one
// that has its ID later.
func TestLeases_Trim(t *testing.T) {
	w := New(config(4))
	w.Admit(items(1, 2), time.Now())
	it := w.waiting.head
	signalled(w.Ready)
	require.True(t, w.Leases.Trim(it))
	require.True(t, signalled(w.Ready), "it needs no preparation")
	require.False(t, w.Leases.Trim(it))
	require.True(t, w.Leases.Trimmed(it))
	require.NotContains(t, w.Leases.IDs(), it.Identity(), "an entry with this ID is another one")
	require.Len(t, w.Leases.IDs(), 1)
	require.Len(t, w.Leases.Owned(0), 1)
	require.Len(t, w.Leases.Expiring(-time.Second), 1)
	require.Equal(t, []Standing{Trimmed}, w.Acks.Standings([]*Item{it}, nil))
	require.False(t, w.Acks.Ack(start(t, w, 1)))
	require.Empty(t, w.Acks.Pending(nil), "there is nothing to write")
	require.Equal(t, 1, w.held())
}

// The same ID of two streams is two entries.
func TestLeases_Identity(t *testing.T) {
	w := New(config(4))
	two := []Item{item(1), item(1)}
	two[1].Stream = 1
	w.Admit(two, time.Now())
	require.Len(t, w.Leases.IDs(), 2)
	for of := range 3 {
		held, rest := w.Leases.Find(of, []string{"1-0", "2-0"})
		if of == 2 {
			require.Empty(t, held)
			require.Empty(t, w.Leases.Owned(of))
			require.Equal(t, []string{"1-0", "2-0"}, rest)
			continue
		}
		require.Len(t, held, 1)
		require.Equal(t, Identity{of, stream.ID{Ms: 1}}, held[0].Identity())
		require.Equal(t, held, w.Leases.Owned(of))
		require.Equal(t, []string{"2-0"}, rest)
	}
	held, rest := w.Leases.Find(0, nil)
	require.Empty(t, held)
	require.Empty(t, rest)
	lost, _ := w.Leases.Find(1, []string{"1-0"})
	w.Leases.Lose(lost[0], false)
	ack(t, w, start(t, w, 1))
	empty(t, w)
}

// The count that Redis should have includes a delivery that is counted in advance.
func TestLeases_Counts(t *testing.T) {
	w := New(config(4))
	counted, uncounted := item(1), item(2)
	counted.Delivered, uncounted.Delivered, uncounted.Counted = 1, 1, false
	w.Admit([]Item{counted, uncounted}, time.Now())
	first := start(t, w, 1)
	count := func(it *Item) int { return w.Leases.Counts([]*Item{it})[0].Count }
	second := w.waiting.head
	require.Equal(t, 2, count(first))
	require.Equal(t, 1, count(second))
	w.Leases.Prepared(time.Now(), second)
	require.Equal(t, 2, count(second))
	w.Uncount(first, time.Hour)
	require.Equal(t, 2, count(first))
}

// Items in the window are distinguished from those whose end is being written and deleted ones.
func TestLeases_Held(t *testing.T) {
	w := New(config(4))
	w.Admit(items(1, 5), time.Now())
	acked, rejected, active, lost := start(t, w, 1), start(t, w, 2), start(t, w, 3), start(t, w, 4)
	waiting := w.waiting.head
	w.Acks.Ack(acked)
	w.Acks.Move(rejected, "no use")
	w.Leases.Lose(lost, false)
	removed := item(6)
	all := []*Item{acked, rejected, active, lost, waiting, &removed}
	require.Equal(t, []*Item{active, lost, waiting}, w.Leases.Held(all))
	yes, no := w.Leases.Unexpired(all)
	require.Equal(t, []*Item{active, waiting}, yes)
	require.Len(t, no, 4)
	require.Len(t, w.Leases.Owned(0), 4)
	w.Leases.Renewed(time.Now(), &removed) // it was deleted
	require.Zero(t, removed.leased)
}

// A buffered entry of a crashed process counted as delivered, without a delivery: it was next and
// so was counted, then an earlier entry was claimed, was delivered first, and ended the process.
func TestLeases_Overtaken(t *testing.T) {
	for name, claim := range map[string]func(*Item){
		"never delivered":  func(it *Item) { it.Suspect = true },
		"delivered before": func(it *Item) { it.Delivered = 1 },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := New(config(1))
				claimed := func(id int) []Item {
					it := item(id)
					it.Counted = false
					claim(&it)
					return []Item{it}
				}
				w.Want(&Batch{}, 1)
				w.Admit(claimed(5), time.Now())
				next := w.Leases.Wanted()
				require.Len(t, next, 1)
				require.Equal(t, 2, next[0].NextCount())
				require.Empty(t, w.Leases.Overtaken(next))
				w.Leases.Prepared(time.Now(), next...)

				w.Admit(claimed(4), time.Now())
				first := w.Leases.Wanted()
				require.Equal(t, uint64(4), first[0].ID.Ms)
				require.Equal(t, next, w.Leases.Overtaken(first))
				require.Empty(t, w.Leases.Overtaken(first))
				w.Leases.Prepared(time.Now(), first...)
				handle(t, w, 4, 4)
				require.Equal(t, next, w.Leases.Wanted(), "it is counted again when it is next")
			})
		})
	}
}

// The count of a read, which is in advance for each entry, is not taken back.
func TestLeases_ReadIsNotOvertaken(t *testing.T) {
	w := New(config(1))
	w.Want(&Batch{}, 1)
	w.Admit(items(5, 6), time.Now())
	it := item(4)
	it.Counted, it.Suspect = false, true
	w.Admit([]Item{it}, time.Now())
	first := w.Leases.Wanted()
	require.Equal(t, uint64(4), first[0].ID.Ms)
	require.Empty(t, w.Leases.Overtaken(first))
}

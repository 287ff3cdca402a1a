package window

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels/internal/stream"
)

// The window buffers at most the number of items that the handlers finish in 100 ms: none with
// slow handlers.
func TestRoom_AdaptivePrefetch(t *testing.T) {
	for _, c := range []struct {
		takes time.Duration
		want  int
	}{{time.Millisecond, 100}, {5 * time.Millisecond, 20}, {60 * time.Millisecond, 1}, {time.Second, 0}} {
		synctest.Test(t, func(t *testing.T) {
			w := New(config(1))
			n := 0
			for i := range 100 {
				if count := w.Room.BeginRead(1); count > 0 {
					w.Room.EndRead(count)
					w.Admit(items(n+1, n+count), time.Now())
					n += count
				}
				w.Leases.Renewed(time.Now(), w.Leases.Expiring(0)...)
				it := start(t, w, i+1)
				time.Sleep(c.takes)
				ack(t, w, it)
			}
			require.Equal(t, c.want, w.Room.prefetch())
			require.LessOrEqual(t, w.held(), c.want)
			// A lull between two messages says nothing about the handlers.
			for w.held() > 0 {
				w.Finish(start(t, w, n-w.held()+1))
			}
			before := w.Room.prefetch()
			time.Sleep(time.Hour)
			w.Admit(items(n+1, n+1), time.Now())
			it := start(t, w, n+1)
			time.Sleep(c.takes)
			w.Finish(it)
			require.InDelta(t, before, w.Room.prefetch(), float64(before)/4)
		})
	}
}

// A few quick messages before slow ones fill the window with hundreds, which no idle consumer can
// have until they are handled.
func TestRoom_PrefetchGrowsWithWhatWasFinished(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := New(config(1))
		w.Admit(items(1, 8), time.Now())
		for n := range 8 {
			it := start(t, w, n+1)
			time.Sleep(time.Microsecond)
			w.Finish(it)
			require.Equal(t, 2*(n+1), w.Room.prefetch())
		}
	})
}

// A read is as large as the room, at most twice as large as the one before, and bounded by
// the size of recent entries.
func TestRoom_BeginRead(t *testing.T) {
	c := config(64)
	c.PrefetchBytes = 1 << 18
	w := New(c)
	require.Equal(t, 2, w.Room.BeginRead(1))
	w.Room.EndRead(2)
	w.Admit(items(1, 2), time.Now())
	require.Equal(t, 4, w.Room.BeginRead(1))
	w.Room.EndRead(4)
	w.Admit(items(3, 6), time.Now())
	require.Equal(t, 8, w.Room.BeginRead(1))
	w.Room.EndRead(0) // nothing came
	require.Equal(t, 8, w.Room.BeginRead(1))
	w.Room.EndRead(8)
	large := func(n int) []Item {
		it := item(n)
		it.Size = c.PrefetchBytes / 4
		return []Item{it}
	}
	w.Admit(large(7), time.Now())
	require.Equal(t, 2, w.Room.BeginRead(1), "what is left divided by the largest")
	w.Room.EndRead(0)
	require.Equal(t, 2, w.Room.Claim())
	for n := range 3 {
		w.Admit(large(8+n), time.Now())
	}
	require.Zero(t, w.Room.BeginRead(1))
	require.Zero(t, w.Room.Claim())
	_, bytes := w.Room.Spare()
	require.Zero(t, bytes)
	signalled(w.Room.Changed)
	for n := range 10 {
		w.Finish(start(t, w, n+1))
	}
	require.True(t, signalled(w.Room.Changed))
	require.NotZero(t, w.Room.BeginRead(1))
	empty(t, w)
}

// The reply to a read of many large entries was megabytes, for which new memory was taken
// several times over.
func TestRoom_ReadFitsIntoAChunk(t *testing.T) {
	c := config(64)
	c.PrefetchBytes = 1 << 40
	w := New(c)
	w.Room.EndRead(64)
	large := item(1)
	large.Size = 1 << 16
	w.Admit([]Item{large}, time.Now())
	require.Equal(t, stream.Fitting(large.Size), w.Room.BeginRead(1))
}

// Items that wait for their retry are no reason to read nothing while handlers are idle.
func TestRoom_BesideBackoff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := New(config(4))
		n := 0
		for range 70 { // of 104
			n++
			w.Admit(items(n, n), time.Now())
			it := start(t, w, n)
			time.Sleep(time.Millisecond)
			w.Backoff(it, time.Hour, 0)
		}
		none(t, w)
		require.Equal(t, 100, w.Room.prefetch())
		require.NotZero(t, w.Room.BeginRead(1))
		w.Room.EndRead(0)
		for w.Room.limit() > w.held() {
			n++
			w.Admit(items(n, n), time.Now())
			w.Backoff(start(t, w, n), time.Hour, 0)
		}
		require.Zero(t, w.Room.BeginRead(1), "full is full")
		entries, _ := w.Room.Spare()
		require.Zero(t, entries)
	})
}

// On demand, slots alone are no reason to read, but callers are: entries that are buffered here are
// kept from other consumers.
func TestRoom_OnDemand(t *testing.T) {
	all, one := config(256), config(256)
	one.OnDemand = true
	for n, c := range map[int]Config{256: all, 1: one} {
		w := New(c)
		w.Room.lastRead = 1000
		require.Equal(t, n, w.Room.BeginRead(1))
		w.Room.EndRead(0)
	}
	w := New(one)
	w.Room.lastRead = 1000
	var b Batch
	w.Want(&b, 10)
	require.True(t, signalled(w.Room.Changed))
	require.Equal(t, 10, w.Room.BeginRead(1))
	w.Room.EndRead(0)
	w.Want(&b, 0)
	require.Equal(t, 1, w.Room.BeginRead(1))
}

// The room that a blocked read has reserved does not delay recovery, and no second read begins
// beside it.
func TestRoom_ClaimBesideRead(t *testing.T) {
	w := New(config(64))
	require.NotZero(t, w.Room.BeginRead(1))
	require.Equal(t, 8, w.Room.Claim(), "the size of entries is not known")
	w.Admit(items(1, 1), time.Now())
	require.Equal(t, 63, w.Room.Claim())
	signalled(w.Room.Changed)
	ack(t, w, start(t, w, 1))
	require.False(t, signalled(w.Room.Changed), "the reader is busy")
	w.Admit(items(2, 67), time.Now())
	require.Zero(t, w.Room.Claim())
}

// Reads are few and large: what is buffered is used up to the half before more is read. In order, an
// item that backs off leaves no slot for which to read.
func TestRoom_BeginReadWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := counted(1)
		w := New(c)
		for n := range 100 {
			require.NotZero(t, w.Room.BeginRead(1))
			w.Room.EndRead(1)
			w.Admit(items(n+1, n+1), time.Now())
			it := start(t, w, n+1)
			time.Sleep(time.Millisecond)
			w.Finish(it)
		}
		require.Equal(t, 100, w.Room.prefetch())
		w.Admit(items(101, 161), time.Now())
		require.Zero(t, w.Room.BeginRead(1))
		handle(t, w, 101, 110)
		require.Equal(t, 50, w.Room.prefetch()+1-w.waiting.n)
		require.NotZero(t, w.Room.BeginRead(1))
		w.Room.EndRead(0)

		c.Ordered = true
		w = New(c)
		w.Admit(items(1, 1), time.Now())
		w.Uncount(start(t, w, 1), time.Hour)
		require.Zero(t, w.Room.BeginRead(1))
	})
}

// The size of what is read follows that of the last entries.
func TestRoom_SizeDecays(t *testing.T) {
	c := counted(64)
	c.PrefetchBytes = 1 << 10
	w := New(c)
	w.Admit(sized(1<<10, 1), time.Now())
	handle(t, w, 1, 1)
	require.Equal(t, 1, w.Room.Claim())
	for range 20 {
		w.Room.EndRead(8)
	}
	require.Greater(t, w.Room.Claim(), 5)
}

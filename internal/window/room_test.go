package window

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels/internal/stream"
)

// What waits is at most what the handlers finish in 100 ms: nothing with slow ones.
func TestAdaptivePrefetch(t *testing.T) {
	for _, c := range []struct {
		takes time.Duration
		want  int
	}{{time.Millisecond, 100}, {5 * time.Millisecond, 20}, {60 * time.Millisecond, 1}, {time.Second, 0}} {
		synctest.Test(t, func(t *testing.T) {
			w := New(config(1))
			n := 0
			for range 100 {
				if count := w.BeginRead(); count > 0 {
					w.EndRead(count)
					w.Admit(items(n+1, n+count), time.Now())
					n += count
				}
				it, _ := w.Next()
				w.Offer(it, nil)
				w.Started(it)
				time.Sleep(c.takes)
				w.Settle(it)
				w.Done(it)
			}
			require.Equal(t, c.want, w.prefetch())
			require.LessOrEqual(t, w.Len(), c.want)
			// A lull between two messages says nothing about the handlers.
			for w.Len() > 0 {
				it, _ := w.Next()
				w.Finish(it)
			}
			before := w.prefetch()
			time.Sleep(time.Hour)
			w.Admit(items(n+1, n+1), time.Now())
			it, _ := w.Next()
			time.Sleep(c.takes)
			w.Finish(it)
			require.InDelta(t, before, w.prefetch(), float64(before)/4)
		})
	}
}

// A few quick messages before slow ones fill the window with hundreds, which no idle peer can
// have until they are handled.
func TestPrefetchGrowsWithWhatWasFinished(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := New(config(1))
		w.Admit(items(1, 8), time.Now())
		for n := range 8 {
			it := start(t, w, n+1)
			time.Sleep(time.Microsecond)
			w.Finish(it)
			require.Equal(t, 2*(n+1), w.prefetch())
		}
	})
}

// A read is as large as the room, at most twice as large as the one before, and bounded by
// the size of recent entries.
func TestReadRoom(t *testing.T) {
	c := config(64)
	c.PrefetchBytes = 1 << 18
	w := New(c)
	require.Equal(t, 2, w.BeginRead())
	w.EndRead(2)
	w.Admit(items(1, 2), time.Now())
	require.Equal(t, 4, w.BeginRead())
	w.EndRead(4)
	w.Admit(items(3, 6), time.Now())
	require.Equal(t, 8, w.BeginRead())
	w.EndRead(0) // nothing came
	require.Equal(t, 8, w.BeginRead())
	w.EndRead(8)
	large := item(7)
	large.Size = c.PrefetchBytes / 4
	w.Admit([]Item{large}, time.Now())
	require.Equal(t, 2, w.BeginRead(), "what is left divided by the largest")
	w.EndRead(0)
	require.Equal(t, 2, w.ClaimRoom())
	for n := range 3 {
		large = item(8 + n)
		large.Size = c.PrefetchBytes / 4
		w.Admit([]Item{large}, time.Now())
	}
	require.Zero(t, w.BeginRead())
	require.Zero(t, w.ClaimRoom())
	for w.Len() > 0 {
		it, _ := w.Next()
		w.Finish(it)
	}
	require.True(t, signalled(w.Room))
	require.NotZero(t, w.BeginRead())
	empty(t, w)
}

// The reply to a read of many large entries was megabytes, for which new memory was taken
// several times over.
func TestReadFitsIntoAChunk(t *testing.T) {
	c := config(64)
	c.PrefetchBytes = 1 << 40
	w := New(c)
	w.EndRead(64)
	large := item(1)
	large.Size = 1 << 16
	w.Admit([]Item{large}, time.Now())
	require.Equal(t, stream.Fitting(large.Size), w.BeginRead())
}

// Items that wait for their retry are no reason to fetch nothing while handlers are idle.
func TestReadRoomBesideBackoff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := New(config(4))
		n := 0
		for range 70 { // of 104
			n++
			w.Admit(items(n, n), time.Now())
			it := start(t, w, n)
			time.Sleep(time.Millisecond)
			w.Backoff(it, time.Hour)
		}
		none(t, w)
		require.Equal(t, 100, w.prefetch())
		require.NotZero(t, w.BeginRead())
		w.EndRead(0)
		for w.limit() > w.held() {
			n++
			w.Admit(items(n, n), time.Now())
			w.Backoff(start(t, w, n), time.Hour)
		}
		require.Zero(t, w.BeginRead(), "full is full")
	})
}

// On demand, slots alone are no reason to fetch: entries that wait here are kept from peers.
func TestOnDemand(t *testing.T) {
	all, one := config(256), config(256)
	one.OnDemand = true
	for n, c := range map[int]Config{256: all, 1: one} {
		w := New(c)
		w.lastRead = 1000
		require.Equal(t, n, w.BeginRead())
		w.EndRead(0)
	}
}

package window

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels/internal/source"
)

func pausable(maxInFlight int) Config {
	c := config(maxInFlight)
	c.Pausable = true
	return c
}

// No attempt starts later than 2 s after the last check was sent; a check is asked for when one is a second
// old, and never while nothing is to be delivered.
func TestPause_LookIsFresh(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := New(pausable(10))
		now := time.Now()
		w.Pause.Looked(now, false)
		w.Admit(items(1, 4), now)
		start(t, w, 1)
		time.Sleep(time.Second - 1)
		start(t, w, 2)
		require.False(t, signalled(w.Pause.Look))
		_, due := w.Pause.Due()
		require.False(t, due)

		time.Sleep(time.Nanosecond)
		start(t, w, 3)
		require.True(t, signalled(w.Pause.Look))
		wait, due := w.Pause.Due()
		require.True(t, due)
		require.Zero(t, wait)
		time.Sleep(time.Second + 1)
		none(t, w)
		signalled(w.Ready)
		require.False(t, w.Pause.Looked(time.Now(), false))
		require.True(t, signalled(w.Ready))
		_, due = w.Pause.Due()
		require.False(t, due)
		start(t, w, 4)
	})
}

// The application may receive an offer at any time, so looks continue as long as there is one.
func TestPause_OffersAreWatched(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := New(pausable(10))
		w.Pause.Looked(time.Now(), false)
		w.Admit(items(1, 1), time.Now())
		it := offer(t, w, 1)
		require.True(t, signalled(w.Pause.Look))
		wait, due := w.Pause.Due()
		require.True(t, due)
		require.Equal(t, time.Second, wait)
		time.Sleep(wait)
		wait, _ = w.Pause.Due()
		require.Zero(t, wait)
		require.True(t, w.Pause.Looked(time.Now(), true), "it is news")
		require.True(t, w.Recalled(it))
		w.Return(it)
		none(t, w)
		wait, due = w.Pause.Due()
		require.True(t, due, "until it is resumed")
		require.Equal(t, time.Second, wait)
		require.True(t, w.Pause.Looked(time.Now(), false))
		start(t, w, 1)
	})
}

// Where Redis does not answer, what was known holds.
func TestPause_Blind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := New(pausable(10))
		w.Pause.Looked(time.Now(), false)
		w.Admit(items(1, 3), time.Now())
		time.Sleep(2*time.Second + 1)
		none(t, w)
		require.True(t, signalled(w.Pause.Look))
		late := time.Now()
		time.Sleep(time.Second)
		w.Pause.Blind()
		start(t, w, 1)
		require.False(t, signalled(w.Pause.Look), "not before a second is over")
		time.Sleep(time.Second)
		start(t, w, 2)
		require.True(t, signalled(w.Pause.Look))
		require.True(t, w.Pause.Looked(late, true), "the answer comes after all")
		require.False(t, w.Pause.Looked(late.Add(-1), false), "an older one that comes later is none")
		none(t, w)
		w.Pause.Blind()
		none(t, w)
	})
}

// A paused window asks for nothing, and releases what it buffers. Where there is an order, what was asked for before comes
// behind that.
func TestPause_Room(t *testing.T) {
	for name, change := range map[string]func(*Config){
		"no order": func(*Config) {},
		"strict":   func(c *Config) { c.Ordered = true },
		"keyed":    func(c *Config) { c.Keyed = true },
	} {
		c := pausable(10)
		change(&c)
		w := New(c)
		w.Pause.Looked(time.Now(), false)
		require.NotZero(t, w.Room.BeginRead(1))
		w.Room.EndRead(0)
		w.Admit(items(1, 3), time.Now())
		held := start(t, w, 1)
		require.Empty(t, w.Pause.TakeBuffered(), name)
		w.Pause.Looked(time.Now(), true)
		w.Room.probe = true
		require.Zero(t, w.Room.BeginRead(1), name)
		require.Zero(t, w.Room.Claim(), name)
		require.Empty(t, wanted(w, 1), name)
		taken := w.Pause.TakeBuffered()
		require.Len(t, taken, 2, name)
		require.True(t, w.Leaving())
		require.Equal(t, name != "no order", w.Behind(), name)
		w.Released(2)
		ack(t, w, held)
		empty(t, w)
	}
	none := New(config(1)) // without a group
	none.Admit(items(1, 1), time.Now())
	take(t, none, source.Limits{Max: 1}, 1)
}

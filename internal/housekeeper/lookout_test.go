package housekeeper

import (
	"errors"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels/internal/delayed"
)

// It is asked for each message that is published.
func TestLookout_FirstUse(t *testing.T) {
	client := away(t)
	first, second := Open(client, newObserver()), Open(client, newObserver())
	require.True(t, first.FirstUse("orders"))
	require.False(t, first.FirstUse("orders"))
	require.False(t, second.FirstUse("orders"), "of the same client")
	require.Zero(t, testing.AllocsPerRun(100, func() { first.FirstUse("orders") }))
	require.True(t, second.FirstUse("invoices"))
	require.NoError(t, first.Close())
	require.NoError(t, second.Close())
}

// Topics that are made for one use must not fill the memory.
func TestLookout_IsBounded(t *testing.T) {
	t.Parallel()
	h := Open(away(t), newObserver())
	for n := range maxUsed {
		require.True(t, h.FirstUse(strconv.Itoa(n)))
	}
	require.False(t, h.FirstUse("one more"))
	require.Len(t, h.keeper.lookout.used, maxUsed)
	require.NoError(t, h.Close())
}

// A failed check must not end the goroutine that checks other topics, and is not retried.
func TestLookout_ContinuesBehindATargetThatFails(t *testing.T) {
	t.Parallel()
	h := Open(away(t), newObserver())
	tries, other := make(chan string, 100), make(chan struct{}, 100)
	h.LookSoon(func() (delayed.Target, error) { tries <- "panic"; panic("of SideKeys") })
	h.LookSoon(func() (delayed.Target, error) { tries <- "error"; return target, errors.New("no side keys") })
	h.LookSoon(func() (delayed.Target, error) { other <- struct{}{}; return target, nil })
	for range 3 {
		<-other // Redis is away
	}
	require.NoError(t, h.Close())
	require.Len(t, tries, 2)
	h.LookSoon(func() (delayed.Target, error) { panic("it is closed") })
}

// The last Close waits for a check under way, and begins none of those that wait.
func TestLookout_CloseWaits(t *testing.T) {
	t.Parallel()
	h := Open(away(t), newObserver())
	begun, release, ended := make(chan struct{}), make(chan struct{}), false
	h.LookSoon(func() (delayed.Target, error) {
		close(begun)
		<-h.keeper.life.Context().Done()
		<-release
		ended = true
		return target, nil
	})
	second := false
	h.LookSoon(func() (delayed.Target, error) { second = true; return target, nil })
	<-begun
	closed := make(chan error)
	go func() { closed <- h.Close() }()
	<-h.keeper.life.Context().Done()
	select {
	case <-closed:
		t.Error("Close did not wait")
	default:
	}
	close(release)
	require.NoError(t, <-closed)
	require.True(t, ended)
	require.False(t, second)
}

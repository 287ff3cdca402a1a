package dispatch

import (
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels/internal/source"
	"github.com/flaminco/redischannels/internal/window"
)

// drain stops, and returns what Drain has abandoned and how long it took.
func (k *kit) drain(timeout time.Duration) (abandoned []string, took time.Duration) {
	begun := time.Now()
	k.Stop()
	k.win.Close()
	abandoned = k.Drain(timeout)
	return abandoned, time.Since(begun)
}

// Drain returns at once where nothing is in progress, and else with the last end.
func TestDrain_Waits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKit(nil)
		abandoned, took := k.drain(time.Hour)
		require.Empty(t, abandoned)
		require.Zero(t, took)
		<-k.Drained()

		k = newKit(nil)
		k.admit(1, 2, 3)
		batch := k.next(t, source.Limits{Max: 2}, 0, 1, 2)
		offered := k.next(t, source.Limits{Max: 1, Offer: true}, 0, 3)[0]
		time.AfterFunc(time.Second, func() { _ = batch[1].End(nack) })
		time.AfterFunc(2*time.Second, func() { _ = offered.End(source.Outcome{Kind: source.Withdraw}) })
		time.AfterFunc(time.Minute, func() { _ = batch[0].End(ack) })
		abandoned, took = k.drain(time.Hour)
		synctest.Wait()
		require.Empty(t, abandoned)
		require.Equal(t, time.Minute, took)
		left := k.win.Close()
		require.Len(t, left, 2, "what is to be released")
		require.Equal(t, []string{"1-0"}, k.seen().acked)
		k.idle(t)
	})
}

// After the timeout what has not ended is abandoned: its context ends, and what becomes of it does not
// matter any more.
func TestDrain_Abandons(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKit(nil)
		k.admit(1, 2)
		batch := k.next(t, source.Limits{Max: 2}, 0, 1, 2)
		time.AfterFunc(time.Second, func() { _ = batch[0].End(ack) })
		abandoned, took := k.drain(time.Minute)
		synctest.Wait()
		require.Equal(t, []string{"2-0"}, abandoned)
		require.Equal(t, time.Minute, took)
		<-k.Drained()
		<-batch[1].Done()
		require.Zero(t, k.running.Load())
		require.Len(t, k.win.Abandon(0), 1)
		require.ErrorIs(t, batch[1].End(ack), source.ErrNotOwner)
		require.ErrorIs(t, batch[1].End(ack), source.ErrNotPending)
		require.Equal(t, []string{"1-0"}, k.seen().acked)
		require.Empty(t, k.seen().ignored)
		require.Empty(t, k.win.Close())
	})
}

// A handler that has exceeded its timeout is waited for as well. In order its entry is still in flight;
// without, it is redelivered by another consumer.
func TestDrain_TimedOut(t *testing.T) {
	for _, ordered := range []bool{false, true} {
		for _, late := range []bool{false, true} {
			synctest.Test(t, func(t *testing.T) {
				k := newKit(func(w *window.Config, o *source.Origin, _ *Config) { o.Timeout, w.Ordered = time.Second, ordered })
				k.admit(1)
				a := k.one(t, 1)
				time.Sleep(2 * time.Second)
				synctest.Wait()
				require.Equal(t, []string{"1-0"}, k.seen().timedOut)
				after := time.Second
				if late {
					after = time.Hour
				}
				time.AfterFunc(after, func() { _ = a.End(ack) })
				abandoned, took := k.drain(time.Minute)
				synctest.Wait()
				require.Equal(t, min(after, time.Minute), took)
				require.Equal(t, ordered && late, len(abandoned) == 1)
				require.Equal(t, !late, len(k.seen().ignored) == 1)
				time.Sleep(time.Hour)
				synctest.Wait()
				require.Equal(t, !late, len(k.seen().ignored) == 1, "no caller is interested any more")
				require.Equal(t, ordered && !late, len(k.win.Close()) == 1)
			})
		}
	}
}

// However the calls of NextBatch, the ends and the drain fall together: what was taken is waited for, and
// no end comes after a drain that did not have to abandon anything.
func TestDrain_Race(t *testing.T) {
	for range 200 {
		synctest.Test(t, func(t *testing.T) {
			k := newKit(func(w *window.Config, _ *source.Origin, _ *Config) { w.MaxInFlight = 100 })
			var all []int
			for n := range 20 {
				all = append(all, n+1)
			}
			k.admit(all...)
			var callers sync.WaitGroup
			for range 4 {
				callers.Go(func() {
					for {
						batch, err := k.NextBatch(t.Context(), nil, source.Limits{Max: 3})
						if err != nil {
							return
						}
						for _, a := range batch {
							if a.End(ack) != nil {
								panic("not ended")
							}
						}
					}
				})
			}
			var left []*window.Item
			callers.Go(func() {
				k.Stop()
				left = k.win.Close()
				if abandoned := k.Drain(time.Minute); len(abandoned) > 0 {
					panic("abandoned")
				}
				require.Empty(t, k.win.Attempts())
			})
			callers.Wait()
			require.Zero(t, k.running.Load())
			require.Len(t, all, len(left)+len(k.seen().acked))
		})
	}
}

package dispatch

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels/internal/source"
	"github.com/flaminco/redischannels/internal/window"
)

// A batch has as many as there are, up to Max, and waits for more until Wait after the first.
func TestNextBatch_Max(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKit(nil)
		k.admit(1, 2, 3, 4, 5)
		limits := source.Limits{Max: 3, Wait: time.Second}
		batch := k.next(t, limits, 0, 1, 2, 3)
		batch = append(batch, k.next(t, limits, time.Second, 4, 5)...)
		limits.Wait = 0
		k.admit(6)
		batch = append(batch, k.next(t, limits, 0, 6)...)
		require.Equal(t, []int{1, 1, 1, 1, 1, 1}, k.seen().delivered)
		end(t, ack, batch...)
		require.Len(t, k.seen().acked, 6)
		k.idle(t)
	})
}

// Wait runs from the first attempt, and ends to the nanosecond.
func TestNextBatch_Wait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKit(nil)
		go func() {
			time.Sleep(time.Minute)
			k.admit(1)
			time.Sleep(time.Second - 1)
			k.admit(2)
			time.Sleep(2 * time.Nanosecond)
			k.admit(3)
		}()
		k.next(t, source.Limits{Max: 10, Wait: time.Second}, time.Minute+time.Second, 1, 2)
		k.next(t, source.Limits{Max: 10, Wait: time.Second}, time.Second+1, 3)
	})
}

// The batch that becomes full while it waits is returned at once.
func TestNextBatch_FullWhileWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKit(nil)
		go func() {
			for n := range 3 {
				time.Sleep(time.Second)
				k.admit(n + 1)
			}
		}()
		k.next(t, source.Limits{Max: 3, Wait: time.Hour}, 3*time.Second, 1, 2, 3)
	})
}

// Bytes bounds the whole batch, whenever its attempts have come. The first may exceed it. An
// attempt that does not fit ends the batch at once, and is for the next caller.
func TestNextBatch_Bytes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKit(nil)
		admit := func(n, size int) {
			it := item(n)
			it.Size = size
			k.win.Admit([]window.Item{it}, time.Now())
		}
		limits := source.Limits{Max: 10, Bytes: 100, Wait: time.Minute}
		admit(1, 60)
		admit(2, 40)
		k.next(t, limits, 0, 1, 2) // to the byte
		admit(3, 101)
		k.next(t, limits, 0, 3)
		admit(4, 60)
		other := make(chan []*source.Attempt)
		go func() {
			time.Sleep(time.Second)
			go func() {
				batch, err := k.NextBatch(t.Context(), nil, source.Limits{Max: 1})
				require.NoError(t, err)
				other <- batch
			}()
			time.Sleep(time.Second)
			admit(5, 41)
		}()
		k.next(t, limits, 2*time.Second, 4)
		synctest.Wait()
		require.Equal(t, []int{5}, ids(<-other), "the other caller is woken")
	})
}

// Messages of different numbers are in different batches, also when they become due one by one.
func TestNextBatch_Split(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKit(nil)
		k.admit(1, 2, 3, 4, 5)
		limits := source.Limits{Max: 10, Wait: time.Minute}
		batch := k.next(t, limits, time.Minute, 1, 2, 3, 4, 5)
		for i, split := range []int{7, 7, 8, source.Single, source.Single} {
			delay := time.Duration(i) * time.Second
			require.NoError(t, batch[i].End(source.Outcome{Kind: source.Nack, Delay: delay, Split: split}))
		}
		batch = k.next(t, limits, 2*time.Second, 1, 2)
		require.Equal(t, []int{7, 7}, []int{batch[0].Split, batch[1].Split})
		require.Equal(t, []int{2, 2}, []int{batch[0].Count, batch[1].Count})
		require.Equal(t, 8, k.next(t, limits, time.Second, 3)[0].Split)
		require.Equal(t, source.Single, k.next(t, limits, 0, 4)[0].Split)
		k.next(t, limits, time.Second, 5)
	})
}

// Ordered batches come one at a time, with what arrives within Wait.
func TestNextBatch_Ordered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKit(nil)
		k.Adjust(20, true)
		k.admit(1, 2)
		go func() {
			time.Sleep(time.Second)
			k.admit(3)
			time.Sleep(time.Second)
			k.admit(4)
		}()
		limits := source.Limits{Max: 10, Wait: 1500 * time.Millisecond}
		batch := k.next(t, limits, limits.Wait, 1, 2, 3)
		go func() {
			time.Sleep(time.Minute)
			end(t, ack, batch[0])
			require.NoError(t, batch[1].End(source.Outcome{Kind: source.Nack, Delay: time.Minute}))
			require.ErrorIs(t, batch[2].End(ack), source.ErrOutOfOrder)
			end(t, source.Outcome{Kind: source.Release}, batch[2])
		}()
		batch = k.next(t, limits, 2*time.Minute+limits.Wait, 2, 3, 4)
		require.Equal(t, []int{2, 1, 1}, []int{batch[0].Count, batch[1].Count, batch[2].Count})
	})
}

// A caller whose context has ended takes nothing, and one that has begun a batch returns it.
func TestNextBatch_ContextEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKit(nil)
		k.admit(1)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		kept := make([]*source.Attempt, 1)
		batch, err := k.NextBatch(ctx, kept, source.Limits{Max: 1})
		require.ErrorIs(t, err, context.Canceled)
		require.Equal(t, kept, batch)
		require.Equal(t, 1, k.win.Sizes().Buffered)

		ctx, cancel = context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		batch, err = k.NextBatch(ctx, kept, source.Limits{Max: 2, Wait: time.Hour})
		require.NoError(t, err)
		require.Len(t, batch, 2)
		end(t, ack, batch[1])

		ctx, cancel = context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		begun := time.Now()
		batch, err = k.NextBatch(ctx, kept, source.Limits{Max: 2, Wait: time.Hour})
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Equal(t, kept, batch)
		require.Equal(t, time.Second, time.Since(begun))
		k.idle(t)
	})
}

// Stop ends the calls, and none begins after it. A batch that has begun is returned.
func TestNextBatch_Stop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKit(nil)
		time.AfterFunc(time.Minute, k.Stop)
		_, err := k.NextBatch(t.Context(), nil, source.Limits{Max: 1})
		require.ErrorIs(t, err, source.ErrClosed)
		k.admit(1)
		_, err = k.NextBatch(t.Context(), nil, source.Limits{Max: 1})
		require.ErrorIs(t, err, source.ErrClosed)
		_, err = k.NextBatch(t.Context(), nil, source.Limits{Max: 1, Try: true})
		require.ErrorIs(t, err, source.ErrClosed)

		k = newKit(nil)
		k.admit(1)
		time.AfterFunc(time.Minute, k.Stop)
		k.next(t, source.Limits{Max: 2, Wait: time.Hour}, time.Minute, 1)
	})
}

// An error that comes before the next attempt is returned once, and never beside attempts: a gap was
// dropped when it was noticed while a batch waited for more.
func TestNextBatch_Before(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKit(nil)
		gap := errors.New("a gap")
		k.before = func() error {
			if !k.win.AtBar() {
				return nil
			}
			k.win.Unbar()
			return gap
		}
		k.admit(1, 2, 3)
		two := item(2)
		k.win.Bar(two.ID)
		limits := source.Limits{Max: 10, Wait: time.Minute}
		k.next(t, limits, 0, 1, 2) // it ends at the gap
		_, err := k.NextBatch(t.Context(), nil, limits)
		require.ErrorIs(t, err, gap)
		k.next(t, limits, time.Minute, 3)

		time.AfterFunc(time.Second, func() {
			k.win.Bar(two.ID)
			k.win.Pass()
		})
		_, err = k.NextBatch(t.Context(), nil, limits)
		require.ErrorIs(t, err, gap, "also for a caller that waits already")
		_, err = k.NextBatch(t.Context(), nil, source.Limits{Max: 1, Try: true})
		require.NoError(t, err)
	})
}

// Try returns what there is and never waits.
func TestNextBatch_Try(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKit(func(w *window.Config, _ *source.Origin, _ *Config) { w.LeaseTime = time.Minute })
		limits := source.Limits{Max: 3, Wait: time.Hour, Try: true}
		k.next(t, limits, 0)
		k.admit(1, 2)
		k.next(t, limits, 0, 1, 2)
		it := item(3)
		it.Counted = false
		k.win.Admit([]window.Item{it}, time.Now())
		k.next(t, limits, 0)
		require.Len(t, k.win.Leases.Wanted(), 1, "it is prepared for the next time")
	})
}

// A caller that waits has as many prepared as it has room for, as long as it waits.
func TestNextBatch_Wants(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKit(func(w *window.Config, _ *source.Origin, _ *Config) { w.LeaseTime = time.Hour })
		items := []window.Item{item(1), item(2), item(3), item(4)}
		items[1].Counted, items[2].Counted, items[3].Counted = false, false, false
		k.win.Admit(items, time.Now())
		time.AfterFunc(time.Second, func() {
			wanted := k.win.Leases.Wanted()
			if len(wanted) == 2 {
				k.win.Leases.Prepared(time.Now(), wanted[0])
			}
		})
		k.next(t, source.Limits{Max: 3, Wait: time.Minute}, time.Minute, 1, 2)
		require.Empty(t, k.win.Leases.Wanted())
	})
}

// With an order, items that join a batch later are prepared too: a batch waited for its full Wait
// although it could be complete.
func TestNextBatch_WantsInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKit(func(w *window.Config, _ *source.Origin, _ *Config) { w.LeaseTime, w.Ordered = time.Hour, true })
		done := make(chan struct{})
		defer close(done)
		go func() {
			for {
				select {
				case <-k.win.Leases.Prepare:
					k.win.Leases.Prepared(time.Now(), k.win.Leases.Wanted()...)
				case <-done:
					return
				}
			}
		}()
		time.AfterFunc(time.Second, func() {
			claimed := item(2)
			claimed.Counted = false
			k.win.Admit([]window.Item{claimed}, time.Now())
		})
		k.admit(1)
		k.next(t, source.Limits{Max: 2, Wait: time.Minute}, time.Second, 1, 2)
	})
}

// A back-off that ends, and a rest, wake a caller.
func TestNextBatch_Due(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKit(nil)
		k.admit(1)
		end(t, nack, k.one(t, 1))
		require.Equal(t, []int{1}, k.seen().backoffs)
		a := k.next(t, source.Limits{Max: 1}, backoff, 1)
		end(t, source.Outcome{Kind: source.Nack, Delay: time.Second}, a...)
		time.AfterFunc(500*time.Millisecond, func() { k.win.Rest(time.Minute) })
		a = k.next(t, source.Limits{Max: 1}, time.Minute+500*time.Millisecond, 1)
		require.Equal(t, 3, a[0].Count)
		time.AfterFunc(time.Second, func() { end(t, source.Outcome{Kind: source.Nack}, a...) })
		k.next(t, source.Limits{Max: 1}, time.Second, 1)
	})
}

// Each of several callers gets what is there for it, although they are woken by one signal.
func TestNextBatch_SeveralCallers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKit(nil)
		got := make(chan *source.Attempt, 10)
		for range 5 {
			go func() {
				batch, err := k.NextBatch(t.Context(), nil, source.Limits{Max: 1})
				require.NoError(t, err)
				got <- batch[0]
			}()
		}
		synctest.Wait()
		k.admit(1, 2, 3)
		synctest.Wait()
		require.Len(t, got, 3)
		k.admit(4, 5)
		synctest.Wait()
		require.Len(t, got, 5)
		require.Zero(t, k.win.Sizes().Buffered)
	})
}

// A caller that is woken as its context ends wakes the next one.
func TestNextBatch_ContextEndsWoken(t *testing.T) {
	for range 50 {
		synctest.Test(t, func(t *testing.T) {
			k := newKit(nil)
			ctx, cancel := context.WithCancel(t.Context())
			failed, got := make(chan error, 1), make(chan *source.Attempt, 2)
			call := func(ctx context.Context) {
				batch, err := k.NextBatch(ctx, nil, source.Limits{Max: 1})
				if err != nil {
					failed <- err
					return
				}
				got <- batch[0]
			}
			go call(ctx)
			synctest.Wait()
			go call(t.Context())
			synctest.Wait()
			go cancel()
			k.admit(1)
			synctest.Wait()
			require.Len(t, got, 1)
			k.admit(2)
			synctest.Wait()
			require.Equal(t, 2, len(got)+len(failed))
			require.Equal(t, 2-len(got), k.win.Sizes().Buffered)
		})
	}
}

package cached

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

var errClosed = errors.New("closed")

// Ten callers begin one read, which further ones use until it is too old.
func TestValue_OneRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reads := 0
		v := New(func(context.Context) (int, error) {
			reads++
			time.Sleep(time.Second / 2)
			return reads, nil
		}, time.Second, time.Minute, errClosed)
		var callers sync.WaitGroup
		for range 10 {
			callers.Go(func() {
				n, err := v.Get(t.Context())
				require.NoError(t, err)
				require.Equal(t, 1, n)
			})
		}
		callers.Wait()
		time.Sleep(59 * time.Second)
		n, err := v.Get(t.Context())
		require.NoError(t, err)
		require.Equal(t, 1, n)
		time.Sleep(2 * time.Second)
		n, err = v.Get(t.Context())
		require.NoError(t, err)
		require.Equal(t, 2, n)
		require.NoError(t, v.Close())
		_, err = v.Get(t.Context())
		require.ErrorIs(t, err, errClosed)
	})
}

// No caller waits longer than the bound for a read that ignores its context, and no second one begins beside it.
func TestValue_Bound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reads := 0
		v := New(func(context.Context) (int, error) {
			reads++
			time.Sleep(10 * time.Second)
			return 1, nil
		}, time.Second, time.Minute, errClosed)
		for range 3 {
			begun := time.Now()
			_, err := v.Get(t.Context())
			require.ErrorIs(t, err, ErrSlow)
			require.Equal(t, time.Second, time.Since(begun))
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		_, err := v.Get(ctx)
		require.ErrorIs(t, err, context.Canceled)
		require.NoError(t, v.Close(), "it waits for the read")
		require.Equal(t, 1, reads)
	})
}

// An error is kept like a value, and a panic is an error.
func TestValue_Errors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reads := 0
		v := New(func(context.Context) (int, error) {
			if reads++; reads == 1 {
				return 0, errors.New("down")
			}
			panic("broken")
		}, time.Second, time.Minute, errClosed)
		for range 2 {
			_, err := v.Get(t.Context())
			require.EqualError(t, err, "down")
		}
		time.Sleep(time.Minute)
		_, err := v.Get(t.Context())
		require.EqualError(t, err, "panic: broken")
		require.NoError(t, v.Close())
	})
}

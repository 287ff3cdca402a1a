package lifecycle_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels/internal/lifecycle"
	"github.com/flaminco/redischannels/internal/lifecycle/lifecycletest"
	"github.com/flaminco/redischannels/internal/redistest"
)

func TestMain(m *testing.M) { redistest.Main(m) }

var errClosed = errors.New("it is closed")

func TestState_Stress(t *testing.T) {
	lifecycletest.Stress(t, errClosed, func() lifecycletest.Subject {
		s := lifecycle.New(errClosed)
		var working atomic.Int64
		return lifecycletest.Subject{
			Call: func(context.Context) error {
				if err := s.Enter(); err != nil {
					return err
				}
				defer s.Leave()
				working.Add(1)
				s.Go(func() { working.Add(-1) })
				return nil
			},
			Close: func() error {
				err := s.Close(nil)
				if n := working.Load(); n != 0 {
					return errors.New("Close has returned while a goroutine was at work")
				}
				return err
			},
		}
	})
}

// Every caller of Close returns when the stop function and the calls have ended, with the
// error of the one stop function that ran.
func TestState_CloseWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := lifecycle.New(errClosed)
		require.NoError(t, s.Enter())
		var stopped, closed atomic.Int32
		refused := errors.New("refused by the server")
		for range 3 {
			go func() {
				require.Equal(t, refused, s.Close(func() error {
					stopped.Add(1)
					<-s.Idle()
					time.Sleep(time.Second)
					return refused
				}))
				closed.Add(1)
			}()
		}
		synctest.Wait()
		require.EqualValues(t, 1, stopped.Load())
		require.ErrorIs(t, s.Enter(), errClosed)
		s.Go(func() { time.Sleep(time.Second) }) // of a call in progress
		s.Leave()
		time.Sleep(1900 * time.Millisecond)
		require.Zero(t, closed.Load())
		time.Sleep(200 * time.Millisecond)
		require.EqualValues(t, 3, closed.Load())
		require.Equal(t, refused, s.Close(nil))
	})
}

// Without <-Idle() the stop function runs beside the calls in progress, and can end them.
func TestState_StopBesideCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := lifecycle.New(errClosed)
		require.NoError(t, s.Enter())
		end := make(chan struct{})
		go func() {
			defer s.Leave()
			<-end
		}()
		require.NoError(t, s.Close(func() error { close(end); return nil }))
	})
}

func TestState_ContextEndsWithTheFirstEnd(t *testing.T) {
	s := lifecycle.New(errClosed)
	require.NoError(t, s.Err())
	require.NoError(t, s.Context().Err())
	completed := errors.New("completed")
	require.True(t, s.End(completed))
	require.False(t, s.End(nil))
	require.Equal(t, completed, s.Err())
	require.Equal(t, completed, s.Enter())
	require.Equal(t, completed, context.Cause(s.Context()))
	require.NoError(t, s.Close(nil))
	require.Equal(t, completed, s.Err(), "the first one decides")
	<-s.Idle()
}

func TestState_MisuseIsFound(t *testing.T) {
	open := lifecycle.New(errClosed)
	require.Panics(t, open.Leave)
	require.Panics(t, func() { lifecycle.New(errClosed).Go(func() {}) })
	closed := lifecycle.New(errClosed)
	require.NoError(t, closed.Close(nil))
	require.Panics(t, func() { closed.Go(func() {}) }, "nothing waits for it")
}

// What never returns does not hold up the caller for ever, and the end completes when it returns.
func TestState_CloseWithin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, failed := lifecycle.New(errClosed), errors.New("stop failed")
		blocked := make(chan struct{})
		require.NoError(t, s.Enter())
		go func() {
			defer s.Leave()
			<-blocked
		}()
		begun := time.Now()
		require.Equal(t, lifecycle.ErrTimeout, s.CloseWithin(time.Second, func() error { return failed }))
		require.Equal(t, time.Second+lifecycle.Grace, time.Since(begun))
		require.Equal(t, lifecycle.ErrTimeout, s.CloseWithin(0, nil))
		close(blocked)
		require.Equal(t, failed, s.CloseWithin(0, nil))
		require.Equal(t, failed, s.Close(nil))
	})
}

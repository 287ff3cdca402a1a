// Package lifecycletest implements the stress test that every type with a Close passes.
package lifecycletest

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

// Subject is one value of the type under test.
type Subject struct {
	// Call is a call that Close ends or waits for, and that is refused after Close. The
	// error of one that Close has interrupted is the same. ctx ends after the test.
	Call func(ctx context.Context) error
	// Close is the Close under test.
	Close func() error

	known map[string]string // goroutines of before
}

const (
	rounds  = 20
	callers = 8
	closers = 4
	// patience is how long a Close may take, with room for a loaded machine.
	patience = 20 * time.Second
)

// Stress proves of a type: Close returns nil, also of a value that was never used, when
// called twice, and when many call it at once; when it returns no goroutine of the value is
// at work; calls after the return of any Close are refused with an error that wraps closed;
// and in the end no goroutine is left, of the Redis client neither. The test that uses it
// does not run in parallel, because the goroutines of another test would be taken for those
// of this one. Each value that create returns is used for one round.
func Stress(t *testing.T, closed error, create func() Subject) {
	before, known := goleak.IgnoreCurrent(), goroutines()
	start := func() Subject {
		s := create()
		s.known = known
		return s
	}
	ctx, cancel := context.WithCancel(context.Background())
	t.Run("never used", func(t *testing.T) {
		s := start()
		s.close(t)
		s.close(t)
		require.ErrorIs(t, s.Call(ctx), closed)
	})
	t.Run("used", func(t *testing.T) {
		s := start()
		require.NoError(t, s.Call(ctx))
		s.close(t)
		require.ErrorIs(t, s.Call(ctx), closed)
		s.close(t)
	})
	t.Run("calls and closes", func(t *testing.T) {
		for range rounds {
			round(ctx, t, closed, start())
		}
	})
	cancel()
	// Clients of Redis dial in the background for a while after they were closed. Find looks
	// for half a second.
	err := goleak.Find(before)
	for range 4 {
		if err != nil {
			err = goleak.Find(before)
		}
	}
	require.NoError(t, err)
}

// round calls and closes one value from many goroutines.
func round(ctx context.Context, t *testing.T, closed error, s Subject) {
	var (
		isClosed         atomic.Bool
		calling, closing sync.WaitGroup
		calls            atomic.Int64
		closeAt          [closers]int64 // the number of the call with which each closer begins
		due              [closers]chan struct{}
	)
	for i := range due {
		closeAt[i], due[i] = 1+rand.Int64N(3*callers), make(chan struct{})
	}
	stopped := make(chan struct{})
	stop := sync.OnceFunc(func() { close(stopped) })
	call := func() error {
		n := calls.Add(1)
		for i := range due {
			if n == closeAt[i] {
				close(due[i])
			}
		}
		refuse := isClosed.Load()
		err := s.Call(ctx)
		switch {
		case err != nil && !errors.Is(err, closed):
			t.Errorf("call: %v", err)
		case err == nil && refuse:
			t.Error("a call after Close was not refused")
		}
		return err
	}
	for range callers {
		calling.Go(func() {
			defer stop()
			for !t.Failed() && call() == nil {
			}
		})
	}
	for i := range closers {
		closing.Go(func() {
			select {
			case <-due[i]:
			case <-stopped: // another one has closed before so many calls
			}
			s.close(t)
			isClosed.Store(true)
			if call() == nil {
				t.Error("a call after Close was not refused")
			}
		})
	}
	closing.Wait()
	calling.Wait()
}

// close fails the test when Close hangs, has an error, or leaves work behind.
func (s Subject) close(t *testing.T) {
	t.Helper()
	type outcome struct {
		err  error
		left []string
	}
	done := make(chan outcome, 1)
	go func() {
		err := s.Close()
		done <- outcome{err, atWork(s.known)}
	}()
	select {
	case o := <-done:
		if o.err != nil {
			t.Errorf("Close: %v", o.err)
		}
		for _, stack := range o.left {
			t.Errorf("Close has returned before this goroutine:\n%s", stack)
		}
	case <-time.After(patience):
		t.Errorf("Close has not returned within %v", patience)
	}
}

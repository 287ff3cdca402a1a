// Package cached reads a value for any number of callers: one read at a time, not more often than
// configured, and no caller waits longer than a bound.
package cached

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/flaminco/redischannels/internal/lifecycle"
)

// ErrSlow is returned if a read takes longer than its bound.
var ErrSlow = errors.New("no reply in time")

// Value is a value that is read when it is asked for. It is safe for concurrent use. Its goroutine is
// the read, which Close waits for.
type Value[T any] struct {
	read   func(ctx context.Context) (T, error)
	bound  time.Duration
	maxAge time.Duration
	life   *lifecycle.State

	mu      sync.Mutex
	value   T
	err     error
	until   time.Time     // value and err are returned until then
	running chan struct{} // closed when the read in progress has ended; nil without one
}

// New returns a Value. read is called with a context that ends after bound; its result, an error
// too, is returned for maxAge.
func New[T any](read func(ctx context.Context) (T, error), bound, maxAge time.Duration, closed error) *Value[T] {
	return &Value[T]{read: read, bound: bound, maxAge: maxAge, life: lifecycle.New(closed)}
}

// Get returns the value, or its error. It waits until ctx ends, or for the bound, after which the error is ErrSlow.
func (v *Value[T]) Get(ctx context.Context) (value T, err error) {
	running, err := v.begin()
	if err != nil {
		return value, err
	}
	timer := time.NewTimer(v.bound)
	defer timer.Stop()
	select {
	case <-running:
	case <-ctx.Done():
		return value, ctx.Err()
	case <-timer.C:
		return value, fmt.Errorf("%w: waited for %v", ErrSlow, v.bound)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.value, v.err
}

var ready = func() chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}()

// begin returns a channel that is closed when there is a value, and begins a read if that is necessary.
func (v *Value[T]) begin() (<-chan struct{}, error) {
	if err := v.life.Enter(); err != nil {
		return nil, err
	}
	defer v.life.Leave()
	v.mu.Lock()
	defer v.mu.Unlock()
	switch {
	case v.running != nil:
		return v.running, nil
	case time.Now().Before(v.until):
		return ready, nil
	}
	running := make(chan struct{})
	v.running = running
	v.life.Go(func() { v.run(running) })
	return running, nil
}

func (v *Value[T]) run(running chan struct{}) {
	ctx, cancel := context.WithTimeout(v.life.Context(), v.bound)
	defer cancel()
	value, err := v.safely(ctx)
	v.mu.Lock()
	defer v.mu.Unlock()
	v.value, v.err, v.until, v.running = value, err, time.Now().Add(v.maxAge), nil
	close(running)
}

// safely reads; a panic, which may be one of a hook of the client, is an error.
func (v *Value[T]) safely(ctx context.Context) (value T, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v", p)
		}
	}()
	return v.read(ctx)
}

// Close ends reading and waits for the read in progress.
func (v *Value[T]) Close() error { return v.life.CloseWithin(v.bound, nil) }

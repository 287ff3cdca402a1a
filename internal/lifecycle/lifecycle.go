// Package lifecycle is the only implementation of "refuse after Close, and wait": the closed
// state of a type, its calls in progress, its goroutines, and the order in which it stops.
package lifecycle

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"
)

// ended is set in State.calls when the end begins. It shares a word with the count, so that
// no call can begin between the two.
const ended = 1 << 62

// State is the life of one value, from [New] to the end of [State.Close]. It is safe for
// concurrent use and starts nothing by itself.
//
// The contract:
//
//   - A call that Close waits for begins with [State.Enter] and ends with [State.Leave].
//     Calls in progress hold the end back; once it has begun, Enter returns the error.
//   - A goroutine that Close waits for is started by [State.Go], within a call or by another
//     such goroutine. That is allowed after the end has begun: calls come to their end.
//   - [State.Context] ends when the end begins, after Enter has started to refuse. What waits
//     selects on it; a subscription derives its context from it, so no list is kept of
//     what there is to stop.
//   - [State.End] begins the end and does not wait. The first one decides the error.
//   - [State.Close] begins the end, runs the owner's stop function once, and waits for calls
//     and goroutines. It may be called often, from any goroutine, and before anything was
//     started; every caller returns when all of it is done, with the error of the stop
//     function. The stop function orders what remains: before <-Idle() calls may be in
//     progress, behind it there are none and never will be.
//
// Close must not be called by what it waits for: a call in progress, a goroutine of Go, or
// the stop function.
type State struct {
	calls   atomic.Int64  // in progress, goroutines included, and ended
	idle    chan struct{} // closed when ended is set and no call is in progress
	setIdle sync.Once

	closed error
	ctx    context.Context
	cancel context.CancelCauseFunc

	ending sync.Mutex
	err    error // why calls are refused; read when ended is set

	stopping atomic.Bool   // a Close runs the stop function
	stopped  chan struct{} // closed when that Close is done
	stopErr  error
}

// New returns the state of a value that is open. Once it is closed Enter returns the error.
func New(closed error) *State {
	s := &State{closed: closed, idle: make(chan struct{}), stopped: make(chan struct{})}
	s.ctx, s.cancel = context.WithCancelCause(context.Background())
	return s
}

// Enter begins a call, or returns why there are no more. [State.Leave] must follow when it
// returned nil. It does not wait.
func (s *State) Enter() error {
	if s.calls.Add(1)&ended == 0 {
		return nil
	}
	s.Leave()
	return s.err
}

// Leave ends a call.
func (s *State) Leave() {
	switch s.calls.Add(-1) {
	case ended:
		s.setIdle.Do(func() { close(s.idle) })
	case -1, ended - 1:
		panic("lifecycle: Leave without Enter")
	}
}

// Go runs f in a goroutine that counts as a call. It is used within a call.
func (s *State) Go(f func()) {
	if s.calls.Add(1)&^ended == 1 {
		panic("lifecycle: Go outside a call")
	}
	go func() {
		defer s.Leave()
		f()
	}()
}

// Err returns nil until the end begins, and then the error of Enter.
func (s *State) Err() error {
	if s.calls.Load()&ended == 0 {
		return nil
	}
	return s.err
}

// Context ends when the end begins; its cause is the error of Enter.
func (s *State) Context() context.Context { return s.ctx }

// Idle is closed when the end has begun and no call is in progress any more.
func (s *State) Idle() <-chan struct{} { return s.idle }

// End begins the end: from its return on calls are refused with err, or, if it is nil, with
// the error of [New]. It does not wait for the calls in progress. Only the first End or Close
// has an effect; End reports whether this was the first.
func (s *State) End(err error) bool {
	if err == nil {
		err = s.closed
	}
	s.ending.Lock()
	defer s.ending.Unlock()
	if s.err != nil {
		return false
	}
	s.err = err
	if s.calls.Or(ended) == 0 {
		s.setIdle.Do(func() { close(s.idle) })
	}
	s.cancel(err)
	return true
}

// Close begins the end, runs stop, which may be nil, and returns when stop has returned and
// no call is in progress. The first caller's stop is the one that runs; all callers return
// its error, none before the end is complete.
func (s *State) Close(stop func() error) error {
	s.End(nil)
	if !s.stopping.CompareAndSwap(false, true) {
		<-s.stopped
		return s.stopErr
	}
	defer close(s.stopped)
	if stop != nil {
		s.stopErr = stop()
	}
	<-s.idle
	return s.stopErr
}

// Grace is how long [State.CloseWithin] waits beyond the times of its owner: longer than closing
// takes while a server is silent, unless the timeouts of the client are longer.
const Grace = 20 * time.Second

// ErrTimeout is the error of [State.CloseWithin] when it has not waited for the end.
var ErrTimeout = errors.New("close: code of the application, or a connection, has not returned in time")

// CloseWithin is Close that waits for own + [Grace] at most: nothing can end code of the application,
// such as a hook of its client, that does not return. The end completes when it does.
func (s *State) CloseWithin(own time.Duration, stop func() error) error {
	closed := make(chan error, 1)
	go func() { closed <- s.Close(stop) }()
	timer := time.NewTimer(own + Grace)
	defer timer.Stop()
	select {
	case err := <-closed:
		return err
	case <-timer.C:
		return ErrTimeout
	}
}

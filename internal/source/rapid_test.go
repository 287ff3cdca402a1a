package source

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// model is the expected state of an attempt.
type model struct {
	a     *Attempt
	w     owner
	state state
	lost  bool
	err   error // of the context
	calls []string
	ends  []Outcome
}

var errRefused = errors.New("refused")

// TestAttempt_Model lets a source, a handler and the end of a subscription do what they may do
// in any order, and compares.
func TestAttempt_Model(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		timeout := rapid.SampledFrom([]time.Duration{0, 3 * time.Second}).Draw(rt, "timeout")
		seed := rapid.Uint64().Draw(rt, "seed")
		steps := rapid.IntRange(1, 12).Draw(rt, "steps")
		synctest.Test(t, func(t *testing.T) {
			m := &model{}
			m.a = newAttempt(&m.w, timeout)
			random := rand.New(rand.NewPCG(seed, seed))
			if random.IntN(2) == 0 {
				m.a.StartNow()
				m.state = started
			} else {
				m.a.From.Timeout = 0 // the taker of an attempt sees to its timeout
			}
			begun := time.Now()
			for range steps {
				m.step(t, random)
				time.Sleep(time.Duration(random.IntN(3)) * time.Second)
				if timed := m.a.From.Timeout > 0 && m.err == nil; timed && time.Since(begun) >= timeout {
					synctest.Wait()
					require.NoError(t, m.end(expire))
				}
				m.check(t)
			}
			_ = m.a.End(ack) // it has no timer any more
		})
	})
}

func (m *model) step(t *testing.T, random *rand.Rand) {
	switch random.IntN(12) {
	case 0:
		if m.a.Start(); m.state == offered {
			m.state, m.calls = started, append(m.calls, "started")
		}
	case 1:
		m.a.Lose()
		m.lost = true
		m.cancel(context.Canceled)
	case 2:
		m.a.Cancel()
		m.cancel(context.Canceled)
	case 3, 4, 5, 6:
		// Time passes.
	default:
		kinds := []Kind{Ack, Nack, Reject, Undecodable, Release, Withdraw, Expire, Abandon}
		o := Outcome{Kind: kinds[random.IntN(len(kinds))], Reason: "reason"}
		if o.Kind < Expire && (m.state == offered || m.state == started) && random.IntN(3) == 0 {
			m.w.refuse = errRefused
			m.cancel(context.Canceled)
			require.ErrorIs(t, m.a.End(o), errRefused)
			return
		}
		require.ErrorIs(t, m.a.End(o), m.end(o), "%v in state %d", o, m.state)
	}
}

// end is the expected effect of End.
func (m *model) end(o Outcome) error {
	before := m.state
	call := "ended"
	switch {
	case before == ended, before == abandoned && (o.Kind == Expire || o.Kind == Abandon), before == expired && o.Kind == Expire:
		return ErrNotPending
	case before == abandoned:
		m.state = ended
		return ErrNotOwner
	case o.Kind == Expire:
		m.state = expired
		m.cancel(context.DeadlineExceeded)
	case o.Kind == Abandon:
		m.state = abandoned
		m.cancel(context.Canceled)
	default:
		m.state = ended
		m.cancel(context.Canceled)
		if before == expired {
			call = "late"
		}
	}
	m.calls, m.ends = append(m.calls, call), append(m.ends, o)
	if call == "late" || m.lost && before != expired {
		return ErrNotOwner
	}
	return nil
}

func (m *model) cancel(err error) {
	if m.err == nil {
		m.err = err
	}
}

func (m *model) check(t *testing.T) {
	require.Equal(t, m.state, m.a.state)
	require.Equal(t, m.calls, m.w.calls)
	require.Equal(t, m.ends, m.w.ends)
	require.Equal(t, m.err, m.a.Err())
	for _, err := range m.w.ctx {
		require.Error(t, err, "the context ends before the owner sees the end")
	}
	select {
	case <-m.a.Done():
		require.Error(t, m.err)
	default:
		require.NoError(t, m.err)
	}
}

// counter is an owner that may be called by many goroutines.
type counter struct {
	started, ended, expired, abandoned, late atomic.Int32
	expiring                                 atomic.Bool
	wrong                                    atomic.Pointer[string]
}

func (c *counter) Started(*Attempt) { c.started.Add(1) }

func (c *counter) Ended(a *Attempt, o Outcome) error {
	if a.Err() == nil {
		c.fail("the context has not ended")
	}
	switch o.Kind {
	case Expire:
		c.expiring.Store(true)
		for range 100 { // others come meanwhile
			_ = a.Err()
		}
		c.expired.Add(1)
		c.expiring.Store(false)
	case Abandon:
		c.behind()
		c.abandoned.Add(1)
	default:
		c.ended.Add(1)
	}
	return nil
}

func (c *counter) Late(*Attempt, Outcome) {
	c.behind()
	c.late.Add(1)
}

func (c *counter) behind() {
	if c.expiring.Load() {
		c.fail("an end beside that of the timeout")
	}
}

func (c *counter) fail(what string) { c.wrong.Store(&what) }

// A caller that ends an attempt at the same time as others: each end that counts is seen once, in order.
func TestAttempt_ConcurrentEnds(t *testing.T) {
	for round := range 2000 {
		c := &counter{}
		a := newAttempt(c, 0)
		kinds := []Kind{Ack, Nack, Expire, Abandon, Release, Expire}
		var all sync.WaitGroup
		var counted, late atomic.Int32
		begin := make(chan struct{})
		for i, kind := range kinds {
			all.Go(func() {
				<-begin
				if i == round%len(kinds) {
					a.Start()
				}
				switch err := a.End(Outcome{Kind: kind}); {
				case err == nil:
					counted.Add(1)
				case errors.Is(err, ErrNotOwner):
					late.Add(1)
				}
			})
		}
		all.Go(func() { <-a.Done() })
		close(begin)
		all.Wait()
		if wrong := c.wrong.Load(); wrong != nil {
			require.Fail(t, *wrong)
		}
		require.LessOrEqual(t, c.started.Load(), int32(1))
		require.LessOrEqual(t, c.ended.Load()+c.late.Load(), int32(1))
		require.LessOrEqual(t, c.expired.Load(), int32(1))
		require.LessOrEqual(t, c.abandoned.Load(), int32(1))
		require.Equal(t, c.ended.Load()+c.expired.Load()+c.abandoned.Load(), counted.Load())
		require.LessOrEqual(t, late.Load(), int32(1))
		require.GreaterOrEqual(t, late.Load(), c.late.Load())
		require.Equal(t, int32(1), c.ended.Load()+late.Load(), "the handler's end counts once")
	}
}

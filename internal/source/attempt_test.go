package source

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels/internal/redistest"
)

func TestMain(m *testing.M) { redistest.Main(m) }

// owner records the calls of one attempt.
type owner struct {
	calls  []string
	ends   []Outcome
	refuse error            // of the next Ended
	during func(a *Attempt) // of Ended
	ctx    []error          // of the attempt, at each end
}

func (w *owner) Started(*Attempt) { w.calls = append(w.calls, "started") }

func (w *owner) Ended(a *Attempt, o Outcome) error {
	if err := w.refuse; err != nil {
		w.refuse = nil
		return err
	}
	if w.during != nil {
		w.during(a)
	}
	w.see("ended", a, o)
	return nil
}

func (w *owner) Late(a *Attempt, o Outcome) { w.see("late", a, o) }

func (w *owner) see(call string, a *Attempt, o Outcome) {
	w.calls, w.ends, w.ctx = append(w.calls, call), append(w.ends, o), append(w.ctx, a.Err())
}

type valueKey struct{}

func newAttempt(w Owner, timeout time.Duration) *Attempt {
	values := context.WithValue(context.Background(), valueKey{}, "value")
	return &Attempt{From: &Origin{Topic: "topic", Values: values, Timeout: timeout, Owner: w}, ID: "1-0"}
}

// ack and the others are the ends.
var (
	ack      = Outcome{Kind: Ack}
	nack     = Outcome{Kind: Nack, Delay: time.Second, Split: 7}
	withdraw = Outcome{Kind: Withdraw}
	expire   = Outcome{Kind: Expire}
	abandon  = Outcome{Kind: Abandon}
)

// The first end counts, and the context ends before the owner can deliver the message again.
func TestAttempt_FirstEndCounts(t *testing.T) {
	var w owner
	a := newAttempt(&w, 0)
	require.NoError(t, a.Err())
	a.Start()
	a.Start()
	require.NoError(t, a.End(nack))
	for _, o := range []Outcome{ack, nack, withdraw, expire, abandon} {
		require.ErrorIs(t, a.End(o), ErrNotPending)
	}
	a.Start()
	require.Equal(t, []string{"started", "ended"}, w.calls)
	require.Equal(t, []Outcome{nack}, w.ends)
	require.Equal(t, []error{context.Canceled}, w.ctx)
}

// An offer ends without a start.
func TestAttempt_Withdraw(t *testing.T) {
	var w owner
	a := newAttempt(&w, time.Second)
	require.NoError(t, a.End(withdraw))
	a.Start()
	require.Equal(t, []string{"ended"}, w.calls)
}

// An end that is refused has not happened.
func TestAttempt_Refused(t *testing.T) {
	w := owner{refuse: ErrOutOfOrder}
	a := newAttempt(&w, 0)
	a.Start()
	require.ErrorIs(t, a.End(ack), ErrOutOfOrder)
	require.NoError(t, a.End(Outcome{Kind: Release}))
	require.ErrorIs(t, a.End(ack), ErrNotPending)
	require.Equal(t, []Outcome{{Kind: Release}}, w.ends)
}

// An end after the timeout is late. The timeout runs from the start, of the context too.
func TestAttempt_Timeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var w owner
		a := newAttempt(&w, time.Minute)
		a.StartNow()
		started := time.Now()
		time.Sleep(time.Second)
		deadline, ok := a.Deadline()
		require.True(t, ok)
		require.Equal(t, time.Minute, deadline.Sub(started))
		<-a.Done()
		synctest.Wait()
		require.Equal(t, time.Minute, time.Since(started))
		require.ErrorIs(t, a.Err(), context.DeadlineExceeded)
		require.ErrorIs(t, a.End(expire), ErrNotPending)
		require.ErrorIs(t, a.End(nack), ErrNotOwner)
		require.ErrorIs(t, a.End(nack), ErrNotPending)
		require.ErrorIs(t, a.End(abandon), ErrNotPending)
		require.Equal(t, []string{"ended", "late"}, w.calls)
		require.Equal(t, []Outcome{expire, nack}, w.ends)
		require.ErrorIs(t, a.Err(), context.DeadlineExceeded)
	})
}

// The timeout ends with the attempt.
func TestAttempt_EndStopsTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var w owner
		a := newAttempt(&w, time.Minute)
		a.StartNow()
		require.NoError(t, a.End(ack))
		time.Sleep(time.Hour)
		require.Equal(t, []Outcome{ack}, w.ends)
		_, ok := newAttempt(&w, 0).Deadline()
		require.False(t, ok)
	})
}

// The deadline of what was offered runs from the first check at it, which is made when the
// application has the message.
func TestAttempt_DeadlineOfOffer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAttempt(&owner{}, time.Minute)
		time.Sleep(time.Hour)
		first, _ := a.Deadline()
		require.Equal(t, time.Minute, time.Until(first))
		time.Sleep(time.Second)
		again, _ := a.Deadline()
		require.Equal(t, first, again)
	})
}

// A handler ended while its timeout was being handled: the owner saw the late end before the
// timeout, and freed its slot twice.
func TestAttempt_LateFollowsTimeout(t *testing.T) {
	for _, end := range []Outcome{ack, nack, abandon} {
		var w owner
		a := newAttempt(&w, 0)
		a.Start()
		w.during = func(a *Attempt) {
			w.during = nil
			err := a.End(end)
			if end.Kind == Abandon {
				require.NoError(t, err)
			} else {
				require.ErrorIs(t, err, ErrNotOwner)
			}
			require.Equal(t, []string{"started"}, w.calls, "the owner is at it still")
			require.ErrorIs(t, a.End(abandon), ErrNotPending)
		}
		require.NoError(t, a.End(expire))
		require.Equal(t, []Outcome{expire, end}, w.ends)
	}
}

// An attempt that was abandoned can end still, but that is of no interest.
func TestAttempt_Abandon(t *testing.T) {
	for _, timedOut := range []bool{false, true} {
		var w owner
		a := newAttempt(&w, 0)
		a.Start()
		ends := []Outcome{abandon}
		if timedOut {
			require.NoError(t, a.End(expire))
			ends = []Outcome{expire, abandon}
		}
		require.NoError(t, a.End(abandon))
		require.Error(t, a.Err())
		require.ErrorIs(t, a.End(abandon), ErrNotPending)
		require.ErrorIs(t, a.End(expire), ErrNotPending)
		require.ErrorIs(t, a.End(ack), ErrNotOwner)
		require.ErrorIs(t, a.End(ack), ErrNotPending)
		require.Equal(t, ends, w.ends)
	}
}

// The context of a lost attempt ends, and its end has an error although it counts.
func TestAttempt_Lose(t *testing.T) {
	var w owner
	a := newAttempt(&w, 0)
	a.Start()
	done := a.Done()
	a.Lose()
	<-done
	require.ErrorIs(t, a.Err(), context.Canceled)
	require.ErrorIs(t, a.End(ack), ErrNotOwner)
	require.ErrorIs(t, a.End(ack), ErrNotPending)
	require.Equal(t, []Outcome{ack}, w.ends)
}

// Cancel ends the context only.
func TestAttempt_Cancel(t *testing.T) {
	var w owner
	a := newAttempt(&w, 0)
	a.Start()
	a.Cancel()
	a.Cancel()
	<-a.Done()
	require.ErrorIs(t, a.Err(), context.Canceled)
	require.Empty(t, w.ends)
	require.NoError(t, a.End(ack))
}

// A context that belongs to an attempt says so, whatever is put around it.
func TestAttempt_Context(t *testing.T) {
	a := newAttempt(&owner{}, 0)
	require.Equal(t, "value", a.Value(valueKey{}))
	ctx, cancel := context.WithCancel(a)
	defer cancel()
	require.Same(t, a, FromContext(ctx))
	other := newAttempt(&owner{}, 0)
	require.Same(t, other, FromContext(NewContext(ctx, other)))
	require.Nil(t, FromContext(NewContext(ctx, nil)))
	require.Nil(t, FromContext(context.Background()))
	a.Lose()
	<-ctx.Done()
	a.Message = message.NewMessage("id", nil)
}

// A Nack of the message means what was asked for last.
func TestAttempt_Requested(t *testing.T) {
	a := newAttempt(&owner{}, 0)
	require.Equal(t, Outcome{Kind: Nack, Delay: OwnersDelay}, a.Requested())
	a.Request(nack)
	reject := Outcome{Kind: Reject, Reason: "no use"}
	a.Request(reject)
	require.Equal(t, reject, a.Requested())
}

func TestGapError(t *testing.T) {
	var gap *GapError
	require.True(t, errors.As(error(&GapError{Topic: "orders", After: "1-0"}), &gap))
	require.EqualError(t, gap, `entries of "orders" after 1-0 were trimmed`)
}

// watch records what an attempt reports.
type watch struct{ calls []string }

func (w *watch) Started() { w.calls = append(w.calls, "started") }

func (w *watch) Ended(_ *Attempt, o Outcome, lost bool) {
	w.calls = append(w.calls, fmt.Sprint(o.Kind, " ", lost))
}

// Of several ends the first that the owner accepts is reported, and of a timeout only the timeout.
func TestAttempt_Watch(t *testing.T) {
	for name, test := range map[string]struct {
		do    func(a *Attempt, w *owner)
		calls []string
	}{
		"ack": {func(a *Attempt, _ *owner) { _ = a.End(ack); _ = a.End(nack) }, []string{"started", "1 false"}},
		"refused": {func(a *Attempt, w *owner) {
			w.refuse = ErrOutOfOrder
			_ = a.End(ack)
			_ = a.End(nack)
		}, []string{"started", "2 false"}},
		"late":      {func(a *Attempt, _ *owner) { _ = a.End(expire); _ = a.End(ack); _ = a.End(abandon) }, []string{"started", "7 false"}},
		"abandoned": {func(a *Attempt, _ *owner) { _ = a.End(abandon); _ = a.End(ack) }, []string{"started", "8 false"}},
		"lost":      {func(a *Attempt, _ *owner) { a.Lose(); _ = a.End(ack) }, []string{"started", "1 true"}},
	} {
		t.Run(name, func(t *testing.T) {
			o, w := &owner{}, &watch{}
			a := newAttempt(o, 0)
			require.True(t, a.Offered())
			require.True(t, a.Watch(&Watching{context.WithValue(a.From.Values, spanKey{}, "span"), w}))
			require.Equal(t, "span", a.Value(spanKey{}))
			require.Equal(t, "value", a.Value(valueKey{}))
			a.Start()
			require.False(t, a.Offered())
			test.do(a, o)
			require.Equal(t, test.calls, w.calls)
			require.False(t, a.Watch(nil), "it has ended")
		})
	}
}

type spanKey struct{}

// Of 256 bytes and more the next size of the allocator is 288: 32 bytes per message.
func TestAttempt_Size(t *testing.T) {
	require.LessOrEqual(t, unsafe.Sizeof(Attempt{}), uintptr(256))
}

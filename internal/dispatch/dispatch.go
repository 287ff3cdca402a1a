// Package dispatch delivers the items of a window: it returns attempts to callers, and reports
// each outcome to the window. Further effects of an outcome (an acknowledgement in Redis, a dead
// letter, a skip) belong to the Policy of the subscription.
package dispatch

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/flaminco/redischannels/internal/source"
	"github.com/flaminco/redischannels/internal/window"
)

// Policy handles the deliveries of a kind of subscription. Its methods do not wait.
type Policy interface {
	// Delivered is called when the application has received an item; count is its delivery count.
	Delivered(count int)
	// Acked ends an item that was acknowledged, and reports whether the ack was too late.
	Acked(it *window.Item) (late bool)
	// GiveUp ends an item that will not be delivered again.
	GiveUp(it *window.Item, o source.Outcome)
	// Defer ends an item that will be delivered again after a delay, and reports whether it does.
	// asked means that the application has requested the delay.
	Defer(it *window.Item, o source.Outcome, delay time.Duration, asked bool) bool
	// Recalled is called with the items of a batch that was offered for too long. They are no
	// longer in the window.
	Recalled(items []*window.Item)
	// AckIgnored reports an end that was too late, because of err.
	AckIgnored(id string, err error)
	// TimedOut reports a handler that took longer than its timeout.
	TimedOut(id string)
}

// Config configures [New].
type Config struct {
	Window        *window.Window
	Policy        Policy
	MaxDeliveries int // 0 for no bound
	Backoff       func(delivered int) time.Duration
	Before        func() error // an error that is returned before the next attempt; may be nil
}

// Dispatcher returns attempts until Stop. It is safe for concurrent use. It has no goroutine.
type Dispatcher struct {
	cfg     Config
	win     *window.Window
	recall  chan struct{}
	stop    chan struct{} // closed: nothing is delivered
	idle    chan struct{} // running may be 0
	drained chan struct{} // closed: no caller waits for the end of an attempt

	running atomic.Int64 // attempts that were taken and not ended by their callers
	closed  atomic.Bool  // late ends are no longer reported
}

// errLate is the cause of ignoring an acknowledgement.
var errLate = errors.New("acknowledged after HandlerTimeout")

// New returns a dispatcher.
func New(cfg Config) *Dispatcher {
	return &Dispatcher{
		cfg: cfg, win: cfg.Window,
		recall: make(chan struct{}, 1), stop: make(chan struct{}), idle: make(chan struct{}, 1), drained: make(chan struct{}),
	}
}

// NextBatch is that of source.Source.
func (d *Dispatcher) NextBatch(ctx context.Context, dst []*source.Attempt, limits source.Limits) ([]*source.Attempt, error) {
	if err := d.err(ctx); err != nil {
		return dst, err
	}
	first := len(dst)
	var b window.Batch
	dst = d.take(dst, first, limits, &b)
	n := len(dst) - first
	switch {
	case n >= limits.Max, n > 0 && (b.Full || limits.Wait <= 0 || limits.Try):
		return dst, nil
	case limits.Try:
		d.win.Tried()
		return dst, nil
	}
	return d.wait(ctx, dst, first, limits, &b)
}

func (d *Dispatcher) err(ctx context.Context) error {
	select {
	case <-d.stop:
		return source.ErrClosed
	default:
	}
	if err := ctx.Err(); err != nil || d.cfg.Before == nil {
		return err
	}
	return d.cfg.Before()
}

// take adds to the batch that begins at first.
func (d *Dispatcher) take(dst []*source.Attempt, first int, limits source.Limits, b *window.Batch) []*source.Attempt {
	begun := len(dst)
	most := limits.Max - (begun - first)
	// Counted before: a handler may have ended the first before this returns, and a drain
	// must not miss one that is being taken.
	d.running.Add(int64(most))
	dst = d.win.Take(dst, limits, b)
	d.leave(most - (len(dst) - begun))
	if !limits.Offer {
		for _, a := range dst[begun:] {
			d.cfg.Policy.Delivered(a.Count)
		}
	}
	return dst
}

// wait is NextBatch while there are not enough attempts.
func (d *Dispatcher) wait(ctx context.Context, dst []*source.Attempt, first int, limits source.Limits, b *window.Batch) ([]*source.Attempt, error) {
	d.win.Want(b, limits.Max-(len(dst)-first))
	defer func() {
		d.win.Want(b, 0)
		d.win.Pass() // a caller that was woken and leaves attempts, or has not checked, wakes the next
	}()
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	var until time.Time // the end of a batch that has begun
	for {
		dst = d.take(dst, first, limits, b)
		n := len(dst) - first
		if n > 0 && until.IsZero() {
			until = time.Now().Add(limits.Wait)
		}
		if n == limits.Max || n > 0 && (b.Full || !time.Now().Before(until)) {
			return dst, nil
		}
		timer.Reset(pause(d.win.Due(), until))
		select {
		case <-d.win.Ready:
		case <-timer.C:
		case <-ctx.Done():
			return d.ended(dst, n, ctx.Err())
		case <-d.stop:
			return d.ended(dst, n, source.ErrClosed)
		}
		if n > 0 {
			continue // an error would be lost
		}
		if err := d.err(ctx); err != nil {
			return dst, err
		}
	}
}

// ended returns a batch that has begun, or the error.
func (d *Dispatcher) ended(dst []*source.Attempt, n int, err error) ([]*source.Attempt, error) {
	if n > 0 {
		return dst, nil
	}
	return dst, err
}

// pause is how long to wait: until an item is due, or a batch ends.
func pause(due time.Duration, until time.Time) time.Duration {
	if due == 0 {
		due = time.Hour
	}
	if !until.IsZero() {
		due = min(due, time.Until(until))
	}
	return due
}

// Recall receives a value when the sender of an offer should check Recalled.
func (d *Dispatcher) Recall() <-chan struct{} { return d.recall }

// Ask sends to Recall.
func (d *Dispatcher) Ask() {
	select {
	case d.recall <- struct{}{}:
	default:
	}
}

// Recalled reports whether an offer must be withdrawn.
func (d *Dispatcher) Recalled(a *source.Attempt) bool {
	return d.stopped() || d.win.Recalled(itemOf(a))
}

func itemOf(a *source.Attempt) *window.Item { return a.Held.(*window.Item) }

// Started implements source.Owner.
func (d *Dispatcher) Started(a *source.Attempt) {
	d.win.Start(itemOf(a))
	d.cfg.Policy.Delivered(a.Count)
}

// Ended implements source.Owner.
func (d *Dispatcher) Ended(a *source.Attempt, o source.Outcome) error {
	it := itemOf(a)
	switch o.Kind {
	case source.Expire:
		d.cfg.Policy.TimedOut(it.EntryID())
		if !d.win.Ordered() { // two handlers at once have no order
			d.nacked(it, a.Requested())
		}
		return nil // its handler continues
	case source.Withdraw:
		d.withdrawn(it)
	case source.Ack:
		if d.win.OutOfOrder(it) {
			return source.ErrOutOfOrder
		}
		if d.cfg.Policy.Acked(it) {
			d.cfg.Policy.AckIgnored(a.ID, nil)
		}
	case source.Abandon:
	default:
		d.nacked(it, o)
	}
	d.leave(1)
	return nil
}

// Late implements source.Owner.
func (d *Dispatcher) Late(a *source.Attempt, o source.Outcome) {
	if d.closed.Load() {
		return
	}
	if o.Kind == source.Ack {
		d.cfg.Policy.AckIgnored(a.ID, errLate)
		o = source.Outcome{Kind: source.Nack, Delay: source.OwnersDelay}
	}
	if d.win.InFlight(a) {
		d.nacked(itemOf(a), o)
	}
	d.leave(1)
}

func (d *Dispatcher) withdrawn(it *window.Item) {
	switch {
	case d.win.Leases.Lost(it):
		d.win.Remove(it)
	case d.stopped() || d.win.Pause.Paused() || !d.win.Recalled(it):
		d.win.Return(it)
	default:
		d.win.Withdraw(it)
	}
	if items := d.win.Withdrawn(); len(items) > 0 {
		d.cfg.Policy.Recalled(items)
	}
}

func (d *Dispatcher) nacked(it *window.Item, o source.Outcome) {
	switch {
	case d.win.Leases.Lost(it):
		d.cfg.Policy.AckIgnored(it.EntryID(), nil)
		d.win.Finish(it)
	case o.Kind == source.Reject || o.Kind == source.Undecodable:
		d.cfg.Policy.GiveUp(it, o)
	case o.Kind == source.Nack && d.cfg.MaxDeliveries > 0 && it.Deliveries() >= d.cfg.MaxDeliveries:
		o.Kind, o.Reason = source.Reject, cmp.Or(o.Reason, fmt.Sprintf("delivered %d times without success", it.Deliveries()))
		d.cfg.Policy.GiveUp(it, o)
	default:
		d.retry(it, o)
	}
}

// retry delivers an item again.
func (d *Dispatcher) retry(it *window.Item, o source.Outcome) {
	delay, asked := o.Delay, true
	if delay < 0 {
		if delay = 0; o.Kind == source.Nack {
			delay, asked = d.cfg.Backoff(it.Deliveries()), false
		}
	}
	switch {
	case d.cfg.Policy.Defer(it, o, delay, asked):
	case o.Kind == source.Release:
		d.win.Uncount(it, delay)
	default:
		d.win.Backoff(it, delay, o.Split)
	}
}

// Adjust implements source.Adjuster.
func (d *Dispatcher) Adjust(maxInFlight int, ordered bool) { d.win.Adjust(maxInFlight, ordered) }

// Stop ends delivering: callers of NextBatch return, and offers are recalled.
func (d *Dispatcher) Stop() {
	close(d.stop)
	d.Ask()
}

func (d *Dispatcher) stopped() bool {
	select {
	case <-d.stop:
		return true
	default:
		return false
	}
}

func (d *Dispatcher) leave(n int) {
	if n > 0 && d.running.Add(int64(-n)) == 0 && d.stopped() {
		select {
		case d.idle <- struct{}{}:
		default:
		}
	}
}

// Drained is closed when no caller waits for the end of an attempt.
func (d *Dispatcher) Drained() <-chan struct{} { return d.drained }

// Drain waits, after Stop, until all attempts have ended, for at most timeout. Then it abandons
// those that have not, and returns their IDs.
func (d *Dispatcher) Drain(timeout time.Duration) (abandoned []string) {
	defer close(d.drained)
	defer d.closed.Store(true)
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	for d.running.Load() > 0 {
		select {
		case <-d.idle:
			continue
		case <-timer.C:
		}
		for _, a := range d.win.Attempts() {
			if a.End(source.Outcome{Kind: source.Abandon}) == nil {
				abandoned = append(abandoned, a.ID)
			}
		}
		break
	}
	return abandoned
}

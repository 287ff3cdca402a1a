package housekeeper

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/flaminco/redischannels/internal/delayed"
	"github.com/flaminco/redischannels/internal/redisconn"
)

const (
	// pageInterval is the minimum time between two pages of a target.
	pageInterval = 20 * time.Millisecond
	// leadInterval is the time between two checks of a leader while the next entry is due within
	// a second: another process may have stored an earlier one.
	leadInterval = 40 * time.Millisecond
	// followInterval is the time between two checks of a mover that is not the leader.
	followInterval = time.Second

	retryMin = 50 * time.Millisecond
	retryMax = 5 * time.Second
)

// Task is what a duty is for.
type Task string

// The tasks.
const (
	Moving   Task = "delayed messages"
	Trimming Task = "retention"
)

// dutyKey names a duty.
type dutyKey struct {
	task   Task
	target delayed.Target
}

// job is what a duty does. Its methods are called by the goroutine of the duty.
type job interface {
	look(ctx context.Context) (result, error)
}

// result is what a check has brought.
type result struct {
	more   bool // otherwise the duty is done
	after  time.Duration
	report func(Observer) // nil for nothing
}

// duty looks at one target, for as long as its job says.
type duty struct {
	keeper *keeper
	dutyKey
	job  job
	wake chan struct{} // next was moved forward

	// Guarded by keeper.mu. next is the time of the next check; the zero time means that a check
	// is running and next was not moved since it began.
	next, notBefore time.Time
	handles         map[*Handle]struct{}

	// Of the goroutine.
	failures    int
	failedSince time.Time
	reported    bool // the failure
}

// run is the goroutine of a duty.
func (d *duty) run() {
	for d.wait() {
		r, err := d.job.look(d.keeper.life.Context())
		if d.keeper.life.Err() != nil {
			return
		}
		if err != nil {
			r = result{more: true, after: d.failed(err)}
		} else {
			d.recovered()
		}
		if r.report != nil {
			d.report(r.report)
		}
		if d.ends(r.after, r.more) {
			return
		}
	}
}

// wait returns true when it is time to check, and false at the end.
func (d *duty) wait() bool {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		d.keeper.mu.Lock()
		left := time.Until(d.next)
		if left <= 0 {
			d.next = time.Time{}
		}
		d.keeper.mu.Unlock()
		if left <= 0 {
			return d.keeper.life.Err() == nil
		}
		timer.Reset(left)
		select {
		case <-timer.C:
		case <-d.wake:
		case <-d.keeper.life.Context().Done():
			return false
		}
	}
}

// failed reports the first failure of an outage, or that it continues, and returns the back-off.
func (d *duty) failed(err error) time.Duration {
	if d.failures == 0 {
		d.failedSince, d.reported = time.Now(), false
	}
	d.failures++
	kind := redisconn.Classify(err)
	if kind == redisconn.KindNetwork || kind == redisconn.KindUnavailable {
		redisconn.Relocate(d.keeper.client)
	}
	if !d.reported && (!kind.Retryable() || time.Since(d.failedSince) > followInterval) {
		d.reported = true
		d.report(func(o Observer) { o.Failed(d.task, d.target, err) })
	}
	return min(retryMin<<min(d.failures-1, 10), retryMax)
}

func (d *duty) recovered() {
	if d.failures > 0 && d.reported {
		lasted := time.Since(d.failedSince)
		d.report(func(o Observer) { o.Recovered(d.task, d.target, lasted) })
	}
	d.failures = 0
}

// report calls the observers of all handles that the target concerns.
func (d *duty) report(call func(Observer)) {
	d.keeper.mu.Lock()
	handles := slices.Collect(maps.Keys(d.handles))
	d.keeper.mu.Unlock()
	for _, h := range handles {
		h.report(call)
	}
}

// ends removes the duty if it is done and next was not moved since the check began; otherwise it
// sets the time of the next check.
func (d *duty) ends(after time.Duration, more bool) bool {
	d.keeper.mu.Lock()
	defer d.keeper.mu.Unlock()
	now := time.Now()
	d.notBefore = now.Add(pageInterval)
	if more {
		d.forward(now.Add(after))
	}
	if d.next.IsZero() {
		delete(d.keeper.duties, d.dutyKey)
		return true
	}
	if d.next.Before(d.notBefore) {
		d.next = d.notBefore
	}
	return false
}

// forward moves the next check forward. The caller holds keeper.mu.
func (d *duty) forward(at time.Time) {
	if at.Before(d.notBefore) {
		at = d.notBefore
	}
	if !d.next.IsZero() && !at.Before(d.next) {
		return
	}
	d.next = at
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

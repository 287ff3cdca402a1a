package consumer

import (
	"context"
	"time"

	"github.com/flaminco/redischannels/internal/delayed"
	"github.com/flaminco/redischannels/internal/outage"
	"github.com/flaminco/redischannels/internal/redisconn"
	"github.com/flaminco/redischannels/internal/source"
	"github.com/flaminco/redischannels/internal/window"
)

// deferrer stores retries with long delays in Redis, where they neither take room in the window
// nor end with the process. It has no goroutine: that of the mover calls it.
type deferrer struct {
	c      *Consumer
	outage outage.Outage
}

func newDeferrer(c *Consumer) *deferrer {
	return &deferrer{c: c, outage: outage.Outage{Down: func(err error, _ []string) { c.cfg.Observer.Failed(err) }}}
}

// may reports whether the retry of an item can be deferred. With an order an entry of the topic
// cannot: the entries behind it wait. An entry that has returned has already lost its place, and
// must not block others.
func (d *deferrer) may(it *window.Item) bool {
	return d.c.cfg.MaxDeferred > 0 && (it.Stream > 0 || !d.c.ordered())
}

// long reports whether a delay is one to defer.
func (d *deferrer) long(it *window.Item, delay time.Duration) bool {
	return delay > d.c.cfg.DeferAfter || it.Stream > 0 && delay > 0
}

// Defer implements dispatch.Policy.
func (p *policy) Defer(it *window.Item, o source.Outcome, delay time.Duration, asked bool) bool {
	d := p.deferrer
	long := d.long(it, delay) && (asked || it.Stream > 0)
	switch {
	case !d.may(it):
		if long && p.cfg.MaxDeferred > 0 {
			p.cfg.Observer.InMemory(delay)
		}
		return false
	case !long && !p.win.Probing(it):
		return false
	}
	p.win.Acks.Defer(it, delay, o.Kind != source.Release, o.Reason)
	return true
}

// write defers items whose ends are to be written.
func (d *deferrer) write(ctx context.Context, items []*window.Item) {
	_ = d.c.id.each(items, func(of int, items []*window.Item) error {
		outcomes, err := d.send(ctx, of, items, d.c.win.Acks.Left(items))
		for i, outcome := range outcomes {
			d.done(items[i], outcome)
		}
		if err != nil {
			d.failed(of, err, items[len(outcomes):])
		}
		return nil
	})
}

func (d *deferrer) done(it *window.Item, outcome delayed.DeferOutcome) {
	switch outcome {
	case delayed.Deferred:
		d.c.win.Remove(it)
		d.c.cfg.Observer.Deferred()
	case delayed.DeferFull, delayed.DeferTooLarge, delayed.DeferGone:
		d.c.win.Acks.Keep(it)
	default:
		d.c.win.Remove(it)
		if outcome == delayed.DeferOwner || it.Attempts == 0 { // otherwise it was deferred, and has already returned
			d.c.acker.late([]string{it.EntryID()})
		}
	}
}

// failed handles an error. If the reply was lost an entry may be deferred, and must not count as
// leased. After any other error it is not deferred.
func (d *deferrer) failed(of int, err error, items []*window.Item) {
	switch redisconn.Classify(err) {
	case redisconn.KindNetwork, redisconn.KindCanceled, redisconn.KindNoGroup, redisconn.KindSought:
		d.c.failed(outage.Defer, of, err)
		retryLater(items...)
		return
	case redisconn.KindUnavailable:
		d.c.failed(outage.Defer, of, err)
	default:
		d.outage.Failed(outage.Defer, err)
	}
	for _, it := range items {
		d.c.win.Acks.Keep(it)
	}
}

func (d *deferrer) send(ctx context.Context, of int, items []*window.Item, delays []time.Duration) ([]delayed.DeferOutcome, error) {
	retries := make([]delayed.Retry, len(items))
	for i, it := range items {
		retries[i] = delayed.Retry{
			ID: it.Text, EntryID: it.EntryID(), Reason: it.Reason, Count: it.Deliveries(), Delay: delays[i], Size: it.Size,
		}
	}
	id, self := d.c.id, d.c.id.self.Load()
	target := id.targets[1]
	outcomes, next, err := delayed.Defer(ctx, d.c.cfg.Client, target, id.keys[of], delayed.Owner{Consumer: self.name, Sought: self.sought}, d.c.cfg.MaxDeferred, retries)
	if next >= 0 {
		d.c.cfg.OnDue(target, next)
	}
	if err == nil {
		d.outage.Over(outage.Defer)
		d.c.outage.Over(outage.Defer)
	}
	return outcomes, err
}

// atEnd defers items that the window has returned while they backed off, and returns those that
// must be released instead.
func (d *deferrer) atEnd(ctx context.Context, items []*window.Item) (rest []*window.Item) {
	var some []*window.Item
	for _, it := range items {
		if d.may(it) && d.long(it, it.Delay()) {
			some = append(some, it)
		} else {
			rest = append(rest, it)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, releaseLimit)
	defer cancel()
	_ = d.c.id.each(some, func(of int, items []*window.Item) error {
		delays := make([]time.Duration, len(items))
		for i, it := range items {
			delays[i] = it.Delay()
		}
		outcomes, _ := d.send(ctx, of, items, delays) // those without an outcome are released, if they are still pending
		for i, it := range items {
			if i < len(outcomes) && outcomes[i] == delayed.Deferred {
				d.c.cfg.Observer.Deferred()
			} else {
				rest = append(rest, it)
			}
		}
		return nil
	})
	return rest
}

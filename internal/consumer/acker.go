package consumer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/flaminco/redischannels/internal/backoff"
	"github.com/flaminco/redischannels/internal/outage"
	"github.com/flaminco/redischannels/internal/redisconn"
	"github.com/flaminco/redischannels/internal/stream"
	"github.com/flaminco/redischannels/internal/window"
)

// ackBatch is the maximum number of entries of one acknowledgement.
const ackBatch = 1000

// writing is the common part of acker and mover: they write the ends of items until flushing is
// closed and none is left.
type writing struct {
	ready    <-chan struct{}
	flushing chan struct{}
	pending  func(buf []*window.Item) []*window.Item
	write    func(ctx context.Context, items []*window.Item)
	given    func(items []*window.Item) // because the time is over
}

// run writes ends. Those that arrive while a batch is being written are the next batch, so a
// single message is acknowledged at once and many in batches.
func (w *writing) run(ctx context.Context) {
	var (
		items    []*window.Item
		flushing = w.flushing
		wait     time.Duration
		timer    = time.NewTimer(0)
	)
	defer timer.Stop()
	for {
		var retry <-chan time.Time
		if wait > 0 {
			timer.Reset(wait)
			retry = timer.C
		}
		select {
		case <-w.ready:
		case <-retry:
		case <-flushing:
			flushing = nil // check once more, then return when none is left
		case <-ctx.Done():
			if items = w.pending(items[:0]); len(items) > 0 {
				w.given(items)
			}
			return
		}
		items = w.pending(items[:0])
		if due := dueNow(items); len(due) > 0 {
			w.write(ctx, due)
		}
		wait = nextRetry(items)
		clear(items)
		if flushing == nil {
			if items = w.pending(items[:0]); len(items) == 0 {
				return
			}
			wait = max(wait, time.Millisecond)
		}
	}
}

// dueNow returns the items that are not waiting for a retry.
func dueNow(items []*window.Item) (due []*window.Item) {
	if !slices.ContainsFunc(items, func(it *window.Item) bool { return !it.Retry.IsZero() }) {
		return items
	}
	now := time.Now()
	for _, it := range items {
		if !it.Retry.After(now) {
			due = append(due, it)
		}
	}
	return due
}

// nextRetry returns the time until the next retry of the items, or 0. Items that were written
// meanwhile may be among them.
func nextRetry(items []*window.Item) (wait time.Duration) {
	for _, it := range items {
		if it.Retry.IsZero() {
			continue
		}
		if d := max(time.Until(it.Retry), time.Millisecond); wait == 0 || d < wait {
			wait = d
		}
	}
	return wait
}

// retryLater keeps an item for a later attempt; its entry stays leased.
func retryLater(items ...*window.Item) {
	now := time.Now()
	for _, it := range items {
		it.Attempts++
		it.Retry = now.Add(backoff.Redis.After(it.Attempts))
	}
}

// acker writes acknowledgements in batches: those that are given while one is being written are
// the next batch. They never wait for the mover.
type acker struct {
	writing
	c      *Consumer
	outage outage.Outage
}

func newAcker(c *Consumer) *acker {
	a := &acker{c: c}
	a.writing = writing{ready: c.win.Acks.Flush, flushing: make(chan struct{}), pending: c.win.Acks.Pending, write: a.ack, given: a.given}
	a.outage.Down = func(err error, ids []string) { c.cfg.Observer.AckFailed(ids, err) }
	return a
}

var errNotWritten = errors.New("acknowledgements could not be written in time")

func (a *acker) given(items []*window.Item) {
	a.c.cfg.Observer.Abandoned(texts(items), errNotWritten)
}

// ack writes acknowledgements: with XACK for entries whose lease is valid, and by a script that
// checks the owner for others.
func (a *acker) ack(ctx context.Context, items []*window.Item) {
	a.c.restorer.writing.RLock()
	defer a.c.restorer.writing.RUnlock()
	standings := a.c.win.Acks.Standings(items, make([]window.Standing, 0, len(items)))
	leased := make([]*window.Item, 0, len(items))
	var unsure, late, trimmed []*window.Item
	for i, it := range items {
		switch standing := standings[i]; {
		case standing == window.Lost:
			late = append(late, it)
		case standing == window.Trimmed:
			trimmed = append(trimmed, it)
		case standing == window.Leased && !it.Sent && it.Stream == 0:
			leased = append(leased, it)
		default:
			unsure = append(unsure, it)
		}
	}
	if len(late) > 0 {
		a.late(texts(late))
	}
	a.c.win.Remove(append(trimmed, late...)...)
	_ = a.c.id.each(leased, func(of int, items []*window.Item) error {
		for len(items) > 0 {
			n := min(len(items), ackBatch)
			a.plainly(ctx, of, items[:n])
			items = items[n:]
		}
		return nil
	})
	_ = a.c.id.each(unsure, func(of int, items []*window.Item) error {
		a.owned(ctx, of, items)
		return nil
	})
}

// plainly acknowledges entries whose lease is valid: no other consumer can own them.
func (a *acker) plainly(ctx context.Context, of int, items []*window.Item) {
	ids := make([]*string, len(items))
	for i, it := range items {
		ids[i] = &it.Text
	}
	n, lost, err := a.c.id.on(a.c.cfg.Client, of).Ack(ctx, ids)
	switch {
	case redisconn.Classify(err) == redisconn.KindNetwork:
		if lost {
			sent(items)
		}
		a.owned(ctx, of, items)
		return
	case err != nil:
		a.failed(of, err, items)
		return
	case n == 0:
		// The group is lost, which XACK does not report, or was re-created without these entries,
		// or by now with them. The script's result is final.
		a.owned(ctx, of, items)
		return
	}
	a.outage.Over(outage.Ack)
	a.c.win.Remove(items...)
	if missing := len(items) - int(n); missing > 0 {
		// Another client has acknowledged them without owning them.
		a.c.cfg.Observer.AckIgnored(nil, missing,
			fmt.Errorf("%d of %d acknowledged entries were not pending", missing, len(items)))
	}
}

// owned acknowledges entries whose owner is not certain, or that may already be acknowledged.
func (a *acker) owned(ctx context.Context, of int, items []*window.Item) {
	for len(items) > 0 {
		batch := items[:min(len(items), ackBatch/10)]
		ids := make([]string, len(batch))
		for i, it := range batch {
			ids[i] = it.Text
		}
		states, lost, err := a.c.id.on(a.c.cfg.Client, of).AckOwned(ctx, ids)
		if lost {
			sent(batch)
		}
		if err != nil {
			a.failed(of, err, items) // the others would fail too
			return
		}
		a.outage.Over(outage.Ack)
		var late []string
		for i, it := range batch {
			if states[i] != stream.Owned && (states[i] != stream.NotPending || !it.Sent) {
				late = append(late, it.EntryID())
			}
		}
		a.c.win.Remove(batch...)
		if len(late) > 0 {
			a.late(late)
		}
		items = items[len(batch):]
	}
}

func (a *acker) late(ids []string) { a.c.cfg.Observer.AckIgnored(ids, len(ids), nil) }

// sent records that the reply to an acknowledgement was lost: it has acknowledged the entries
// that are no longer pending.
func sent(items []*window.Item) {
	for _, it := range items {
		it.Sent = true
	}
}

func (a *acker) failed(of int, err error, items []*window.Item) {
	switch missing := a.c.restorer.missing(of, err); {
	case missing && a.c.reading.Err() != nil:
		a.late(texts(items)) // no consumer re-creates the group
		a.c.win.Remove(items...)
		return
	case !missing:
		a.outage.Failed(outage.Ack, err, texts(items)...)
		redisconn.Relocate(a.c.cfg.Client)
	}
	retryLater(items...)
}

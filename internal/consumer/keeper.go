package consumer

import (
	"context"
	"time"

	"github.com/flaminco/redischannels/internal/backoff"
	"github.com/flaminco/redischannels/internal/outage"
	"github.com/flaminco/redischannels/internal/redisconn"
	"github.com/flaminco/redischannels/internal/stream"
	"github.com/flaminco/redischannels/internal/window"
)

// keeper renews the leases of all entries in the window, and prepares deliveries that Redis has
// not counted or whose lease has expired. It uses its own connection: in the caller's pool each
// connection that has failed silently would cost a timeout.
type keeper struct {
	c       *Consumer
	control *redisconn.Control
	renew   chan struct{} // leases were voided
	ending  chan struct{} // closed: the window is empty
}

func newKeeper(c *Consumer, control *redisconn.Control) *keeper {
	return &keeper{c: c, control: control, renew: make(chan struct{}, 1), ending: make(chan struct{})}
}

// reconnected makes all leases be renewed, over a new connection.
func (k *keeper) reconnected() {
	k.control.Reset()
	signal(k.renew)
}

func (k *keeper) run(ctx context.Context) {
	tick := time.NewTicker(k.c.cfg.MinIdle / 3)
	defer tick.Stop()
	retry := time.NewTimer(time.Hour)
	defer retry.Stop()
	failures := 0
	for {
		again := false
		select {
		case <-k.ending:
			return
		case <-tick.C:
			again = k.renewAll(ctx)
		case <-k.renew:
			again = k.renewAll(ctx)
		case <-retry.C:
			again = k.renewAll(ctx) || k.prepare(ctx)
		case <-k.c.win.Leases.Prepare:
			if failures > 0 {
				continue // it is retried soon
			}
			again = k.prepare(ctx)
		}
		if !again {
			failures = 0
			continue
		}
		failures++
		retry.Reset(backoff.Redis.After(failures))
	}
}

// prepare leases the next entries and makes Redis count their deliveries in advance. It reports
// whether it must be retried.
func (k *keeper) prepare(ctx context.Context) (again bool) {
	leases := &k.c.win.Leases
	items := leases.Wanted()
	of, err := k.hold(ctx, leases.Overtaken(items), func(it *window.Item) int { return it.NextCount() - 1 }, leases.Renewed)
	if err == nil {
		of, err = k.hold(ctx, items, (*window.Item).NextCount, leases.Prepared)
	}
	if err == nil {
		k.c.outage.Over(outage.Prepare)
		return false
	}
	if !k.c.restorer.missing(of, err) && ctx.Err() == nil {
		k.c.fail(outage.Prepare, err)
	}
	return true
}

// renewAll renews the leases of all entries in the window. It reports whether it must be retried
// before the next renewal.
func (k *keeper) renewAll(ctx context.Context) (again bool) {
	items := k.c.win.Leases.Expiring(k.c.cfg.MinIdle / 6)
	of, err := k.hold(ctx, items, func(*window.Item) int { return stream.KeepCount }, k.c.win.Leases.Renewed)
	if err == nil {
		k.c.outage.Over(outage.Lease)
		return false
	}
	k.c.failed(outage.Lease, of, err)
	return redisconn.Classify(err).Retryable()
}

// hold renews the claims of items and sets their counts; it calls done with those that are still
// ours. The error is about one of the streams.
func (k *keeper) hold(ctx context.Context, items []*window.Item, count func(*window.Item) int, done func(sent time.Time, items ...*window.Item)) (of int, err error) {
	if len(items) == 0 {
		return 0, nil
	}
	var lost error // of entries that could not be put back: those of another stream are renewed all the same
	in := 0
	err = k.c.id.each(items, func(which int, items []*window.Item) error {
		of = which
		sent := time.Now()
		states, err := k.send(ctx, of, items, count)
		if err != nil {
			return err
		}
		owned, err := k.owned(ctx, of, items, states)
		done(sent, owned...)
		if err != nil {
			in, lost = of, err
		}
		return nil
	})
	if err == nil {
		of, err = in, lost
	}
	if err != nil {
		k.control.Reset()
	}
	return of, err
}

func (k *keeper) send(ctx context.Context, of int, items []*window.Item, count func(*window.Item) int) ([]stream.State, error) {
	client, err := k.control.Client(ctx)
	if err != nil {
		return nil, err
	}
	entries := make([]stream.Pending, len(items))
	for i, it := range items {
		entries[i] = stream.Pending{ID: it.ID, Text: it.Text, Count: count(it)}
	}
	states, err := k.c.id.on(client, of).Hold(ctx, entries)
	if err != nil {
		k.c.obtain.unknown.Store(true) // the command removes trimmed entries
	}
	return states, err
}

// owned returns the items of a stream that are ours still, and handles the others.
func (k *keeper) owned(ctx context.Context, of int, items []*window.Item, states []stream.State) (owned []*window.Item, err error) {
	owned = make([]*window.Item, 0, len(items))
	var vanished []*window.Item
	for i, it := range items {
		switch states[i] {
		case stream.Owned:
			owned = append(owned, it)
		case stream.Trimmed:
			k.c.restorer.trimmed(it)
		case stream.OtherOwner:
			k.c.restorer.lost(it, stream.OtherOwner)
		case stream.NotPending:
			vanished = append(vanished, it)
		}
	}
	// An entry whose end is being written looks the same after its acknowledgement, and waiting
	// for the reply would delay the next renewal.
	if vanished = k.c.win.Leases.Held(vanished); len(vanished) > 0 {
		err = k.c.restorer.vanished(ctx, of, vanished)
	}
	return owned, err
}

package consumer

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/flaminco/redischannels/internal/backoff"
	"github.com/flaminco/redischannels/internal/outage"
	"github.com/flaminco/redischannels/internal/redisconn"
	"github.com/flaminco/redischannels/internal/stream"
	"github.com/flaminco/redischannels/internal/window"
)

const (
	// staleAfter is how long an entry waits for a busy application before it is released, and
	// staleCheck the time between two checks.
	staleAfter = time.Second
	staleCheck = 250 * time.Millisecond
	// releaseLimit is the maximum time for releases at the end. Entries that are not released
	// become claimable after MinIdle.
	releaseLimit = 2 * time.Second
)

// releases returns entries to the group: they are claimable at once, or when their back-off is
// over, with the number of their deliveries. It has no goroutine.
type releases struct {
	id       *identity
	control  *redisconn.Control // whose client does not retry: the result of a second run would be wrong
	timeout  time.Duration      // of its commands
	minIdle  time.Duration
	restorer *restorer
	lost     *atomic.Bool // set if some may still be ours
	unknown  *atomic.Bool // set if a reply that may have named trimmed entries was lost
	outage   *outage.Outage
	failed   func(d outage.Duty, of int, err error)

	// until is the deadline of the last release without a reply, by the server's clock in ms, 0
	// for none. A command whose connection was lost may be executed later, when its entry would
	// be ours again.
	until atomic.Int64
}

// release releases entries. The reader finds those that were not released, or they become
// claimable after MinIdle.
func (r *releases) release(ctx context.Context, items []*window.Item) {
	_ = r.id.each(items, func(of int, items []*window.Item) error {
		entries := make([]stream.Released, len(items))
		for i, it := range items {
			entries[i] = stream.Released{
				Pending: stream.Pending{ID: it.ID, Text: it.Text, Count: it.Delivered},
				Idle:    max(0, r.minIdle-it.Delay()),
			}
		}
		states, err := r.send(ctx, of, entries)
		if err != nil {
			r.lost.Store(true)
			r.failed(outage.Release, of, err)
			return err
		}
		r.outage.Over(outage.Release)
		for i, state := range states {
			switch state {
			case stream.Trimmed:
				r.restorer.trimmed(items[i])
			case stream.Late:
				r.lost.Store(true)
			}
		}
		return nil
	})
}

func (r *releases) send(ctx context.Context, of int, entries []stream.Released) (states []stream.State, err error) {
	defer func() {
		if err != nil {
			r.control.Reset()
		}
	}()
	client, err := r.control.Client(ctx)
	if err != nil {
		return nil, err
	}
	now, err := stream.Time(ctx, client, r.id.keys[of])
	if err != nil {
		return nil, err
	}
	deadline := now.Add(client.Options().ReadTimeout)
	if states, err = r.id.on(client, of).Release(ctx, entries, deadline); err != nil {
		r.unknown.Store(true)
		r.until.Store(deadline.UnixMilli())
	}
	return states, err
}

// settle waits until a release without a reply can no longer be executed: entries that are
// obtained from then on stay ours.
func (r *releases) settle(ctx context.Context, client redis.UniversalClient) error {
	for {
		until := r.until.Load()
		if until == 0 {
			return nil
		}
		now, err := stream.Time(ctx, client, r.id.keys[0])
		if err != nil {
			return err
		}
		wait := time.UnixMilli(until).Sub(now)
		if wait > 0 && wait <= r.timeout && !backoff.Wait(ctx.Done(), wait) {
			return context.Cause(ctx)
		}
		if wait <= 0 || wait > r.timeout { // the latter with another clock
			r.until.CompareAndSwap(until, 0)
		}
	}
}

// atEnd is release for a server that may no longer be reachable: all retries of the client would
// delay the end.
func (r *releases) atEnd(ctx context.Context, items []*window.Item) {
	if len(items) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, releaseLimit)
	defer cancel()
	r.release(ctx, items)
}

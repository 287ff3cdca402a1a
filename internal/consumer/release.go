package consumer

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/flaminco/redischannels/internal/outage"
	"github.com/flaminco/redischannels/internal/redisconn"
	"github.com/flaminco/redischannels/internal/stream"
	"github.com/flaminco/redischannels/internal/window"
)

const (
	// staleAfter is how long an entry waits for a busy application before it is released, and
	// staleCheck how often that is looked at.
	staleAfter = time.Second
	staleCheck = 250 * time.Millisecond
	// releaseLimit is what releasing may take at the end. What it does not reach ages.
	releaseLimit = 2 * time.Second
)

// releases returns to the group what is not held any more: entries are claimable at once, or when
// their back-off is over, with the number of their deliveries. It has no goroutine.
type releases struct {
	id       *identity
	control  *redisconn.Control // whose client repeats nothing: what a second run found would not be the truth
	win      *window.Window
	minIdle  time.Duration
	obs      Observer
	restorer *restorer
	lost     *atomic.Bool // set where some may still be ours
	unknown  *atomic.Bool // set where a reply that may have named trimmed entries was lost
	outage   *outage.Outage
	failed   func(d outage.Duty, of int, err error)
}

// release releases entries. Those that it cannot reach are found again by the reader, or become
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
			r.unknown.Store(true)
			r.failed(outage.Control, of, err)
			return err
		}
		r.outage.Over(outage.Control)
		for i, state := range states {
			if state == stream.Trimmed {
				r.restorer.trimmed(items[i])
			}
		}
		return nil
	})
}

func (r *releases) send(ctx context.Context, of int, entries []stream.Released) ([]stream.State, error) {
	client, err := r.control.Client(ctx)
	if err != nil {
		return nil, err
	}
	states, err := r.id.on(client, of).Release(ctx, entries)
	if err != nil {
		r.control.Reset()
	}
	return states, err
}

// atEnd is release for a server that may not be there any more: all retries of the client
// would hold up the end.
func (r *releases) atEnd(ctx context.Context, items []*window.Item) {
	if len(items) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, releaseLimit)
	defer cancel()
	r.release(ctx, items)
}

package consumer

import (
	"context"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/flaminco/redischannels/internal/stream"
	"github.com/flaminco/redischannels/internal/window"
)

// ownPage is how many own pending entries are listed at once.
const ownPage = 100

// obtainer admits pending entries to the window: entries of this consumer that are not in the
// window, because their reply was lost or their ordering key had too many, and entries that were
// claimed from other consumers or after a release.
type obtainer struct {
	c *Consumer

	lost    atomic.Bool // entries may be assigned to us by a lost reply
	unknown atomic.Bool // a reply that may have named trimmed entries was lost

	// mu is held over the commands that obtain entries, so that a claimed entry that is not yet
	// admitted is not mistaken for one of a lost reply.
	mu sync.Mutex
}

func newObtainer(c *Consumer) *obtainer { return &obtainer{c: c} }

// provenance is the origin of pending entries, which determines the meaning of their delivery
// counts in Redis. The counts of released entries are exact. For other entries a count of 1 has
// no meaning, because a read counts 1 in advance, even for entries that are only buffered: an
// uncertain delivery does not count.
type provenance struct {
	own      bool                     // they were assigned to this consumer before
	released map[string]bool          // these were released
	backoff  map[string]time.Duration // all of them were released; the rest of their back-offs
}

func (p provenance) exact(id string) bool { return p.backoff != nil || p.released[id] }

// describe completes an item with its count in Redis. known means that the count is exact.
func (p provenance) describe(it *window.Item, count int, known bool) {
	exact := known || p.exact(it.Text)
	if it.Delivered = count; count == 1 && !exact {
		it.Delivered = 0
	}
	it.Counted = count == it.Delivered+1 && p.own
	it.Suspect = count > it.Delivered && !p.own
	it.Alone = it.Delivered >= 2 && !exact
	it.Backoff = p.backoff[it.Text]
}

// begin takes the lock for commands that obtain entries.
func (o *obtainer) begin(ctx context.Context, client redis.UniversalClient) error {
	o.mu.Lock()
	if err := o.c.releases.settle(ctx, client); err != nil {
		o.mu.Unlock()
		return err
	}
	return nil
}

// own fetches the entries that are pending for this consumer and not in the window.
func (o *obtainer) own(ctx context.Context, client redis.UniversalClient) error {
	if err := o.begin(ctx, client); err != nil {
		return err
	}
	defer o.mu.Unlock()
	o.lost.Store(false)
	o.c.win.BeginPass()
	complete := false
	defer func() { o.c.win.EndPass(complete) }()
	for of := range o.c.id.keys {
		group := o.c.id.on(client, of)
		err := o.eachUnseen(ctx, group, of, func(page []stream.Pending) error {
			sent := time.Now()
			held, err := o.hold(ctx, group, page)
			if err != nil {
				return err
			}
			return o.fetch(ctx, group, of, held, sent, provenance{own: true})
		})
		if err != nil {
			o.lost.Store(true)
			return err
		}
	}
	complete = true
	return nil
}

// eachUnseen calls f with pages of the entries that are pending for this consumer and not in the
// window.
func (o *obtainer) eachUnseen(ctx context.Context, group *stream.Group, of int, f func([]stream.Pending) error) error {
	var after stream.ID
	for {
		page, err := group.Own(ctx, after, ownPage)
		if err != nil || len(page) == 0 {
			return err
		}
		after = page[len(page)-1].ID
		full := len(page) == ownPage
		held := o.c.win.Leases.IDs()
		unseen := page[:0]
		for _, p := range page {
			if _, ok := held[window.Identity{Stream: of, ID: p.ID}]; !ok {
				unseen = append(unseen, p)
			}
		}
		if len(unseen) > 0 {
			if err := f(unseen); err != nil {
				return err
			}
		}
		if !full {
			return nil
		}
	}
}

// hold renews the claims of own entries that are not in the window, and returns the IDs of those
// that the stream has. The others leave the group.
func (o *obtainer) hold(ctx context.Context, group *stream.Group, page []stream.Pending) ([]string, error) {
	for i := range page {
		page[i].Count = stream.KeepCount
	}
	states, err := group.Hold(ctx, page)
	if err != nil {
		o.unknown.Store(true)
		return nil, err
	}
	var ids, trimmed []string
	for i, state := range states {
		switch state {
		case stream.Owned:
			ids = append(ids, page[i].Text)
		case stream.Trimmed:
			trimmed = append(trimmed, page[i].Text)
		}
	}
	if len(trimmed) > 0 {
		o.c.cfg.Observer.Trimmed(trimmed, len(trimmed))
	}
	return ids, nil
}

// released claims up to limit released entries that no other consumer has claimed. Those whose
// back-off is not over wait for it here, and block the entries behind them. more means that there
// may be others.
func (o *obtainer) released(ctx context.Context, client redis.UniversalClient, limit int) (more bool, err error) {
	if err := o.begin(ctx, client); err != nil {
		return true, err
	}
	defer o.mu.Unlock()
	for of := range o.c.id.keys {
		group := o.c.id.on(client, of)
		sent := time.Now()
		found, err := group.Reclaim(ctx, limit)
		if err != nil {
			o.lost.Store(true)
			o.unknown.Store(true)
			return true, err
		}
		o.trimmed(of, found.Trimmed)
		backoff := make(map[string]time.Duration, len(found.IDs))
		for i, id := range found.IDs {
			backoff[id] = o.c.cfg.MinIdle - found.Idle[i]
		}
		if err := o.fetch(ctx, group, of, found.IDs, sent, provenance{backoff: backoff}); err != nil {
			return true, err
		}
		more = more || len(found.IDs)+len(found.Trimmed) == limit
	}
	return more, nil
}

// trimmed reports entries that have left the group because the stream no longer has them. Redis 7
// checks this before idle times, so a consumer may have some of them in its window.
func (o *obtainer) trimmed(of int, ids []string) {
	held, rest := o.c.win.Leases.Find(of, ids)
	for _, it := range held {
		o.c.restorer.trimmed(it)
	}
	if len(rest) > 0 {
		o.c.cfg.Observer.Trimmed(rest, len(rest))
	}
}

// fetch reads the fields of entries that were assigned to this consumer at leased, and admits
// them.
func (o *obtainer) fetch(ctx context.Context, group *stream.Group, of int, ids []string, leased time.Time, from provenance) error {
	// A scan also claims entries of this window, if the server was unreachable for longer than
	// MinIdle. The window is therefore read before and after: an entry that was acknowledged and
	// removed meanwhile would otherwise be mistaken for a new one and released.
	before := o.c.win.Leases.IDs()
	for len(ids) > 0 {
		fetched, err := group.Fetch(ctx, ids)
		if err != nil {
			o.lost.Store(true)
			o.unknown.Store(true)
			return err
		}
		ids = ids[len(fetched):]
		held := o.c.win.Leases.IDs() // includes entries that the reader has admitted meanwhile
		maps.Copy(held, before)
		o.admit(of, fetched, held, leased, from)
	}
	return nil
}

// admit is the second half of fetch.
func (o *obtainer) admit(of int, fetched []stream.Fetched, held map[window.Identity]struct{}, leased time.Time, from provenance) {
	var trimmed, recovered []string
	items := make([]window.Item, 0, len(fetched))
	for _, f := range fetched {
		switch f.State {
		case stream.Owned:
			if _, ok := held[window.Identity{Stream: of, ID: f.Entry.ID}]; ok {
				continue
			}
			it := window.Item{Entry: f.Entry, Stream: of}
			from.describe(&it, f.Count, o.c.win.Exact(it.Identity()))
			o.prepare(&it)
			items = append(items, it)
			recovered = append(recovered, it.EntryID())
			o.c.restorer.saw(of, f.Entry.ID, 0)
		case stream.Trimmed:
			trimmed = append(trimmed, f.Entry.Text)
		case stream.OtherOwner, stream.NotPending:
			// Another consumer was faster; the entry is not here.
		}
	}
	o.c.win.Admit(items, leased)
	if len(recovered) > 0 {
		o.c.cfg.Observer.Recovered(recovered)
	}
	if len(trimmed) > 0 {
		o.c.cfg.Observer.Trimmed(trimmed, len(trimmed))
	}
}

// prepare completes an item that may have been delivered before.
func (o *obtainer) prepare(it *window.Item) {
	o.c.prepare(it)
	if most := o.c.cfg.MaxDeliveries; most > 0 && it.Deliveries() >= most {
		it.Reason = exhausted(it.Deliveries())
	}
}

// releaseUnseen releases the entries that are pending for this consumer and not in the window. No
// read may be in progress: its entries are not in the window yet.
func (o *obtainer) releaseUnseen(ctx context.Context) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.c.win.Share()
	for of := range o.c.id.keys {
		group := o.c.id.on(o.c.cfg.Client, of) // the client may retry a list
		err := o.eachUnseen(ctx, group, of, func(page []stream.Pending) error {
			entries := make([]stream.Released, len(page))
			for i, p := range page {
				if p.Count == 1 && !o.c.win.Exact(window.Identity{Stream: of, ID: p.ID}) {
					p.Count = 0 // see provenance
				}
				entries[i] = stream.Released{Pending: p, Idle: o.c.cfg.MinIdle}
			}
			states, err := o.c.releases.send(ctx, of, entries)
			for i, state := range states {
				if state == stream.Trimmed {
					o.c.cfg.Observer.Trimmed([]string{page[i].Text}, 1)
				}
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

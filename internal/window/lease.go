package window

import (
	"time"

	"github.com/flaminco/redischannels/internal/source"
	"github.com/flaminco/redischannels/internal/stream"
)

// Leases is the ownership state of the items in the window. All of it is guarded by the lock of
// the window.
type Leases struct {
	w *Window

	// Prepare receives a value when there may be Wanted items.
	Prepare chan struct{}

	voided instant
}

// valid reports whether no other consumer can own the entry: until the end of its lease, which is
// computed here and nowhere else.
func (l *Leases) valid(it *Item, now instant) bool {
	return it.owner == ownerSelf && it.leased > l.voided && l.unexpired(it, now)
}

// unexpired is valid for an item whose lease may be void.
func (l *Leases) unexpired(it *Item, now instant) bool {
	return l.w.cfg.LeaseTime == 0 || now-it.leased < instant(l.w.cfg.LeaseTime)
}

// prepared reports whether an item can be delivered: Redis has counted the delivery and the lease
// is valid, or the stream no longer has it.
func (l *Leases) prepared(it *Item, now instant) bool {
	return l.w.cfg.LeaseTime == 0 || it.owner == ownerTrimmed || it.Counted && l.valid(it, now)
}

// triedFor is how long a caller that did not wait counts as waiting.
const triedFor = time.Second

// Wanted returns the next items, as many as callers wait for, that cannot be delivered before
// Prepared. Items behind them are not counted in advance: if one of the next items ends the
// process, the process has not delivered them.
func (l *Leases) Wanted() []*Item {
	w := l.w
	now := w.now()
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed || w.alone || w.Pause.paused || w.resting(now) || w.blocked(w.begun) {
		return nil
	}
	wanted := w.wanted
	if w.tried > 0 && now-w.tried < instant(triedFor) {
		wanted = max(wanted, 1)
	}
	room := min(wanted, w.cfg.MaxInFlight-w.active.n)
	var items []*Item
	for it := w.waiting.head; it != nil && room > 0; it = it.next {
		if it.Alone && (w.active.n > 0 || it != w.waiting.head) {
			break
		}
		if !l.prepared(it, now) {
			items = append(items, it)
		}
		if it.Alone {
			break
		}
		room--
	}
	return items
}

// Overtaken returns the items whose next delivery Redis counts in advance, beyond the count of a
// read, and that are behind an earlier entry claimed since: that one is delivered first, and may
// end the process. They are no longer prepared, and their counts must be reduced in Redis.
func (l *Leases) Overtaken(by []*Item) (items []*Item) {
	l.w.mu.Lock()
	defer l.w.mu.Unlock()
	for _, first := range by {
		for it := first.next; it != nil && first.in == &l.w.waiting; it = it.next {
			if it.Counted && it.NextCount() > 1 {
				it.Counted = false
				items = append(items, it)
			}
		}
	}
	return items
}

// Prepared records that a command sent at sent has renewed the leases of items and counted their
// next deliveries.
func (l *Leases) Prepared(sent time.Time, items ...*Item) {
	l.renew(sent, items, func(it *Item) { it.Counted = true })
}

// NextCount is the count that Redis must have before the next delivery of an item. For an item
// that may have been delivered once it is 2: otherwise each process that it kills would leave it
// with a count of 1.
func (it *Item) NextCount() int {
	if it.Suspect && it.Delivered == 0 {
		return 2
	}
	return it.Delivered + 1
}

// Renewed records that a command sent at sent has renewed the leases of items. A delivered item
// gets its own memory: its handler may take long, and a small entry would keep its complete
// reply.
func (l *Leases) Renewed(sent time.Time, items ...*Item) {
	l.renew(sent, items, func(it *Item) {
		if it.in == &l.w.active {
			it.detach()
		}
	})
}

func (l *Leases) renew(sent time.Time, items []*Item, also func(*Item)) {
	leased := l.w.instant(sent)
	l.w.mu.Lock()
	defer l.w.mu.Unlock()
	for _, it := range items {
		if it.in != nil {
			it.leased = leased
			also(it)
		}
		if it.in == &l.w.waiting { // it can be delivered, also if only its lease was over
			signal(l.w.Ready)
		}
	}
}

// Void ends all leases: after a reconnect the server may have lost them.
func (l *Leases) Void() {
	now := l.w.now()
	l.w.mu.Lock()
	l.voided = now
	l.w.mu.Unlock()
}

// Expiring returns the items whose lease is older than age or void. Trimmed and lost items have
// no lease.
func (l *Leases) Expiring(age time.Duration) []*Item {
	w := l.w
	before := w.now() - instant(age)
	w.mu.Lock()
	defer w.mu.Unlock()
	var items []*Item
	w.each(func(it *Item) {
		if it.owner == ownerSelf && (it.leased < before || it.leased <= l.voided) {
			items = append(items, it)
		}
	})
	return items
}

// Held returns those of the items that are in the window and whose end is not being written.
func (l *Leases) Held(items []*Item) []*Item {
	l.w.mu.Lock()
	defer l.w.mu.Unlock()
	var held []*Item
	for _, it := range items {
		if it.in != nil && !l.w.Acks.has(it) {
			held = append(held, it)
		}
	}
	return held
}

// Unexpired parts items by whether no other consumer can have claimed them since their leases were
// renewed: those that are neither ended nor lost and whose lease has not run out.
func (l *Leases) Unexpired(items []*Item) (yes, no []*Item) {
	w := l.w
	now := w.now()
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, it := range items {
		if it.in != nil && !w.Acks.has(it) && it.owner == ownerSelf && l.unexpired(it, now) {
			yes = append(yes, it)
		} else {
			no = append(no, it)
		}
	}
	return yes, no
}

// Counts returns the delivery counts that items should have in Redis.
func (l *Leases) Counts(items []*Item) []stream.Pending {
	l.w.mu.Lock()
	defer l.w.mu.Unlock()
	pending := make([]stream.Pending, 0, len(items))
	for _, it := range items {
		pending = append(pending, it.pending())
	}
	return pending
}

func (it *Item) pending() stream.Pending {
	count := it.Delivered
	if it.Counted {
		count++
	}
	return stream.Pending{ID: it.ID, Text: it.Text, Count: count}
}

// Owned returns the items of a stream that are in Redis and ours.
func (l *Leases) Owned(of int) []*Item {
	l.w.mu.Lock()
	defer l.w.mu.Unlock()
	var items []*Item
	l.w.each(func(it *Item) {
		if it.Stream == of && it.owner == ownerSelf {
			items = append(items, it)
		}
	})
	return items
}

// IDs returns the identities of all items that are in Redis.
func (l *Leases) IDs() map[Identity]struct{} {
	l.w.mu.Lock()
	defer l.w.mu.Unlock()
	ids := make(map[Identity]struct{}, l.w.held())
	l.w.each(func(it *Item) {
		if it.owner != ownerTrimmed {
			ids[it.Identity()] = struct{}{}
		}
	})
	return ids
}

// Find returns the items of these entries of a stream, and the IDs without an item.
func (l *Leases) Find(of int, ids []string) (items []*Item, rest []string) {
	if len(ids) == 0 {
		return nil, nil
	}
	l.w.mu.Lock()
	defer l.w.mu.Unlock()
	held := make(map[string]*Item, l.w.held())
	l.w.each(func(it *Item) {
		if it.Stream == of {
			held[it.Text] = it
		}
	})
	for _, id := range ids {
		if it := held[id]; it != nil {
			items = append(items, it)
		} else {
			rest = append(rest, id)
		}
	}
	return items, rest
}

// Lose records, once, that an item belongs to another consumer, or to none. An item that is not
// in flight is removed; otherwise Lose returns its attempt. vanished means that it belongs to
// none: for an item whose end is being written this is the state after its acknowledgement.
func (l *Leases) Lose(it *Item, vanished bool) (a *source.Attempt, first bool) {
	w := l.w
	w.mu.Lock()
	defer w.mu.Unlock()
	if it.in == nil || it.owner != ownerSelf || vanished && w.Acks.has(it) {
		return nil, false
	}
	it.owner = ownerOther
	switch {
	case it.in == &w.active:
		return it.attempt, true
	case !w.Acks.has(it):
		w.remove(it)
		w.changed()
	}
	return nil, true
}

// Trim records, once, that the stream no longer has the entry of an item. The item stays in
// memory.
func (l *Leases) Trim(it *Item) (first bool) {
	l.w.mu.Lock()
	defer l.w.mu.Unlock()
	first = it.owner != ownerTrimmed
	it.owner = ownerTrimmed
	signal(l.w.Ready)
	return first
}

// Lost reports whether an item belongs to another consumer.
func (l *Leases) Lost(it *Item) bool { return l.is(it, ownerOther) }

// Trimmed reports whether the stream no longer has the entry of an item.
func (l *Leases) Trimmed(it *Item) bool { return l.is(it, ownerTrimmed) }

func (l *Leases) is(it *Item, who owner) bool {
	l.w.mu.Lock()
	defer l.w.mu.Unlock()
	return it.owner == who
}

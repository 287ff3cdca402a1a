package window

import (
	"time"

	"github.com/flaminco/redischannels/internal/stream"
)

// Expiring returns the items whose lease is older than age or void. Those that are
// gone or lost have none.
func (w *Window) Expiring(age time.Duration) []*Item {
	before := w.now() - instant(age)
	w.mu.Lock()
	defer w.mu.Unlock()
	var items []*Item
	w.each(func(it *Item) {
		if !it.gone && !it.lost && (it.leased < before || it.leased <= w.voided) {
			items = append(items, it)
		}
	})
	return items
}

// Held returns those of the items that are held still.
func (w *Window) Held(items []*Item) []*Item {
	w.mu.Lock()
	defer w.mu.Unlock()
	held := make([]*Item, 0, len(items))
	for _, it := range items {
		if it.in != nil {
			held = append(held, it)
		}
	}
	return held
}

// Unsettled returns those of the items that are held and not being settled.
func (w *Window) Unsettled(items []*Item) []*Item {
	w.mu.Lock()
	defer w.mu.Unlock()
	var unsettled []*Item
	for _, it := range items {
		if it.in != nil && it.in != &w.settling {
			unsettled = append(unsettled, it)
		}
	}
	return unsettled
}

// Pending returns the held entries with the delivery counts that Redis should have.
func (w *Window) Pending() []stream.Pending {
	w.mu.Lock()
	defer w.mu.Unlock()
	pending := make([]stream.Pending, 0, w.held())
	w.each(func(it *Item) {
		if it.gone || it.lost {
			return
		}
		pending = append(pending, it.pending())
	})
	return pending
}

func (it *Item) pending() stream.Pending {
	count := it.Handed
	if it.Counted {
		count++
	}
	return stream.Pending{ID: it.ID, Text: it.Text, Count: count}
}

// IDs returns the IDs of all held items that Redis has.
func (w *Window) IDs() map[stream.ID]struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	ids := make(map[stream.ID]struct{}, w.held())
	w.each(func(it *Item) {
		if !it.gone {
			ids[it.ID] = struct{}{}
		}
	})
	return ids
}

// Find returns the held items among these IDs, and the IDs of which none is held.
func (w *Window) Find(ids []string) (items []*Item, rest []string) {
	if len(ids) == 0 {
		return nil, nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	held := make(map[string]*Item, w.held())
	w.each(func(it *Item) { held[it.Text] = it })
	for _, id := range ids {
		if it := held[id]; it != nil {
			items = append(items, it)
		} else {
			rest = append(rest, id)
		}
	}
	return items, rest
}

// leased reports whether the lease of the item holds.
func (w *Window) leased(it *Item, now instant) bool {
	return !it.lost && !it.gone && it.leased > w.voided && now-it.leased < instant(w.cfg.LeaseTime)
}

// Unexpired parts items by whether nobody else can have taken them since their leases
// were renewed: those that are neither settled nor lost and whose lease has not run out.
// pending are these with the delivery counts that Redis should have.
func (w *Window) Unexpired(items []*Item) (yes []*Item, pending []stream.Pending, no []*Item) {
	now := w.now()
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, it := range items {
		if it.in != nil && it.in != &w.settling && !it.lost && !it.gone && now-it.leased < instant(w.cfg.LeaseTime) {
			yes, pending = append(yes, it), append(pending, it.pending())
		} else {
			no = append(no, it)
		}
	}
	return yes, pending, no
}

// Renewed starts the leases anew from the sending of the command that did it.
func (w *Window) Renewed(sent time.Time, items ...*Item) {
	leased := w.instant(sent)
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, it := range items {
		it.leased = leased
	}
}

// Void ends all leases: what a server knew before a reconnect may be gone.
func (w *Window) Void() {
	now := w.now()
	w.mu.Lock()
	w.voided = now
	w.mu.Unlock()
}

// Lose marks an item as not owned any more, once. One that nobody handles is
// forgotten. For one that is offered or handled it returns the value of Offer.
// vanished says that nobody owns it: for an item that is being settled that is
// just what its settlement looks like, so it is left alone.
func (w *Window) Lose(it *Item, vanished bool) (value any, first bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if it.in == nil || it.lost || vanished && it.in == &w.settling {
		return nil, false
	}
	it.lost = true
	if it.in == &w.active {
		return it.value, true
	}
	if it.in != &w.settling {
		w.remove(it)
		w.wakeAll()
	}
	return nil, true
}

// Lost reports whether the item is owned by somebody else.
func (w *Window) Lost(it *Item) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return it.lost
}

// SetGone marks an item whose entry Redis no longer has. It lives on in memory.
func (w *Window) SetGone(it *Item) (first bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	first = !it.gone
	it.gone = true
	return first
}

// Gone reports whether Redis no longer has the entry.
func (w *Window) Gone(it *Item) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return it.gone
}

package window

import "time"

// offer records that an item in flight is offered: the application has not received it yet.
func (w *Window) offer(it *Item) {
	it.offered, it.recalled = true, false
	w.offers++
	w.Pause.watch()
}

func (w *Window) unoffer(it *Item) {
	if it.offered {
		it.offered = false
		w.offers--
	}
}

// eachOffer calls f with every item that is offered. They are the last ones in flight.
func (w *Window) eachOffer(f func(*Item)) {
	left := w.offers
	for it := w.active.tail; left > 0; it = it.prev {
		if it.offered {
			left--
			f(it)
		}
	}
}

// recallOlder recalls the offered items if one of them was admitted longer ago than age, and
// reports that. A trimmed item is only in memory, and is not recalled.
func (w *Window) recallOlder(now, age instant) (recalled bool) {
	w.eachOffer(func(it *Item) {
		recalled = recalled || it.owner != ownerTrimmed && now-it.admitted > age
	})
	if recalled {
		w.eachOffer(func(it *Item) { it.recalled = true })
	}
	return recalled
}

// Recalled reports whether an offered item must be withdrawn, because it was recalled or lost, or
// the group is paused. An item that was trimmed since is only in memory, and stays.
func (w *Window) Recalled(it *Item) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.Pause.paused || it.recalled && it.owner != ownerTrimmed || it.owner == ownerOther
}

// Withdraw removes an item whose offer was recalled. Withdrawn returns it.
func (w *Window) Withdraw(it *Item) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if it.in != &w.active {
		return
	}
	w.rest = w.now().after(time.Second) // until RestRecalled sets the time: nothing overtakes it
	w.remove(it)
	w.recall = append(w.recall, it)
	w.leaving++
}

// Withdrawn returns the items that Withdraw has removed, all of a batch together: none as long as
// an item is still offered.
func (w *Window) Withdrawn() []*Item {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.offers > 0 || len(w.recall) == 0 {
		return nil
	}
	items := w.recall
	w.recall = nil
	w.changed()
	return items
}

package window

import "time"

// Acks are the items that have ended and whose end must be written to Redis. The lock of the
// window guards them.
type Acks struct {
	w *Window

	Flush chan struct{} // there are items to acknowledge
	Moves chan struct{} // there are items to dead-letter or to defer

	acks  list
	moves list
}

func (a *Acks) has(it *Item) bool { return it.in == &a.acks || it.in == &a.moves }

// Ack ends an item in flight that was acknowledged. If it is still in Redis and ours it waits for
// the write of its acknowledgement, otherwise it is removed. It reports whether the item belongs
// to another consumer, or was abandoned.
func (a *Acks) Ack(it *Item) (lost bool) {
	w := a.w
	now := w.now()
	w.mu.Lock()
	defer w.mu.Unlock()
	if it.in != &w.active {
		return true
	}
	w.completed(now)
	if it.probe {
		w.shed()
	}
	if it.owner != ownerSelf {
		w.remove(it)
		w.changed()
		return it.owner == ownerOther
	}
	a.push(it, &a.acks)
	signal(a.Flush)
	return false
}

// Move ends an item, in flight or buffered, that is dead-lettered with a reason.
func (a *Acks) Move(it *Item, reason string) {
	w := a.w
	now := w.now()
	w.mu.Lock()
	defer w.mu.Unlock()
	switch it.in {
	case nil:
		return
	case &w.active:
		w.completed(now)
	}
	it.Reason = reason
	a.push(it, &a.moves)
	signal(a.Moves)
}

// Defer ends an item in flight whose retry after a delay is deferred. With counts false its
// delivery is subtracted.
func (a *Acks) Defer(it *Item, delay time.Duration, counts bool, reason string) {
	w := a.w
	now := w.now()
	w.mu.Lock()
	defer w.mu.Unlock()
	if it.in != &w.active {
		return
	}
	w.completed(now)
	if !counts {
		it.Delivered--
		it.Counted = true
	}
	it.Reason = reason
	a.postpone(it, now.after(delay))
}

func (a *Acks) postpone(it *Item, due instant) {
	it.detach() // it may stay for a long time
	it.due = due
	it.Deferred = true
	a.push(it, &a.moves)
	signal(a.Moves)
}

// Keep makes an item wait for its retry in the window, because it cannot be deferred. An item
// that was lost meanwhile is removed.
func (a *Acks) Keep(it *Item) {
	w := a.w
	now := w.now()
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case it.in != &a.moves:
		return
	case it.owner == ownerOther:
		w.remove(it)
		w.changed()
		return
	}
	it.leave()
	it.Deferred, it.Reason, it.Attempts, it.Retry = false, "", 0, time.Time{}
	if w.cfg.Keyed {
		w.keys.count(it)
	}
	it.Backoff = time.Duration(max(0, it.due-now))
	w.resumeBackoff(it, now)
	w.changed()
}

// Left returns the remaining delays of the retries of items.
func (a *Acks) Left(items []*Item) []time.Duration {
	w := a.w
	now := w.now()
	w.mu.Lock()
	defer w.mu.Unlock()
	left := make([]time.Duration, len(items))
	for i, it := range items {
		left[i] = time.Duration(max(0, it.due-now))
	}
	return left
}

func (a *Acks) push(it *Item, to *list) {
	w := a.w
	if it.in == &w.active {
		w.land(it)
	} else {
		w.keys.leave(it)
	}
	it.Message = nil
	if w.cfg.Keyed {
		w.exitKey(it)
	}
	to.push(it)
	w.changed()
}

// Pending appends the items to acknowledge, in the order in which they ended.
func (a *Acks) Pending(buf []*Item) []*Item { return a.list(&a.acks, buf) }

// PendingMoves appends the items to move.
func (a *Acks) PendingMoves(buf []*Item) []*Item { return a.list(&a.moves, buf) }

func (a *Acks) list(l *list, buf []*Item) []*Item {
	a.w.mu.Lock()
	defer a.w.mu.Unlock()
	for it := l.head; it != nil; it = it.next {
		buf = append(buf, it)
	}
	return buf
}

// Standing is the last known state of the entry of an item.
type Standing uint8

// The standings.
const (
	Leased  Standing = iota // no other consumer can own it
	Unknown                 // its lease is over
	Trimmed                 // the stream no longer has it
	Lost                    // another consumer owns it, or none
)

// Standings appends the standing of each item.
func (a *Acks) Standings(items []*Item, buf []Standing) []Standing {
	w := a.w
	now := w.now()
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, it := range items {
		standing := Unknown
		switch {
		case it.owner == ownerOther:
			standing = Lost
		case it.owner == ownerTrimmed:
			standing = Trimmed
		case w.Leases.valid(it, now):
			standing = Leased
		}
		buf = append(buf, standing)
	}
	return buf
}

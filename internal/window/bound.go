package window

import (
	"maps"
	"slices"
	"time"
)

// resumeBackoff makes an item wait for the rest of a back-off that began in another consumer.
func (w *Window) resumeBackoff(it *Item, now instant) {
	if w.cfg.Keyed {
		w.keys.own(it)
	}
	it.detach()
	it.due = now.after(it.Backoff)
	w.backoff.insertByDue(it)
	w.block(it)
}

// exitKey lets the next item of a key continue.
func (w *Window) exitKey(it *Item) {
	if it.ownsKey {
		w.advance(w.keys.free(it))
	}
	if w.keys.exit(it) {
		signal(w.Room.Changed)
	}
}

// advance buffers the next item of a key.
func (w *Window) advance(next *Item) {
	if next != nil {
		w.waiting.insertByID(next)
	}
}

// block bounds the items of a key whose first item is blocked: its last items leave the window.
func (w *Window) block(it *Item) {
	if !w.cfg.Keyed || !it.ownsKey || !w.keys.block(it) {
		return
	}
	for _, last := range w.sheddable(it.Key) {
		w.forget(last)
		w.remove(last)
		signal(w.Ready) // the remaining items may have waited behind it
		if !w.keys.block(it) {
			return
		}
	}
}

// sheddable returns the items of a key that may leave the window, the last ones first. They are
// behind all owners of the key, and not only in memory.
func (w *Window) sheddable(key string) []*Item {
	var owner *Item // the last one
	var items []*Item
	w.each(func(it *Item) {
		switch {
		case it.Key != key || w.Acks.has(it):
		case !it.ownsKey && it.owner == ownerSelf:
			items = append(items, it)
		case it.ownsKey && (owner == nil || owner.before(it)):
			owner = it
		}
	})
	items = slices.DeleteFunc(items, func(it *Item) bool { return it.before(owner) })
	slices.SortFunc(items, func(a, b *Item) int {
		if b.before(a) {
			return -1
		}
		return 1
	})
	return items
}

// BlockLong bounds the items of keys whose item has been in flight for longer than long.
func (w *Window) BlockLong(long time.Duration) {
	if !w.cfg.Keyed {
		return
	}
	now := w.now()
	w.mu.Lock()
	defer w.mu.Unlock()
	for it := w.active.head; it != nil; it = it.next {
		if now-it.started > instant(long) {
			w.block(it)
		}
	}
}

// DetachLong gives items that have been in flight for longer than long their own memory: a small
// one would keep its complete reply.
func (w *Window) DetachLong(long time.Duration) {
	now := w.now()
	w.mu.Lock()
	defer w.mu.Unlock()
	for it := w.active.head; it != nil; it = it.next {
		if now-it.started > instant(long) {
			it.detach()
		}
	}
}

// leaveOut does not admit an item.
func (w *Window) leaveOut(it *Item) {
	w.forget(it)
	it.Release()
}

// forget records that the count of a delivered item is exact: Redis counts 1 even for an entry
// that was only read.
func (w *Window) forget(it *Item) {
	if it.Delivered > 0 && !it.Alone {
		w.exact[it.Identity()] = w.passes
	}
}

// Exact reports whether the count of an entry that was left out is that of its deliveries.
func (w *Window) Exact(id Identity) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	_, ok := w.exact[id]
	return ok
}

// LeftOut reports whether entries were left out because of their ordering keys since Share.
func (w *Window) LeftOut() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.keys.leftOut
}

// Share records that the entries that were left out are about to be released to other consumers.
func (w *Window) Share() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.keys.leftOut = false
}

// Drained reports whether pending entries that were left out must be read again.
func (w *Window) Drained() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return !w.closed && (w.behind || w.keys.drained())
}

// Behind reports whether pending entries of an order were left out that are before all others.
func (w *Window) Behind() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.behind
}

// Leaving reports whether items of TakeStale or Withdrawn may still be ours in Redis, so that
// pending entries without an item must not count as those of a lost reply. Room.Changed is
// signaled when this is over.
func (w *Window) Leaving() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.leaving > 0
}

// Released records that n items of TakeStale or Withdrawn were released, if possible.
func (w *Window) Released(n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.leaving -= n
	signal(w.Room.Changed)
}

// BeginPass begins a pass: until EndPass, the pending entries without an item are passed to Admit
// in stream order.
func (w *Window) BeginPass() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.keys.begin()
	w.passes++
	w.passing, w.behind = w.behind, false
}

// EndPass ends a pass. complete means that all of them were passed.
func (w *Window) EndPass(complete bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.keys.end(complete)
	w.behind = w.behind || w.passing && !complete
	if complete { // entries that were left out before, and not again, belong to other consumers
		maps.DeleteFunc(w.exact, func(_ Identity, pass int) bool { return pass < w.passes })
	}
}

package window

import "time"

// land removes an item from those in flight.
func (w *Window) land(it *Item) {
	it.leave()
	it.attempt = nil
	w.unoffer(it)
	if it.Alone {
		w.alone = false
	}
	if w.cfg.Keyed {
		w.advance(w.keys.land(it))
	}
}

// Return buffers an offered item that was not received.
func (w *Window) Return(it *Item) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if it.in != &w.active {
		return
	}
	w.land(it)
	w.waiting.insertByID(it)
	w.changed()
}

// Backoff makes an item in flight wait for delay before it is delivered again, in the sub-batch split.
func (w *Window) Backoff(it *Item, delay time.Duration, split int) {
	now := w.now()
	w.mu.Lock()
	defer w.mu.Unlock()
	if it.in != &w.active {
		return
	}
	w.completed(now)
	it.split = split
	w.postpone(it, now.after(delay))
}

// Uncount is Backoff for a delivery that does not count, here and in Redis, whose count then
// already includes the next one.
func (w *Window) Uncount(it *Item, delay time.Duration) {
	now := w.now()
	w.mu.Lock()
	defer w.mu.Unlock()
	if it.in != &w.active {
		return
	}
	it.Delivered--
	it.Counted = true
	w.postpone(it, now.after(delay))
}

func (w *Window) postpone(it *Item, due instant) {
	it.detach() // it may outlive the rest of its reply
	w.land(it)
	it.due = due
	w.backoff.insertByDue(it)
	w.block(it)
	w.changed()
}

// Finish removes an item in flight that needs no acknowledgement.
func (w *Window) Finish(it *Item) {
	now := w.now()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.completed(now)
	w.remove(it)
	w.changed()
}

// Remove removes items.
func (w *Window) Remove(items ...*Item) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, it := range items {
		w.remove(it)
	}
	w.changed()
}

func (w *Window) remove(it *Item) {
	if it.in == nil {
		return
	}
	counted := w.cfg.Keyed && !w.Acks.has(it)
	if it.in == &w.active {
		w.land(it)
	} else {
		w.keys.leave(it)
	}
	it.Release() // the items of a page are one piece of memory, and so is their reply
	w.Room.bytes -= it.Size
	if counted {
		w.exitKey(it)
	}
}

// completed records that a delivery has ended.
func (w *Window) completed(now instant) {
	w.moved = now
	w.Room.completed(now)
}

// changed signals that room or a slot became free.
func (w *Window) changed() {
	signal(w.Ready)
	if w.Room.guess() {
		signal(w.Room.Changed)
	}
}

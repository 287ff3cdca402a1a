package window

import "github.com/flaminco/redischannels/internal/source"

// Batch is the batch of one caller, taken by one call of Take or several.
type Batch struct {
	Full bool // the next item cannot join it

	number int
	wanted int // more that its caller waits for
	n      int
	bytes  int
	split  int // of all its items
}

// Take appends attempts at the items that may be delivered now in a batch, in stream order, until
// the batch has reached the limits. It appends none if the next one must be prepared first (see
// Leases.Wanted).
func (w *Window) Take(dst []*source.Attempt, limits source.Limits, b *Batch) []*source.Attempt {
	now := w.now()
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed || w.resting(now) {
		return dst
	}
	w.rest = 0 // only here: until a caller has checked, Due returns it
	w.wake(now)
	if w.blocked(b.n) {
		return dst
	}
	if b.n == 0 {
		w.batches++
		b.number = w.batches
	}
	first := len(dst)
	for b.n < limits.Max && !b.Full {
		it := w.next(b, limits.Bytes, now)
		if it == nil {
			break
		}
		b.add(it, w.splitOf(it), limits.Bytes)
		dst = append(dst, w.deliver(it, b, limits.Offer, now))
		if w.cfg.Keyed && b.n < limits.Max && !b.Full {
			w.advance(w.keys.follow(it))
		}
	}
	w.want(b, max(0, b.wanted-(len(dst)-first)))
	if len(dst) == first && w.waiting.n == 0 {
		w.Room.resume() // the application waits for more
	}
	if w.Room.guess() {
		signal(w.Room.Changed)
	}
	if w.atBar() {
		b.Full = b.n > 0 || b.Full
		signal(w.Ready)
	}
	return dst
}

// blocked reports whether the order prevents deliveries in a batch that has begun with n items.
func (w *Window) blocked(n int) bool {
	return w.cfg.Ordered && (w.active.n > n || w.backoff.n > 0)
}

// next returns the next item to deliver, without removing it, or nil.
func (w *Window) next(b *Batch, bytes int, now instant) *Item {
	if w.active.n >= w.cfg.MaxInFlight || w.alone {
		b.Full = b.n >= w.cfg.MaxInFlight
		return nil
	}
	for it := w.waiting.head; it != nil; it = w.waiting.head {
		switch {
		case w.barred && w.bar.Less(it.ID), it.Alone && w.active.n > 0:
			b.Full = b.n > 0
			return nil
		case w.cfg.Keyed && w.waitsForKey(it, b, now):
			it.leave()
			w.keys.wait(it)
			continue
		case !b.fits(it, w.splitOf(it), bytes):
			b.Full = true
			return nil
		case !w.Leases.prepared(it, now):
			signal(w.Leases.Prepare)
			return nil
		case !w.Pause.running(now):
			return nil
		}
		return it
	}
	return nil
}

// waitsForKey reports whether an item cannot be delivered before others of its key have ended. An
// item that is not prepared waits for those of this batch: callers without items of the key
// continue.
func (w *Window) waitsForKey(it *Item, b *Batch, now instant) bool {
	return !w.keys.may(it, b.number) || w.keys.contended(it) && w.earlier(it) ||
		w.keys.busy(it) && !w.Leases.prepared(it, now)
}

// splitOf returns the sub-batch of an item. An item that is delivered for the last time is alone:
// it must not be dead-lettered because of others.
func (w *Window) splitOf(it *Item) int {
	if it.Alone || w.cfg.MaxDeliveries > 1 && it.Deliveries()+1 >= w.cfg.MaxDeliveries {
		return source.Single
	}
	return it.split
}

// fits reports whether an item of a sub-batch may join the batch. An item that has left it,
// because its timeout expired before the batch was complete, may not.
func (b *Batch) fits(it *Item, split, bytes int) bool {
	return b.n == 0 || it.batch != b.number && split == b.split && (bytes == 0 || b.bytes+it.Size <= bytes)
}

// add counts an item that joins the batch.
func (b *Batch) add(it *Item, split, bytes int) {
	b.n++
	b.bytes += it.Size
	b.split = split
	b.Full = split == source.Single || bytes > 0 && b.bytes >= bytes
}

// deliver puts an item in flight.
func (w *Window) deliver(it *Item, b *Batch, offer bool, now instant) *source.Attempt {
	it.leave()
	w.active.push(it)
	w.alone = it.Alone
	it.batch = b.number
	if w.cfg.Keyed {
		w.keys.fly(it)
	}
	entry := it.Original()
	a := &source.Attempt{
		From: w.cfg.From, Topic: w.cfg.From.Topic, ID: entry.Text, Count: it.Deliveries() + 1, Split: b.split, Held: it,
		Entry: entry.Share(), Message: it.Message,
	}
	it.Message = nil // each attempt has its own message
	it.attempt = a
	if offer {
		w.offer(it)
		return a
	}
	w.start(it, now)
	w.Room.resume()
	a.StartNow()
	return a
}

// OutOfOrder reports whether an item in flight must not be acknowledged, because an earlier one
// of its batch and order will be redelivered.
func (w *Window) OutOfOrder(it *Item) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.cfg.Ordered && !(w.cfg.Keyed && w.keys.grounded(it)) {
		return false
	}
	return w.anyBuffered(it, func(other *Item) bool {
		return other.batch == it.batch && other.before(it) && (w.cfg.Ordered || other.Key == it.Key)
	})
}

// earlier reports whether an earlier item of the same key, which was delivered or is next, will
// be delivered.
func (w *Window) earlier(it *Item) bool {
	return w.anyBuffered(it, func(other *Item) bool {
		return other.ownsKey && other.before(it) && other.Key == it.Key
	})
}

// anyBuffered reports whether such holds for one of the buffered items before this one, or of the
// items that back off. It checks the queue of its key, and in strict order all queues.
func (w *Window) anyBuffered(it *Item, such func(*Item) bool) bool {
	for other := w.backoff.head; other != nil; other = other.next {
		if such(other) {
			return true
		}
	}
	before := func(l *list) bool {
		for other := l.head; other != nil && other.before(it); other = other.next {
			if such(other) {
				return true
			}
		}
		return false
	}
	if before(&w.waiting) {
		return true
	}
	if !w.cfg.Ordered {
		return before(&w.keys.states[it.Key].queue)
	}
	for _, k := range w.keys.states {
		if before(&k.queue) {
			return true
		}
	}
	return false
}

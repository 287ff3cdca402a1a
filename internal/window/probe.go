package window

import "time"

// probeInterval is the minimum time between two probes.
const probeInterval = time.Second

// stuck reports whether back-offs fill the window, so that nothing is read. This protects a
// backlog while every message fails, but some failing messages must not block all others.
func (w *Window) stuck() bool {
	return w.cfg.Deferrable && !w.cfg.Ordered && w.full() && w.backoff.n > w.Room.limit()/2
}

// full reports whether the window is full.
func (w *Window) full() bool {
	return w.held() >= w.Room.limit() || w.Room.bytes >= w.cfg.PrefetchBytes
}

// Probe allows reading one new entry per second while back-offs fill the window. If it succeeds,
// not every message fails: the back-offs beyond half of the window are deferred. If it fails it
// is deferred.
func (w *Window) Probe() {
	now := w.now()
	w.mu.Lock()
	defer w.mu.Unlock()
	switch stuck := w.stuck(); {
	case !stuck:
		w.stuckAt = 0
	case w.stuckAt == 0:
		w.stuckAt = now
	}
	if w.closed || w.stuckAt == 0 || w.held() > w.Room.limit() || now < w.probed.after(probeInterval) {
		return
	}
	w.probed = now
	w.Room.probe = true
	signal(w.Room.Changed)
}

// Probing reports whether an item was read as a probe.
func (w *Window) Probing(it *Item) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return it.probe
}

// shed defers the back-offs beyond half of the window, the longest delays first.
func (w *Window) shed() {
	for it := w.backoff.tail; it != nil && w.backoff.n > w.Room.limit()/2; {
		last := it
		it = it.prev
		if last.owner == ownerSelf {
			w.Acks.postpone(last, last.due)
		}
	}
}

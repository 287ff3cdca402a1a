package window

import (
	"time"

	"github.com/flaminco/redischannels/internal/stream"
)

// resting reports whether deliveries are suspended.
func (w *Window) resting(now instant) bool { return now < w.rest }

// Due returns the time after which Ready must be signaled, because a back-off or a rest is over,
// or 0.
func (w *Window) Due() time.Duration {
	now := w.now()
	w.mu.Lock()
	defer w.mu.Unlock()
	due := w.rest
	if due == 0 && w.backoff.n > 0 {
		due = w.backoff.head.due
	}
	if due == 0 {
		return 0
	}
	return time.Duration(max(1, due-now))
}

// Bar prevents deliveries behind an entry until Unbar.
func (w *Window) Bar(after stream.ID) {
	w.mu.Lock()
	w.barred, w.bar = true, after
	w.mu.Unlock()
	signal(w.Ready) // the last Bar may have been at an earlier entry
}

// Unbar ends Bar.
func (w *Window) Unbar() {
	w.mu.Lock()
	w.barred = false
	w.mu.Unlock()
	signal(w.Ready)
}

// AtBar reports whether everything up to the entry of Bar was delivered.
func (w *Window) AtBar() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.atBar()
}

func (w *Window) atBar() bool {
	return w.barred && (w.waiting.n == 0 || w.bar.Less(w.waiting.head.ID)) && !w.keys.queuedBefore(w.bar)
}

// Want sets how many more attempts the caller of a batch waits for. Take reduces it by the
// attempts that it appends.
func (w *Window) Want(b *Batch, n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.want(b, n)
	if w.wanted > 0 && w.cfg.OnDemand && w.Room.guess() {
		signal(w.Room.Changed)
	}
}

// want is Want, and records a batch that has begun as long as items may join it.
func (w *Window) want(b *Batch, n int) {
	w.wanted += n - b.wanted
	b.wanted = n
	if b.n == 0 {
		return
	}
	if w.begun = b.n; n == 0 || b.Full {
		w.begun = 0
	}
}

// Tried records that a caller has found no attempt and does not wait: it may call again soon.
func (w *Window) Tried() {
	w.mu.Lock()
	w.tried = w.now()
	prepare := w.waiting.n > 0
	w.mu.Unlock()
	if prepare {
		signal(w.Leases.Prepare)
	}
}

// Adjust allows at least maxInFlight items in flight, and with ordered delivers in order from now
// on: see Config.
func (w *Window) Adjust(maxInFlight int, ordered bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cfg.MaxInFlight = max(w.cfg.MaxInFlight, maxInFlight)
	w.cfg.Ordered = w.cfg.Ordered || ordered
	w.changed()
}

// Ordered reports whether nothing is delivered while an item is in flight or backing off.
func (w *Window) Ordered() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.cfg.Ordered
}

// Pass wakes the next caller.
func (w *Window) Pass() { signal(w.Ready) }

// Rest suspends deliveries for d.
func (w *Window) Rest(d time.Duration) {
	w.mu.Lock()
	w.rest = w.now().after(d)
	w.mu.Unlock()
	signal(w.Ready)
}

// RestRecalled suspends deliveries, so that other consumers can claim an entry that the
// application did not receive: for a second, then twice as long each time while the application
// receives nothing, up to most.
func (w *Window) RestRecalled(most time.Duration) {
	w.mu.Lock()
	d := min(time.Second<<min(w.recalls, 20), most)
	w.recalls++
	w.mu.Unlock()
	w.Rest(d)
}

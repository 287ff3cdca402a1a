package window

import (
	"time"

	"github.com/flaminco/redischannels/internal/stream"
)

func (w *Window) limit() int { return w.cfg.Prefetch + w.cfg.MaxInFlight }

// target is how many items should be waiting now: those that free handlers can
// take at once, and what is finished within `ahead`.
func (w *Window) target() int {
	free := w.cfg.MaxInFlight - w.active.n
	if w.strict() && w.backoff.n > 0 {
		free = 0
	}
	if w.cfg.OnDemand {
		free = min(free, 1)
	}
	return max(0, free) + w.prefetch()
}

func (w *Window) prefetch() int {
	if w.interval <= 0 {
		return 0 // nothing was finished yet
	}
	// A few quick completions say little: the first must not fill the window.
	return min(w.cfg.Prefetch, int(ahead/w.interval), 2*w.finished)
}

// BeginRead returns how many entries may be read now and reserves room for them
// until EndRead. Zero means that none may: wait for Room.
func (w *Window) BeginRead() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed || w.paused || w.bytes >= w.cfg.PrefetchBytes {
		return 0
	}
	room := min(w.target()-w.waiting.n, w.limit()-w.held())
	// Few large reads instead of many small ones: wait until half is used up. That
	// much may never become free while nacked items fill the window.
	if room <= 0 || room < w.prefetch()/2 && w.waiting.n+w.settling.n > 0 {
		return 0
	}
	room = min(room, 2*max(1, w.lastRead))
	if w.largest > 0 {
		room = min(room, max(1, (w.cfg.PrefetchBytes-w.bytes)/w.largest), stream.Fitting(w.largest))
	}
	w.reserved = room
	return room
}

// Spare returns how many entries, and how many bytes of them, the window can hold beyond
// those that it has, whatever the handlers finish.
func (w *Window) Spare() (entries, bytes int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return 0, 0
	}
	return max(0, w.limit()-w.held()), max(0, w.cfg.PrefetchBytes-w.bytes)
}

// EndRead ends the reservation. n is how many entries were read.
func (w *Window) EndRead(n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.reserved = 0
	if n > 0 {
		w.lastRead = n
		w.largest -= w.largest / 8
	}
}

// ClaimRoom returns how many entries may be taken over from elsewhere now. The
// reservation of a blocked read does not count: recovery must not wait for it.
func (w *Window) ClaimRoom() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed || w.paused || w.bytes >= w.cfg.PrefetchBytes {
		return 0
	}
	room := min(w.target()-w.waiting.n, w.limit()-w.held())
	if w.largest > 0 {
		room = min(room, max(1, (w.cfg.PrefetchBytes-w.bytes)/w.largest))
	} else {
		room = min(room, firstClaim)
	}
	return max(0, room)
}

// resume allows fetching again.
func (w *Window) resume() {
	if w.paused {
		w.paused = false
		signal(w.Room)
	}
}

// Rest hands out nothing for d.
func (w *Window) Rest(d time.Duration) {
	w.mu.Lock()
	w.rest = w.now().after(d)
	w.mu.Unlock()
}

// wakeAll signals that room or a slot became free.
func (w *Window) wakeAll() {
	signal(w.Ready)
	if w.room() {
		signal(w.Room)
	}
}

// room is a cheap guess whether BeginRead would grant something.
func (w *Window) room() bool {
	return w.reserved == 0 && w.target()-w.waiting.n > w.prefetch()/2
}

// completed feeds the average that the adaptive prefetch rests on: the time
// between two completions while there was work.
func (w *Window) completed(now instant) {
	d := time.Duration(max(1, now-w.mark))
	w.mark = now
	if w.interval == 0 {
		w.interval = d
	} else {
		w.interval += (d - w.interval) / 8
	}
	w.interval = max(1, w.interval)
	if w.finished < w.cfg.Prefetch {
		w.finished++
	}
}

// Oldest returns for how long the item that waits longest has done so, 0 if none does.
func (w *Window) Oldest() time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := w.now()
	first := now
	if w.offered != nil {
		first = w.offered.admitted
	}
	for it := w.waiting.head; it != nil; it = it.next {
		first = min(first, it.admitted)
	}
	return time.Duration(now - first)
}

// TakeStale removes and returns the items that have waited for longer than stale, and
// stops fetching until the application receives again. Items of a key that is busy
// stay: taking them would let later ones of the key overtake them. An item that
// is offered and was admitted longer ago than recall is marked as recalled.
func (w *Window) TakeStale(stale, recall time.Duration) (items []*Item, recalled bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := w.now()
	if w.offered != nil && now-w.offered.admitted > instant(recall) && !w.offered.gone {
		w.offered.recalled, recalled = true, true
	}
	for it := w.waiting.head; it != nil; {
		next := it.next
		if now-it.admitted > instant(stale) && !it.ownsKey && !it.gone {
			w.remove(it)
			items = append(items, it)
		}
		it = next
	}
	if len(items) > 0 || recalled {
		w.paused = true
	}
	return items, recalled
}

// Paused reports whether fetching waits for the application.
func (w *Window) Paused() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.paused
}

// Sizes are the numbers of held items by what they wait for, and their bytes.
type Sizes struct {
	Waiting, Backoff, Active, Settling, Bytes int
}

// Sizes returns them.
func (w *Window) Sizes() Sizes {
	w.mu.Lock()
	defer w.mu.Unlock()
	return Sizes{
		Waiting: w.waiting.n + w.blocked, Backoff: w.backoff.n, Active: w.active.n, Settling: w.settling.n,
		Bytes: w.bytes,
	}
}

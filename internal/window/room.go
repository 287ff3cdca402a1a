package window

import (
	"errors"
	"math"
	"time"

	"github.com/flaminco/redischannels/internal/stream"
)

const (
	// ahead is how long the buffered items should keep the handlers busy.
	ahead = 100 * time.Millisecond
	// firstClaim is the number of entries that are claimed while their size is unknown.
	firstClaim = 8
)

// Room limits reading. The lock of the window guards it.
type Room struct {
	w *Window

	// Changed receives a value when more may be read, or pending entries again (see keyring).
	Changed chan struct{}

	bytes    int     // of all items
	reserved int     // by the read in progress
	paused   bool    // reading waits until the application receives
	probe    bool    // one entry may be read although the window is full
	released instant // when TakeStale has taken items in order: entries of earlier reads would overtake them

	// The measurements of the adaptive prefetch.
	lastRead int           // entries of the last read
	largest  int           // size of the largest recent entry
	interval time.Duration // moving average of the time between two completions
	mark     instant       // last completion, or when items arrived after a pause
	finished int           // completions so far, counted up to Prefetch
}

func (r *Room) limit() int { return r.w.cfg.Prefetch + r.w.cfg.MaxInFlight }

// target is the number of items to buffer now: those that free handlers can take at once, and
// those that are finished within `ahead`.
func (r *Room) target() int {
	w := r.w
	free := w.cfg.MaxInFlight - w.active.n
	if w.cfg.Ordered && w.backoff.n > 0 {
		free = 0
	}
	if w.cfg.OnDemand {
		free = min(free, max(1, w.wanted))
	}
	return max(0, free) + r.prefetch()
}

func (r *Room) prefetch() int {
	if r.interval <= 0 {
		return 0 // nothing was finished yet
	}
	// A few quick completions are not significant: the first must not fill the window.
	return min(r.w.cfg.Prefetch, int(ahead/r.interval), 2*r.finished)
}

// BeginRead returns the number of entries that may be read now of each of the streams, and
// reserves room for them until EndRead. If it is zero, wait for Changed. (With room for fewer
// entries than streams the room is exceeded.)
func (r *Room) BeginRead(streams int) int {
	w := r.w
	w.mu.Lock()
	defer w.mu.Unlock()
	room := r.room()
	if w.behind || w.closed || w.Pause.paused {
		return 0
	}
	if r.probe && !r.paused {
		r.probe = false
		r.reserved = 1
		return 1
	}
	// A few large reads instead of many small ones: wait until half is used up. That may never
	// happen while nacked items fill the window.
	if room <= 0 || room < r.prefetch()/2 && w.waiting.n+w.Acks.acks.n > 0 {
		return 0
	}
	room = min(max(1, room/streams), 2*max(1, r.lastRead))
	if r.largest > 0 {
		room = min(room, max(1, r.fitting()/streams), stream.Fitting(r.largest))
	}
	r.reserved = room * streams
	return room
}

// room is the number of entries that the window can take now, without regard to their size.
func (r *Room) room() int {
	w := r.w
	if w.closed || w.Pause.paused || r.paused || r.bytes >= w.cfg.PrefetchBytes {
		return 0
	}
	return min(r.target()-w.waiting.n, r.limit()-w.held())
}

// fitting is the number of entries of the usual size that fit into PrefetchBytes.
func (r *Room) fitting() int { return max(1, (r.w.cfg.PrefetchBytes-r.bytes)/r.largest) }

// Spare returns the number of entries, and their bytes, for which the window has room, without
// regard to the speed of the handlers.
func (r *Room) Spare() (entries, bytes int) {
	w := r.w
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return 0, 0
	}
	return max(0, r.limit()-w.held()), max(0, w.cfg.PrefetchBytes-r.bytes)
}

// EndRead ends the reservation. n is the number of entries that were read, of the stream that had
// most.
func (r *Room) EndRead(n int) {
	r.w.mu.Lock()
	defer r.w.mu.Unlock()
	r.reserved = 0
	if n > 0 {
		r.lastRead = n
		r.largest -= r.largest / 8
	}
}

// Claim returns the number of entries that may be claimed now. The reservation of a blocked read
// does not count: recovery must not wait for it.
func (r *Room) Claim() int {
	r.w.mu.Lock()
	defer r.w.mu.Unlock()
	room := r.room()
	if r.largest > 0 {
		room = min(room, r.fitting())
	} else {
		room = min(room, firstClaim)
	}
	return max(0, room)
}

// resume allows reading again.
func (r *Room) resume() {
	if r.paused {
		r.paused = false
		signal(r.Changed)
	}
}

// guess is a cheap estimate of whether BeginRead would return more than 0.
func (r *Room) guess() bool {
	return r.reserved == 0 && r.target()-r.w.waiting.n > r.prefetch()/2
}

// completed updates the average for the adaptive prefetch: the time between two completions while
// there were items.
func (r *Room) completed(now instant) {
	d := time.Duration(max(1, now-r.mark))
	r.mark = now
	if r.interval == 0 {
		r.interval = d
	} else {
		r.interval += (d - r.interval) / 8
	}
	r.interval = max(1, r.interval)
	if r.finished < r.w.cfg.Prefetch {
		r.finished++
	}
}

// Oldest returns how long the oldest buffered item has been buffered, 0 without one.
func (r *Room) Oldest() time.Duration {
	w := r.w
	w.mu.Lock()
	defer w.mu.Unlock()
	now := w.now()
	if w.wake(now) {
		signal(w.Ready)
	}
	first := now
	w.eachOffer(func(it *Item) { first = min(first, it.admitted) })
	for it := w.waiting.head; it != nil; it = it.next {
		first = min(first, it.admitted)
	}
	return time.Duration(now - first)
}

// TakeStale removes and returns the items that were buffered for longer than stale, and stops
// reading until the application receives again. If an offered item was admitted longer ago than
// recall, all offered ones are recalled: they are one batch. With an order, all later items are
// taken too: they must not overtake released ones. Nor must the entries of a running command,
// which Admit leaves out, or entries that are read before the pending entries were read again
// (see Window.Drained). Released must follow.
func (r *Room) TakeStale(stale, recall time.Duration) (items []*Item, recalled bool) {
	w := r.w
	w.mu.Lock()
	defer w.mu.Unlock()
	now := w.now()
	recalled = w.recallOlder(now, instant(recall))
	buffered := w.releasable()
	for _, it := range buffered {
		if it.in == &w.waiting && now-it.admitted > instant(stale) {
			items = append(items, it)
		}
	}
	if len(items) == 0 && !recalled {
		return nil, false
	}
	r.paused = true
	if w.cfg.Ordered || w.cfg.Keyed {
		items = buffered
	}
	w.leave(items, now)
	signal(w.Ready) // those that are left may have waited behind one that was not prepared
	return items, recalled
}

// leave removes items in order to release them. Where there is an order, what is asked for before they
// are back overtakes them.
func (w *Window) leave(items []*Item, now instant) {
	if w.cfg.Ordered || w.cfg.Keyed {
		w.Room.released = now
		w.behind = true
	}
	for _, it := range items {
		w.remove(it)
	}
	w.leaving += len(items)
}

// releasable returns the buffered items that can be released: those that are not only in memory
// and, with an order, are behind all of the order that are in flight or back off. (An item before
// these must be redelivered first.)
func (w *Window) releasable() []*Item {
	type order struct {
		stream int
		key    string
	}
	of := func(it *Item) order {
		if w.cfg.Ordered {
			return order{stream: it.Stream}
		}
		return order{it.Stream, it.Key}
	}
	last := make(map[order]stream.ID)
	var buffered []*Item
	w.each(func(it *Item) {
		switch o := of(it); {
		case w.Acks.has(it):
		case it.in != &w.active && it.in != &w.backoff:
			buffered = append(buffered, it)
		case (w.cfg.Ordered || w.cfg.Keyed) && last[o].Less(it.ID):
			last[o] = it.ID
		}
	})
	items := buffered[:0]
	for _, it := range buffered {
		if it.owner != ownerTrimmed && last[of(it)].Less(it.ID) {
			items = append(items, it)
		}
	}
	return items
}

// Paused reports whether reading waits for the application.
func (r *Room) Paused() bool {
	r.w.mu.Lock()
	defer r.w.mu.Unlock()
	return r.paused
}

// Stalled describes why callers wait although there are items: no item has started or ended for a
// time, and the items are unacknowledged or backing off.
type Stalled struct {
	InFlight, BackingOff int
	Alone                bool // an entry is delivered alone
}

var (
	errUnacknowledged = errors.New("the handlers have not acknowledged their messages, and no more may be in flight")
	errBackingOff     = errors.New("the window is full of messages that wait for their retry or are unacknowledged")
	errAlone          = errors.New("an entry of a crashed consumer is delivered alone and is not acknowledged yet")
)

// Reason returns the reason as an error.
func (s Stalled) Reason() error {
	switch {
	case s.Alone:
		return errAlone
	case s.BackingOff > 0:
		return errBackingOff
	}
	return errUnacknowledged
}

// Stalled reports, once, whether callers have waited for d without a start or an end of an item,
// while items are in flight or backing off and no more may be delivered; or how long back-offs
// have filled the window, even with probes.
func (w *Window) Stalled(d time.Duration) (s Stalled, ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	since, full := &w.moved, w.active.n >= w.cfg.MaxInFlight || w.alone && w.waiting.n > 0 || w.full() && w.waiting.n == 0
	if w.stuckAt > 0 {
		since, full = &w.stuckAt, true
	}
	if w.closed || w.Pause.paused || w.wanted <= 0 || !full || w.now()-*since < instant(d) {
		return Stalled{}, false
	}
	*since = math.MaxInt64 // until something moves
	return Stalled{InFlight: w.active.n, BackingOff: w.backoff.n, Alone: w.alone}, true
}

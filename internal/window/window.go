// Package window contains the entries that one subscription has read and not yet ended. It
// selects the next delivery, limits reading, and determines which leases are valid. It is
// independent of Redis and of channels.
//
// An item is buffered by Admit, in flight from Take on, and then ended: removed, waiting for its
// acknowledgement to be written (Acks), or backing off and buffered again.
//
// One lock guards the window. Room, Leases, Acks and Pause are parts of a Window with their own
// state under that lock.
package window

import (
	"math"
	"sync"
	"time"

	"github.com/flaminco/redischannels/internal/source"
	"github.com/flaminco/redischannels/internal/stream"
)

// Config is fixed for the life of a window.
type Config struct {
	From          *source.Origin // of the attempts
	MaxInFlight   int
	Ordered       bool // nothing is delivered while an item is in flight or backing off
	Keyed         bool // the same for each Item.Key, instead of Ordered
	Prefetch      int  // items that may be buffered beyond those in flight
	PrefetchBytes int
	OnDemand      bool          // free slots are not a reason to read more than one entry
	LeaseTime     time.Duration // how long a lease is valid; 0: items need no lease and no count
	MaxDeliveries int           // the last delivery of an item is alone in its batch; 0 for no last one
	Deferrable    bool          // items that back off can be deferred: see Window.Probe
	Pausable      bool          // it must be known whether the group is paused: see Window.Looked
}

// Window is safe for concurrent use.
type Window struct {
	Room   Room
	Leases Leases
	Acks   Acks
	Pause  Pause

	// Ready receives a value when Take may have attempts. A receiver that leaves attempts calls
	// Pass.
	Ready chan struct{}

	cfg  Config
	made time.Time

	mu      sync.Mutex
	waiting list // buffered, in stream order
	backoff list // by due time
	active  list // in flight
	keys    keyring
	wanted  int     // attempts that callers wait for
	begun   int     // items of the batch that waits for more, with an order
	tried   instant // last time that a caller went without one
	alone   bool
	batches int     // number of the last batch
	rest    instant // nothing is delivered before
	offers  int     // items that are offered
	recall  []*Item // recalled and withdrawn, until Withdrawn returns them
	leaving int     // items that were removed for a release that may not be done yet
	moved   instant // last start or end of an item
	behind  bool    // nothing is read before the next pass: released entries come first
	passing bool    // the same, before the pass that is under way (see BeginPass)
	passes  int
	exact   map[Identity]int // left out with a count that is exact: the pass in which they were
	recalls int              // of offers since an item was received
	probed  instant          // last time that Probe has let an entry be read
	stuckAt instant          // since when Probe has found the window stuck, 0 if it is not
	barred  bool
	bar     stream.ID // nothing behind it is delivered while barred
	closed  bool
}

// New returns an empty window.
func New(cfg Config) *Window {
	w := &Window{cfg: cfg, made: time.Now(), Ready: make(chan struct{}, 1), exact: make(map[Identity]int)}
	w.keys.init(cfg)
	w.Room = Room{w: w, Changed: make(chan struct{}, 1)}
	w.Leases = Leases{w: w, Prepare: make(chan struct{}, 1)}
	w.Pause = Pause{w: w, Look: make(chan struct{}, 1)}
	w.Acks = Acks{w: w, Flush: make(chan struct{}, 1), Moves: make(chan struct{}, 1)}
	return w
}

// instant is a point in time as nanoseconds since the window was made. It takes a third of
// the memory of a time.Time and half of its time to read. Zero is never.
type instant int64

func (w *Window) now() instant { return instant(time.Since(w.made)) + 1 }

func (w *Window) instant(t time.Time) instant { return max(1, instant(t.Sub(w.made))+1) }

// after is d later, or the maximum.
func (i instant) after(d time.Duration) instant { return i + min(instant(d), math.MaxInt64-i) }

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

func (w *Window) held() int {
	return w.waiting.n + w.keys.queued + w.backoff.n + w.active.n + w.Acks.acks.n + w.Acks.moves.n
}

// Admit buffers items whose lease runs from leased. None of them may be in the window. An item
// with a Reason waits for its move to the dead-letter stream. Admit leaves out items whose
// ordering key is full (see keyring), and items that would overtake released ones (see
// Room.TakeStale), until the pending entries are read again (see Drained).
func (w *Window) Admit(items []Item, leased time.Time) {
	if len(items) == 0 {
		return
	}
	now := w.now()
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return
	}
	if w.held() == w.Acks.acks.n+w.Acks.moves.n {
		w.Room.mark = now
	}
	since := w.instant(leased)
	for i := range items {
		it := &items[i]
		if since <= w.Room.released || w.behind && w.keys.pass {
			w.behind = true
			signal(w.Room.Changed)
			w.leaveOut(it)
			continue
		}
		if w.cfg.Keyed && !w.keys.admit(it) {
			w.leaveOut(it)
			continue
		}
		delete(w.exact, it.Identity())
		it.leased, it.admitted = since, now
		it.probe = w.stuck()
		w.Room.bytes += it.Size
		w.Room.largest = max(w.Room.largest, it.Size)
		if it.Backoff > 0 && it.Reason == "" {
			w.resumeBackoff(it, now)
			continue
		}
		w.waiting.insertByID(it)
		if it.Reason != "" {
			w.Acks.push(it, &w.Acks.moves)
			signal(w.Acks.Moves)
		}
	}
	signal(w.Ready)
}

// Start records that the application has received an offered item.
func (w *Window) Start(it *Item) {
	now := w.now()
	w.mu.Lock()
	defer w.mu.Unlock()
	if !it.offered {
		return
	}
	w.start(it, now)
	w.Room.resume()
}

func (w *Window) start(it *Item, now instant) {
	w.unoffer(it)
	it.Delivered++
	it.Counted = false
	it.started = now
	w.recalls = 0
	w.moved = now
}

// wake moves due items from back-off to waiting, and reports whether there were any. A caller
// that then takes none signals Ready, because Due no longer returns them.
func (w *Window) wake(now instant) (moved bool) {
	for it := w.backoff.head; it != nil && it.due <= now; it = w.backoff.head {
		it.leave()
		it.due = 0
		it.admitted = now
		w.waiting.insertByID(it)
		moved = true
	}
	return moved
}

// each calls f with every item.
func (w *Window) each(f func(*Item)) {
	walk := func(l *list) {
		for it := l.head; it != nil; {
			next := it.next
			f(it)
			it = next
		}
	}
	walk(&w.active)
	walk(&w.waiting)
	walk(&w.backoff)
	walk(&w.Acks.acks)
	walk(&w.Acks.moves)
	for _, k := range w.keys.states {
		walk(&k.queue)
	}
}

// Close ends reading and delivering, and removes and returns the items that are not in flight.
func (w *Window) Close() []*Item {
	now := w.now()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed = true
	for it := w.backoff.head; it != nil; it = it.next {
		it.delay = time.Duration(max(0, it.due-now))
	}
	items := w.undelivered()
	signal(w.Ready)
	signal(w.Room.Changed)
	return items
}

// undelivered removes and returns the items that are neither in flight nor ended.
func (w *Window) undelivered() []*Item {
	var items []*Item
	w.each(func(it *Item) {
		if it.in != &w.active && it.in != &w.Acks.acks && it.in != &w.Acks.moves {
			items = append(items, it)
		}
	})
	for _, it := range items {
		w.remove(it)
	}
	return items
}

// Abandon removes and returns the items in flight, whose end will not be reported. Their Delay is
// that given. A later end has no effect.
func (w *Window) Abandon(delay time.Duration) []*Item {
	w.mu.Lock()
	defer w.mu.Unlock()
	var items []*Item
	for it := w.active.head; it != nil; it = it.next {
		if it.owner == ownerSelf {
			it.delay = delay
			items = append(items, it)
		}
	}
	for _, it := range items {
		w.remove(it)
	}
	return items
}

// InFlight reports whether an item is in flight by this attempt.
func (w *Window) InFlight(a *source.Attempt) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return a.Held.(*Item).attempt == a
}

// Attempts returns the attempts that are in flight.
func (w *Window) Attempts() []*source.Attempt {
	w.mu.Lock()
	defer w.mu.Unlock()
	attempts := make([]*source.Attempt, 0, w.active.n)
	for it := w.active.head; it != nil; it = it.next {
		attempts = append(attempts, it.attempt)
	}
	return attempts
}

// Sizes are the numbers of items, and their size.
type Sizes struct {
	Buffered, BackingOff, InFlight, Acking, Bytes int
}

// Sizes returns them.
func (w *Window) Sizes() Sizes {
	w.mu.Lock()
	defer w.mu.Unlock()
	return Sizes{
		Buffered: w.waiting.n + w.keys.queued, BackingOff: w.backoff.n, InFlight: w.active.n,
		Acking: w.Acks.acks.n + w.Acks.moves.n, Bytes: w.Room.bytes,
	}
}

// Package window holds the entries that one subscription has read and not yet ended: it
// decides what is delivered next, how much may be read, and whose lease is valid. It knows
// nothing of Redis and of channels.
//
// An item is buffered by Admit, in flight from Take on, and then ended: removed, waiting for its
// acknowledgement to be written (Acks), or backing off and buffered again.
//
// One lock guards all of it. Room, Leases and Acks are parts of a Window with a state of their
// own under that lock.
package window

import (
	"math"
	"slices"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/flaminco/redischannels/internal/source"
	"github.com/flaminco/redischannels/internal/stream"
)

// Config is fixed for the life of a window.
type Config struct {
	From          *source.Origin // of the attempts
	MaxInFlight   int
	Ordered       bool // nothing is delivered while something is in flight or backing off
	Keyed         bool // the same for each Item.Key, instead of Ordered
	Prefetch      int  // items that may be buffered beyond those in flight
	PrefetchBytes int
	OnDemand      bool          // free slots alone are no reason to read more than one entry
	LeaseTime     time.Duration // how long a lease is valid; 0: items need no lease and no count
	MaxDeliveries int           // the last delivery of an item is alone in its batch; 0 for no last one
}

// Item is one entry in the window. Exported fields are set before Admit. Those that are said to
// be set by a method are guarded by the lock of the window.
type Item struct {
	stream.Entry
	Stream    int    // which stream of the subscription it is from
	Delivered int    // deliveries that count, here or before; set by methods
	Key       string // ordering key
	Message   *message.Message
	Counted   bool          // the count in Redis includes the next delivery already; set by methods
	Suspect   bool          // claimed with a count of 1: it may have been delivered once, which does not count
	Backoff   time.Duration // what is left of its back-off when it is admitted
	Alone     bool          // delivered while nothing else is in flight: it may kill the process

	// For the goroutine that writes the end of the item.
	Reason   string // of its dead letter; empty for an ack
	Attempts int
	Retry    time.Time
	Sent     bool // an acknowledgement was, whose reply was lost

	owner    owner
	offered  bool // and not started
	recalled bool
	ownsKey  bool
	detached bool
	batch    int // of its last delivery
	split    int // sub-batch that it belongs to, 0 for none
	attempt  *source.Attempt
	leased   instant // when the command that obtained or renewed the lease was sent
	admitted instant
	started  instant // its delivery
	due      instant
	delay    time.Duration // see Delay

	in         *list
	prev, next *Item
}

// Identity is the stream and the ID of an item.
type Identity struct {
	Stream int
	ID     stream.ID
}

// Identity returns that of the item.
func (it *Item) Identity() Identity { return Identity{it.Stream, it.ID} }

// owner is what is known about who owns the entry of an item.
type owner uint8

const (
	ownerSelf    owner = iota // as far as the lease is valid
	ownerOther                // another consumer, or none
	ownerTrimmed              // the stream has it no more
)

// Window is safe for concurrent use.
type Window struct {
	Room   Room
	Leases Leases
	Acks   Acks

	// Ready has a token when Take may have something. Who takes the token and leaves
	// something calls Pass.
	Ready chan struct{}

	cfg  Config
	made time.Time

	mu      sync.Mutex
	waiting list // buffered, in stream order
	backoff list // by due time
	active  list // in flight
	keys    keyring
	wanted  int     // attempts that callers wait for
	tried   instant // last time that a caller went without one
	alone   bool
	batches int     // number of the last batch
	rest    instant // nothing is delivered before
	offered *Item   // the one that was offered last
	moved   instant // last time that something started or ended
	behind  bool    // nothing is read before the next pass: what was released comes first
	passing bool    // the same, before the pass that is under way (see BeginPass)
	recalls int     // of offers since something was received
	barred  bool
	bar     stream.ID // nothing behind it is delivered while barred
	closed  bool
}

// New returns an empty window.
func New(cfg Config) *Window {
	w := &Window{cfg: cfg, made: time.Now(), Ready: make(chan struct{}, 1)}
	w.keys.init(cfg)
	w.Room = Room{w: w, Changed: make(chan struct{}, 1)}
	w.Leases = Leases{w: w, Prepare: make(chan struct{}, 1)}
	w.Acks = Acks{w: w, Flush: make(chan struct{}, 1), Moves: make(chan struct{}, 1)}
	return w
}

// instant is a point in time as nanoseconds since the window was made. It takes a third of
// the memory of a time.Time and half of its time to read. Zero is never.
type instant int64

func (w *Window) now() instant { return instant(time.Since(w.made)) + 1 }

func (w *Window) instant(t time.Time) instant { return max(1, instant(t.Sub(w.made))+1) }

// after is d later, or as late as there is.
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

// Admit buffers items whose lease runs from leased. None of them may be held already. One with a
// Reason waits to be moved to the dead letters. Left out are those whose ordering key has as many as
// it may (see keyring), and those that would overtake what was released (see Room.TakeStale): until
// the pending entries are read again (see Drained).
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
			it.Release()
			continue
		}
		if w.cfg.Keyed && !w.keys.admit(it) {
			it.Release()
			continue
		}
		it.leased, it.admitted = since, now
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

// resumeBackoff makes an item wait for the rest of a back-off that began elsewhere.
func (w *Window) resumeBackoff(it *Item, now instant) {
	if w.cfg.Keyed {
		w.keys.own(it)
	}
	it.detach()
	it.due = now.after(it.Backoff)
	w.backoff.insertByDue(it)
	w.block(it)
}

// resting reports whether nothing is delivered for the time being.
func (w *Window) resting(now instant) bool { return now < w.rest }

// Start says that the application has an item that was offered.
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
	it.offered = false
	if w.offered == it {
		w.offered = nil
	}
	it.Delivered++
	it.Counted = false
	it.started = now
	w.recalls = 0
	w.moved = now
}

// wake moves what is due from back-off to waiting, and reports whether it has. Whoever does that and
// takes nothing signals Ready: a caller that asks Due after that learns of nothing.
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

// Due returns the time after which Ready is to be signalled, because a back-off or a rest is
// over, or 0.
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

// Bar delivers nothing behind an entry until Unbar.
func (w *Window) Bar(after stream.ID) {
	w.mu.Lock()
	w.barred, w.bar = true, after
	w.mu.Unlock()
	signal(w.Ready) // it may have been at an earlier entry
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

// Want adds to the number of attempts that callers wait for.
func (w *Window) Want(n int) {
	w.mu.Lock()
	w.wanted += n
	more := w.wanted > 0
	if more && w.cfg.OnDemand && w.Room.guess() {
		signal(w.Room.Changed)
	}
	w.mu.Unlock()
}

// Tried says that a caller has found nothing and does not wait: it may come again soon.
func (w *Window) Tried() {
	w.mu.Lock()
	w.tried = w.now()
	prepare := w.waiting.n > 0
	w.mu.Unlock()
	if prepare {
		signal(w.Leases.Prepare)
	}
}

// Adjust lets at least maxInFlight items be in flight, and from now on delivers in order if
// ordered says so: see Config.
func (w *Window) Adjust(maxInFlight int, ordered bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cfg.MaxInFlight = max(w.cfg.MaxInFlight, maxInFlight)
	w.cfg.Ordered = w.cfg.Ordered || ordered
	w.changed()
}

// Ordered reports whether nothing is delivered while something is in flight or backing off.
func (w *Window) Ordered() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.cfg.Ordered
}

// Pass lets the next caller look.
func (w *Window) Pass() { signal(w.Ready) }

// Rest delivers nothing for d.
func (w *Window) Rest(d time.Duration) {
	w.mu.Lock()
	w.rest = w.now().after(d)
	w.mu.Unlock()
	signal(w.Ready)
}

// RestRecalled delivers nothing for a while, so that other consumers can have an entry whose offer
// the application did not take up: for a second, then twice as long each time as long as the
// application receives nothing, up to most.
func (w *Window) RestRecalled(most time.Duration) {
	w.mu.Lock()
	d := min(time.Second<<min(w.recalls, 20), most)
	w.recalls++
	w.mu.Unlock()
	w.Rest(d)
}

// land takes an item out of those in flight.
func (w *Window) land(it *Item) {
	it.leave()
	it.attempt = nil
	it.offered = false
	if w.offered == it {
		w.offered = nil
	}
	if it.Alone {
		w.alone = false
	}
	if w.cfg.Keyed {
		w.advance(w.keys.land(it))
	}
}

// advance buffers the next item of a key.
func (w *Window) advance(next *Item) {
	if next != nil {
		w.waiting.insertByID(next)
	}
}

// Return buffers an offered item again that nobody has received.
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

// Uncount is Backoff for a delivery that is not counted, here and in Redis, whose count
// includes the next one again.
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
	it.detach() // it may outlive the rest of its reply by far
	w.land(it)
	it.due = due
	w.backoff.insertByDue(it)
	w.block(it)
	w.changed()
}

// detach gives an item memory of its own.
func (it *Item) detach() {
	if !it.detached {
		it.detached = true
		it.Detach()
	}
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

// Remove forgets items.
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

// exitKey lets the next item of a key go on.
func (w *Window) exitKey(it *Item) {
	if it.ownsKey {
		w.advance(w.keys.free(it))
	}
	if w.keys.exit(it) {
		signal(w.Room.Changed)
	}
}

// block bounds what the key of an item holds that does not get on: its last items leave.
func (w *Window) block(it *Item) {
	if !w.cfg.Keyed || !it.ownsKey || !w.keys.block(it) {
		return
	}
	for _, last := range w.sheddable(it.Key) {
		w.remove(last)
		signal(w.Ready) // what is left may have waited behind it
		if !w.keys.block(it) {
			return
		}
	}
}

// sheddable returns the items of a key that may leave the window, the last ones first. They come
// behind all that own the key, and are not in memory only.
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

// BlockLong bounds what is held of keys whose item has been in flight for longer than long.
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

// DetachLong gives items memory of their own that have been in flight for longer than long: a small
// one would keep its whole reply.
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

// Drained reports whether pending entries that were left out are to be read again.
func (w *Window) Drained() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return !w.closed && (w.behind || w.keys.drained())
}

// BeginPass says that the pending entries that are not held will be offered to Admit in stream
// order, until EndPass.
func (w *Window) BeginPass() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.keys.begin()
	w.passing, w.behind = w.behind, false
}

// EndPass ends BeginPass. complete says that all of them were offered.
func (w *Window) EndPass(complete bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.keys.end(complete)
	w.behind = w.behind || w.passing && !complete
}

// completed notes that a delivery has ended.
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

// each calls f with every held item.
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

// Delay returns what was left of the back-off of an item when Close has returned it.
func (it *Item) Delay() time.Duration { return it.delay }

// Close ends reading and delivering, and returns the items that are not in flight, which are
// no longer held.
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

// Abandon removes and returns the items in flight, of which nobody will tell how they end. Their
// Delay is that given. An end that comes all the same finds nothing in flight, and does nothing.
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

// Sizes are the numbers of held items, and their bytes.
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

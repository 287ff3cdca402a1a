// Package window holds the entries that one subscription has taken from Redis and
// not yet settled: it decides what is handed out next, how much may be fetched,
// and whose lease still holds. It knows nothing of Redis, channels or messages.
//
// An item is admitted (waiting), taken by Next (offered), Started (handled), and
// then either Settled and Done, or sent to Backoff and waiting again.
package window

import (
	"math"
	"sync"
	"time"

	"github.com/flaminco/redischannels/internal/stream"
)

// ahead is for how long the waiting items should keep the handlers busy.
const ahead = 100 * time.Millisecond

// firstClaim is how many entries are claimed while their size is not known.
const firstClaim = 8

// Config is fixed for the life of a window.
type Config struct {
	MaxInFlight   int
	Prefetch      int // items that may wait beyond those in flight
	PrefetchBytes int
	OnDemand      bool          // do not fetch for every free slot, only for one and the prefetch
	Keyed         bool          // at most one item in flight per Item.Key
	LeaseTime     time.Duration // how long a lease holds from the sending of its command
}

// Item is one entry in the window. Exported fields are set before Admit and are
// changed afterwards only by the goroutine that took the item with Next, except
// those that a method of Window is documented to set.
type Item struct {
	stream.Entry
	Handed  int // times the entry was handed to a handler, in this process or before; set by Started
	Key     string
	Message any    // decoded already
	Reason  string // why the entry goes to the dead-letter stream; empty for an ack

	// For the goroutine that writes settlements.
	Attempts int
	Retry    time.Time
	Sent     bool // an acknowledgement was, whose reply did not come

	Counted bool // Redis' delivery count includes the next hand-over already; set by Started and SetCounted
	Alone   bool // to be handled while nothing else is: it may kill the process

	// Set by Window methods, under its lock.
	gone, lost bool
	offered    bool // and not Started
	recalled   bool
	ownsKey    bool
	value      any     // of Offer
	leased     instant // when the command that obtained or renewed the lease was sent
	admitted   instant
	due        instant

	in         *list
	prev, next *Item
}

// Window is safe for concurrent use.
type Window struct {
	cfg  Config
	made time.Time

	// Room is signalled when ReadRoom may have grown, Ready when Next may have
	// something, Flush when there are settled items.
	Room, Ready, Flush chan struct{}

	mu       sync.Mutex
	waiting  list // in stream order
	backoff  list // by due time
	active   list // offered and handled
	settling list // settled, not yet Done
	keys     map[string]*keyState
	blocked  int // items in the queues of keys
	bytes    int
	reserved int
	alone    bool // an Alone item is active
	paused   bool // fetching waits until the application receives
	offered  *Item
	rest     instant // nothing is handed out before
	closed   bool
	voided   instant

	// What the adaptive prefetch knows.
	lastRead int           // entries of the last read
	largest  int           // size of the largest recent entry
	interval time.Duration // moving average of the time between two completions
	mark     instant       // last completion, or when work arrived after a lull
	finished int           // completions so far, counted up to Prefetch
}

type keyState struct {
	busy  bool
	queue list // in stream order
}

// New returns an empty window.
func New(cfg Config) *Window {
	return &Window{
		cfg:   cfg,
		made:  time.Now(),
		Room:  make(chan struct{}, 1),
		Ready: make(chan struct{}, 1),
		Flush: make(chan struct{}, 1),
		keys:  make(map[string]*keyState),
	}
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

func (w *Window) strict() bool { return w.cfg.MaxInFlight == 1 && !w.cfg.Keyed }

func (w *Window) held() int {
	return w.waiting.n + w.blocked + w.backoff.n + w.active.n + w.settling.n
}

// Admit puts entries into the window whose lease runs from leased. None of them may be
// held already.
func (w *Window) Admit(items []Item, leased time.Time) {
	if len(items) == 0 {
		return
	}
	now := w.now()
	w.mu.Lock()
	if w.held() == w.settling.n {
		w.mark = now
	}
	since := w.instant(leased)
	for i := range items {
		it := &items[i]
		it.leased, it.admitted = since, now
		w.bytes += it.Size
		w.largest = max(w.largest, it.Size)
		w.waiting.insertByID(it)
	}
	w.mu.Unlock()
	signal(w.Ready)
}

// Next takes the next item that may be handed out. Without one, wait is the time
// after which the first item in back-off is due, or 0 if there is none: wait for
// Ready as well.
func (w *Window) Next() (it *Item, wait time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return nil, 0
	}
	if w.rest != 0 {
		if d := w.rest - w.now(); d > 0 {
			return nil, time.Duration(d)
		}
		w.rest = 0
	}
	if w.backoff.n > 0 {
		wait = w.wake()
	}
	if w.active.n >= w.cfg.MaxInFlight || w.alone || w.strict() && w.backoff.n > 0 {
		return nil, wait
	}
	for it := w.waiting.head; it != nil; it = w.waiting.head {
		if it.Alone && w.active.n > 0 {
			return nil, wait
		}
		it.leave()
		if w.cfg.Keyed && !w.takeKey(it) {
			continue
		}
		w.active.push(it)
		w.alone = it.Alone
		return it, 0
	}
	w.resume() // the application is waiting for more
	if w.room() {
		signal(w.Room)
	}
	return nil, wait
}

// Offer says that the item taken with Next is offered to the application now.
// value is what Lose returns for it.
func (w *Window) Offer(it *Item, value any) {
	w.mu.Lock()
	w.offer(it, value)
	w.mu.Unlock()
}

func (w *Window) offer(it *Item, value any) {
	w.offered, it.offered, it.recalled, it.value = it, true, false, value
}

// OfferLeased is Offer where that is allowed: Redis no longer has the entry, or has
// counted the delivery of it and its lease holds. Otherwise it does nothing.
func (w *Window) OfferLeased(it *Item, value any) (offered bool) {
	now := w.now()
	w.mu.Lock()
	defer w.mu.Unlock()
	if !it.gone && !(it.Counted && w.leased(it, now)) {
		return false
	}
	w.offer(it, value)
	return true
}

// SetCounted says that Redis' delivery count includes the next hand-over.
func (w *Window) SetCounted(it *Item) {
	w.mu.Lock()
	it.Counted = true
	w.mu.Unlock()
}

// wake moves what is due from back-off to waiting and returns the time until the
// next is.
func (w *Window) wake() time.Duration {
	now := w.now()
	for it := w.backoff.head; it != nil; it = w.backoff.head {
		if d := it.due - now; d > 0 {
			return time.Duration(d)
		}
		it.leave()
		it.admitted = now
		w.waiting.insertByID(it)
	}
	return 0
}

// takeKey makes the item the one of its key, or queues it behind that.
func (w *Window) takeKey(it *Item) bool {
	if it.ownsKey {
		return true
	}
	k := w.keys[it.Key]
	if k == nil {
		k = &keyState{}
		w.keys[it.Key] = k
	}
	if k.busy {
		k.queue.insertByID(it)
		w.blocked++
		return false
	}
	k.busy, it.ownsKey = true, true
	return true
}

// freeKey lets the next item of the key go on.
func (w *Window) freeKey(it *Item) {
	if !it.ownsKey {
		return
	}
	it.ownsKey = false
	k := w.keys[it.Key]
	k.busy = false
	if next := k.queue.head; next != nil {
		next.leave()
		w.blocked--
		// Taken for it now, so that nothing admitted meanwhile overtakes it.
		k.busy, next.ownsKey = true, true
		w.waiting.insertByID(next)
	} else {
		delete(w.keys, it.Key)
	}
}

// Started says that the application has received the item, once or more often. It reports
// whether the lease was lost in the meantime.
func (w *Window) Started(it *Item) (lost bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !it.offered {
		return it.lost
	}
	it.offered = false
	it.Handed++
	it.Counted = false
	it.Message = nil
	w.offered = nil
	w.resume()
	return it.lost
}

// Recalled reports whether the item is to be taken back from the application, to
// which it is offered, because it was recalled or lost.
func (w *Window) Recalled(it *Item) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return it.recalled || it.lost
}

// Return puts an offered item that nobody received back to where it was.
func (w *Window) Return(it *Item) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.deactivate(it)
	w.waiting.insertByID(it)
}

// Unhand puts a started item back to where it was: the hand-over counts as if it had
// not happened, here and in Redis, whose count includes the next one again.
func (w *Window) Unhand(it *Item) {
	w.mu.Lock()
	defer w.mu.Unlock()
	it.Handed--
	it.Counted = true
	it.admitted, it.value = w.now(), nil
	w.deactivate(it)
	w.waiting.insertByID(it)
}

// deactivate takes an item out of the active ones.
func (w *Window) deactivate(it *Item) {
	it.leave()
	if w.offered == it {
		w.offered = nil
	}
	if it.Alone {
		w.alone = false
	}
	w.wakeAll()
}

// Backoff makes a nacked item wait for delay.
func (w *Window) Backoff(it *Item, delay time.Duration) {
	now := w.now()
	it.Detach() // it may outlive the rest of its batch by far
	w.mu.Lock()
	defer w.mu.Unlock()
	w.completed(now)
	w.deactivate(it)
	it.due, it.value = now.after(delay), nil
	w.backoff.insertByDue(it)
}

// Done forgets items: settled, lost, or handed back.
func (w *Window) Done(items ...*Item) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, it := range items {
		w.remove(it)
	}
	w.wakeAll()
}

func (w *Window) remove(it *Item) {
	if it.in == nil {
		return
	}
	if it.in == &w.active && it.Alone {
		w.alone = false
	}
	if w.offered == it {
		w.offered = nil
	}
	if k := w.keys[it.Key]; w.cfg.Keyed && k != nil && it.in == &k.queue {
		w.blocked--
	}
	it.leave()
	it.Release() // the items of a batch are one piece of memory, and so is their reply
	w.bytes -= it.Size
	w.freeKey(it)
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
	walk(&w.settling)
	for _, k := range w.keys {
		walk(&k.queue)
	}
}

// Len returns the number of held items.
func (w *Window) Len() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.held()
}

// Active returns the items that are offered or handled.
func (w *Window) Active() []*Item {
	w.mu.Lock()
	defer w.mu.Unlock()
	items := make([]*Item, 0, w.active.n)
	for it := w.active.head; it != nil; it = it.next {
		items = append(items, it)
	}
	return items
}

// Values returns what Offer was given for the items that are offered or handled.
func (w *Window) Values() []any {
	w.mu.Lock()
	defer w.mu.Unlock()
	values := make([]any, 0, w.active.n)
	for it := w.active.head; it != nil; it = it.next {
		values = append(values, it.value)
	}
	return values
}

// Due returns the time that a nacked item has still to wait.
func (w *Window) Due(it *Item) time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	if it.due == 0 {
		return 0
	}
	return time.Duration(max(0, it.due-w.now()))
}

// Close ends fetching and handing out, and returns the items that nobody handles,
// which are no longer held.
func (w *Window) Close() []*Item {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed = true
	var items []*Item
	w.each(func(it *Item) {
		if it.in != &w.active && it.in != &w.settling {
			items = append(items, it)
		}
	})
	for _, it := range items {
		w.remove(it)
	}
	signal(w.Ready)
	signal(w.Room)
	return items
}

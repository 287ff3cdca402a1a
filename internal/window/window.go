// Package window holds the entries that one subscription has taken from Redis and
// not yet settled: it decides what is handed out next, how much may be fetched,
// and whose lease still holds. It knows nothing of Redis, channels or messages.
//
// An item is admitted (waiting), taken by Next (offered), Started (handled), and
// then either Settled and Done, or sent to Backoff and waiting again.
package window

import (
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
	Keyed         bool          // at most one item in flight per Item.Key
	LeaseTime     time.Duration // how long a lease holds from the sending of its command
}

// Item is one entry in the window. Exported fields are set before Admit and are
// changed afterwards only by the goroutine that took the item with Next, except
// those that a method of Window is documented to set.
type Item struct {
	stream.Entry
	Handed  int  // times the entry was handed to a handler, in this process or before; set by Started
	Counted bool // Redis' delivery count includes the next hand-over already; set by Started and SetCounted
	Alone   bool // to be handled while nothing else is: it may kill the process
	Key     string
	Message any    // decoded already, because its key was needed
	Reason  string // why the entry goes to the dead-letter stream; empty for an ack

	// For the goroutine that writes settlements.
	Attempts int
	Retry    time.Time

	// Set by Window methods, under its lock.
	value      any // of Offer
	gone, lost bool
	recalled   bool
	leased     time.Time // when the command that obtained or renewed the lease was sent
	admitted   time.Time
	due        time.Time
	ownsKey    bool

	in         *list
	prev, next *Item
}

// Window is safe for concurrent use.
type Window struct {
	cfg Config

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
	rest     time.Time // nothing is handed out before
	closed   bool
	voided   time.Time

	// What the adaptive prefetch knows.
	lastRead int           // entries of the last read
	largest  int           // size of the largest recent entry
	interval time.Duration // moving average of the time between two completions
	mark     time.Time     // last completion, or when work arrived after a lull
}

type keyState struct {
	busy  bool
	queue list // in stream order
}

// New returns an empty window.
func New(cfg Config) *Window {
	return &Window{
		cfg:   cfg,
		Room:  make(chan struct{}, 1),
		Ready: make(chan struct{}, 1),
		Flush: make(chan struct{}, 1),
		keys:  make(map[string]*keyState),
	}
}

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

func (w *Window) limit() int { return w.cfg.Prefetch + w.cfg.MaxInFlight }

// target is how many items should be waiting now: those that free handlers can
// take at once, and what is finished within `ahead`.
func (w *Window) target() int {
	free := w.cfg.MaxInFlight - w.active.n
	if w.strict() && w.backoff.n > 0 {
		free = 0
	}
	return max(0, free) + w.prefetch()
}

func (w *Window) prefetch() int {
	if w.interval <= 0 {
		return 0 // nothing was finished yet
	}
	return min(w.cfg.Prefetch, int(ahead/w.interval))
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
		room = min(room, max(1, (w.cfg.PrefetchBytes-w.bytes)/w.largest))
	}
	w.reserved = room
	return room
}

// EndRead ends the reservation. n is how many entries were read.
func (w *Window) EndRead(n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.reserved = 0
	if n > 0 {
		w.lastRead = n
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

// Admit puts entries into the window whose lease runs from leased. None of them may be
// held already.
func (w *Window) Admit(items []Item, leased time.Time) {
	if len(items) == 0 {
		return
	}
	now := time.Now()
	w.mu.Lock()
	if w.held() == w.settling.n {
		w.mark = now
	}
	w.largest -= w.largest / 8
	for i := range items {
		it := &items[i]
		it.leased, it.admitted = leased, now
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
	if !w.rest.IsZero() {
		if d := time.Until(w.rest); d > 0 {
			return nil, d
		}
		w.rest = time.Time{}
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

// resume allows fetching again.
func (w *Window) resume() {
	if w.paused {
		w.paused = false
		signal(w.Room)
	}
}

// Offer says that the item taken with Next is offered to the application now.
// value is what Lose returns for it.
func (w *Window) Offer(it *Item, value any) {
	w.mu.Lock()
	w.offered, it.value = it, value
	w.mu.Unlock()
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
	now := time.Now()
	for it := w.backoff.head; it != nil; it = w.backoff.head {
		if d := it.due.Sub(now); d > 0 {
			return d
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

// Started says that the application has received the item. It reports whether the
// lease was lost in the meantime.
func (w *Window) Started(it *Item) (lost bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
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

// Rest hands out nothing for d.
func (w *Window) Rest(d time.Duration) {
	w.mu.Lock()
	w.rest = time.Now().Add(d)
	w.mu.Unlock()
}

// Return puts an offered item that nobody received back to where it was.
func (w *Window) Return(it *Item) {
	w.mu.Lock()
	defer w.mu.Unlock()
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

// Backoff makes a nacked item wait for delay.
func (w *Window) Backoff(it *Item, delay time.Duration) {
	now := time.Now()
	it.Detach() // it may outlive the rest of its batch by far
	w.mu.Lock()
	defer w.mu.Unlock()
	w.completed(now)
	w.deactivate(it)
	it.due, it.value = now.Add(delay), nil
	w.backoff.insertByDue(it)
}

// Settle makes an active item wait for its settlement to be written.
func (w *Window) Settle(it *Item) {
	now := time.Now()
	w.mu.Lock()
	w.completed(now)
	w.deactivate(it)
	it.value, it.Message = nil, nil
	w.freeKey(it)
	w.settling.push(it)
	w.mu.Unlock()
	signal(w.Flush)
}

// Finish forgets an active item that needs no settlement.
func (w *Window) Finish(it *Item) {
	now := time.Now()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.completed(now)
	w.remove(it)
	w.wakeAll()
}

// completed feeds the average that the adaptive prefetch rests on: the time
// between two completions while there was work.
func (w *Window) completed(now time.Time) {
	d := max(1, now.Sub(w.mark))
	w.mark = now
	if w.interval == 0 {
		w.interval = d
	} else {
		w.interval += (d - w.interval) / 8
	}
	w.interval = max(1, w.interval)
}

// Settling appends the items that wait for their settlement to be written, in the
// order in which they were settled.
func (w *Window) Settling(buf []*Item) []*Item {
	w.mu.Lock()
	defer w.mu.Unlock()
	for it := w.settling.head; it != nil; it = it.next {
		buf = append(buf, it)
	}
	return buf
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

// Expiring returns the items whose lease is older than age or void. Those that are
// gone or lost have none.
func (w *Window) Expiring(age time.Duration) []*Item {
	before := time.Now().Add(-age)
	w.mu.Lock()
	defer w.mu.Unlock()
	var items []*Item
	w.each(func(it *Item) {
		if !it.gone && !it.lost && (it.leased.Before(before) || !it.leased.After(w.voided)) {
			items = append(items, it)
		}
	})
	return items
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

// Pending returns the held entries with the delivery counts that Redis should have.
func (w *Window) Pending() []stream.Pending {
	w.mu.Lock()
	defer w.mu.Unlock()
	pending := make([]stream.Pending, 0, w.held())
	w.each(func(it *Item) {
		if it.gone || it.lost {
			return
		}
		pending = append(pending, it.pending())
	})
	return pending
}

func (it *Item) pending() stream.Pending {
	count := it.Handed
	if it.Counted {
		count++
	}
	return stream.Pending{ID: it.ID, Text: it.Text, Count: count}
}

// IDs returns the IDs of all held items.
func (w *Window) IDs() map[stream.ID]struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	ids := make(map[stream.ID]struct{}, w.held())
	w.each(func(it *Item) { ids[it.ID] = struct{}{} })
	return ids
}

// Find returns the held items among these IDs, and the IDs of which none is held.
func (w *Window) Find(ids []string) (items []*Item, rest []string) {
	if len(ids) == 0 {
		return nil, nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	held := make(map[string]*Item, w.held())
	w.each(func(it *Item) { held[it.Text] = it })
	for _, id := range ids {
		if it := held[id]; it != nil {
			items = append(items, it)
		} else {
			rest = append(rest, id)
		}
	}
	return items, rest
}

// Leased reports whether the lease of the item holds now.
func (w *Window) Leased(it *Item) bool {
	now := time.Now()
	w.mu.Lock()
	defer w.mu.Unlock()
	return !it.lost && !it.gone && it.leased.After(w.voided) && now.Sub(it.leased) < w.cfg.LeaseTime
}

// Unexpired parts items by whether nobody else can have taken them since their leases
// were renewed: those that are neither settled nor lost and whose lease has not run out.
// pending are these with the delivery counts that Redis should have.
func (w *Window) Unexpired(items []*Item) (yes []*Item, pending []stream.Pending, no []*Item) {
	now := time.Now()
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, it := range items {
		if it.in != nil && it.in != &w.settling && !it.lost && !it.gone && now.Sub(it.leased) < w.cfg.LeaseTime {
			yes, pending = append(yes, it), append(pending, it.pending())
		} else {
			no = append(no, it)
		}
	}
	return yes, pending, no
}

// Renewed starts the leases anew from the sending of the command that did it.
func (w *Window) Renewed(sent time.Time, items ...*Item) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, it := range items {
		it.leased = sent
	}
}

// Void ends all leases: what a server knew before a reconnect may be gone.
func (w *Window) Void() {
	now := time.Now()
	w.mu.Lock()
	w.voided = now
	w.mu.Unlock()
}

// Lose marks an item as not owned any more, once. One that nobody handles is
// forgotten. For one that is offered or handled it returns the value of Offer.
// vanished says that nobody owns it: for an item that is being settled that is
// just what its settlement looks like, so it is left alone.
func (w *Window) Lose(it *Item, vanished bool) (value any, first bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if it.in == nil || it.lost || vanished && it.in == &w.settling {
		return nil, false
	}
	it.lost = true
	if it.in == &w.active {
		return it.value, true
	}
	if it.in != &w.settling {
		w.remove(it)
		w.wakeAll()
	}
	return nil, true
}

// Lost reports whether the item is owned by somebody else.
func (w *Window) Lost(it *Item) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return it.lost
}

// SetGone marks an item whose entry Redis no longer has. It lives on in memory.
func (w *Window) SetGone(it *Item) (first bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	first = !it.gone
	it.gone = true
	return first
}

// Gone reports whether Redis no longer has the entry.
func (w *Window) Gone(it *Item) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return it.gone
}

// Due returns the time that a nacked item has still to wait.
func (w *Window) Due(it *Item) time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	return max(0, time.Until(it.due))
}

// Oldest returns when the item that waits longest was admitted.
func (w *Window) Oldest() (t time.Time, ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.offered != nil {
		t, ok = w.offered.admitted, true
	}
	for it := w.waiting.head; it != nil; it = it.next {
		if !ok || it.admitted.Before(t) {
			t, ok = it.admitted, true
		}
	}
	return t, ok
}

// TakeStale removes and returns the items that have waited since before t, and
// stops fetching until the application receives again. Items of a key that is busy
// stay: taking them would let later ones of the key overtake them. An item that
// was admitted before recall and is offered is marked as recalled.
func (w *Window) TakeStale(t, recall time.Time) (items []*Item, recalled bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.offered != nil && w.offered.admitted.Before(recall) && !w.offered.gone {
		w.offered.recalled, recalled = true, true
	}
	for it := w.waiting.head; it != nil; {
		next := it.next
		if it.admitted.Before(t) && !it.ownsKey && !it.gone {
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

package window

import "github.com/flaminco/redischannels/internal/stream"

// keyring keeps the order of each ordering key: one item of a key is in flight or backing off,
// or several that one batch has taken together; the later ones wait in a queue.
//
// A blocked key (its item backs off, or is handled for long) may hold at most bound items: it
// would else fill the window, and hoard what other consumers could have. What exceeds the bound
// leaves the window and stays pending in Redis, where other consumers can claim it, and so does
// everything that comes later of the key: the key overflows. When it has nothing left the
// pending entries are read again in stream order (a pass). The overflow ends with a pass that
// has admitted all of the key.
type keyring struct {
	bound   int
	bytes   int // the same in bytes
	states  map[string]*keyState
	queued  int  // items in all queues
	pass    bool // the pending entries are being read again
	leftOut bool // entries were, since Window.Share
}

type keyState struct {
	held     int // items in the window, but for those whose acknowledgement is being written
	bytes    int // of these
	active   int // items that own it: in flight or backing off, or the one that comes next
	flying   int // those in flight
	batch    int // call of Take that has taken the active ones
	blocked  bool
	queue    list
	overflow bool
	left     bool // by the pass
}

// minKeyBound is how many items of a blocked key may be held at least.
const minKeyBound = 16

func (r *keyring) init(cfg Config) {
	r.states = make(map[string]*keyState)
	r.bound = max(minKeyBound, (cfg.Prefetch+cfg.MaxInFlight)/8)
	r.bytes = max(1, cfg.PrefetchBytes/8)
}

// of returns the state of an item's key.
func (r *keyring) of(it *Item) *keyState {
	k := r.states[it.Key]
	if k == nil {
		k = &keyState{}
		r.states[it.Key] = k
	}
	return k
}

// count counts an item.
func (r *keyring) count(it *Item) {
	k := r.of(it)
	k.held++
	k.bytes += it.Size
}

// admit counts an item, or reports that it is left out.
func (r *keyring) admit(it *Item) bool {
	k := r.of(it)
	full := k.held >= r.bound || k.bytes >= r.bytes
	if k.blocked && full || k.overflow && (!r.pass || k.left || full) {
		r.overflow(k)
		return false
	}
	r.count(it)
	return true
}

// exit ends the count of an item, which must not own its key. It reports whether the pending
// entries are to be read again.
func (r *keyring) exit(it *Item) (drained bool) {
	k := r.states[it.Key]
	k.held--
	k.bytes -= it.Size
	if k.held == 0 && !k.overflow {
		delete(r.states, it.Key)
	}
	return k.held == 0 && k.overflow
}

// may reports whether an item can be delivered in a batch as far as those of its key go that are in
// flight: there is none, or only in this batch, and none waits that comes before this one.
func (r *keyring) may(it *Item, batch int) bool {
	k := r.states[it.Key]
	return k.flying == 0 || k.batch == batch && (k.queue.n == 0 || it.before(k.queue.head))
}

// own makes an item one of those that the others of its key wait for.
func (r *keyring) own(it *Item) {
	if !it.ownsKey {
		it.ownsKey = true
		r.states[it.Key].active++
	}
}

// contended reports whether an item owns the key of one, other than itself, that is not in flight.
func (r *keyring) contended(it *Item) bool {
	k := r.states[it.Key]
	others := k.active - k.flying
	if it.ownsKey {
		others--
	}
	return others > 0
}

// grounded reports whether an item owns the key of one that is not in flight.
func (r *keyring) grounded(it *Item) bool {
	k := r.states[it.Key]
	return k.active > k.flying
}

// busy reports whether an item of the key of one is in flight.
func (r *keyring) busy(it *Item) bool { return r.states[it.Key].flying > 0 }

// fly says that an item is in flight, as one of its batch.
func (r *keyring) fly(it *Item) {
	r.own(it)
	k := r.states[it.Key]
	k.flying++
	k.batch = it.batch
}

// follow takes the item that comes next of its key, and behind this one, out of the queue: it may
// join the batch of this one. It owns the key from now on: if it does not join, it is the next.
func (r *keyring) follow(it *Item) *Item {
	if next := r.states[it.Key].queue.head; next != nil && it.before(next) {
		return r.pull(next)
	}
	return nil
}

// land says that an item is in flight no more, and returns the one that is next of its key.
func (r *keyring) land(it *Item) *Item {
	k := r.states[it.Key]
	k.flying--
	return r.promote(k)
}

// promote takes the next item of a key of which none is in flight out of its queue. It owns the key
// from now on, so that nothing admitted meanwhile overtakes it.
func (r *keyring) promote(k *keyState) *Item {
	if k.flying > 0 {
		return nil
	}
	return r.pull(k.queue.head)
}

// pull takes an item, or nil, out of a queue, and makes it own its key.
func (r *keyring) pull(it *Item) *Item {
	if it != nil {
		r.leave(it)
		r.own(it)
	}
	return it
}

// wait puts an item into the queue of its key.
func (r *keyring) wait(it *Item) {
	r.states[it.Key].queue.insertByID(it)
	r.queued++
}

// leave takes an item out of the list that it is in, which may be the queue of its key.
func (r *keyring) leave(it *Item) {
	if k := r.states[it.Key]; k != nil && it.in == &k.queue {
		r.queued--
	}
	it.leave()
}

// free ends the ownership of an item, and returns the one that is next of its key.
func (r *keyring) free(it *Item) *Item {
	k := r.states[it.Key]
	it.ownsKey = false
	if k.active--; k.active == 0 {
		k.blocked = false
	}
	return r.promote(k)
}

// block says that the key of an item does not get on, and reports whether it holds more than the
// bounds allow.
func (r *keyring) block(it *Item) (excess bool) {
	k := r.states[it.Key]
	k.blocked = true
	if k.held > r.bound || k.held > 1 && k.bytes > r.bytes {
		r.overflow(k)
		return true
	}
	return false
}

// overflow leaves entries of a key out. (A pass may have been past them.)
func (r *keyring) overflow(k *keyState) { k.overflow, k.left, r.leftOut = true, true, true }

// drained reports whether the pending entries are to be read again.
func (r *keyring) drained() bool {
	for _, k := range r.states {
		if k.overflow && k.held == 0 {
			return true
		}
	}
	return false
}

// queuedBefore reports whether an entry up to this one is in a queue.
func (r *keyring) queuedBefore(id stream.ID) bool {
	for _, k := range r.states {
		if k.queue.n > 0 && !id.Less(k.queue.head.ID) {
			return true
		}
	}
	return false
}

// begin begins a pass through the pending entries.
func (r *keyring) begin() {
	r.pass = true
	for _, k := range r.states {
		k.left = false
	}
}

// end ends a pass. complete says that it has passed all of them.
func (r *keyring) end(complete bool) {
	r.pass = false
	if !complete {
		return
	}
	for key, k := range r.states {
		k.overflow = k.overflow && k.left
		if k.held == 0 && !k.overflow {
			delete(r.states, key)
		}
	}
}

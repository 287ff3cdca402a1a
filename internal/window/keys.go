package window

import "github.com/flaminco/redischannels/internal/stream"

// keyring keeps the order of each ordering key: one item of a key is in flight or backing off,
// or several that one batch has taken together; the later ones wait in a queue.
//
// A blocked key (its item backs off, or is handled for long) may have at most bound items:
// otherwise it would fill the window, and keep entries that other consumers could handle. Items
// beyond the bound, and all later ones of the key, leave the window and stay pending in Redis,
// where other consumers can claim them: the key overflows. When it has no items left the pending
// entries are read again in stream order (a pass). The overflow ends with a pass that has
// admitted all entries of the key.
type keyring struct {
	bound   int
	bytes   int // the same in bytes
	states  map[string]*keyState
	queued  int  // items in all queues
	pass    bool // the pending entries are being read again
	leftOut bool // entries were, since Window.Share
}

type keyState struct {
	held     int // items in the window, except those whose acknowledgement is being written
	bytes    int // of these
	active   int // items that own it: in flight or backing off, or the next one
	flying   int // those in flight
	batch    int // call of Take that has taken the active ones
	blocked  bool
	queue    list
	overflow bool
	left     bool // by the pass
}

// minKeyBound is the minimum bound of the items of a blocked key.
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
// entries must be read again.
func (r *keyring) exit(it *Item) (drained bool) {
	k := r.states[it.Key]
	k.held--
	k.bytes -= it.Size
	if k.held == 0 && !k.overflow {
		delete(r.states, it.Key)
	}
	return k.held == 0 && k.overflow
}

// may reports whether its key allows an item to be delivered in a batch: no item of the key is in
// flight, or only in this batch, and none that waits is before this one.
func (r *keyring) may(it *Item, batch int) bool {
	k := r.states[it.Key]
	return k.flying == 0 || k.batch == batch && (k.queue.n == 0 || it.before(k.queue.head))
}

// own makes an item an owner of its key, for which the others of the key wait.
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

// fly records that an item is in flight in its batch.
func (r *keyring) fly(it *Item) {
	r.own(it)
	k := r.states[it.Key]
	k.flying++
	k.batch = it.batch
}

// follow removes the next item of the key behind this one from the queue: it may join the batch
// of this one. It owns the key from now on: if it does not join, it is the next.
func (r *keyring) follow(it *Item) *Item {
	if next := r.states[it.Key].queue.head; next != nil && it.before(next) {
		return r.pull(next)
	}
	return nil
}

// land records that an item is no longer in flight, and returns the next one of its key.
func (r *keyring) land(it *Item) *Item {
	k := r.states[it.Key]
	k.flying--
	return r.promote(k)
}

// promote removes the next item of a key without items in flight from its queue. It owns the key
// from now on, so that no item admitted meanwhile overtakes it.
func (r *keyring) promote(k *keyState) *Item {
	if k.flying > 0 {
		return nil
	}
	return r.pull(k.queue.head)
}

// pull removes an item, or nil, from a queue, and makes it own its key.
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

// leave removes an item from its list, which may be the queue of its key.
func (r *keyring) leave(it *Item) {
	if k := r.states[it.Key]; k != nil && it.in == &k.queue {
		r.queued--
	}
	it.leave()
}

// free ends the ownership of an item, and returns the next one of its key.
func (r *keyring) free(it *Item) *Item {
	k := r.states[it.Key]
	it.ownsKey = false
	if k.active--; k.active == 0 {
		k.blocked = false
	}
	return r.promote(k)
}

// block marks the key of an item as blocked, and reports whether it exceeds the bounds.
func (r *keyring) block(it *Item) (excess bool) {
	k := r.states[it.Key]
	k.blocked = true
	if k.held > r.bound || k.held > 1 && k.bytes > r.bytes {
		r.overflow(k)
		return true
	}
	return false
}

// overflow leaves out entries of a key. (A pass may have passed them.)
func (r *keyring) overflow(k *keyState) { k.overflow, k.left, r.leftOut = true, true, true }

// drained reports whether the pending entries must be read again.
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

// end ends a pass. complete means that it has passed all of them.
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

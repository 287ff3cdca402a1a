package window

// Settle makes an active item wait for its settlement to be written.
func (w *Window) Settle(it *Item) {
	now := w.now()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.completed(now)
	w.settle(it)
}

func (w *Window) settle(it *Item) {
	w.deactivate(it)
	it.value, it.Message = nil, nil
	w.freeKey(it)
	w.settling.push(it)
	signal(w.Flush)
}

// Acked ends an active item that was acknowledged: one that is still in Redis and
// ours waits for its settlement to be written, any other is forgotten. It reports
// whether the item was lost.
func (w *Window) Acked(it *Item) (lost bool) {
	now := w.now()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.completed(now)
	if it.gone || it.lost {
		w.remove(it)
		w.wakeAll()
		return it.lost && !it.gone
	}
	w.settle(it)
	return false
}

// Finish forgets an active item that needs no settlement.
func (w *Window) Finish(it *Item) {
	now := w.now()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.completed(now)
	w.remove(it)
	w.wakeAll()
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

// Standing is who has the entry of an item, as far as is known.
type Standing uint8

// The standings.
const (
	StandingLeased Standing = iota // nobody else can own it
	StandingUnsure                 // its lease is over
	StandingGone                   // Redis no longer has it
	StandingLost                   // somebody else owns it
)

// Standings appends the standing of each item.
func (w *Window) Standings(items []*Item, buf []Standing) []Standing {
	now := w.now()
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, it := range items {
		standing := StandingUnsure
		switch {
		case it.lost:
			standing = StandingLost
		case it.gone:
			standing = StandingGone
		case w.leased(it, now):
			standing = StandingLeased
		}
		buf = append(buf, standing)
	}
	return buf
}

package window

import "time"

const (
	// lookEvery is the age of the last check at which another one is requested, while items are
	// delivered or offered.
	lookEvery = time.Second
	// lookValid is how long attempts may start after a check was sent.
	lookValid = 2 * time.Second
)

// Pause is the last known pause state of the group. While it is paused nothing is read, claimed
// or delivered. The lock of the window guards it.
type Pause struct {
	w *Window

	// Look receives a value when a check may be due: see Due.
	Look chan struct{}

	paused  bool
	looked  instant // when the last check with a reply was sent
	next    instant // when the next one is due, if any
	blind   bool    // a check had no reply: the last known state stays
	asked   bool    // an item is ready for delivery, and the last check is old
	watched bool    // Due will be called again, within lookEvery of the last check
}

// running reports whether an attempt may start.
func (p *Pause) running(now instant) bool {
	if p.paused || !p.w.cfg.Pausable {
		return !p.paused
	}
	if now >= p.next && !p.asked {
		p.asked = true
		signal(p.Look)
	}
	return p.blind || now-p.looked <= instant(lookValid)
}

// watch makes checks continue while an item is offered: the application may receive it at any
// time.
func (p *Pause) watch() {
	if p.w.cfg.Pausable && !p.watched {
		p.watched = true
		signal(p.Look)
	}
}

// Due returns the time until a check is due, and whether one is: while the group is paused, and
// as long as items are delivered or offered. The caller calls again then, or when Look receives a
// value.
func (p *Pause) Due() (wait time.Duration, ok bool) {
	w := p.w
	now := w.now()
	w.mu.Lock()
	defer w.mu.Unlock()
	p.watched = p.paused || p.asked || w.offers > 0
	if !p.watched || w.closed {
		return 0, false
	}
	return max(0, time.Duration(p.next-now)), true
}

// Looked records whether the group was paused when a command was sent, and reports whether this
// is a change.
func (p *Pause) Looked(sent time.Time, paused bool) (news bool) {
	w := p.w
	at := w.instant(sent)
	w.mu.Lock()
	defer w.mu.Unlock()
	if at < p.looked {
		return false
	}
	news = p.paused != paused
	p.looked, p.next = at, at.after(lookEvery)
	p.paused, p.blind, p.asked = paused, false, false
	p.wake()
	if paused {
		signal(p.Look) // it continues until the group is resumed
	}
	return news
}

// Blind records that a check has no reply: until there is one, the last known state stays.
func (p *Pause) Blind() {
	w := p.w
	now := w.now()
	w.mu.Lock()
	defer w.mu.Unlock()
	p.blind, p.asked, p.next = true, false, now.after(lookEvery)
	p.wake()
}

func (p *Pause) wake() {
	signal(p.w.Ready)
	signal(p.w.Room.Changed)
}

// Paused reports whether the group is paused, by the last known state.
func (p *Pause) Paused() bool {
	p.w.mu.Lock()
	defer p.w.mu.Unlock()
	return p.paused
}

// TakeBuffered removes and returns, while the group is paused, the items that can be released (see
// releasable). Window.Released must follow.
func (p *Pause) TakeBuffered() []*Item {
	w := p.w
	now := w.now()
	w.mu.Lock()
	defer w.mu.Unlock()
	if !p.paused {
		return nil
	}
	w.wake(now)
	items := w.releasable()
	if len(items) > 0 {
		w.leave(items, now)
	}
	return items
}

package window

import "time"

const (
	// lookEvery is how old the last look may be before another one is asked for, while something is
	// delivered or offered.
	lookEvery = time.Second
	// lookValid is for how long attempts may start after a look was sent.
	lookValid = 2 * time.Second
)

// Pause is what is known about whether the group is paused. Then nothing is read, claimed or delivered. All
// of it is guarded by the lock of the window.
type Pause struct {
	w *Window

	// Look has a token when a look may be due: see Due.
	Look chan struct{}

	paused  bool
	looked  instant // when the last look was sent that was answered
	next    instant // when the next one is due, if any
	blind   bool    // one was not answered: what is known holds
	asked   bool    // something is to be delivered, and the last look is old
	watched bool    // Due will be asked again, within lookEvery of the last look
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

// watch sees to it that looks continue while something is offered: the application may receive it at
// any time.
func (p *Pause) watch() {
	if p.w.cfg.Pausable && !p.watched {
		p.watched = true
		signal(p.Look)
	}
}

// Due returns the time until a look is due, and whether one is: while the group is paused, and as long as
// something is delivered or offered. The caller comes again then, or after a token in Look.
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

// Looked says whether the group was paused when a command was sent, and reports whether that is news.
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

// Blind says that a look has no answer: until there is one, what is known holds.
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

// Paused reports whether the group is paused, as far as that is known.
func (p *Pause) Paused() bool {
	p.w.mu.Lock()
	defer p.w.mu.Unlock()
	return p.paused
}

// TakeBuffered removes and returns, while the group is paused, the items that are buffered and not in
// memory only, unless there is an order. Window.Released follows.
func (p *Pause) TakeBuffered() []*Item {
	w := p.w
	now := w.now()
	w.mu.Lock()
	defer w.mu.Unlock()
	if !p.paused || w.cfg.Ordered || w.cfg.Keyed {
		return nil
	}
	w.wake(now)
	items := w.releasable()
	for _, it := range items {
		w.remove(it)
	}
	w.leaving += len(items)
	return items
}

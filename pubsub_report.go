package redischannels

import (
	"sync"
	"time"
)

// reporter tells what happens, event by event, in a goroutine of its own that runs while
// there is something to tell: neither OnEvent nor the logger may hold up a connection, or
// a lock under which something has happened. Its lock is the last of all: it is taken
// under those of the mux and of the queues, and under those of a subscription.
type reporter struct {
	tell  func(Event)
	limit int // of events that wait, 0 for none

	mu      sync.Mutex
	room    sync.Cond // fewer events wait
	events  []Event
	tallies []*tally // with something to tell
	running bool
	closed  bool
	wake    chan struct{}
	wg      sync.WaitGroup
}

// tally collects what happens to messages of a subscription, so that a flood of them
// makes no flood of events. reporter.mu guards all but the first two.
type tally struct {
	topic string
	kind  EventKind
	count int
	err   error // of the latest
	told  time.Time
}

func newReporter(tell func(Event), limit int) *reporter {
	r := &reporter{tell: tell, limit: limit, wake: make(chan struct{}, 1)}
	r.room.L = &r.mu
	return r
}

// post reports an event soon. It does not wait, unless as many events do as may.
func (r *reporter) post(e Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for r.limit > 0 && len(r.events) >= r.limit {
		r.room.Wait()
	}
	r.events = append(r.events, e)
	r.start()
}

// count adds to a tally. It does not wait.
func (r *reporter) count(t *tally, n int, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if t.count == 0 {
		r.tallies = append(r.tallies, t)
		r.start()
	}
	t.count += n
	if err != nil {
		t.err = err
	}
}

// close reports what is left and returns when that is done.
func (r *reporter) close() {
	r.mu.Lock()
	r.closed = true
	r.signal()
	r.mu.Unlock()
	r.wg.Wait()
}

// start runs the goroutine, or wakes it up. r.mu is held.
func (r *reporter) start() {
	if r.running {
		r.signal()
		return
	}
	r.running = true
	r.wg.Go(r.run)
}

func (r *reporter) signal() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

func (r *reporter) run() {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		events, wait, ok := r.next()
		if !ok {
			return
		}
		for _, e := range events {
			r.tell(e)
		}
		if len(events) > 0 {
			continue
		}
		timer.Reset(wait)
		select {
		case <-timer.C:
		case <-r.wake:
		}
	}
}

// next returns what is to be told now, or the time until then. ok is false when
// nothing is left; then the goroutine has to end.
func (r *reporter) next() (events []Event, wait time.Duration, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	events, r.events = r.events, nil
	r.room.Broadcast()
	now := time.Now()
	left := r.tallies[:0]
	for _, t := range r.tallies {
		if rest := tallyInterval - now.Sub(t.told); rest > 0 && !r.closed {
			if wait == 0 || rest < wait {
				wait = rest
			}
			left = append(left, t)
			continue
		}
		events = append(events, Event{Kind: t.kind, Topic: t.topic, Count: t.count, Err: t.err})
		t.count, t.err, t.told = 0, nil, now
	}
	clear(r.tallies[len(left):])
	r.tallies = left
	if len(events) == 0 && len(left) == 0 {
		r.running = false
		return nil, 0, false
	}
	return events, wait, true
}

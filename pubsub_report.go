package redischannels

import (
	"container/list"
	"sync"
	"time"
)

// reporter tells what happens, event by event, in a goroutine of its own that runs while
// there is something to tell: neither OnEvent nor the logger may hold up a connection, or
// a lock under which something has happened. Its lock is the last of all: it is taken
// under those of the mux and of the queues, and under those of a subscription.
//
// Not more than limit events wait for a slow OnEvent. Who has one more waits as well or,
// where nobody may, adds it to the one of the same subject that waits: then there are no
// more than limit and one for each subject.
type reporter struct {
	tell  func(Event)
	limit int
	merge bool // in place of waiting

	mu      sync.Mutex
	room    sync.Cond                 // fewer events wait
	events  list.List                 // of Event
	latest  map[subject]*list.Element // of events
	tallies []*tally                  // with something to tell
	pending map[subject]*tally        // the same
	running bool
	closed  bool
	wake    chan struct{}
	wg      sync.WaitGroup
}

// subject is what an event is about.
type subject struct {
	kind  EventKind
	topic string
}

// tally collects what happens to messages of a subscription, so that a flood of them
// makes no flood of events. What another subscription of the topic has to tell is added to
// what waits already. reporter.mu guards all but the first.
type tally struct {
	subject
	count int
	err   error // of the latest
	told  time.Time
}

func newReporter(tell func(Event), limit int, merge bool) *reporter {
	r := &reporter{tell: tell, limit: limit, merge: merge, wake: make(chan struct{}, 1)}
	r.latest, r.pending = make(map[subject]*list.Element), make(map[subject]*tally)
	r.room.L = &r.mu
	return r
}

// post reports an event soon. It waits where as many events do as may, unless it merges.
func (r *reporter) post(e Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for !r.merge && r.events.Len() >= r.limit {
		r.room.Wait()
	}
	about := subject{e.Kind, e.Topic}
	if before := r.latest[about]; before != nil && r.events.Len() >= r.limit {
		e = merged(r.events.Remove(before).(Event), e)
	}
	// At the end also if merged: that it is up again is not told before that it is down.
	r.latest[about] = r.events.PushBack(e)
	r.start()
}

// merged is an event in place of two.
func merged(a, b Event) Event {
	b.Count = max(a.Count, 1) + max(b.Count, 1)
	b.Duration += a.Duration
	return b
}

// count adds to a tally. It does not wait.
func (r *reporter) count(t *tally, n int, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if t.count == 0 {
		if other := r.pending[t.subject]; other != nil {
			t = other
		} else {
			r.tallies, r.pending[t.subject] = append(r.tallies, t), t
			r.start()
		}
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
	for e := r.events.Front(); e != nil; e = e.Next() {
		events = append(events, e.Value.(Event))
	}
	r.events.Init()
	clear(r.latest)
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
		delete(r.pending, t.subject)
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

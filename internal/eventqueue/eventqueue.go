// Package eventqueue delivers events to a function of the application: in order, bounded in
// memory and in time, and from one goroutine that runs while there is something to deliver.
package eventqueue

import (
	"container/list"
	"errors"
	"sync"
	"time"

	"github.com/flaminco/redischannels/internal/lifecycle"
)

// Config configures [New]. S is the subject of an event.
type Config[S comparable, E any] struct {
	// Deliver receives the events one after the other. It may block and must not panic.
	Deliver func(E)
	// Abandon receives the events for which Close did not wait, none if only the running call of
	// Deliver takes too long, and the events after Close.
	Abandon func([]E)

	// Limit is the maximum number of events that wait for Deliver. Beyond it Post waits or, with
	// Merging, merges an event with the waiting one of the same subject: then at most Limit and
	// one for each subject wait.
	Limit   int
	Merging bool
	Subject func(E) S
	Merge   func(older, newer E) E

	// Interval is the minimum time between two events of one subject from Tally.
	Interval time.Duration
	// Grace is how long Close waits for Deliver.
	Grace time.Duration
}

// Queue is a queue of events for one function. Neither the function nor a logger may block a
// connection, or a lock of the caller, so the queue's goroutine calls both. No lock is taken
// under its lock. It is safe for concurrent use.
type Queue[S comparable, E any] struct {
	conf Config[S, E]
	life *lifecycle.State // calls that add events

	mu      sync.Mutex
	room    sync.Cond           // fewer events wait, or Post does not wait any longer
	events  list.List           // of *item[E]
	latest  map[S]*list.Element // of events
	tallies list.List           // of *tally[S, E], by when they are due
	tallyOf map[S]*list.Element // of tallies
	open    int                 // tallies with an event
	ended   chan struct{}       // closed by End: only Close waits for Deliver
	running chan struct{}       // closed when the goroutine ends; nil without one
	wake    chan struct{}       // to it: there is something new
}

type item[E any] struct {
	event     E
	delivered []chan struct{} // closed when the event was delivered or abandoned
}

// tally merges the events of one subject, so that many occurrences make few events.
type tally[S comparable, E any] struct {
	subject S
	event   E
	open    bool      // it has an event
	due     time.Time // when the event may be delivered, or when the tally is removed
}

// New returns a queue. It starts no goroutine.
func New[S comparable, E any](conf Config[S, E]) *Queue[S, E] {
	q := &Queue[S, E]{
		conf:    conf,
		life:    lifecycle.New(errors.New("the event queue is closed")),
		latest:  make(map[S]*list.Element),
		tallyOf: make(map[S]*list.Element),
		ended:   make(chan struct{}),
		wake:    make(chan struct{}, 1),
	}
	q.room.L = &q.mu
	return q
}

// Post adds an event. If Limit events already wait, it waits or merges.
func (q *Queue[S, E]) Post(e E) { q.post(&item[E]{event: e}) }

// PostAndWait adds an event and returns when it was delivered, or at the end.
func (q *Queue[S, E]) PostAndWait(e E) {
	delivered := make(chan struct{})
	q.post(&item[E]{event: e, delivered: []chan struct{}{delivered}})
	select {
	case <-delivered:
	case <-q.ended:
	}
}

func (q *Queue[S, E]) post(it *item[E]) {
	if q.life.Enter() != nil {
		q.conf.Abandon([]E{it.event})
		it.finish()
		return
	}
	defer q.life.Leave()
	q.mu.Lock()
	defer q.mu.Unlock()
	for !q.conf.Merging && !q.isEnded() && q.events.Len() >= q.conf.Limit {
		q.room.Wait()
	}
	subject := q.conf.Subject(it.event)
	if before := q.latest[subject]; q.conf.Merging && before != nil && q.events.Len() >= q.conf.Limit {
		older := q.events.Remove(before).(*item[E])
		it.event = q.conf.Merge(older.event, it.event)
		it.delivered = append(it.delivered, older.delivered...)
	}
	// At the end even if merged, so that "up" is not reported before "down".
	q.latest[subject] = q.events.PushBack(it)
	q.start()
}

// Tally merges an event with the waiting one of its subject, which is delivered at most once per
// Interval. It does not wait.
func (q *Queue[S, E]) Tally(e E) {
	if q.life.Enter() != nil {
		q.conf.Abandon([]E{e})
		return
	}
	defer q.life.Leave()
	q.mu.Lock()
	defer q.mu.Unlock()
	subject := q.conf.Subject(e)
	element := q.tallyOf[subject]
	if element == nil {
		element = q.tallies.PushFront(&tally[S, E]{subject: subject})
		q.tallyOf[subject] = element
	}
	t := element.Value.(*tally[S, E])
	if t.open {
		t.event = q.conf.Merge(t.event, e)
		return
	}
	t.event, t.open = e, true
	q.open++
	q.start()
}

// End announces the end of the source of the events: from now on neither Post waits for room nor
// PostAndWait for Deliver, because the number of further events is bounded, and a slow Deliver
// must not delay the end.
func (q *Queue[S, E]) End() {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.isEnded() {
		close(q.ended)
		q.room.Broadcast()
	}
}

func (q *Queue[S, E]) isEnded() bool {
	select {
	case <-q.ended:
		return true
	default:
		return false
	}
}

// Close delivers the remaining events, tallies at once, and returns. After Grace it abandons the
// remaining events and returns; it does not wait for a call of Deliver that has not returned by
// then. Later events are abandoned. It may be called several times, and from anywhere but
// Deliver.
func (q *Queue[S, E]) Close() {
	_ = q.life.Close(func() error { // there is nothing that could fail
		q.End()
		<-q.life.Idle()
		q.flush()
		return nil
	})
}

// flush waits for the remaining events. No more are added.
func (q *Queue[S, E]) flush() {
	q.mu.Lock()
	q.ripen(time.Now().Add(q.conf.Interval)) // all
	running := q.running
	q.signal()
	q.mu.Unlock()
	if running == nil {
		return
	}
	timer := time.NewTimer(q.conf.Grace)
	defer timer.Stop()
	select {
	case <-running:
		return
	case <-timer.C:
	}
	var left []E
	q.mu.Lock()
	for q.events.Len() > 0 {
		it := q.pop()
		left = append(left, it.event)
		it.finish()
	}
	q.mu.Unlock()
	q.conf.Abandon(left)
}

// start runs the goroutine, or wakes it up. q.mu is held.
func (q *Queue[S, E]) start() {
	if q.running != nil {
		q.signal()
		return
	}
	q.running = make(chan struct{})
	go q.run(q.running)
}

func (q *Queue[S, E]) signal() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// run delivers until no event is left.
func (q *Queue[S, E]) run(ended chan struct{}) {
	defer close(ended)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		it, wait, ok := q.next()
		switch {
		case !ok:
			return
		case it != nil:
			q.conf.Deliver(it.event)
			it.finish()
			continue
		}
		timer.Reset(wait)
		select {
		case <-timer.C:
		case <-q.wake:
		}
	}
}

// next returns the next event, or the time until there is one. ok is false if no event is left;
// then the goroutine must end.
func (q *Queue[S, E]) next() (it *item[E], wait time.Duration, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	now := time.Now()
	q.ripen(now)
	switch {
	case q.events.Len() > 0:
		return q.pop(), 0, true
	case q.open > 0:
		return nil, q.tallies.Front().Value.(*tally[S, E]).due.Sub(now), true
	}
	q.running = nil
	return nil, 0, false
}

// pop takes the first event.
func (q *Queue[S, E]) pop() *item[E] {
	first := q.events.Front()
	it := q.events.Remove(first).(*item[E])
	if subject := q.conf.Subject(it.event); q.latest[subject] == first {
		delete(q.latest, subject)
	}
	q.room.Broadcast()
	return it
}

// ripen queues the events of due tallies, and removes tallies without an event for an Interval.
// These events do not wait for room: there is one per subject and Interval.
func (q *Queue[S, E]) ripen(now time.Time) {
	for element := q.tallies.Front(); element != nil; element = q.tallies.Front() {
		t := element.Value.(*tally[S, E])
		switch {
		case now.Before(t.due):
			return
		case !t.open:
			q.tallies.Remove(element)
			delete(q.tallyOf, t.subject)
		default:
			q.events.PushBack(&item[E]{event: t.event})
			q.open--
			*t = tally[S, E]{subject: t.subject, due: now.Add(q.conf.Interval)}
			q.tallies.MoveToBack(element)
		}
	}
}

func (i *item[E]) finish() {
	for _, delivered := range i.delivered {
		close(delivered)
	}
}

// Package outage turns a row of failures into one event, and its end into another.
package outage

import (
	"sync"
	"time"
)

// Duty is what can fail in the background. An outage begins with the first that fails and ends
// when none does any more.
type Duty uint8

// The duties.
const (
	Read    Duty = iota // what reads entries
	Control             // everything else that comes again by itself, by the caller's client
	Lease               // renewing leases, by a connection of its own
	Ack                 // what writes acknowledgements
	Shared              // the reader that fan-out subscriptions share
	duties
)

// controlMemory is for how long a failed background duty counts as failing while reading works.
const controlMemory = time.Second

// Outage is safe for concurrent use. Down and Up are set before its first use and called
// without its lock.
type Outage struct {
	Down func(err error, ids []string) // the first failure
	Up   func(lasted time.Duration)    // nil where it is not needed

	mu       sync.Mutex
	since    time.Time
	last     time.Time
	attempts [duties]int
	forgiven bool // one failure was let pass
}

func (o *Outage) failing() bool { return o.attempts != [duties]int{} }

// Open reports whether there is an outage now.
func (o *Outage) Open() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.failing()
}

// Failed notes a failure of a duty and returns how often it has failed in a row.
func (o *Outage) Failed(d Duty, err error, ids ...string) int {
	o.mu.Lock()
	first := !o.failing()
	if first {
		o.since = time.Now()
	}
	o.attempts[d]++
	o.last = time.Now()
	attempts := o.attempts[d]
	o.mu.Unlock()
	if first {
		o.Down(err, ids)
	}
	return attempts
}

// Over ends a duty's row of failures.
func (o *Outage) Over(d Duty) {
	o.mu.Lock()
	failing, since := o.failing(), o.since
	o.attempts[d] = 0
	if d == Read && time.Since(o.last) > controlMemory {
		// Duties that come seldom would keep a past outage open.
		o.attempts[Control], o.attempts[Lease] = 0, 0
	}
	ended := failing && !o.failing()
	if d == Read && !o.failing() {
		o.forgiven = false
	}
	o.mu.Unlock()
	if ended && o.Up != nil {
		o.Up(time.Since(since))
	}
}

// Quiet reports whether there is no outage, once: the next failure is one.
func (o *Outage) Quiet() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.failing() || o.forgiven {
		return false
	}
	o.forgiven = true
	return true
}

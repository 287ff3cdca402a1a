// Package outage turns a row of failures into one event, and its end into another.
package outage

import (
	"sync"
	"time"

	"github.com/flaminco/redischannels/internal/redisconn"
)

// Duty is one command, or one row of commands, that comes again by itself. An outage begins with the
// first duty that fails and ends when none does any more. A success ends only the failures of its own
// duty: while a server is out of memory some commands succeed and others do not.
type Duty uint8

// The duties. Those from Scan to Lease run beside Read.
const (
	Read    Duty = iota // what reads entries
	Scan                // claim scans
	Reap                // looking for idle consumers, and where the group stands
	Release             // returning entries to the group
	Defer               // storing retries
	Prepare             // obtaining leases and counts for the next deliveries
	Lease               // renewing leases
	Ack                 // what writes acknowledgements
	Shared              // the reader that fan-out subscriptions share
	duties
)

// besideMemory is for how long a failed duty beside Read counts as failing while reading works.
const besideMemory = time.Second

// row is a row of failures of one duty.
type row struct {
	failures int
	oom      bool // the last one was because the server is out of memory, which reading does not need
}

// Outage is safe for concurrent use. Down and Up are set before its first use and called
// without its lock.
type Outage struct {
	Down func(err error, ids []string) // the first failure
	Up   func(lasted time.Duration)    // nil where it is not needed

	mu       sync.Mutex
	since    time.Time
	last     time.Time
	rows     [duties]row
	forgiven bool // one failure was let pass
}

func (o *Outage) failing() bool { return o.rows != [duties]row{} }

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
	o.last = time.Now()
	o.rows[d].failures++
	o.rows[d].oom = redisconn.Classify(err) == redisconn.KindOOM
	attempts := o.rows[d].failures
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
	o.rows[d] = row{}
	if d == Read && time.Since(o.last) > besideMemory {
		o.forgetBeside()
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

// forgetBeside ends the failures that reading, which works, shows to be past: duties that come seldom
// would keep the outage open.
func (o *Outage) forgetBeside() {
	for d := Scan; d <= Lease; d++ {
		if !o.rows[d].oom {
			o.rows[d] = row{}
		}
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

package appender

import (
	"context"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/flaminco/redischannels/internal/redisconn"
)

// lane is a queue with its senders. There are two, because single messages are collected while
// transactions and large messages are full loads by themselves, and a long queue of one lane must
// not delay the other. The order of one caller is kept: it calls again only when its last call is
// confirmed.
type lane struct {
	queue   []*appendJob
	active  int           // senders that callers wait for
	stuck   int           // senders whose callers have all stopped waiting
	limit   int           // of active
	perLoad int           // jobs per load
	flying  []*appendLoad // of the active senders
}

// holdsBack reports whether the queue should wait for the running pipeline. A pipeline that runs
// for long may be on a failed connection, or on a slow link.
func (l *lane) holdsBack() bool {
	if l.perLoad == 1 || len(l.queue) >= l.perLoad || l.active == 0 {
		return false
	}
	if l.active > len(l.flying) {
		return true // a sender is about to take the queue
	}
	return slices.ContainsFunc(l.flying, func(load *appendLoad) bool { return time.Since(load.start) < slowLink })
}

// land removes a load from the list of those in flight.
func (l *lane) land(load *appendLoad) {
	l.flying = slices.DeleteFunc(l.flying, func(other *appendLoad) bool { return other == load })
}

// appendJob is one attempt of one caller.
type appendJob struct {
	ctx   context.Context // for its values
	head  Head
	cmds  []Command
	bytes int
	asks  bool          // the server's time must be read first
	done  chan struct{} // of capacity 1; the sender's last access to the job

	last error // of the attempt before, nil for the first

	load    *appendLoad // nil while queued; guarded by Appender.mu
	results []Result    // nil until an outcome is known; guarded by Appender.mu
}

// Each waiting call needs a job with its channel, and a timer.
var (
	jobs   = sync.Pool{New: func() any { return &appendJob{done: make(chan struct{}, 1)} }}
	timers = sync.Pool{New: func() any { return time.NewTimer(time.Hour) }}
)

// appendLoad is the jobs that a sender sends at once.
type appendLoad struct {
	jobs   []*appendJob
	lane   *lane
	ctx    context.Context // ends when a caller stops waiting before anything was sent
	gate   redisconn.Gate
	cancel context.CancelCauseFunc
	start  time.Time

	own      bool // the only job's caller sends it
	stuck    bool // this and the following fields are guarded by Appender.mu
	finished bool
}

// prepare resets all commands, and returns their number.
func (l *appendLoad) prepare() (n int) {
	words := 0
	for _, job := range l.jobs {
		n += len(job.cmds)
		for i := range job.cmds {
			words += len(job.cmds[i].args)
		}
	}
	room := make([]any, 0, words)
	for _, job := range l.jobs {
		for i := range job.cmds {
			room = job.cmds[i].prepare(l.ctx, &l.gate, room)
		}
	}
	return n
}

// laneOf returns the lane of the job.
func (a *Appender) laneOf(job *appendJob) *lane {
	if len(job.cmds) == 1 && !job.alone() || a.conf.Replicas > 0 {
		return &a.singles
	}
	return &a.batches
}

// alone reports whether the commands must not share a connection with those of others, or must
// wait for the server's time.
func (j *appendJob) alone() bool { return j.bytes > maxShared || j.asks }

// large reports whether it is a single command that the server may refuse as too large.
func (j *appendJob) large() bool { return len(j.cmds) == 1 && j.bytes > maxShared }

// enqueue queues a job. If a sender is needed and the caller may be it, the job is not queued but
// returned as a load, which the caller sends itself: this saves a single caller two goroutine
// switches per message.
func (a *Appender) enqueue(job *appendJob, deadline time.Time) *appendLoad {
	a.mu.Lock()
	defer a.mu.Unlock()
	l := a.laneOf(job)
	if l.holdsBack() {
		l.queue = append(l.queue, job)
		return nil
	}
	if patience, ok := a.inTime(job, deadline); ok && len(l.queue) == 0 && l.active < l.limit {
		l.active++
		load := &appendLoad{jobs: []*appendJob{job}, lane: l, own: true, start: time.Now()}
		load.ctx, load.cancel = ownContext(job.ctx, deadline, patience)
		job.load = load
		l.flying = append(l.flying, load)
		return load
	}
	l.queue = append(l.queue, job)
	a.startSender(l)
	return nil
}

// nudge starts a sender for a job that the running pipeline has delayed for too long. It reports
// whether the job is still queued.
func (a *Appender) nudge(job *appendJob) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if job.load != nil {
		return false
	}
	l := a.laneOf(job)
	for _, load := range slices.Clone(l.flying) {
		if load.own && time.Since(load.start) > longCall {
			a.markStuck(l, load) // no caller stops waiting for it: a hook of the client may block it forever
		}
	}
	if !l.holdsBack() {
		a.startSender(l)
	}
	return true
}

// inTime reports whether the timeouts of the connection end a call before its deadline, so that
// the call needs no timer, and how long they are. A small command is written without waiting: the
// buffer of an idle connection is empty.
func (a *Appender) inTime(job *appendJob, deadline time.Time) (patience time.Duration, ok bool) {
	patience = a.readTimeout
	if job.bytes > smallWrite {
		patience += a.writeTimeout
	}
	simple := !job.large() && !job.asks // otherwise it may take longer
	return patience, a.ownCalls && simple && job.ctx.Done() == nil && (deadline.IsZero() || time.Until(deadline) > patience)
}

// ownContext is the context of a caller that sends its own load. It ends the wait
// for a connection early enough for the timeouts of the connection to follow.
func ownContext(ctx context.Context, deadline time.Time, patience time.Duration) (context.Context, context.CancelCauseFunc) {
	if deadline.IsZero() {
		return ctx, func(error) {}
	}
	ctx, cancel := context.WithDeadline(ctx, deadline.Add(-patience))
	return ctx, func(error) { cancel() }
}

// sendOwn sends the load of a caller in its own goroutine. A sender sends the jobs that others
// have queued meanwhile.
func (a *Appender) sendOwn(load *appendLoad) {
	outcomes := a.execute(load)
	load.cancel(nil)
	a.mu.Lock()
	defer a.mu.Unlock()
	load.finished = true
	a.report(load, outcomes)
	a.leave(load)
}

// leave removes a finished load from the lane, whose queue may wait for its place. The caller
// holds mu.
func (a *Appender) leave(load *appendLoad) {
	l := load.lane
	if load.stuck {
		l.stuck--
	} else {
		l.active--
		l.land(load)
	}
	if len(l.queue) > 0 {
		a.startSender(l)
	}
}

// startSender starts a sender if there is room for one. The caller holds mu. A connection that no
// caller waits for occupies no place among the active ones, up to a bound: beyond it more
// connections would not help, because Redis or the network is unavailable.
func (a *Appender) startSender(l *lane) {
	if l.active >= l.limit || l.stuck >= stuckSenders {
		return
	}
	l.active++
	a.life.Go(func() { a.send(l) })
}

// send is the goroutine of a sender.
func (a *Appender) send(l *lane) {
	for {
		// The callers whose appends were just confirmed are runnable and about to send the next
		// ones. They run first; otherwise every second pipeline would have only the fastest one.
		runtime.Gosched()
		load := a.take(l)
		if load == nil {
			return
		}
		outcomes := a.execute(load)
		load.cancel(nil)
		if !a.finish(l, load, outcomes) {
			return
		}
	}
}

// take removes the next load from the queue. Without one the sender is no longer counted, under
// the same lock under which it would have got a load.
func (a *Appender) take(l *lane) *appendLoad {
	a.mu.Lock()
	defer a.mu.Unlock()
	n, cmds, bytes := 0, 0, 0
	for _, job := range l.queue {
		if n > 0 && (n == l.perLoad || cmds+len(job.cmds) > MaxCommands || bytes+job.bytes > MaxBytes) {
			break
		}
		if n > 0 && a.conf.Replicas > 0 && a.cluster != nil && job.head.key != l.queue[0].head.key {
			break // WAIT belongs to the connection of one master
		}
		if n > 0 && (job.alone() || l.queue[0].alone()) {
			break
		}
		n, cmds, bytes = n+1, cmds+len(job.cmds), bytes+job.bytes
	}
	if n == 0 {
		l.active--
		return nil
	}
	load := &appendLoad{jobs: slices.Clone(l.queue[:n]), lane: l, start: time.Now()}
	// The context of a single caller has its trace; several callers have no common one.
	base := context.Background()
	if n == 1 {
		base = context.WithoutCancel(load.jobs[0].ctx)
	}
	load.ctx, load.cancel = context.WithCancelCause(base)
	// In place and cleared, so that the queue neither grows forever nor keeps the payloads of
	// sent messages.
	rest := copy(l.queue, l.queue[n:])
	clear(l.queue[rest:])
	l.queue = l.queue[:rest]
	for _, job := range load.jobs {
		job.load = load
	}
	l.flying = append(l.flying, load)
	if len(l.queue) > 0 {
		a.startSender(l)
	}
	return load
}

// finish reports the outcomes to the callers; false ends the sender.
func (a *Appender) finish(l *lane, load *appendLoad, outcomes []Result) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	load.finished = true
	a.report(load, outcomes)
	for _, job := range load.jobs {
		job.done <- struct{}{}
	}
	if !load.stuck {
		l.land(load)
		return true
	}
	a.leave(load)
	return false
}

// report gives each job its part of the outcomes. The caller holds mu.
func (a *Appender) report(load *appendLoad, outcomes []Result) {
	for _, job := range load.jobs {
		n := len(job.cmds)
		job.results, outcomes = outcomes[:n:n], outcomes[n:]
	}
}

// markStuck lets another sender take the place of one that may wait for a failed connection. The
// caller holds mu.
func (a *Appender) markStuck(l *lane, load *appendLoad) {
	if load.stuck {
		return
	}
	load.stuck = true
	l.active--
	l.land(load)
	l.stuck++
	if len(l.queue) > 0 {
		a.startSender(l)
	}
}

package stream

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
)

// Bounds of what is sent at once.
const (
	// MaxAppends is the greatest number of XADDs in one pipeline or transaction.
	MaxAppends = 500
	// MaxAppendBytes bounds the same in bytes; one message may exceed it. It is
	// what must pass a slow link within the write timeout of the client (3 s).
	MaxAppendBytes = 4 << 20

	singleSenders = 4 // pipelines of single messages in flight
	batchSenders  = 8 // transactions in flight
	stuckSenders  = 8 // beyond these, senders whose callers have all given up

	// slowLink is the time after which a pipeline in flight waits for the network
	// rather than for the processor, so that a second one shortens the queue. On a
	// fast link one at a time is best: the queue grows while it is under way.
	slowLink = 5 * time.Millisecond

	// smallWrite fits into the send buffer of an idle connection everywhere.
	smallWrite = 16 << 10

	// ioMargin keeps the timeouts of a connection behind that of the caller, who
	// otherwise is told of either, by chance. go-redis reads a clock of 50 ms.
	ioMargin = 100 * time.Millisecond

	retryMin = 10 * time.Millisecond
	retryMax = 500 * time.Millisecond
)

// ErrAppenderClosed ends the wait of an append when the Appender is closed.
var ErrAppenderClosed = errors.New("closed while waiting")

// errWithdrawn is the cause of a cancelled attempt.
var errWithdrawn = errors.New("withdrawn")

// AppenderConfig configures an [Appender].
type AppenderConfig struct {
	Client redis.UniversalClient // *redis.Client or *redis.ClusterClient
	// Timeout is the longest wait of a caller, 0 or less means none. A connection
	// is not waited for much longer than this, whatever the client's timeouts.
	Timeout time.Duration
	// Replicas is how many must confirm, within WaitTimeout. (WAIT)
	Replicas    int
	WaitTimeout time.Duration
}

// Appender sends appends of many callers to Redis. Single ones that come while
// a pipeline is under way make up the next one (group commit); several of one
// caller are one transaction.
//
// There is no goroutine while there is nothing to send. A call that finds no
// sender starts one, which sends until the queue is empty and ends. Callers wait
// apart from it, because go-redis does not interrupt a connection when a context
// ends: the caller returns in time and the sender stays with the connection.
// [Appender.Close] waits for the senders.
//
// AutoPipeline of go-redis is not used: what is queued there cannot be
// withdrawn, its instance is shared with the caller's own use of the client, so
// that closing it breaks that and not closing it leaves goroutines behind.
type Appender struct {
	conf    AppenderConfig
	cluster *redis.ClusterClient // nil for *redis.Client
	bound   bool                 // the client's own timeouts are longer than Timeout

	// ownCalls lets callers send their own loads: both timeouts are known.
	ownCalls                  bool
	readTimeout, writeTimeout time.Duration
	shorten                   time.Duration // for large loads of their own; 0: not needed

	stop chan struct{} // closed when callers must not wait any longer

	multi multiCheck

	mu      sync.Mutex // guards all below and the loads
	singles lane
	batches lane
	senders int
	drained chan struct{} // made by Close, closed when senders is 0
}

// lane is a queue with its senders.
type lane struct {
	queue   []*appendJob
	active  int // senders that callers wait for
	stuck   int // senders whose callers have all given up
	limit   int // of active
	perLoad int // jobs per load
	last    time.Time
}

// appendJob is one attempt of one caller.
type appendJob struct {
	ctx   context.Context // for its values
	key   string
	cmds  []Append
	bytes int
	done  chan struct{} // of capacity 1; the sender's last touch of the job

	last error // of the attempt before, nil for the first

	load    *appendLoad    // nil while queued; guarded by Appender.mu
	results []AppendResult // nil until something is known; guarded by Appender.mu
}

// appendLoad is what a sender sends at once.
type appendLoad struct {
	jobs   []*appendJob
	lane   *lane
	ctx    context.Context // ends when a caller gives up before anything was sent
	gate   atomic.Int32
	cancel context.CancelCauseFunc

	own      bool // the only job's caller sends it
	stuck    bool // all that follows is guarded by Appender.mu
	finished bool
}

// NewAppender makes an Appender. It starts nothing.
func NewAppender(conf AppenderConfig) *Appender {
	a := &Appender{conf: conf, stop: make(chan struct{})}
	a.singles = lane{limit: singleSenders, perLoad: MaxAppends}
	a.batches = lane{limit: batchSenders, perLoad: 1}
	if conf.Replicas > 0 {
		// One WAIT serves all that was sent before it on its connection, so both
		// kinds go together, and in few connections: each is held while waiting.
		a.singles.limit = 2
	}
	switch c := conf.Client.(type) {
	case *redis.ClusterClient:
		a.cluster = c
		a.setTimeouts(c.Options().ReadTimeout, c.Options().WriteTimeout)
	case *redis.Client:
		o := c.Options()
		a.bound = conf.Timeout > 0 && (o.ReadTimeout <= 0 || o.ReadTimeout > conf.Timeout ||
			o.WriteTimeout <= 0 || o.WriteTimeout > conf.Timeout)
		a.setTimeouts(o.ReadTimeout, o.WriteTimeout)
	}
	return a
}

// setTimeouts notes how long one exchange on a connection can take.
func (a *Appender) setTimeouts(read, write time.Duration) {
	a.ownCalls = read > 0 && write > 0 && a.conf.Replicas == 0
	a.readTimeout, a.writeTimeout = read, write
	if a.cluster != nil || a.conf.Timeout <= 0 || !a.ownCalls {
		return
	}
	// The defaults, 5 s for reading, 5 s for writing and 10 s for all, just do not
	// fit into each other. A little less of the former makes them.
	if most := a.conf.Timeout * 9 / 20; read+write > 2*most && most >= read*9/10 && most >= write*9/10 {
		a.writeTimeout, a.shorten = 2*most-read, most
	}
}

// Do appends the commands to the stream and writes their outcomes to results,
// which has the same length. Several are one transaction. It returns when each
// outcome is known, or soon after ctx or the deadline (zero: none) has ended, or
// the Appender was stopped. What was not executed because Redis or the connection
// to it was away is tried again until then. bytes is the approximate size of the
// commands, which belong to the Appender until the outcomes of all are known.
func (a *Appender) Do(ctx context.Context, deadline time.Time, key string, cmds []Append, bytes int, results []AppendResult) {
	if ctx.Err() != nil {
		fill(results, AppendResult{Outcome: NotAppended, Err: context.Cause(ctx)})
		return
	}
	var end <-chan time.Time // made when it is first needed
	var last error           // of the attempt before
	for attempt := 0; ; attempt++ {
		job := &appendJob{ctx: ctx, key: key, cmds: cmds, bytes: bytes, last: last}
		if load := a.enqueue(job, deadline); load != nil {
			a.sendOwn(load)
			copy(results, job.results)
		} else {
			if end == nil && !deadline.IsZero() {
				timer := time.NewTimer(time.Until(deadline))
				defer timer.Stop()
				end = timer.C
			}
			if !a.await(ctx, end, job, results) {
				return
			}
		}
		if !a.again(results, attempt) {
			return
		}
		if results[0].Err == errWithdrawn { //nolint:errorlint // our own, never wrapped
			continue // another caller of the same pipeline has given up, not this one
		}
		last = results[0].Err
		if err := a.pause(ctx, deadline, attempt); err != nil {
			for i := range results {
				results[i].Err = because(err, results[i].Err)
			}
			return
		}
	}
}

// await waits for the outcomes of a job; false means that the caller gives up.
func (a *Appender) await(ctx context.Context, end <-chan time.Time, job *appendJob, results []AppendResult) bool {
	select {
	case <-job.done:
		copy(results, job.results)
		return true
	case <-ctx.Done():
		a.abandon(job, context.Cause(ctx), results)
	case <-end:
		a.abandon(job, a.timeoutError(), results)
	case <-a.stop:
		a.abandon(job, ErrAppenderClosed, results)
	}
	return false
}

func (a *Appender) timeoutError() error {
	return fmt.Errorf("timeout of %v: %w", a.conf.Timeout, context.DeadlineExceeded)
}

// again reports whether to try once more: nothing was executed, and the cause
// passes.
func (a *Appender) again(results []AppendResult, attempt int) bool {
	retry := false
	for i := range results {
		switch r := &results[i]; {
		case r.Outcome != NotAppended:
			return false
		case r.Err == errWithdrawn, retryable(r.Err, a.cluster != nil): //nolint:errorlint // our own, never wrapped
			retry = true
		}
	}
	// Without a timeout of ours the client's own limit of attempts holds.
	return retry && (a.conf.Timeout > 0 || attempt < a.maxRetries())
}

func (a *Appender) maxRetries() int {
	if a.cluster != nil {
		return a.cluster.Options().MaxRedirects
	}
	return a.conf.Client.(*redis.Client).Options().MaxRetries
}

// pause waits before the next attempt and returns why there is none.
func (a *Appender) pause(ctx context.Context, deadline time.Time, attempt int) error {
	d := min(retryMin<<min(attempt, 10), retryMax)
	d = d - d/5 + rand.N(2*d/5)
	late := !deadline.IsZero() && time.Until(deadline) < d
	if late {
		d = time.Until(deadline)
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		if late {
			return a.timeoutError()
		}
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-a.stop:
		return ErrAppenderClosed
	}
}

// laneOf returns where the job is queued.
func (a *Appender) laneOf(job *appendJob) *lane {
	if len(job.cmds) == 1 || a.conf.Replicas > 0 {
		return &a.singles
	}
	return &a.batches
}

// enqueue queues a job. When a sender is called for and the caller may be it, the
// job is not queued but returned as a load, which the caller sends itself: that
// spares a lone caller two switches between goroutines per message.
func (a *Appender) enqueue(job *appendJob, deadline time.Time) *appendLoad {
	a.mu.Lock()
	defer a.mu.Unlock()
	l := a.laneOf(job)
	if l.active > 0 && l.perLoad > 1 && len(l.queue) < l.perLoad && time.Since(l.last) < slowLink {
		a.push(l, job)
		return nil
	}
	if patience, ok := a.inTime(job, deadline); ok && len(l.queue) == 0 && l.active < l.limit {
		l.active++
		a.senders++
		load := &appendLoad{jobs: []*appendJob{job}, lane: l, own: true}
		load.ctx, load.cancel = ownContext(job.ctx, deadline, patience)
		job.load = load
		l.last = time.Now()
		return load
	}
	a.push(l, job)
	a.startSender(l)
	return nil
}

func (a *Appender) push(l *lane, job *appendJob) {
	job.done = make(chan struct{}, 1)
	l.queue = append(l.queue, job)
}

// inTime reports whether the timeouts of the connection end a call before its
// deadline, so that nobody need watch over it, and how long they take. A small
// command is written without waiting: the buffer of an idle connection is empty.
func (a *Appender) inTime(job *appendJob, deadline time.Time) (patience time.Duration, ok bool) {
	patience = a.readTimeout
	if job.bytes > smallWrite {
		patience += a.writeTimeout
	}
	return patience, a.ownCalls && job.ctx.Done() == nil && (deadline.IsZero() || time.Until(deadline) > patience)
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

// sendOwn sends the load of a caller in its own goroutine. What others have
// queued in the meantime is left to a sender.
func (a *Appender) sendOwn(load *appendLoad) {
	outcomes := a.execute(load)
	load.cancel(nil)
	a.mu.Lock()
	defer a.mu.Unlock()
	load.finished = true
	a.report(load, outcomes)
	load.lane.active--
	if len(load.lane.queue) > 0 {
		a.startSender(load.lane)
	}
	a.leave()
}

// startSender starts a sender if there is room for one. The caller holds mu.
func (a *Appender) startSender(l *lane) {
	if l.active >= l.limit || l.stuck >= stuckSenders {
		return
	}
	l.active++
	a.senders++
	go a.send(l)
}

// send is the goroutine of a sender.
func (a *Appender) send(l *lane) {
	for {
		// The callers whose appends were just confirmed are runnable and about to
		// come back with the next ones; they are let through first, or else every
		// second pipeline carries only the one that was quickest.
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

// take removes the next load from the queue. Without one the sender is counted
// out, under the same lock under which it would have been given work.
func (a *Appender) take(l *lane) *appendLoad {
	a.mu.Lock()
	defer a.mu.Unlock()
	n, cmds, bytes := 0, 0, 0
	for _, job := range l.queue {
		if n > 0 && (n == l.perLoad || cmds+len(job.cmds) > MaxAppends || bytes+job.bytes > MaxAppendBytes) {
			break
		}
		if n > 0 && a.conf.Replicas > 0 && a.cluster != nil && job.key != l.queue[0].key {
			break // WAIT belongs to the connection of one master
		}
		n, cmds, bytes = n+1, cmds+len(job.cmds), bytes+job.bytes
	}
	if n == 0 {
		l.active--
		a.leave()
		return nil
	}
	load := &appendLoad{jobs: slices.Clone(l.queue[:n]), lane: l}
	// A context of one caller carries its trace; those of several have no common one.
	base := context.Background()
	if n == 1 {
		base = context.WithoutCancel(load.jobs[0].ctx)
	}
	load.ctx, load.cancel = context.WithCancelCause(base)
	rest := copy(l.queue, l.queue[n:])
	clear(l.queue[rest:])
	l.queue = l.queue[:rest]
	for _, job := range load.jobs {
		job.load = load
	}
	l.last = time.Now()
	if len(l.queue) > 0 {
		a.startSender(l)
	}
	return load
}

// finish hands the outcomes to the callers; false ends the sender.
func (a *Appender) finish(l *lane, load *appendLoad, outcomes []AppendResult) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	load.finished = true
	a.report(load, outcomes)
	for _, job := range load.jobs {
		job.done <- struct{}{}
	}
	if !load.stuck {
		return true
	}
	l.stuck--
	a.leave()
	return false
}

// report gives each job its part of the outcomes. The caller holds mu.
func (a *Appender) report(load *appendLoad, outcomes []AppendResult) {
	for _, job := range load.jobs {
		n := len(job.cmds)
		job.results, outcomes = outcomes[:n:n], outcomes[n:]
	}
}

// leave counts a sender out. The caller holds mu.
func (a *Appender) leave() {
	a.senders--
	if a.senders == 0 && a.drained != nil {
		close(a.drained)
		a.drained = nil
	}
}

// abandon ends the wait for a job and states what is known of it.
func (a *Appender) abandon(job *appendJob, cause error, results []AppendResult) {
	a.mu.Lock()
	defer a.mu.Unlock()
	l := a.laneOf(job)
	load := job.load
	if load == nil {
		l.queue = slices.DeleteFunc(l.queue, func(other *appendJob) bool { return other == job })
		fill(results, AppendResult{Outcome: NotAppended, Err: because(cause, job.last)})
		return
	}
	if load.finished {
		copy(results, job.results)
		for i := range results {
			if results[i].Outcome == NotAppended {
				results[i].Err = because(cause, job.last)
			}
		}
		return
	}
	a.markStuck(l, load)
	if load.gate.CompareAndSwap(gateOpen, gateRevoked) {
		// The sender still waits for a connection. If it gets one, it will find that
		// it must not write; without its context it mostly does not come to that. The
		// other callers of this load come back with their jobs.
		load.cancel(errWithdrawn)
	}
	switch {
	case load.gate.Load() == gateRevoked:
		fill(results, AppendResult{Outcome: NotAppended, Err: because(cause, job.last)})
	case job.results != nil:
		copy(results, job.results) // appended, and not yet confirmed by replicas
	default:
		fill(results, AppendResult{Outcome: Unknown, Err: cause})
	}
}

// because is the error of an append that was not executed before the wait ended.
func because(end, last error) error {
	if last == nil {
		return end
	}
	return fmt.Errorf("%w; last attempt: %w", end, last)
}

// markStuck lets another sender take the place of one that may wait for a dead
// connection. The caller holds mu.
func (a *Appender) markStuck(l *lane, load *appendLoad) {
	if load.stuck {
		return
	}
	load.stuck = true
	l.active--
	l.stuck++
	if len(l.queue) > 0 {
		a.startSender(l)
	}
}

func fill(results []AppendResult, r AppendResult) {
	for i := range results {
		results[i] = r
	}
}

// Stop ends the wait of all callers: what is queued is withdrawn, what was sent
// is Unknown. It is called at most once, before or without Close.
func (a *Appender) Stop() { close(a.stop) }

// Close waits until no sender is left, or ctx ends. No call may be under way.
func (a *Appender) Close(ctx context.Context) error {
	a.mu.Lock()
	if a.senders == 0 {
		a.mu.Unlock()
		return nil
	}
	if a.drained == nil {
		a.drained = make(chan struct{})
	}
	drained := a.drained
	a.mu.Unlock()
	select {
	case <-drained:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

package appender

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/flaminco/redischannels/internal/backoff"
	"github.com/flaminco/redischannels/internal/lifecycle"
	"github.com/flaminco/redischannels/internal/redisconn"
)

// Bounds of one pipeline or transaction.
const (
	// MaxCommands is the greatest number of XADDs in one pipeline or transaction.
	MaxCommands = 500
	// MaxBytes bounds the same in bytes; one message may exceed it. This size must pass a slow
	// link within the write timeout of the client (3 s).
	MaxBytes = 4 << 20

	singleSenders  = 4 // pipelines of single messages in flight
	batchSenders   = 8 // transactions in flight
	durableSenders = 4 // connections on which replicas are waited for, at most half of the pool
	stuckSenders   = 8 // in addition, senders whose callers have all stopped waiting

	// slowLink is the time after which a pipeline in flight no longer delays the next one. Up to
	// then one at a time is best: the commands that arrive meanwhile are the next pipeline, and
	// fewer pipelines cost less per message.
	slowLink = 20 * time.Millisecond

	// longCall is the time after which a caller that sends its own load no longer occupies a
	// place.
	longCall = time.Second

	// maxShared is the size up to which commands share a pipeline with those of other callers.
	// A server that refuses one as too large closes the connection, and the outcomes of all
	// that were sent on it are unknown.
	maxShared = 64 << 10

	// smallWrite fits into the send buffer of an idle connection everywhere.
	smallWrite = 16 << 10

	// ioMargin makes the timeouts of a connection expire after that of the caller, which
	// otherwise gets either at random. go-redis reads a clock of 50 ms.
	ioMargin = 100 * time.Millisecond
)

// retries is the back-off of an append that was not executed.
var retries = backoff.Backoff{Min: 10 * time.Millisecond, Max: 500 * time.Millisecond, Factor: 2, Jitter: 0.2}

// ErrClosed ends the wait of an append when the Appender is closed, and refuses later ones.
var ErrClosed = errors.New("closed while waiting")

// Config configures an [Appender].
type Config struct {
	Client redis.UniversalClient // *redis.Client or *redis.ClusterClient
	// Timeout is the longest wait of a caller, 0 or less means none. The wait for a connection is
	// not much longer than this, whatever the client's timeouts.
	Timeout time.Duration
	// Replicas is the number of replicas that must confirm, within WaitTimeout. (WAIT)
	Replicas    int
	WaitTimeout time.Duration
}

// Appender sends appends of many callers to Redis. Single appends that arrive while a pipeline is
// running are the next pipeline (group commit); several of one caller are one transaction.
//
// There is no goroutine while there is nothing to send. A call that finds no sender starts one,
// which sends until the queue is empty and ends. Callers wait separately, because go-redis does
// not interrupt a connection when a context ends: the caller returns in time and the sender stays
// with the connection. [Appender.Close] waits for the senders.
//
// AutoPipeline of go-redis is not used: its queued commands cannot be withdrawn, and its instance
// is shared with the caller's own use of the client, so closing it breaks that use and not
// closing it leaks goroutines.
type Appender struct {
	conf    Config
	cluster *redis.ClusterClient // nil for *redis.Client
	bound   bool                 // the client's own timeouts are longer than Timeout

	// ownCalls lets callers send their own loads: both timeouts are known.
	ownCalls                  bool
	readTimeout, writeTimeout time.Duration
	shorten                   time.Duration // for large loads of callers; 0: not needed

	life *lifecycle.State // calls of Do, and senders; its end ends their waits

	multi  multiCheck
	clocks *clocks

	mu      sync.Mutex // guards all below and the loads
	singles lane
	batches lane
}

// New returns an Appender. It starts no goroutine.
func New(conf Config) *Appender {
	a := &Appender{conf: conf, life: lifecycle.New(ErrClosed)}
	a.singles = lane{limit: singleSenders, perLoad: MaxCommands}
	a.batches = lane{limit: batchSenders, perLoad: 1}
	switch c := conf.Client.(type) {
	case *redis.ClusterClient:
		a.cluster = c
		a.setTimeouts(c.Options().ReadTimeout, c.Options().WriteTimeout)
		a.limitDurable(c.Options().PoolSize)
	case *redis.Client:
		o := c.Options()
		a.bound = conf.Timeout > 0 && (o.ReadTimeout <= 0 || o.ReadTimeout > conf.Timeout ||
			o.WriteTimeout <= 0 || o.WriteTimeout > conf.Timeout)
		a.setTimeouts(o.ReadTimeout, o.WriteTimeout)
		a.limitDurable(o.PoolSize)
	}
	a.clocks = newClocks(a.cluster)
	return a
}

// limitDurable bounds the connections that wait for replicas. One WAIT covers all commands sent
// before it on its connection, so a few are enough, and the rest of the pool is for others.
func (a *Appender) limitDurable(poolSize int) {
	if a.conf.Replicas > 0 {
		a.singles.limit = max(1, min(durableSenders, poolSize/2))
	}
}

// setTimeouts records how long one exchange on a connection can take.
func (a *Appender) setTimeouts(read, write time.Duration) {
	a.ownCalls = read > 0 && write > 0 && a.conf.Replicas == 0
	a.readTimeout, a.writeTimeout = read, write
	if a.cluster != nil || a.conf.Timeout <= 0 || !a.ownCalls {
		return
	}
	// The defaults of 5 s for reading and 5 s for writing just do not fit into 10 s for both.
	// Slightly lower ones do.
	if most := a.conf.Timeout * 9 / 20; read+write > 2*most && most >= read*9/10 && most >= write*9/10 {
		a.writeTimeout, a.shorten = 2*most-read, most
	}
}

// Do appends the commands, which have the head, and writes their outcomes to results, which has
// the same length. Several are one transaction. It returns when each outcome is known, or soon
// after ctx or the deadline (zero: none) has ended, or the Appender was stopped. Commands that
// were not executed because Redis or the connection was unavailable are retried until then. bytes
// is the approximate size of the commands, which belong to the Appender until the outcomes of all
// are known.
func (a *Appender) Do(ctx context.Context, deadline time.Time, head Head, cmds []Command, bytes int, results []Result) {
	if err := a.life.Enter(); err != nil {
		fill(results, Result{Outcome: NotAppended, Err: err})
		return
	}
	defer a.life.Leave()
	if ctx.Err() != nil {
		fill(results, Result{Outcome: NotAppended, Err: context.Cause(ctx)})
		return
	}
	var last error // of the attempt before
	for attempt := 0; ; {
		job := jobs.Get().(*appendJob)
		job.ctx, job.head, job.cmds, job.bytes, job.last = ctx, head, cmds, bytes, last
		job.asks = head.oldest != nil && a.clocks.due(head.key)
		if load := a.enqueue(job, deadline); load != nil {
			a.sendOwn(load)
			copy(results, job.results)
		} else if !a.await(ctx, deadline, job, results) {
			return // the sender keeps the job
		}
		*job = appendJob{done: job.done}
		jobs.Put(job)
		if results[0].Err == redisconn.ErrWithdrawn { //nolint:errorlint // our own, never wrapped
			continue // another caller of the same pipeline has stopped waiting, not this one
		}
		if !a.again(results, attempt) {
			return
		}
		last = results[0].Err
		if err := a.pause(ctx, deadline, attempt); err != nil {
			for i := range results {
				results[i].Err = because(err, results[i].Err)
			}
			return
		}
		attempt++
	}
}

// await waits for the outcomes of a job; false means that the caller stops waiting.
func (a *Appender) await(ctx context.Context, deadline time.Time, job *appendJob, results []Result) bool {
	nudge := slowLink
	timer := timers.Get().(*time.Timer)
	timer.Reset(untilNext(deadline, nudge))
	defer func() { timer.Stop(); timers.Put(timer) }()
	for {
		select {
		case <-job.done:
			copy(results, job.results)
			return true
		case <-timer.C:
			if !deadline.IsZero() && time.Until(deadline) <= 0 {
				a.abandon(job, a.timeoutError(), results)
				return false
			}
			if nudge *= 2; !a.nudge(job) {
				nudge = time.Hour // it is being sent; only the wait remains
			}
			timer.Reset(untilNext(deadline, nudge))
			continue
		case <-ctx.Done():
			a.abandon(job, context.Cause(ctx), results)
		case <-a.life.Context().Done():
			a.abandon(job, ErrClosed, results)
		}
		return false
	}
}

// untilNext is d, or the time until the deadline if that is less.
func untilNext(deadline time.Time, d time.Duration) time.Duration {
	if deadline.IsZero() {
		return d
	}
	return min(d, time.Until(deadline))
}

func (a *Appender) timeoutError() error {
	return fmt.Errorf("timeout of %v: %w", a.conf.Timeout, context.DeadlineExceeded)
}

// again reports whether to retry: nothing was executed, and the cause is temporary.
func (a *Appender) again(results []Result, attempt int) bool {
	retry := false
	for i := range results {
		switch r := &results[i]; {
		case r.Outcome != NotAppended:
			return false
		case retryable(r.Err, a.cluster != nil):
			retry = true
		}
	}
	// Without our own timeout the client's limit of attempts applies.
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
	d := retries.After(attempt + 1)
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
	case <-a.life.Context().Done():
		return ErrClosed
	}
}

// abandon ends the wait for a job and sets the known outcomes.
func (a *Appender) abandon(job *appendJob, cause error, results []Result) {
	a.mu.Lock()
	defer a.mu.Unlock()
	l := a.laneOf(job)
	load := job.load
	if load == nil {
		l.queue = slices.DeleteFunc(l.queue, func(other *appendJob) bool { return other == job })
		fill(results, Result{Outcome: NotAppended, Err: because(cause, job.last)})
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
	if load.gate.Withdraw() {
		// The sender still waits for a connection. If it gets one, the gate refuses the write;
		// usually the end of its context is first. The other callers of this load retry their
		// jobs.
		load.cancel(redisconn.ErrWithdrawn)
	}
	switch {
	case load.gate.Withdrawn():
		fill(results, Result{Outcome: NotAppended, Err: because(cause, job.last)})
	case job.results != nil:
		copy(results, job.results) // appended, and not yet confirmed by replicas
	default:
		fill(results, Result{Outcome: Unknown, Err: cause})
	}
}

// because is the error of an append that was not executed before the wait ended.
func because(end, last error) error {
	if last == nil {
		return end
	}
	return fmt.Errorf("%w; last attempt: %w", end, last)
}

func fill(results []Result, r Result) {
	for i := range results {
		results[i] = r
	}
}

// Stop ends the wait of all callers: queued commands are withdrawn, sent ones are Unknown. Later
// calls return [ErrClosed].
func (a *Appender) Stop() { a.life.End(nil) }

// Close is Stop, and waits until all callers and senders have ended, or ctx ends.
func (a *Appender) Close(ctx context.Context) error {
	a.Stop()
	select {
	case <-a.life.Idle():
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

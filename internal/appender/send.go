package appender

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/flaminco/redischannels/internal/redisconn"
)

// waitMargin is added to the timeout of WAIT for its connection, so that normally Redis ends the
// wait.
const waitMargin = time.Second

// ErrReplicas means that fewer replicas than requested have confirmed.
var ErrReplicas = errors.New("not enough replicas have confirmed")

// pipeliner is the common interface of a client and a single connection.
type pipeliner interface {
	Pipeline() redis.Pipeliner
	TxPipeline() redis.Pipeliner
	Process(ctx context.Context, cmd redis.Cmder) error
}

// execute sends a load once and returns an outcome per command, in the order of
// the jobs. It never sends a command again.
func (a *Appender) execute(load *appendLoad) []Result {
	if err := redisconn.Guard(func() error { return a.setThresholds(load) }); err != nil {
		outcomes := make([]Result, len(load.jobs[0].cmds))
		fill(outcomes, Result{Outcome: NotAppended, Err: err})
		return outcomes
	}
	n := load.prepare()
	var err error
	if a.conf.Replicas > 0 {
		var missing error
		if missing, err = a.sendDurable(load, n); missing != nil {
			outcomes := a.collect(load, n, err)
			underReplicated(outcomes, missing)
			return outcomes
		}
	} else {
		err = redisconn.Guard(func() error { return a.sendPlain(load) })
		if err != nil {
			redisconn.Relocate(a.conf.Client)
		}
	}
	a.forgetTimes(load, err)
	return a.collect(load, n, err)
}

// setThresholds computes the trim thresholds of jobs by age. Only a job that is alone reads the
// time, so the error is that of the first.
func (a *Appender) setThresholds(load *appendLoad) error {
	for _, job := range load.jobs {
		if job.head.oldest == nil {
			continue
		}
		if job.asks {
			if err := a.askTime(load.ctx, job.head.key); err != nil {
				return err
			}
		}
		job.head.oldest.set(a.clocks.now(job.head.key))
	}
	return nil
}

// forgetTimes drops the readings of the clocks of servers that have failed.
func (a *Appender) forgetTimes(load *appendLoad, err error) {
	if err == nil {
		return
	}
	if kind := redisconn.Classify(err); kind != redisconn.KindNetwork && kind != redisconn.KindUnavailable {
		return
	}
	for _, job := range load.jobs {
		if job.head.oldest != nil {
			a.clocks.forget(job.head.key)
		}
	}
}

// collect returns the outcomes of all commands. err is the error of the client for all of them;
// it is used for a command without its own error.
func (a *Appender) collect(load *appendLoad, n int, err error) []Result {
	withdrawn := load.gate.Withdrawn()
	outcomes := make([]Result, 0, n)
	for _, job := range load.jobs {
		for i := range job.cmds {
			r := job.cmds[i].result(err)
			if withdrawn && r.Outcome == NotAppended && !redisconn.IsReply(r.Err) {
				r.Err = redisconn.ErrWithdrawn
			}
			outcomes = append(outcomes, r)
		}
	}
	return outcomes
}

// sendPlain sends a load of one transaction or of single commands.
func (a *Appender) sendPlain(load *appendLoad) error {
	var to pipeliner = a.conf.Client
	switch {
	case load.own && a.shorten > 0 && load.jobs[0].bytes > smallWrite:
		to = redisconn.WithTimeout(a.conf.Client.(*redis.Client), a.shorten)
	case a.bound:
		to = redisconn.WithTimeout(a.conf.Client.(*redis.Client), a.conf.Timeout+ioMargin)
	}
	if len(load.jobs) > 1 {
		return sendSingles(load.ctx, to, load.jobs)
	}
	job := load.jobs[0]
	if len(job.cmds) == 1 {
		if client, ok := a.conf.Client.(*redis.Client); ok && job.large() {
			return a.sendLarge(load.ctx, client, &job.cmds[0])
		}
		return to.Process(load.ctx, &job.cmds[0])
	}
	if err := a.checkMulti(load.ctx, job.head.key); err != nil {
		return err
	}
	return sendBatch(load.ctx, to, job)
}

// sendLarge sends a command that the server may refuse as too large, on a connection that is
// checked before it is returned to the pool. (A cluster client has no such connection that
// follows redirections.)
func (a *Appender) sendLarge(ctx context.Context, client *redis.Client, cmd *Command) error {
	conn := redisconn.WithTimeout(client, a.largeTimeout(client.Options())).Conn()
	defer func() { _ = conn.Close() }()
	err := conn.Process(ctx, cmd)
	dropRefused(ctx, conn, err)
	return err
}

// largeTimeout is the maximum time of one command on its connection, 0 for no bound.
func (a *Appender) largeTimeout(o *redis.Options) time.Duration {
	switch {
	case a.bound:
		return a.conf.Timeout + ioMargin
	case o.ReadTimeout <= 0 || o.WriteTimeout <= 0:
		return 0
	default:
		return max(o.ReadTimeout, o.WriteTimeout)
	}
}

// dropRefused makes a connection fail that the server is about to close because of a command that
// it could not read. For go-redis the refusal is a reply like any other: the next caller would
// get the connection, and its outcome would be unknown.
func dropRefused(ctx context.Context, conn *redis.Conn, err error) {
	if redisconn.Classify(err) == redisconn.KindProtocol {
		_ = conn.Ping(ctx).Err()
	}
}

// sendSingles sends the jobs as one pipeline.
func sendSingles(ctx context.Context, to pipeliner, jobs []*appendJob) error {
	cmds := make([]redis.Cmder, 0, len(jobs))
	for _, job := range jobs {
		for i := range job.cmds {
			cmds = append(cmds, &job.cmds[i])
		}
	}
	return redisconn.Exec(ctx, to.Pipeline(), cmds)
}

// sendBatch sends a job as one transaction.
func sendBatch(ctx context.Context, to pipeliner, job *appendJob) error {
	cmds := make([]redis.Cmder, len(job.cmds))
	for i := range job.cmds {
		cmds[i] = &job.cmds[i]
	}
	return redisconn.Exec(ctx, to.TxPipeline(), cmds)
}

// sendDurable sends a load on one connection and then WAITs there for replicas. missing is not
// nil if they were too few or their number is unknown; err is as for collect.
//
// WAIT counts only writes on its own connection. On another connection it would return all
// replicas at once, so it is never retried, and the sticky connection is not replaced when it
// fails.
func (a *Appender) sendDurable(load *appendLoad, n int) (missing, err error) {
	guarded := redisconn.Guard(func() error {
		node, nodeErr := a.master(load.ctx, load.jobs[0].head.key)
		if nodeErr != nil {
			err = nodeErr
			return nil
		}
		conn, release := durableConn(node, a.conf.WaitTimeout+waitMargin)
		defer release()
		var singles []*appendJob
		for _, job := range load.jobs {
			if len(job.cmds) == 1 {
				singles = append(singles, job)
				continue
			}
			jobErr := a.checkMulti(load.ctx, job.head.key)
			if jobErr == nil {
				jobErr = sendBatch(load.ctx, conn, job)
			}
			err = errors.Join(err, jobErr)
		}
		if len(singles) > 0 {
			err = errors.Join(err, sendSingles(load.ctx, conn, singles))
		}
		if a.cluster != nil && err != nil {
			a.cluster.ReloadState(load.ctx) // MOVED is not followed here
		}
		outcomes := a.collect(load, n, err)
		if !underReplicated(outcomes, ErrReplicas) {
			dropRefused(load.ctx, conn, err)
			return nil // nothing was appended
		}
		// A caller that stops waiting from now on gets the certain outcomes.
		a.mu.Lock()
		a.report(load, outcomes)
		a.mu.Unlock()
		missing = a.wait(load.ctx, conn)
		return nil
	})
	return missing, errors.Join(guarded, err)
}

// durableConn returns one connection for appends and their WAIT: from the pool, unless go-redis
// cannot log in such a connection (see [redisconn.Pulling]).
func durableConn(node *redis.Client, timeout time.Duration) (conn *redis.Conn, release func()) {
	if node.Options().StreamingCredentialsProvider == nil {
		conn = redisconn.WithTimeout(node, timeout).Conn()
		return conn, func() { _ = conn.Close() }
	}
	own := redisconn.Open(redisconn.Pulling(*node.Options()), redisconn.Config{ReadTimeout: timeout, WriteTimeout: timeout})
	conn = own.Client.Conn()
	return conn, func() {
		_ = conn.Close()
		own.Close()
	}
}

// underReplicated changes the outcomes of appended messages; false means that none was appended.
func underReplicated(outcomes []Result, reason error) bool {
	found := false
	for i := range outcomes {
		if r := &outcomes[i]; r.Outcome == Appended {
			r.Outcome, r.Err, found = UnderReplicated, reason, true
		}
	}
	return found
}

func (a *Appender) wait(ctx context.Context, conn pipeliner) error {
	// Not IntCmd of Wait, which sets its own read timeout of 10 s more.
	cmd := redisconn.OnceInt{IntCmd: redis.NewIntCmd(ctx, "wait", a.conf.Replicas, a.conf.WaitTimeout.Milliseconds())}
	if err := conn.Process(ctx, cmd); err != nil {
		return fmt.Errorf("%w: WAIT: %w", ErrReplicas, err)
	}
	if n := cmd.Val(); n < int64(a.conf.Replicas) {
		return fmt.Errorf("%w: %d of %d within %v", ErrReplicas, n, a.conf.Replicas, a.conf.WaitTimeout)
	}
	return nil
}

// master returns the client of the node that a key belongs to.
func (a *Appender) master(ctx context.Context, key string) (*redis.Client, error) {
	if a.cluster != nil {
		return a.cluster.MasterForKey(ctx, key)
	}
	return a.conf.Client.(*redis.Client), nil
}

// multiCheck records that the user may send transactions.
type multiCheck struct{ ok atomic.Bool }

// checkMulti checks, once, that the user may send MULTI and EXEC. Without the permission for
// MULTI the XADDs of a transaction are executed one by one. Without that for EXEC the connection
// is returned to the pool with an open transaction. The check therefore uses a separate
// connection, which is closed.
func (a *Appender) checkMulti(ctx context.Context, key string) error {
	if a.multi.ok.Load() {
		return nil
	}
	node, err := a.master(ctx, key)
	if err != nil {
		return err
	}
	opt := redisconn.Pulling(*node.Options())
	if a.conf.Timeout > 0 && (opt.ReadTimeout <= 0 || opt.ReadTimeout > a.conf.Timeout) {
		opt.ReadTimeout = a.conf.Timeout
	}
	conn := redisconn.Open(opt, redisconn.Config{})
	defer conn.Close()
	multi, exec := redisconn.OnceCmd{Cmd: redis.NewCmd(ctx, "multi")}, redisconn.OnceCmd{Cmd: redis.NewCmd(ctx, "exec")}
	if err := redisconn.Exec(ctx, conn.Client.Pipeline(), []redis.Cmder{multi, exec}); err != nil {
		return err
	}
	a.multi.ok.Store(true)
	return nil
}

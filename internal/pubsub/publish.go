package pubsub

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/redis/go-redis/v9"
)

// Outcome is what is known about one publication.
type Outcome uint8

// The outcomes.
const (
	NotPublished Outcome = iota // Redis has not executed it, and will not
	Published                   // Redis has answered with the number of receivers
	Unknown                     // it was sent and its answer is lost
)

// Result is the outcome of one publication.
type Result struct {
	Outcome   Outcome
	Receivers int64 // of Published
	Err       error // of the others
}

var (
	errWithdrawn = errors.New("not sent in time")
	errNoReply   = errors.New("redis client returned neither a reply nor an error")
)

// Publication is a PUBLISH or SPUBLISH that go-redis never sends twice: NoRetry
// stops what it does after a lost reply. Whether the command has left the process
// is not guessed from an error: the payload sees itself being written, and SetErr
// is called when a reply was read.
type Publication struct {
	*redis.IntCmd
	payload  payload
	answered int32 // value of payload.writes when the last reply was read
	accepted bool  // that reply was no error
}

// NoRetry is part of [redis.Cmder].
func (p *Publication) NoRetry() bool { return true }

// SetErr notes that a reply was read. After MOVED a command is written again; if
// the reply to that is lost, go-redis leaves MOVED as the error. And it gives the
// error of a pipeline that was cut to commands as well whose reply was read.
func (p *Publication) SetErr(err error) {
	if err == nil || isReply(err) {
		p.answered, p.accepted = p.payload.writes.Load(), err == nil
	}
	p.IntCmd.SetErr(err)
}

// The states of the gate that the commands of one call share.
const (
	gateOpen    int32 = iota // nothing is written yet
	gatePassed               // writing has begun
	gateRevoked              // nothing may be written any more
)

// payload is the last argument of a command.
type payload struct {
	data   []byte
	writes atomic.Int32
	gate   *atomic.Int32
}

// MarshalBinary is called by go-redis when it writes the argument into the buffer
// of a connection, after which the command must be taken as sent. After an error
// the connection is dropped with what is in the buffer, where no complete command
// can be: this argument ends the first one.
func (p *payload) MarshalBinary() ([]byte, error) {
	if !p.gate.CompareAndSwap(gateOpen, gatePassed) && p.gate.Load() == gateRevoked {
		return nil, errWithdrawn
	}
	p.writes.Add(1)
	return p.data, nil
}

// String is what hooks print, no payload.
func (p *payload) String() string { return fmt.Sprintf("(%d bytes)", len(p.data)) }

// Load is several publications to one channel that are sent together.
type Load struct {
	ctx  context.Context
	gate atomic.Int32
	cmds []*Publication
}

// NewLoad makes a load of payloads, which must not be changed until Send returns.
func NewLoad(ctx context.Context, channel string, sharded bool, payloads [][]byte) *Load {
	load := &Load{ctx: ctx, cmds: make([]*Publication, len(payloads))}
	command := "publish"
	if sharded {
		command = "spublish"
	}
	for i, data := range payloads {
		p := &Publication{payload: payload{data: data, gate: &load.gate}}
		p.IntCmd = redis.NewIntCmd(ctx, command, channel, &p.payload)
		// In a cluster all of a load take one way, and so keep their order.
		p.SetFirstKeyPos(1)
		load.cmds[i] = p
	}
	return load
}

// Withdraw stops what is not written yet. It reports whether that is all: nothing
// was sent and nothing will be. Send may run.
func (l *Load) Withdraw() bool { return l.gate.CompareAndSwap(gateOpen, gateRevoked) }

// Send sends the load once, by one pipeline in the order of the payloads, and
// returns the outcome of each.
func (l *Load) Send(client redis.UniversalClient) []Result {
	err := l.send(client)
	results := make([]Result, len(l.cmds))
	for i, cmd := range l.cmds {
		results[i] = cmd.result(err)
	}
	return results
}

// send turns a panic, for example of a hook, into an error: in this goroutine
// nobody else could.
func (l *Load) send(client redis.UniversalClient) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("panic in the redis client or a hook of it: %v", v)
		}
	}()
	if len(l.cmds) == 1 {
		return client.Process(l.ctx, l.cmds[0])
	}
	pipe := client.Pipeline()
	list := make([]redis.Cmder, len(l.cmds))
	for i := range l.cmds {
		list[i] = l.cmds[i]
	}
	if err := pipe.BatchProcess(l.ctx, list...); err != nil {
		return err
	}
	_, err = pipe.Exec(l.ctx)
	return err
}

// result classifies a finished command. When in doubt it is Unknown.
func (p *Publication) result(whole error) Result {
	writes := p.payload.writes.Load()
	replied := writes > 0 && p.answered == writes
	if replied && p.accepted {
		return Result{Outcome: Published, Receivers: p.Val()}
	}
	err := cmp.Or(p.Err(), whole, errNoReply)
	if writes == 0 || replied && isReply(err) {
		return Result{Outcome: NotPublished, Err: err}
	}
	return Result{Outcome: Unknown, Err: err}
}

// isReply reports whether the error is an answer of Redis.
func isReply(err error) bool {
	var reply redis.Error
	return errors.As(err, &reply)
}

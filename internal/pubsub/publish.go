package pubsub

import (
	"cmp"
	"context"
	"errors"
	"fmt"

	"github.com/redis/go-redis/v9"

	"github.com/flaminco/redischannels/internal/redisconn"
)

// Outcome is the state of one publication.
type Outcome uint8

// The outcomes.
const (
	NotPublished Outcome = iota // Redis has not executed it, and will not
	Published                   // Redis has returned the number of receivers
	Unknown                     // it was sent and its reply was lost
)

// Result is the outcome of one publication.
type Result struct {
	Outcome   Outcome
	Receivers int64 // of Published
	Err       error // of the others
}

var errNoReply = errors.New("redis client returned neither a reply nor an error")

// Publication is a PUBLISH or SPUBLISH that go-redis never sends again.
type Publication struct {
	*redis.IntCmd
	payload payload
}

// NoRetry implements [redis.Cmder].
func (p *Publication) NoRetry() bool { return true }

// SetErr is called by go-redis when it has read a reply, or has failed.
func (p *Publication) SetErr(err error) {
	p.payload.Reply(err)
	p.IntCmd.SetErr(err)
}

// payload is the last argument of a command, with its tracker.
type payload struct {
	redisconn.Tracker
	data []byte
}

// MarshalBinary is called by go-redis when it writes the argument.
func (p *payload) MarshalBinary() ([]byte, error) { return p.data, p.Write() }

// String is what hooks print, no payload.
func (p *payload) String() string { return fmt.Sprintf("(%d bytes)", len(p.data)) }

// Load is several publications to one channel that are sent together.
type Load struct {
	ctx  context.Context
	gate redisconn.Gate
	cmds []*Publication
}

// NewLoad returns a load of payloads, which must not be changed until Send returns.
func NewLoad(ctx context.Context, channel string, sharded bool, payloads [][]byte) *Load {
	load := &Load{ctx: ctx, cmds: make([]*Publication, len(payloads))}
	command := "publish"
	if sharded {
		command = "spublish"
	}
	for i, data := range payloads {
		p := &Publication{payload: payload{data: data}}
		p.payload.Reset(&load.gate)
		p.IntCmd = redis.NewIntCmd(ctx, command, channel, &p.payload)
		// In a cluster all publications of a load use one node, and so keep their order.
		p.SetFirstKeyPos(1)
		load.cmds[i] = p
	}
	return load
}

// Withdraw prevents writes that have not begun. It reports whether nothing was sent and nothing
// will be. Send may be running.
func (l *Load) Withdraw() bool { return l.gate.Withdraw() }

// Send sends the load once, by one pipeline in the order of the payloads, and
// returns the outcome of each.
func (l *Load) Send(client redis.UniversalClient) []Result {
	err := redisconn.Guard(func() error { return l.send(client) })
	results := make([]Result, len(l.cmds))
	for i, cmd := range l.cmds {
		results[i] = cmd.result(err)
	}
	return results
}

func (l *Load) send(client redis.UniversalClient) error {
	if len(l.cmds) == 1 {
		return client.Process(l.ctx, l.cmds[0])
	}
	list := make([]redis.Cmder, len(l.cmds))
	for i := range l.cmds {
		list[i] = l.cmds[i]
	}
	return redisconn.Exec(l.ctx, client.Pipeline(), list)
}

// result classifies a finished command. In doubt it is Unknown.
func (p *Publication) result(whole error) Result {
	if p.payload.Accepted() {
		return Result{Outcome: Published, Receivers: p.Val()}
	}
	err := cmp.Or(p.Err(), whole, errNoReply)
	if p.payload.NotExecuted(err) {
		return Result{Outcome: NotPublished, Err: err}
	}
	return Result{Outcome: Unknown, Err: err}
}

package redisconn

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/redis/go-redis/v9"
)

// Commands that go-redis never sends again, by the type of their reply. A command
// whose reply is lost may have been executed.
type (
	OnceCmd   struct{ *redis.Cmd }
	OnceInt   struct{ *redis.IntCmd }
	OnceSlice struct{ *redis.SliceCmd }
	OnceRaw   struct{ *redis.RawCmd }
	OnceTime  struct{ *redis.TimeCmd }
)

// NoRetry implements [redis.Cmder].
func (OnceCmd) NoRetry() bool   { return true }
func (OnceInt) NoRetry() bool   { return true }
func (OnceSlice) NoRetry() bool { return true }
func (OnceRaw) NoRetry() bool   { return true }
func (OnceTime) NoRetry() bool  { return true }

// ErrWithdrawn is the error of a command that its [Gate] has stopped.
var ErrWithdrawn = errors.New("withdrawn before it was sent")

// Gate can stop the commands of one write, as long as none of them was written. The zero value is
// an open gate.
type Gate struct{ state atomic.Int32 }

// The states of a gate.
const (
	gateOpen    int32 = iota // nothing is written yet
	gatePassed               // writing has begun
	gateRevoked              // nothing may be written
)

// Withdraw closes the gate and reports true if nothing was written; then nothing
// will be.
func (g *Gate) Withdraw() bool { return g.state.CompareAndSwap(gateOpen, gateRevoked) }

// Withdrawn reports whether Withdraw has closed the gate.
func (g *Gate) Withdrawn() bool { return g.state.Load() == gateRevoked }

// pass reports whether a command may be written.
func (g *Gate) pass() bool {
	return g == nil || g.state.CompareAndSwap(gateOpen, gatePassed) || !g.Withdrawn()
}

// Tracker records whether one command was sent and whether its reply was read.
//
// Neither can be concluded from the error of the command: go-redis wraps and joins
// errors and, in a cluster pipeline, keeps an older one when a later attempt fails
// without a reply. So the command observes both events itself. One of its arguments
// implements encoding.BinaryMarshaler and calls Write there, which go-redis calls when
// it writes the argument. Its SetErr calls Reply, which go-redis calls when it has
// read a reply.
type Tracker struct {
	gate     *Gate
	writes   atomic.Int32
	answered int32 // value of writes when the last reply was read
	accepted bool  // that reply was no error
}

// Reset prepares the tracker for the next attempt. gate may be nil.
func (t *Tracker) Reset(gate *Gate) {
	t.gate = gate
	t.writes.Store(0)
	t.answered, t.accepted = 0, false
}

// Write records that the command is being written to the buffer of a connection, after which it
// counts as sent. It returns [ErrWithdrawn] if the gate stops the command. go-redis then drops
// the connection with its buffer, which has no complete command: the argument is a part of the
// first one.
func (t *Tracker) Write() error {
	if !t.gate.pass() {
		return ErrWithdrawn
	}
	t.writes.Add(1)
	return nil
}

// Reply records the error of the command; nil and error replies mean that a reply was read. A
// redirected command is written again: if the second reply is lost, go-redis leaves MOVED as the
// error, which by itself would mean that nothing was executed. go-redis also sets the error of a
// failed pipeline for commands whose reply was read.
func (t *Tracker) Reply(err error) {
	if err == nil || IsReply(err) {
		t.answered, t.accepted = t.writes.Load(), err == nil
	}
}

// Sent reports whether the command was written at least once.
func (t *Tracker) Sent() bool { return t.writes.Load() > 0 }

// Accepted reports whether the last write of the command has a reply without an error.
func (t *Tracker) Accepted() bool { return t.answeredLast() && t.accepted }

// NotExecuted reports whether the command was certainly not executed: it was never written, or
// its error err is the reply to the last write.
func (t *Tracker) NotExecuted(err error) bool {
	return !t.Sent() || t.answeredLast() && IsReply(err)
}

func (t *Tracker) answeredLast() bool { return t.Sent() && t.answered == t.writes.Load() }

// TrackedArg is a string argument with the tracker of its command.
type TrackedArg struct {
	Text string
	Tracker
}

// MarshalBinary implements encoding.BinaryMarshaler.
func (a *TrackedArg) MarshalBinary() ([]byte, error) { return []byte(a.Text), a.Write() }

// String returns the text, for hooks that print the command.
func (a *TrackedArg) String() string { return a.Text }

// Process sends a command. A panic of a hook is its error.
func Process(ctx context.Context, client interface {
	Process(ctx context.Context, cmd redis.Cmder) error
}, cmd redis.Cmder) error {
	err := Guard(func() error { return client.Process(ctx, cmd) })
	if err != nil && cmd.Err() == nil {
		cmd.SetErr(err)
	}
	return err
}

// ExecAll sends a pipeline. Each command has its error; a panic of a hook is the error of
// commands without a reply.
func ExecAll(ctx context.Context, pipe redis.Pipeliner, cmds ...*redis.Cmd) {
	err := Guard(func() error { _, err := pipe.Exec(ctx); return err })
	for _, cmd := range cmds {
		if err != nil && cmd.Err() == nil && cmd.Val() == nil {
			cmd.SetErr(err)
		}
	}
}

// Exec sends the commands by one pipeline. The error is that of the first command with one, or of
// the pipeline.
func Exec(ctx context.Context, pipe redis.Pipeliner, cmds []redis.Cmder) error {
	if err := pipe.BatchProcess(ctx, cmds...); err != nil {
		return err
	}
	_, err := pipe.Exec(ctx)
	return err
}

// ErrPanic is the error of a panic. After a panic in the login of a connection, its client has
// lost that connection permanently, and a client with few connections must be closed.
var ErrPanic = errors.New("panic in the redis client or a hook of it")

// Guard returns a panic of fn, for example of a hook of the caller's client, as an error. In a
// goroutine of the library no caller would recover it.
func Guard(fn func() error) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("%w: %v", ErrPanic, v)
		}
	}()
	return fn()
}

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

// ErrWithdrawn is the error of a command that its [Gate] has held back.
var ErrWithdrawn = errors.New("withdrawn before it was sent")

// Gate holds back the commands of one write, as long as none of them was written.
// The zero value is an open gate.
type Gate struct{ state atomic.Int32 }

// The states of a gate.
const (
	gateOpen    int32 = iota // nothing is written yet
	gatePassed               // writing has begun
	gateRevoked              // nothing may be written any more
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

// Tracker knows of one command whether it was sent and whether its reply was read.
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

// Write notes that the command is being written into the buffer of a connection, after
// which it must be taken as sent. It returns [ErrWithdrawn] if the gate holds the command
// back. go-redis then drops the connection with what is in the buffer, which is no
// complete command: the argument is a part of the first one.
func (t *Tracker) Write() error {
	if !t.gate.pass() {
		return ErrWithdrawn
	}
	t.writes.Add(1)
	return nil
}

// Reply notes the error that the command gets; nil and error replies mean that a reply
// was read. A command that is redirected is written again: if the reply to that is lost,
// go-redis leaves MOVED as the error, which alone would look as if nothing was executed.
// go-redis also gives the error of a pipeline that was cut to commands whose reply was
// read.
func (t *Tracker) Reply(err error) {
	if err == nil || IsReply(err) {
		t.answered, t.accepted = t.writes.Load(), err == nil
	}
}

// Sent reports whether the command was written at least once.
func (t *Tracker) Sent() bool { return t.writes.Load() > 0 }

// Accepted reports whether the last time that the command was written was answered
// without an error.
func (t *Tracker) Accepted() bool { return t.answeredLast() && t.accepted }

// NotExecuted reports whether it is certain that the command was not executed: it was
// never written, or err, its error, is the reply to the last time that it was.
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

// ExecAll sends what a pipeline has. Each command has its error; a panic of a hook is that of those
// without a reply.
func ExecAll(ctx context.Context, pipe redis.Pipeliner, cmds ...*redis.Cmd) {
	err := Guard(func() error { _, err := pipe.Exec(ctx); return err })
	for _, cmd := range cmds {
		if err != nil && cmd.Err() == nil && cmd.Val() == nil {
			cmd.SetErr(err)
		}
	}
}

// Exec sends the commands by one pipeline. The error is that of the first command that
// has one, or of the whole.
func Exec(ctx context.Context, pipe redis.Pipeliner, cmds []redis.Cmder) error {
	if err := pipe.BatchProcess(ctx, cmds...); err != nil {
		return err
	}
	_, err := pipe.Exec(ctx)
	return err
}

// ErrPanic is the error of a panic. Where it comes from the login of a connection, its client has
// lost that connection for good, and one with few of them must be closed.
var ErrPanic = errors.New("panic in the redis client or a hook of it")

// Guard returns a panic of fn, for example of a hook of the caller's client, as an
// error. In a goroutine of the library nothing else would recover it.
func Guard(fn func() error) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("%w: %v", ErrPanic, v)
		}
	}()
	return fn()
}

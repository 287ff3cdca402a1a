package stream

import (
	"cmp"
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"sync/atomic"

	"github.com/redis/go-redis/v9"
)

// Outcome is what is known about one append.
type Outcome uint8

// The outcomes.
const (
	// NotAppended: the command was not executed, and will not be.
	NotAppended Outcome = iota
	// Appended: Redis has answered with the ID of the entry.
	Appended
	// UnderReplicated: appended, but not confirmed by enough replicas.
	UnderReplicated
	// Unknown: the command was sent and its reply is lost.
	Unknown
)

// AppendResult is the outcome of one append.
type AppendResult struct {
	Outcome Outcome
	ID      string // set for Appended and UnderReplicated
	Err     error  // set for all but Appended
}

// Trim is the part of XADD that bounds the stream. At most one of MaxLen and
// MinID is above 0; the zero value trims nothing.
type Trim struct {
	MaxLen int64
	MinID  int64 // milliseconds
	Exact  bool
}

// AppendHead returns the arguments of XADD that stand before the ID. All appends
// of a call share them.
func AppendHead(key string, trim Trim) []any {
	return append([]any{"xadd", key}, trim.args()...)
}

// args are the arguments of XADD, or nil.
func (t Trim) args() []any {
	by := "~"
	if t.Exact {
		by = "="
	}
	switch {
	case t.MaxLen > 0:
		return []any{"maxlen", by, t.MaxLen}
	case t.MinID > 0:
		return []any{"minid", by, t.MinID}
	default:
		return nil
	}
}

// Append is an XADD that go-redis never sends twice. go-redis retries after a
// lost reply although XADD is not idempotent; NoRetry stops that on all of its
// paths, and all repetition is left to [Appender], which knows when it is safe.
//
// Whether the command has left the process is not guessed from the type of an
// error: go-redis wraps, joins and, in a cluster pipeline, keeps an older error
// when a later attempt fails without a reply. The command sees both events
// itself. Its ID argument is serialised by MarshalBinary when it is written, and
// SetErr is called when a reply was read.
type Append struct {
	*redis.StringCmd
	args     []any
	mark     idArg
	answered int32 // value of mark.writes when the last reply was read
}

// The states of the gate that the commands of one load share.
const (
	gateOpen    int32 = iota // nothing is written yet
	gatePassed               // writing has begun
	gateRevoked              // nothing may be written any more
)

// idArg is the `*` of XADD. It counts how often the command was written, and is
// the last point at which the command can be held back.
type idArg struct {
	writes atomic.Int32
	gate   *atomic.Int32
}

var autoID = []byte{'*'}

// MarshalBinary is called by go-redis when it writes the argument into the
// buffer of a connection, after which the command must be taken as sent. An error
// makes go-redis drop the connection with what is in the buffer, where no complete
// command can be: this argument is in the middle of the first one.
func (a *idArg) MarshalBinary() ([]byte, error) {
	if !a.gate.CompareAndSwap(gateOpen, gatePassed) && a.gate.Load() == gateRevoked {
		return nil, errWithdrawn
	}
	a.writes.Add(1)
	return autoID, nil
}

// String is what hooks print.
func (a *idArg) String() string { return "*" }

// Start begins the command with the arguments of [AppendHead], for a number of
// fields. room is where the arguments of several commands lie side by side; it may
// be nil. What is left of it is returned for the next command, of which there are
// more to come.
func (c *Append) Start(room, head []any, fields, more int) []any {
	n := len(head) + 1 + 2*fields
	if len(room) < n {
		room = make([]any, n*(1+min(more, 255)))
	}
	c.args = append(room[:0:n], head...)
	c.args = append(c.args, &c.mark)
	return room[n:]
}

// AppendValue is the value of a field. go-redis is given its address, since making an
// interface of a []byte allocates.
type AppendValue []byte

// MarshalBinary implements encoding.BinaryMarshaler, by which go-redis writes it.
func (v *AppendValue) MarshalBinary() ([]byte, error) { return *v, nil }

// String is what hooks print.
func (v *AppendValue) String() string { return string(*v) }

// Field adds a field. name is a string, of which the caller makes an interface: one
// made of a constant costs nothing. The value is not copied.
func (c *Append) Field(name any, value *[]byte) {
	c.args = append(c.args, name, (*AppendValue)(value))
}

// prepare makes the command new for its next attempt.
func (c *Append) prepare(ctx context.Context, gate *atomic.Int32) {
	c.mark.gate = gate
	c.StringCmd = redis.NewStringCmd(ctx, c.args...)
	c.mark.writes.Store(0)
	c.answered = 0
}

// NoRetry tells go-redis to give up after a failure instead of sending again.
func (c *Append) NoRetry() bool { return true }

// SetErr notes that a reply was read. In a cluster a command may be written
// again after a MOVED reply; if the reply to that is lost, go-redis leaves MOVED
// as the error, which alone would look as if nothing had been executed.
func (c *Append) SetErr(err error) {
	if err == nil || isReply(err) {
		c.answered = c.mark.writes.Load()
	}
	c.StringCmd.SetErr(err)
}

var errNoReply = errors.New("redis client returned neither a reply nor an error")

// result classifies the finished command. When in doubt it is Unknown. whole is
// the error of the pipeline that it was part of.
func (c *Append) result(whole error) AppendResult {
	if id := c.Val(); id != "" {
		return AppendResult{Outcome: Appended, ID: id}
	}
	err := appendCause(cmp.Or(c.Err(), whole, errNoReply))
	writes := c.mark.writes.Load()
	if writes == 0 || isReply(err) && c.answered == writes && !multiRefused(err) {
		return AppendResult{Outcome: NotAppended, Err: err}
	}
	return AppendResult{Outcome: Unknown, Err: err}
}

// isReply reports whether the error is an answer of Redis.
func isReply(err error) bool {
	var reply redis.Error
	return errors.As(err, &reply)
}

// appendCause returns the reason inside of an EXECABORT reply that names one:
// "EXECABORT Transaction discarded because of: OOM command not allowed ...".
// Redis answers so when it refuses EXEC itself, and the reply hides what callers
// branch on. Other errors are returned as they are.
func appendCause(err error) error {
	var reply redis.Error
	if errors.As(err, &reply) {
		if text := reply.Error(); strings.HasPrefix(text, "EXECABORT") {
			if _, cause, ok := strings.Cut(text, " because of: "); ok {
				return &abortError{reply: reply, cause: cause}
			}
		}
	}
	return err
}

// abortError is an EXECABORT reply that reads as its cause.
type abortError struct {
	reply redis.Error
	cause string
}

func (e *abortError) Error() string { return e.cause }

// RedisError makes it a [redis.Error].
func (e *abortError) RedisError() {}

func (e *abortError) Unwrap() error { return e.reply }

// multiRefused reports whether Redis has refused MULTI itself, for want of a
// right or because the command is renamed. The XADDs behind it, which are in the
// same write, were then executed one by one, and go-redis drops their replies.
func multiRefused(err error) bool {
	switch Classify(err) {
	case KindNoPerm, KindUnknownCommand:
		return strings.Contains(strings.ToLower(err.Error()), "'multi'")
	default:
		return false
	}
}

// retryable reports whether an append that was not executed is worth another
// attempt: the server or the connection to it is away for a while. An error
// that no rule knows, for example of a hook, a limiter or a TLS handshake, is
// for the caller to see at once.
func retryable(err error, cluster bool) bool {
	if isReply(err) {
		if _, moved := redis.IsMovedError(err); moved && !cluster {
			return false // the client has no other node to ask
		}
		return Classify(err) == KindUnavailable || redis.IsMaxClientsError(err)
	}
	if errors.Is(err, redis.ErrClosed) {
		return false
	}
	if errors.Is(err, redis.ErrPoolTimeout) || errors.Is(err, redis.ErrPoolExhausted) {
		return true
	}
	var network net.Error
	return errors.As(err, &network) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		strings.HasPrefix(err.Error(), "redis: ") // no node, no sentinel, connection not usable
}

package appender

import (
	"cmp"
	"context"
	"errors"
	"io"
	"net"
	"slices"
	"strings"

	"github.com/redis/go-redis/v9"

	"github.com/flaminco/redischannels/internal/redisconn"
	"github.com/flaminco/redischannels/internal/stream"
)

// Outcome is the state of one append.
type Outcome uint8

// The outcomes.
const (
	// NotAppended: the command was not executed, and will not be.
	NotAppended Outcome = iota
	// Appended: Redis has returned the ID of the entry.
	Appended
	// UnderReplicated: appended, but not confirmed by enough replicas.
	UnderReplicated
	// Unknown: the command was sent and its reply is lost.
	Unknown
)

// Result is the outcome of one append.
type Result struct {
	Outcome Outcome
	ID      string // set for Appended and UnderReplicated
	Err     error  // set for all but Appended
}

// Head is the part of XADD before the ID. All commands of a call share it.
type Head struct {
	key    string
	args   []any
	oldest *threshold // nil without MaxAge
}

// NewHead returns the head of commands that append to the stream at key.
func NewHead(key string, trim stream.Trim) Head {
	h := Head{key: key, args: []any{"xadd", key}}
	switch {
	case trim.MaxLen > 0:
		h.args = append(h.args, "maxlen", trim.Operator(), trim.MaxLen)
	case trim.MaxAge > 0:
		h.oldest = &threshold{trim: trim}
		h.args = append(h.args, "minid", trim.Operator(), h.oldest)
	}
	return h
}

// NewScriptHead returns the head of a command that runs a script, which appends to the stream at
// key, or does nothing if it returns an error. words are the words of the command up to its keys;
// the first argument of the script is `*`. The reply is a text, which becomes the ID of the
// result.
func NewScriptHead(key string, words []any) Head { return Head{key: key, args: words} }

// Command is an XADD, or a script that appends, that go-redis never sends again. go-redis retries
// after a lost reply although neither is idempotent; NoRetry prevents that on all of its paths,
// and only [Appender] retries, which knows when it is safe.
type Command struct {
	*redis.StringCmd
	args []any
	id   autoID
}

// autoID is the `*` of XADD, with the tracker of the command.
type autoID struct{ redisconn.Tracker }

var asterisk = []byte{'*'}

// MarshalBinary is called by go-redis when it writes the argument.
func (a *autoID) MarshalBinary() ([]byte, error) { return asterisk, a.Write() }

// String is what hooks print.
func (a *autoID) String() string { return "*" }

// Start begins the command with its head, for a number of fields. room is shared memory for the
// arguments of several commands; it may be nil. Start returns the rest of it for the next
// command, of which more follow.
func (c *Command) Start(room []any, head Head, fields, more int) []any {
	n := len(head.args) + 1 + 2*fields
	if len(room) < n {
		room = make([]any, n*(1+min(more, 255)))
	}
	c.args = append(room[:0:n], head.args...)
	c.args = append(c.args, &c.id)
	return room[n:]
}

// fieldValue is the value of a field. go-redis gets its address, because converting a []byte to
// an interface allocates.
type fieldValue []byte

// MarshalBinary implements encoding.BinaryMarshaler, by which go-redis writes it.
func (v *fieldValue) MarshalBinary() ([]byte, error) { return *v, nil }

// String is what hooks print.
func (v *fieldValue) String() string { return string(*v) }

// Field adds a field. name is a string in an interface, which the caller makes: for a constant
// this does not allocate. The value is not copied.
func (c *Command) Field(name any, value *[]byte) {
	c.args = append(c.args, name, (*fieldValue)(value))
}

// prepare resets the command for its next attempt, and returns the room after a copy of its
// arguments: a hook of the client may change them, and the next attempt must not send the
// changes.
func (c *Command) prepare(ctx context.Context, gate *redisconn.Gate, room []any) []any {
	c.id.Reset(gate)
	at := len(room)
	room = append(room, c.args...)
	c.StringCmd = redis.NewStringCmd(ctx, room[at:len(room):len(room)]...)
	return room
}

// tracked reports whether the argument that records sending is still in place, and not replaced
// by a hook.
func (c *Command) tracked() bool {
	return slices.ContainsFunc(c.Args(), func(arg any) bool { id, ok := arg.(*autoID); return ok && id == &c.id })
}

// NoRetry makes go-redis return a failure instead of sending again.
func (c *Command) NoRetry() bool { return true }

// SetErr is called by go-redis when it has read a reply, or has failed.
func (c *Command) SetErr(err error) {
	c.id.Reply(err)
	c.StringCmd.SetErr(err)
}

var errNoReply = errors.New("redis client returned neither a reply nor an error")

// result classifies the finished command. In doubt it is Unknown. whole is the error of its
// pipeline.
func (c *Command) result(whole error) Result {
	if id := c.Val(); id != "" {
		return Result{Outcome: Appended, ID: id}
	}
	err := causeOf(cmp.Or(c.Err(), whole, errNoReply))
	if c.tracked() && c.id.NotExecuted(err) && !(c.id.Sent() && multiRefused(err)) {
		return Result{Outcome: NotAppended, Err: err}
	}
	return Result{Outcome: Unknown, Err: err}
}

// causeOf returns the reason inside an EXECABORT reply that has one: "EXECABORT Transaction
// discarded because of: OOM command not allowed ...". Redis replies so when it refuses EXEC
// itself, and the reply hides the error code. Other errors are returned unchanged.
func causeOf(err error) error {
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

// multiRefused reports whether Redis has refused MULTI itself, for a missing permission
// or because the command is renamed. The XADDs behind it, which are in the
// same write, were then executed one by one, and go-redis drops their replies.
func multiRefused(err error) bool {
	switch redisconn.Classify(err) {
	case redisconn.KindNoPerm, redisconn.KindUnknownCommand:
		return strings.Contains(strings.ToLower(err.Error()), "'multi'")
	default:
		return false
	}
}

// retryable reports whether an append that was not executed should be retried: the server or the
// connection to it is temporarily unavailable. Any other error, for example of a hook, a limiter
// or a TLS handshake, is returned to the caller at once.
func retryable(err error, cluster bool) bool {
	if redisconn.IsReply(err) {
		if _, moved := redis.IsMovedError(err); moved && !cluster {
			return false // the client has no other node to ask
		}
		return redisconn.Classify(err) == redisconn.KindUnavailable || redis.IsMaxClientsError(err)
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

package appender

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels/internal/redisconn"
	"github.com/flaminco/redischannels/internal/stream"
)

// newTestAppend returns a command that is ready for its first attempt.
func newTestAppend(gate *redisconn.Gate) *Command {
	c := new(Command)
	c.Start(nil, NewHead("key", stream.Trim{}), 1, 0)
	value := []byte("v")
	c.Field("f", &value)
	c.prepare(context.Background(), gate, nil)
	return c
}

func (c *Command) write(t *testing.T) {
	t.Helper()
	_, err := c.id.MarshalBinary()
	require.NoError(t, err)
}

// The outcome was taken from the type of the error alone. go-redis keeps the MOVED
// of a first attempt when the reply to the second one is lost, and a dial error
// when a redirected command was written: both looked as if nothing was appended.
func TestCommand_Outcomes(t *testing.T) {
	t.Parallel()
	dial := &net.OpError{Op: "dial", Err: errors.New("refused")}
	for name, c := range map[string]struct {
		events func(t *testing.T, c *Command)
		want   Outcome
	}{
		"answered":              {func(t *testing.T, c *Command) { c.write(t); c.SetVal("1-0"); c.SetErr(nil) }, Appended},
		"answered, hook failed": {func(t *testing.T, c *Command) { c.write(t); c.SetVal("1-0"); c.SetErr(errors.New("hook")) }, Appended},
		"refused":               {func(t *testing.T, c *Command) { c.write(t); c.SetErr(redisconn.ReplyError("WRONGTYPE x")) }, NotAppended},
		"never written":         {func(t *testing.T, c *Command) { c.SetErr(dial) }, NotAppended},
		"never run":             {func(*testing.T, *Command) {}, NotAppended},
		"lost":                  {func(t *testing.T, c *Command) { c.write(t); c.SetErr(io.EOF) }, Unknown},
		"no error at all":       {func(t *testing.T, c *Command) { c.write(t) }, Unknown},
		"moved, then lost, MOVED kept": {func(t *testing.T, c *Command) {
			c.write(t)
			c.SetErr(redisconn.ReplyError("MOVED 1 a:1"))
			c.write(t)
		}, Unknown},
		"moved, then refused": {func(t *testing.T, c *Command) {
			c.write(t)
			c.SetErr(redisconn.ReplyError("MOVED 1 a:1"))
			c.write(t)
			c.SetErr(redisconn.ReplyError("OOM x"))
		}, NotAppended},
		"moved, then not reached": {func(t *testing.T, c *Command) {
			c.write(t)
			c.SetErr(redisconn.ReplyError("MOVED 1 a:1"))
		}, NotAppended},
		"not reached, then lost, dial error kept": {func(t *testing.T, c *Command) {
			c.SetErr(dial)
			c.write(t)
		}, Unknown},
		"MULTI refused, XADD executed": {func(t *testing.T, c *Command) {
			c.write(t)
			c.SetErr(redisconn.ReplyError("NOPERM this user has no permissions to run the 'multi' command"))
		}, Unknown},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cmd := newTestAppend(new(redisconn.Gate))
			c.events(t, cmd)
			r := cmd.result(nil)
			require.Equal(t, c.want, r.Outcome, "%v", r.Err)
			require.Equal(t, c.want == Appended, r.Err == nil)
			require.True(t, cmd.NoRetry())
		})
	}
}

// A command that its caller has given up must not be written any more, and one
// that is being written cannot be blocked.
func TestCommand_Gate(t *testing.T) {
	t.Parallel()
	var gate redisconn.Gate
	first, second := newTestAppend(&gate), newTestAppend(&gate)
	first.write(t)
	require.False(t, gate.Withdraw())
	second.write(t)

	var other redisconn.Gate
	require.True(t, other.Withdraw())
	third := newTestAppend(&other)
	_, err := third.id.MarshalBinary()
	require.ErrorIs(t, err, redisconn.ErrWithdrawn)
	third.SetErr(err)
	require.Equal(t, NotAppended, third.result(nil).Outcome)
}

// The arguments are those of XADD in the order that Redis wants.
func TestCommand_Arguments(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		trim stream.Trim
		want []any
	}{
		{stream.Trim{}, []any{"xadd", "key"}},
		{stream.Trim{MaxLen: 5}, []any{"xadd", "key", "maxlen", "~", int64(5)}},
		{stream.Trim{MaxLen: 5, Exact: true}, []any{"xadd", "key", "maxlen", "=", int64(5)}},
	} {
		require.Equal(t, c.want, NewHead("key", c.trim).args)
	}
	for exact, operator := range map[bool]string{false: "~", true: "="} {
		head := NewHead("key", stream.Trim{MaxAge: time.Second, Exact: exact})
		require.Equal(t, []any{"xadd", "key", "minid", operator, head.oldest}, head.args)
		for now, want := range map[time.Time]string{time.UnixMilli(1007): "7", time.UnixMilli(999): "0", {}: "0"} {
			head.oldest.set(now)
			text, err := head.oldest.MarshalBinary()
			require.NoError(t, err)
			require.Equal(t, want, string(text))
			require.Equal(t, want, head.oldest.String())
		}
	}
	require.Equal(t, "xadd key * f v: ", newTestAppend(new(redisconn.Gate)).String(), "what a hook prints")
}

// Commands that share the room of their arguments must not write into each other.
func TestCommand_Room(t *testing.T) {
	t.Parallel()
	head := NewHead("key", stream.Trim{})
	cmds := make([]Command, 5)
	var room []any
	for i := range cmds {
		fields := 1 + i%3
		room = cmds[i].Start(room, head, fields, len(cmds)-i-1)
		for range fields {
			value := []byte{byte('0' + i)}
			cmds[i].Field("f", &value)
		}
	}
	for i := range cmds {
		cmds[i].prepare(context.Background(), new(redisconn.Gate), nil)
		want := "xadd key *" + strings.Repeat(" f "+string(rune('0'+i)), 1+i%3) + ": "
		require.Equal(t, want, cmds[i].String())
	}
}

// The reason of a refused EXEC was hidden in the text of EXECABORT.
func TestCauseOf(t *testing.T) {
	t.Parallel()
	abort := redisconn.ReplyError("EXECABORT Transaction discarded because of: OOM command not allowed when used memory > 'maxmemory'.")
	cause := causeOf(abort)
	require.Equal(t, redisconn.KindOOM, redisconn.Classify(cause))
	require.ErrorIs(t, cause, abort)
	plain := redisconn.ReplyError("EXECABORT Transaction discarded because of previous errors.")
	require.Equal(t, error(plain), causeOf(plain))
	require.ErrorIs(t, causeOf(io.EOF), io.EOF)
}

// A passing outage is worth waiting for, anything else is for the caller to see.
func TestRetryable(t *testing.T) {
	t.Parallel()
	for _, err := range []error{
		&net.OpError{Op: "dial", Err: errors.New("refused")}, io.EOF, redis.ErrPoolTimeout, redis.ErrPoolExhausted,
		errors.New("redis: cluster has no nodes"), redisconn.ReplyError("LOADING x"), redisconn.ReplyError("READONLY x"),
		redisconn.ReplyError("CLUSTERDOWN x"), redisconn.ReplyError("TRYAGAIN x"),
		causeOf(redisconn.ReplyError("EXECABORT Transaction discarded because of: READONLY x")),
	} {
		require.True(t, retryable(err, false), "%v", err)
	}
	for _, err := range []error{
		redis.ErrClosed, errors.New("circuit breaker open"), redisconn.ReplyError("OOM x"), redisconn.ReplyError("WRONGTYPE x"),
		redisconn.ReplyError("NOPERM x"), redisconn.ReplyError("ERR x"), redisconn.ReplyError("EXECABORT Transaction discarded because of previous errors."),
	} {
		require.False(t, retryable(err, false), "%v", err)
	}
}

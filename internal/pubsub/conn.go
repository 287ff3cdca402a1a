package pubsub

import (
	"context"
	"errors"
	"net"
	"os"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/flaminco/redischannels/internal/redisconn"
)

const (
	// loginTimeout is the longest that a reply may take while the connection is made.
	loginTimeout = 5 * time.Second
	// writeChunk is how much is written under one deadline.
	writeChunk = 64 << 10
	// lastLook is how long a connection that is taken for dead is listened to once
	// more: the process itself may have stood still.
	lastLook = 10 * time.Millisecond
)

var errSilent = errors.New("the server has not answered a PING in time")

// conn is a connection that go-redis has dialled and logged in, and that is ours
// from then on.
type conn struct {
	net.Conn
	own     *redisconn.Conn
	sticky  *redis.Conn
	silence time.Duration // after which a PING is sent, and for which its answer is awaited
	ping    func()
	heard   atomic.Int64 // when the server was last heard of, Unix nanoseconds
}

// dial opens a connection with the options of a client. It ends with ctx.
func dial(ctx context.Context, opt redis.Options, onClient func(*redis.Client)) (*conn, error) {
	own := redisconn.Open(redisconn.Pulling(opt), redisconn.Config{
		Context:      ctx,
		ReadTimeout:  bounded(opt.ReadTimeout),
		WriteTimeout: bounded(opt.WriteTimeout),
	})
	if onClient != nil {
		onClient(own.Client)
	}
	stop := context.AfterFunc(ctx, own.Cut)
	sticky := own.Client.Conn()
	err := sticky.Ping(ctx).Err()
	if own.Ready() && redisconn.IsReply(err) {
		err = nil // it answers: loading, or the user has no permission for PING
	}
	stop()
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		_ = sticky.Close()
		own.Close()
		return nil, err
	}
	c := &conn{Conn: own.Raw(), own: own, sticky: sticky}
	c.heard.Store(time.Now().UnixNano())
	return c, nil
}

// bounded is a timeout for logging in, which must come to an end.
func bounded(d time.Duration) time.Duration {
	if d <= 0 || d > loginTimeout {
		return loginTimeout
	}
	return d
}

// Read reads what comes. When the server is silent it is asked for a sign of life,
// and without one the connection is given up: the kernel would keep a half-open
// one for many minutes.
func (c *conn) Read(p []byte) (int, error) {
	for look := 0; ; look++ {
		wait := c.silence
		if look == 2 {
			wait = min(wait, lastLook)
		}
		if err := c.SetReadDeadline(time.Now().Add(wait)); err != nil {
			return 0, err
		}
		n, err := c.Conn.Read(p)
		if n > 0 {
			c.heard.Store(time.Now().UnixNano())
			return n, err
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return n, err
		}
		switch look {
		case 0:
			c.ping()
		case 2:
			return 0, errSilent
		}
	}
}

// write writes all of buf; no chunk may take longer than the silence of a server.
func (c *conn) write(buf []byte) error {
	for len(buf) > 0 {
		n := min(len(buf), writeChunk)
		if err := c.SetWriteDeadline(time.Now().Add(2 * c.silence)); err != nil {
			return err
		}
		if _, err := c.Write(buf[:n]); err != nil {
			return err
		}
		buf = buf[n:]
	}
	return nil
}

// lastHeard is when the server was last heard of.
func (c *conn) lastHeard() time.Time { return time.Unix(0, c.heard.Load()) }

// end closes the connection and the client that has opened it.
func (c *conn) end() {
	_ = c.Conn.Close()
	_ = c.sticky.Close()
	c.own.Close()
}

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
	// loginTimeout is the maximum time of a reply during login.
	loginTimeout = 5 * time.Second
	// writeChunk is the number of bytes that are written with one deadline.
	writeChunk = 64 << 10
	// lastLook is how long a connection that seems to have failed is read once more: the process
	// itself may have been stopped.
	lastLook = 10 * time.Millisecond
)

var errSilent = errors.New("the server has not replied to a PING in time")

// conn is a connection that go-redis has dialed and logged in, and that we own from then on.
type conn struct {
	net.Conn
	own     *redisconn.Conn
	sticky  *redis.Conn
	silence time.Duration // after which a PING is sent, and within which its reply must arrive
	ping    func()
	heard   atomic.Int64 // time of the last data from the server, Unix nanoseconds
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
		err = nil // it replies: loading, or the user has no permission for PING
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

// bounded is a timeout for the login, which must end.
func bounded(d time.Duration) time.Duration {
	if d <= 0 || d > loginTimeout {
		return loginTimeout
	}
	return d
}

// Read reads from the connection. When the server is silent Read sends a PING, and without a
// reply the connection is closed: the kernel would keep a half-open one for many minutes.
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

// lastHeard is the time of the last data from the server.
func (c *conn) lastHeard() time.Time { return time.Unix(0, c.heard.Load()) }

// end closes the connection and the client that has opened it.
func (c *conn) end() {
	_ = c.Conn.Close()
	_ = c.sticky.Close()
	c.own.Close()
}

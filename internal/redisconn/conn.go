package redisconn

import (
	"context"
	"errors"
	"net"
	"strconv"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/auth"
	"github.com/redis/go-redis/v9/maintnotifications"
)

// own returns the options of a separate client of the library for the same server: the caller's
// options by value, so that none is lost (address, TLS, credentials, database, Sentinel's
// dialer), without the settings for the caller's use of the client. Commands are not retried, and
// no connection is opened before the first command.
func own(opt redis.Options, connections int) redis.Options {
	opt.MaxRetries = -1
	opt.DialerRetries = 1
	opt.PoolSize = connections
	opt.MinIdleConns = 0
	opt.MaxIdleConns = 0
	opt.MaxActiveConns = 0
	opt.PipelinePoolSize = -1
	opt.AutoPipelineOptions = nil
	opt.ClientSideCache = nil
	opt.ClientSideCacheConfig = nil
	opt.MaintNotificationsConfig = &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
	return opt
}

// Pulling returns options with which a connection reads the credentials of a
// StreamingCredentialsProvider when it logs in, and not later ones. A [redis.Client.Conn] of a
// client that has such a provider panics when it logs in (go-redis 9.23).
func Pulling(opt redis.Options) redis.Options {
	provider := opt.StreamingCredentialsProvider
	if provider == nil {
		return opt
	}
	opt.StreamingCredentialsProvider = nil
	opt.CredentialsProviderContext = func(context.Context) (username, password string, err error) {
		credentials, unsubscribe, err := provider.Subscribe(noListener{})
		if err != nil {
			return "", "", err
		}
		defer func() { _ = unsubscribe() }()
		username, password = credentials.BasicAuth()
		return username, password, nil
	}
	return opt
}

// noListener ignores later credentials.
type noListener struct{}

func (noListener) OnNext(auth.Credentials) {}
func (noListener) OnError(error)           {}

// Config configures [Open].
type Config struct {
	// ReadTimeout and WriteTimeout are those of the connection. Zero keeps the caller's.
	ReadTimeout, WriteTimeout time.Duration
	// Waker sends CLIENT UNBLOCK for Wake. Nil means that Wake is not used.
	Waker *redis.Client
	// Context ends a running dial. Nil means none.
	Context context.Context
	// Wrap, if not nil, wraps each connection before it is used.
	Wrap func(net.Conn) net.Conn
	// OnConnect, if not nil, is called when a connection is logged in, before its first
	// command.
	OnConnect func()
}

// Conn is a client with a single connection, which the first command opens. After a failure the
// next command opens another one. The client is for one goroutine; Wake and Cut are safe for
// concurrent use.
type Conn struct {
	Client *redis.Client

	conf Config

	mu      sync.Mutex
	raw     net.Conn // the last one that was dialed, even if it has failed
	ready   bool     // it is logged in
	id      int64    // its CLIENT ID; 0 if unknown
	blocked bool     // a command that may block was sent on it and has no reply
}

// Open returns a Conn that reaches the server as a client with the options does. Hooks of
// that client are not copied.
func Open(base redis.Options, conf Config) *Conn {
	c := &Conn{conf: conf}
	opt := own(base, 1)
	opt.ConnMaxIdleTime = -1
	if conf.ReadTimeout != 0 {
		opt.ReadTimeout = conf.ReadTimeout
	}
	if conf.WriteTimeout != 0 {
		opt.WriteTimeout = conf.WriteTimeout
	}
	opt.Dialer, opt.OnConnect = c.dialer(base.Dialer), c.onConnect(base.OnConnect)
	c.Client = redis.NewClient(&opt)
	return c
}

// dialer returns a dialer that records the connections of another one.
func (c *Conn) dialer(dial func(context.Context, string, string) (net.Conn, error)) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		if c.conf.Context != nil {
			// The context of go-redis does not always end with that of the command.
			var cancel context.CancelFunc
			ctx, cancel = context.WithCancel(ctx)
			defer cancel()
			defer context.AfterFunc(c.conf.Context, cancel)()
		}
		raw, err := dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		c.mu.Lock()
		c.raw, c.ready, c.id, c.blocked = raw, false, 0, false
		c.mu.Unlock()
		if c.conf.Context != nil && c.conf.Context.Err() != nil {
			c.Cut()
		}
		if c.conf.Wrap != nil {
			return c.conf.Wrap(raw), nil
		}
		return raw, nil
	}
}

// onConnect returns a function that go-redis calls when it has logged a connection in.
func (c *Conn) onConnect(callers func(context.Context, *redis.Conn) error) func(context.Context, *redis.Conn) error {
	return func(ctx context.Context, cn *redis.Conn) error {
		if callers != nil {
			if err := callers(ctx, cn); err != nil {
				return err
			}
		}
		if c.conf.OnConnect != nil {
			c.conf.OnConnect()
		}
		var id int64
		if c.conf.Waker != nil {
			// Without permission for CLIENT ID the connection is unblocked by closing it.
			var err error
			if id, err = cn.ClientID(ctx).Result(); Classify(err) == KindNetwork {
				return err
			}
		}
		c.mu.Lock()
		c.ready, c.id = true, id
		c.mu.Unlock()
		return nil
	}
}

// Ready reports whether the connection is logged in. It may have failed since.
func (c *Conn) Ready() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ready
}

// Raw returns the connection without its wrapper, or nil before the first.
func (c *Conn) Raw() net.Conn {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.raw
}

// SetBlocked records that a command that may block was sent on the connection, or that it has its
// reply or has failed. The connection's wrapper calls it at that moment. Only in between the
// connection is certainly up, and Wake uses its ID: another server at the same address, for
// example after a restart, assigns the same ID to another client.
func (c *Conn) SetBlocked(blocked bool) {
	c.mu.Lock()
	c.blocked = blocked
	c.mu.Unlock()
}

// errNotBlocked prevents a CLIENT UNBLOCK.
var errNotBlocked = errors.New("the connection is not blocked")

// blockedID is the argument of CLIENT UNBLOCK. Between Wake and the write of its command the pool
// may wait for a connection for a long time, even until the server has restarted.
type blockedID struct {
	c  *Conn
	id int64
}

// MarshalBinary is called by go-redis when it writes the argument.
func (b blockedID) MarshalBinary() ([]byte, error) {
	b.c.mu.Lock()
	defer b.c.mu.Unlock()
	if !b.c.blocked || b.c.id != b.id {
		return nil, errNotBlocked
	}
	return strconv.AppendInt(nil, b.id, 10), nil
}

// String is what hooks print.
func (b blockedID) String() string { return strconv.FormatInt(b.id, 10) }

// Wake ends a command that blocks on the connection: by CLIENT UNBLOCK if the server allows it,
// otherwise by closing the connection. It also closes a connection during its login. On a
// connection that is not blocked it does nothing, so the caller repeats it until the command has
// ended. (CLIENT UNBLOCK id)
func (c *Conn) Wake(ctx context.Context) {
	c.mu.Lock()
	ready, blocked, id := c.ready, c.blocked, c.id
	c.mu.Unlock()
	if ready && !blocked {
		return
	}
	if id != 0 {
		unblock := OnceInt{redis.NewIntCmd(ctx, "CLIENT", "UNBLOCK", blockedID{c, id})}
		// Sent once: the alternative, closing the connection, needs no server.
		err := Process(ctx, c.conf.Waker, unblock)
		if err == nil || errors.Is(err, errNotBlocked) {
			return
		}
	}
	c.Cut()
}

// Cut closes the connection, if there is one, even during a command.
func (c *Conn) Cut() {
	if raw := c.Raw(); raw != nil {
		_ = raw.Close() // the command gets the error
	}
}

// Close closes the client and its connection.
func (c *Conn) Close() { _ = c.Client.Close() }

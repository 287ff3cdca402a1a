package redisconn

import (
	"context"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

// controlConns is the pool size of a Control: one command may be slow while another, such as
// a renewal, must not wait for it.
const controlConns = 2

// Control is a separate client of the library for short commands to the master of one key:
// renewals of leases, and the first commands after a reconnect. It is safe for concurrent use.
//
// Such commands must not use the caller's pool. If established connections become silent while
// new ones work (a failed-over load balancer, a NAT that has lost its table, a host without
// power), every idle connection of that pool costs the next command one of the caller's
// ReadTimeouts until it is dropped: with five idle connections and go-redis' defaults 25 seconds,
// in which leases expire and other consumers claim messages that a handler is working on. A
// Control has at most two connections, each command fails within the timeout of [NewControl], and
// after Reset every command dials.
//
// Commands are not sent again. In Redis Cluster the client is that of one master: a MOVED
// reply is an error, after which the caller resets the Control.
type Control struct {
	base     redis.UniversalClient
	key      string
	timeout  time.Duration
	onClient func(*redis.Client)
	opening  chan struct{} // has an element while a goroutine opens the client

	mu     sync.Mutex
	client *redis.Client // nil before the first use and after Reset
	resets int
	closed bool
}

// NewControl returns a Control for the server that owns key in base. The timeouts for dialing,
// reading, writing, and for waiting for one of its connections are those of base, and at most
// timeout. onClient, if not nil, receives each client that is opened, before its first use; hooks
// of base are not copied. Nothing is opened before the first use.
//
// A TLS handshake by the default dialer of go-redis is bounded only by the DialTimeout of base,
// and finding a master through Sentinel by the timeouts of that client.
func NewControl(base redis.UniversalClient, key string, timeout time.Duration, onClient func(*redis.Client)) *Control {
	return &Control{base: base, key: key, timeout: timeout, onClient: onClient, opening: make(chan struct{}, 1)}
}

// Client returns the client, and opens it if there is none. For that it needs the master of the
// key: in Redis Cluster this may need a command, which ctx bounds. The client belongs to the
// Control. It fails with redis.ErrClosed when the Control is reset or closed meanwhile; after a
// Reset, Client returns another one. After Close it returns redis.ErrClosed.
func (c *Control) Client(ctx context.Context) (*redis.Client, error) {
	for {
		client, _, err := c.current()
		if client != nil || err != nil {
			return client, err
		}
		select {
		case c.opening <- struct{}{}:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
		if err := c.openAlone(ctx); err != nil {
			return nil, err
		}
	}
}

// openAlone is open with the token in opening. A panic of onClient is an error.
func (c *Control) openAlone(ctx context.Context) error {
	defer func() { <-c.opening }()
	return Guard(func() error { return c.open(ctx) })
}

func (c *Control) current() (client *redis.Client, resets int, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, 0, redis.ErrClosed
	}
	return c.client, c.resets, nil
}

// open opens the client unless there is one. A Reset while it finds the master makes the result
// invalid.
func (c *Control) open(ctx context.Context) error {
	client, resets, err := c.current()
	if client != nil || err != nil {
		return err
	}
	node, err := Master(ctx, c.base, c.key)
	if err != nil {
		return err
	}
	client = redis.NewClient(c.options(*node.Options()))
	if c.onClient != nil {
		c.onClient(client)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed || c.resets != resets {
		_ = client.Close()
		return nil
	}
	c.client = client
	return nil
}

func (c *Control) options(base redis.Options) *redis.Options {
	opt := own(base, controlConns)
	opt.DialTimeout = atMost(c.timeout, base.DialTimeout)
	opt.ReadTimeout = atMost(c.timeout, base.ReadTimeout)
	opt.WriteTimeout = atMost(c.timeout, base.WriteTimeout)
	opt.PoolTimeout = atMost(c.timeout, base.PoolTimeout)
	return &opt
}

// atMost returns the smaller of a bound and a timeout of go-redis, in which 0 and less means
// none.
func atMost(bound, timeout time.Duration) time.Duration {
	if timeout <= 0 {
		return bound
	}
	return min(bound, timeout)
}

// Reset drops the client with its connections: running commands on it fail, and the next one
// dials. In Redis Cluster the master of the key is found again. It does not wait.
func (c *Control) Reset() {
	Relocate(c.base)
	c.drop(false)
}

// Close drops the client permanently. It does not wait.
func (c *Control) Close() { c.drop(true) }

func (c *Control) drop(closed bool) {
	c.mu.Lock()
	client := c.client
	c.client = nil
	c.resets++
	c.closed = c.closed || closed
	c.mu.Unlock()
	if client != nil {
		_ = client.Close()
	}
}

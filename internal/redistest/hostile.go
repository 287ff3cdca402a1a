package redistest

import (
	"context"
	"net"
	"strings"
	"sync"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/auth"
)

// ChangeArgs returns a hook that changes the arguments of every command in place before it is sent,
// also in pipelines.
func ChangeArgs(change func(args []any)) redis.Hook { return changing(change) }

// PrefixKeys returns [ChangeArgs] with a prefix for the keys of XADD, as hooks have it that give each
// tenant its keys.
func PrefixKeys(prefix string) redis.Hook {
	return ChangeArgs(func(args []any) {
		if name, _ := args[0].(string); strings.EqualFold(name, "xadd") {
			args[1] = prefix + args[1].(string)
		}
	})
}

type changing func(args []any)

// DialHook is part of [redis.Hook].
func (changing) DialHook(next redis.DialHook) redis.DialHook {
	return func(ctx context.Context, network, addr string) (net.Conn, error) { return next(ctx, network, addr) }
}

// ProcessHook is part of [redis.Hook].
func (c changing) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		c(cmd.Args())
		return next(ctx, cmd)
	}
}

// ProcessPipelineHook is part of [redis.Hook].
func (c changing) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		for _, cmd := range cmds {
			c(cmd.Args())
		}
		return next(ctx, cmds)
	}
}

// Credentials is a provider of credentials that change, and that a test makes fail. A client uses it
// by [Credentials.Option].
type Credentials struct {
	user string

	mu        sync.Mutex
	password  string
	asked     func() error
	failed    int
	listeners map[auth.CredentialsListener]struct{}
}

// NewCredentials returns the credentials of a user.
func NewCredentials(user, password string) *Credentials {
	return &Credentials{user: user, password: password, listeners: make(map[auth.CredentialsListener]struct{})}
}

// Option has the client ask for these credentials.
func (c *Credentials) Option(o *redis.Options) {
	o.Username, o.Password, o.StreamingCredentialsProvider = "", "", c
}

// Asked sets what is called each time that a connection asks for the credentials: it may panic, block,
// or return an error. nil ends that.
func (c *Credentials) Asked(f func() error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.asked, c.failed = f, 0
}

// Failed is how often the function of Asked was called since it was set.
func (c *Credentials) Failed() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.failed
}

// Subscribe implements auth.StreamingCredentialsProvider.
func (c *Credentials) Subscribe(listener auth.CredentialsListener) (auth.Credentials, auth.UnsubscribeFunc, error) {
	c.mu.Lock()
	asked := c.asked
	if asked != nil {
		c.failed++
	}
	c.mu.Unlock()
	if asked != nil {
		if err := asked(); err != nil {
			return nil, nil, err
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.listeners[listener] = struct{}{}
	return auth.NewBasicCredentials(c.user, c.password), func() error {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.listeners, listener)
		return nil
	}, nil
}

// Rotate changes the password and gives it to those that listen.
func (c *Credentials) Rotate(password string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.password = password
	for listener := range c.listeners {
		listener.OnNext(auth.NewBasicCredentials(c.user, password))
	}
}

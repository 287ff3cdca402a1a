package tail

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/flaminco/redischannels/internal/redisconn"
)

const (
	// ownConns is how many followers of a link use its own connections at once. Others wait
	// for them, however long: there may be a thousand after an outage.
	ownConns = 2
	// ownTimeout bounds the commands on them, beside the timeouts of the caller's client.
	ownTimeout = 5 * time.Second
)

// link is how followers read by themselves: through the caller's client until the network has
// failed once, and over own connections from then on. In the caller's pool idle connections
// may be left from before the outage: where those are silent, each takes one ReadTimeout.
type link struct {
	base    redis.UniversalClient
	control *redisconn.Control
	conns   chan struct{} // taken by those who use the control
	suspect atomic.Bool   // the network has failed
}

func newLink(cfg Config, key string) *link {
	return &link{
		base:    cfg.Client,
		control: redisconn.NewControl(cfg.Client, key, ownTimeout, cfg.OnReadClient),
		conns:   make(chan struct{}, ownConns),
	}
}

// failed notes an error of the shared read.
func (l *link) failed(err error) {
	if redisconn.Classify(err).Retryable() {
		l.suspect.Store(true)
		l.control.Reset() // its connections are as old as that of the shared read
	}
}

// do calls f with the client to use.
func (l *link) do(ctx context.Context, f func(redis.UniversalClient) error) error {
	if !l.suspect.Load() {
		err := redisconn.Guard(func() error { return f(l.base) })
		if redisconn.Classify(err) == redisconn.KindNetwork {
			l.suspect.Store(true)
		}
		return err
	}
	err := l.own(ctx, f)
	if errors.Is(err, redis.ErrClosed) { // another has reset the control meanwhile
		err = l.own(ctx, f)
	}
	if unreachable(err) && ctx.Err() == nil {
		return redisconn.Guard(func() error { return f(l.base) })
	}
	return err
}

// own calls f with a client of our own.
func (l *link) own(ctx context.Context, f func(redis.UniversalClient) error) error {
	select {
	case l.conns <- struct{}{}:
		defer func() { <-l.conns }()
	case <-ctx.Done():
		return ctx.Err()
	}
	err := redisconn.Guard(func() error {
		client, err := l.control.Client(ctx)
		if err != nil {
			return err
		}
		return f(client)
	})
	if redisconn.Classify(err) == redisconn.KindUnavailable {
		l.control.Reset() // another server may be the master by now
	}
	return err
}

// unreachable reports an error after which the caller's client, which is connected, may still
// work: no further connection can be made, because of maxclients, a firewall, or ports that
// are used up. Where the server is silent the caller's client would wait for it as well.
func unreachable(err error) bool {
	switch redisconn.Classify(err) {
	case redisconn.KindNetwork:
		return !errors.Is(err, redis.ErrClosed) && !timedOut(err)
	case redisconn.KindOther: // ERR max number of clients reached
		return err != nil
	}
	return false
}

func (l *link) close() { l.control.Close() }

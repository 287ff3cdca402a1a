package redisconn

import (
	"context"
	"errors"
	"net"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
)

// linkConns is the number of calls of a link that use its own connections at once. Further calls
// wait for them, however long: there may be a thousand after an outage.
const linkConns = 2

// Link sends short commands about one key that must not wait long for a failed network: through
// the caller's client until it has failed once, and over its own connections from then on. In the
// caller's pool there may be idle connections from before the outage: if they are silent, each
// costs one ReadTimeout. It is safe for concurrent use.
type Link struct {
	base    redis.UniversalClient
	control *Control
	conns   chan struct{} // taken by calls that use the control
	suspect atomic.Bool   // the network has failed
}

// NewLink returns a link to the server that owns key in base. timeout and onClient are those of
// [NewControl].
func NewLink(base redis.UniversalClient, key string, timeout time.Duration, onClient func(*redis.Client)) *Link {
	return &Link{base: base, control: NewControl(base, key, timeout, onClient), conns: make(chan struct{}, linkConns)}
}

// Failed records an error of a command that was not sent over the link.
func (l *Link) Failed(err error) {
	if Classify(err).Retryable() {
		l.Suspect()
	}
}

// Suspect records that the network may have failed.
func (l *Link) Suspect() {
	l.suspect.Store(true)
	l.control.Reset() // its connections are equally old
}

// Do calls f with a client. A panic of f is an error.
func (l *Link) Do(ctx context.Context, f func(redis.UniversalClient) error) error {
	if !l.suspect.Load() {
		err := Guard(func() error { return f(l.base) })
		if Classify(err) == KindNetwork {
			l.suspect.Store(true)
		}
		return err
	}
	err := l.own(ctx, f)
	if errors.Is(err, redis.ErrClosed) { // another call has reset the control meanwhile
		err = l.own(ctx, f)
	}
	if unreachable(err) && ctx.Err() == nil {
		return Guard(func() error { return f(l.base) })
	}
	return err
}

// own calls f with the link's own client.
func (l *Link) own(ctx context.Context, f func(redis.UniversalClient) error) error {
	select {
	case l.conns <- struct{}{}:
		defer func() { <-l.conns }()
	case <-ctx.Done():
		return ctx.Err()
	}
	err := Guard(func() error {
		client, err := l.control.Client(ctx)
		if err != nil {
			return err
		}
		return f(client)
	})
	if Classify(err) == KindUnavailable || errors.Is(err, ErrPanic) {
		l.control.Reset() // another server may be the master now
	}
	return err
}

// unreachable reports an error after which the caller's client, which is connected, may still
// work: no further connection can be opened, because of maxclients, a firewall, or exhausted
// ports. If the server is silent the caller's client would wait for it too.
func unreachable(err error) bool {
	switch Classify(err) {
	case KindNetwork:
		return !errors.Is(err, redis.ErrClosed) && !TimedOut(err)
	case KindOther: // ERR max number of clients reached
		return err != nil
	}
	return false
}

// TimedOut reports a command without a reply in time.
func TimedOut(err error) bool {
	var timeout net.Error
	return errors.As(err, &timeout) && timeout.Timeout() && Classify(err) != KindCanceled
}

// Close closes the connections of the link. It does not wait.
func (l *Link) Close() { l.control.Close() }

package pubsub

import (
	"bytes"
	"context"
	"slices"
	"sync"

	"github.com/redis/go-redis/v9"

	"github.com/flaminco/redischannels/internal/redisconn"
)

// link is one connection, from dialing to its end; it is never reopened. Its fields below ctx are
// guarded by Mux.mu.
type link struct {
	mux  *Mux
	key  string // of Mux.links
	opt  redis.Options
	ctx  context.Context
	stop context.CancelFunc // ends it; its entries are removed before or found by Mux.down
	wake chan struct{}      // to the writer: out is not empty

	entries  map[*entry]struct{}
	conn     *conn // nil until it is dialed
	answered bool  // the server has sent data
	out      []byte
	expect   []expectation // commands without a reply, in their order
	burst    burst
}

// expectation is a queued command without a reply. Redis replies in order; an error does not name
// its command.
type expectation struct {
	entry       *entry // nil for PING
	unsubscribe bool
}

// burst is one publication that is being received: Redis sends a message once for each subscribed
// name that it matches, directly one after the other.
type burst struct {
	number  uint64
	channel []byte
	payload []byte
	size    int
	names   []*entry
}

// run works until the connection fails or is stopped.
func (l *link) run() {
	l.mux.down(l, l.serve())
}

func (l *link) serve() error {
	var c *conn
	err := redisconn.Guard(func() (err error) {
		c, err = dial(l.ctx, l.opt, l.mux.conf.OnClient)
		return err
	})
	if err != nil {
		return err
	}
	defer c.end()
	c.silence = l.mux.conf.HealthInterval / 2
	c.ping = l.ping
	defer context.AfterFunc(l.ctx, func() { _ = c.Conn.Close() })()

	l.mux.mu.Lock()
	l.conn = c
	for e := range l.entries {
		l.subscribe(e)
	}
	l.mux.mu.Unlock()

	var writing sync.WaitGroup
	var writeErr error
	writing.Go(func() { writeErr = l.write(c) })
	err = l.read(c)
	l.stop()
	writing.Wait()
	if writeErr != nil {
		return writeErr
	}
	return err
}

// read passes every push to the mux. It waits only for the socket.
func (l *link) read(c *conn) error {
	r := newReader(c, l.mux.conf.MaxPayload)
	var p push
	for {
		if err := r.next(&p); err != nil {
			return err
		}
		l.mux.received(l, &p)
	}
}

// write writes what is queued until the link ends.
func (l *link) write(c *conn) error {
	var spare []byte
	for {
		select {
		case <-l.wake:
		case <-l.ctx.Done():
			return nil
		}
		l.mux.mu.Lock()
		buf := l.out
		l.out = spare[:0]
		l.mux.mu.Unlock()
		if err := c.write(buf); err != nil {
			if l.ctx.Err() != nil {
				return nil
			}
			_ = c.Conn.Close() // ends the reader
			return err
		}
		spare = buf
		if cap(spare) > writeChunk {
			spare = nil
		}
	}
}

// ping queues a PING. The reader calls it, without the lock.
func (l *link) ping() {
	l.mux.mu.Lock()
	defer l.mux.mu.Unlock()
	l.queue(expectation{}, "PING")
}

// subscribe queues the command that subscribes to an entry.
func (l *link) subscribe(e *entry) {
	l.queue(expectation{entry: e}, subscribeCommands[e.name.Kind], e.name.Text)
}

// unsubscribe queues the command that ends it.
func (l *link) unsubscribe(e *entry) {
	l.queue(expectation{entry: e, unsubscribe: true}, unsubscribeCommands[e.name.Kind], e.name.Text)
}

func (l *link) queue(x expectation, words ...string) {
	l.out = redisconn.AppendCommand(l.out, words...)
	l.expect = append(l.expect, x)
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// takes removes the first expectation that matches.
func (l *link) takes(match func(expectation) bool) (expectation, bool) {
	i := slices.IndexFunc(l.expect, match)
	if i < 0 {
		return expectation{}, false
	}
	x := l.expect[i]
	if i == 0 {
		l.expect = l.expect[1:]
	} else {
		l.expect = slices.Delete(l.expect, i, i+1)
	}
	return x, true
}

// settle removes all expectations before the i-th: a later command is confirmed, so they have
// their replies. A reply may have been mistaken for another push: when a slot moves while a name
// is unsubscribed, the end arrives once by itself and once as a reply. A subscription by such a
// command is retried.
func (l *link) settle(i int) {
	skipped := l.expect[:i]
	l.expect = l.expect[i:]
	for _, x := range skipped {
		if e := x.entry; e != nil && !x.unsubscribe && !e.live && e.link == l {
			l.subscribe(e)
		}
	}
}

// sameBurst reports whether a message of an entry belongs to the same publication as the previous
// one, and records it.
func (l *link) sameBurst(e *entry, p *push) bool {
	b := &l.burst
	seen := len(b.names) == 0
	for _, other := range b.names {
		if other == e { // each name occurs once, so this is the next publication
			seen = true
			break
		}
	}
	same := !seen && p.size == b.size && bytes.Equal(p.channel, b.channel) && bytes.Equal(p.payload, b.payload)
	if !same {
		b.number++
		b.channel = append(b.channel[:0], p.channel...)
		b.payload, b.size = p.payload, p.size
		b.names = b.names[:0]
	}
	b.names = append(b.names, e)
	return same
}

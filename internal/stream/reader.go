package stream

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/flaminco/redischannels/internal/backoff"
	"github.com/flaminco/redischannels/internal/redisconn"
)

// readGrace is the time that a blocking read may take beyond its BLOCK time.
const readGrace = time.Second

// Reader makes blocking reads of streams on one connection of its own, which can be
// woken at any time. Its methods but Wake and Drop are for one goroutine.
type Reader struct {
	base     redis.UniversalClient
	key      string // of the stream; in Redis Cluster the others are in its hash slot
	block    time.Duration
	onClient func(*redis.Client)
	onConn   func()

	sent  time.Time // when the last read was, from its tap
	reply []byte    // to it
	chunk *chunk    // where it is, if that is used again

	mu   sync.Mutex // guards the pointer; only the reader's goroutine changes it
	conn *redisconn.Conn
}

// NewReader returns a reader of the stream at key, or of those in its hash slot. block is the
// time that one read waits for entries. onClient, if not nil, sees each client that is opened;
// onConn, if not nil, is called for each connection before anything is read by it.
func NewReader(base redis.UniversalClient, key string, block time.Duration, onClient func(*redis.Client), onConn func()) *Reader {
	return &Reader{base: base, key: key, block: block, onClient: onClient, onConn: onConn}
}

// Sent returns when the last read was sent: behind the opening of a connection for it.
func (r *Reader) Sent() time.Time { return r.sent }

// open makes the client for the server that owns the stream now.
func (r *Reader) open(ctx context.Context) error {
	if r.conn != nil {
		return nil
	}
	node, err := redisconn.Master(ctx, r.base, r.key)
	if err != nil {
		return err
	}
	// Nothing is sent again: a retried read loses the entries of the first one.
	r.set(redisconn.Open(*node.Options(), redisconn.Config{
		ReadTimeout: r.block + readGrace,
		Waker:       node,
		Wrap:        func(conn net.Conn) net.Conn { return tapped(conn, r) },
		OnConnect:   r.onConn,
	}))
	if r.onClient != nil {
		r.onClient(r.conn.Client)
	}
	return nil
}

func (r *Reader) set(conn *redisconn.Conn) {
	r.mu.Lock()
	r.conn = conn
	r.mu.Unlock()
}

// current returns the connection for other goroutines, or nil.
func (r *Reader) current() *redisconn.Conn {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.conn
}

// setBlocked is called by the tap, in the reader's goroutine.
func (r *Reader) setBlocked(blocked bool) {
	if r.conn != nil {
		r.conn.SetBlocked(blocked)
	}
}

// Do calls fn with the client of the reader's own connection, for the first commands after a
// reconnect: in the caller's pool each idle connection that has died would cost them a
// ReadTimeout. They fail within that of the reader, which is its block time and a second, and
// are not sent again. fn must not read streams by XREAD or XREADGROUP, whose replies only the
// reader's own methods get.
func (r *Reader) Do(ctx context.Context, fn func(client *redis.Client) error) error {
	return r.guarded(func() error {
		err := r.open(ctx)
		if err == nil {
			err = fn(r.conn.Client)
		}
		return err
	})
}

// guarded calls f, which uses the connection.
func (r *Reader) guarded(f func() error) error {
	err := redisconn.Guard(f)
	if err != nil {
		r.failed(err)
	}
	return err
}

// readCmd is a read of streams, whose reply a tap has taken.
type readCmd struct {
	*redis.StatusCmd
	r *Reader
}

// Val returns the reply to hooks, which must neither change nor keep it.
func (c readCmd) Val() []byte { return c.r.reply }

// ReadGroup reads up to count new entries of each stream for a consumer, waiting up to the
// block time for the first. No entries and no error means that there are none.
// After an error entries may have been assigned to the consumer unseen.
// (XREADGROUP GROUP group consumer COUNT count BLOCK ms STREAMS key ... > ...)
func (r *Reader) ReadGroup(ctx context.Context, group, consumer string, keys []string, count int) ([]Page, error) {
	args := append(make([]any, 0, 9+2*len(keys)), "XREADGROUP", "GROUP", group, consumer, "COUNT", count,
		"BLOCK", r.blockTime(), "STREAMS")
	for _, key := range keys {
		args = append(args, key)
	}
	for range keys {
		args = append(args, ">")
	}
	pages, err := r.read(ctx, args...)
	part(pages)
	return pages, err
}

// ProbeGroup fails where reading a stream in the group would fail: a permission or the group is
// missing. It takes nothing: a new consumer has no history to read. (Redis creates the consumer
// by it.)
func (r *Reader) ProbeGroup(ctx context.Context, key, group, consumer string) error {
	_, err := r.read(ctx, "XREADGROUP", "GROUP", group, consumer, "COUNT", 1, "STREAMS", key, "0")
	return err
}

// Read reads up to count entries of each stream after the ID in after, waiting up to
// the block time for the first. (XREAD COUNT count BLOCK ms STREAMS key ... id ...)
func (r *Reader) Read(ctx context.Context, keys []string, after []ID, count int) ([]Page, error) {
	const streamsAt = 6 // in args
	args := make([]any, 0, streamsAt+2*len(keys))
	args = append(args, "XREAD", "COUNT", count, "BLOCK", r.blockTime(), "STREAMS")
	for _, key := range keys {
		args = append(args, key)
	}
	for _, id := range after {
		args = append(args, id.String())
	}
	pages, err := r.read(ctx, args...)
	if err == nil {
		if err = asked(args[streamsAt:], keys, pages); err != nil {
			r.failed(err)
			return nil, err
		}
	}
	part(pages)
	return pages, err
}

// asked returns an error unless a read was sent with the keys and every page is of one of them,
// in their order. A hook that changes the keys of commands reads other streams than those that
// were asked for.
func asked(sent []any, keys []string, pages []Page) error {
	for i, key := range keys {
		if sent[i] != key {
			return fmt.Errorf("%w: a hook has changed the key %q to %q", redisconn.ErrMalformed, key, sent[i])
		}
	}
	for i := range pages {
		at := slices.Index(keys, pages[i].Key)
		if at < 0 {
			return fmt.Errorf("%w: entries of the key %q, which was not asked for", redisconn.ErrMalformed, pages[i].Key)
		}
		keys = keys[at+1:]
	}
	return nil
}

// ReadAfter reads up to count entries after an ID from the stream's master, without
// waiting. The client does not repeat it: the reader does that itself, and reports the
// outage or ends before that. (XREAD COUNT count STREAMS key id)
func ReadAfter(ctx context.Context, client redis.UniversalClient, key string, after ID, count int) ([]Entry, error) {
	node, err := redisconn.Master(ctx, client, key)
	if err != nil {
		return nil, err
	}
	const streamsAt = 4 // in args
	args := []any{"XREAD", "COUNT", count, "STREAMS", key, after.String()}
	raw := redisconn.OnceRaw{RawCmd: redis.NewRawCmd(ctx, args...)}
	if err := node.Process(ctx, raw); err != nil {
		return nil, err
	}
	pages, err := parseReply(raw.Val(), nil)
	if err == nil {
		err = asked(args[streamsAt:], []string{key}, pages)
	}
	return entriesOf(pages, err)
}

func entriesOf(pages []Page, err error) ([]Entry, error) {
	switch {
	case err != nil || len(pages) == 0:
		return nil, err
	case len(pages) > 1:
		return nil, redisconn.ErrMalformed
	}
	return pages[0].Entries, nil
}

func (r *Reader) blockTime() int64 { return max(1, r.block.Milliseconds()) }

func (r *Reader) read(ctx context.Context, args ...any) ([]Page, error) {
	var pages []Page
	err := r.guarded(func() error {
		err := r.open(ctx)
		if err == nil {
			err = r.conn.Client.Process(ctx, readCmd{redis.NewStatusCmd(ctx, args...), r})
		}
		if err == nil {
			pages, err = parseReply(r.reply, r.chunk)
		}
		return err
	})
	r.chunk.release() // the entries have copies
	r.reply, r.chunk = nil, nil
	return pages, err
}

// failed leaves a server that cannot serve, or, in Redis Cluster, that does not answer:
// another may have the stream by now.
func (r *Reader) failed(err error) {
	_, cluster := r.base.(*redis.ClusterClient)
	switch kind := redisconn.Classify(err); {
	case errors.Is(err, redisconn.ErrPanic):
		r.reset() // the state of the connection is unknown
	case kind == redisconn.KindUnavailable, errors.Is(err, redisconn.ErrMalformed):
		r.reset()
		redisconn.Relocate(r.base)
	case cluster && (kind == redisconn.KindNetwork || kind == redisconn.KindCanceled):
		r.reset()
	}
}

// Wake ends a blocked read, see [redisconn.Conn.Wake]. The caller repeats it until the read
// has returned.
func (r *Reader) Wake(ctx context.Context) {
	if conn := r.current(); conn != nil {
		conn.Wake(ctx)
	}
}

// Drop closes the connection, if there is one, under whatever read is using it.
func (r *Reader) Drop() {
	if conn := r.current(); conn != nil {
		conn.Cut()
	}
}

const (
	// wakeInterval is the time between two attempts at waking a blocked read, and wakeLimit is
	// when its connection is closed instead.
	wakeInterval = 5 * time.Millisecond
	wakeLimit    = 100 * time.Millisecond
)

// End ends a blocked read: it asks the server until the reading goroutine has left.
// A closed connection would leave the server with a client that it may still send an
// entry to, so that comes only at wakeLimit.
func (r *Reader) End(ctx context.Context, left <-chan struct{}) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var dropping sync.WaitGroup
	dropping.Go(func() {
		defer cancel() // Wake may wait for a connection of the pool
		for backoff.Wait(left, wakeLimit) {
			r.Drop()
		}
	})
	for {
		r.Wake(ctx)
		if !backoff.Wait(left, wakeInterval) {
			break
		}
	}
	dropping.Wait()
}

// reset drops the client, so that the next read looks for the server again.
func (r *Reader) reset() {
	if r.conn != nil {
		r.conn.Close()
		r.set(nil)
	}
}

// Close closes the connection. The reader must not be reading any more.
func (r *Reader) Close() { r.reset() }

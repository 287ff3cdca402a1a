package stream

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
)

// readGrace is what a blocking read may take beyond its BLOCK time.
const readGrace = time.Second

// Reader makes blocking reads of streams on one connection of its own, which can be
// woken at any time. Its methods but Wake and Drop are for one goroutine.
type Reader struct {
	base     redis.UniversalClient
	key      string // of the stream; in Redis Cluster the others are in its hash slot
	block    time.Duration
	onClient func(*redis.Client)
	onConn   func()

	client *redis.Client // opened from the options of node
	sent   time.Time     // when the last read was, from its tap
	reply  []byte        // to it
	chunk  *chunk        // where it is, if that is used again

	mu       sync.Mutex
	node     redis.UniversalClient // who can wake the connection: the client of its server
	conn     net.Conn
	clientID int64
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
	if r.client != nil {
		return nil
	}
	node, err := master(ctx, r.base, r.key)
	if err != nil {
		return err
	}
	// The caller's options by value, so that nothing about reaching the server
	// is lost: address, TLS, credentials, database, Sentinel's dialer.
	opt := *node.Options()
	opt.MaxRetries = -1 // a read that is repeated blindly loses what the first one took
	opt.ReadTimeout = r.block + readGrace
	opt.PoolSize = 1
	opt.MinIdleConns = 0
	opt.MaxIdleConns = 0
	opt.MaxActiveConns = 0
	opt.ConnMaxIdleTime = -1
	opt.DialerRetries = 1
	opt.PipelinePoolSize = -1
	opt.AutoPipelineOptions = nil
	opt.ClientSideCache = nil
	opt.ClientSideCacheConfig = nil
	opt.MaintNotificationsConfig = &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
	dial, onConnect := opt.Dialer, opt.OnConnect
	opt.Dialer = func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := dial(ctx, network, addr)
		if err == nil {
			r.mu.Lock()
			r.conn, r.clientID = conn, 0
			r.mu.Unlock()
			conn = tapped(conn, r)
		}
		return conn, err
	}
	opt.OnConnect = func(ctx context.Context, cn *redis.Conn) error {
		if onConnect != nil {
			if err := onConnect(ctx, cn); err != nil {
				return err
			}
		}
		if r.onConn != nil {
			r.onConn()
		}
		// Without the right to ask for its ID the connection is woken by closing it.
		if id, err := cn.ClientID(ctx).Result(); err == nil {
			r.mu.Lock()
			r.clientID = id
			r.mu.Unlock()
		} else if Classify(err) == KindNetwork {
			return err
		}
		return nil
	}
	r.client = redis.NewClient(&opt)
	r.mu.Lock()
	r.node = node
	r.mu.Unlock()
	if r.onClient != nil {
		r.onClient(r.client)
	}
	return nil
}

// master returns the client of the server that owns the key now.
func master(ctx context.Context, client redis.UniversalClient, key string) (*redis.Client, error) {
	switch c := client.(type) {
	case *redis.Client:
		return c, nil
	case *redis.ClusterClient:
		return c.MasterForKey(ctx, key)
	default:
		return nil, fmt.Errorf("redischannels: client type %T cannot be read from", client)
	}
}

// readCmd is a read of streams, whose reply a tap has taken.
type readCmd struct {
	*redis.StatusCmd
	r *Reader
}

// Val returns the reply to hooks, which must neither change nor keep it.
func (c readCmd) Val() []byte { return c.r.reply }

// ReadGroup reads up to count new entries for a consumer, waiting up to the
// block time for the first. No entries and no error means that there are none.
// After an error entries may have been assigned to the consumer unseen.
// (XREADGROUP GROUP group consumer COUNT count BLOCK ms STREAMS key >)
func (r *Reader) ReadGroup(ctx context.Context, group, consumer string, count int) ([]Entry, error) {
	return entriesOf(r.read(ctx, "XREADGROUP", "GROUP", group, consumer, "COUNT", count,
		"BLOCK", r.blockTime(), "STREAMS", r.key, ">"))
}

// ProbeGroup fails where reading in the group would fail for want of rights or of
// the group. It takes nothing: a new consumer has no history to read. (Redis
// creates the consumer by it.)
func (r *Reader) ProbeGroup(ctx context.Context, group, consumer string) error {
	_, err := r.read(ctx, "XREADGROUP", "GROUP", group, consumer, "COUNT", 1, "STREAMS", r.key, "0")
	return err
}

// Read reads up to count entries of each stream after the ID in after, waiting up to
// the block time for the first. (XREAD COUNT count BLOCK ms STREAMS key ... id ...)
func (r *Reader) Read(ctx context.Context, keys []string, after []ID, count int) ([]Page, error) {
	args := make([]any, 0, 6+2*len(keys))
	args = append(args, "XREAD", "COUNT", count, "BLOCK", r.blockTime(), "STREAMS")
	for _, key := range keys {
		args = append(args, key)
	}
	for _, id := range after {
		args = append(args, id.String())
	}
	pages, err := r.read(ctx, args...)
	part(pages)
	return pages, err
}

// ReadAfter reads up to count entries after an ID from the stream's master, without
// waiting. The client does not repeat it: who reads does that himself, and reports the
// outage or ends before that. (XREAD COUNT count STREAMS key id)
func ReadAfter(ctx context.Context, client redis.UniversalClient, key string, after ID, count int) ([]Entry, error) {
	node, err := master(ctx, client, key)
	if err != nil {
		return nil, err
	}
	raw := onceRaw{redis.NewRawCmd(ctx, "XREAD", "COUNT", count, "STREAMS", key, after.String())}
	if err := node.Process(ctx, raw); err != nil {
		return nil, err
	}
	return entriesOf(parseReply(raw.Val(), nil))
}

func entriesOf(pages []Page, err error) ([]Entry, error) {
	switch {
	case err != nil || len(pages) == 0:
		return nil, err
	case len(pages) > 1:
		return nil, errReply
	}
	return pages[0].Entries, nil
}

func (r *Reader) blockTime() int64 { return max(1, r.block.Milliseconds()) }

func (r *Reader) read(ctx context.Context, args ...any) ([]Page, error) {
	if err := r.open(ctx); err != nil {
		return nil, err
	}
	err := r.client.Process(ctx, readCmd{redis.NewStatusCmd(ctx, args...), r})
	var pages []Page
	if err == nil {
		pages, err = parseReply(r.reply, r.chunk)
	}
	r.chunk.release() // what of it is needed is in the entries
	r.reply, r.chunk = nil, nil
	if err != nil {
		r.failed(err)
	}
	return pages, err
}

// failed leaves a server that cannot serve, or, in Redis Cluster, that does not answer:
// another may have the stream by now.
func (r *Reader) failed(err error) {
	_, cluster := r.base.(*redis.ClusterClient)
	switch kind := Classify(err); {
	case kind == KindUnavailable, errors.Is(err, errReply):
		r.reset()
		Relocate(r.base)
	case cluster && (kind == KindNetwork || kind == KindCanceled):
		r.reset()
	}
}

// Wake ends a blocked read, at once where the server allows it, by closing the
// connection otherwise. Waking a reader that is not blocked does nothing, so the
// caller repeats it until the read has returned. (CLIENT UNBLOCK id)
func (r *Reader) Wake(ctx context.Context) {
	r.mu.Lock()
	node, id := r.node, r.clientID
	r.mu.Unlock()
	if node == nil {
		return
	}
	// Once: where the server is silent to it the connection is closed, which needs no server.
	if id == 0 || node.Process(ctx, onceInt{redis.NewIntCmd(ctx, "CLIENT", "UNBLOCK", id)}) != nil {
		r.Drop()
	}
}

// Drop closes the connection, if there is one, under whatever read is using it.
func (r *Reader) Drop() {
	r.mu.Lock()
	conn := r.conn
	r.mu.Unlock()
	if conn != nil {
		_ = conn.Close() // the reader sees the error
	}
}

// reset drops the client, so that the next read finds the server anew.
func (r *Reader) reset() {
	if r.client != nil {
		_ = r.client.Close()
		r.client = nil
	}
}

// Close closes the connection. The reader must not be reading any more.
func (r *Reader) Close() { r.reset() }

package appender

import (
	"context"
	"strconv"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/flaminco/redischannels/internal/redisconn"
	"github.com/flaminco/redischannels/internal/stream"
)

const (
	// clockRefresh is the time between two readings of a server's clock while entries are trimmed
	// by age.
	clockRefresh = time.Minute
	// clockRetry is the time between two attempts while the server does not reply.
	clockRetry = time.Second
)

// clocks has the times of the servers. Entry IDs are milliseconds of the server's clock, so only
// that clock gives their age: by the clock of a publisher that is ahead, entries would be deleted
// whose append was just confirmed.
//
// A server's time is read by TIME. Its reply is already old when it arrives, and from then on the
// monotonic clock of the process is used, so the time here is never ahead of the server's, unless
// the server's clock is set back.
type clocks struct {
	cluster *redis.ClusterClient // nil for a single server

	mu       sync.Mutex
	readings map[string]*reading // by the address of the server
	servers  map[int]string      // address by hash slot; unused for a single server
}

// reading is a time read from a server.
type reading struct {
	time    time.Time // of the server
	at      time.Time // when it arrived
	claimed time.Time // when a job was last sent to read it again
}

func newClocks(cluster *redis.ClusterClient) *clocks {
	return &clocks{cluster: cluster, readings: make(map[string]*reading), servers: make(map[int]string)}
}

// due reports whether the time of the server that owns the key must be read before entries are
// trimmed by their age. If an older reading can be used meanwhile, it returns true to one caller
// only.
func (c *clocks) due(key string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	r, now := c.find(key), time.Now()
	switch {
	case r == nil:
		return true
	case now.Sub(r.at) < clockRefresh || now.Sub(r.claimed) < clockRetry:
		return false
	}
	r.claimed = now
	return true
}

// now returns the time of the server that owns the key, or the zero time if it is unknown.
func (c *clocks) now(key string) time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	if r := c.find(key); r != nil {
		return r.time.Add(time.Since(r.at))
	}
	return time.Time{}
}

// find returns the reading of the server that owns the key, or nil. The caller holds mu.
func (c *clocks) find(key string) *reading {
	if c.cluster == nil {
		return c.readings[""]
	}
	addr, ok := c.servers[redisconn.Slot(key)]
	if !ok {
		return nil
	}
	return c.readings[addr]
}

// known records the server that owns the key, and reports whether it has a recent reading.
func (c *clocks) known(key, addr string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cluster != nil {
		c.servers[redisconn.Slot(key)] = addr
	}
	r := c.readings[addr]
	return r != nil && time.Since(r.at) < clockRefresh
}

// set records a time that has just arrived from a server.
func (c *clocks) set(addr string, answer time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.readings[addr] = &reading{time: answer, at: time.Now()}
}

// forget drops the reading of the server that owns the key: another server may own it now.
func (c *clocks) forget(key string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	addr := ""
	if c.cluster != nil {
		slot := redisconn.Slot(key)
		addr = c.servers[slot]
		delete(c.servers, slot)
	}
	delete(c.readings, addr)
}

// askTime reads the time of the server that owns the key, unless it was recently read for another
// key.
func (a *Appender) askTime(ctx context.Context, key string) error {
	node, err := a.master(ctx, key)
	if err != nil {
		return err
	}
	addr := ""
	if a.cluster != nil {
		addr = node.Options().Addr
	}
	if a.clocks.known(key, addr) {
		return nil
	}
	if a.bound {
		node = redisconn.WithTimeout(node, a.conf.Timeout+ioMargin)
	}
	now, err := stream.Time(ctx, node, key)
	if err != nil {
		a.clocks.forget(key)
		return err
	}
	a.clocks.set(addr, now)
	return nil
}

// threshold is the argument of MINID: the ID of the oldest entry that is kept. It is computed
// for each attempt.
type threshold struct {
	trim stream.Trim
	text []byte
}

// set computes the threshold from the time of the server. Without one it trims nothing.
func (t *threshold) set(now time.Time) {
	oldest := int64(0)
	if !now.IsZero() {
		oldest = t.trim.MinID(now)
	}
	t.text = strconv.AppendInt(nil, oldest, 10)
}

// MarshalBinary is called by go-redis when it writes the argument.
func (t *threshold) MarshalBinary() ([]byte, error) { return t.text, nil }

// String is what hooks print.
func (t *threshold) String() string { return string(t.text) }

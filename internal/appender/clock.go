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
	// clockRefresh is how often a server is asked for its time while entries are trimmed by age.
	clockRefresh = time.Minute
	// clockRetry is how often it is asked when it does not answer.
	clockRetry = time.Second
)

// clocks knows what time it is on the servers. Entry IDs are milliseconds of the server's
// clock, so only that one gives their age: by the clock of a publisher that is ahead, entries
// would be deleted whose append was just confirmed.
//
// A server is asked by TIME. Its answer is already old when it arrives, and from then on the
// monotonic clock of the process counts, so the time here is never ahead of the server's,
// unless that one is set back.
type clocks struct {
	cluster *redis.ClusterClient // nil where there is only one server

	mu       sync.Mutex
	readings map[string]*reading // by the address of the server
	servers  map[int]string      // address by hash slot; unused where there is only one
}

// reading is an answer of a server.
type reading struct {
	time    time.Time // of the server
	at      time.Time // when it arrived
	claimed time.Time // when a job was last sent to ask again
}

func newClocks(cluster *redis.ClusterClient) *clocks {
	return &clocks{cluster: cluster, readings: make(map[string]*reading), servers: make(map[int]string)}
}

// due reports whether the server that owns the key must be asked before entries are trimmed by
// their age. It returns true to one caller only where an older answer can be used meanwhile.
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

// now returns the time of the server that owns the key, or the zero time if it is not known.
func (c *clocks) now(key string) time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	if r := c.find(key); r != nil {
		return r.time.Add(time.Since(r.at))
	}
	return time.Time{}
}

// find returns the answer of the server that owns the key, or nil. The caller holds mu.
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

// known notes which server owns the key, and reports whether its time is known and recent.
func (c *clocks) known(key, addr string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cluster != nil {
		c.servers[redisconn.Slot(key)] = addr
	}
	r := c.readings[addr]
	return r != nil && time.Since(r.at) < clockRefresh
}

// set notes the answer of a server that has just arrived.
func (c *clocks) set(addr string, answer time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.readings[addr] = &reading{time: answer, at: time.Now()}
}

// forget drops what is known of the server that owns the key: another one may own it now.
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

// askTime asks the server that owns the key, unless it was asked of late for another key.
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
		node = node.WithTimeout(a.conf.Timeout + ioMargin)
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

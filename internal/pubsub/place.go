package pubsub

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/flaminco/redischannels/internal/backoff"
)

// place assigns a link to an entry, now or later. Mux.mu is held.
func (m *Mux) place(e *entry) {
	if m.life.Err() != nil {
		return
	}
	if l := m.links[""]; l != nil && !e.until.After(time.Now()) {
		m.join(l, e) // the only connection
		return
	}
	m.unplaced[e] = struct{}{}
	if !m.placing {
		m.placing = true
		m.life.Go(m.placeAll)
		return
	}
	select {
	case m.replace <- struct{}{}:
	default:
	}
}

// join adds an entry to a link.
func (m *Mux) join(l *link, e *entry) {
	delete(m.unplaced, e)
	e.link = l
	l.entries[e] = struct{}{}
	if l.conn != nil {
		l.subscribe(e)
	}
}

// placeAll places entries until none is left, and waits while servers fail.
func (m *Mux) placeAll() {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		due, next, ok := m.due()
		if !ok {
			return
		}
		if len(due) > 0 {
			m.assign(due)
			continue
		}
		timer.Reset(max(time.Until(next), time.Millisecond))
		select {
		case <-timer.C:
		case <-m.replace:
		case <-m.ctx.Done():
		}
	}
}

// wish is a copy of the data that determines the server of an entry.
type wish struct {
	entry *entry
	name  Name
	hint  string
}

// due returns the entries that can be tried now, or the time of the next one. ok is false if none
// is left; then the placing goroutine must end.
func (m *Mux) due() (due []wish, next time.Time, ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.life.Err() != nil || len(m.unplaced) == 0 {
		m.placing = false
		return nil, next, false
	}
	now := time.Now()
	for e := range m.unplaced {
		if !e.until.After(now) {
			due = append(due, wish{e, e.name, e.hint})
		} else if next.IsZero() || e.until.Before(next) {
			next = e.until
		}
	}
	return due, next, true
}

// assign finds the server of each entry and adds the entry to its link. Finding it may wait for
// the network, so it is done without the lock.
func (m *Mux) assign(wishes []wish) {
	var only *server
	for _, w := range wishes {
		var to server
		var err error
		if only != nil {
			to = *only
		} else if to, err = m.server(w.name, w.hint); err == nil && to.key == "" {
			only = &to
		}
		m.mu.Lock()
		if _, still := m.unplaced[w.entry]; still && m.life.Err() == nil {
			m.assignTo(w.entry, to, err)
		}
		m.mu.Unlock()
	}
}

func (m *Mux) assignTo(e *entry, to server, err error) {
	if err != nil {
		e.attempts++
		e.until = time.Now().Add(backoff.Redis.After(e.attempts))
		e.fail(err)
		return
	}
	l := m.links[to.key]
	if l == nil {
		if t := m.tries[to.key]; t.until.After(time.Now()) {
			e.until = t.until
			e.hint = "" // the cluster may have changed by then
			return
		}
		l = &link{mux: m, key: to.key, opt: *to.opt, entries: make(map[*entry]struct{}), wake: make(chan struct{}, 1)}
		l.ctx, l.stop = context.WithCancel(m.ctx)
		m.links[to.key] = l
		m.life.Go(l.run)
	}
	m.join(l, e)
}

// server is the server of an entry. Its key is empty if there is only one.
type server struct {
	key string
	opt *redis.Options
}

// server returns the server at which a name must be subscribed.
func (m *Mux) server(name Name, hint string) (server, error) {
	switch c := m.conf.Client.(type) {
	case *redis.Client:
		return server{opt: c.Options()}, nil
	case *redis.ClusterClient:
		if name.Kind != Shard {
			// A message of PUBLISH reaches every node. Each attempt uses another node, so one
			// that is down does not matter.
			node, err := c.MasterForKey(m.ctx, strconv.FormatUint(rand.Uint64(), 36))
			if err != nil {
				return server{}, err
			}
			return server{opt: node.Options()}, nil
		}
		node, err := c.MasterForKey(m.ctx, name.Text)
		if err != nil {
			return server{}, err
		}
		opt := node.Options()
		if hint == "" || hint == opt.Addr {
			return server{key: opt.Addr, opt: opt}, nil
		}
		moved := *opt
		moved.Addr = hint
		return server{key: hint, opt: &moved}, nil
	default:
		return server{}, fmt.Errorf("client type %T cannot be subscribed with", m.conf.Client)
	}
}

// reload makes a cluster client reload the slots. It does not wait.
func (m *Mux) reload() {
	if c, ok := m.conf.Client.(*redis.ClusterClient); ok {
		c.ReloadState(m.ctx)
	}
}

// parseMoved parses "MOVED slot host:port". Without a host it is the one in the cluster client.
func parseMoved(text string) (addr string, slot int, ok bool) {
	rest, ok := strings.CutPrefix(text, "MOVED ")
	if !ok {
		return "", 0, false
	}
	number, addr, _ := strings.Cut(rest, " ")
	slot, err := strconv.Atoi(number)
	if err != nil {
		return "", 0, false
	}
	host, port, err := net.SplitHostPort(addr)
	if err != nil || host == "" || host == "?" || port == "" {
		addr = ""
	}
	return addr, slot, true
}

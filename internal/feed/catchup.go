package feed

import (
	"context"

	"github.com/flaminco/redischannels/internal/backoff"
	"github.com/flaminco/redischannels/internal/stream"
)

// A page that a client catches up by has at most this many events, and about this many
// bytes. Only pages are held in memory for clients that are not up to date, CatchUps of
// them being read and one per client being written.
const (
	pageEvents = 256
	pageBytes  = 256 << 10
)

// attach reads the history of a client up to the ring and returns the number of its next event.
//
// Events in the ring are not read from Redis. Before the ring a client reads pages of the stream
// until one ends at the stream's end. The floor of the ring was recorded before that page was
// read, and all entries up to it existed then, so the client has them; later ones are in the
// ring, unless the ring was faster: then the client continues to read.
func (c *Client) attach() (uint64, error) {
	if !c.Known && c.Start == Latest {
		c.At, c.owes = c.edge.end, true
		return c.edge.next, nil
	}
	from := c.Start
	exists := false // Redis has, or had, an entry of the ID At
	for failed := 0; ; {
		edge := c.broadcast.edge()
		if c.Known {
			from = After(c.At)
			number, where, life := c.broadcast.locate(c.At)
			switch {
			case where == inside:
				return number, nil
			case where == ahead && (exists || c.feed.config.Epochs):
				c.skip, c.life = c.At, life // events up to there are known
				return number, nil
			case where == ahead:
				last, err := c.lastID()
				if err != nil {
					return 0, err
				}
				if exists = !last.Less(c.At); exists {
					continue // another process was faster than this one
				}
				// The stream was re-created.
				if err := c.sendAll([]*Event{c.feed.gap(c.At.String(), "")}); err != nil {
					return 0, err
				}
				if now := c.broadcast.edge(); last.Less(now.end) && now.life == edge.life {
					c.At, c.owes = now.end, true // the ring will detect it, and then has the complete stream
					return now.next, nil
				}
				c.At, c.Known, from = stream.ID{}, false, Oldest
				continue
			}
		}
		p, err := c.read(from)
		if err == nil {
			err = c.sendPage(p)
		}
		if err != nil {
			return 0, err
		}
		exists = exists || len(p.events) > 0
		if p.err != nil {
			failed++
			if err := c.rest(failed, p.err); err != nil {
				return 0, err
			}
			continue
		}
		failed = 0
		if !p.more && edge.life == c.broadcast.edge().life {
			if c.At.Less(edge.floor) {
				c.At, c.owes = edge.floor, true
			}
			c.Known = true
		}
	}
}

// lastID reads the last ID and retries until Redis replies.
func (c *Client) lastID() (stream.ID, error) {
	for failed := 1; ; failed++ {
		var last stream.ID
		var redisErr error
		if err := c.apart(func() { last, redisErr = c.feed.config.Source.LastID(c.ctx) }); err != nil {
			return stream.ID{}, err
		}
		if redisErr == nil {
			return last, nil
		}
		if err := c.rest(failed, redisErr); err != nil {
			return stream.ID{}, err
		}
	}
}

// page is a part of the stream that a client is sent from Redis.
type page struct {
	events []*Event
	more   bool  // it does not end at the end of the stream
	err    error // behind events
}

// read reads the entries after a position.
func (c *Client) read(from Position) (*page, error) {
	p := new(page)
	err := c.apart(func() { *p = c.feed.page(c.ctx, from) })
	return p, err
}

// page reads a page from Redis.
func (f *Feed) page(ctx context.Context, from Position) (p page) {
	bytes := 0
	for e, err := range f.config.Source.History(ctx, from) {
		if len(p.events) == pageEvents || bytes >= pageBytes {
			p.more = true
			break
		}
		if err != nil {
			p.err = err
			break
		}
		p.events = append(p.events, e)
		bytes += len(e.Wire)
	}
	return p
}

// sendPage writes the events of a page.
func (c *Client) sendPage(p *page) error {
	for _, e := range p.events {
		if !e.Gap {
			c.Known = true
		}
	}
	return c.sendAll(p.events)
}

// apart runs f, which uses Redis, in a separate goroutine while heartbeats are sent; only a few
// run at once. After an error f may still run.
func (c *Client) apart(f func()) error {
	if err := c.wait(nil, c.feed.config.Slots); err != nil {
		return err
	}
	done := make(chan struct{})
	c.feed.config.Life.Go(func() {
		defer close(done)
		defer func() { <-c.feed.config.Slots }()
		f()
	})
	return c.wait(done, nil)
}

// rest waits before a retry, and reports the first of consecutive errors.
func (c *Client) rest(failed int, err error) error {
	if c.feed.config.Source.IsClosed(err) {
		return ErrEnded
	}
	if failed == 1 && c.ctx.Err() == nil {
		c.feed.config.OnError(err)
	}
	ctx, cancel := context.WithTimeout(c.ctx, backoff.Redis.After(failed))
	defer cancel()
	if err := c.wait(ctx.Done(), nil); err != nil {
		return err
	}
	return c.ctx.Err()
}

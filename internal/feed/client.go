package feed

import (
	"context"
	"errors"
	"math"
	"time"

	"github.com/flaminco/redischannels/internal/stream"
)

const (
	// openWait is how long the response to a client waits for Redis. Then it begins without being
	// live, so that clients stay connected while Redis is down.
	openWait = time.Second
	// batchSize is how many events are taken from the ring at once.
	batchSize = 16
)

// Output writes to one client. Its methods are called by one goroutine. A write that the client
// does not read in time is an error that wraps ErrSlow.
type Output interface {
	// Open begins the response.
	Open() error
	// Write writes one event.
	Write(event *Event) error
	// Place sends the client the ID up to which it has received all events, without an event.
	Place(at stream.ID) error
	// Beat writes a heartbeat.
	Beat() error
	// Flush sends the written data, and reports whether there was any.
	Flush() (sent bool, err error)
}

// Client is one request. The exported fields are set before [Feed.Serve]; all of it belongs to
// the goroutine that calls that.
type Client struct {
	Output    Output
	Filter    func(value any) bool // nil: all
	Heartbeat time.Duration        // after this much silence; 0: none
	Start     Position             // where it begins, unless Known
	Known     bool                 // At is set

	// At is the ID up to which it has received all events. With Config.Epochs its milliseconds
	// are the epoch of this client, which has an end, and an ID is that of the same event
	// forever.
	At stream.ID

	feed      *Feed
	broadcast *broadcast
	ctx       context.Context // see Feed.Serve
	beat      *time.Timer
	silent    <-chan time.Time // of beat; nil without heartbeats

	edge *edge     // of the ring when the response began, or when the ring was live; until attach
	owes bool      // the client does not know At
	skip stream.ID // events up to here, of life, are not sent
	life int
}

// serve sends events until the client has left, cannot follow, or the stream ends.
func (c *Client) serve() error {
	if c.Heartbeat > 0 {
		c.beat = time.NewTimer(c.Heartbeat)
		defer c.beat.Stop()
		c.silent = c.beat.C
	}
	err := c.open()
	var number uint64
	if err == nil {
		number, err = c.attach()
		c.edge = nil // the response may last for hours
	}
	if err == nil {
		err = c.follow(number)
	}
	return err
}

// open begins the response when the client is live, or when that takes too long.
func (c *Client) open() error {
	wait := time.NewTimer(openWait)
	defer wait.Stop()
	select {
	case <-c.broadcast.live:
		// Before the response begins: a client that sees it may write at once.
		if c.look(); c.completed() {
			return ErrCompleted
		}
	case <-wait.C:
	case <-c.ctx.Done():
		return c.ctx.Err()
	case <-c.broadcast.ctx.Done():
		return ErrEnded
	}
	if err := c.Output.Open(); err != nil {
		return err
	}
	if err := c.wait(c.broadcast.live, nil); err != nil {
		return err
	}
	if c.look(); c.completed() {
		return ErrEnded // it comes back
	}
	return nil
}

// completed reports whether the stream has ended, and the client has received the end or begins
// behind it.
func (c *Client) completed() bool {
	return !c.feed.config.Epochs && c.edge.ended && (c.Known && c.At == c.edge.end || !c.Known && c.Start == Latest)
}

// look records the end of the ring, once.
func (c *Client) look() {
	if c.edge == nil {
		edge := c.broadcast.edge()
		c.edge = &edge
	}
}

// follow sends the events of the ring from a number on.
func (c *Client) follow(number uint64) error {
	var batch [batchSize]*Event
	if err := c.place(); err != nil {
		return err
	}
	for {
		n, changed, ok := c.broadcast.take(number, batch[:])
		if !ok {
			return ErrSlow
		}
		if n == 0 {
			if err := c.wait(changed, nil); err != nil {
				return err
			}
			continue
		}
		if err := c.sendAll(batch[:n]); err != nil {
			return err
		}
		clear(batch[:n])
		number += uint64(n)
		if c.broadcast.ctx.Err() != nil || c.ctx.Err() != nil {
			return ErrEnded
		}
	}
}

// sendAll writes events and flushes them. Behind the last event of the stream the error is
// ErrLast.
func (c *Client) sendAll(events []*Event) error {
	for _, e := range events {
		sent, err := c.send(e)
		if err != nil {
			return err
		}
		if e.Last && sent {
			return errors.Join(ErrLast, c.flush())
		}
	}
	return c.flush()
}

// send writes an event unless the client has it, which it reports, or the filter rejects it.
func (c *Client) send(e *Event) (is bool, err error) {
	if e.Gap {
		return true, c.Output.Write(e)
	}
	switch {
	case c.feed.config.Epochs && e.ID.Ms > c.At.Ms: // Redis has lost the end of its epoch
		return false, errors.Join(c.Output.Place(stream.ID{Ms: c.At.Ms, Seq: math.MaxUint64}), ErrEnded)
	case c.feed.config.Epochs && !c.At.Less(e.ID), !e.ID.IsZero() && e.life == c.life && !c.skip.Less(e.ID):
		return false, nil
	}
	c.At = e.ID
	if c.Filter != nil && e.Value != nil && !c.Filter(e.Value) {
		c.owes = true
		return true, nil
	}
	c.owes = false
	return true, c.Output.Write(e)
}

// place sends the client the ID of its position, if the client does not have it.
func (c *Client) place() error {
	if !c.owes || !c.feed.config.Source.Keeps() {
		return nil
	}
	c.owes = false
	if err := c.Output.Place(c.At); err != nil {
		return err
	}
	return c.flush()
}

// wait returns when wake is closed or a slot is taken, or an error when the stream must end.
// Meanwhile it sends heartbeats.
func (c *Client) wait(wake <-chan struct{}, slots chan<- struct{}) error {
	for {
		select {
		case <-wake:
			return nil
		case slots <- struct{}{}:
			return nil
		case <-c.silent:
			if err := errors.Join(c.place(), c.Output.Beat(), c.flush()); err != nil {
				return err
			}
		case <-c.ctx.Done():
			return c.ctx.Err()
		case <-c.broadcast.ctx.Done():
			return ErrEnded
		}
	}
}

// flush sends the written data.
func (c *Client) flush() error {
	sent, err := c.Output.Flush()
	if sent && c.beat != nil {
		c.beat.Reset(c.Heartbeat)
	}
	return err
}

package sse

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"time"

	gosse "github.com/tmaxmax/go-sse"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/stream"
)

const (
	// openWait is how long the answer to a request waits for Redis. Then it begins
	// without being live, so that clients of a Redis that is down stay connected.
	openWait = time.Second
	// writeSize is how much is written under one deadline.
	writeSize = 64 << 10
	// batchSize is how many events are taken from the ring at once.
	batchSize = 16
)

var heartbeat = func() []byte {
	var m gosse.Message
	m.AppendComment("keep-alive")
	return toBytes(&m)
}()

// client is one request. All of it belongs to the goroutine that net/http serves it in.
type client[T any] struct {
	handler   *Handler[T]
	broadcast *broadcast[T]
	w         http.ResponseWriter
	out       *http.ResponseController
	request   *http.Request
	ctx       context.Context // of the request
	filter    func(redischannels.Delivery[T]) bool
	beat      *time.Timer
	silent    <-chan time.Time // of beat; nil without heartbeats

	start redischannels.Position // where it begins, if not at an ID
	edge  *edge                  // of the ring when the response began, or when the ring was live
	at    stream.ID              // up to which it was sent everything
	known bool                   // at is set
	owes  bool                   // the client does not know at
	skip  stream.ID              // events up to here, of life, are not sent
	life  int

	room int // bytes that may be written before the deadline is set again
	dirt int // bytes since the last flush
}

// begin finds out from the request where the client begins and what it is sent. The
// error is for the client.
func (c *client[T]) begin() error {
	o, r := &c.handler.options, c.request
	if o.Filter != nil {
		c.filter = o.Filter(r)
	}
	c.start = redischannels.Latest
	if !c.handler.keeps {
		return nil
	}
	last := r.Header.Get("Last-Event-ID")
	if last == "" && o.LastEventIDParam != NoLastEventIDParam {
		last = r.URL.Query().Get(o.LastEventIDParam)
	}
	if last != "" {
		id, err := stream.ParseID(last)
		if err != nil {
			return errors.New("the last event ID must be that of an event of this stream, such as 1700000000000-0")
		}
		c.at, c.known = id, true
		return nil
	}
	if o.Start == nil {
		return nil
	}
	start, err := redischannels.ParsePosition(string(o.Start(r)))
	if err != nil {
		return errors.New("the start must be an entry ID such as 1700000000000-0")
	}
	if start != "" {
		c.start = start
	}
	return nil
}

// serve streams until the client goes, cannot follow, or the broadcast ends.
func (c *client[T]) serve() {
	h := c.w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("Cache-Control", "no-cache, no-store, no-transform")
	h.Set("X-Accel-Buffering", "no") // nginx would collect events
	if c.request.Method == http.MethodHead {
		return
	}
	if c.request.ProtoMajor == 1 {
		// The last write of the server has a deadline, which the next request on this
		// connection would inherit.
		h.Set("Connection", "close")
	}
	var cancel context.CancelFunc
	c.ctx, cancel = context.WithCancel(c.request.Context())
	defer cancel()
	if c.handler.options.Heartbeat != NoHeartbeat {
		c.beat = time.NewTimer(c.handler.options.Heartbeat)
		defer c.beat.Stop()
		c.silent = c.beat.C
	}
	err := c.open()
	var number uint64
	if err == nil {
		number, err = c.attach()
	}
	if err == nil {
		err = c.follow(number)
	}
	if errors.Is(err, ErrSlowClient) || errors.Is(err, os.ErrDeadlineExceeded) {
		c.handler.options.OnError(fmt.Errorf("redischannels/sse: %w at %s: %w", ErrSlowClient, c.at, err))
	}
	c.extend() // of what the server writes at the end
}

// open answers the request, when events can come, or when that takes too long.
func (c *client[T]) open() error {
	wait := time.NewTimer(openWait)
	defer wait.Stop()
	select {
	case <-c.broadcast.live:
		// Before the response begins: who sees that may write at once.
		c.look()
	case <-wait.C:
	case <-c.ctx.Done():
		return c.ctx.Err()
	case <-c.broadcast.ctx.Done():
		return errEnded
	}
	c.extend()
	if !canFlush(c.w) {
		err := fmt.Errorf("redischannels/sse: flush a %T: %w", c.w, http.ErrNotSupported)
		c.handler.options.OnError(err)
		c.w.Header().Del("Cache-Control")
		http.Error(c.w, "streaming is not possible here", http.StatusInternalServerError)
		return err
	}
	// A middleware that compresses decides by the status; one that sees a flush before it sends
	// compressed bytes without saying so.
	c.w.WriteHeader(http.StatusOK)
	if err := c.out.Flush(); err != nil {
		return err
	}
	if c.handler.options.Retry != NoRetry {
		if err := c.write(toBytes(&gosse.Message{Retry: c.handler.options.Retry})); err != nil {
			return err
		}
	}
	if err := c.flush(); err != nil {
		return err
	}
	if err := c.wait(c.broadcast.live, nil); err != nil {
		return err
	}
	c.look()
	return nil
}

// look notes where the ring ends, once.
func (c *client[T]) look() {
	if c.edge == nil {
		edge := c.broadcast.edge()
		c.edge = &edge
	}
}

// follow sends the events of the ring from a number on.
func (c *client[T]) follow(number uint64) error {
	var batch [batchSize]*event[T]
	if err := c.settle(); err != nil {
		return err
	}
	for {
		n, changed, ok := c.broadcast.take(number, batch[:])
		if !ok {
			return ErrSlowClient
		}
		if n == 0 {
			if err := c.wait(changed, nil); err != nil {
				return err
			}
			continue
		}
		for _, e := range batch[:n] {
			if err := c.send(e); err != nil {
				return err
			}
		}
		clear(batch[:n])
		number += uint64(n)
		if err := c.flush(); err != nil {
			return err
		}
		if c.broadcast.ctx.Err() != nil || c.ctx.Err() != nil {
			return errEnded
		}
	}
}

// send writes an event unless the client has it or the filter is against it.
func (c *client[T]) send(e *event[T]) error {
	if e.gap {
		return c.write(e.wire)
	}
	if !e.id.IsZero() && e.life == c.life && !c.skip.Less(e.id) {
		return nil
	}
	c.at = e.id
	if c.filter != nil && e.value != nil && !c.filter(*e.value) {
		c.owes = true
		return nil
	}
	c.owes = false
	return c.write(e.wire)
}

// settle sends the client the ID that it has come to, if it does not know it: browsers
// take it from an event without data and not report it.
func (c *client[T]) settle() error {
	if !c.owes || !c.handler.keeps {
		return nil
	}
	c.owes = false
	if err := c.write(toBytes(&gosse.Message{ID: gosse.ID(c.at.String())})); err != nil {
		return err
	}
	return c.flush()
}

// wait returns when wake is closed or a slot is taken, or an error when the stream is to
// end. Meanwhile it sends heartbeats.
func (c *client[T]) wait(wake <-chan struct{}, slots chan<- struct{}) error {
	for {
		select {
		case <-wake:
			return nil
		case slots <- struct{}{}:
			return nil
		case <-c.silent:
			if err := errors.Join(c.settle(), c.write(heartbeat), c.flush()); err != nil {
				return err
			}
		case <-c.ctx.Done():
			return c.ctx.Err()
		case <-c.broadcast.ctx.Done():
			return errEnded
		}
	}
}

// write writes in parts, each of which has to be taken within WriteTimeout.
func (c *client[T]) write(p []byte) error {
	for len(p) > 0 {
		if c.room <= 0 {
			c.extend()
		}
		n, err := c.w.Write(p[:min(len(p), c.room)])
		if err != nil {
			return err
		}
		c.room -= n
		c.dirt += n
		p = p[n:]
	}
	return nil
}

// extend sets the deadline for what is written next.
func (c *client[T]) extend() {
	c.room = writeSize
	// Where it is not supported a client that takes nothing is left to TCP.
	_ = c.out.SetWriteDeadline(time.Now().Add(c.handler.options.WriteTimeout))
}

// flush sends what was written.
func (c *client[T]) flush() error {
	if c.dirt == 0 {
		return nil
	}
	c.dirt, c.room = 0, 0
	err := c.out.Flush()
	if err == nil && c.request.ProtoMajor > 1 {
		// The end of a deadline ends the stream of HTTP/2, also an idle one.
		err = c.out.SetWriteDeadline(time.Time{})
		if errors.Is(err, http.ErrNotSupported) {
			err = nil
		}
	}
	if c.beat != nil {
		c.beat.Reset(c.handler.options.Heartbeat)
	}
	return err
}

// canFlush reports whether a [http.ResponseController] finds a flush in the writer.
func canFlush(w http.ResponseWriter) bool {
	for {
		switch inner := w.(type) {
		case interface{ FlushError() error }, http.Flusher:
			return true
		case interface{ Unwrap() http.ResponseWriter }:
			w = inner.Unwrap()
		default:
			return false
		}
	}
}

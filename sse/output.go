package sse

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"time"

	gosse "github.com/tmaxmax/go-sse"

	"github.com/flaminco/redischannels/internal/feed"
	"github.com/flaminco/redischannels/internal/stream"
)

// writeSize is the number of bytes that are written with one deadline.
const writeSize = 64 << 10

var heartbeat = func() []byte {
	var m gosse.Message
	m.AppendComment("keep-alive")
	return toBytes(&m)
}()

// output is an event stream, the response to one request.
type output struct {
	feed.Request
	out     *http.ResponseController
	retry   time.Duration // NoRetry: not sent
	onError func(error)

	room int // bytes that may be written before the deadline is set again
	dirt int // bytes since the last flush
}

// header sets the header of an event stream.
func (o *output) header() {
	h := o.Writer.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("Cache-Control", "no-cache, no-store, no-transform")
	h.Set("X-Accel-Buffering", "no") // nginx would buffer events
	if o.HTTP.ProtoMajor == 1 && o.HTTP.Method != http.MethodHead {
		// The last write of the server has a deadline, which the next request on this
		// connection would inherit.
		h.Set("Connection", "close")
	}
}

// None implements feed.Transport: an EventSource does not reconnect.
func (o *output) None() {
	o.Writer.Header().Set("Cache-Control", "no-store") // there may be a stream later
	o.Writer.WriteHeader(http.StatusNoContent)
}

// Open implements feed.Output.
func (o *output) Open() error {
	o.header()
	o.extend()
	if !canFlush(o.Writer) {
		err := fmt.Errorf("redischannels/sse: flush a %T: %w", o.Writer, http.ErrNotSupported)
		o.onError(err)
		o.Writer.Header().Del("Cache-Control")
		http.Error(o.Writer, "streaming is not possible here", http.StatusInternalServerError)
		return err
	}
	// Compressing middleware decides when the status is written. After an earlier flush it sends
	// compressed bytes without a Content-Encoding.
	o.Writer.WriteHeader(http.StatusOK)
	if err := o.out.Flush(); err != nil {
		return err
	}
	if o.retry != NoRetry {
		if err := o.write(toBytes(&gosse.Message{Retry: o.retry})); err != nil {
			return err
		}
	}
	if err := o.write(o.First); err != nil {
		return err
	}
	o.First = nil // the response may last for hours
	_, err := o.Flush()
	return err
}

// Write implements feed.Output.
func (o *output) Write(event *feed.Event) error { return o.write(event.Wire) }

// write writes in parts; the client must read each within WriteTimeout.
func (o *output) write(p []byte) error {
	for len(p) > 0 {
		if o.room <= 0 {
			o.extend()
		}
		n, err := o.Writer.Write(p[:min(len(p), o.room)])
		if err != nil {
			return slow(err)
		}
		o.room -= n
		o.dirt += n
		p = p[n:]
	}
	return nil
}

// Place implements feed.Output: browsers store the ID of an event without data and dispatch no
// event.
func (o *output) Place(at stream.ID) error {
	return o.write(toBytes(&gosse.Message{ID: gosse.ID(o.ID(at))}))
}

// Beat implements feed.Output.
func (o *output) Beat() error { return o.write(heartbeat) }

// Flush implements feed.Output.
func (o *output) Flush() (sent bool, err error) {
	if o.dirt == 0 {
		return false, nil
	}
	o.dirt, o.room = 0, 0
	err = o.out.Flush()
	if err == nil && o.HTTP.ProtoMajor > 1 {
		// An expired deadline ends an HTTP/2 stream, even an idle one.
		err = o.out.SetWriteDeadline(time.Time{})
		if errors.Is(err, http.ErrNotSupported) {
			err = nil
		}
	}
	return true, slow(err)
}

// extend sets the deadline of the next write.
func (o *output) extend() {
	o.room = writeSize
	// If it is not supported, only TCP detects a client that reads nothing.
	_ = o.out.SetWriteDeadline(time.Now().Add(o.WriteTimeout))
}

// End implements feed.Transport.
func (o *output) End(error) { o.extend() } // for the last write of the server

// slow marks the error of a write that exceeded its deadline.
func slow(err error) error {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("%w: %w", feed.ErrSlow, err)
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

package sse

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"

	gosse "github.com/tmaxmax/go-sse"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/feed"
	"github.com/flaminco/redischannels/internal/redisconn"
	"github.com/flaminco/redischannels/internal/stream"
)

// RunsOptions configures [Runs.Handler]. The zero value is valid.
type RunsOptions[T any] struct {
	// Options are those of a channel's handler. Start must not be set: viewers begin at the
	// beginning, or resume at their position. The Time of a Delivery is that of the start of the
	// run.
	Options[T]

	// ID returns the ID of the run of a request; if it is empty the request gets status 400.
	// Defaults to the wildcard "id" of the handler's pattern.
	ID func(*http.Request) string
}

// Validate reports every problem of the options in one joined error.
func (o RunsOptions[T]) Validate() error {
	err := o.Options.Validate()
	if o.Start != nil {
		err = errors.Join(err, fmt.Errorf("redischannels/sse: RunsOptions.Start: %w: must not be set: viewers of a run begin at the beginning, or resume at their position", redischannels.ErrInvalidConfig))
	}
	return err
}

// RunsHandler streams runs to any number of viewers. It is safe for concurrent use.
type RunsHandler[T any] struct {
	server[T]
	runs *Runs[T]
	id   func(*http.Request) string

	feedsMu sync.Mutex
	feeds   map[string]*runFeed // of runs that have viewers
}

// Handler returns a handler that streams the run of a request: EventStart, each piece, and
// EventEnd, after which the response ends. If there is no run, or the viewer has received its
// end, the status is 204, after which an EventSource does not reconnect. The errors wrap
// [redischannels.ErrInvalidConfig].
func (r *Runs[T]) Handler(options RunsOptions[T]) (*RunsHandler[T], error) {
	if err := options.Validate(); err != nil {
		return nil, err
	}
	h := &RunsHandler[T]{server: newServer(options.Options), runs: r, id: options.ID, feeds: make(map[string]*runFeed)}
	if h.id == nil {
		h.id = func(r *http.Request) string { return r.PathValue("id") }
	}
	return h, nil
}

// Close ends the streams of all viewers, which may resume at another process, as [Handler.Close]
// does.
func (h *RunsHandler[T]) Close() error { return h.close() }

// Clients returns the number of connected viewers.
func (h *RunsHandler[T]) Clients() int { return h.count() }

// ServeHTTP streams events until the run ends, the viewer disconnects or is too slow, or the
// handler is closed.
func (h *RunsHandler[T]) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !h.permits(w, r) {
		return
	}
	var seen stream.ID
	if last := h.lastEventID(r); last != "" {
		var err error
		if seen, err = stream.ParseID(last); err != nil {
			http.Error(w, "the last event ID must be that of an event of this run, such as 1700000000000-1", http.StatusBadRequest)
			return
		}
	}
	id := h.id(r)
	if _, err := h.runs.key(id); err != nil {
		http.Error(w, "the ID of the run must have 1 to 256 bytes", http.StatusBadRequest)
		return
	}
	if err := h.join(); err != nil {
		h.unavailable(w, err)
		return
	}
	defer h.leave()
	h.view(w, r, id, seen)
}

// view streams a run to a joined viewer that has received all events up to an ID.
func (h *RunsHandler[T]) view(w http.ResponseWriter, r *http.Request, id string, seen stream.ID) {
	var v *viewing
	var err error
	found := make(chan struct{})
	h.life.Go(func() { // a goroutine, so that its stack does not last as long as the response
		defer close(found)
		v, err = h.find(r.Context(), id, seen)
	})
	<-found
	switch {
	case errors.Is(err, ErrNoRun):
		h.transport(feed.Request{Writer: w, HTTP: r, Cancel: func() {}}).None()
		return
	case errors.Is(err, redischannels.ErrClosed):
		h.unavailable(w, feed.ErrEnded)
		return
	case err != nil:
		h.options.OnError(err)
		h.later(w, r, err)
		return
	}
	defer h.release(v.run)
	c := h.client(r)
	c.At, c.Known = v.at, true
	h.serve(v.run.feed, c, feed.Request{Writer: w, HTTP: r, ID: stream.ID.String, First: v.first})
}

// viewing is the position at which a viewer begins.
type viewing struct {
	run   *runFeed // must be released
	at    stream.ID
	first []byte // the event of the start, if it begins there
}

// find returns the position at which a viewer begins. The error is ErrNoRun if there are no
// further events.
func (h *RunsHandler[T]) find(ctx context.Context, id string, seen stream.ID) (*viewing, error) {
	state, err := h.runs.look(ctx, id)
	if err != nil {
		return nil, err
	}
	at, fresh := begin(seen, state)
	if state.Epoch == 0 || stream.IsRunEnd(at) {
		return nil, ErrNoRun
	}
	v := &viewing{at: at}
	if fresh {
		info := runInfo(id, state)
		data := toJSON(RunStart{info.ID, info.Epoch, info.Started, info.Metadata})
		v.first = encode(&gosse.Message{Type: gosse.Type(EventStart)}, at.String(), data)
	}
	if v.run, err = h.open(id); err != nil {
		return nil, err
	}
	h.expect(v.run, state)
	return v, nil
}

// later serves a request while the state of the run cannot be read from Redis. An EventSource
// does not reconnect after any status but 200, so it gets an event stream that ends, and
// reconnects.
func (h *RunsHandler[T]) later(w http.ResponseWriter, r *http.Request, err error) {
	if !redisconn.Classify(err).Retryable() {
		http.Error(w, "the run cannot be read", http.StatusInternalServerError)
		return
	}
	if feed.TransportOf(r.Context()) != nil {
		h.unavailable(w, errors.New("Redis cannot be reached"))
		return
	}
	o := h.output(feed.Request{Writer: w, HTTP: r, WriteTimeout: h.options.WriteTimeout})
	if r.Method != http.MethodHead {
		_ = o.Open() // the viewer has disconnected, or will reconnect
	}
}

// begin returns the ID after which a viewer begins that has received all events up to seen. fresh
// reports that it begins at the beginning.
func begin(seen stream.ID, s stream.RunState) (at stream.ID, fresh bool) {
	switch {
	case seen.IsZero():
	case seen.Ms == s.Epoch, seen.Ms == s.Previous && !stream.IsRunEnd(seen): // its end is still to come
		return seen, false
	}
	return stream.RunStart(s.Epoch), true
}

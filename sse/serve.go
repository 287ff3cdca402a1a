package sse

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/feed"
	"github.com/flaminco/redischannels/internal/lifecycle"
)

var errFull = errors.New("too many clients")

// server is the common part of the handlers of channels and of runs.
type server[T any] struct {
	options Options[T]
	slots   chan struct{}    // taken by clients that read from Redis
	life    *lifecycle.State // clients, broadcasts and readers of pages

	mu      sync.Mutex
	clients int
}

func newServer[T any](options Options[T]) server[T] {
	return server[T]{options: options.withDefaults(), slots: make(chan struct{}, feed.CatchUps), life: lifecycle.New(feed.ErrEnded)}
}

// close ends the streams of all clients and waits until all goroutines of the handler have ended.
func (s *server[T]) close() error { return s.life.CloseWithin(0, nil) }

// count returns the number of connected clients.
func (s *server[T]) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.clients
}

// permits reports whether a request is served, and replies to it otherwise.
func (s *server[T]) permits(w http.ResponseWriter, r *http.Request) bool {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		http.Error(w, "only GET streams events", http.StatusMethodNotAllowed)
		return false
	}
	if s.options.Authorize == nil {
		return true
	}
	err := s.options.Authorize(r)
	if err != nil {
		refuse(w, err)
	}
	return err == nil
}

// refuse replies to a request that Authorize has refused.
func refuse(w http.ResponseWriter, err error) {
	status := http.StatusForbidden
	if errors.Is(err, ErrUnauthorized) {
		status = http.StatusUnauthorized
	}
	http.Error(w, http.StatusText(status), status)
}

// unavailable replies to a request that cannot be served now.
func (s *server[T]) unavailable(w http.ResponseWriter, err error) {
	if s.options.Retry != NoRetry {
		w.Header().Set("Retry-After", strconv.Itoa(int((s.options.Retry+time.Second-1)/time.Second)))
	}
	http.Error(w, err.Error(), http.StatusServiceUnavailable)
}

// join counts a client, until leave.
func (s *server[T]) join() error {
	if err := s.life.Enter(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.options.MaxClients != UnlimitedClients && s.clients >= s.options.MaxClients {
		s.life.Leave()
		return errFull
	}
	s.clients++
	return nil
}

func (s *server[T]) leave() {
	s.mu.Lock()
	s.clients--
	s.mu.Unlock()
	s.life.Leave()
}

// feed returns the feed of a source, whose IDs may have epochs.
func (s *server[T]) feed(epochs bool, source feed.Source) *feed.Feed {
	return feed.New(feed.Config{
		Source:      source,
		Epochs:      epochs,
		Gap:         encodeGap,
		Buffer:      s.options.Buffer,
		BufferBytes: s.options.BufferBytes,
		OnError:     s.options.OnError,
		Slots:       s.slots,
		Life:        s.life,
	})
}

// lastEventID returns the ID of the last event that the client of a request has received, or
// empty.
func (s *server[T]) lastEventID(r *http.Request) string {
	last := r.Header.Get("Last-Event-ID")
	if last == "" && s.options.LastEventIDParam != NoLastEventIDParam {
		last = r.URL.Query().Get(s.options.LastEventIDParam)
	}
	return last
}

// transport returns the transport of a request.
func (s *server[T]) transport(request feed.Request) feed.Transport {
	request.WriteTimeout, request.Life = s.options.WriteTimeout, s.life.Context()
	if other := feed.TransportOf(request.HTTP.Context()); other != nil {
		return other(request)
	}
	return s.output(request)
}

// output is the transport of Server-Sent Events.
func (s *server[T]) output(request feed.Request) *output {
	return &output{Request: request, out: http.NewResponseController(request.Writer), retry: s.options.Retry, onError: s.options.OnError}
}

// client returns the client of a request.
func (s *server[T]) client(r *http.Request) *feed.Client {
	c := &feed.Client{Start: feed.Latest, Heartbeat: max(0, s.options.Heartbeat)}
	if s.options.Filter != nil {
		if filter := s.options.Filter(r); filter != nil {
			c.Filter = func(value any) bool { return filter(*value.(*redischannels.Delivery[T])) }
		}
	}
	return c
}

// serve sends events of a feed to a joined client.
func (s *server[T]) serve(f *feed.Feed, c *feed.Client, request feed.Request) {
	if request.HTTP.Method == http.MethodHead {
		s.output(request).header()
		return
	}
	ctx, cancel := context.WithCancel(request.HTTP.Context())
	defer cancel()
	request.Cancel = cancel
	transport := s.transport(request)
	c.Output = transport
	err := f.Serve(ctx, c)
	cancel() // the end of a response may take a while
	if errors.Is(err, feed.ErrCompleted) {
		transport.None()
		return
	}
	if errors.Is(err, ErrSlowClient) {
		s.options.OnError(fmt.Errorf("redischannels/sse: at %s: %w", c.At, err))
	}
	transport.End(err)
}

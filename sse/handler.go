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
	"github.com/flaminco/redischannels/internal/lifecycle"
	"github.com/flaminco/redischannels/internal/stream"
)

// catchUps is how many clients of a Handler read from Redis at once. Each holds a page.
const catchUps = 8

// Handler streams the values of a channel to any number of clients. It is safe for
// concurrent use, also several of one channel. All Handlers of one hub whose channels
// have equal settings share one connection for reading, whatever the number of clients.
type Handler[T any] struct {
	channel *redischannels.Channel[T]
	options Options[T]
	keeps   bool // the transport has IDs and history

	slots chan struct{}    // taken by those who read from Redis
	life  *lifecycle.State // clients, broadcasts and readers of pages

	mu      sync.Mutex
	clients int
	current *broadcast[T] // nil without clients
}

// NewHandler returns a handler for a channel, which stays the caller's: close the handler
// first. It starts nothing and does not talk to Redis; the first client does. The errors
// wrap [redischannels.ErrInvalidConfig] or [redischannels.ErrInvalidArgument].
func NewHandler[T any](channel *redischannels.Channel[T], options Options[T]) (*Handler[T], error) {
	var errs []error
	if channel == nil {
		errs = append(errs, fmt.Errorf("redischannels/sse: channel: %w: must not be nil", redischannels.ErrInvalidArgument))
	}
	if err := errors.Join(append(errs, options.Validate())...); err != nil {
		return nil, err
	}
	h := &Handler[T]{channel: channel, options: options.withDefaults(), slots: make(chan struct{}, catchUps), life: lifecycle.New(errEnded)}
	never, cancel := context.WithCancel(context.Background())
	cancel()
	_, err := channel.Reader().LastID(never)
	h.keeps = !errors.Is(err, redischannels.ErrNotSupported)
	return h, nil
}

// Close ends the streams of all clients, which may resume elsewhere, and waits until
// nothing of the handler is left. Later requests are answered 503. It may be called often
// and from anywhere but OnError, best by http.Server.RegisterOnShutdown, since Shutdown
// waits for requests to end. It always returns nil.
func (h *Handler[T]) Close() error {
	return h.life.Close(nil)
}

// Clients is how many clients are connected now.
func (h *Handler[T]) Clients() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.clients
}

// ServeHTTP streams events until the client goes, cannot follow, or Close.
func (h *Handler[T]) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		http.Error(w, "only GET streams events", http.StatusMethodNotAllowed)
		return
	}
	if h.options.Authorize != nil {
		if err := h.options.Authorize(r); err != nil {
			refuse(w, err)
			return
		}
	}
	c := &client[T]{handler: h, w: w, out: http.NewResponseController(w), request: r}
	if err := c.begin(); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	b, err := h.join()
	if err != nil {
		if h.options.Retry != NoRetry {
			w.Header().Set("Retry-After", strconv.Itoa(int((h.options.Retry+time.Second-1)/time.Second)))
		}
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	defer h.leave(b)
	c.broadcast = b
	c.serve()
}

// refuse answers a request that Authorize has an error for.
func refuse(w http.ResponseWriter, err error) {
	status := http.StatusForbidden
	if errors.Is(err, ErrUnauthorized) {
		status = http.StatusUnauthorized
	}
	http.Error(w, http.StatusText(status), status)
}

var (
	errFull  = errors.New("too many clients")
	errEnded = errors.New("the stream has ended")
)

// join counts a client and returns the broadcast that serves it.
func (h *Handler[T]) join() (_ *broadcast[T], err error) {
	if err := h.life.Enter(); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			h.life.Leave()
		}
	}()
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case h.channel.Reader().Err() != nil:
		return nil, errEnded
	case h.options.MaxClients != UnlimitedClients && h.clients >= h.options.MaxClients:
		return nil, errFull
	}
	if h.current == nil || h.current.ctx.Err() != nil {
		h.current = newBroadcast(h)
		h.life.Go(h.current.run)
	}
	h.clients++
	h.current.clients++
	return h.current, nil
}

// leave undoes join. The last client of a broadcast ends it and waits for that.
func (h *Handler[T]) leave(b *broadcast[T]) {
	defer h.life.Leave()
	h.mu.Lock()
	h.clients--
	b.clients--
	last := b.clients == 0
	if last && h.current == b {
		h.current = nil
	}
	h.mu.Unlock()
	if last {
		b.stop()
		<-b.done
	}
}

// lastID is the greatest ID that the stream has had.
func (h *Handler[T]) lastID(ctx context.Context) (stream.ID, error) {
	text, err := h.channel.Reader().LastID(ctx)
	if err != nil {
		return stream.ID{}, err
	}
	return stream.ParseID(text)
}

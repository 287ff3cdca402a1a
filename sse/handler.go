package sse

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net/http"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/bridge"
	"github.com/flaminco/redischannels/internal/feed"
	"github.com/flaminco/redischannels/internal/stream"
)

// Handler streams the values of a channel to any number of clients. It is safe for concurrent
// use, and a channel may have several Handlers. All Handlers of one hub whose channels have equal
// settings share one connection for reading, for any number of clients.
type Handler[T any] struct {
	server[T]
	channel *redischannels.Channel[T]
	keeps   bool // the transport has IDs and history
	events  *feed.Feed
}

// NewHandler returns a handler for a channel. The caller owns the channel and closes it after the
// handler. NewHandler starts no goroutine and sends no commands to Redis; the first client does.
// The errors wrap [redischannels.ErrInvalidConfig] or [redischannels.ErrInvalidArgument].
func NewHandler[T any](channel *redischannels.Channel[T], options Options[T]) (*Handler[T], error) {
	var errs []error
	if channel == nil {
		errs = append(errs, fmt.Errorf("redischannels/sse: channel: %w: must not be nil", redischannels.ErrInvalidArgument))
	}
	if err := errors.Join(append(errs, options.Validate())...); err != nil {
		return nil, err
	}
	h := &Handler[T]{server: newServer(options), channel: channel}
	never, cancel := context.WithCancel(context.Background())
	cancel()
	_, err := channel.Reader().LastID(never)
	h.keeps = !errors.Is(err, redischannels.ErrNotSupported)
	h.events = h.feed(false, source[T]{channel: channel, keeps: h.keeps, event: h.event})
	return h, nil
}

// Close ends the streams of all clients, which may resume at another process, and waits until all
// goroutines of the handler have ended. Later requests get status 503. Close may be called
// several times, and from anywhere but OnError, best by http.Server.RegisterOnShutdown, because
// Shutdown waits for requests to end. It returns [redischannels.ErrCloseTimeout] after 20 s.
func (h *Handler[T]) Close() error { return h.close() }

// Clients returns the number of connected clients.
func (h *Handler[T]) Clients() int { return h.count() }

// ServeHTTP streams events until the client disconnects, is too slow, or the handler is closed.
func (h *Handler[T]) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !h.permits(w, r) {
		return
	}
	c := h.client(r)
	if err := h.begin(r, c); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	err := h.join()
	if err == nil {
		defer h.leave()
		if h.channel.Reader().Err() != nil {
			err = feed.ErrEnded
		}
	}
	if err != nil {
		h.unavailable(w, err)
		return
	}
	h.serve(h.events, c, feed.Request{Writer: w, HTTP: r, ID: stream.ID.String})
}

// begin sets the position of the client from the request. The error is for the client.
func (h *Handler[T]) begin(r *http.Request, c *feed.Client) error {
	if !h.keeps {
		return nil
	}
	if last := h.lastEventID(r); last != "" {
		id, err := stream.ParseID(last)
		if err != nil {
			return errors.New("the last event ID must be that of an event of this stream, such as 1700000000000-0")
		}
		c.At, c.Known = id, true
		return nil
	}
	if h.options.Start == nil {
		return nil
	}
	start, err := redischannels.ParsePosition(string(h.options.Start(r)))
	if err != nil {
		return errors.New("the start must be an entry ID such as 1700000000000-0")
	}
	if start != "" {
		c.Start = feed.Position(start)
	}
	return nil
}

// source is the channel of a feed. V is the type of its values.
type source[V any] struct {
	channel *redischannels.Channel[V]
	keeps   bool
	// event makes an event of what a reader yields, or returns the error that is none.
	event func(redischannels.Delivery[V], error) (*feed.Event, error)
}

// Keeps implements feed.Source.
func (s source[V]) Keeps() bool { return s.keeps }

// Follow implements feed.Source.
func (s source[V]) Follow(ctx context.Context, live func(start stream.ID)) iter.Seq2[*feed.Event, error] {
	return s.events(bridge.Follow(ctx, s.channel.Reader(), live).(iter.Seq2[redischannels.Delivery[V], error]))
}

// History implements feed.Source.
func (s source[V]) History(ctx context.Context, from feed.Position) iter.Seq2[*feed.Event, error] {
	return s.events(bridge.History(ctx, s.channel.Reader(), string(from)).(iter.Seq2[redischannels.Delivery[V], error]))
}

func (s source[V]) events(deliveries iter.Seq2[redischannels.Delivery[V], error]) iter.Seq2[*feed.Event, error] {
	return func(yield func(*feed.Event, error) bool) {
		for d, err := range deliveries {
			if !yield(s.event(d, err)) {
				return
			}
		}
	}
}

// LastID implements feed.Source.
func (s source[V]) LastID(ctx context.Context) (stream.ID, error) {
	text, err := s.channel.Reader().LastID(ctx)
	if err != nil {
		return stream.ID{}, err
	}
	return stream.ParseID(text)
}

// IsClosed implements feed.Source.
func (s source[V]) IsClosed(err error) bool { return errors.Is(err, redischannels.ErrClosed) }

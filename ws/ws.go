package ws

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"path"

	"github.com/coder/websocket"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/feed"
	"github.com/flaminco/redischannels/internal/stream"
)

// CloseNothing is the status of a connection that is closed because there is no such run, or the
// client has received its end. It corresponds to status 204 for an EventSource.
const CloseNothing = 4204

// Events is an *sse.Handler or an *sse.RunsHandler.
type Events interface {
	http.Handler
	Clients() int
}

// Options configures a [Handler]. The zero value is valid.
type Options struct {
	// OriginPatterns are the hosts of other origins whose pages may connect, in the form of
	// path.Match, such as "*.example.com". Defaults to none.
	OriginPatterns []string
}

// Validate reports every problem of the options in one joined error. Each names its field and wraps
// [redischannels.ErrInvalidConfig].
func (o Options) Validate() error {
	var errs []error
	for _, pattern := range o.OriginPatterns {
		if _, err := path.Match(pattern, ""); err != nil {
			errs = append(errs, fmt.Errorf("redischannels/ws: Options.OriginPatterns: %w: %q: %w", redischannels.ErrInvalidConfig, pattern, err))
		}
	}
	return errors.Join(errs...)
}

// Handler serves events over WebSocket. It is safe for concurrent use. It needs no Close: its
// clients belong to the handler that it wraps.
type Handler struct {
	events  Events
	options Options
}

// NewHandler returns a handler that wraps another one, which may serve Server-Sent Events at the
// same time. The errors wrap [redischannels.ErrInvalidConfig] or
// [redischannels.ErrInvalidArgument].
func NewHandler(events Events, options Options) (*Handler, error) {
	err := options.Validate()
	if events == nil {
		err = errors.Join(fmt.Errorf("redischannels/ws: events: %w: must not be nil", redischannels.ErrInvalidArgument), err)
	}
	if err != nil {
		return nil, err
	}
	return &Handler{events, options}, nil
}

// ServeHTTP upgrades the connection and sends events until the stream ends, the client
// disconnects or is too slow, or the wrapped handler is closed.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	ctx := feed.WithTransport(r.Context(), func(request feed.Request) feed.Transport {
		return &socket{request: request, options: h.options}
	})
	h.events.ServeHTTP(w, r.WithContext(ctx))
}

// socket is one client. Its methods are called by the goroutine of its request.
type socket struct {
	request feed.Request
	options Options
	conn    *websocket.Conn
	sent    bool            // since the last Flush
	pinging <-chan error    // receives the end of the ping that Beat has begun; nil without one
	reading context.Context // until the client has disconnected or has sent a message
	talks   bool            // it has sent a message; set before reading ends
}

// Open implements feed.Output.
func (s *socket) Open() (err error) {
	s.conn, err = websocket.Accept(s.request.Writer, s.request.HTTP, &websocket.AcceptOptions{OriginPatterns: s.options.OriginPatterns})
	if err != nil {
		return err // Accept has replied to the request
	}
	var stop context.CancelFunc
	s.reading, stop = context.WithCancel(context.WithoutCancel(s.request.HTTP.Context()))
	go s.listen(stop)
	if len(s.request.First) == 0 {
		return nil
	}
	return s.send(frameOf(s.request.First))
}

// listen reads pongs until the client disconnects or sends a message, which ends the stream. The
// context of a request does not end with its connection after the upgrade. Conn.CloseRead does
// the same, but waits for itself for 15 s after a message.
func (s *socket) listen(stop context.CancelFunc) {
	defer s.request.Cancel()
	defer stop() // before: End checks whether there was a message
	_, _, err := s.conn.Reader(s.reading)
	s.talks = err == nil
}

// Write implements feed.Output.
func (s *socket) Write(event *feed.Event) error { return s.send(event.Frame(frameOf)) }

// Place implements feed.Output.
func (s *socket) Place(at stream.ID) error { return s.send(frame{ID: s.request.ID(at)}.encode()) }

// Beat implements feed.Output. It waits for the pong until the handler is closed or reading has
// ended. End then waits for the ping: canceling a ping that is being written closes the
// connection without a status.
func (s *socket) Beat() error {
	pinged := make(chan error, 1)
	s.pinging, s.sent = pinged, true
	go func() { pinged <- s.within(s.conn.Ping) }() // End waits for it
	select {
	case err := <-pinged:
		s.pinging = nil
		return err
	case <-s.request.Life.Done():
		return feed.ErrEnded
	case <-s.reading.Done():
		return context.Cause(s.reading)
	}
}

// Flush implements feed.Output: a message is sent when it is written.
func (s *socket) Flush() (sent bool, err error) {
	sent, s.sent = s.sent, false
	return sent, nil
}

// send writes a message.
func (s *socket) send(text []byte) error {
	s.sent = true
	return s.within(func(ctx context.Context) error { return s.conn.Write(ctx, websocket.MessageText, text) })
}

// within bounds the time in which a client reads nothing.
func (s *socket) within(f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(s.request.HTTP.Context()), s.request.WriteTimeout)
	defer cancel()
	err := f(ctx)
	if err != nil && ctx.Err() != nil {
		return fmt.Errorf("%w: %w", feed.ErrSlow, err)
	}
	return err
}

// None implements feed.Transport.
func (s *socket) None() {
	s.request.First = nil
	if s.Open() == nil {
		_ = s.conn.Close(CloseNothing, "nothing to see") // the client may have disconnected
		<-s.reading.Done()
	}
}

// End implements feed.Transport.
func (s *socket) End(err error) {
	if s.conn == nil {
		return
	}
	// Close fails if the connection has already ended.
	switch {
	case errors.Is(err, feed.ErrLast):
		_ = s.conn.Close(websocket.StatusNormalClosure, "the stream has ended")
	case errors.Is(err, feed.ErrSlow):
		_ = s.conn.Close(websocket.StatusTryAgainLater, "too slow")
	case errors.Is(err, feed.ErrEnded):
		_ = s.conn.Close(websocket.StatusGoingAway, "come back")
	case s.talked():
		_ = s.conn.Close(websocket.StatusPolicyViolation, "clients send nothing")
	default:
		_ = s.conn.CloseNow()
	}
	<-s.reading.Done() // the connection is closed
	if s.pinging != nil {
		<-s.pinging
	}
}

// talked reports whether the client has ended the stream by a message.
func (s *socket) talked() bool { return s.reading.Err() != nil && s.talks }

// frame is a message.
type frame struct {
	ID    string          `json:"id,omitempty"`
	Event string          `json:"event,omitempty"`
	Data  json.RawMessage `json:"data,omitempty"`
}

// encode returns the text of a message.
func (f frame) encode() []byte {
	text, _ := json.Marshal(f) // its data is valid
	return text
}

// frameOf converts an event in the form of Server-Sent Events to the text of a message.
func frameOf(event []byte) []byte { return parse(event).encode() }

func parse(event []byte) (f frame) {
	var data [][]byte
	for line := range bytes.Lines(event) {
		name, value, _ := bytes.Cut(bytes.TrimSuffix(line, []byte("\n")), []byte(": "))
		switch string(name) {
		case "id":
			f.ID = string(value)
		case "event":
			f.Event = string(value)
		case "data":
			data = append(data, value)
		}
	}
	if len(data) == 0 {
		return f
	}
	f.Data = bytes.Join(data, []byte("\n"))
	if !json.Valid(f.Data) {
		f.Data, _ = json.Marshal(string(f.Data)) // a string
	}
	return f
}

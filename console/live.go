package console

import (
	"context"
	"encoding/json"
	"html/template"
	"net/http"
	"time"

	gosse "github.com/tmaxmax/go-sse"

	"github.com/flaminco/redischannels/internal/backoff"
)

const (
	// refreshEvery is the least time between two looks of an open page.
	refreshEvery = 2 * time.Second
	// refreshAtMost is the greatest one.
	refreshAtMost = time.Minute
	// writeTimeout ends the stream of a client that takes nothing.
	writeTimeout = 10 * time.Second
)

// live keeps a page up to date, by Server-Sent Events: the parts that have changed, as HTML.
func (c *Console) live(w http.ResponseWriter, r *http.Request, p page) {
	req, ok := c.permit(w, r)
	if !ok {
		return
	}
	session, err := gosse.Upgrade(w, r)
	if err != nil {
		http.Error(w, "the connection cannot be streamed on", http.StatusInternalServerError)
		return
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	defer context.AfterFunc(c.life.Context(), cancel)()
	s := stream{session: session, control: http.NewResponseController(w), sent: make(map[string]template.HTML)}
	for {
		begun := time.Now()
		if !s.refresh(ctx, c, req, p) {
			return
		}
		pause := refreshEvery
		if !s.failed { // a page that takes long to read is read less often
			pause = min(max(pause, 20*time.Since(begun)), refreshAtMost)
		}
		if !backoff.Wait(ctx.Done(), pause) {
			return
		}
	}
}

// stream is the connection of an open page.
type stream struct {
	session *gosse.Session
	control *http.ResponseController
	sent    map[string]template.HTML // by ID
	failed  bool                     // the last look has
}

// refresh reads the page and sends what has changed. It reports false when the client is gone.
func (s *stream) refresh(ctx context.Context, c *Console, req request, p page) bool {
	c.samples.used(c)
	req.now = time.Now()
	reading, cancel := context.WithTimeout(ctx, readTimeout)
	v, err := p(reading, c, req)
	cancel()
	if ctx.Err() != nil {
		return false
	}
	if err == nil {
		err = v.fill(req)
	}
	if err != nil {
		s.failed = true
		return s.send("problem", err.Error())
	}
	if s.failed && !s.send("fine", "") {
		return false
	}
	s.failed = false
	for _, part := range v.Parts {
		if s.sent[part.ID] == part.HTML {
			continue
		}
		s.sent[part.ID] = part.HTML
		if !s.send("part", map[string]any{"id": part.ID, "html": part.HTML}) {
			return false
		}
	}
	return s.send("", nil) // finds a client that is gone
}

// send sends an event, or a comment without one.
func (s *stream) send(event string, data any) bool {
	var message gosse.Message
	if event == "" {
		message.AppendComment("")
	} else {
		text, err := json.Marshal(data)
		if err != nil {
			return false
		}
		message.Type = gosse.Type(event)
		message.AppendData(string(text))
	}
	_ = s.control.SetWriteDeadline(time.Now().Add(writeTimeout)) // some writers have none
	return s.session.Send(&message) == nil && s.session.Flush() == nil
}

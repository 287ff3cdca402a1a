package console

import (
	"bytes"
	"context"
	"embed"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/ThreeDotsLabs/watermill"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/inspect"
	"github.com/flaminco/redischannels/internal/bridge"
	"github.com/flaminco/redischannels/internal/lifecycle"
)

//go:embed static
var static embed.FS

// readTimeout bounds what a page reads: a server that is slow makes a page with an error, not one that hangs.
const readTimeout = 5 * time.Second

var errClosed = fmt.Errorf("redischannels/console: %w", redischannels.ErrClosed)

// Console is the page. It is safe for concurrent use. End it with Close.
type Console struct {
	config  Config
	logger  watermill.LoggerAdapter
	handler http.Handler
	life    *lifecycle.State
	samples sampler
}

// New returns a console. It does not talk to Redis before the first request. A nil logger is slog.Default() for
// errors. The error wraps [redischannels.ErrInvalidConfig], one for each wrong field.
func New(config Config, logger watermill.LoggerAdapter) (*Console, error) {
	if err := config.Validate(); err != nil {
		return nil, err
	}
	c := &Console{config: config, logger: bridge.Logger(logger), life: lifecycle.New(errClosed)}
	c.handler = http.StripPrefix(config.Prefix, c.routes())
	return c, nil
}

// ServeHTTP implements http.Handler. Requests end when their clients go, and at Close.
func (c *Console) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if err := c.life.Enter(); err != nil {
		http.Error(w, "closed", http.StatusServiceUnavailable)
		return
	}
	defer c.life.Leave()
	c.handler.ServeHTTP(w, r)
}

// Close ends all requests and waits for them. It is idempotent.
func (c *Console) Close() error { return c.life.Close(nil) }

func (c *Console) routes() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /static/", http.FileServerFS(static))
	for path, p := range pages {
		mux.HandleFunc("GET "+path, func(w http.ResponseWriter, r *http.Request) { c.serve(w, r, p) })
		mux.HandleFunc("GET /live"+path, func(w http.ResponseWriter, r *http.Request) { c.live(w, r, p) })
	}
	for path, a := range actions {
		mux.HandleFunc("POST "+path, func(w http.ResponseWriter, r *http.Request) { c.act(w, r, a) })
	}
	// Another site must neither send a form of this page nor show it in a frame.
	return secured(http.NewCrossOriginProtection().Handler(mux))
}

func secured(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'")
		h.Set("X-Frame-Options", "DENY")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "same-origin")
		h.Set("Cache-Control", "no-store")
		next.ServeHTTP(w, r)
	})
}

// request is a request that is permitted.
type request struct {
	*http.Request
	access    Access
	inspector *inspect.Inspector
	prefix    string
	now       time.Time
}

// permit returns a request, or answers it.
func (c *Console) permit(w http.ResponseWriter, r *http.Request) (request, bool) {
	access := Access{}
	if c.config.Authorize != nil {
		var err error
		if access, err = c.config.Authorize(r); err != nil {
			status := http.StatusUnauthorized
			if errors.Is(err, ErrDenied) {
				status = http.StatusForbidden
			}
			http.Error(w, http.StatusText(status), status)
			return request{}, false
		}
	}
	config := c.config.Inspect
	if access.Name != "" {
		config.Actor = access.Name
	}
	inspector, err := inspect.New(config, c.logger)
	if err != nil { // the name is too long
		http.Error(w, err.Error(), http.StatusBadRequest)
		return request{}, false
	}
	return request{r, access, inspector, c.config.Prefix, time.Now()}, true
}

// serve answers with a page.
func (c *Console) serve(w http.ResponseWriter, r *http.Request, p page) {
	req, ok := c.permit(w, r)
	if !ok {
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), readTimeout)
	defer cancel()
	c.samples.used(c)
	v, err := p(ctx, c, req)
	status := http.StatusOK
	if err != nil {
		c.logger.Error("Page of the console", err, watermill.LogFields{"path": r.URL.Path})
		v, status = view{Title: "Not available", Problem: err.Error()}, http.StatusBadGateway
		switch {
		case errors.Is(err, inspect.ErrNoTopic), errors.Is(err, inspect.ErrNoGroup):
			status = http.StatusNotFound
		case errors.Is(err, redischannels.ErrInvalidArgument):
			status = http.StatusBadRequest
		}
	} else {
		v.Live = liveLink(c.config.Prefix, r)
	}
	v.Done = c.done(w, r)
	c.render(w, req, v, status)
}

// liveLink is the address that keeps a page up to date.
func liveLink(prefix string, r *http.Request) string {
	live := prefix + "/live" + r.URL.EscapedPath()
	if r.URL.RawQuery != "" {
		live += "?" + r.URL.RawQuery
	}
	return live
}

// render answers with a view.
func (c *Console) render(w http.ResponseWriter, r request, v view, status int) {
	var body bytes.Buffer
	err := v.fill(r)
	if err == nil {
		err = templates.ExecuteTemplate(&body, "page", v)
	}
	if err != nil {
		c.logger.Error("Page of the console", err, nil)
		http.Error(w, "the page cannot be made", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(status)
	_, _ = body.WriteTo(w) // its client may have gone
}

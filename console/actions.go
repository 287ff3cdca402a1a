package console

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/inspect"
)

// action changes something, and returns where the browser goes then and what was done.
type action func(ctx context.Context, r request) (next, done string, err error)

// actions by their paths below Config.Prefix.
var actions = map[string]action{
	"/topics/{topic}/groups/{group}/pause":  pauseAction,
	"/topics/{topic}/groups/{group}/resume": resumeAction,
}

// errInput is what is wrong with a form.
type errInput string

func (e errInput) Error() string { return string(e) }

// maxForm bounds what a form may send.
const maxForm = 64 << 10

// act answers a form: it goes back to a page, which says what was done.
func (c *Console) act(w http.ResponseWriter, r *http.Request, a action) {
	r.Body = http.MaxBytesReader(w, r.Body, maxForm)
	req, ok := c.permit(w, r)
	switch {
	case !ok:
		return
	case !req.access.Act:
		http.Error(w, "this page is read-only", http.StatusForbidden)
		return
	}
	next, done, err := a(r.Context(), req)
	if err != nil {
		status := http.StatusBadGateway
		var input errInput
		switch {
		case errors.As(err, &input), errors.Is(err, redischannels.ErrInvalidArgument):
			status = http.StatusBadRequest
		case errors.Is(err, inspect.ErrNoGroup), errors.Is(err, inspect.ErrNoTopic):
			status = http.StatusNotFound
		}
		c.render(w, req, view{Title: "Not done", Section: "topics", Crumbs: req.crumbs(true), Problem: err.Error()}, status)
		return
	}
	http.SetCookie(w, &http.Cookie{
		Name: doneCookie, Value: base64.URLEncoding.EncodeToString([]byte(done)), Path: c.config.Prefix + "/",
		MaxAge: 10, HttpOnly: true, SameSite: http.SameSiteStrictMode,
	})
	http.Redirect(w, r, next, http.StatusSeeOther)
}

// doneCookie carries what an action has done to the page that follows.
const doneCookie = "redischannels-done"

// done returns what the last action has done, once.
func (c *Console) done(w http.ResponseWriter, r *http.Request) string {
	cookie, err := r.Cookie(doneCookie)
	if err != nil {
		return ""
	}
	http.SetCookie(w, &http.Cookie{Name: doneCookie, Path: c.config.Prefix + "/", MaxAge: -1})
	text, err := base64.URLEncoding.DecodeString(cookie.Value)
	if err != nil {
		return ""
	}
	return string(text)
}

// number reads a whole number of a form.
func (r request) number(field string, low, high int) (int, error) {
	n, err := strconv.Atoi(r.FormValue(field))
	if err != nil || n < low || n > high {
		return 0, errInput(fmt.Sprintf("%s must be a number of %d to %d, got %q", field, low, high, r.FormValue(field)))
	}
	return n, nil
}

// groupLink is the page of the group of an action.
func (r request) groupLink() string {
	return link(r.prefix, "topics", r.PathValue("topic"), "groups", r.PathValue("group"))
}

func pauseAction(ctx context.Context, r request) (next, done string, err error) {
	minutes, err := r.number("minutes", 0, 100_000)
	if err != nil {
		return "", "", err
	}
	options, until := inspect.PauseOptions{Reason: r.FormValue("reason")}, "until it is resumed"
	if minutes > 0 {
		options.Until = time.Now().Add(time.Duration(minutes) * time.Minute)
		until = fmt.Sprintf("for %d minutes", minutes)
	}
	err = r.inspector.Pause(ctx, r.PathValue("topic"), r.PathValue("group"), options)
	return r.groupLink(), "Paused " + until + ". Handlers in progress finish.", err
}

func resumeAction(ctx context.Context, r request) (next, done string, err error) {
	err = r.inspector.Resume(ctx, r.PathValue("topic"), r.PathValue("group"))
	return r.groupLink(), "Resumed.", err
}

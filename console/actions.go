package console

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
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
	"/topics/{topic}/requeue":               requeueAction,
	"/topics/{topic}/purge":                 purgeAction,
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

// longest is how long a browser waits for an action.
const longest = time.Minute

// selection reads which dead letters an action changes.
func (r request) selection() (inspect.DeadLetterSelection, error) {
	filter := r.deadFilter()
	most, err := r.number("max", 1, inspect.DefaultLimit)
	return inspect.DeadLetterSelection{Group: filter.Group, Reason: filter.Reason, Max: most, DryRun: r.FormValue("dry") != ""}, err
}

// deadLink is the page of the dead letters of an action.
func (r request) deadLink() string {
	filter := r.deadFilter()
	return link(r.prefix, "topics", r.PathValue("topic"), "dead") + "?" + url.Values{"group": {filter.Group}, "reason": {filter.Reason}}.Encode()
}

// changed writes what an action has done to dead letters, or would do.
func changed(verb string, selection inspect.DeadLetterSelection, c inspect.DeadLetterChange) string {
	more := ""
	if c.More {
		more = ", there are more"
	}
	if selection.DryRun {
		return fmt.Sprintf("%d dead letters would be %s%s.", len(c.IDs), verb, more)
	}
	text := fmt.Sprintf("%d dead letters were %s%s.", c.Changed, verb, more)
	outcomes := make(map[redischannels.RequeueOutcome]int)
	for _, u := range c.Unchanged {
		outcomes[u.Outcome]++
	}
	for _, outcome := range slices.Sorted(maps.Keys(outcomes)) {
		text += fmt.Sprintf(" %d were not: %s.", outcomes[outcome], outcome)
	}
	return text
}

func requeueAction(ctx context.Context, r request) (next, done string, err error) {
	selection, err := r.selection()
	if err != nil {
		return "", "", err
	}
	rate, err := r.number("rate", 0, 100_000)
	if err != nil {
		return "", "", err
	}
	if rate > 0 && time.Duration(selection.Max)*time.Second/time.Duration(rate) > longest {
		return "", "", errInput(fmt.Sprintf("%d dead letters at %d per second take longer than a minute: choose fewer, or a higher rate", selection.Max, rate))
	}
	selection.PerSecond = float64(rate)
	change, err := r.inspector.Requeue(ctx, r.PathValue("topic"), selection)
	return r.deadLink(), changed("requeued", selection, change), err
}

func purgeAction(ctx context.Context, r request) (next, done string, err error) {
	selection, err := r.selection()
	if err != nil {
		return "", "", err
	}
	if topic := r.PathValue("topic"); !selection.DryRun && r.FormValue("confirm") != topic {
		return "", "", errInput(fmt.Sprintf("this cannot be undone: type the name of the topic, %s", topic))
	}
	change, err := r.inspector.Purge(ctx, r.PathValue("topic"), selection)
	return r.deadLink(), changed("deleted", selection, change), err
}

package main

import (
	"strings"
	"time"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/inspect"
	"github.com/flaminco/redischannels/schedule"
)

type delayedCmd struct {
	Topic string `arg:""`
	Group string `arg:"" optional:"" help:"List the deferred retries of this group."`
	Limit int    `short:"n" help:"Greatest number." default:"50"`
}

func (delayedCmd) Help() string {
	return "Examples: redch delayed orders\n          redch delayed orders billing"
}

// waitingView is what waits, as JSON.
type waitingView struct {
	ID      string    `json:"id"`
	Due     time.Time `json:"due"`
	EntryID string    `json:"entryId,omitempty"`
	Reason  string    `json:"reason,omitempty"`
	Count   int       `json:"deliveries,omitempty"`
	Error   string    `json:"error,omitempty"`
}

func (c *delayedCmd) Run(a *app) error {
	ctx, cancel := a.read()
	defer cancel()
	if c.Group == "" {
		columns := []column{{"ID", true, false}, {"DUE IN", false, true}, {"DUE", false, false}}
		return list(a, columns, a.inspector.Delayed(ctx, c.Topic), c.Limit, func(m redischannels.DelayedMessage) []string {
			return []string{m.ID, age(time.Until(m.Due)), m.Due.UTC().Format(time.DateTime)}
		}, func(m redischannels.DelayedMessage) any {
			return waitingView{ID: m.ID, Due: m.Due.UTC(), Error: errorText(m.Err)}
		})
	}
	columns := []column{{"ENTRY", false, false}, {"DUE IN", false, true}, {"DELIVERIES", false, true}, {"REASON", true, false}}
	return list(a, columns, a.inspector.Deferred(ctx, c.Topic, c.Group), c.Limit, func(m inspect.DeferredMessage) []string {
		return []string{m.EntryID, age(time.Until(m.Due)), number(m.Count), m.Reason + errorText(m.Err)}
	}, func(m inspect.DeferredMessage) any {
		return waitingView{m.ID, m.Due, m.EntryID, m.Reason, m.Count, errorText(m.Err)}
	})
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

type schedulesCmd struct {
	Topic string `arg:""`
}

func (schedulesCmd) Help() string { return "Example: redch schedules reports" }

// scheduleView is a schedule as JSON.
type scheduleView struct {
	ID     string    `json:"id"`
	Cron   string    `json:"cron,omitempty"`
	Zone   string    `json:"zone,omitempty"`
	At     time.Time `json:"at,omitzero"`
	Next   time.Time `json:"next,omitzero"`
	Paused bool      `json:"paused"`
	Done   bool      `json:"done"`
	Last   string    `json:"last,omitempty"` // what became of the last tick
	Error  string    `json:"error,omitempty"`
}

func scheduleOf(s schedule.Info) scheduleView {
	v := scheduleView{ID: s.ID, Cron: s.Cron, Zone: s.Zone, At: s.At, Next: s.Next, Paused: s.Paused, Done: s.Done, Error: errorText(s.Err)}
	if len(s.Runs) > 0 {
		switch run := s.Runs[0]; {
		case run.Dead:
			v.Last = "dead letter"
		case run.Skipped:
			v.Last = "skipped"
		default:
			v.Last = run.EntryID
		}
	}
	return v
}

func (c *schedulesCmd) Run(a *app) error {
	ctx, cancel := a.read()
	defer cancel()
	columns := []column{{"ID", true, false}, {"WHEN", true, false}, {"NEXT IN", false, true}, {"STATE", false, false}, {"LAST", false, false}}
	return list(a, columns, a.inspector.Schedules(ctx, c.Topic), 0, func(s schedule.Info) []string {
		v := scheduleOf(s)
		when, next, state := strings.TrimSpace(v.Cron+" "+v.Zone), "-", "on"
		if v.Cron == "" {
			when = v.At.UTC().Format(time.DateTime)
		}
		if !v.Next.IsZero() {
			next = age(time.Until(v.Next))
		}
		switch {
		case v.Error != "":
			state = "error"
		case v.Paused:
			state = "paused"
		case v.Done:
			state = "done"
		}
		return []string{v.ID, when, next, state, v.Last}
	}, func(s schedule.Info) any { return scheduleOf(s) })
}

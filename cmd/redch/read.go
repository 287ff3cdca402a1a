package main

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/flaminco/redischannels/inspect"
)

type topicsCmd struct {
	Match string `arg:"" optional:"" help:"Pattern, such as 'orders*'. Quote it."`
	Limit int    `help:"Greatest number of topics." default:"10000"`
}

func (topicsCmd) Help() string {
	return "Example: redch topics 'orders*'\n\nStreams beside a topic, such as its dead letters, are left out."
}

func (c *topicsCmd) Run(a *app) error {
	ctx, cancel := a.read()
	defer cancel()
	var topics []inspect.Topic
	for topic, err := range a.inspector.Topics(ctx, inspect.TopicsQuery{Match: c.Match, Limit: c.Limit}) {
		if err != nil {
			return err
		}
		topics = append(topics, topic)
	}
	slices.SortFunc(topics, func(x, y inspect.Topic) int { return cmp.Compare(x.Name, y.Name) })
	columns := []column{{"TOPIC", true, false}, {"ENTRIES", false, true}, {"MEMORY", false, true}, {"LAST", false, true},
		{"GROUPS", false, true}, {"DELAYED", false, true}, {"DEAD", false, true}}
	return list(a, columns, all(topics), 0, func(t inspect.Topic) []string {
		if t.Problem != "" {
			return []string{t.Name, "?", "?", "?", "?", "?", "?"}
		}
		return []string{t.Name, number(t.Length), size(t.Bytes), since(t.Last), number(t.Groups), number(t.Delayed), number(t.DeadLetters)}
	}, same)
}

type groupsCmd struct {
	Topic string        `arg:""`
	Rate  time.Duration `help:"Look twice, so long apart, and print rates." placeholder:"TIME"`
}

func (groupsCmd) Help() string {
	return "Example: redch groups orders --rate 5s\n\n" +
		"LAG: entries not yet delivered; 10000+ where only a lower bound is known.\n" +
		"PENDING: delivered and not acknowledged, deferred and returned ones included.\n" +
		"OLDEST: age of the oldest pending entry.\nALIVE: consumers that read, of all.\n" +
		"With --rate: entries appended and finished per second, and how long the backlog takes."
}

// rated is a group with its rates.
type rated struct {
	inspect.Group
	Rate *inspect.Rate `json:"rate,omitempty"`
}

func (c *groupsCmd) Run(a *app) error {
	groups, err := c.look(a)
	if err != nil {
		return err
	}
	found := make([]rated, len(groups))
	for n := range groups {
		found[n].Group = groups[n]
	}
	if c.Rate > 0 {
		if err := c.rates(a, found); err != nil {
			return err
		}
	}
	columns := []column{{"GROUP", true, false}, {"LAG", false, true}, {"PENDING", false, true}, {"OLDEST", false, true}, {"ALIVE", false, true}, {"STATE", true, false}}
	if c.Rate > 0 {
		columns = append(columns, column{"IN/S", false, true}, column{"OUT/S", false, true}, column{"DRAIN", false, true})
	}
	return list(a, columns, all(found), 0, c.row, same)
}

func (c *groupsCmd) look(a *app) (groups []inspect.Group, err error) {
	ctx, cancel := a.read()
	defer cancel()
	for g, err := range a.inspector.Groups(ctx, c.Topic) {
		if err != nil {
			return nil, err
		}
		groups = append(groups, g)
	}
	return groups, nil
}

// rates looks again, and sets what is known then.
func (c *groupsCmd) rates(a *app, groups []rated) error {
	if !wait(a, c.Rate) {
		return a.Err()
	}
	again, err := c.look(a)
	if err != nil {
		return err
	}
	for n := range groups {
		for _, g := range again {
			if g.Name != groups[n].Name {
				continue
			}
			if rate, ok := g.Since(groups[n].Group); ok {
				groups[n].Rate = &rate
			}
			groups[n].Group = g
		}
	}
	return nil
}

func (c *groupsCmd) row(g rated) []string {
	row := []string{g.Name, g.Lag.String(), number(g.Group.Pending), since(g.OldestPending), fmt.Sprintf("%d/%d", g.Alive, g.Group.Consumers), stateOf(g.Group)}
	switch {
	case c.Rate <= 0:
		return row
	case g.Rate == nil:
		return append(row, "?", "?", "?")
	case g.Rate.Drain < 0:
		return append(row, fmt.Sprintf("%.1f", g.Rate.Appended), fmt.Sprintf("%.1f", g.Rate.Finished), "never")
	}
	return append(row, fmt.Sprintf("%.1f", g.Rate.Appended), fmt.Sprintf("%.1f", g.Rate.Finished), age(g.Rate.Drain))
}

func stateOf(g inspect.Group) string {
	switch {
	case g.Paused && g.PausedFor > 0:
		return "paused for " + age(g.PausedFor)
	case g.Paused:
		return "paused"
	case g.Alive == 0:
		return "no consumer"
	}
	return "live"
}

type consumersCmd struct {
	Topic string `arg:""`
	Group string `arg:""`
}

func (consumersCmd) Help() string { return "Example: redch consumers orders billing" }

func (c *consumersCmd) Run(a *app) error {
	ctx, cancel := a.read()
	defer cancel()
	consumers, err := a.inspector.Consumers(ctx, c.Topic, c.Group)
	if err != nil {
		return err
	}
	columns := []column{{"CONSUMER", true, false}, {"PENDING", false, true}, {"IDLE", false, true}, {"ALIVE", false, false}}
	return list(a, columns, all(consumers), 0, func(c inspect.Consumer) []string {
		return []string{c.Name, number(c.Pending), age(c.Idle), yesNo(c.Alive)}
	}, same)
}

type pendingCmd struct {
	Topic    string        `arg:""`
	Group    string        `arg:""`
	Consumer string        `help:"Only those of a consumer."`
	Idle     time.Duration `help:"Only those that were idle for so long." placeholder:"TIME"`
	Returned bool          `help:"Those of the group's return stream."`
	After    string        `help:"Only those behind an entry ID." placeholder:"ID"`
	Limit    int           `short:"n" help:"Greatest number." default:"50"`
}

func (pendingCmd) Help() string { return "Example: redch pending orders billing --idle 5m" }

func (c *pendingCmd) Run(a *app) error {
	ctx, cancel := a.read()
	defer cancel()
	columns := []column{{"ID", false, false}, {"CONSUMER", true, false}, {"IDLE", false, true}, {"DELIVERIES", false, true}}
	query := inspect.PendingQuery{Consumer: c.Consumer, MinIdle: c.Idle, Returned: c.Returned, After: c.After, Limit: c.Limit}
	return list(a, columns, a.inspector.Pending(ctx, c.Topic, c.Group, query), 0, func(e inspect.PendingEntry) []string {
		return []string{e.ID, e.Consumer, age(e.Idle), number(e.Deliveries)}
	}, same)
}

type auditCmd struct {
	Topic string `arg:""`
	Limit int    `short:"n" help:"Greatest number." default:"20"`
}

func (auditCmd) Help() string { return "Example: redch audit orders -n 5" }

func (c *auditCmd) Run(a *app) error {
	ctx, cancel := a.read()
	defer cancel()
	columns := []column{{"TIME", false, false}, {"WHO", true, false}, {"ACTION", false, false}, {"GROUP", true, false}, {"DETAILS", true, false}}
	return list(a, columns, a.inspector.Audit(ctx, c.Topic, c.Limit), 0, func(l inspect.AuditLine) []string {
		var details []string
		for _, key := range slices.Sorted(mapKeys(l.Details)) {
			details = append(details, key+"="+l.Details[key])
		}
		return []string{l.Time.UTC().Format(time.DateTime), l.Who, l.Action, l.Group, strings.Join(details, " ")}
	}, same)
}

package main

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/inspect"
	"github.com/flaminco/redischannels/schedule"
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

// format is a wire format.
type format struct {
	Format string `short:"f" help:"Wire format: ${enum}." enum:"watermill,flaminco,fields" default:"watermill"`
}

// marshaler is a wire format in both directions.
type marshaler interface {
	redischannels.Marshaler
	redischannels.Unmarshaler
}

func (f format) marshaler() marshaler {
	switch f.Format {
	case "flaminco":
		return redischannels.FlamincoMarshaler{}
	case "fields":
		return redischannels.FieldsMarshaler{}
	}
	return redischannels.WatermillMarshaler{}
}

// messageView is a message as JSON.
type messageView struct {
	ID       string            `json:"id"`
	Time     time.Time         `json:"time"`
	Bytes    int               `json:"bytes"`
	UUID     string            `json:"uuid,omitempty"`
	Metadata map[string]string `json:"metadata,omitempty"`
	Payload  string            `json:"payload,omitempty"`
	Fields   [][2]string       `json:"fields,omitempty"` // of an entry that cannot be decoded
	Error    string            `json:"error,omitempty"`
}

func viewOf(m inspect.Message) messageView {
	v := messageView{ID: m.ID, Time: m.Time, Bytes: m.Bytes}
	v.set(m.Message, m.Err, m.Fields)
	return v
}

// set sets the message, or what stands in the place of one that cannot be decoded.
func (v *messageView) set(msg *message.Message, err error, fields []redischannels.Field) {
	if err == nil {
		v.UUID, v.Metadata, v.Payload = msg.UUID, msg.Metadata, string(msg.Payload)
		return
	}
	v.Error = err.Error()
	for _, f := range fields {
		v.Fields = append(v.Fields, [2]string{f.Name, string(f.Value)})
	}
}

// print prints a message in full.
func (v messageView) print(a *app) error {
	if a.Output == "json" {
		return a.json(v)
	}
	rows := [][2]string{{"id", v.ID}, {"time", v.Time.UTC().Format(time.RFC3339Nano)}, {"bytes", number(v.Bytes)}}
	if v.UUID != "" {
		rows = append(rows, [2]string{"uuid", v.UUID})
	}
	for _, key := range slices.Sorted(mapKeys(v.Metadata)) {
		rows = append(rows, [2]string{"metadata", key + " = " + v.Metadata[key]})
	}
	if v.Error != "" {
		rows = append(rows, [2]string{"error", v.Error})
	}
	for _, f := range v.Fields {
		rows = append(rows, [2]string{"field", f[0] + " = " + f[1]})
	}
	for _, row := range rows {
		fmt.Fprintf(a.out, "%-9s %s\n", row[0], printable(row[1]))
	}
	if v.Error == "" {
		fmt.Fprintf(a.out, "payload   %s\n", printable(v.Payload))
	}
	return nil
}

func mapKeys(m map[string]string) func(func(string) bool) {
	return func(yield func(string) bool) {
		for key := range m {
			if !yield(key) {
				return
			}
		}
	}
}

type showCmd struct {
	Topic string `arg:""`
	ID    string `arg:"" help:"Entry ID."`
	format
}

func (showCmd) Help() string { return "Example: redch show orders 1700000000000-0" }

func (c *showCmd) Run(a *app) error {
	ctx, cancel := a.read()
	defer cancel()
	m, err := a.inspector.Message(ctx, c.Topic, c.ID, c.marshaler())
	if err != nil {
		return err
	}
	return viewOf(m).print(a)
}

type tailCmd struct {
	Topic  string `arg:""`
	Last   int    `short:"n" help:"How many of the newest messages to begin with." default:"10"`
	Follow bool   `help:"Continue with those that come." default:"true" negatable:""`
	format
}

func (tailCmd) Help() string {
	return "Example: redch tail orders -n 20 --no-follow\n\nIt joins no group and acknowledges nothing. It looks twice a second."
}

// tailEvery is how often tail looks.
const tailEvery = 500 * time.Millisecond

func (c *tailCmd) Run(a *app) error {
	var newest []inspect.Message
	query := inspect.MessagesQuery{Newest: true, Limit: max(1, c.Last), Unmarshaler: c.marshaler()}
	err := c.each(a, query, func(m inspect.Message) { newest = append(newest, m) })
	if err != nil {
		return err
	}
	slices.Reverse(newest)
	query = inspect.MessagesQuery{Unmarshaler: query.Unmarshaler}
	for _, m := range newest {
		query.After = m.ID
		if c.Last > 0 {
			c.line(a, m)
		}
	}
	for c.Follow && wait(a, tailEvery) {
		err := c.each(a, query, func(m inspect.Message) {
			query.After = m.ID
			c.line(a, m)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (c *tailCmd) each(a *app, query inspect.MessagesQuery, see func(inspect.Message)) error {
	ctx, cancel := a.read()
	defer cancel()
	for m, err := range a.inspector.Messages(ctx, c.Topic, query) {
		if err != nil {
			return err
		}
		see(m)
	}
	return nil
}

// line prints a message in one line.
func (c *tailCmd) line(a *app, m inspect.Message) {
	v := viewOf(m)
	if a.Output == "json" {
		_ = jsonLine(a, v)
		return
	}
	content := v.Payload
	if v.Error != "" {
		content = "(" + v.Error + ")"
	}
	fmt.Fprintf(a.out, "%s  %s\n", v.ID, cut(printable(content), a.Width-len(v.ID)-2))
}

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

type doctorCmd struct{}

func (doctorCmd) Help() string {
	return "Example: redch doctor\n\nIt changes nothing. A critical finding is exit code 3."
}

func (c *doctorCmd) Run(a *app) error {
	ctx, cancel := a.read()
	defer cancel()
	findings, err := a.inspector.Doctor(ctx)
	if err != nil {
		return err
	}
	critical := slices.ContainsFunc(findings, func(f inspect.Finding) bool { return f.Severity == inspect.SeverityCritical })
	if a.Output == "json" {
		err = a.json(findings)
	} else {
		for _, f := range findings {
			fmt.Fprintf(a.out, "%s: %s (%s)\n  %s\n  %s\n", f.Severity, f.Check, strings.TrimSpace(f.Node+" "+f.Topic+" "+f.Group), f.Problem, f.Action)
		}
		if len(findings) == 0 {
			fmt.Fprintln(a.out, "nothing was found")
		}
	}
	if err == nil && critical {
		err = errCheck
	}
	return err
}

type checkCmd struct {
	Topic      string        `arg:""`
	Group      string        `arg:""`
	MaxBacklog int64         `help:"Greatest lag and pending entries together." default:"-1" placeholder:"N"`
	MaxAge     time.Duration `help:"Greatest age of the oldest pending entry." placeholder:"TIME"`
	MinAlive   int           `help:"Least number of consumers that are alive." default:"1"`
	Paused     bool          `help:"A paused group is no failure."`
}

func (checkCmd) Help() string {
	return "Example: redch check orders billing --max-backlog 1000 --max-age 10m"
}

// checkView is the result of a check as JSON.
type checkView struct {
	OK       bool     `json:"ok"`
	Problems []string `json:"problems"`
}

func (c *checkCmd) Run(a *app) error {
	ctx, cancel := a.read()
	defer cancel()
	g, err := a.inspector.Group(ctx, c.Topic, c.Group)
	if err != nil {
		return err
	}
	problems := []string{}
	if g.Paused && !c.Paused {
		problems = append(problems, "the group is paused: "+g.PauseReason)
	}
	if c.MaxBacklog >= 0 && g.Backlog() > c.MaxBacklog {
		problems = append(problems, fmt.Sprintf("the backlog is %d, more than %d", g.Backlog(), c.MaxBacklog))
	}
	if old := time.Since(g.OldestPending); c.MaxAge > 0 && !g.OldestPending.IsZero() && old > c.MaxAge {
		problems = append(problems, fmt.Sprintf("the oldest pending entry is %s old, more than %s", age(old), age(c.MaxAge)))
	}
	if g.Alive < c.MinAlive {
		problems = append(problems, fmt.Sprintf("%d consumers are alive, fewer than %d", g.Alive, c.MinAlive))
	}
	verdict := "ok: lag " + g.Lag.String() + ", pending " + number(g.Pending)
	if len(problems) > 0 {
		verdict = "failed: " + strings.Join(problems, "; ")
	}
	err = a.say(checkView{len(problems) == 0, problems}, "%s", verdict)
	if err == nil && len(problems) > 0 {
		err = errCheck
	}
	return err
}

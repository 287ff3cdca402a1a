package console

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/inspect"
)

// page reads what it shows. It is called again and again while it is open.
type page func(ctx context.Context, c *Console, r request) (view, error)

// pages by their paths below Config.Prefix.
var pages = map[string]page{
	"/{$}":                           topicsPage,
	"/doctor":                        doctorPage,
	"/topics/{topic}":                topicPage,
	"/topics/{topic}/groups/{group}": groupPage,
	"/topics/{topic}/messages":       messagesPage,
	"/topics/{topic}/dead":           deadPage,
	"/topics/{topic}/delayed":        delayedPage,
}

const (
	pageRows     = 50      // messages, dead letters, pending entries on a page
	payloadShown = 4 << 10 // bytes of a payload that are shown
)

// topicRow is a topic in the list.
type topicRow struct {
	inspect.Topic
	Lag    int64 // the highest of its groups
	Paused bool  // one of them is
}

func topicsPage(ctx context.Context, c *Console, r request) (view, error) {
	query := r.FormValue("q")
	var rows []topicRow
	for topic, err := range r.inspector.Topics(ctx, inspect.TopicsQuery{Match: containing(query), Limit: maxTopics + 1}) {
		if err != nil {
			return view{}, err
		}
		row := topicRow{Topic: topic}
		for _, g := range c.samples.ofTopic(topic.Name) {
			row.Lag, row.Paused = max(row.Lag, g.Lag.AtLeast), row.Paused || g.Paused
		}
		rows = append(rows, row)
	}
	more := len(rows) > maxTopics
	rows = rows[:min(len(rows), maxTopics)]
	slices.SortFunc(rows, func(a, b topicRow) int { return strings.Compare(a.Name, b.Name) })
	return view{Title: "Topics", Section: "topics", Parts: []part{
		{ID: "search", Name: "search", Data: query},
		{ID: "topics", Name: "topics", Data: struct {
			Query string
			Rows  []topicRow
			More  bool
		}{query, rows, more}},
	}}, nil
}

// containing returns a pattern of SCAN for names that contain a text.
func containing(text string) string {
	if text == "" {
		return ""
	}
	return "*" + strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`, `]`, `\]`).Replace(text) + "*"
}

func doctorPage(ctx context.Context, _ *Console, r request) (view, error) {
	findings, err := r.inspector.Doctor(ctx, inspect.DoctorQuery{Limit: maxTopics + maxGroups})
	return view{Title: "Doctor", Section: "doctor", Parts: []part{{ID: "doctor", Name: "doctor", Data: findings}}}, err
}

// crumbs lead from the list to a page of a topic.
func (r request) crumbs(topic bool) []crumb {
	all := []crumb{{"Topics", link(r.prefix) + "/"}}
	if topic {
		all = append(all, crumb{r.PathValue("topic"), link(r.prefix, "topics", r.PathValue("topic"))})
	}
	return all
}

func topicPage(ctx context.Context, _ *Console, r request) (view, error) {
	topic, err := r.inspector.Topic(ctx, r.PathValue("topic"))
	if err != nil {
		return view{}, err
	}
	var groups []groupRow
	for group, err := range r.inspector.Groups(ctx, topic.Name) {
		if err != nil && !errors.Is(err, inspect.ErrNoTopic) { // only dead letters or delayed messages are there
			return view{}, err
		}
		if err == nil {
			groups = append(groups, newGroupRow(group, r.now))
		}
	}
	return view{Title: topic.Name, Section: "topics", Crumbs: r.crumbs(false), Parts: []part{
		{ID: "topic", Name: "topic", Data: struct {
			inspect.Topic
			Groups []groupRow
		}{topic, groups}},
	}}, nil
}

// groupRow is a group as pages show it.
type groupRow struct {
	inspect.Group
	Oldest time.Duration // age of the oldest pending entry
	Drain  string
	Charts []chart
}

func newGroupRow(g inspect.Group, now time.Time) groupRow {
	row := groupRow{Group: g, Drain: "not known"}
	if !g.OldestPending.IsZero() {
		row.Oldest = max(time.Millisecond, now.Sub(g.OldestPending))
	}
	return row
}

func groupPage(ctx context.Context, c *Console, r request) (view, error) {
	topic, name := r.PathValue("topic"), r.PathValue("group")
	group, err := r.inspector.Group(ctx, topic, name)
	if err != nil {
		return view{}, err
	}
	consumers, err := r.inspector.Consumers(ctx, topic, name)
	if err != nil {
		return view{}, err
	}
	var pending []inspect.PendingEntry
	for entry, err := range r.inspector.Pending(ctx, topic, name, inspect.PendingQuery{Limit: pageRows + 1}) {
		if err != nil {
			return view{}, err
		}
		pending = append(pending, entry)
	}
	row := newGroupRow(group, r.now)
	samples := c.samples.ofGroup(groupKey{topic, name})
	row.Charts = chartsOf(samples, r.now)
	if n := len(samples); n > 0 && samples[n-1].known {
		row.Drain = drain(samples[n-1].rate, group)
	}
	return view{Title: name, Section: "topics", Crumbs: r.crumbs(true), Parts: []part{
		{ID: "group", Name: "group", Data: row},
		{ID: "pause", Name: "pause", Data: row},
		{ID: "consumers", Name: "consumers", Data: consumers},
		{ID: "pending", Name: "pending", Data: struct {
			Rows []inspect.PendingEntry
			More bool
		}{pending[:min(len(pending), pageRows)], len(pending) > pageRows}},
	}}, nil
}

// drain writes how long the backlog of a group lasts.
func drain(rate inspect.Rate, g inspect.Group) string {
	switch {
	case g.Lag.AtMost == 0:
		return "keeps up"
	case rate.Drain < 0:
		return "never at this rate"
	}
	return age(rate.Drain)
}

// body is a message as pages show it.
type body struct {
	Hidden   bool
	Problem  string
	Metadata []pair
	Text     string
	Cut      int64 // bytes that are shown, 0 for all
	Size     int64
}

type pair struct{ Key, Value string }

// newBody shows a message, or only its size where the request may not see payloads.
func (r request) newBody(fields []redischannels.Field, msg *message.Message, err error) body {
	b := body{Hidden: !r.access.Payloads}
	for _, f := range fields {
		b.Size += int64(len(f.Name) + len(f.Value))
	}
	switch {
	case b.Hidden:
		return b
	case err != nil:
		b.Problem = err.Error()
		for _, f := range fields {
			b.Metadata = append(b.Metadata, pair{f.Name, string(f.Value)})
		}
	default:
		b.Metadata = append(b.Metadata, pair{"uuid", msg.UUID})
		for _, key := range slices.Sorted(maps.Keys(msg.Metadata)) {
			b.Metadata = append(b.Metadata, pair{key, msg.Metadata[key]})
		}
		b.Text = string(msg.Payload)
	}
	for i := range b.Metadata {
		b.Metadata[i].Value, _ = shown(b.Metadata[i].Value)
	}
	b.Text, b.Cut = shown(b.Text)
	return b
}

// shown returns the beginning of a text, and its length if that is not all.
func shown(text string) (string, int64) {
	cut := int64(0)
	if len(text) > payloadShown {
		text, cut = text[:payloadShown], payloadShown
	}
	return strings.ToValidUTF8(text, "\ufffd"), cut
}

type messageRow struct {
	ID   string
	Time time.Time
	Body body
}

func messagesPage(ctx context.Context, c *Console, r request) (view, error) {
	data := struct {
		Topic, After, Next string
		Rows               []messageRow
	}{Topic: r.PathValue("topic"), After: r.FormValue("after")}
	for m, err := range r.inspector.Messages(ctx, data.Topic, inspect.MessagesQuery{After: data.After, Newest: data.After == "", Limit: pageRows, Unmarshaler: c.config.Unmarshaler}) {
		if err != nil {
			return view{}, err
		}
		data.Rows = append(data.Rows, messageRow{m.ID, m.Time, r.newBody(m.Fields, m.Message, m.Err)})
	}
	if data.After == "" {
		slices.Reverse(data.Rows)
	} else if len(data.Rows) == pageRows {
		data.Next = data.Rows[pageRows-1].ID
	}
	return view{Title: "Messages", Section: "topics", Crumbs: r.crumbs(true), Parts: []part{{ID: "messages", Name: "messages", Data: data}}}, nil
}

type letterRow struct {
	redischannels.DeadLetter
	Body body
}

// deadFilter says which dead letters a page shows or an action changes.
type deadFilter struct{ Group, Reason string }

func (r request) deadFilter() deadFilter {
	return deadFilter{r.FormValue("group"), r.FormValue("reason")}
}

func deadPage(ctx context.Context, c *Console, r request) (view, error) {
	topic, filter := r.PathValue("topic"), r.deadFilter()
	reasons, err := r.inspector.DeadLetterReasons(ctx, topic, filter.Group)
	if err != nil {
		return view{}, err
	}
	letters := struct {
		deadFilter
		Topic, Next string
		Rows        []letterRow
	}{deadFilter: filter, Topic: topic}
	for letter, err := range r.inspector.DeadLetters(ctx, topic, redischannels.DeadLetterQuery{Group: filter.Group, After: r.FormValue("after")}) {
		if err != nil {
			return view{}, err
		}
		if filter.Reason != "" && letter.Reason != filter.Reason {
			continue
		}
		if len(letters.Rows) == pageRows {
			letters.Next = letters.Rows[pageRows-1].ID
			break
		}
		msg, err := letter.Message(c.config.Unmarshaler)
		letters.Rows = append(letters.Rows, letterRow{letter, r.newBody(letter.Fields, msg, err)})
	}
	return view{Title: "Dead letters", Section: "topics", Crumbs: r.crumbs(true), Parts: []part{
		{ID: "reasons", Name: "reasons", Data: struct {
			Topic string
			inspect.DeadLetterReasons
		}{topic, reasons}},
		{ID: "actions", Name: "deadactions", Data: struct {
			deadFilter
			Topic string
		}{filter, topic}},
		{ID: "letters", Name: "letters", Data: letters},
	}}, nil
}

type delayedRow struct {
	ID   string
	Due  time.Time
	In   time.Duration
	Body body
}

func delayedPage(ctx context.Context, c *Console, r request) (view, error) {
	data := struct {
		Rows []delayedRow
		More bool
	}{}
	for m, err := range r.inspector.Delayed(ctx, r.PathValue("topic")) {
		if err != nil {
			return view{}, err
		}
		if data.More = len(data.Rows) == pageRows; data.More {
			break
		}
		var msg *message.Message
		if err = m.Err; err == nil {
			msg, err = m.Entry().Message(c.config.Unmarshaler)
		}
		data.Rows = append(data.Rows, delayedRow{m.ID, m.Due, max(0, m.Due.Sub(r.now)), r.newBody(m.Fields, msg, err)})
	}
	return view{Title: "Delayed messages", Section: "topics", Crumbs: r.crumbs(true), Parts: []part{{ID: "delayed", Name: "delayed", Data: data}}}, nil
}

package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/inspect"
)

// jsonLine prints JSON in one line.
func jsonLine(a *app, v any) error {
	encoder := json.NewEncoder(a.out)
	encoder.SetEscapeHTML(false)
	return encoder.Encode(v)
}

// cut shortens a text.
func cut(s string, most int) string {
	runes := []rune(s)
	if len(runes) <= most || most < 1 {
		return s
	}
	return string(runes[:most-1]) + "…"
}

// confirm is what cannot be undone.
type confirm struct {
	Confirm string `help:"Name of the topic, instead of typing it when asked." placeholder:"NAME"`
}

// ask has the name of the topic typed.
func (c confirm) ask(a *app, topic, what string) error {
	name := c.Confirm
	if name == "" {
		fmt.Fprintf(a.out, "%s This cannot be undone.\nType the name of the topic: ", what)
		line, err := bufio.NewReader(a.in).ReadString('\n')
		if err != nil && err != io.EOF {
			return err
		}
		name = strings.TrimSpace(line)
		fmt.Fprintln(a.out)
	}
	if name != topic {
		return fmt.Errorf("nothing was done: %q is not the name of the topic, %q", name, topic)
	}
	return nil
}

type produceCmd struct {
	Topic    string            `arg:""`
	Payload  string            `arg:"" optional:"" help:"Payload; standard input without one."`
	Metadata map[string]string `short:"m" help:"Metadata, such as -m name=order." placeholder:"KEY=VALUE"`
	UUID     string            `help:"UUID of the message. Defaults to a new one."`
	DryRun   bool              `help:"Publish nothing."`
	format
}

func (produceCmd) Help() string {
	return "Example: redch produce orders '{\"id\":1}' -m name=order.placed"
}

func (c *produceCmd) Run(a *app) error {
	msg, err := c.message(a)
	if err != nil {
		return err
	}
	if c.DryRun {
		return c.plan(a, msg)
	}
	pub, err := redischannels.NewPublisher(redischannels.PublisherConfig{Client: a.client, Marshaler: c.marshaler()}, watermill.NopLogger{})
	if err != nil {
		return err
	}
	defer pub.Close()
	ctx, cancel := a.read()
	defer cancel()
	ids, err := pub.Append(ctx, c.Topic, msg)
	if err != nil {
		return err
	}
	return a.say(map[string]string{"id": ids[0], "uuid": msg.UUID}, "%s", ids[0])
}

// message is the one to publish.
func (c *produceCmd) message(a *app) (*message.Message, error) {
	payload := []byte(c.Payload)
	if c.Payload == "" {
		var err error
		if payload, err = io.ReadAll(a.in); err != nil {
			return nil, err
		}
	}
	if c.UUID == "" {
		c.UUID = watermill.NewUUID()
	}
	msg := message.NewMessage(c.UUID, payload)
	for key, value := range c.Metadata {
		msg.Metadata.Set(key, value)
	}
	return msg, nil
}

// plan prints the message that would be published.
func (c *produceCmd) plan(a *app, msg *message.Message) error {
	fields, err := c.marshaler().Marshal(c.Topic, msg)
	if err != nil {
		return err
	}
	v := messageView{}
	for _, f := range fields {
		v.Bytes += len(f.Name) + len(f.Value)
	}
	v.set(msg, nil, nil)
	if err := v.print(a); err != nil || a.Output == "json" {
		return err
	}
	return a.say(nil, "would be published to %s", printable(c.Topic))
}

type deadCmd struct {
	Reasons deadReasonsCmd `cmd:"" help:"Count dead letters by group and reason."`
	List    deadListCmd    `cmd:"" help:"List dead letters."`
	Show    deadShowCmd    `cmd:"" help:"Show a dead letter with its message."`
	Requeue deadRequeueCmd `cmd:"" help:"Give dead letters back to the groups that failed."`
	Purge   deadPurgeCmd   `cmd:"" help:"Delete dead letters."`
}

type deadReasonsCmd struct {
	Topic string `arg:""`
	Group string `help:"Only those of a group."`
}

func (deadReasonsCmd) Help() string { return "Example: redch dead reasons orders" }

func (c *deadReasonsCmd) Run(a *app) error {
	ctx, cancel := a.read()
	defer cancel()
	found, err := a.inspector.DeadLetterReasons(ctx, c.Topic, c.Group)
	if err != nil {
		return err
	}
	if a.Output == "json" {
		return a.json(found)
	}
	columns := []column{{"GROUP", true, false}, {"COUNT", false, true}, {"FIRST", false, true}, {"LAST", false, true}, {"NEWEST ID", false, false}, {"REASON", true, false}}
	err = list(a, columns, all(found.Reasons), 0, func(r inspect.DeadLetterReason) []string {
		return []string{r.Group, number(r.Count), since(r.First), since(r.Last), r.ID, r.Reason}
	}, same)
	if found.More {
		fmt.Fprintf(a.out, "only the oldest %d were counted\n", found.Counted)
	}
	return err
}

type deadListCmd struct {
	Topic string `arg:""`
	Group string `help:"Only those of a group."`
	After string `help:"Only those behind the ID of a dead letter." placeholder:"ID"`
	Limit int    `short:"n" help:"Greatest number." default:"50"`
}

func (deadListCmd) Help() string { return "Example: redch dead list orders --group billing" }

// deadView is a dead letter as JSON.
type deadView struct {
	messageView
	EntryID  string `json:"entryId"`
	Group    string `json:"group"`
	Consumer string `json:"consumer"`
	Reason   string `json:"reason"`
	Count    int    `json:"deliveries"`
}

func deadOf(l redischannels.DeadLetter, f format) deadView {
	v := deadView{messageView{ID: l.ID, Time: l.Time.UTC()}, l.EntryID, l.Group, l.Consumer, l.Reason, l.Count}
	for _, field := range l.Fields {
		v.Bytes += len(field.Name) + len(field.Value)
	}
	msg, err := l.Message(f.marshaler())
	v.set(msg, err, l.Fields)
	return v
}

func (c *deadListCmd) Run(a *app) error {
	ctx, cancel := a.read()
	defer cancel()
	columns := []column{{"ID", false, false}, {"AGE", false, true}, {"GROUP", true, false}, {"ENTRY", false, false}, {"N", false, true}, {"REASON", true, false}}
	loop := a.inspector.DeadLetters(ctx, c.Topic, redischannels.DeadLetterQuery{Group: c.Group, After: c.After, Limit: c.Limit})
	return list(a, columns, loop, 0, func(l redischannels.DeadLetter) []string {
		return []string{l.ID, since(l.Time), l.Group, l.EntryID, number(l.Count), l.Reason}
	}, func(l redischannels.DeadLetter) any { return deadOf(l, format{}) })
}

type deadShowCmd struct {
	Topic string `arg:""`
	ID    string `arg:"" help:"ID of the dead letter."`
	format
}

func (deadShowCmd) Help() string { return "Example: redch dead show orders 1700000000000-0" }

func (c *deadShowCmd) Run(a *app) error {
	ctx, cancel := a.read()
	defer cancel()
	for letter, err := range a.inspector.DeadLetters(ctx, c.Topic, redischannels.DeadLetterQuery{}) {
		if err != nil {
			return err
		}
		if letter.ID != c.ID {
			continue
		}
		v := deadOf(letter, c.format)
		if a.Output == "json" {
			return a.json(v)
		}
		fmt.Fprintf(a.out, "entry     %s\ngroup     %s\nconsumer  %s\nreason    %s\ncount     %d\n", v.EntryID, printable(v.Group), printable(v.Consumer), printable(v.Reason), v.Count)
		return v.print(a)
	}
	return fmt.Errorf("%w: there is no dead letter %s", inspect.ErrNoEntry, c.ID)
}

// selection are the flags that choose dead letters.
type selection struct {
	Topic  string   `arg:""`
	IDs    []string `arg:"" optional:"" name:"id" help:"Only these dead letters."`
	Group  string   `help:"Only those of a group."`
	Reason string   `help:"Only those of a reason, the whole text."`
	Max    int      `help:"Greatest number." default:"10000"`
	Rate   float64  `help:"How many in a second." placeholder:"N"`
	DryRun bool     `help:"Only list what would be changed."`
}

func (s selection) options() inspect.DeadLetterSelection {
	return inspect.DeadLetterSelection{Group: s.Group, Reason: s.Reason, IDs: s.IDs, Max: s.Max, PerSecond: s.Rate, DryRun: s.DryRun}
}

// report prints what was done.
func (s selection) report(a *app, verb string, change inspect.DeadLetterChange, err error) error {
	if s.DryRun && err == nil {
		if a.Output == "json" {
			return a.json(change)
		}
		for _, id := range change.IDs {
			fmt.Fprintln(a.out, id)
		}
		fmt.Fprintf(a.out, "%d dead letters would be %s\n", len(change.IDs), verb)
		return nil
	}
	if a.Output == "json" {
		if printed := a.json(change); err == nil {
			err = printed
		}
		return err
	}
	for _, r := range change.Unchanged {
		fmt.Fprintf(a.out, "%s stays: %s\n", r.ID, r.Outcome)
	}
	fmt.Fprintf(a.out, "%d of %d dead letters were %s\n", change.Changed, len(change.IDs), verb)
	if change.More {
		fmt.Fprintln(a.out, "there are more: --max")
	}
	return err
}

type deadRequeueCmd struct{ selection }

func (deadRequeueCmd) Help() string {
	return "Example: redch dead requeue orders --group billing --rate 50 --dry-run"
}

func (c *deadRequeueCmd) Run(a *app) error {
	change, err := a.inspector.Requeue(a, c.Topic, c.options())
	return c.report(a, "requeued", change, err)
}

type deadPurgeCmd struct {
	selection
	confirm
}

func (deadPurgeCmd) Help() string {
	return "Example: redch dead purge orders --reason 'no such customer' --dry-run"
}

func (c *deadPurgeCmd) Run(a *app) error {
	options := c.options()
	if !c.DryRun {
		// Exactly what is shown is purged.
		options.DryRun = true
		plan, err := a.inspector.Purge(a, c.Topic, options)
		if err != nil || len(plan.IDs) == 0 {
			return c.report(a, "purged", plan, err)
		}
		if err := c.ask(a, c.Topic, fmt.Sprintf("%d dead letters of %s will be deleted.", len(plan.IDs), printable(c.Topic))); err != nil {
			return err
		}
		options.DryRun, options.IDs = false, plan.IDs
	}
	change, err := a.inspector.Purge(a, c.Topic, options)
	return c.report(a, "purged", change, err)
}

type pauseCmd struct {
	Topic  string        `arg:""`
	Group  string        `arg:""`
	For    time.Duration `help:"Resume by itself after that." placeholder:"TIME"`
	Reason string        `help:"Why."`
	DryRun bool          `help:"Change nothing."`
}

func (pauseCmd) Help() string {
	return "Example: redch pause orders billing --for 30m --reason 'the bank is down'"
}

func (c *pauseCmd) Run(a *app) error {
	options := inspect.PauseOptions{Reason: c.Reason}
	if c.For > 0 {
		options.Until = time.Now().Add(c.For)
	}
	return groupAction(a, c.Topic, c.Group, c.DryRun, "paused", func() error {
		return a.inspector.Pause(a, c.Topic, c.Group, options)
	})
}

type resumeCmd struct {
	Topic  string `arg:""`
	Group  string `arg:""`
	DryRun bool   `help:"Change nothing."`
}

func (resumeCmd) Help() string { return "Example: redch resume orders billing" }

func (c *resumeCmd) Run(a *app) error {
	return groupAction(a, c.Topic, c.Group, c.DryRun, "resumed", func() error { return a.inspector.Resume(a, c.Topic, c.Group) })
}

// groupAction does something to a group, or says that it would.
func groupAction(a *app, topic, group string, dryRun bool, verb string, do func() error) error {
	would := ""
	if dryRun {
		would = "would be "
		do = func() error { _, err := a.inspector.Group(a, topic, group); return err }
	}
	if err := do(); err != nil {
		return err
	}
	return a.say(map[string]any{"topic": topic, "group": group, "action": verb, "dryRun": dryRun}, "group %s of %s %s%s", printable(group), printable(topic), would, verb)
}

type skipCmd struct {
	Topic    string `arg:""`
	Group    string `arg:""`
	ID       string `arg:"" help:"ID of the pending entry."`
	Returned bool   `help:"The entry is pending in the group's return stream."`
	Drop     bool   `help:"Make no dead letter of it."`
	Reason   string `help:"Why."`
	DryRun   bool   `help:"Change nothing."`
	confirm
}

func (skipCmd) Help() string {
	return "Example: redch skip orders billing 1700000000000-0 --reason 'bad address'\n\n" +
		"The entry becomes a dead letter. For an entry that a consumer has this can last for MinIdle."
}

func (c *skipCmd) Run(a *app) error {
	if c.Drop && !c.DryRun {
		if err := c.ask(a, c.Topic, fmt.Sprintf("Entry %s will be dropped for group %s.", printable(c.ID), printable(c.Group))); err != nil {
			return err
		}
	}
	options := inspect.SkipOptions{Returned: c.Returned, Drop: c.Drop, Reason: c.Reason, DryRun: c.DryRun}
	done, err := a.inspector.Skip(a, c.Topic, c.Group, c.ID, options)
	if err != nil {
		return err
	}
	verb := "skipped"
	if c.DryRun {
		verb = "would be skipped"
	}
	if done.DeadLetter != "" {
		verb += ": dead letter " + done.DeadLetter
	}
	return a.say(done, "entry %s (delivered %d times, last to %s) %s", done.EntryID, done.Deliveries, printable(done.Consumer), verb)
}

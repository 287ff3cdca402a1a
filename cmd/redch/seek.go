package main

import (
	"fmt"
	"strings"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/inspect"
)

type seekCmd struct {
	Topic       string `arg:""`
	Group       string `arg:""`
	To          string `required:"" placeholder:"POSITION" help:"Where it continues: oldest, latest, after:ID, or since:TIME in ms."`
	DropPending bool   `help:"Drop pending, deferred and returned entries."`
	DryRun      bool   `help:"Change nothing."`
	confirm
}

func (seekCmd) Help() string {
	return "Example: redch seek orders billing --to oldest --dry-run\n\n" +
		"Pause the group before, and resume it afterwards. While handlers are at work it is refused."
}

func (c *seekCmd) Run(a *app) error {
	options := inspect.SeekOptions{To: redischannels.Position(c.To), DropPending: c.DropPending}
	plan, err := a.inspector.SeekPlan(a, c.Topic, c.Group, options)
	if err != nil {
		return err
	}
	if c.DryRun {
		return a.say(plan, "%s", c.describe(plan))
	}
	what := fmt.Sprintf("%s\nGroup %s of %s moves to %s.", c.describe(plan), printable(c.Group), printable(c.Topic), printable(c.To))
	if err := c.ask(a, c.Topic, what); err != nil {
		return err
	}
	if err := a.inspector.Seek(a, c.Topic, c.Group, options); err != nil {
		return err
	}
	return a.say(plan, "group %s reads from %s", printable(c.Group), plan.To)
}

func (c *seekCmd) describe(p inspect.SeekPlan) string {
	lines := []string{
		fmt.Sprintf("from %s to %s", p.From, p.To),
		fmt.Sprintf("%d delivered again, %d skipped", p.Redelivered, p.Skipped),
	}
	verb := "stay"
	if c.DropPending {
		verb = "are dropped"
	}
	lines = append(lines, fmt.Sprintf("%d pending, %d deferred and %d returned entries %s", p.Pending, p.Deferred, p.Returned, verb))
	if p.Trimmed {
		lines = append(lines, "entries before "+p.First+" are trimmed")
	}
	if !p.Paused {
		lines = append(lines, "the group is not paused: pause it first")
	}
	if len(p.Busy) > 0 {
		lines = append(lines, "at work: "+printable(strings.Join(p.Busy, ", ")))
	}
	return strings.Join(lines, "\n")
}

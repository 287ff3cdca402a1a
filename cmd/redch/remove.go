package main

import (
	"errors"
	"fmt"

	"github.com/flaminco/redischannels/inspect"
)

type removeCmd struct {
	Topic    string `arg:""`
	Group    string `arg:""`
	Consumer string `arg:""`
	Release  bool   `help:"Release its pending entries to the other consumers first, also if it is alive."`
	DryRun   bool   `help:"Change nothing."`
}

func (removeCmd) Help() string {
	return "Example: redch remove orders billing web-3f0c --release\n\n" +
		"Without --release a consumer that is alive or has pending entries is refused."
}

func (c *removeCmd) Run(a *app) error {
	done, err := a.inspector.RemoveConsumer(a, c.Topic, c.Group, c.Consumer, inspect.RemoveConsumerOptions{Release: c.Release, DryRun: c.DryRun})
	if err != nil {
		return err
	}
	verb := "was removed"
	if c.DryRun {
		verb = "would be removed"
	}
	return a.say(done, "consumer %s %s, %d entries released", printable(c.Consumer), verb, done.Released)
}

type removeGroupCmd struct {
	Topic  string `arg:""`
	Group  string `arg:""`
	DryRun bool   `help:"Change nothing."`
	confirm
}

func (removeGroupCmd) Help() string {
	return "Example: redch remove-group orders billing --dry-run\n\n" +
		"Stop its consumers before. What waits for the group alone is not delivered again; dead letters stay."
}

func (c *removeGroupCmd) Run(a *app) error {
	plan, err := a.inspector.RemoveGroup(a, c.Topic, c.Group, inspect.RemoveGroupOptions{DryRun: true})
	if err != nil {
		return err
	}
	if c.DryRun {
		return c.report(a, "would be removed", plan)
	}
	what := fmt.Sprintf("Group %s of %s will be removed, with %d entries that wait for it.", printable(c.Group), printable(c.Topic), plan.Pending+plan.Returned+plan.Deferred)
	if err := c.ask(a, c.Topic, what); err != nil {
		return err
	}
	done, err := a.inspector.RemoveGroup(a, c.Topic, c.Group, inspect.RemoveGroupOptions{})
	if err != nil {
		return err
	}
	return c.report(a, "was removed", done)
}

func (c *removeGroupCmd) report(a *app, verb string, done inspect.RemovedGroup) error {
	return a.say(done, "group %s %s, with %d pending, %d returned and %d deferred entries", printable(c.Group), verb, done.Pending, done.Returned, done.Deferred)
}

type trimCmd struct {
	Topic  string `arg:""`
	DryRun bool   `help:"Change nothing; say why entries stay."`
	confirm
}

func (trimCmd) Help() string {
	return "Example: redch trim orders --dry-run\n\n" +
		"It removes the entries that every group has acknowledged, by the TrimConsumed of the topic if a\n" +
		"program has set it. Entries that a group needs stay. Redis trims in blocks, so a few more may stay."
}

func (c *trimCmd) Run(a *app) error {
	before, err := a.inspector.Retained(a, c.Topic)
	if err != nil || c.DryRun {
		return c.report(a, before, err)
	}
	if err := c.ask(a, c.Topic, fmt.Sprintf("Entries of %s that no group needs will be removed, of %d.", printable(c.Topic), before.Length)); err != nil {
		return err
	}
	done, err := a.inspector.Trim(a, c.Topic)
	return c.report(a, done, err)
}

// report prints the entries that are left and the reason. A number removed before an error is printed too.
func (c *trimCmd) report(a *app, r inspect.Retained, err error) error {
	if err != nil && r.Removed == 0 {
		return err
	}
	text := fmt.Sprintf("%d entries were removed, %d are left", r.Removed, r.Length)
	if c.DryRun {
		text = fmt.Sprintf("%d entries", r.Length)
	}
	return errors.Join(err, a.say(r, "%s; %s", text, pinOf(r)))
}

// pinOf names the reason why no more is removed.
func pinOf(r inspect.Retained) string {
	group := "group " + printable(r.Group)
	switch r.Pin {
	case inspect.PinGroup:
		return "a trim ends where " + group + " stands"
	case inspect.PinDeleted:
		return group + " was deleted, and the entries are kept for it"
	case inspect.PinRequired:
		return group + " is required and does not exist"
	case inspect.PinNoGroup:
		return "there is no group, so nothing is removed"
	}
	return "nothing is pinned"
}

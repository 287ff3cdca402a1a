package main

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/flaminco/redischannels/inspect"
)

type doctorCmd struct {
	Match string `arg:"" optional:"" help:"Pattern of topics, such as 'orders*'. Quote it."`
	Limit int    `help:"Greatest number of topics and groups together." default:"1000"`
}

func (doctorCmd) Help() string {
	return "Example: redch doctor 'orders*'\n\nIt changes nothing. A critical finding is exit code 3."
}

func (c *doctorCmd) Run(a *app) error {
	ctx, cancel := a.read()
	defer cancel()
	findings, err := a.inspector.Doctor(ctx, inspect.DoctorQuery{Match: c.Match, Limit: c.Limit})
	if err != nil {
		return err
	}
	critical := slices.ContainsFunc(findings, func(f inspect.Finding) bool { return f.Severity == inspect.SeverityCritical })
	if a.Output == "json" {
		err = a.json(findings)
	} else {
		printFindings(a, findings)
	}
	if err == nil && critical {
		err = errCheck
	}
	return err
}

// printFindings prints each finding with its problem and action, in lines that fit.
func printFindings(a *app, findings []inspect.Finding) {
	for _, f := range findings {
		where := strings.TrimSpace(f.Node + " " + strings.TrimSpace(printable(f.Topic)+" "+printable(f.Group)))
		fmt.Fprintln(a.out, cut(fmt.Sprintf("%s: %s (%s)", f.Severity, f.Check, where), a.Width))
		for _, sentence := range []string{f.Problem, f.Action} {
			for _, line := range wrap(printable(sentence), a.Width-2) {
				fmt.Fprintln(a.out, "  "+line)
			}
		}
	}
	if len(findings) == 0 {
		fmt.Fprintln(a.out, "nothing was found")
	}
}

type aclCmd struct {
	Topic string `arg:""`
	Group string `help:"Group of a consumer."`
	Role  string `help:"Role: ${enum}." enum:"publisher,delaying-publisher,consumer,reader,viewer,controller,repairer" default:"publisher"`
}

func (aclCmd) Help() string {
	return "Example: redch acl orders --group billing --role consumer\n\n" +
		"It prints the permissions that the role needs, and those that the user of --url lacks: exit code 3."
}

func (c *aclCmd) Run(a *app) error {
	ctx, cancel := a.read()
	defer cancel()
	p, err := a.inspector.Permissions(ctx, c.Topic, c.Group, inspect.Role(c.Role))
	if err != nil {
		return err
	}
	verdict := "nothing is missing"
	switch {
	case !p.Known:
		verdict = "whether something is missing is not known before Redis 7.0"
	case len(p.Missing) > 0:
		verdict = "missing: " + strings.Join(p.Missing, " ")
	}
	rule := strings.Join(wrap(printable(p.Rule), a.Width), "\n")
	if err := a.say(p, "%s\n%s", rule, strings.Join(wrap(printable(verdict), a.Width), "\n")); err != nil {
		return err
	}
	if len(p.Missing) > 0 {
		return errCheck
	}
	return nil
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

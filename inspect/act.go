package inspect

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/ThreeDotsLabs/watermill"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/backoff"
	"github.com/flaminco/redischannels/internal/control"
)

// DeadLetterSelection says to which dead letters [Inspector.Requeue] and [Inspector.Purge] apply, and how. The zero value
// means all that there are when the call begins, up to Max, at once. Dead letters that come meanwhile are not affected.
type DeadLetterSelection struct {
	Group  string   // that failed; empty for all
	Reason string   // the whole text; empty for all
	IDs    []string // of dead letters, such as those of a dry run; empty for all

	// Max is the greatest number of dead letters. Defaults to DefaultLimit, which is the most.
	Max int
	// PerSecond bounds how many are changed in a second, so that the consumers are not flooded. Defaults to no bound.
	PerSecond float64
	// DryRun only lists what would be changed.
	DryRun bool
}

// DeadLetterChange is what became of the dead letters of a selection.
type DeadLetterChange struct {
	// IDs are the dead letters of the selection, oldest first: those that a dry run would change.
	IDs []string `json:"ids"`
	// Changed is how many were requeued or purged.
	Changed int `json:"changed"`
	// Unchanged are those that were not requeued, and why.
	Unchanged []redischannels.RequeueResult `json:"unchanged,omitempty"`
	// More is whether there are more dead letters than Max in the selection.
	More bool `json:"more"`
}

// Requeue gives dead letters back to the groups that failed, one by one: see [redischannels.DeadLetters.Requeue]. Before the
// first and after the last it adds a line to the audit stream. When ctx ends it stops, and the result says
// how far it came; a further call continues. (XADD base:return:GROUP, XDEL)
func (i *Inspector) Requeue(ctx context.Context, topic string, selection DeadLetterSelection) (DeadLetterChange, error) {
	return i.change(ctx, "requeue", topic, selection, func(ctx context.Context, ids []string, change *DeadLetterChange) error {
		results, err := i.dead.Requeue(ctx, topic, ids...)
		for _, r := range results {
			if r.Outcome == redischannels.RequeueDone {
				change.Changed++
			} else {
				change.Unchanged = append(change.Unchanged, r)
			}
		}
		return err
	})
}

// Purge deletes dead letters. This cannot be undone. Lines in the audit stream and results are those of Requeue. (XDEL)
func (i *Inspector) Purge(ctx context.Context, topic string, selection DeadLetterSelection) (DeadLetterChange, error) {
	return i.change(ctx, "purge", topic, selection, func(ctx context.Context, ids []string, change *DeadLetterChange) error {
		n, err := i.dead.Purge(ctx, topic, ids...)
		change.Changed += n
		return err
	})
}

// changePage is how many dead letters one call changes.
const changePage = 32

// noteTimeout bounds the last line in the audit stream, which is written also when ctx has ended.
const noteTimeout = 5 * time.Second

func (i *Inspector) change(ctx context.Context, action, topic string, selection DeadLetterSelection, do func(ctx context.Context, ids []string, change *DeadLetterChange) error) (change DeadLetterChange, err error) {
	of, err := i.sideKeys(topic)
	if err != nil {
		return change, err
	}
	if selection.PerSecond < 0 {
		return change, invalidArgument("DeadLetterSelection.PerSecond", fmt.Errorf("must be above 0, or 0 for no bound, got %v", selection.PerSecond))
	}
	if change, err = i.choose(ctx, topic, selection); err != nil || selection.DryRun || len(change.IDs) == 0 {
		return change, err
	}
	g := control.Group{Topic: of, Name: selection.Group, Actor: i.config.Actor}
	if err := g.Note(ctx, i.config.Client, action, "reason", selection.Reason, "matched", len(change.IDs)); err != nil {
		return change, readError(action+" dead letters of", topic, "", err)
	}
	err = i.changeAll(ctx, selection.PerSecond, change.IDs, func(ids []string) error { return do(ctx, ids, &change) })
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), noteTimeout)
	defer cancel()
	noted := g.Note(last, i.config.Client, action+" ended", "changed", change.Changed, "matched", len(change.IDs))
	i.logger.Info("Operator: "+action, watermill.LogFields{"topic": topic, "consumer_group": selection.Group, "actor": g.Actor, "matched": len(change.IDs), "changed": change.Changed})
	return change, errors.Join(err, readError("audit of", topic, "", noted))
}

// changeAll calls do with pages of IDs, at a rate.
func (i *Inspector) changeAll(ctx context.Context, perSecond float64, ids []string, do func(ids []string) error) error {
	size, pause := changePage, time.Duration(0)
	if perSecond > 0 {
		size = max(1, min(changePage, int(perSecond/10)))
		pause = time.Duration(float64(size) / perSecond * float64(time.Second))
	}
	for first := true; len(ids) > 0; first = false {
		if err := ctx.Err(); err != nil || !first && pause > 0 && !backoff.Wait(ctx.Done(), pause) {
			return ctx.Err()
		}
		page := ids[:min(len(ids), size)]
		ids = ids[len(page):]
		if err := do(page); err != nil {
			return err
		}
	}
	return nil
}

// choose lists the dead letters of a selection.
func (i *Inspector) choose(ctx context.Context, topic string, selection DeadLetterSelection) (change DeadLetterChange, err error) {
	limit, err := checkLimit("DeadLetterSelection.Max", selection.Max, DefaultLimit)
	if err == nil && limit > DefaultLimit {
		err = invalidArgument("DeadLetterSelection.Max", fmt.Errorf("must be at most %d, got %d", DefaultLimit, limit))
	}
	if err != nil {
		return change, err
	}
	wanted := make(map[string]bool, len(selection.IDs))
	for _, text := range selection.IDs {
		id, err := parseID("DeadLetterSelection.IDs", text)
		if err != nil {
			return change, err
		}
		wanted[id.String()] = true
	}
	for letter, err := range i.dead.List(ctx, topic, redischannels.DeadLetterQuery{Group: selection.Group}) {
		if err != nil {
			return change, err
		}
		if selection.Reason != "" && letter.Reason != selection.Reason || len(wanted) > 0 && !wanted[letter.ID] {
			continue
		}
		if change.More = len(change.IDs) == limit; change.More {
			break
		}
		change.IDs = append(change.IDs, letter.ID)
	}
	return change, nil
}

// SkipOptions are those of [Inspector.Skip].
type SkipOptions struct {
	// Returned says that the entry is pending in the return stream of the group, and ID is its ID there.
	Returned bool
	// Drop makes no dead letter of the entry: for the group it is as if it had been handled.
	Drop bool
	// Reason stands in the dead letter and in the audit stream. At most 1,024 bytes. Defaults to "skipped".
	Reason string
	// DryRun changes nothing.
	DryRun bool
}

// Skipped is an entry that a group does not get any more.
type Skipped struct {
	EntryID    string `json:"entryId"`    // in the topic
	Consumer   string `json:"consumer"`   // that it was pending for
	Deliveries int64  `json:"deliveries"` // that were counted
	DeadLetter string `json:"deadLetter,omitempty"`
}

// Skip ends one pending entry of a group without handling it: it becomes a dead letter, which can be requeued, or is
// dropped. Other groups are not affected. An entry that a consumer may be handling is taken away from it first, as another
// consumer would claim it, and ended when the lease is over: this can last for MinIdle of the group. Its handler
// finishes, and its acknowledgement changes nothing. If ctx ends meanwhile the entry stays pending, and is delivered again.
//
// The error wraps [ErrNoEntry] where the entry is not pending, or is to become a dead letter and was trimmed; nothing was
// done then. (XCLAIM, XADD base:dead, XACK)
func (i *Inspector) Skip(ctx context.Context, topic, group, id string, options SkipOptions) (done Skipped, err error) {
	g, err := i.group(topic, group)
	if err != nil {
		return done, err
	}
	parsed, err := parseID("id", id)
	if err != nil {
		return done, err
	}
	if len(options.Reason) > maxReason {
		return done, invalidArgument("SkipOptions.Reason", fmt.Errorf("must have at most %d bytes, got %d", maxReason, len(options.Reason)))
	}
	skip := control.Skip{Key: topic, ID: parsed.String(), Drop: options.Drop, Reason: options.Reason, MinIdle: redischannels.DefaultMinIdle}
	if skip.Reason == "" {
		skip.Reason = "skipped"
	}
	if options.Returned {
		skip.Key = g.Topic.Return(group)
	}
	if skip.DeadTopic, err = i.deadTopic(g.Topic); err != nil {
		return done, err
	}
	found, err := i.skip(ctx, g, skip, options.DryRun)
	done = Skipped{found.EntryID, found.Consumer, found.Count, found.DeadLetter}
	if err != nil || options.DryRun {
		return done, readError("skip "+id+" in", topic, group, err)
	}
	return done, i.act("skip", g, nil, watermill.LogFields{"entry_id": found.EntryID, "dead_letter": found.DeadLetter})
}

// skip returns what the entry was before, with the dead letter that it is then.
func (i *Inspector) skip(ctx context.Context, g control.Group, skip control.Skip, dryRun bool) (control.Skipped, error) {
	step := func(step control.SkipStep) (control.Skipped, error) {
		found, err := g.Skip(ctx, i.config.Client, skip, step)
		if err == nil {
			err = skipProblem(found.Outcome, skip.ID)
		}
		return found, err
	}
	if dryRun {
		return step(control.SkipLook)
	}
	taken, err := step(control.SkipTake)
	if err != nil {
		return taken, err
	}
	const slices = 4 // so that no other consumer claims it meanwhile
	for n := 0; n < slices && taken.Wait > 0; n++ {
		if !backoff.Wait(ctx.Done(), taken.Wait/slices) {
			return taken, ctx.Err()
		}
		if _, err := step(control.SkipKeep); err != nil {
			return taken, err
		}
	}
	ended, err := step(control.SkipEnd)
	taken.DeadLetter = ended.DeadLetter
	return taken, err
}

func skipProblem(outcome, id string) error {
	switch outcome {
	case "done":
		return nil
	case "not pending":
		return fmt.Errorf("%w: %s is not pending", ErrNoEntry, id)
	case "lost":
		return fmt.Errorf("%w: %s was claimed by another consumer meanwhile", ErrConsumerBusy, id)
	case "gone":
		return fmt.Errorf("%w: %s was trimmed, so it can only be dropped", ErrNoEntry, id)
	default:
		return fmt.Errorf("%s has too many fields to become a dead letter here, so it can only be dropped", id)
	}
}

package inspect

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/ThreeDotsLabs/watermill"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/bridge"
	"github.com/flaminco/redischannels/internal/control"
)

// ErrNotPaused means that a consumer group must be paused first.
var ErrNotPaused = errors.New("the consumer group is not paused")

// SeekOptions are those of [Inspector.Seek].
type SeekOptions struct {
	// To is where the group continues to read: redischannels.Oldest, Latest, AfterID or Since. Required.
	To redischannels.Position

	// DropPending removes from the group what it has not acknowledged: pending entries, deferred retries and entries
	// of its return stream. By default they stay, and are delivered beside the entries behind To.
	DropPending bool
}

// SeekPlan is what a [Inspector.Seek] would do. Messages that are appended later are not part of it.
type SeekPlan struct {
	From, To string // IDs of the last entry that counts as delivered, before and after the seek

	// Redelivered is the number of entries between To and From, for a seek backwards: they are delivered again,
	// including those that are pending. Skipped is the number between From and To, for a seek forwards: they are not
	// delivered at all.
	Redelivered, Skipped int64

	// Trimmed says that entries behind To may be missing because they were trimmed or deleted: First is the ID of the
	// first entry of the stream, empty without one.
	Trimmed bool
	First   string

	// Pending is the number of pending entries up to To, Deferred that of deferred retries, Returned that of entries
	// of the return stream. They are kept or dropped as the options say.
	Pending, Deferred, Returned int64

	Paused bool     // the group is paused, as Seek requires
	Busy   []string // consumers that have entries in flight, for which Seek returns ErrGroupBusy
}

// SeekPlan returns what Seek would do now. It changes nothing. Redelivered or skipped entries are read to count
// them. The errors are those of Seek, but for ErrNotPaused and ErrGroupBusy.
func (i *Inspector) SeekPlan(ctx context.Context, topic, group string, options SeekOptions) (SeekPlan, error) {
	g, seek, err := i.seek(topic, group, options)
	if err != nil {
		return SeekPlan{}, err
	}
	plan, err := g.Plan(ctx, i.config.Client, seek)
	if err != nil {
		return SeekPlan{}, readError("plan a seek of", g.Topic.Name, g.Name, err)
	}
	out := SeekPlan{
		From: plan.From.String(), To: plan.To.String(), Redelivered: plan.Redelivered, Skipped: plan.Skipped,
		Trimmed: plan.Removed && (plan.First.IsZero() || plan.To.Next().Less(plan.First)),
		Pending: plan.Pending, Deferred: plan.Deferred, Returned: plan.Returns, Paused: plan.Paused, Busy: plan.Busy,
	}
	if !plan.First.IsZero() {
		out.First = plan.First.String()
	}
	return out, nil
}

// Seek moves a paused consumer group to another position: after Resume it reads from there. No handler may be at
// work: an entry that is pending and was renewed within MinIdle is [ErrGroupBusy]. Every entry behind To is
// delivered in a new attempt, whatever a handler of an earlier attempt still acknowledges. All of it is one step,
// which takes time in proportion to the number of pending entries. To seek again to the same position does no
// harm. Consumers of other libraries read from the new position as well, and do not know that it has changed.
//
// The error wraps [redischannels.ErrInvalidArgument], [ErrNoGroup], [ErrNotPaused], [ErrGroupBusy],
// [redischannels.ErrTopicCollision], or an error of Redis.
func (i *Inspector) Seek(ctx context.Context, topic, group string, options SeekOptions) error {
	g, seek, err := i.seek(topic, group, options)
	if err != nil {
		return err
	}
	running, busy, err := g.Seek(ctx, i.config.Client, seek)
	switch {
	case running:
		err = ErrNotPaused
	case len(busy) > 0:
		err = fmt.Errorf("%w: %s", ErrGroupBusy, strings.Join(busy, ", "))
	}
	return i.act("seek", g, err, watermill.LogFields{"to": string(options.To), "drop_pending": options.DropPending})
}

func (i *Inspector) seek(topic, group string, options SeekOptions) (control.Group, control.Seek, error) {
	g, err := i.group(topic, group)
	if err != nil {
		return g, control.Seek{}, err
	}
	if options.To == "" {
		return g, control.Seek{}, invalidArgument("SeekOptions.To", errEmpty)
	}
	after, err := bridge.GroupStart(string(options.To))
	if err != nil {
		return g, control.Seek{}, invalidArgument("SeekOptions.To", err)
	}
	return g, control.Seek{After: after, Drop: options.DropPending, MinIdle: redischannels.DefaultMinIdle}, nil
}

package inspect

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/bridge"
	"github.com/flaminco/redischannels/internal/keys"
	"github.com/flaminco/redischannels/internal/stream"
	"github.com/flaminco/redischannels/internal/survey"
)

const (
	// manyDead is how many dead letters are more than a person goes through.
	manyDead = 10_000
	// overdueAfter is how late a delayed message may be before the doctor reports it. It is appended within
	// seconds where a process is there for it.
	overdueAfter = time.Minute
	// crashedAfter is how many times MinIdle a consumer with pending entries may be idle. Others claim them after one.
	crashedAfter = 3
	// named is how many consumers a finding names.
	named = 3
)

// topicsDoctor checks topics and groups, up to a number of both together.
type topicsDoctor struct {
	*Inspector
	now      time.Time // of a server
	left     int
	more     bool // there is more than was checked
	silent   bool // the server cannot say which permissions a user has
	findings []Finding
	refused  error // a check that the user is not permitted to run
}

// checkTopics runs all checks of topics and groups.
func (i *Inspector) checkTopics(ctx context.Context, match string, limit int) ([]Finding, error) {
	d := &topicsDoctor{Inspector: i, left: limit, now: time.Now()}
	if now, err := i.config.Client.Time(ctx).Result(); err == nil {
		d.now = now
	} else if err = bridge.RedisError(err); !d.continues(err) {
		return nil, err
	}
	for topic, err := range i.Topics(ctx, TopicsQuery{Match: match, Limit: limit + 1}) {
		if err == nil && topic.Problem == "" && d.take() {
			err = d.checkTopic(ctx, topic)
		}
		if !d.continues(err) {
			return nil, err
		}
		if d.more {
			break
		}
	}
	d.conclude(limit)
	return d.findings, nil
}

// take reports whether one more may be checked.
func (d *topicsDoctor) take() bool {
	if d.left == 0 {
		d.more = true
		return false
	}
	d.left--
	return true
}

// continues reports whether the doctor continues after an error: where it has no permission, and where a topic or group
// was deleted meanwhile.
func (d *topicsDoctor) continues(err error) bool {
	if errors.Is(err, redischannels.ErrPermission) {
		d.refused = err
		return true
	}
	return err == nil || errors.Is(err, ErrNoTopic) || errors.Is(err, ErrNoGroup)
}

// conclude adds the findings about all topics.
func (d *topicsDoctor) conclude(limit int) {
	if d.refused != nil {
		d.findings = append(d.findings, Finding{
			Check: "permission", Severity: SeverityWarning,
			Problem: "topics and groups were not checked completely: " + d.refused.Error(),
			Action:  "run the doctor as a user with the permissions of `doctor` in docs/acl.md",
		})
	}
	if d.silent {
		d.findings = append(d.findings, Finding{
			Check: "acl", Severity: SeverityInfo,
			Problem: "whether the Redis user lacks permissions was not checked: the server cannot say that",
			Action:  "nothing, or upgrade to Redis 7.0 or newer",
		})
	}
	if d.more {
		d.findings = append(d.findings, Finding{
			Check: "limit", Severity: SeverityInfo,
			Problem: fmt.Sprintf("only %d topics and groups were checked, and there are more", limit),
			Action:  "give a pattern of topics, or a greater limit",
		})
	}
}

// add adds a finding about a topic or a group.
func (d *topicsDoctor) add(topic, group string, f Finding) {
	f.Topic, f.Group = topic, group
	d.findings = append(d.findings, f)
}

func (d *topicsDoctor) checkTopic(ctx context.Context, topic Topic) error {
	of, err := d.sideKeys(topic.Name)
	if err != nil {
		return err
	}
	if topic.DeadLetters >= manyDead {
		d.add(topic.Name, "", Finding{
			Check: "dead-letters", Severity: SeverityWarning,
			Problem: fmt.Sprintf("there are %d dead letters", topic.DeadLetters),
			Action:  "count them by reason (redch dead reasons), then requeue or purge them; SubscriberConfig.DeadLetterRetention bounds them",
		})
	}
	for _, check := range []func(context.Context, keys.Topic) error{d.checkPin, d.checkGroups} {
		if err := check(ctx, of); !d.continues(err) {
			return err
		}
	}
	return d.checkOverdue(ctx, of, "", "delayed message")
}

// checkPin reports a group by which TrimConsumed cannot trim.
func (d *topicsDoctor) checkPin(ctx context.Context, of keys.Topic) error {
	r, err := d.Retained(ctx, of.Name)
	if err != nil {
		return err
	}
	f := Finding{
		Check: "pin", Severity: SeverityWarning,
		Action: "start the group's service, or remove the group (redch remove-group) if nothing needs it",
	}
	since := r.PinnedFor.Round(time.Second)
	switch {
	case r.Pin == PinGroup && r.Stale:
		f.Problem = fmt.Sprintf("the group has made no progress for %v, so that %d entries cannot be trimmed", since, r.Length)
	case r.Pin == PinDeleted:
		f.Problem = fmt.Sprintf("the group was deleted %v ago, and not by redch remove-group: %d entries are kept for it", since, r.Length)
	case r.Pin == PinRequired:
		f.Problem = fmt.Sprintf("the group is one of TrimConsumed.Groups and does not exist: %d entries are kept for it", r.Length)
		f.Action = "start the group's service, or take it out of TrimConsumed.Groups"
	default:
		return nil
	}
	d.add(of.Name, r.Group, f)
	return nil
}

// checkOverdue reports messages that nobody appends.
func (d *topicsDoctor) checkOverdue(ctx context.Context, of keys.Topic, group, what string) error {
	first, err := d.config.Client.ZRangeWithScores(ctx, of.Due(group), 0, 0).Result()
	if err != nil || len(first) == 0 {
		return readError("overdue messages of", of.Name, "", err)
	}
	if late := d.now.Sub(time.UnixMilli(int64(first[0].Score))); late > overdueAfter {
		d.add(of.Name, group, Finding{
			Check: "overdue", Severity: SeverityWarning,
			Problem: fmt.Sprintf("the %s %v has been due for %v, and no process has appended it", what, first[0].Member, late.Round(time.Second)),
			Action:  "start a consumer of the topic, a publisher that delays messages, or a Housekeeper; then look at its events",
		})
	}
	return nil
}

func (d *topicsDoctor) checkGroups(ctx context.Context, of keys.Topic) error {
	for g, err := range d.Groups(ctx, of.Name) {
		if err != nil {
			return err
		}
		if !d.take() {
			return nil
		}
		if err := d.checkGroup(ctx, of, g); !d.continues(err) {
			return err
		}
	}
	return nil
}

func (d *topicsDoctor) checkGroup(ctx context.Context, of keys.Topic, g Group) error {
	members, err := survey.LookAtMembers(ctx, d.config.Client, of, g.Name)
	if err != nil {
		return readError("consumers", of.Name, g.Name, err)
	}
	if !g.Paused {
		d.checkAlive(g)
		d.checkCrashed(g, members)
	}
	d.checkMixed(g, consumersOf(members))
	if err := d.checkOverdue(ctx, of, g.Name, "retry"); err != nil {
		return err
	}
	return d.checkPermissions(ctx, of.Name, g.Name)
}

func (d *topicsDoctor) checkAlive(g Group) {
	if g.Alive > 0 {
		return
	}
	f := Finding{
		Check: "consumers", Severity: SeverityInfo,
		Problem: "the group has no consumer that is alive",
		Action:  "start its service, or remove the group (redch remove-group) if nothing needs it",
	}
	if g.Backlog() > 0 {
		f.Severity = SeverityWarning
		f.Problem += fmt.Sprintf(", and its backlog is at least %d", g.Backlog())
	}
	d.add(g.Topic, g.Name, f)
}

// checkCrashed reports entries that should have been claimed.
func (d *topicsDoctor) checkCrashed(g Group, members survey.Members) {
	var names []string
	var pending int64
	for _, c := range members.Consumers {
		if c.Name != stream.RequeueConsumer && c.Pending > 0 && c.Idle > crashedAfter*minIdleOf(members) {
			names, pending = append(names, c.Name), pending+c.Pending
		}
	}
	if len(names) == 0 {
		return
	}
	d.add(g.Topic, g.Name, Finding{
		Check: "crashed", Severity: SeverityWarning,
		Problem: fmt.Sprintf("%d pending entries of crashed consumers were not claimed: %s", pending, nameSome(names)),
		Action:  "start a consumer of this library, which claims them, or release them (redch remove --release)",
	})
}

// ours is how the names of this library's consumers end.
var ours = regexp.MustCompile(`-[0-9a-f]{16}$`)

// checkMixed reports consumers of another library beside those of this one.
func (d *topicsDoctor) checkMixed(g Group, consumers []Consumer) {
	var others []string
	mine := false
	for _, c := range consumers {
		switch {
		case !c.Alive:
		case ours.MatchString(c.Name):
			mine = true
		default:
			others = append(others, c.Name)
		}
	}
	if !mine || len(others) == 0 {
		return
	}
	d.add(g.Topic, g.Name, Finding{
		Check: "mixed", Severity: SeverityWarning,
		Problem: "consumers of another library, such as watermill-redisstream, are in the group: " + nameSome(others),
		Action:  "finish the migration (docs/from-redisstream.md): they ignore a pause and a seek, and do not renew the entries that they handle",
	})
}

// checkPermissions reports the permissions that a subscription needs and the user lacks. A user that may not read in the
// group, such as an operator, needs none of them.
func (d *topicsDoctor) checkPermissions(ctx context.Context, topic, group string) error {
	p, err := d.Permissions(ctx, topic, group, RoleConsumer)
	if err != nil {
		return err
	}
	d.silent = d.silent || !p.Known
	if len(p.Missing) == 0 || p.lacks("+xreadgroup") || p.lacks("~"+topic) {
		return nil
	}
	d.add(topic, group, Finding{
		Check: "acl", Severity: SeverityWarning,
		Problem: "the Redis user may read in the group, and lacks permissions that a subscription needs: " + strings.Join(p.Missing, " "),
		Action:  "grant them (docs/acl.md, consumer), if programs use this user",
	})
	return nil
}

// nameSome returns the first names, and how many more there are.
func nameSome(names []string) string {
	slices.Sort(names)
	text := strings.Join(names[:min(named, len(names))], ", ")
	if more := len(names) - named; more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return text
}

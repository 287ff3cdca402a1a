package redischannels

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/flaminco/redischannels/internal/retention"
)

// DefaultStaleAfter is the default of TrimConsumed.StaleAfter.
const DefaultStaleAfter = 24 * time.Hour

// TrimConsumed removes the entries of a stream that every consumer group has acknowledged: those before the
// oldest entry that a group has still to read or to acknowledge. Whole nodes of the stream are removed, so
// about 100 acknowledged entries remain. Readers without a group do not count: Keep is for them.
//
// Nothing is removed while the stream has no group, while one of Groups does not exist, and while a
// group is missing that existed before, or had a subscription: its consumers may be about to re-create it
// where it stood. Delete a group for good with inspect.RemoveGroup.
//
// The settings belong to the topic and are stored in Redis. The last program to start sets them; if it
// replaces others it reports EventError. A Publisher trims the topics that it has published to, about every
// 5 s while there is something to remove and otherwise every 60 s, until it is closed; a [Housekeeper] trims
// those of its configuration. Of all processes one does it at a time. See docs/retention.md.
// (XTRIM MINID ~ LIMIT)
type TrimConsumed struct {
	// Groups are groups that must exist before anything is removed: those of programs that may start later
	// than the first publisher. All other groups that exist count as well. Defaults to none.
	Groups []string

	// Keep is how long acknowledged entries are kept, at least 1 ms, by the clock of the Redis server: for
	// History, for subscriptions without a group and for SSE clients that resume. Defaults to no time.
	Keep time.Duration

	// StaleAfter is how long a group may leave an entry unread or unacknowledged, without any progress, until
	// EventPinned names it, at least 1 ms. It is measured from the first time that a trimmer sees the group
	// there. Defaults to DefaultStaleAfter.
	StaleAfter time.Duration

	// IgnoreStale removes what only stale groups need: those that exist and have made no progress for
	// StaleAfter. Such a group loses entries, which it reports as EventTrimmed when it reads again (from
	// Redis 7 on). Defaults to false: a stale group pins the stream.
	IgnoreStale bool
}

// maxKeep bounds the ages of entries.
const maxKeep = 100 * maxDuration

func (c *TrimConsumed) validate() error {
	for i, group := range c.Groups {
		switch {
		case group == "":
			return fmt.Errorf("TrimConsumed.Groups[%d] must not be empty", i)
		case slices.Contains(c.Groups[:i], group):
			return fmt.Errorf("TrimConsumed.Groups must name each group once, got %q twice", group)
		}
	}
	return errors.Join(validateAge("Keep", "none", c.Keep), validateAge("StaleAfter", "the default", c.StaleAfter))
}

func validateAge(field, zero string, d time.Duration) error {
	if d < 0 || d > maxKeep || d > 0 && d < time.Millisecond {
		return fmt.Errorf("TrimConsumed.%s must be %v to %v, or 0 for %s, got %v", field, time.Millisecond, maxKeep, zero, d)
	}
	return nil
}

// policy returns the settings as the topic's record has them.
func (c *TrimConsumed) policy() string {
	return retention.Policy{
		Groups: c.Groups, Keep: c.Keep, StaleAfter: orDefault(c.StaleAfter, DefaultStaleAfter), IgnoreStale: c.IgnoreStale,
	}.String()
}

// clone returns a copy that shares nothing with c, which may be nil.
func (c *TrimConsumed) clone() *TrimConsumed {
	if c == nil {
		return nil
	}
	copied := *c
	copied.Groups = slices.Clone(c.Groups)
	return &copied
}

// validateDeadLetters is validate for a dead-letter stream.
func (r Retention) validateDeadLetters() error {
	switch {
	case r.TrimConsumed != nil:
		return errors.New("TrimConsumed must be nil: dead letters are for operators, no consumer group acknowledges them")
	case r.Exact && r.MaxAge > 0:
		return errors.New("Exact is for MaxLen, not for MaxAge")
	}
	return r.validate()
}

// pinnedError says what pins a stream.
func pinnedError(pin retention.Pin, length int64) error {
	since := pin.For.Round(time.Second)
	switch pin.Kind {
	case retention.PinnedByNoGroup:
		return fmt.Errorf("nothing is removed since no consumer group has existed for %v: %d entries", since, length)
	case retention.PinnedByDeleted:
		return fmt.Errorf("nothing is removed since the consumer group %q was deleted, %v ago, without inspect.RemoveGroup: %d entries", pin.Group, since, length)
	case retention.PinnedByRequired:
		return fmt.Errorf("nothing is removed since the consumer group %q, which Groups names, has been missing for %v: %d entries", pin.Group, since, length)
	}
	return fmt.Errorf("the consumer group %q has made no progress for %v and needs the oldest of %d entries", pin.Group, since, length)
}

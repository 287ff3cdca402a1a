package inspect

import (
	"context"
	"time"

	"github.com/ThreeDotsLabs/watermill"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/keys"
	"github.com/flaminco/redischannels/internal/retention"
)

// PinKind is the reason why entries of a topic cannot be removed.
type PinKind string

// The kinds of pins.
const (
	PinNone     PinKind = ""         // nothing, or TrimConsumed.Keep
	PinGroup    PinKind = "group"    // the group has not read the oldest entry, or not acknowledged it
	PinDeleted  PinKind = "deleted"  // the group was deleted, and not by RemoveGroup
	PinRequired PinKind = "required" // TrimConsumed.Groups has the group, and it does not exist
	PinNoGroup  PinKind = "no group" // the topic has no group
)

// Retained is what a topic retains, and why.
type Retained struct {
	Removed int64 `json:"removed"` // entries that Trim has removed
	Length  int64 `json:"length"`  // entries that are left

	// Pin is what prevents the removal of more, and Group the group that it is about. PinnedFor is how long the
	// group has made no progress, or has been missing: since a trimmer saw it so first, and 0 while it makes
	// progress. Stale is set if that is longer than TrimConsumed.StaleAfter.
	Pin       PinKind       `json:"pin,omitempty"`
	Group     string        `json:"group,omitempty"`
	PinnedFor time.Duration `json:"pinnedForNs,omitempty"`
	Stale     bool          `json:"stale,omitempty"`
}

// Trim removes now what no consumer group of a topic needs, by the TrimConsumed that its programs have set, or else by the
// zero TrimConsumed: use it for topics that no program of this library trims. It removes 10,000 entries at
// a time, with a line in the audit stream for each time; what was removed before an error is counted.
//
// The error wraps [redischannels.ErrInvalidArgument], [redischannels.ErrTopicCollision], or an error of Redis.
// (XTRIM MINID ~)
func (i *Inspector) Trim(ctx context.Context, topic string) (Retained, error) {
	var removed int64
	for {
		r, more, err := i.retained(topic, "trim", func(of keys.Topic) (retention.Look, error) {
			return retention.Operate(ctx, i.config.Client, of, i.config.Actor, withoutPolicy)
		})
		removed += r.Removed
		r.Removed = removed
		if err == nil && !more {
			i.logger.Info("Operator: trim", watermill.LogFields{"topic": topic, "removed": removed, "actor": i.config.Actor})
		}
		if err != nil || !more {
			return r, err
		}
	}
}

// Retained returns what a topic retains and why, and changes nothing. The errors are those of Trim.
func (i *Inspector) Retained(ctx context.Context, topic string) (Retained, error) {
	r, _, err := i.retained(topic, "retention of", func(of keys.Topic) (retention.Look, error) {
		return retention.LookAt(ctx, i.config.Client, of, withoutPolicy)
	})
	return r, err
}

// withoutPolicy is the policy of a topic that has none.
var withoutPolicy = retention.Policy{StaleAfter: redischannels.DefaultStaleAfter}

func (i *Inspector) retained(topic, action string, look func(keys.Topic) (retention.Look, error)) (r Retained, more bool, err error) {
	of, err := i.sideKeys(topic)
	if err != nil {
		return r, false, err
	}
	found, err := look(of)
	if err != nil {
		return r, false, readError(action, topic, "", err)
	}
	return Retained{
		Removed: found.Removed, Length: found.Length,
		Pin: pinKinds[found.Pin.Kind], Group: found.Pin.Group, PinnedFor: found.Pin.For, Stale: found.Pin.Stale,
	}, found.More, nil
}

var pinKinds = map[retention.Kind]PinKind{
	retention.PinnedByGroup: PinGroup, retention.PinnedByDeleted: PinDeleted,
	retention.PinnedByRequired: PinRequired, retention.PinnedByNoGroup: PinNoGroup,
}

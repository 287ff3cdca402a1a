package inspect

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/ThreeDotsLabs/watermill"

	"github.com/flaminco/redischannels"
)

// ErrGroupBusy means that consumers of the group are at work. The error has their names.
var ErrGroupBusy = errors.New("consumers of the group are at work")

// RemoveGroupOptions are those of [Inspector.RemoveGroup].
type RemoveGroupOptions struct {
	// DryRun changes nothing.
	DryRun bool
}

// RemovedGroup is what was removed with a group.
type RemovedGroup struct {
	Pending  int64 `json:"pending"`  // entries that were delivered and not acknowledged
	Returned int64 `json:"returned"` // entries that had come back to the group
	Deferred int64 `json:"deferred"` // entries that waited for their retry
}

// RemoveGroup deletes a consumer group for good, with everything that waits for it alone: what is pending, returned and
// deferred is not delivered again. Its dead letters stay. A group that was deleted already, by XGROUP DESTROY, is
// forgotten, so that it pins a topic with TrimConsumed no longer.
//
// Stop its consumers before: with one that was active within the MinIdle of the group the error is
// [ErrGroupBusy], and nothing was done. Otherwise the error wraps [redischannels.ErrInvalidArgument],
// [ErrNoGroup], [redischannels.ErrTopicCollision], or an error of Redis.
func (i *Inspector) RemoveGroup(ctx context.Context, topic, group string, options RemoveGroupOptions) (RemovedGroup, error) {
	g, err := i.group(topic, group)
	if err != nil {
		return RemovedGroup{}, err
	}
	found, err := g.Remove(ctx, i.config.Client, redischannels.DefaultMinIdle, options.DryRun)
	if err == nil && len(found.Busy) > 0 {
		err = fmt.Errorf("%w: %s", ErrGroupBusy, strings.Join(found.Busy, ", "))
	}
	done := RemovedGroup{Pending: found.Pending, Returned: found.Returned, Deferred: found.Deferred}
	if err == nil && options.DryRun {
		return done, nil
	}
	return done, i.act("remove", g, err, watermill.LogFields{"pending": done.Pending, "returned": done.Returned, "deferred": done.Deferred})
}

package inspect

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/ThreeDotsLabs/watermill"

	"github.com/flaminco/redischannels/internal/control"
	"github.com/flaminco/redischannels/internal/redisconn"
	"github.com/flaminco/redischannels/internal/stream"
	"github.com/flaminco/redischannels/internal/survey"
)

var (
	// ErrNoConsumer means that the group has no such consumer.
	ErrNoConsumer = errors.New("no such consumer")
	// ErrConsumerBusy means that a consumer is alive, or has pending entries.
	ErrConsumerBusy = errors.New("the consumer is in use")
)

// RemoveConsumerOptions are those of [Inspector.RemoveConsumer].
type RemoveConsumerOptions struct {
	// Release releases the pending entries of the consumer to the others first, with their delivery counts, and
	// also removes one that is alive. A living consumer loses its leases, so that what it is handling is handled a
	// second time, and appears again with its next read.
	Release bool
	// DryRun changes nothing.
	DryRun bool
}

// RemovedConsumer is a consumer that was removed.
type RemovedConsumer struct {
	Released int           `json:"released"` // its pending entries, which other consumers get now
	Idle     time.Duration `json:"idleNs"`   // since it has read
}

// releaseRounds is how often entries are released that a living consumer has read meanwhile.
const releaseRounds = 10

// RemoveConsumer removes a consumer of a group. No entry is lost: Redis would drop what is pending for it. The error
// wraps [ErrConsumerBusy] where it has pending entries or is alive and Release is not set, [ErrNoConsumer], and
// [ErrNoGroup]; nothing was done then. (XGROUP DELCONSUMER; XCLAIM)
func (i *Inspector) RemoveConsumer(ctx context.Context, topic, group, consumer string, options RemoveConsumerOptions) (done RemovedConsumer, err error) {
	g, err := i.group(topic, group)
	if err != nil {
		return done, err
	}
	if consumer == "" {
		return done, invalidArgument("consumer", errEmpty)
	}
	alive, err := i.aliveFor(ctx, g, consumer, options.Release)
	var found control.Removed
	for round := 0; err == nil && round <= releaseRounds; round++ {
		found, err = g.RemoveConsumer(ctx, i.config.Client, consumer, alive, done.Released, options.DryRun)
		if done.Idle = found.Idle; err != nil || found.Outcome != "pending" || !options.Release {
			break
		}
		if options.DryRun {
			done.Released, found.Outcome = int(found.Pending), "done"
			break
		}
		err = i.release(ctx, g, consumer, found.Idle, &done.Released)
	}
	if err == nil {
		err = removeProblem(consumer, found)
	}
	if err != nil || options.DryRun {
		return done, readError("remove consumer of", topic, group, err)
	}
	return done, i.act("remove consumer", g, nil, watermill.LogFields{"consumer": consumer, "released": done.Released})
}

// aliveFor returns for how long an idle consumer is alive.
func (i *Inspector) aliveFor(ctx context.Context, g control.Group, consumer string, release bool) (time.Duration, error) {
	if release || consumer == stream.RequeueConsumer {
		return 0, nil
	}
	members, err := survey.LookAtMembers(ctx, i.config.Client, g.Topic, g.Name)
	return minIdleOf(members), err
}

func removeProblem(consumer string, found control.Removed) error {
	switch found.Outcome {
	case "missing":
		return fmt.Errorf("%w: %s", ErrNoConsumer, consumer)
	case "alive":
		return fmt.Errorf("%w: %s has read %v ago", ErrConsumerBusy, consumer, found.Idle)
	case "pending":
		return fmt.Errorf("%w: %s has %d pending entries", ErrConsumerBusy, consumer, found.Pending)
	}
	return nil
}

// release releases what is pending for a consumer, a page at a time.
func (i *Inspector) release(ctx context.Context, g control.Group, consumer string, idle time.Duration, released *int) error {
	if consumer == stream.RequeueConsumer {
		return invalidArgument("consumer", fmt.Errorf("must not be %q with Release: it holds what was released until a consumer claims it", consumer))
	}
	if err := g.Note(ctx, i.config.Client, "release", "consumer", consumer); err != nil {
		return err
	}
	for _, key := range []string{g.Topic.Name, g.Topic.Return(g.Name)} {
		n, err := releaseAll(ctx, &stream.Group{Client: i.config.Client, Key: key, Name: g.Name, Consumer: consumer}, idle)
		*released += n
		if err != nil && (key == g.Topic.Name || redisconn.Classify(err) != redisconn.KindNoGroup) {
			return err // the group may have no return stream
		}
	}
	return nil
}

// releaseAll releases everything that is pending for a consumer, and returns how many entries that were. They are as idle
// as the consumer was, which renews its leases: no other one claims them before these are over.
func releaseAll(ctx context.Context, from *stream.Group, idle time.Duration) (released int, err error) {
	for after, more := (stream.ID{}), true; more; {
		page, err := from.Own(ctx, after, pendingPage)
		if err != nil {
			return released, err
		}
		entries := make([]stream.Released, len(page))
		for n, p := range page {
			entries[n], after = stream.Released{Pending: p, Idle: idle}, p.ID
		}
		states, err := from.Release(ctx, entries, time.UnixMilli(math.MaxInt64/2))
		for _, s := range states {
			if s == stream.Owned {
				released++
			}
		}
		if err != nil {
			return released, err
		}
		more = len(page) == pendingPage
	}
	return released, nil
}

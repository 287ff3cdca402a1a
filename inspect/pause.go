package inspect

import (
	"context"
	"fmt"
	"time"

	"github.com/ThreeDotsLabs/watermill"
)

// PauseOptions are those of [Inspector.Pause].
type PauseOptions struct {
	// Until is when the group resumes by itself, by the clock of the Redis server. Defaults to never.
	Until time.Time

	// Reason stands in the audit stream and in GroupStats. At most 1,024 bytes.
	Reason string
}

// maxReason is the greatest length of PauseOptions.Reason.
const maxReason = 1024

// Pause pauses a consumer group on a topic: 2 s after it has returned, at the latest, no subscription of the
// group starts an attempt any more, as long as Redis answers it. Handlers in progress finish, and their
// acknowledgements are written. What was read and not delivered stays leased where there is an order
// (MaxInFlight 1, OrderingKey), and returns to the group otherwise. A pause outlives restarts of the
// consumers, and those of Redis like the entries. To pause a group that is paused sets the options.
//
// The error wraps [redischannels.ErrInvalidArgument], [ErrNoGroup], [redischannels.ErrTopicCollision], or an
// error of Redis.
func (i *Inspector) Pause(ctx context.Context, topic, group string, options PauseOptions) error {
	g, err := i.group(topic, group)
	if err != nil {
		return err
	}
	if len(options.Reason) > maxReason {
		return invalidArgument("PauseOptions.Reason", fmt.Errorf("must have at most %d bytes, got %d", maxReason, len(options.Reason)))
	}
	now, ok, err := g.Pause(ctx, i.config.Client, options.Until, options.Reason)
	if err == nil && !ok {
		return invalidArgument("PauseOptions.Until", fmt.Errorf("must be later than now by the clock of the server, %s, got %s",
			now.UTC().Format(time.RFC3339Nano), options.Until.UTC().Format(time.RFC3339Nano)))
	}
	return i.act("pause", g, err, watermill.LogFields{"until": options.Until, "reason": options.Reason})
}

// Resume ends the pause of a consumer group. Its subscriptions continue within about a second: first with
// what is pending, then with new entries, so that the order is that of the stream where there is one. To
// resume a group that is not paused does nothing. The errors are those of Pause.
func (i *Inspector) Resume(ctx context.Context, topic, group string) error {
	g, err := i.group(topic, group)
	if err != nil {
		return err
	}
	_, err = g.Resume(ctx, i.config.Client)
	return i.act("resume", g, err, nil)
}

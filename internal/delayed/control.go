package delayed

import (
	"context"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/flaminco/redischannels/internal/redisconn"
)

// Settings are the settings that all subscriptions of a group must share.
type Settings struct {
	MinIdle, ConsumerTimeout time.Duration // to the millisecond
}

// Join records the settings of a subscription in the control hash of its topic, and returns those
// of another subscription, zero for none, whether the group is paused, and how often it was sought.
// It fails if the side keys belong to another topic.
func Join(ctx context.Context, client redis.UniversalClient, target Target, s Settings) (before Settings, paused bool, sought int64, err error) {
	words, err := joinScript.Run(ctx, client, []string{target.Topic.Control()}, target.Topic.Name, target.Group,
		s.MinIdle.Milliseconds(), s.ConsumerTimeout.Milliseconds()).StringSlice()
	if err != nil {
		return before, false, 0, err
	}
	if len(words) != 4 {
		return before, false, 0, redisconn.ErrMalformed
	}
	for i, d := range []*time.Duration{&before.MinIdle, &before.ConsumerTimeout} {
		if words[i] == "" {
			continue
		}
		ms, err := strconv.ParseInt(words[i], 10, 64)
		if err != nil {
			return before, false, 0, redisconn.ErrMalformed
		}
		*d = time.Duration(ms) * time.Millisecond
	}
	sought, err = strconv.ParseInt(words[3], 10, 64)
	return before, words[2] != "0", sought, err
}

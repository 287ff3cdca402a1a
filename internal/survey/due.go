package survey

import (
	"context"
	"strconv"

	"github.com/redis/go-redis/v9"

	"github.com/flaminco/redischannels/internal/keys"
)

// Due is how many delayed messages of a topic, and deferred ones of a group, are due and still stored.
type Due struct{ Delayed, Deferred int64 }

// LookAtDue returns what is due by the clock of the server. (TIME, ZCOUNT)
func LookAtDue(ctx context.Context, client redis.UniversalClient, topic keys.Topic, group string) (d Due, err error) {
	now, err := client.Time(ctx).Result()
	if err != nil {
		return d, err
	}
	most := strconv.FormatInt(now.UnixMilli(), 10)
	pipe := client.Pipeline()
	delayed, deferred := pipe.ZCount(ctx, topic.Due(""), "-inf", most), pipe.ZCount(ctx, topic.Due(group), "-inf", most)
	_, err = pipe.Exec(ctx)
	return Due{delayed.Val(), deferred.Val()}, err
}

package tests

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels/internal/redistest"
)

// A step of the claim walk was under way while a subscription ended: what it claimed came
// behind the last hand-back, and waited for MinIdle in the name of a consumer that was gone.
// (F56, F59) Not parallel: it looks at goroutines.
func TestSubscriber_CloseReleasesWhatAClaimScanTakesOver(t *testing.T) {
	server := redistest.Shared(t)
	admin, topic := server.Client(t), redistest.Key(t)
	publish(t, admin, topic, "m")
	ids := deliverTo(t, admin, topic, "dead", 1, 0)

	settling := redistest.Goroutines(t, "(*subscription).settle(")
	client := server.Client(t)
	var claimed atomic.Bool
	ended := make(chan struct{})
	hook := redistest.After("xautoclaim", func(_ context.Context, cmd redis.Cmder) error {
		reply, err := cmd.(interface{ Result() ([]any, error) }).Result()
		if err == nil && len(reply[1].([]any)) > 0 {
			claimed.Store(true)
		}
		return nil
	})
	client.AddHook(hook)
	sub := newSub(t, client, minIdle(time.Minute))
	hook.After("evalsha", func(context.Context, redis.Cmder) error {
		if !claimed.CompareAndSwap(true, false) {
			return nil
		}
		go func() {
			defer close(ended)
			sub.closeSoon(t)
		}()
		settling.Wait(soon) // the last settlement is written behind the last hand-back
		return nil
	})
	sub.subscribe(t, topic)
	setIdle(t, admin, topic, "dead", time.Hour, ids...)
	select {
	case <-ended:
	case <-time.After(2 * soon):
		require.FailNow(t, "no end")
	}
	pending := pendingOf(t, admin, topic)
	require.Len(t, pending, 1)
	require.GreaterOrEqual(t, pending[0].Idle, time.Minute, "no peer can claim it")
	require.EqualValues(t, 1, pending[0].RetryCount, "it was handed to nobody")
}

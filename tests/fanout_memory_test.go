package tests

import (
	"context"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
)

// A small message of a slow subscription kept the whole reply in which it came, and with it
// the large ones of other topics: hundreds of megabytes behind a window of a few kilobytes.
// Not parallel: it measures memory.
func TestFanOut_SharedReaderKeepsNoMessagesOfOthers(t *testing.T) {
	client := redistest.Shared(t).Client(t)
	quick, slow := redistest.Key(t, "quick"), redistest.Key(t, "slow")
	large := strings.Repeat("x", 200<<10)
	const rounds = 150
	var ready atomic.Bool
	left := rounds
	publishBoth := func(ctx context.Context, _ redis.Cmder) error { // so that they are in one reply
		if !ready.Load() || left == 0 {
			return nil
		}
		left--
		pipe := client.Pipeline()
		for _, entry := range [][2]string{{slow, "small"}, {quick, large}} {
			pipe.Do(ctx, "XADD", entry[0], "*", "_watermill_message_uuid", "u", "metadata", "\x80", "payload", entry[1])
		}
		_, err := pipe.Exec(ctx)
		return err
	}
	sub := newSub(t, client, fanOut, func(c *redischannels.SubscriberConfig) {
		c.OnReadClient = func(read *redis.Client) { read.AddHook(redistest.Before("xread", publishBoth)) }
	})
	messages := sub.subscribe(t, quick)
	waiting := sub.subscribe(t, slow)
	publish(t, client, quick, "joined")
	require.Equal(t, []string{"joined"}, receiveAcked(t, messages, 1))
	publish(t, client, slow, "joined")
	require.Equal(t, []string{"joined"}, receiveAcked(t, waiting, 1))
	ready.Store(true)
	publish(t, client, quick, "next read")
	require.Equal(t, []string{"next read"}, receiveAcked(t, messages, 1))
	used := func() uint64 {
		runtime.GC()
		runtime.GC() // pools are emptied by the second
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := used()
	for range rounds {
		require.Equal(t, []string{large}, receiveAcked(t, messages, 1))
	}
	require.Less(t, int64(used())-int64(before), int64(8<<20))
	require.Len(t, receiveAcked(t, waiting, rounds), rounds)
}

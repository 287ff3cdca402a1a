package tests

import (
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels/internal/redistest"
)

// What a dead consumer has left was fetched by one command whatever its size. Where the network
// needs longer for the reply than the client waits, that was tried again for ever, and since the
// entries were kept nobody else got them either. (F43, F63)
func TestSubscriber_ClaimsLargeEntriesOverASlowNetwork(t *testing.T) {
	t.Parallel()
	proxy, client, direct := pubProxy(t, func(o *redis.Options) { o.ReadTimeout = 400 * time.Millisecond })
	topic := redistest.Key(t)
	const n, size = 60, 100 << 10
	publish(t, direct, topic, strings.Split(strings.Repeat(strings.Repeat("x", size)+",", n-1)+strings.Repeat("x", size), ",")...)
	deliverTo(t, direct, topic, "dead", n, time.Hour)
	sub := newSub(t, client, inFlight(n), minIdle(time.Minute))
	proxy.Delay(10 * time.Millisecond) // for up to 64 KiB
	require.Len(t, receiveAcked(t, sub.subscribe(t, topic), n), n)
	eventuallyPending(t, direct, topic, 0)
}

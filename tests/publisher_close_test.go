package tests

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
)

// Close must not wait forever for a connection that is dead, nor leave a
// goroutine with it.
func TestPublisher_CloseWithADeadConnection(t *testing.T) {
	t.Parallel()
	proxy, client, _ := pubProxy(t, func(o *redis.Options) { o.ReadTimeout, o.WriteTimeout = -1, -1 })
	goroutines := redistest.Goroutines(t)
	p := newTestPublisher(t, client, pubTimeout(400*time.Millisecond))
	pubWarm(t, p)
	proxy.Blackhole(true)
	var wg sync.WaitGroup
	for c := range 20 {
		wg.Go(func() {
			var pe *redischannels.PublishError
			if err := p.Publish("t", pubMessages("m", 1+c%2)...); !errors.As(err, &pe) {
				t.Error(err)
			}
		})
	}
	<-time.After(50 * time.Millisecond)
	start := time.Now()
	require.NoError(t, p.Close())
	require.Less(t, time.Since(start), 2*time.Second)
	wg.Wait()
	goroutines.Wait(100 * time.Millisecond)
}

// Close must let a publish under way come to its end, also while it waits to try
// again.
func TestPublisher_CloseWaitsForARetry(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	client := server.Client(t)
	topic := redistest.Key(t)
	p := newTestPublisher(t, client)
	hook := redistest.NewHook()
	client.AddHook(hook)
	require.NoError(t, client.ReplicaOf(t.Context(), "127.0.0.1", "1").Err())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := p.Publish(topic, pubMessages("m", 1)...); err != nil {
			t.Error(err)
		}
	})
	redistest.Eventually(t, 5*time.Second, func() bool { return hook.Count("xadd") >= 3 }, "the publish is retried")
	time.AfterFunc(200*time.Millisecond, func() { client.ReplicaOf(context.Background(), "NO", "ONE") })
	require.NoError(t, p.Close())
	require.EqualValues(t, 1, client.XLen(t.Context(), topic).Val())
	wg.Wait()
}

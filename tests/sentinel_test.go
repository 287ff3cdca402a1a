package tests

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
)

// failoverPublisher publishes through the sentinels; a message that is not confirmed within 2
// seconds is given up.
func failoverPublisher(t *testing.T, set *redistest.Sentinels, replicas int) *redischannels.Publisher {
	t.Helper()
	config := redischannels.PublisherConfig{Client: set.Client(t), Timeout: 2 * time.Second}
	if replicas > 0 {
		config.Durability = redischannels.Durability{Replicas: replicas, Timeout: 500 * time.Millisecond}
	}
	pub, err := redischannels.NewPublisher(config, nil)
	require.NoError(t, err)
	t.Cleanup(func() { _ = pub.Close() })
	return pub
}

// uuidsOf are the messages of a stream that holds less than a million of them.
func uuidsOf(t *testing.T, client *redis.Client, topic string) map[string]int {
	t.Helper()
	entries, err := client.XRange(t.Context(), topic, "-", "+").Result()
	require.NoError(t, err)
	found := map[string]int{}
	for _, e := range entries {
		found[e.Values["_watermill_message_uuid"].(string)]++
	}
	return found
}

// The master dies under load. Publishing and consuming go on within seconds; everything that is
// in the stream of the new master is handled; what a failover without Durability takes away is
// counted. (F65, F66)
func TestF65_F66_TheMasterDiesUnderLoad(t *testing.T) {
	t.Parallel()
	set := redistest.StartSentinels(t, 2)
	topic := redistest.Key(t)
	sub := newSub(t, set.Client(t), inFlight(16), func(c *redischannels.SubscriberConfig) {
		c.Tuning.MinIdle = 2 * time.Second
	})
	messages := sub.subscribe(t, topic)
	var (
		mu        sync.Mutex
		handled   = map[string]int{}
		confirmed = map[string]time.Time{}
	)
	var handling sync.WaitGroup
	handling.Go(func() {
		for msg := range messages {
			mu.Lock()
			handled[msg.UUID]++
			mu.Unlock()
			msg.Ack()
		}
	})
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var publishing sync.WaitGroup
	for range 4 {
		pub := failoverPublisher(t, set, 0)
		publishing.Go(func() {
			for ctx.Err() == nil {
				msg := message.NewMessage(watermill.NewUUID(), []byte("m"))
				if pub.Publish(topic, msg) == nil {
					mu.Lock()
					confirmed[msg.UUID] = time.Now()
					mu.Unlock()
				}
				<-time.After(time.Millisecond)
			}
		})
	}
	confirmedAfter := func(at time.Time) (n int) {
		mu.Lock()
		defer mu.Unlock()
		for _, when := range confirmed {
			if when.After(at) {
				n++
			}
		}
		return n
	}
	redistest.Eventually(t, soon, func() bool { return confirmedAfter(time.Time{}) > 500 }, "load")
	old := set.Master()
	old.Kill()
	killed := time.Now()
	master := set.AwaitFailover(old)
	elected := time.Now()
	redistest.Eventually(t, soon, func() bool { return confirmedAfter(elected) > 500 }, "publishing goes on")
	t.Logf("elected after %s, 500 messages confirmed %s later", elected.Sub(killed), time.Since(elected))
	stop()
	publishing.Wait()

	client := master.Client(t)
	inStream := uuidsOf(t, client, topic)
	redistest.Eventually(t, soon, func() bool {
		mu.Lock()
		defer mu.Unlock()
		for uuid := range inStream {
			if handled[uuid] == 0 {
				return false
			}
		}
		return true
	}, "everything in the stream is handled")
	eventuallyPending(t, client, topic, 0)
	sub.events.wait(t, redischannels.EventReconnected)
	sub.closeSoon(t)
	handling.Wait()
	require.Empty(t, consumersOf(t, client, topic))
	lost, again := 0, 0
	for uuid := range confirmed {
		require.LessOrEqual(t, inStream[uuid], 1, "a confirmed message is in the stream twice")
		if handled[uuid] == 0 {
			lost++
		}
	}
	for _, n := range handled {
		again += n - 1
	}
	t.Logf("%d messages confirmed, %d lost, %d handled again", len(confirmed), lost, again)
	require.Less(t, lost, 100, "no more than what was under way")
}

// WAIT counts replicas and does not bind the choice of the sentinels. A replica lags behind, by
// being frozen, and becomes the master: with Durability over all replicas nothing that was
// confirmed is missing, because nothing is confirmed; with one of two, and without, all of it
// is missing. docs/guarantees.md says so. (F65)
func TestF65_DurabilityAndTheChoiceOfTheSentinels(t *testing.T) {
	t.Parallel()
	const count = 20
	for _, test := range []struct{ replicas, confirmed, lost int }{
		{replicas: 0, confirmed: count, lost: count},
		{replicas: 1, confirmed: count, lost: count},
		{replicas: 2, confirmed: 0, lost: 0},
	} {
		t.Run(fmt.Sprintf("%d replicas", test.replicas), func(t *testing.T) {
			set := redistest.StartSentinels(t, 2)
			master, quick, lagging := set.Servers[0], set.Servers[1], set.Servers[2]
			topic := redistest.Key(t)
			pub := failoverPublisher(t, set, test.replicas)
			ctx := context.Background()
			before, err := pub.Append(ctx, topic, pubMessages("before", 1)...)
			require.NoError(t, err, "all replicas are there")
			require.NoError(t, master.Client(t).Wait(t.Context(), 2, time.Second).Err())

			// What is sent to a frozen process waits in its socket, so that is cut as well.
			lagging.Pause()
			admin := master.Admin(t)
			require.NoError(t, admin.ClientKillByFilter(t.Context(), "type", "replica").Err())
			redistest.Eventually(t, soon, func() bool {
				return strings.Count(admin.Info(t.Context(), "replication").Val(), "state=online") == 1
			}, "the other replica is back")
			var confirmed []string
			for n := range count {
				ids, err := pub.Append(ctx, topic, message.NewMessage(fmt.Sprint("m", n), nil))
				if err == nil {
					confirmed = append(confirmed, ids...)
					continue
				}
				require.True(t, errors.Is(err, redischannels.ErrUnderReplicated), "%v", err)
				if n > 2 {
					break // each takes the whole timeout
				}
			}
			require.Len(t, confirmed, test.confirmed)
			quick.Pause() // the one that has them is not there to be chosen
			master.Kill()
			lagging.Resume()
			require.Same(t, lagging, set.AwaitFailover(master))

			heir := lagging.Client(t)
			lost := 0
			for _, id := range append(confirmed, before...) {
				if len(heir.XRange(t.Context(), topic, id, id).Val()) == 0 {
					lost++
				}
			}
			require.Equal(t, test.lost, lost, "confirmed messages that are gone")
		})
	}
}

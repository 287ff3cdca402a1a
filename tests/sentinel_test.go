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

// The master dies under load. Publishing and consuming continue within seconds; everything that is
// in the stream of the new master is handled, and seen without a group. With Durability over all
// replicas nothing that was confirmed is lost; what is lost with one of two, and without, is
// counted.
func TestSentinel_MasterDiesUnderLoad(t *testing.T) {
	t.Parallel()
	const replicas = 2
	set := redistest.StartSentinels(t, replicas)
	topic := redistest.Key(t)
	publish(t, set.Client(t), topic, "left behind by a process that has died")
	deliverTo(t, set.Client(t), topic, "dead", 1, time.Hour)
	sub := newSub(t, set.Client(t), inFlight(16), func(c *redischannels.SubscriberConfig) {
		c.Tuning.MinIdle = 2 * time.Second
	})
	messages := sub.subscribe(t, topic)
	all := newSub(t, set.Client(t), fanOut)
	every, err := all.SubscribeFrom(t.Context(), topic, redischannels.Oldest)
	require.NoError(t, err)
	type confirmation struct {
		at       time.Time
		replicas int
	}
	var (
		mu            sync.Mutex
		handled, seen = map[string]int{}, map[string]int{}
		confirmed     = map[string]confirmation{}
	)
	var handling sync.WaitGroup
	note := func(messages <-chan *message.Message, seen map[string]int) func() {
		return func() {
			for msg := range messages {
				mu.Lock()
				seen[msg.UUID]++
				mu.Unlock()
				msg.Ack()
			}
		}
	}
	handling.Go(note(messages, handled))
	handling.Go(note(every, seen))
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var publishing sync.WaitGroup
	for _, n := range []int{0, 0, 0, 0, 1, 1, replicas, replicas} {
		pub := failoverPublisher(t, set, n)
		publishing.Go(func() {
			for ctx.Err() == nil {
				msg := message.NewMessage(watermill.NewUUID(), []byte("m"))
				if pub.Publish(topic, msg) == nil {
					mu.Lock()
					confirmed[msg.UUID] = confirmation{time.Now(), n}
					mu.Unlock()
				}
				<-time.After(time.Millisecond)
			}
		})
	}
	confirmedAfter := func(at time.Time, least int) (n int) {
		mu.Lock()
		defer mu.Unlock()
		for _, c := range confirmed {
			if c.at.After(at) && c.replicas >= least {
				n++
			}
		}
		return n
	}
	redistest.Eventually(t, soon, func() bool {
		return confirmedAfter(time.Time{}, 0) > 500 && confirmedAfter(time.Time{}, replicas) > 100
	}, "load")
	old := set.Master()
	old.Kill()
	killed := time.Now()
	master := set.AwaitFailover(old)
	elected := time.Now()
	redistest.Eventually(t, soon, func() bool { return confirmedAfter(elected, 0) > 500 }, "publishing continues")
	t.Logf("elected after %s, 500 messages confirmed %s later", elected.Sub(killed), time.Since(elected))
	stop()
	publishing.Wait()

	client := master.Client(t)
	inStream := uuidsOf(t, client, topic)
	redistest.Eventually(t, soon, func() bool {
		mu.Lock()
		defer mu.Unlock()
		for uuid := range inStream {
			if handled[uuid] == 0 || seen[uuid] == 0 {
				return false
			}
		}
		return true
	}, "everything in the stream is handled, and seen without a group")
	eventuallyPending(t, client, topic, 0)
	sub.events.wait(t, redischannels.EventReconnected)
	all.events.wait(t, redischannels.EventReconnected)
	sub.closeSoon(t)
	all.closeSoon(t)
	handling.Wait()
	require.Equal(t, []string{"dead"}, consumersOf(t, client, topic), "which is removed after ConsumerTimeout")
	var lost, of [replicas + 1]int
	again := 0
	for uuid, c := range confirmed {
		require.LessOrEqual(t, inStream[uuid], 1, "a confirmed message is in the stream twice")
		of[c.replicas]++
		if inStream[uuid] == 0 {
			lost[c.replicas]++
		}
	}
	for _, n := range handled {
		again += n - 1
	}
	t.Logf("confirmed by 0, 1 and 2 replicas at least: %d messages, lost from Redis: %d; %d handled again", of, lost, again)
	require.Zero(t, lost[replicas], "all replicas had it")
	require.Less(t, lost[0]+lost[1], 100, "no more than what was under way")
}

// WAIT counts replicas and does not bind the choice of the sentinels. A replica lags behind, by
// being frozen, and becomes the master: with Durability over all replicas nothing that was
// confirmed is missing, because nothing is confirmed; with one of two, and without, all of it
// is missing. docs/guarantees.md says so.
func TestSentinel_DurabilityAndTheElection(t *testing.T) {
	t.Parallel()
	const count = 20
	for _, test := range []struct{ replicas, confirmed, lost int }{
		{replicas: 0, confirmed: count, lost: count},
		{replicas: 1, confirmed: count, lost: count},
		{replicas: 2, confirmed: 0, lost: 0},
	} {
		t.Run(fmt.Sprintf("%d replicas", test.replicas), func(t *testing.T) {
			t.Parallel()
			set := redistest.StartSentinels(t, 2)
			master, quick, lagging := set.Servers[0], set.Servers[1], set.Servers[2]
			topic := redistest.Key(t)
			pub := failoverPublisher(t, set, test.replicas)
			ctx := context.Background()
			before, err := pub.Append(ctx, topic, pubMessages("before", 1)...)
			require.NoError(t, err, "all replicas are there")
			require.NoError(t, master.Client(t).Wait(t.Context(), 2, time.Second).Err())

			// Data for a stopped process waits in its socket, so the connection is cut too.
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
			require.Equal(t, test.lost, lost, "confirmed messages that are lost")
		})
	}
}

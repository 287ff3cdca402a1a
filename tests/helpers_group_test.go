package tests

import (
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
)

// tuned changes the tuning of a subscriber.
func tuned(change func(*redischannels.Tuning)) func(*redischannels.SubscriberConfig) {
	return func(c *redischannels.SubscriberConfig) { change(&c.Tuning) }
}

// minIdle sets MinIdle.
func minIdle(d time.Duration) func(*redischannels.SubscriberConfig) {
	return tuned(func(c *redischannels.Tuning) { c.MinIdle = d })
}

// inFlight sets MaxInFlight.
func inFlight(n int) func(*redischannels.SubscriberConfig) {
	return func(c *redischannels.SubscriberConfig) { c.MaxInFlight = n }
}

// groupOf returns what Redis knows of the group "g".
func groupOf(t *testing.T, client redis.UniversalClient, topic string) redis.XInfoGroup {
	t.Helper()
	groups, err := client.XInfoGroups(t.Context(), topic).Result()
	require.NoError(t, err)
	i := slices.IndexFunc(groups, func(g redis.XInfoGroup) bool { return g.Name == "g" })
	require.GreaterOrEqual(t, i, 0, "no group g")
	return groups[i]
}

// deliverTo makes n entries of the topic pending for a consumer of the group "g" that is not
// ours, as if it had read them and died, and lets them look idle for that long.
func deliverTo(t *testing.T, client redis.UniversalClient, topic, consumer string, n int, idle time.Duration) []string {
	t.Helper()
	_ = client.XGroupCreateMkStream(t.Context(), topic, "g", "0").Err()
	streams, err := client.XReadGroup(t.Context(), &redis.XReadGroupArgs{
		Group: "g", Consumer: consumer, Streams: []string{topic, ">"}, Count: int64(n), Block: -1,
	}).Result()
	require.NoError(t, err)
	require.Len(t, streams[0].Messages, n)
	var ids []string
	for _, m := range streams[0].Messages {
		ids = append(ids, m.ID)
	}
	setIdle(t, client, topic, consumer, idle, ids...)
	return ids
}

// setIdle gives entries to a consumer and back-dates them; their delivery counts stay.
func setIdle(t *testing.T, client redis.UniversalClient, topic, consumer string, idle time.Duration, ids ...string) {
	t.Helper()
	args := []any{"XCLAIM", topic, "g", consumer, 0}
	for _, id := range ids {
		args = append(args, id)
	}
	require.NoError(t, client.Do(t.Context(), append(args, "IDLE", idle.Milliseconds(), "JUSTID")...).Err())
}

// handler receives messages in a goroutine of its own until the channel is closed.
type handler struct {
	mu       sync.Mutex
	seen     []delivered
	active   int
	parallel int // greatest number of calls at the same time
	done     chan struct{}
}

// handle runs fn for each message, n at a time, and acknowledges it when fn returns true and
// nacks it otherwise. It ends with the subscription.
func handle(messages <-chan *message.Message, n int, fn func(m delivered, msg *message.Message) bool) *handler {
	h := &handler{done: make(chan struct{})}
	var workers sync.WaitGroup
	for range n {
		workers.Go(func() {
			for msg := range messages {
				id, _ := redischannels.EntryIDFromContext(msg.Context())
				count, _ := redischannels.DeliveryCountFromContext(msg.Context())
				m := delivered{id: id, count: count, payload: string(msg.Payload[:min(len(msg.Payload), 64)])}
				h.mu.Lock()
				h.seen = append(h.seen, m)
				h.active++
				h.parallel = max(h.parallel, h.active)
				h.mu.Unlock()
				ok := fn(m, msg)
				h.mu.Lock()
				h.active--
				h.mu.Unlock()
				if ok {
					msg.Ack()
				} else {
					msg.Nack()
				}
			}
		})
	}
	go func() {
		workers.Wait()
		close(h.done)
	}()
	return h
}

// all returns what was received so far.
func (h *handler) all() []delivered {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.seen)
}

// payloads returns the payloads received so far.
func (h *handler) payloads() []string {
	var p []string
	for _, m := range h.all() {
		p = append(p, m.payload)
	}
	return p
}

// len is the number of messages received so far.
func (h *handler) len() int { return len(h.all()) }

// work returns a handler function that takes d and succeeds.
func work(d time.Duration) func(delivered, *message.Message) bool {
	return func(delivered, *message.Message) bool {
		time.Sleep(d) // the handler's work
		return true
	}
}

// eventuallyRead waits until the group "g" has been given every entry of the topic.
func eventuallyRead(t *testing.T, client redis.UniversalClient, topic string) {
	t.Helper()
	info, err := client.XInfoStream(t.Context(), topic).Result()
	require.NoError(t, err)
	redistest.Eventually(t, 3*soon, func() bool {
		return groupOf(t, client, topic).LastDeliveredID == info.LastGeneratedID
	}, "unread entries")
}

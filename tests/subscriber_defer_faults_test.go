package tests

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
)

// attempts are the deliveries of each message, in their order.
type attempts struct {
	mu     sync.Mutex
	counts map[string][]int
}

// failOnce handles messages that fail in their first delivery, and come again after a delay.
func failOnce(messages <-chan *message.Message, delay func(payload string) time.Duration) (*attempts, *handler) {
	a := &attempts{counts: map[string][]int{}}
	return a, handle(messages, 16, func(m delivered, msg *message.Message) bool {
		a.mu.Lock()
		a.counts[m.payload] = append(a.counts[m.payload], m.count)
		a.mu.Unlock()
		if m.count > 1 {
			return true
		}
		redischannels.RetryAfter(msg, delay(m.payload))
		return false
	})
}

// twice reports whether n messages were delivered twice.
func (a *attempts) twice(n int) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	done := 0
	for _, counts := range a.counts {
		if len(counts) >= 2 {
			done++
		}
	}
	return done >= n
}

// A slot and its data move to other masters while retries are deferred and come back: each comes once.
func TestDefer_SlotMoves(t *testing.T) {
	t.Parallel()
	const n = 300
	cluster := redistest.StartCluster(t, 3)
	topic := topicOn(t, cluster, 0)
	client := cluster.Client(t)
	sub := newSub(t, client, inFlight(16), deferAfter(5*time.Millisecond), minIdle(2*time.Second))
	a, h := failOnce(sub.subscribe(t, topic), func(payload string) time.Duration {
		i, _ := strconv.Atoi(payload)
		return time.Duration(10+5*i) * time.Millisecond
	})
	publish(t, cluster.Client(t), topic, decimals(n)...)
	for _, to := range []int{1, 2, 0} {
		cluster.MoveSlot(topic, to)
	}
	redistest.Eventually(t, 4*soon, func() bool { return a.twice(n) }, "all come back")
	eventuallyNothingDeferred(t, cluster.Client(t), topic)
	eventuallyPending(t, client, topic, 0)
	sub.closeSoon(t)
	<-h.done
	for payload, counts := range a.counts {
		require.Equal(t, []int{1, 2}, counts, payload)
	}
	sub.events.none(t, redischannels.EventGroupLost, redischannels.EventAckIgnored, redischannels.EventDeadLettered)
}

// The master dies while retries are deferred: none is lost that its replica had.
func TestDefer_MasterDies(t *testing.T) {
	t.Parallel()
	const n = 200
	set := redistest.StartSentinels(t, 1)
	client, topic := set.Client(t), redistest.Key(t)
	sub := newSub(t, client, inFlight(16), deferAfter(5*time.Millisecond), minIdle(2*time.Second))
	a, h := failOnce(sub.subscribe(t, topic), func(string) time.Duration { return 5 * time.Second })
	publish(t, client, topic, decimals(n)...)
	eventuallyDeferred(t, client, topic, n)
	eventuallyPending(t, client, topic, 0)
	require.NoError(t, client.Set(t.Context(), redistest.Key(t, "last"), "x", 0).Err())
	require.EqualValues(t, 1, client.Wait(t.Context(), 1, soon).Val(), "the replica has everything")
	old := set.Master()
	old.Kill()
	promoted := set.AwaitFailover(old).Client(t)
	redistest.Eventually(t, 4*soon, func() bool { return a.twice(n) }, "all come back")
	eventuallyNothingDeferred(t, promoted, topic)
	sub.closeSoon(t)
	<-h.done
	for payload, counts := range a.counts {
		require.Equal(t, []int{1, 2}, counts, payload)
	}
}

// A thousand retries were acknowledged: neither a group that is destroyed nor a return stream that is deleted
// brings one of them back.
func TestReturn_NothingThatWasAcknowledgedComesAgain(t *testing.T) {
	t.Parallel()
	const n = 1000
	client, topic := redistest.Shared(t).Client(t), redistest.Key(t)
	sub := newSub(t, client, inFlight(64), deferAfter(time.Millisecond))
	a, h := failOnce(sub.subscribe(t, topic), func(string) time.Duration { return 20 * time.Millisecond })
	publish(t, client, topic, decimals(n)...)
	redistest.Eventually(t, 2*soon, func() bool { return a.twice(n) }, "all come back")
	eventuallyNothingDeferred(t, client, topic)
	for _, remove := range []func(key string) error{
		func(key string) error { return client.XGroupDestroy(t.Context(), key, "g").Err() },
		func(key string) error { return client.Del(t.Context(), key).Err() },
	} {
		before := len(sub.events.of(redischannels.EventGroupLost))
		require.NoError(t, remove(returnStream(topic, "g")))
		redistest.Eventually(t, soon, func() bool { return len(sub.events.of(redischannels.EventGroupLost)) > before }, "it is re-created")
		publish(t, client, topic, fmt.Sprint("after ", before))
		redistest.Eventually(t, soon, func() bool { return a.twice(n + 1 + before) }, "deferring continues")
	}
	eventuallyNothingDeferred(t, client, topic)
	sub.closeSoon(t)
	<-h.done
	require.Equal(t, 2*(n+2), h.len(), "each twice")
}

// A thousand requeued letters that still fail do not delay a strict topic.
func TestReturn_FailingLettersHoldUpNothing(t *testing.T) {
	t.Parallel()
	const n = 1000
	client, topic := redistest.Shared(t).Client(t), redistest.Key(t)
	sub := newSub(t, client, inFlight(1), deliveries(2), func(c *redischannels.SubscriberConfig) {
		c.NackBackoff = redischannels.Backoff{Min: time.Hour, Max: time.Hour}
	})
	require.NoError(t, sub.SubscribeInitialize(topic))
	pipe := client.Pipeline()
	for i := range n {
		pipe.XAdd(t.Context(), &redis.XAddArgs{Stream: returnStream(topic, "g"), Values: []string{
			"_watermill_message_uuid", "u", "metadata", "\x80", "payload", "letter",
			"_return_entry_id", fmt.Sprintf("1-%d", i), "_return_reason", "", "_return_count", "0"}})
	}
	_, err := pipe.Exec(t.Context())
	require.NoError(t, err)
	h := handle(sub.subscribe(t, topic), 1, func(m delivered, _ *message.Message) bool { return m.payload != "letter" })
	redistest.Eventually(t, soon, func() bool { return h.len() > 10 }, "letters fail")
	publish(t, client, topic, "new")
	redistest.Eventually(t, 2*soon, func() bool { return slices.Contains(h.payloads(), "new") }, "what is new is handled")
	eventuallyDeferred(t, client, topic, n)
	sub.closeSoon(t)
}

// At full size: 5,000 messages of which 1,500 are nacked with a long delay are no burden to the others,
// whatever restarts there are in the meantime.
func TestSoakDefer_ManyOverRestarts(t *testing.T) {
	if os.Getenv("SOAK") == "" {
		t.Skip("runs with make soak")
	}
	const n, bad, delay = 5000, 1500, time.Minute
	client, topic := redistest.Shared(t).Client(t), redistest.Key(t)
	publish(t, client, topic, decimals(n)...)
	begun, seen := time.Now(), map[string][]int{}
	open := func() (*testSub, *handler) {
		sub := newSub(t, client, inFlight(16), deferAfter(time.Second), func(c *redischannels.SubscriberConfig) { c.StartFrom = redischannels.Oldest })
		return sub, handle(sub.subscribe(t, topic), 16, func(m delivered, msg *message.Message) bool {
			if i, _ := strconv.Atoi(m.payload); m.count > 1 || i >= bad {
				return true
			}
			redischannels.RetryAfter(msg, delay)
			return false
		})
	}
	sub, h := open()
	note := func() {
		sub.closeSoon(t)
		<-h.done
		for _, m := range h.all() {
			seen[m.payload] = append(seen[m.payload], m.count)
		}
	}
	redistest.Eventually(t, 3*soon, func() bool { return h.len() >= n }, "all are handled once")
	t.Logf("%d handled after %s", n, time.Since(begun))
	for range 10 {
		note()
		sub, h = open()
	}
	redistest.Eventually(t, 2*delay, func() bool { return h.len() >= bad }, "they come when their time is over")
	eventuallyNothingDeferred(t, client, topic)
	note()
	t.Logf("all done after %s", time.Since(begun))
	require.Len(t, seen, n)
	for payload, counts := range seen {
		want := []int{1}
		if i, _ := strconv.Atoi(payload); i < bad {
			want = []int{1, 2}
		}
		require.Equal(t, want, counts, payload)
	}
}

// At full size: 1,200 messages that always fail fill the window and more, by the default settings. The 1,000
// behind them are handled within 200 s.
func TestSoakDefer_GoodBehindBad(t *testing.T) {
	if os.Getenv("SOAK") == "" {
		t.Skip("runs with make soak")
	}
	client, topic := redistest.Shared(t).Client(t), redistest.Key(t)
	publish(t, client, topic, slices.Concat(slices.Repeat([]string{"bad"}, 1200), slices.Repeat([]string{"good"}, 1000))...)
	sub := newSub(t, client, usualTuning, inFlight(16), func(c *redischannels.SubscriberConfig) {
		c.StartFrom = redischannels.Oldest
		c.NackBackoff = redischannels.Backoff{}
	})
	var good sync.WaitGroup
	good.Add(1000)
	begun := time.Now()
	handle(sub.subscribe(t, topic), 16, func(m delivered, _ *message.Message) bool {
		if m.payload == "good" {
			good.Done()
			return true
		}
		return false
	})
	done := make(chan struct{})
	go func() { good.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(200 * time.Second):
		require.Fail(t, "the good ones are not handled within 200 s")
	}
	t.Logf("all good ones after %s; %d deferred", time.Since(begun), sub.Stats()[0].Deferred)
	require.NotEmpty(t, sub.events.of(redischannels.EventStalled))
	sub.closeSoon(t)
}

// At full size: a service downstream is away for ten minutes, before a backlog of 100,000 messages. Dead letters
// come of the window and of the probes at most.
func TestSoakDefer_DownstreamAway(t *testing.T) {
	if os.Getenv("SOAK") == "" {
		t.Skip("runs with make soak")
	}
	const backlog, away, window = 100_000, 10 * time.Minute, 1024 + 16
	client, topic := redistest.Shared(t).Client(t), redistest.Key(t)
	for range backlog / 1000 {
		publish(t, client, topic, decimals(1000)...)
	}
	sub := newSub(t, client, usualTuning, inFlight(16), func(c *redischannels.SubscriberConfig) {
		c.StartFrom = redischannels.Oldest
		c.NackBackoff = redischannels.Backoff{}
		c.MaxDeliveries = redischannels.DefaultMaxDeliveries
	})
	back := time.Now().Add(away)
	handle(sub.subscribe(t, topic), 16, func(delivered, *message.Message) bool { return time.Now().After(back) })
	drained := func() bool {
		stats, err := sub.GroupStats(t.Context(), topic)
		return err == nil && stats.Lag == 0 && stats.Pending == 0
	}
	redistest.Eventually(t, away+10*time.Minute, drained, "everything is handled")
	dead := client.XLen(t.Context(), deadStream(topic)).Val()
	t.Logf("%d dead letters of %d, all done %s after the service came back; %d deferred", dead, backlog, time.Since(back), sub.Stats()[0].Deferred)
	require.LessOrEqual(t, dead, int64(window)+int64(away/time.Second))
	sub.closeSoon(t)
}

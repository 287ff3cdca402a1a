package tests

import (
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/delayed"
	"github.com/flaminco/redischannels/internal/keys"
	"github.com/flaminco/redischannels/internal/redistest"
)

// deferAfter sets DeferAfter.
func deferAfter(d time.Duration) func(*redischannels.SubscriberConfig) {
	return func(c *redischannels.SubscriberConfig) { c.DeferAfter = d }
}

func dueOf(topic, group string) string { return "{" + topic + "}:due:" + group }

// eventuallyDeferred waits until n retries of the group "g" are deferred.
func eventuallyDeferred(t *testing.T, client redis.UniversalClient, topic string, n int64) {
	t.Helper()
	redistest.Eventually(t, soon, func() bool { return client.ZCard(t.Context(), dueOf(topic, "g")).Val() == n }, "%d retries are deferred", n)
}

// eventuallyNothingDeferred waits until the store and the return stream are empty.
func eventuallyNothingDeferred(t *testing.T, client redis.UniversalClient, topic string) {
	t.Helper()
	eventuallyDeferred(t, client, topic, 0)
	eventuallyReturned(t, client, topic, 0)
	require.Zero(t, client.Exists(t.Context(), delayKeys(topic)[0]).Val(), "nothing is stored")
}

// later nacks a message and asks for a delay.
func later(msg *message.Message, d time.Duration) {
	redischannels.RetryAfter(msg, d)
	msg.Nack()
}

// A retry that is off for long waits in Redis: it takes no room here, and comes back to its group alone,
// counted, under its ID.
func TestDefer_LongRetry(t *testing.T) {
	t.Parallel()
	client, topic := redistest.Shared(t).Client(t), redistest.Key(t)
	sub := newSub(t, client, inFlight(4), deferAfter(50*time.Millisecond))
	messages := sub.subscribe(t, topic)
	other := newSub(t, client, inFlight(4), func(c *redischannels.SubscriberConfig) { c.ConsumerGroup = "other" })
	others := other.subscribe(t, topic)
	publish(t, client, topic, "m")
	receiveAcked(t, others, 1)

	const delay = 300 * time.Millisecond
	first := receive(t, messages)
	id, nacked := entryIDOf(t, first), time.Now()
	later(first, delay)
	eventuallyDeferred(t, client, topic, 1)
	require.Empty(t, pendingOf(t, client, topic))
	require.Zero(t, sub.Stats()[0].BackingOff)
	again := receive(t, messages)
	require.GreaterOrEqual(t, time.Since(nacked), delay)
	require.Equal(t, id, entryIDOf(t, again))
	require.Equal(t, 2, countOf(t, again))
	again.Ack()
	eventuallyNothingDeferred(t, client, topic)
	require.EqualValues(t, 1, sub.Stats()[0].Deferred)
	noMessage(t, others)
	sub.closeSoon(t)
	other.closeSoon(t)
}

// A postponed delivery does not count.
func TestDefer_Postpone(t *testing.T) {
	t.Parallel()
	client, topic := redistest.Shared(t).Client(t), redistest.Key(t)
	sub := newSub(t, client, inFlight(4), deferAfter(20*time.Millisecond))
	messages := sub.subscribe(t, topic)
	publish(t, client, topic, "m")
	for range 2 {
		msg := receive(t, messages)
		require.Equal(t, 1, countOf(t, msg))
		redischannels.Postpone(msg, 50*time.Millisecond)
		msg.Nack()
	}
	receive(t, messages).Ack()
	eventuallyNothingDeferred(t, client, topic)
	require.EqualValues(t, 2, sub.Stats()[0].Deferred)
	sub.closeSoon(t)
}

// A delay that was not requested, or is short, is in memory.
func TestDefer_ShortRetriesStay(t *testing.T) {
	t.Parallel()
	client, topic := redistest.Shared(t).Client(t), redistest.Key(t)
	for name, change := range map[string]func(*redischannels.SubscriberConfig){
		"short":        deferAfter(time.Second),
		"NeverDefer":   deferAfter(redischannels.NeverDefer),
		"strict order": inFlight(1),
		"keys":         func(c *redischannels.SubscriberConfig) { c.OrderingKey = func(*message.Message) string { return "" } },
	} {
		t.Run(name, func(t *testing.T) {
			topic := topic + name
			sub := newSub(t, client, inFlight(4), deferAfter(20*time.Millisecond), change)
			messages := sub.subscribe(t, topic)
			publish(t, client, topic, "m")
			later(receive(t, messages), 100*time.Millisecond)
			again := receive(t, messages)
			require.Equal(t, 2, countOf(t, again))
			require.Zero(t, sub.Stats()[0].Deferred)
			again.Ack()
			sub.closeSoon(t)
		})
	}
}

// The default configuration is in order: one line of the log says that a long delay does not survive the process.
func TestDefer_InOrderIsLogged(t *testing.T) {
	t.Parallel()
	client, topic := redistest.Shared(t).Client(t), redistest.Key(t)
	logger := redistest.NewRecordingLogger()
	sub := newLoggedSub(t, client, logger, deferAfter(20*time.Millisecond))
	messages := sub.subscribe(t, topic)
	publish(t, client, topic, "m")
	for range 3 {
		later(receive(t, messages), 30*time.Millisecond)
	}
	receive(t, messages).Ack()
	sub.closeSoon(t)
	lines := 0
	for _, line := range logger.Lines() {
		if strings.Contains(line, "waits in this process only") {
			lines++
		}
	}
	require.Equal(t, 1, lines)
}

// Retries that are off for long stop nothing, and survive ten restarts.
func TestDefer_ManyOverRestarts(t *testing.T) {
	t.Parallel()
	const n, bad = 500, 150
	client, topic := redistest.Shared(t).Client(t), redistest.Key(t)
	publish(t, client, topic, decimals(n)...)
	due := time.Now().Add(3 * time.Second)
	fails := func(m delivered) bool {
		i, err := strconv.Atoi(m.payload)
		return err != nil || i < bad
	}
	open := func() (*testSub, *handler) {
		sub := newSub(t, client, inFlight(16), deferAfter(10*time.Millisecond), func(c *redischannels.SubscriberConfig) { c.StartFrom = redischannels.Oldest })
		return sub, handle(sub.subscribe(t, topic), 16, func(m delivered, msg *message.Message) bool {
			if m.count > 1 || !fails(m) {
				return true
			}
			redischannels.RetryAfter(msg, time.Until(due))
			return false
		})
	}
	sub, handler := open()
	redistest.Eventually(t, soon, func() bool { return handler.len() == n }, "all are handled once")
	require.Less(t, time.Now(), due, "the good ones do not wait for the others")
	eventuallyDeferred(t, client, topic, bad)
	var again []delivered
	for range 10 {
		sub.closeSoon(t)
		<-handler.done
		again = append(again, handler.all()...)
		sub, handler = open()
	}
	redistest.Eventually(t, soon, func() bool { return n+bad == len(again)+handler.len() }, "they come when their time is over")
	eventuallyNothingDeferred(t, client, topic)
	eventuallyPending(t, client, topic, 0)
	sub.closeSoon(t)
	<-handler.done
	seen := map[string]bool{}
	for _, m := range append(again, handler.all()...)[n:] {
		require.Equal(t, 2, m.count)
		require.True(t, fails(m))
		require.False(t, seen[m.id], "twice")
		seen[m.id] = true
	}
}

// The rest of a long delay survives the end of its process, whether requested or a back-off.
func TestDefer_AtClose(t *testing.T) {
	t.Parallel()
	client, topic := redistest.Shared(t).Client(t), redistest.Key(t)
	change := []func(*redischannels.SubscriberConfig){inFlight(4), deferAfter(100 * time.Millisecond), func(c *redischannels.SubscriberConfig) {
		c.NackBackoff = redischannels.Backoff{Min: time.Second, Max: time.Second, Jitter: redischannels.NoJitter}
	}}
	sub := newSub(t, client, change...)
	messages := sub.subscribe(t, topic)
	publish(t, client, topic, "m")
	msg := receive(t, messages)
	id := entryIDOf(t, msg)
	nacked := time.Now()
	msg.Nack()
	redistest.Eventually(t, soon, func() bool { return sub.Stats()[0].BackingOff == 1 }, "it waits in memory")
	sub.closeSoon(t)
	eventuallyDeferred(t, client, topic, 1)
	require.Empty(t, pendingOf(t, client, topic))

	sub = newSub(t, client, change...)
	again := receive(t, sub.subscribe(t, topic))
	require.GreaterOrEqual(t, time.Since(nacked), time.Second)
	require.Equal(t, id, entryIDOf(t, again))
	require.Equal(t, 2, countOf(t, again))
	again.Ack()
	eventuallyNothingDeferred(t, client, topic)
	sub.closeSoon(t)
}

// A returned entry has lost its place in the order: one that keeps failing does not delay a strict topic.
func TestDefer_ReturnedEntriesHoldUpNothing(t *testing.T) {
	t.Parallel()
	client, topic := redistest.Shared(t).Client(t), redistest.Key(t)
	sub := newSub(t, client, inFlight(1), func(c *redischannels.SubscriberConfig) {
		c.NackBackoff = redischannels.Backoff{Min: time.Hour, Max: time.Hour}
	})
	messages := sub.subscribe(t, topic)
	addReturned(t, client, topic, "g", "1-1", 3, "returned")
	msg := receive(t, messages)
	require.Equal(t, "1-1", entryIDOf(t, msg))
	msg.Nack()
	eventuallyDeferred(t, client, topic, 1)
	eventuallyReturned(t, client, topic, 0)
	publish(t, client, topic, "new")
	require.Equal(t, []string{"new"}, receiveAcked(t, messages, 1))
	stored := client.HVals(t.Context(), delayKeys(topic)[0]).Val()
	require.Len(t, stored, 1)
	require.Equal(t, 1, strings.Count(stored[0], "_return_entry_id"), "the fields that name the original are replaced")
	require.True(t, strings.HasSuffix(stored[0], "_return_count\x00\x00\x00\x014"), "%q", stored[0])
	sub.closeSoon(t)
}

// Where a retry cannot be stored it waits in memory, and nothing of it is lost.
func TestDefer_Refused(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	for name, test := range map[string]struct {
		payload string
		change  func(*redischannels.SubscriberConfig)
		refuse  func(t *testing.T, client *redis.Client, topic, id string) (allow func())
	}{
		"full": {change: func(c *redischannels.SubscriberConfig) { c.MaxDeferred = 1 },
			refuse: func(t *testing.T, client *redis.Client, topic, _ string) func() {
				require.NoError(t, client.ZAdd(t.Context(), dueOf(topic, "g"), redis.Z{Score: 1e15, Member: "another"}).Err())
				return func() { client.Del(t.Context(), dueOf(topic, "g")) }
			}},
		"too large": {payload: strings.Repeat("x", 1<<20)},
		"wrong type of the store": {refuse: func(t *testing.T, client *redis.Client, topic, _ string) func() {
			require.NoError(t, client.Set(t.Context(), delayKeys(topic)[0], "x", 0).Err())
			return func() { client.Del(t.Context(), delayKeys(topic)[0]) }
		}},
		"wrong type of the due set": {refuse: func(t *testing.T, client *redis.Client, topic, _ string) func() {
			require.NoError(t, client.Set(t.Context(), dueOf(topic, "g"), "x", 0).Err())
			return func() { client.Del(t.Context(), dueOf(topic, "g")) }
		}},
		"out of memory": {refuse: func(t *testing.T, client *redis.Client, topic, _ string) func() {
			require.NoError(t, client.ConfigSet(t.Context(), "maxmemory", "1").Err())
			return func() { client.ConfigSet(t.Context(), "maxmemory", "0") }
		}},
		"side keys of another topic": {refuse: func(t *testing.T, client *redis.Client, topic, _ string) func() {
			require.NoError(t, client.HSet(t.Context(), "{"+topic+"}:control", "topic", "another").Err())
			return func() { client.Del(t.Context(), "{"+topic+"}:control") }
		}},
	} {
		t.Run(name, func(t *testing.T) {
			client, topic := server.Client(t), redistest.Key(t)
			change := test.change
			if change == nil {
				change = func(*redischannels.SubscriberConfig) {}
			}
			sub := newSub(t, client, inFlight(4), deferAfter(20*time.Millisecond), change)
			messages := sub.subscribe(t, topic)
			payload := test.payload
			if payload == "" {
				payload = "m"
			}
			publish(t, client, topic, payload)
			msg := receive(t, messages)
			allow := func() {}
			if test.refuse != nil {
				allow = test.refuse(t, client, topic, entryIDOf(t, msg))
			}
			nacked := time.Now()
			later(msg, 200*time.Millisecond)
			redistest.Eventually(t, soon, func() bool { return sub.Stats()[0].BackingOff == 1 }, "it waits in memory")
			require.Len(t, pendingOf(t, client, topic), 1)
			again := receive(t, messages)
			require.GreaterOrEqual(t, time.Since(nacked), 200*time.Millisecond)
			require.Equal(t, 2, countOf(t, again))
			again.Ack()
			allow()
			eventuallyPending(t, client, topic, 0)
			require.Zero(t, sub.Stats()[0].Deferred)
			sub.closeSoon(t)
		})
	}
}

// The reply to the script is lost: the entry is deferred once, and is not looked for among what is held.
func TestDefer_LostReply(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	direct, topic := server.Client(t), redistest.Key(t)
	for _, delay := range []time.Duration{50 * time.Millisecond, time.Second} {
		t.Run(delay.String(), func(t *testing.T) {
			topic := topic + delay.String()
			proxy := redistest.NewProxy(t, server.Addr())
			client := server.Client(t, func(o *redis.Options) { o.Addr = proxy.Addr() })
			sub := newSub(t, client, inFlight(4), deferAfter(20*time.Millisecond), minIdle(300*time.Millisecond))
			messages := sub.subscribe(t, topic)
			publish(t, direct, topic, "m")
			msg := receive(t, messages)
			lost := proxy.DropReplyIf(1, redistest.Script(), func(reply []byte) bool { return strings.Contains(string(reply), "deferred") })
			later(msg, delay)
			lost.Wait(t, soon)
			again := receive(t, messages)
			require.Equal(t, 2, countOf(t, again))
			again.Ack()
			eventuallyNothingDeferred(t, direct, topic)
			noMessage(t, messages)
			sub.closeSoon(t)
			sub.events.none(t, redischannels.EventGroupLost, redischannels.EventAckIgnored, redischannels.EventLeaseLost)
		})
	}
}

// Another consumer has claimed the entry: its retry is not this one's to defer.
func TestDefer_NotOwned(t *testing.T) {
	t.Parallel()
	client, topic := redistest.Shared(t).Client(t), redistest.Key(t)
	sub := newSub(t, client, inFlight(4), deferAfter(20*time.Millisecond), minIdle(time.Minute))
	messages := sub.subscribe(t, topic)
	publish(t, client, topic, "m")
	msg := receive(t, messages)
	require.NoError(t, client.XClaim(t.Context(), &redis.XClaimArgs{Stream: topic, Group: "g", Consumer: "thief", Messages: []string{entryIDOf(t, msg)}}).Err())
	later(msg, time.Minute)
	require.Equal(t, []string{entryIDOf(t, msg)}, sub.events.wait(t, redischannels.EventAckIgnored).EntryIDs)
	require.Zero(t, client.ZCard(t.Context(), dueOf(topic, "g")).Val())
	require.Equal(t, "thief", pendingOf(t, client, topic)[0].Consumer)
	sub.closeSoon(t)
}

// The group does not exist any more when the retry is due: it becomes a dead letter that names the original.
func TestDefer_GroupIsGone(t *testing.T) {
	t.Parallel()
	client, topic := redistest.Shared(t).Client(t), redistest.Key(t)
	sub := newSub(t, client, inFlight(4), deferAfter(20*time.Millisecond))
	messages := sub.subscribe(t, topic)
	publish(t, client, topic, "m")
	msg := receive(t, messages)
	later(msg, time.Hour)
	eventuallyDeferred(t, client, topic, 1)
	sub.closeSoon(t)
	require.NoError(t, client.XGroupDestroy(t.Context(), returnStream(topic, "g"), "g").Err())
	require.NoError(t, client.ZAddXX(t.Context(), dueOf(topic, "g"), redis.Z{Score: 1, Member: client.ZRange(t.Context(), dueOf(topic, "g"), 0, 0).Val()[0]}).Err())

	of, err := keys.Of(topic, nil, false)
	require.NoError(t, err)
	page, err := delayed.Move(t.Context(), client, delayed.Target{Topic: of, Group: "g"}, "mover")
	require.NoError(t, err)
	require.Len(t, page.Letters, 1)
	letters := client.XRange(t.Context(), deadStream(topic), "-", "+").Val()
	require.Len(t, letters, 1)
	require.Equal(t, map[string]any{
		"_watermill_message_uuid": letters[0].Values["_watermill_message_uuid"], "metadata": letters[0].Values["metadata"], "payload": "m",
		"_dead_reason": "the consumer group g does not exist", "_dead_entry_id": entryIDOf(t, msg), "_dead_topic": topic, "_dead_group": "g",
		"_dead_consumer": "", "_dead_count": "1", "_dead_time": letters[0].Values["_dead_time"],
	}, letters[0].Values)
	eventuallyNothingDeferred(t, client, topic)
}

// Entries that fail fill the window. One new entry a second is a probe: those that fail are deferred, and the
// first that succeeds makes room for all others.
func TestDefer_Probes(t *testing.T) {
	t.Parallel()
	client, topic := redistest.Shared(t).Client(t), redistest.Key(t)
	const window, bad, good = 16, 19, 60
	publish(t, client, topic, slices.Concat(slices.Repeat([]string{"bad"}, bad), slices.Repeat([]string{"good"}, good))...)
	sub := newSub(t, client, inFlight(8), tuned(func(c *redischannels.Tuning) { c.Prefetch = 8 }), func(c *redischannels.SubscriberConfig) {
		c.StartFrom = redischannels.Oldest
		c.NackBackoff = redischannels.Backoff{Min: time.Hour, Max: time.Hour}
	})
	h := handle(sub.subscribe(t, topic), 8, func(m delivered, _ *message.Message) bool { return m.payload == "good" })
	redistest.Eventually(t, 2*soon, func() bool { return h.len() == bad+good }, "all are handled")
	eventuallyDeferred(t, client, topic, bad-window+window/2)
	require.Equal(t, window/2, sub.Stats()[0].BackingOff)
	sub.closeSoon(t)
	eventuallyDeferred(t, client, topic, bad)
}

// While everything fails only probes are read: a backlog is not turned into retries, and dead letters, of all of it.
func TestDefer_ProbesWhileEverythingFails(t *testing.T) {
	t.Parallel()
	client, topic := redistest.Shared(t).Client(t), redistest.Key(t)
	const window = 16
	publish(t, client, topic, decimals(500)...)
	sub := newSub(t, client, inFlight(8), tuned(func(c *redischannels.Tuning) {
		c.Prefetch, c.MinIdle, c.BlockTime = 8, 300*time.Millisecond, time.Second
	}), func(c *redischannels.SubscriberConfig) {
		c.StartFrom = redischannels.Oldest
		c.NackBackoff = redischannels.Backoff{Min: time.Hour, Max: time.Hour}
	})
	h := handle(sub.subscribe(t, topic), 8, func(delivered, *message.Message) bool { return false })
	begun := time.Now()
	redistest.Eventually(t, 2*soon, func() bool { return h.len() == window+3 }, "the window, and three probes")
	require.Greater(t, time.Since(begun), 2*time.Second, "one a second")
	stalled := sub.events.wait(t, redischannels.EventStalled)
	require.Equal(t, window, stalled.Count)
	require.ErrorContains(t, stalled.Err, "wait for their retry")
	require.Len(t, sub.events.of(redischannels.EventStalled), 1, "once, whatever the probes")
	sub.closeSoon(t)
}

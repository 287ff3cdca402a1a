package tests

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
)

// statsOf waits until the only subscription of the subscriber fulfils the condition.
func statsOf(t *testing.T, sub *testSub, want func(redischannels.SubscriptionStats) bool, what string) redischannels.SubscriptionStats {
	t.Helper()
	var stats []redischannels.SubscriptionStats
	redistest.Eventually(t, soon, func() bool {
		stats = sub.Stats()
		return len(stats) == 1 && want(stats[0])
	}, "%s", what)
	return stats[0]
}

// An operator sees a queue grow and cannot see whether the consumer is slow, stuck or gone.
func TestStats_Group(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	topic := redistest.Key(t)
	sub := newSub(t, client, inFlight(2), deliveries(2), func(c *redischannels.SubscriberConfig) {
		c.NackBackoff = redischannels.Backoff{Min: time.Hour, Max: time.Hour}
	})
	require.Empty(t, sub.Stats())
	began := time.Now()
	messages := sub.subscribe(t, topic)
	first := statsOf(t, sub, func(s redischannels.SubscriptionStats) bool { return !s.LastRead.IsZero() }, "it has read")
	require.Equal(t, topic, first.Topic)
	require.Equal(t, "g", first.Group)
	require.Equal(t, consumersOf(t, client, topic), []string{first.Consumer})
	require.Equal(t, redischannels.StateLive, first.State)
	require.WithinRange(t, first.LastRead, began, time.Now())
	require.Zero(t, first.InFlight+first.Buffered+first.BackingOff+first.Acking+first.Bytes)
	statsOf(t, sub, func(s redischannels.SubscriptionStats) bool { return s.LastRead.After(first.LastRead) },
		"an idle subscription continues reading")

	publish(t, client, topic, "a", "b", "c")
	a, b := receive(t, messages), receive(t, messages)
	leased := statsOf(t, sub, func(s redischannels.SubscriptionStats) bool { return s.InFlight == 2 && s.Delivered == 2 }, "two in flight")
	require.Positive(t, leased.Bytes)

	a.Nack()
	statsOf(t, sub, func(s redischannels.SubscriptionStats) bool { return s.BackingOff == 1 }, "one is backing off")
	redischannels.RetryAfter(b, time.Millisecond)
	b.Nack()
	c := receive(t, messages)
	again := receive(t, messages)
	if countOf(t, c) == 2 {
		c, again = again, c
	}
	require.Equal(t, 2, countOf(t, again))
	redischannels.Reject(again, "no")
	again.Nack()
	c.Ack()
	end := statsOf(t, sub, func(s redischannels.SubscriptionStats) bool {
		return s.DeadLettered == 1 && s.InFlight+s.Acking == 0
	}, "one is a dead letter")
	require.EqualValues(t, 4, end.Delivered)
	require.EqualValues(t, 1, end.Redelivered)
	require.Equal(t, 1, end.BackingOff)

	sub.closeSoon(t)
	require.Empty(t, sub.Stats())
}

// streamField is a field of XINFO STREAM, nil where the server does not know it.
func streamField(t *testing.T, client *redis.Client, topic, field string) any {
	t.Helper()
	info, err := client.Do(t.Context(), "XINFO", "STREAM", topic).Result()
	require.NoError(t, err)
	if m, ok := info.(map[any]any); ok {
		return m[field]
	}
	flat := info.([]any)
	for i := 0; i < len(flat); i += 2 {
		if flat[i] == field {
			return flat[i+1]
		}
	}
	return nil
}

// Changes of a subscription from outside are counted too.
func TestStats_Faults(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t, redistest.AOF())
	client := server.Client(t)
	topic := redistest.Key(t)
	sub := newSub(t, client, inFlight(4)) // one that takes no more does not read
	messages := sub.subscribe(t, topic)
	ids := publish(t, client, topic, "claimed", "trimmed", "kept")
	first, second, third := receive(t, messages), receive(t, messages), receive(t, messages)

	server.Stop()
	down := statsOf(t, sub, func(s redischannels.SubscriptionStats) bool { return s.State == redischannels.StateDisconnected }, "it is disconnected")
	require.Equal(t, 3, down.InFlight)
	require.Zero(t, down.Reconnects)
	server.Restart()
	up := statsOf(t, sub, func(s redischannels.SubscriptionStats) bool { return s.State == redischannels.StateLive }, "it is live again")
	require.EqualValues(t, 1, up.Reconnects)
	require.True(t, up.LastRead.After(down.LastRead))

	require.NoError(t, client.XClaimJustID(t.Context(), &redis.XClaimArgs{
		Stream: topic, Group: "g", Consumer: "other", MinIdle: 0, Messages: ids[:1],
	}).Err())
	require.NoError(t, client.XDel(t.Context(), topic, ids[1]).Err())
	trimmed := uint64(0) // servers before Redis 7 do not report it to a renewal
	if redistest.IsRedis7(t, client) {
		trimmed = 1
	}
	lost := statsOf(t, sub, func(s redischannels.SubscriptionStats) bool { return s.LostLeases == 1 && s.Trimmed == trimmed },
		"a claim is lost and an entry is trimmed")
	require.Zero(t, lost.Recovered)

	closed := make(chan struct{})
	go func() {
		defer close(closed)
		_ = sub.Close()
	}()
	statsOf(t, sub, func(s redischannels.SubscriptionStats) bool { return s.State == redischannels.StateClosing }, "it is closing")
	first.Ack()
	second.Ack()
	third.Ack()
	<-closed
}

// An entry that waits for its key, or for Redis, is neither in flight nor backing off. Entries
// claimed from a crashed consumer are counted by the entry, not by the event.
func TestStats_WaitingMessages(t *testing.T) {
	t.Parallel()
	server := redistest.Shared(t)
	direct, client, topic := server.Client(t), server.Client(t), redistest.Key(t)
	publish(t, direct, topic, "a", "b", "c")
	ids := deliverTo(t, direct, topic, "dead", 3, time.Hour)
	require.NoError(t, direct.Do(t.Context(), "XCLAIM", topic, "g", "dead", 0, ids[0], "IDLE", time.Hour.Milliseconds(), "RETRYCOUNT", 2, "JUSTID").Err())
	sub := newSub(t, client, inFlight(3), func(c *redischannels.SubscriberConfig) {
		c.OrderingKey = func(*message.Message) string { return "one" }
	})
	messages := sub.subscribe(t, topic)
	writing, released := make(chan struct{}), make(chan struct{})
	release := sync.OnceFunc(func() { close(released) })
	defer release()
	client.AddHook(redistest.NewHook().BeforeOnce("xack", func(context.Context, redis.Cmder) error {
		close(writing)
		<-released
		return nil
	}))
	a := receive(t, messages)
	stats := statsOf(t, sub, func(s redischannels.SubscriptionStats) bool { return s.Buffered == 2 && s.Redelivered == 1 },
		"two wait for their key, and the crashed consumer had the first before")
	require.Equal(t, 1, stats.InFlight)
	require.EqualValues(t, 3, stats.Recovered)
	a.Ack()
	<-writing
	stats = statsOf(t, sub, func(s redischannels.SubscriptionStats) bool { return s.Acking == 1 && s.InFlight == 1 }, "one is being acknowledged")
	require.Equal(t, 1, stats.Buffered)
	release()
	receive(t, messages).Ack()
	receive(t, messages).Ack()
	end := statsOf(t, sub, func(s redischannels.SubscriptionStats) bool { return s.InFlight+s.Buffered+s.Acking == 0 }, "all are done")
	require.Zero(t, end.Bytes+end.BackingOff)
}

// A reader without a group has no consumer, and passes what it cannot use.
func TestStats_WithoutGroup(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	topic := redistest.Key(t)
	sub := newSub(t, client, fanOut, deliveries(1))
	messages := sub.subscribe(t, topic)
	addRaw(t, client, topic, "no", "message")
	publish(t, client, topic, "a")
	receive(t, messages).Nack()
	stats := statsOf(t, sub, func(s redischannels.SubscriptionStats) bool { return s.Skipped == 2 }, "two are passed")
	require.Empty(t, stats.Group)
	require.Empty(t, stats.Consumer)
	require.EqualValues(t, 1, stats.Delivered)
	require.False(t, stats.LastRead.IsZero())
	require.Zero(t, stats.Trimmed)

	// Behind a subscription that takes nothing more than the stream keeps is appended.
	narrow := newSub(t, client, fanOut, tuned(func(c *redischannels.Tuning) { c.Prefetch = redischannels.NoPrefetch }))
	messages = narrow.subscribe(t, topic)
	publish(t, client, topic, numbered(10)...)
	first := receive(t, messages)
	require.NoError(t, client.XTrimMaxLen(t.Context(), topic, 1).Err())
	first.Ack()
	require.Equal(t, []string{"9"}, receiveAcked(t, messages, 1))
	if missed := narrow.events.of(redischannels.EventGap); len(missed) > 0 { // which Redis reports from 7.0 on
		require.EqualValues(t, 1, narrow.Stats()[0].Trimmed)
	} else {
		require.Nil(t, streamField(t, client, topic, "entries-added"))
	}

	_, err := sub.GroupStats(t.Context(), topic)
	require.ErrorIs(t, err, redischannels.ErrInvalidConfig)
}

// XINFO GROUPS does not know the lag before Redis 7.0, calls it unknown after an XDEL, and
// reports a wrong one after trimming: 10 entries, 7 of them trimmed, are "lag 10".
func TestStats_GroupLag(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	ctx := t.Context()
	read := func(t *testing.T, topic string, n int64) {
		t.Helper()
		require.NoError(t, client.XReadGroup(ctx, &redis.XReadGroupArgs{
			Group: "g", Consumer: "c", Streams: []string{topic, ">"}, Count: n, Block: -1,
		}).Err())
	}
	for name, test := range map[string]struct {
		prepare      func(t *testing.T, topic string, ids []string)
		lag, pending int64
		last         int // place in ids, -1 for none
	}{
		"untouched": {func(*testing.T, string, []string) {}, 1000, 0, -1},
		"read":      {func(t *testing.T, topic string, _ []string) { read(t, topic, 300) }, 700, 300, 299},
		"read to the end": {func(t *testing.T, topic string, _ []string) {
			read(t, topic, 1000)
		}, 0, 1000, 999},
		"trimmed before it was read": {func(t *testing.T, topic string, _ []string) {
			require.NoError(t, client.XTrimMaxLen(ctx, topic, 30).Err())
		}, 30, 0, -1},
		"trimmed and read": {func(t *testing.T, topic string, _ []string) {
			read(t, topic, 3)
			require.NoError(t, client.XTrimMaxLen(ctx, topic, 500).Err())
			read(t, topic, 10)
		}, 490, 13, 509},
		"deleted ahead": {func(t *testing.T, topic string, ids []string) {
			read(t, topic, 10)
			require.NoError(t, client.XDel(ctx, topic, ids[500], ids[501]).Err())
		}, 988, 10, 9},
		"empty": {func(t *testing.T, topic string, _ []string) {
			require.NoError(t, client.XTrimMaxLen(ctx, topic, 0).Err())
		}, 0, 0, -1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			topic := redistest.Key(t)
			sub := newSub(t, client)
			require.NoError(t, sub.SubscribeInitialize(topic))
			payloads := make([]string, 1000)
			ids := publish(t, client, topic, payloads...)
			test.prepare(t, topic, ids)
			stats, err := sub.GroupStats(ctx, topic)
			require.NoError(t, err)
			require.Equal(t, test.lag, stats.Lag, "lag")
			require.Equal(t, test.pending, stats.Pending, "pending")
			last := "0-0"
			if test.last >= 0 {
				last = ids[test.last]
				require.EqualValues(t, 1, stats.Consumers)
			}
			require.Equal(t, last, stats.LastDelivered)
		})
	}

	sub := newSub(t, client)
	_, err := sub.GroupStats(ctx, "")
	require.ErrorIs(t, err, redischannels.ErrInvalidArgument)
	topic := redistest.Key(t)
	_, err = sub.GroupStats(ctx, topic)
	require.ErrorContains(t, err, "no such key")
	require.ErrorContains(t, err, topic)
	publish(t, client, topic, "m")
	_, err = sub.GroupStats(ctx, topic)
	require.ErrorContains(t, err, "NOGROUP")
	require.ErrorContains(t, err, fmt.Sprintf("%q", "g"))
}

// After a restart from an append-only file Redis 7.0 does not know what a group has read, and
// reports a lag that is too large.
func TestStats_GroupLagAfterARestart(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t, redistest.AOF())
	client, topic := server.Client(t), redistest.Key(t)
	sub := newSub(t, client)
	require.NoError(t, sub.SubscribeInitialize(topic))
	publish(t, client, topic, make([]string, 100)...)
	deliverTo(t, client, topic, "c", 30, 0)
	server.Restart()
	deliverTo(t, client, topic, "c", 10, 0)
	stats, err := sub.GroupStats(t.Context(), topic)
	require.NoError(t, err)
	require.EqualValues(t, 60, stats.Lag)
	require.EqualValues(t, 40, stats.Pending)
}

package tests

import (
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/inspect"
	"github.com/flaminco/redischannels/internal/redistest"
)

// Where a group stands is what GroupStats says, and more.
func TestInspect_Groups(t *testing.T) {
	t.Parallel()
	client, topic := redistest.Shared(t).Client(t), redistest.Key(t)
	inspector := newInspector(t, client)
	sub := newSub(t, client, inFlight(4), deferAfter(50*time.Millisecond))
	ids := publish(t, client, topic, payloadsUpTo(1, 20)...)
	messages := sub.subscribe(t, topic)
	receive(t, messages)
	later(receive(t, messages), time.Hour)
	eventuallyDeferred(t, client, topic, 1)
	require.NoError(t, inspector.Pause(t.Context(), topic, "g", inspect.PauseOptions{Reason: "deploy"}))
	eventuallyState(t, sub, redischannels.StatePaused)
	require.NoError(t, client.XGroupCreate(t.Context(), topic, "another", "0").Err())
	require.NoError(t, client.XGroupCreateConsumer(t.Context(), topic, "another", "one").Err())

	groups := allOf(t, inspector.Groups(t.Context(), topic))
	require.Len(t, groups, 2)
	require.Equal(t, "another", groups[0].Name, "by name")
	require.Equal(t, inspect.Count{AtLeast: 20, AtMost: 20}, groups[0].Lag)
	require.Equal(t, 1, groups[0].Alive)
	g := groups[1]
	stats, err := sub.GroupStats(t.Context(), topic)
	require.NoError(t, err)
	require.Equal(t, inspect.Count{AtLeast: stats.Lag, AtMost: stats.LagAtMost}, g.Lag)
	require.True(t, g.Lag.Exact())
	require.Equal(t, stats.Pending, g.Pending)
	require.EqualValues(t, 20, g.Backlog())
	require.EqualValues(t, 1, g.Deferred)
	require.Zero(t, g.Returned)
	require.Equal(t, stats.LastDelivered, g.LastDelivered)
	require.True(t, g.Paused)
	require.Equal(t, "deploy", g.PauseReason)
	require.Equal(t, entryTime(t, ids[0]).UnixMilli(), g.OldestPending.UnixMilli())
	require.Equal(t, 1, g.Alive)

	one, err := inspector.Group(t.Context(), topic, "g")
	require.NoError(t, err)
	one.At = g.At
	require.Equal(t, g, one)

	_, err = inspector.Group(t.Context(), topic, "h")
	require.ErrorIs(t, err, inspect.ErrNoGroup)
	require.ErrorIs(t, errorOf(inspector.Groups(t.Context(), topic+"x")), inspect.ErrNoTopic)
	require.ErrorIs(t, errorOf(inspector.Groups(t.Context(), "")), redischannels.ErrInvalidArgument)
}

// A lag that Redis does not know is counted, up to a bound, and says so.
func TestInspect_LagHasABound(t *testing.T) {
	t.Parallel()
	client, topic := redistest.Shared(t).Client(t), redistest.Key(t)
	const entries = 12_000
	ids := publish(t, client, topic, make([]string, entries)...)
	deliverTo(t, client, topic, "c", 10, 0)
	require.NoError(t, client.XDel(t.Context(), topic, ids[11]).Err()) // Redis does not know the lag any more
	for _, part := range [][]string{ids[:5], ids[20:25]} {
		require.NoError(t, client.XDel(t.Context(), topic, part...).Err())
	}
	g, err := newInspector(t, client).Group(t.Context(), topic, "g")
	require.NoError(t, err)
	require.Equal(t, inspect.Count{AtLeast: 10_000, AtMost: entries - 11}, g.Lag)
	require.Equal(t, "10000+", g.Lag.String())
	stats, err := newSub(t, client).GroupStats(t.Context(), topic)
	require.NoError(t, err)
	require.EqualValues(t, 10_000, stats.Lag)
	require.EqualValues(t, entries-11, stats.LagAtMost)

	// A few entries less, and it is exact.
	require.NoError(t, client.XDel(t.Context(), topic, ids[100:2100]...).Err())
	g, err = newInspector(t, client).Group(t.Context(), topic, "g")
	require.NoError(t, err)
	require.Equal(t, "9984", g.Lag.String())
}

// Rates are those between two checks, and none where they cannot be known.
func TestInspect_Rates(t *testing.T) {
	t.Parallel()
	client, topic := redistest.Shared(t).Client(t), redistest.Key(t)
	if !redistest.IsRedis7(t, client) {
		require.NoError(t, client.XGroupCreateMkStream(t.Context(), topic, "g", "0").Err())
		g, err := newInspector(t, client).Group(t.Context(), topic, "g")
		require.NoError(t, err)
		_, ok := g.Since(g)
		require.False(t, ok)
		return
	}
	inspector := newInspector(t, client)
	look := func() inspect.Group {
		g, err := inspector.Group(t.Context(), topic, "g")
		require.NoError(t, err)
		return g
	}
	publish(t, client, topic, payloadsUpTo(1, 30)...)
	ids := deliverTo(t, client, topic, "c", 10, 0)
	before := look()
	publish(t, client, topic, payloadsUpTo(31, 40)...)
	require.NoError(t, client.XAck(t.Context(), topic, "g", ids...).Err())
	ids = deliverTo(t, client, topic, "c", 10, 0)
	require.NoError(t, client.XAck(t.Context(), topic, "g", ids...).Err())
	after := look()
	after.At = before.At.Add(10 * time.Second)
	rate, ok := after.Since(before)
	require.True(t, ok)
	require.InDelta(t, 1, rate.Appended, 1e-9)
	require.InDelta(t, 2, rate.Finished, 1e-9)
	require.InDelta(t, 20, rate.Drain.Seconds(), 1e-6)

	rate, ok = withTime(after, before.At.Add(20*time.Second)).Since(after)
	require.True(t, ok)
	require.Negative(t, rate.Drain, "nothing is finished")
	_, ok = after.Since(after)
	require.False(t, ok, "no time between")
	unknown := after
	unknown.Lag.AtMost++
	_, ok = unknown.Since(before)
	require.False(t, ok)
	require.NoError(t, client.XGroupSetID(t.Context(), topic, "g", "0").Err())
	_, ok = withTime(look(), after.At.Add(time.Second)).Since(after)
	require.False(t, ok, "what was set back was not finished")
}

func withTime(g inspect.Group, at time.Time) inspect.Group {
	g.At = at
	return g
}

// A consumer is alive while it reads, and the one that holds released entries never is.
func TestInspect_Consumers(t *testing.T) {
	t.Parallel()
	client, topic := redistest.Shared(t).Client(t), redistest.Key(t)
	inspector := newInspector(t, client)
	sub := newSub(t, client, minIdle(20*time.Second), tuned(func(c *redischannels.Tuning) { c.ClaimInterval = time.Minute }))
	publish(t, client, topic, payloadsUpTo(1, 3)...)
	deliverTo(t, client, topic, "crashed", 1, 0)
	back := returnStream(topic, "g")
	require.NoError(t, client.XGroupCreateMkStream(t.Context(), back, "g", "0").Err())
	require.NoError(t, client.XAdd(t.Context(), &redis.XAddArgs{Stream: back, Values: []string{"a", "b"}}).Err())
	require.NoError(t, client.XReadGroup(t.Context(), &redis.XReadGroupArgs{Group: "g", Consumer: "crashed", Streams: []string{back, ">"}, Count: 1, Block: -1}).Err())
	sub.subscribe(t, topic)
	require.NoError(t, client.XGroupCreateConsumer(t.Context(), topic, "g", "requeue").Err())
	byName := make(map[string]inspect.Consumer)
	consumers, err := inspector.Consumers(t.Context(), topic, "g")
	require.NoError(t, err)
	for _, c := range consumers {
		byName[c.Name] = c
	}
	require.EqualValues(t, 2, byName["crashed"].Pending, "the one in the return stream too")
	require.False(t, byName["requeue"].Alive)
	own := sub.Stats()[0].Consumer
	require.True(t, byName[own].Alive)
	require.ElementsMatch(t, []string{"crashed", "requeue", own}, slices.Collect(maps.Keys(byName)))

	// By MinIdle of the group: it was idle for longer than that of another one.
	require.NoError(t, client.HSet(t.Context(), controlOf(topic), "min-idle:g", 0).Err())
	require.NoError(t, client.HSet(t.Context(), controlOf(topic), "min-idle:g", 1).Err())
	redistest.Eventually(t, soon, func() bool {
		consumers, err := inspector.Consumers(t.Context(), topic, "g")
		return err == nil && !slices.ContainsFunc(consumers, func(c inspect.Consumer) bool { return c.Alive })
	}, "idle for a millisecond")

	_, err = inspector.Consumers(t.Context(), topic, "h")
	require.ErrorIs(t, err, inspect.ErrNoGroup)
}

// More pending entries than a page has, narrowed down.
func TestInspect_Pending(t *testing.T) {
	t.Parallel()
	client, topic := redistest.Shared(t).Client(t), redistest.Key(t)
	inspector := newInspector(t, client)
	publish(t, client, topic, make([]string, 1300)...)
	first, second := deliverTo(t, client, topic, "a", 1200, 0), deliverTo(t, client, topic, "b", 50, time.Hour)
	list := func(query inspect.PendingQuery) (ids []string) {
		for _, e := range allOf(t, inspector.Pending(t.Context(), topic, "g", query)) {
			ids = append(ids, e.ID)
		}
		return ids
	}
	require.Equal(t, append(slices.Clone(first), second...), list(inspect.PendingQuery{}))
	require.Equal(t, second, list(inspect.PendingQuery{Consumer: "b"}))
	require.Equal(t, second, list(inspect.PendingQuery{MinIdle: time.Minute}))
	require.Equal(t, second[:1], list(inspect.PendingQuery{MinIdle: time.Minute, Limit: 1}))
	require.Equal(t, first[600:605], list(inspect.PendingQuery{After: first[599], Limit: 5}))
	one := allOf(t, inspector.Pending(t.Context(), topic, "g", inspect.PendingQuery{Consumer: "b", Limit: 1}))[0]
	require.Equal(t, "b", one.Consumer)
	require.GreaterOrEqual(t, one.Idle, time.Hour)
	require.EqualValues(t, 1, one.Deliveries)

	back := returnStream(topic, "g")
	require.NoError(t, client.XGroupCreateMkStream(t.Context(), back, "g", "0").Err())
	require.Empty(t, list(inspect.PendingQuery{Returned: true}))
	id := client.XAdd(t.Context(), &redis.XAddArgs{Stream: back, Values: []string{"a", "b"}}).Val()
	require.NoError(t, client.XReadGroup(t.Context(), &redis.XReadGroupArgs{Group: "g", Consumer: "a", Streams: []string{back, ">"}, Block: -1}).Err())
	require.Equal(t, []string{id}, list(inspect.PendingQuery{Returned: true}))

	require.ErrorIs(t, errorOf(inspector.Pending(t.Context(), topic, "h", inspect.PendingQuery{})), inspect.ErrNoGroup)
	require.ErrorIs(t, errorOf(inspector.Pending(t.Context(), topic, "g", inspect.PendingQuery{After: "x"})), redischannels.ErrInvalidArgument)
	require.ErrorIs(t, errorOf(inspector.Pending(t.Context(), topic, "g", inspect.PendingQuery{Limit: -1})), redischannels.ErrInvalidArgument)
}

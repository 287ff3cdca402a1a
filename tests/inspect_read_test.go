package tests

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/inspect"
	"github.com/flaminco/redischannels/internal/redistest"
	"github.com/flaminco/redischannels/internal/stream"
	"github.com/flaminco/redischannels/schedule"
)

// allOf returns everything that a loop yields.
func allOf[T any](t *testing.T, loop iter.Seq2[T, error]) (all []T) {
	t.Helper()
	for v, err := range loop {
		require.NoError(t, err)
		all = append(all, v)
	}
	return all
}

// errorOf returns the error that ends a loop.
func errorOf[T any](loop iter.Seq2[T, error]) error {
	for _, err := range loop {
		if err != nil {
			return err
		}
	}
	return errors.New("the loop has ended without one")
}

// Topics are the streams that are topics, each once.
func TestInspect_Topics(t *testing.T) {
	t.Parallel()
	client := redistest.Start(t).Client(t)
	inspector := newInspector(t, client)
	require.Empty(t, allOf(t, inspector.Topics(t.Context(), inspect.TopicsQuery{})))
	var want []string
	for n := range 250 {
		topic := fmt.Sprintf("topic-%d", n)
		want = append(want, topic)
		publish(t, client, topic, "a")
	}
	for _, key := range []string{"{orders}:dead", "{orders}:audit", "{orders}:return:g", "{runs:7}:events:chat-1"} {
		publish(t, client, key, "a")
	}
	// Keys that only look like one of these.
	for _, key := range []string{"orders:dead", "{x}:dead:letters", "{runs}:events:chat-1", "{a}:b"} {
		want = append(want, key)
		publish(t, client, key, "a")
	}
	require.NoError(t, client.Set(t.Context(), "text", "x", 0).Err())
	publish(t, client, "a}b", "x") // no side keys can be named
	var names []string
	for _, topic := range allOf(t, inspector.Topics(t.Context(), inspect.TopicsQuery{})) {
		if topic.Name == "a}b" {
			require.Contains(t, topic.Problem, "SideKeys must be set")
			continue
		}
		require.Empty(t, topic.Problem)
		require.EqualValues(t, 1, topic.Length)
		names = append(names, topic.Name)
	}
	require.ElementsMatch(t, want, names)
	require.Len(t, allOf(t, inspector.Topics(t.Context(), inspect.TopicsQuery{Limit: 7})), 7)
	require.Len(t, allOf(t, inspector.Topics(t.Context(), inspect.TopicsQuery{Match: "topic-1?"})), 10)
	for range inspector.Topics(t.Context(), inspect.TopicsQuery{}) {
		break // without a panic
	}
	require.ErrorIs(t, errorOf(inspector.Topics(t.Context(), inspect.TopicsQuery{Limit: -1})), redischannels.ErrInvalidArgument)
}

// The topics of a cluster are on several masters.
func TestInspect_TopicsOfACluster(t *testing.T) {
	t.Parallel()
	client := redistest.StartCluster(t, 3).Client(t)
	inspector := newInspector(t, client)
	var want []string
	for n := range 30 {
		topic := fmt.Sprintf("topic-%d", n)
		want = append(want, topic)
		require.NoError(t, newSub(t, client).SubscribeInitialize(topic))
		publish(t, client, topic, "a", "b")
	}
	var names []string
	for _, topic := range allOf(t, inspector.Topics(t.Context(), inspect.TopicsQuery{})) {
		require.EqualValues(t, 2, topic.Length)
		require.EqualValues(t, 1, topic.Groups)
		names = append(names, topic.Name)
	}
	require.ElementsMatch(t, want, names)
	for _, topic := range want[:5] {
		groups := allOf(t, inspector.Groups(t.Context(), topic))
		require.Len(t, groups, 1)
		require.Equal(t, "2", groups[0].Lag.String())
		require.Len(t, allOf(t, inspector.Messages(t.Context(), topic, inspect.MessagesQuery{})), 2)
	}
}

// A topic with all that lies beside it.
func TestInspect_Topic(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	inspector := newInspector(t, client)
	dead := newDeadTopic(t, client)
	topic := dead.name
	dead.die(t, "g", "", "a", "1")
	pub, err := redischannels.NewPublisher(redischannels.PublisherConfig{Client: client, Retention: redischannels.Retention{MaxLen: 1000}}, nil)
	require.NoError(t, err)
	defer pub.Close()
	require.NoError(t, pub.Publish(topic, delayedFor(time.Hour, pubMessages("m", 3)...)...))
	ids := publish(t, client, topic, "b")

	found, err := inspector.Topic(t.Context(), topic)
	require.NoError(t, err)
	require.Positive(t, found.Bytes)
	require.WithinRange(t, found.First, time.Now().Add(-time.Minute), time.Now().Add(time.Minute))
	require.Equal(t, entryTime(t, ids[0]).UnixMilli(), found.Last.UnixMilli())
	found.Bytes, found.First, found.Last = 0, time.Time{}, time.Time{}
	want := inspect.Topic{Name: topic, Length: 2, Groups: 2, DeadLetters: 1, Delayed: 3, Retention: "maxlen ~ 1000", Added: 2}
	if !redistest.IsRedis7(t, client) {
		want.Added = -1
	}
	require.Equal(t, want, found)

	// Only delayed messages: no stream yet.
	early := redistest.Key(t, "early")
	require.NoError(t, pub.Publish(early, delayedFor(time.Hour, pubMessages("m", 1)...)...))
	found, err = inspector.Topic(t.Context(), early)
	require.NoError(t, err)
	require.EqualValues(t, 1, found.Delayed)
	require.Zero(t, found.Length)

	text := redistest.Key(t, "text")
	require.NoError(t, client.Set(t.Context(), text, "x", 0).Err())
	for name, want := range map[string]error{
		topic + "x": inspect.ErrNoTopic, text: redischannels.ErrWrongType, "": redischannels.ErrInvalidArgument, "a}b": redischannels.ErrInvalidArgument,
	} {
		_, err := inspector.Topic(t.Context(), name)
		require.ErrorIs(t, err, want, name)
	}
}

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

// Entries of a topic in both directions, between bounds, with their messages.
func TestInspect_Messages(t *testing.T) {
	t.Parallel()
	client, topic := redistest.Shared(t).Client(t), redistest.Key(t)
	inspector := newInspector(t, client)
	require.Empty(t, allOf(t, inspector.Messages(t.Context(), topic, inspect.MessagesQuery{})))
	ids := publish(t, client, topic, payloadsUpTo(1, 600)...)
	list := func(query inspect.MessagesQuery) (payloads []string) {
		for _, m := range allOf(t, inspector.Messages(t.Context(), topic, query)) {
			require.NoError(t, m.Err)
			payloads = append(payloads, string(m.Message.Payload))
		}
		return payloads
	}
	require.Equal(t, payloadsUpTo(1, 600), list(inspect.MessagesQuery{}))
	all := payloadsUpTo(1, 600)
	slices.Reverse(all)
	require.Equal(t, all, list(inspect.MessagesQuery{Newest: true}))
	require.Equal(t, all[:30], list(inspect.MessagesQuery{Newest: true, Limit: 30}))
	require.Equal(t, payloadsUpTo(11, 19), list(inspect.MessagesQuery{After: ids[9], Before: ids[19]}))
	require.Equal(t, payloadsUpTo(11, 12), list(inspect.MessagesQuery{After: ids[9], Limit: 2}))
	require.Equal(t, []string{"19", "18"}, list(inspect.MessagesQuery{Before: ids[19], Newest: true, Limit: 2}))

	// The loop does not wait for entries that are appended meanwhile.
	n := 0
	for _, err := range inspector.Messages(t.Context(), topic, inspect.MessagesQuery{}) {
		require.NoError(t, err)
		publish(t, client, topic, "more")
		n++
	}
	require.Equal(t, 600, n)

	// One that is none of the format stays readable as an entry.
	odd := addRaw(t, client, topic, "b", "1", "a", "2", "b", "3")
	m, err := inspector.Message(t.Context(), topic, odd, nil)
	require.NoError(t, err)
	require.ErrorAs(t, m.Err, new(*redischannels.DecodeError))
	require.Nil(t, m.Message)
	require.Equal(t, []redischannels.Field{{Name: "b", Value: []byte("1")}, {Name: "a", Value: []byte("2")}, {Name: "b", Value: []byte("3")}}, m.Fields)
	require.Equal(t, 6, m.Bytes)
	require.Equal(t, entryTime(t, odd).UnixMilli(), m.Time.UnixMilli())
	flat := addRaw(t, client, topic, "id", "1")
	m, err = inspector.Message(t.Context(), topic, flat, redischannels.FieldsMarshaler{})
	require.NoError(t, err)
	require.JSONEq(t, `{"id":"1"}`, string(m.Message.Payload))

	_, err = inspector.Message(t.Context(), topic, "1-1", nil)
	require.ErrorIs(t, err, inspect.ErrNoEntry)
	require.ErrorContains(t, err, "1-1")
	_, err = inspector.Message(t.Context(), topic, "x", nil)
	require.ErrorIs(t, err, redischannels.ErrInvalidArgument)
	require.ErrorIs(t, errorOf(inspector.Messages(t.Context(), topic, inspect.MessagesQuery{After: "x"})), redischannels.ErrInvalidArgument)
	require.ErrorIs(t, errorOf(inspector.Messages(t.Context(), "", inspect.MessagesQuery{})), redischannels.ErrInvalidArgument)
}

// Large entries do not add up to pages that fill the memory.
func TestInspect_MessagesOfLargeEntries(t *testing.T) {
	t.Parallel()
	client, topic := redistest.Start(t).Client(t), redistest.Key(t)
	const size = 1 << 20
	for range 40 {
		publish(t, client, topic, strings.Repeat("x", size))
	}
	n := 0
	redistest.ResetStats(t, client)
	for m, err := range newInspector(t, client).Messages(t.Context(), topic, inspect.MessagesQuery{}) {
		require.NoError(t, err)
		require.Len(t, m.Message.Payload, size)
		n++
	}
	require.Equal(t, 40, n)
	require.EqualValues(t, 1+40-16+1, redistest.CommandStats(t, client)["xrange"], "one by one after the first page")
}

// Dead letters by their reasons, the most frequent first.
func TestInspect_DeadLetterReasons(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	inspector := newInspector(t, client)
	dead := newDeadTopic(t, client)
	reasons, err := inspector.DeadLetterReasons(t.Context(), dead.name, "")
	require.NoError(t, err)
	require.Zero(t, reasons.Counted)
	for n, reason := range []string{"timeout", "no such customer", "timeout", "timeout"} {
		dead.dieOf(t, "g", reason, deadTime.Add(time.Duration(n)*time.Second))
	}
	last := dead.dieOf(t, "h", "timeout", deadTime.Add(time.Hour))
	reasons, err = inspector.DeadLetterReasons(t.Context(), dead.name, "")
	require.NoError(t, err)
	require.False(t, reasons.More)
	require.Equal(t, 5, reasons.Counted)
	require.Len(t, reasons.Reasons, 3)
	first := reasons.Reasons[0]
	require.Equal(t, []any{"g", "timeout", 3}, []any{first.Group, first.Reason, first.Count})
	require.True(t, first.First.Equal(deadTime))
	require.True(t, first.Last.Equal(deadTime.Add(3*time.Second)))
	reasons, err = inspector.DeadLetterReasons(t.Context(), dead.name, "h")
	require.NoError(t, err)
	require.Len(t, reasons.Reasons, 1)
	require.Equal(t, last, reasons.Reasons[0].ID)
	require.Len(t, allOf(t, inspector.DeadLetters(t.Context(), dead.name, redischannels.DeadLetterQuery{Group: "g"})), 4)
	_, err = inspector.DeadLetterReasons(t.Context(), "", "")
	require.ErrorIs(t, err, redischannels.ErrInvalidArgument)
}

// dieOf is die for a reason and a time.
func (d *deadTopic) dieOf(t *testing.T, group, reason string, at time.Time) (deadID string) {
	t.Helper()
	publish(t, d.client, d.name, "m")
	got, err := d.client.XReadGroup(t.Context(), &redis.XReadGroupArgs{Group: group, Consumer: "me", Streams: []string{d.name, ">"}, Block: -1}).Result()
	require.NoError(t, err)
	id := got[0].Messages[len(got[0].Messages)-1].ID
	res, err := moveDeadLetter(t.Context(), d.client, stream.DeadLetterMove{
		Stream: d.name, Topic: d.name, DeadTopic: d.dead, Group: group, Consumer: "me", ID: id, EntryID: id, Reason: reason, Count: 3, Time: at,
	})
	require.NoError(t, err)
	require.Equal(t, stream.DeadLetterMoved, res.Outcome)
	return res.ID
}

// All that waits: delayed messages, deferred retries, schedules.
func TestInspect_WhatWaits(t *testing.T) {
	t.Parallel()
	client, topic := redistest.Shared(t).Client(t), redistest.Key(t)
	inspector := newInspector(t, client)
	pub, err := redischannels.NewPublisher(redischannels.PublisherConfig{Client: client}, nil)
	require.NoError(t, err)
	defer pub.Close()
	require.NoError(t, pub.Publish(topic, delayedFor(time.Hour, pubMessages("m", 2)...)...))
	waiting := allOf(t, inspector.Delayed(t.Context(), topic))
	require.Len(t, waiting, 2)

	sub := newSub(t, client, inFlight(4), deferAfter(50*time.Millisecond))
	messages := sub.subscribe(t, topic)
	ids := publish(t, client, topic, payloadsUpTo(1, 150)...)
	for range ids {
		later(receive(t, messages), time.Hour)
	}
	eventuallyDeferred(t, client, topic, int64(len(ids)))
	retries := allOf(t, inspector.Deferred(t.Context(), topic, "g"))
	var entries []string
	for _, r := range retries {
		require.NoError(t, r.Err)
		require.Equal(t, 1, r.Count)
		require.WithinRange(t, r.Due, time.Now().Add(50*time.Minute), time.Now().Add(70*time.Minute))
		require.Equal(t, "_watermill_message_uuid", r.Fields[0].Name)
		require.Len(t, r.Fields, 3)
		entries = append(entries, r.EntryID)
	}
	require.ElementsMatch(t, ids, entries)
	require.NoError(t, client.HSet(t.Context(), "{"+topic+"}:delayed", retries[0].ID, "odd").Err())
	require.Error(t, allOf(t, inspector.Deferred(t.Context(), topic, "g"))[0].Err)

	schedules, err := schedule.New(schedule.Config{Client: client, Topic: topic}, nil)
	require.NoError(t, err)
	defer schedules.Close()
	_, err = schedules.Put(t.Context(), schedule.Schedule{ID: "nightly", Cron: "0 3 * * *", Message: pubMessages("m", 1)[0]})
	require.NoError(t, err)
	infos := allOf(t, inspector.Schedules(t.Context(), topic))
	require.Len(t, infos, 1)
	require.Equal(t, "nightly", infos[0].ID)

	for _, err := range []error{
		errorOf(inspector.Delayed(t.Context(), "")), errorOf(inspector.Deferred(t.Context(), "", "g")), errorOf(inspector.Deferred(t.Context(), topic, "")),
		errorOf(inspector.Audit(t.Context(), "", 0)), errorOf(inspector.Audit(t.Context(), topic, -1)),
	} {
		require.ErrorIs(t, err, redischannels.ErrInvalidArgument)
	}
	require.ErrorIs(t, errorOf(inspector.Schedules(t.Context(), "")), redischannels.ErrInvalidConfig)
}

// The audit stream, newest first.
func TestInspect_Audit(t *testing.T) {
	t.Parallel()
	client, topic := redistest.Shared(t).Client(t), redistest.Key(t)
	inspector := newInspector(t, client)
	require.Empty(t, allOf(t, inspector.Audit(t.Context(), topic, 0)))
	require.NoError(t, newSub(t, client).SubscribeInitialize(topic))
	for n := range 20 {
		require.NoError(t, inspector.Pause(t.Context(), topic, "g", inspect.PauseOptions{Reason: strconv.Itoa(n)}))
		require.NoError(t, inspector.Resume(t.Context(), topic, "g"))
	}
	lines := allOf(t, inspector.Audit(t.Context(), topic, 0))
	require.Len(t, lines, 40)
	require.Len(t, allOf(t, inspector.Audit(t.Context(), topic, 17)), 17)
	require.Equal(t, "resume", lines[0].Action)
	pause := lines[1]
	require.Equal(t, entryTime(t, pause.ID).UnixMilli(), pause.Time.UnixMilli())
	pause.ID, pause.Time = "", time.Time{}
	require.Equal(t, inspect.AuditLine{Who: "tester", Action: "pause", Group: "g", Details: map[string]string{"until": "0", "reason": "19"}}, pause)
}

// A server that is silent ends every read with its context.
func TestInspect_SilentServer(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	client, topic := server.Client(t), redistest.Key(t)
	inspector := newInspector(t, client)
	publish(t, client, topic, "a")
	server.Pause()
	defer server.Resume()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	for _, err := range []error{
		errorOf(inspector.Topics(ctx, inspect.TopicsQuery{})), errorOf(inspector.Groups(ctx, topic)), errorOf(inspector.Pending(ctx, topic, "g", inspect.PendingQuery{})),
		errorOf(inspector.Messages(ctx, topic, inspect.MessagesQuery{})), errorOf(inspector.Audit(ctx, topic, 0)), errorOf(inspector.Deferred(ctx, topic, "g")),
	} {
		require.ErrorContains(t, err, "redischannels/inspect: ")
	}
}

// aclInspect reads everything.
func aclInspect(t *testing.T, admin, client *redis.Client, topic string) error {
	t.Helper()
	_, dead := aclDeadLetter(t, admin, topic)
	ids := publish(t, admin, topic, make([]string, 300)...)
	deliverTo(t, admin, topic, "c", 10, 0)
	require.NoError(t, admin.XDel(t.Context(), topic, ids[20]).Err())
	pub, err := redischannels.NewPublisher(redischannels.PublisherConfig{Client: admin}, nil)
	require.NoError(t, err)
	defer pub.Close()
	require.NoError(t, pub.Publish(topic, delayedFor(time.Hour, pubMessages("m", 150)...)...))
	require.NoError(t, newInspector(t, admin).Pause(t.Context(), topic, "g", inspect.PauseOptions{Until: serverTime(t, admin).Add(time.Hour)}))
	due := redis.Z{Score: 1e13, Member: "a stored retry"}
	require.NoError(t, admin.ZAdd(t.Context(), dueOf(topic, "g"), due).Err())
	inspector := newInspector(t, client)
	topics := inspect.TopicsQuery{Match: topic}
	for _, err := range inspector.Topics(t.Context(), topics) {
		if err != nil {
			return err
		}
	}
	if _, err := inspector.Topic(t.Context(), topic); err != nil {
		return err
	}
	for _, err := range inspector.Groups(t.Context(), topic) {
		if err != nil {
			return err
		}
	}
	if _, err := inspector.Consumers(t.Context(), topic, "g"); err != nil {
		return err
	}
	for _, err := range []error{
		ended(inspector.Pending(t.Context(), topic, "g", inspect.PendingQuery{})),
		ended(inspector.Pending(t.Context(), topic, "g", inspect.PendingQuery{Returned: true})),
		ended(inspector.Messages(t.Context(), topic, inspect.MessagesQuery{})),
		ended(inspector.Messages(t.Context(), topic, inspect.MessagesQuery{Newest: true})),
		aclDelayedVanish(t, admin, inspector, topic), ended(inspector.Deferred(t.Context(), topic, "g")),
		ended(inspector.Schedules(t.Context(), topic)), ended(inspector.Audit(t.Context(), topic, 0)),
	} {
		if err != nil {
			return err
		}
	}
	reasons, err := inspector.DeadLetterReasons(t.Context(), topic, "")
	if err == nil {
		require.Equal(t, dead, reasons.Reasons[0].ID)
	}
	return err
}

// aclDelayedVanish lists delayed messages while the last of a page is moved.
func aclDelayedVanish(t *testing.T, admin *redis.Client, inspector *inspect.Inspector, topic string) error {
	t.Helper()
	n := 0
	for m, err := range inspector.Delayed(t.Context(), topic) {
		if err != nil {
			return err
		}
		if n++; n == 100 {
			require.NoError(t, admin.ZRem(t.Context(), "{"+topic+"}:due", m.ID).Err())
		}
	}
	require.Equal(t, 150, n)
	return nil
}

// ended runs a loop to its end.
func ended[T any](loop iter.Seq2[T, error]) error {
	for _, err := range loop {
		if err != nil {
			return err
		}
	}
	return nil
}

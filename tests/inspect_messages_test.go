package tests

import (
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

package tests

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/housekeeper"
	"github.com/flaminco/redischannels/internal/keys"
	"github.com/flaminco/redischannels/internal/redistest"
	"github.com/flaminco/redischannels/internal/retention"
)

// trimServer has small nodes, so that approximate trimming removes entries soon.
func trimServer(t *testing.T) *redis.Client {
	return redistest.Start(t, redistest.Arg("stream-node-max-entries", "3")).Client(t)
}

// trims is a topic with a trimmer that looks when the test says so.
type trims struct {
	t      *testing.T
	client redis.UniversalClient
	topic  string
	handle *housekeeper.Handle
	seen   *events
}

func newTrims(t *testing.T, client redis.UniversalClient) *trims {
	t.Helper()
	return newTrimsOf(t, client, redistest.Key(t))
}

func newTrimsOf(t *testing.T, client redis.UniversalClient, topic string) *trims {
	t.Helper()
	seen := &events{}
	handle := housekeeper.Open(client, eventObserver{seen})
	t.Cleanup(func() { require.NoError(t, handle.Close()) })
	return &trims{t, client, topic, handle, seen}
}

// look lets it look until nothing is removed any more.
func (s *trims) look(policy retention.Policy) {
	s.t.Helper()
	for before := int64(-1); before != s.len(); {
		before = s.len()
		require.NoError(s.t, s.handle.TrimNow(s.t.Context(), keys.Topic{Name: s.topic, Base: "{" + s.topic + "}"}, policy.String()))
	}
}

// passes waits until a time has passed by the clock of the server.
func (s *trims) passes(d time.Duration) {
	s.t.Helper()
	begun := s.client.Time(s.t.Context()).Val()
	redistest.Eventually(s.t, soon, func() bool { return s.client.Time(s.t.Context()).Val().Sub(begun) > d+time.Millisecond }, "the clock stands")
}

func (s *trims) len() int64 { return s.client.XLen(s.t.Context(), s.topic).Val() }

// add appends entries with IDs from long ago.
func (s *trims) add(from, to int) {
	s.t.Helper()
	pipe := s.client.Pipeline()
	for n := from; n < to; n++ {
		pipe.XAdd(s.t.Context(), &redis.XAddArgs{Stream: s.topic, ID: fmt.Sprint(n+1, "-1"), Values: []string{
			"_watermill_message_uuid", fmt.Sprint(n), "metadata", "", "payload", fmt.Sprint(n)}})
	}
	_, err := pipe.Exec(s.t.Context())
	require.NoError(s.t, err)
}

// consume reads and acknowledges entries in a group, which begins at the oldest entry.
func (s *trims) consume(group string, n int) {
	s.t.Helper()
	s.client.XGroupCreateMkStream(s.t.Context(), s.topic, group, "0") // it may exist
	for n > 0 {
		got, err := s.client.XReadGroup(s.t.Context(), &redis.XReadGroupArgs{
			Group: group, Consumer: "foreign", Streams: []string{s.topic, ">"}, Count: int64(n), NoAck: true}).Result()
		require.NoError(s.t, err)
		n -= len(got[0].Messages)
	}
}

var keepNothing = retention.Policy{StaleAfter: time.Hour}

// A stream that is consumed grows for ever; or entries go that a group has not read or acknowledged.
func TestRetention_KeepsWhatAGroupNeeds(t *testing.T) {
	t.Parallel()
	client := trimServer(t)
	t.Run("without a group", func(t *testing.T) {
		s := newTrims(t, client)
		s.add(0, 100)
		s.look(keepNothing)
		require.EqualValues(t, 100, s.len())
	})
	t.Run("the slowest group", func(t *testing.T) {
		s := newTrims(t, client)
		s.add(0, 100)
		s.consume("fast", 100)
		s.consume("slow", 60)
		s.look(keepNothing)
		require.InDelta(t, 41, s.len(), 3, "whole nodes")
		s.consume("slow", 40)
		s.look(keepNothing)
		require.LessOrEqual(t, s.len(), int64(3))
	})
	t.Run("an entry that is not acknowledged", func(t *testing.T) {
		s := newTrims(t, client)
		s.add(0, 100)
		s.consume("g", 50)
		require.NoError(t, client.XReadGroup(t.Context(), &redis.XReadGroupArgs{Group: "g", Consumer: "c", Streams: []string{s.topic, ">"}, Count: 1}).Err())
		s.consume("g", 49)
		s.look(keepNothing)
		require.InDelta(t, 50, s.len(), 3)
		require.Len(t, client.XRange(t.Context(), s.topic, "51-1", "51-1").Val(), 1)
	})
	t.Run("a group that must exist", func(t *testing.T) {
		s := newTrims(t, client)
		s.add(0, 100)
		s.consume("g", 100)
		policy := retention.Policy{StaleAfter: time.Hour, Groups: []string{"late", "other 1:x"}}
		s.look(policy)
		require.EqualValues(t, 100, s.len())
		s.consume("late", 100)
		s.look(policy)
		require.EqualValues(t, 100, s.len())
		s.consume("other 1:x", 100)
		s.look(policy)
		require.LessOrEqual(t, s.len(), int64(3))
	})
	t.Run("one that must not exist any more", func(t *testing.T) {
		s := newTrims(t, client)
		s.add(0, 100)
		s.consume("g", 100)
		s.look(retention.Policy{StaleAfter: time.Hour, Groups: []string{"never"}})
		require.EqualValues(t, 100, s.len())
		s.look(keepNothing)
		require.LessOrEqual(t, s.len(), int64(3))
	})
	t.Run("young entries", func(t *testing.T) {
		s := newTrims(t, client)
		s.add(0, 100)
		ids := publish(t, client, s.topic, numbered(100)...)
		s.consume("g", 200)
		s.look(retention.Policy{StaleAfter: time.Hour, Keep: time.Hour})
		require.InDelta(t, 100, s.len(), 3)
		require.Len(t, client.XRange(t.Context(), s.topic, ids[0], "+").Val(), 100)
	})
}

// What a group has not read is lost between its deletion and its restoration.
func TestRetention_DeletedGroupIsRestoredWhole(t *testing.T) {
	t.Parallel()
	client := trimServer(t)
	s := newTrims(t, client)
	sub := newSub(t, client)
	messages := sub.subscribe(t, s.topic)
	publish(t, client, s.topic, numbered(60)...)
	require.Equal(t, numbered(10), receiveAcked(t, messages, 10))
	s.consume("other", 60)
	s.look(keepNothing)
	require.NoError(t, client.XGroupDestroy(t.Context(), s.topic, "g").Err())
	s.look(keepNothing)
	got := receiveAcked(t, messages, 50)
	slices.Sort(got)
	want := numbered(60)[10:]
	slices.Sort(want)
	require.Equal(t, want, slices.Compact(got))
	sub.events.wait(t, redischannels.EventGroupLost)
	sub.events.none(t, redischannels.EventTrimmed)
	eventuallyPending(t, client, s.topic, 0)
	s.look(keepNothing)
	require.LessOrEqual(t, s.len(), int64(3))
}

// A group that nobody reads pins the stream without a word.
func TestRetention_WhatPinsIsNamed(t *testing.T) {
	t.Parallel()
	client := trimServer(t)
	policy := redischannels.TrimConsumed{StaleAfter: time.Millisecond}
	internal := retention.Policy{StaleAfter: time.Millisecond}
	for name, c := range map[string]struct {
		prepare func(s *trims)
		group   string
		text    string
		left    int64
	}{
		"nobody reads": {func(s *trims) { s.consume("forgotten", 40) }, "forgotten", `"forgotten" has made no progress for`, 61},
		"deleted": {func(s *trims) {
			s.consume("forgotten", 40)
			s.look(internal)
			require.NoError(s.t, client.XGroupDestroy(s.t.Context(), s.topic, "forgotten").Err())
		}, "forgotten", `"forgotten" was deleted`, 61},
	} {
		t.Run(name, func(t *testing.T) {
			s := newTrims(t, client)
			s.add(0, 100)
			s.consume("busy", 100)
			c.prepare(s)
			s.look(internal)
			s.passes(internal.StaleAfter)
			seen := &events{}
			keeper, err := redischannels.NewHousekeeper(redischannels.HousekeeperConfig{
				Client: client, Topics: []string{s.topic}, TrimConsumed: &policy, OnEvent: seen.add}, nil)
			require.NoError(t, err)
			ran := make(chan error, 1)
			ctx, cancel := context.WithCancel(t.Context())
			go func() { ran <- keeper.Run(ctx) }()
			event := seen.wait(t, redischannels.EventPinned)
			require.Equal(t, c.group, event.Group)
			require.Equal(t, s.topic, event.Topic)
			require.EqualValues(t, s.len(), event.Count)
			require.InDelta(t, c.left, event.Count, 3)
			require.Positive(t, event.Duration)
			require.ErrorContains(t, event.Err, c.text)
			cancel()
			require.NoError(t, <-ran)

			client.XGroupDestroy(t.Context(), s.topic, c.group)
			s.look(internal)
			require.InDelta(t, c.left, s.len(), 3, "it may be restored")
		})
	}
}

// IgnoreStale removes what a group needs that makes progress, however old; or a stale group pins the stream
// with it, or does not learn of its loss.
func TestRetention_IgnoreStale(t *testing.T) {
	t.Parallel()
	client := trimServer(t)
	s := newTrims(t, client)
	s.add(0, 100)
	s.consume("busy", 100)
	s.consume("g", 10)
	policy := retention.Policy{StaleAfter: 100 * time.Millisecond, IgnoreStale: true}
	s.look(policy)
	require.InDelta(t, 91, s.len(), 3)
	s.passes(policy.StaleAfter)
	s.consume("g", 10)
	s.look(policy)
	require.InDelta(t, 81, s.len(), 3, "it has made progress")
	s.passes(policy.StaleAfter)
	s.look(policy)
	left := int(s.len())
	require.LessOrEqual(t, left, 3)
	sub := newSub(t, client)
	messages := sub.subscribe(t, s.topic)
	require.Equal(t, numbered(100)[100-left:], receiveAcked(t, messages, left))
	if redistest.IsRedis7(t, client) {
		require.Equal(t, 80-left, sub.events.wait(t, redischannels.EventTrimmed).Count)
	}
}

// A group that has a subscription is deleted before a trimmer has seen it, and what it has not read is lost.
func TestRetention_GroupOfASubscriptionCounts(t *testing.T) {
	t.Parallel()
	client := trimServer(t)
	s := newTrims(t, client)
	s.add(0, 100)
	sub := newSub(t, client, func(c *redischannels.SubscriberConfig) { c.StartFrom = redischannels.Oldest })
	sub.subscribe(t, s.topic)
	sub.closeSoon(t)
	require.NoError(t, client.XGroupDestroy(t.Context(), s.topic, "g").Err())
	s.consume("other", 100)
	s.look(keepNothing)
	require.EqualValues(t, 100, s.len())
}

// MaxLen beside TrimConsumed takes what a group needs without a word, or its number includes what no group needed.
func TestRetention_MaxLenIsReportedWithItsNumber(t *testing.T) {
	t.Parallel()
	client := trimServer(t)
	redistest.NeedsRedis7(t, client, "the number of entries that were lost")
	s := newTrims(t, client)
	sub := newSub(t, client)
	messages := sub.subscribe(t, s.topic)
	s.add(0, 100)
	require.Equal(t, numbered(100), receiveAcked(t, messages, 100))
	eventuallyPending(t, client, s.topic, 0)
	s.look(keepNothing)
	require.LessOrEqual(t, s.len(), int64(3))
	require.NoError(t, sub.Close())
	s.add(100, 150)
	s.look(keepNothing)
	require.GreaterOrEqual(t, s.len(), int64(50))
	require.NoError(t, client.XTrimMaxLen(t.Context(), s.topic, 20).Err())
	again := newSub(t, client)
	require.Equal(t, numbered(150)[130:], receiveAcked(t, again.subscribe(t, s.topic), 20))
	require.Equal(t, 30, again.events.wait(t, redischannels.EventTrimmed).Count)
}

// A group that begins at the oldest entry reports as lost what was removed before it was created.
func TestRetention_NewGroupReportsNoLoss(t *testing.T) {
	t.Parallel()
	client := trimServer(t)
	s := newTrims(t, client)
	s.add(0, 100)
	s.consume("busy", 100)
	s.look(keepNothing)
	left := int(s.len())
	sub := newSub(t, client, func(c *redischannels.SubscriberConfig) { c.StartFrom = redischannels.Oldest })
	messages := sub.subscribe(t, s.topic)
	require.Equal(t, numbered(100)[100-left:], receiveAcked(t, messages, left))
	s.add(100, 130)
	require.Equal(t, numbered(130)[100:], receiveAcked(t, messages, 30))
	sub.events.none(t, redischannels.EventTrimmed)

	require.NoError(t, client.XTrimMaxLen(t.Context(), s.topic, 0).Err())
	require.NoError(t, sub.Close())
	s.add(130, 140)
	require.NoError(t, client.XTrimMaxLen(t.Context(), s.topic, 4).Err())
	again := newSub(t, client)
	require.Equal(t, numbered(140)[136:], receiveAcked(t, again.subscribe(t, s.topic), 4))
	if redistest.IsRedis7(t, client) {
		require.Equal(t, 6, again.events.wait(t, redischannels.EventTrimmed).Count, "what others remove is reported")
	}
}

// A Publisher trims the topics that it publishes to, by the settings of the topic, those of a channel among them.
func TestRetention_PublisherTrims(t *testing.T) {
	t.Parallel()
	client := redistest.Start(t).Client(t)
	prepared := func(t *testing.T) *trims {
		s := newTrims(t, client)
		s.add(0, 1000)
		s.consume("g", 1000)
		return s
	}
	consumed := redischannels.Retention{TrimConsumed: &redischannels.TrimConsumed{Groups: []string{"g"}}}
	for name, use := range map[string]func(t *testing.T, topic string){
		"Publish": func(t *testing.T, topic string) {
			p := newTestPublisher(t, client, func(c *redischannels.PublisherConfig) { c.Retention = consumed })
			require.NoError(t, p.Publish(topic, pubMessages("m", 1)...))
		},
		"one topic": func(t *testing.T, topic string) {
			p := newTestPublisher(t, client, func(c *redischannels.PublisherConfig) {
				c.TopicRetention = map[string]redischannels.Retention{topic: consumed}
			})
			_, err := p.Append(t.Context(), topic, pubMessages("m", 1)...)
			require.NoError(t, err)
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := prepared(t)
			use(t, s.topic)
			redistest.Eventually(t, soon, func() bool { return s.len() <= 200 }, "it is not trimmed")
		})
	}
	t.Run("not without the setting", func(t *testing.T) {
		s := prepared(t)
		p := newTestPublisher(t, client)
		require.NoError(t, p.Publish(s.topic, pubMessages("m", 1)...))
		require.NoError(t, p.Close())
		require.EqualValues(t, 1001, s.len())
		require.Zero(t, client.Exists(t.Context(), controlOf(s.topic)).Val())
	})
	t.Run("a topic without side keys", func(t *testing.T) {
		p := newTestPublisher(t, client, func(c *redischannels.PublisherConfig) { c.Retention = consumed })
		require.ErrorContains(t, p.Publish("a}b", pubMessages("m", 1)...), "SideKeys")
		require.Zero(t, client.Exists(t.Context(), "a}b").Val())
	})
}

// The length of a stream is bounded while it is published to and consumed, also by several trimmers.
func TestRetention_LengthIsBounded(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	client := server.Client(t)
	s := newTrims(t, client)
	others := newTrimsOf(t, server.Client(t), s.topic)
	messages := newSub(t, client).subscribe(t, s.topic)
	longest := int64(0)
	for range 20 {
		publish(t, client, s.topic, numbered(500)...)
		receiveAcked(t, messages, 500)
		eventuallyPending(t, client, s.topic, 0)
		s.look(keepNothing)
		others.look(keepNothing)
		longest = max(longest, s.len())
	}
	require.LessOrEqual(t, longest, int64(200), "of 10,000")
}

// Settings of two programs that differ go unnoticed; or one that leads is overtaken by others.
func TestRetention_SettingsAreTheTopics(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t, redistest.Arg("stream-node-max-entries", "3"))
	s, other := newTrims(t, server.Client(t)), newTrims(t, server.Client(t))
	other.topic = s.topic
	s.add(0, 100)
	s.consume("g", 100)
	s.look(retention.Policy{StaleAfter: time.Hour, Groups: []string{"late"}})
	require.EqualValues(t, 100, s.len())
	other.look(keepNothing)
	require.EqualValues(t, 100, s.len(), "another one leads")
	event := other.seen.wait(t, redischannels.EventError)
	require.Equal(t, "0 3600000 0 4:late -> 0 3600000 0", event.Position)
	s.seen.none(t, redischannels.EventError)
	require.NoError(t, s.handle.TrimNow(t.Context(), keys.Topic{Name: s.topic, Base: "{" + s.topic + "}"}, ""))
	require.Less(t, s.len(), int64(100), "the settings that came last")
}

// A server that is out of memory refuses the command that would free some.
func TestRetention_TrimsWithoutMemory(t *testing.T) {
	t.Parallel()
	client := trimServer(t)
	s := newTrims(t, client)
	s.add(0, 1000)
	s.consume("g", 1000)
	require.NoError(t, client.ConfigSet(t.Context(), "maxmemory", "1").Err())
	require.ErrorContains(t, client.Set(t.Context(), redistest.Key(t), "x", 0).Err(), "OOM")
	s.look(keepNothing)
	require.LessOrEqual(t, s.len(), int64(3))
}

// What cannot be trimmed is an error that says why, and changes nothing.
func TestRetention_Errors(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	run := func(t *testing.T, topic string) error {
		keeper, err := redischannels.NewHousekeeper(redischannels.HousekeeperConfig{
			Client: client, Topics: []string{topic}, TrimConsumed: &redischannels.TrimConsumed{}}, nil)
		require.NoError(t, err)
		return keeper.Run(t.Context())
	}
	t.Run("no stream", func(t *testing.T) {
		topic := redistest.Key(t)
		require.NoError(t, client.Set(t.Context(), topic, "x", 0).Err())
		require.ErrorIs(t, run(t, topic), redischannels.ErrWrongType)
		require.Zero(t, client.Exists(t.Context(), controlOf(topic)).Val())
	})
	t.Run("side keys of another topic", func(t *testing.T) {
		topic := redistest.Key(t)
		require.NoError(t, client.HSet(t.Context(), controlOf(topic), "topic", "another").Err())
		require.ErrorIs(t, run(t, topic), redischannels.ErrTopicCollision)
	})
	t.Run("a policy of others", func(t *testing.T) {
		s := newTrims(t, client)
		s.add(0, 1000)
		s.consume("g", 1000)
		for _, policy := range []string{"daily", "1 2 0 9:x x", "1 2 0 1:a1:b"} {
			require.NoError(t, client.HSet(t.Context(), controlOf(s.topic), "trim", policy).Err())
			err := s.handle.TrimNow(t.Context(), keys.Topic{Name: s.topic, Base: "{" + s.topic + "}"}, "")
			require.ErrorContains(t, err, "cannot be read")
			require.EqualValues(t, 1000, s.len())
		}
	})
}

// The keys of a topic are in one slot of a cluster.
func TestRetention_Cluster(t *testing.T) {
	t.Parallel()
	client := redistest.StartCluster(t, 3).Client(t)
	for range 3 {
		s := newTrims(t, client)
		s.add(0, 1000)
		s.consume("g", 1000)
		p := newTestPublisher(t, client, func(c *redischannels.PublisherConfig) {
			c.Retention.TrimConsumed = &redischannels.TrimConsumed{}
		})
		require.NoError(t, p.Publish(s.topic, pubMessages("m", 1)...))
		redistest.Eventually(t, soon, func() bool { return s.len() <= 200 }, "it is not trimmed")
	}
}

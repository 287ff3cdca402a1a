package tests

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/components/delay"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
)

// delayedFor are messages that are due after a delay, as Watermill's components/delay marks them.
func delayedFor(d time.Duration, msgs ...*message.Message) []*message.Message {
	for _, msg := range msgs {
		delay.Message(msg, delay.For(d))
	}
	return msgs
}

// delayKeys are the side keys of a topic that must not be there when nothing waits.
func delayKeys(topic string) []string {
	return []string{"{" + topic + "}:delayed", "{" + topic + "}:due", "{" + topic + "}:mover"}
}

// eventuallyNoDelays waits until nothing is left of delayed messages.
func eventuallyNoDelays(t *testing.T, client redis.UniversalClient, topic string) {
	t.Helper()
	redistest.Eventually(t, soon, func() bool { return client.Exists(t.Context(), delayKeys(topic)...).Val() == 0 }, "the keys of delayed messages are deleted")
}

func serverTime(t *testing.T, client *redis.Client) time.Time {
	t.Helper()
	now, err := client.Time(t.Context()).Result()
	require.NoError(t, err)
	return now
}

// entryTime is when an entry was appended, by the server's clock.
func entryTime(t *testing.T, id string) time.Time {
	t.Helper()
	var ms, seq int64
	_, err := fmt.Sscanf(id, "%d-%d", &ms, &seq)
	require.NoError(t, err)
	return time.UnixMilli(ms)
}

func TestDelayed_IsAppendedWhenDue(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	topic := redistest.Key(t)
	p := newTestPublisher(t, client)
	before := serverTime(t, client)
	results, err := p.AppendResults(t.Context(), topic, delayedFor(300*time.Millisecond, pubMessages("m", 1)...)...)
	require.NoError(t, err)
	require.Len(t, results, 1)
	require.Equal(t, redischannels.OutcomeScheduled, results[0].Outcome)
	require.NotEmpty(t, results[0].DelayedID)
	require.Empty(t, results[0].EntryID)
	require.NoError(t, results[0].Err)
	require.Zero(t, client.Exists(t.Context(), topic).Val())

	redistest.Eventually(t, soon, func() bool { return client.XLen(t.Context(), topic).Val() == 1 }, "it is appended")
	ids, uuids := pubEntries(t, client, topic)
	require.Equal(t, []string{"m0"}, uuids)
	require.False(t, entryTime(t, ids[0]).Before(before.Truncate(time.Millisecond).Add(300*time.Millisecond)), "early")
	eventuallyNoDelays(t, client, topic)
}

// A batch of both kinds is one step: all of it, or none where one message is refused.
func TestDelayed_BatchOfBothKinds(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	topic := redistest.Key(t)
	p := newTestPublisher(t, client)
	msgs := pubMessages("m", 1200)
	for i := range msgs {
		if i%2 == 1 {
			delayedFor(time.Hour, msgs[i])
		}
	}
	ids, err := p.Append(t.Context(), topic, msgs...)
	require.NoError(t, err)
	entries, uuids := pubEntries(t, client, topic)
	require.Len(t, entries, 600)
	for i, id := range ids {
		if i%2 == 1 {
			require.Empty(t, id)
			continue
		}
		require.Equal(t, entries[i/2], id)
		require.Equal(t, msgs[i].UUID, uuids[i/2])
	}
	require.EqualValues(t, 600, client.HLen(t.Context(), delayKeys(topic)[0]).Val())
	require.EqualValues(t, 600, client.ZCard(t.Context(), delayKeys(topic)[1]).Val())

	// A past time, as of a message that is published again, and a time in whole seconds.
	delay.Message(msgs[0], delay.Until(time.Now().Add(-time.Hour)))
	results, err := p.AppendResults(t.Context(), topic, msgs[:1]...)
	require.NoError(t, err)
	require.Equal(t, redischannels.OutcomeAppended, results[0].Outcome)
	require.NotEmpty(t, results[0].EntryID)
}

func TestDelayed_RefusedBatchLeavesNothing(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	for name, c := range map[string]struct {
		prepare func(topic string)
		msgs    func(msgs []*message.Message)
		want    error
	}{
		"too large":        {want: redischannels.ErrTooLarge, msgs: func(msgs []*message.Message) { msgs[1].Payload = make([]byte, 1<<20) }},
		"not a time":       {want: redischannels.ErrInvalidArgument, msgs: func(msgs []*message.Message) { msgs[1].Metadata[delay.DelayedUntilKey] = "x" }},
		"nil":              {want: redischannels.ErrInvalidArgument, msgs: func(msgs []*message.Message) { msgs[0] = nil }},
		"the topic":        {want: redischannels.ErrWrongType, prepare: func(topic string) { client.Set(t.Context(), topic, "x", 0) }},
		"the control":      {want: redischannels.ErrWrongType, prepare: func(topic string) { client.Set(t.Context(), "{"+topic+"}:control", "x", 0) }},
		"the store":        {want: redischannels.ErrWrongType, prepare: func(topic string) { client.Set(t.Context(), "{"+topic+"}:delayed", "x", 0) }},
		"the due set":      {want: redischannels.ErrWrongType, prepare: func(topic string) { client.Set(t.Context(), "{"+topic+"}:due", "x", 0) }},
		"of another topic": {want: redischannels.ErrTopicCollision, prepare: func(topic string) { client.HSet(t.Context(), "{"+topic+"}:control", "topic", "{"+topic+"}") }},
	} {
		topic := redistest.Key(t, strings.ReplaceAll(name, " ", "-"))
		if c.prepare != nil {
			c.prepare(topic)
		}
		msgs := pubMessages("m", 3)
		delayedFor(time.Hour, msgs[1])
		if c.msgs != nil {
			c.msgs(msgs)
		}
		err := newTestPublisher(t, client).Publish(topic, msgs...)
		require.ErrorIs(t, err, c.want, name)
		requireOutcomes(t, err, redischannels.OutcomeNotAppended, 3)
		for _, key := range append(delayKeys(topic), topic) {
			require.NotContains(t, []string{"stream", "hash", "zset"}, client.Type(t.Context(), key).Val(), "%s: %s", name, key)
		}
	}
}

// orders and {orders} have the same side keys: what is delayed for one would be appended to the other.
func TestDelayed_TopicCollision(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	topic := redistest.Key(t)
	p := newTestPublisher(t, client)
	require.NoError(t, p.Publish(topic, delayedFor(time.Hour, pubMessages("m", 1)...)...))
	err := p.Publish("{"+topic+"}", delayedFor(time.Hour, pubMessages("m", 1)...)...)
	require.ErrorIs(t, err, redischannels.ErrTopicCollision)
	require.ErrorContains(t, err, topic)
	keeper, err := redischannels.NewHousekeeper(redischannels.HousekeeperConfig{Client: client, Topics: []string{"{" + topic + "}"}}, nil)
	require.NoError(t, err)
	require.NoError(t, client.ZAdd(t.Context(), delayKeys(topic)[1], redis.Z{Member: "1-1"}).Err()) // something is due
	require.ErrorIs(t, keeper.Run(t.Context()), redischannels.ErrTopicCollision)
	// Plain publishing needs none of the keys.
	require.NoError(t, p.Publish("{"+topic+"}", pubMessages("m", 1)...))
}

func TestDelayed_SideKeys(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	topic := redistest.Key(t) + "}"
	err := newTestPublisher(t, client).Publish(topic, delayedFor(time.Hour, pubMessages("m", 1)...)...)
	require.ErrorIs(t, err, redischannels.ErrInvalidArgument)
	require.ErrorContains(t, err, "SideKeys")
	base := redistest.Key(t, "base")
	p := newTestPublisher(t, client, func(c *redischannels.PublisherConfig) { c.SideKeys = func(string) string { return base } })
	require.NoError(t, p.Publish(topic, delayedFor(time.Millisecond, pubMessages("m", 1)...)...))
	redistest.Eventually(t, soon, func() bool { return client.XLen(t.Context(), topic).Val() == 1 }, "it is appended")
	require.Equal(t, topic, client.HGet(t.Context(), base+":control", "topic").Val())
	require.NoError(t, client.Del(t.Context(), topic).Err())
}

// The topic is bounded by the Retention of the publisher, whichever process appends.
func TestDelayed_RetentionOfThePublisher(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	for name, retention := range map[string]redischannels.Retention{
		"length": {MaxLen: 3, Exact: true},
		"age":    {MaxAge: 100 * time.Millisecond, Exact: true},
	} {
		topic := redistest.Key(t, name)
		p := newTestPublisher(t, client, func(c *redischannels.PublisherConfig) { c.Retention = retention })
		publish(t, client, topic, make([]string, 10)...)
		require.NoError(t, p.Publish(topic, delayedFor(200*time.Millisecond, pubMessages("m", 3)...)...))
		eventuallyNoDelays(t, client, topic)
		_, uuids := pubEntries(t, client, topic)
		require.Equal(t, []string{"m0", "m1", "m2"}, uuids, name)
	}
}

func TestDelayed_ListAndCancel(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	topic := redistest.Key(t)
	p := newTestPublisher(t, client)
	waiting, err := redischannels.NewDelayedMessages(redischannels.DelayedMessagesConfig{Client: client}, nil)
	require.NoError(t, err)
	list := func() (uuids, ids []string) {
		var last time.Time
		for m, err := range waiting.List(t.Context(), topic) {
			require.NoError(t, err)
			require.NoError(t, m.Err)
			require.Equal(t, topic, m.Topic)
			require.False(t, m.Due.Before(last))
			last = m.Due
			uuids, ids = append(uuids, string(m.Fields[0].Value)), append(ids, m.ID)
		}
		return uuids, ids
	}
	uuids, _ := list()
	require.Empty(t, uuids)

	// Some hundreds of one due time, some before, one behind; large ones make short pages.
	msgs := pubMessages("m", 350)
	at := time.Now().Add(time.Hour).Truncate(time.Second)
	for i, msg := range msgs {
		delay.Message(msg, delay.Until(at.Add(time.Duration(min(i/100, 2))*time.Second)))
		if i%100 == 0 {
			msg.Payload = make([]byte, 200<<10)
		}
	}
	results, err := p.AppendResults(t.Context(), topic, msgs...)
	require.NoError(t, err)
	require.NoError(t, p.Publish(topic, delayedFor(3*time.Hour, pubMessages("last", 1)...)...))
	uuids, ids := list()
	require.Len(t, uuids, 351)
	require.ElementsMatch(t, append(pubUUIDs(msgs), "last0"), uuids)
	require.Equal(t, "last0", uuids[350])

	cancelled, err := waiting.Cancel(t.Context(), topic, results[7].DelayedID, "1-1", results[7].DelayedID, results[8].DelayedID)
	require.NoError(t, err)
	require.Equal(t, []string{results[7].DelayedID, results[8].DelayedID}, cancelled)
	uuids, _ = list()
	require.Len(t, uuids, 349)
	require.NotContains(t, uuids, "m7")
	cancelled, err = waiting.Cancel(t.Context(), topic, ids...)
	require.NoError(t, err)
	require.Len(t, cancelled, 349)
	require.Zero(t, client.Exists(t.Context(), delayKeys(topic)...).Val())
	require.Zero(t, client.Exists(t.Context(), topic).Val())
	for _, bad := range []string{"", "a}b"} {
		_, err := waiting.Cancel(t.Context(), bad, "1-1")
		require.ErrorIs(t, err, redischannels.ErrInvalidArgument)
		for _, err := range waiting.List(t.Context(), bad) {
			require.ErrorIs(t, err, redischannels.ErrInvalidArgument)
		}
	}
}

func TestChannel_WriteLater(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	hub, err := redischannels.NewHub(client, redischannels.HubConfig{})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, hub.Close()) })
	// A format without a place for the metadata that Watermill marks a message with.
	topic := redistest.Key(t)
	channel, err := redischannels.NewStreamChannel[map[string]string](hub, topic, redischannels.StreamChannelConfig{Format: redischannels.FieldsMarshaler{}})
	require.NoError(t, err)
	w := channel.Writer()
	now := serverTime(t, client)
	value := map[string]string{"a": "b"}
	for _, write := range []func() (redischannels.PublishResult, error){
		func() (redischannels.PublishResult, error) {
			return w.WriteAfter(t.Context(), 250*time.Millisecond, value)
		},
		func() (redischannels.PublishResult, error) {
			return w.WriteAt(t.Context(), now.Add(250*time.Millisecond), value)
		},
	} {
		result, err := write()
		require.NoError(t, err)
		require.Equal(t, redischannels.OutcomeScheduled, result.Outcome)
		require.NotEmpty(t, result.DelayedID)
	}
	for _, write := range []func() (redischannels.PublishResult, error){
		func() (redischannels.PublishResult, error) { return w.WriteAfter(t.Context(), -time.Second, value) },
		func() (redischannels.PublishResult, error) { return w.WriteAt(t.Context(), now, value) },
	} {
		result, err := write()
		require.NoError(t, err)
		require.Equal(t, redischannels.OutcomeAppended, result.Outcome)
		require.NotEmpty(t, result.EntryID)
	}
	redistest.Eventually(t, soon, func() bool { return client.XLen(t.Context(), topic).Val() == 4 }, "all are appended")
	entries := client.XRange(t.Context(), topic, "-", "+").Val()
	for _, e := range entries[2:] {
		require.False(t, entryTime(t, e.ID).Before(now.Truncate(time.Millisecond).Add(250*time.Millisecond)), "early")
		require.Equal(t, "b", e.Values["a"])
	}

	live, err := redischannels.NewPubSubChannel[string](hub, topic, redischannels.PubSubChannelConfig{})
	require.NoError(t, err)
	_, err = live.Writer().WriteAfter(t.Context(), time.Second, "x")
	require.ErrorIs(t, err, redischannels.ErrNotSupported)
	own, err := redischannels.NewChannel[string](newTestPublisher(t, client), nil, redistest.Key(t, "own"), redischannels.ChannelConfig[string]{})
	require.NoError(t, err)
	result, err := own.Writer().WriteAfter(t.Context(), time.Hour, "x")
	require.NoError(t, err)
	require.Equal(t, redischannels.OutcomeScheduled, result.Outcome)
	w.Complete(nil)
	_, err = w.WriteAfter(context.Background(), time.Second, value)
	require.ErrorIs(t, err, redischannels.ErrCompleted)
}

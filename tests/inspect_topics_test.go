package tests

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/inspect"
	"github.com/flaminco/redischannels/internal/redistest"
)

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

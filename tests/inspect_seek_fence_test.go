package tests

import (
	"fmt"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels/internal/delayed"
	"github.com/flaminco/redischannels/internal/keys"
	"github.com/flaminco/redischannels/internal/redisconn"
	"github.com/flaminco/redischannels/internal/redistest"
	"github.com/flaminco/redischannels/internal/stream"
)

// pendingFor is a stream with two entries that are pending for the consumer "me" of the group "g", which was sought
// once.
func pendingFor(t *testing.T, client redis.UniversalClient, topic string) (group stream.Group, ids []string) {
	t.Helper()
	require.NoError(t, client.XGroupCreateMkStream(t.Context(), topic, "g", "0").Err())
	ids = publish(t, client, topic, "1", "2")
	require.NoError(t, client.XReadGroup(t.Context(), &redis.XReadGroupArgs{Group: "g", Consumer: "me", Streams: []string{topic, ">"}, Block: -1}).Err())
	require.NoError(t, client.HSet(t.Context(), controlOf(topic), "seek:g", "1 5-7 token").Err())
	return stream.Group{Client: client, Key: topic, Name: "g", Consumer: "me", Control: controlOf(topic), Records: client}, ids
}

// What is pending for a consumer that took its name before a seek was delivered to it again: each command that ends
// or keeps an entry is refused, and has changed nothing. With the name of after the seek each is done.
func TestSeek_OlderConsumersAreRefused(t *testing.T) {
	t.Parallel()
	move := func(t *testing.T, g *stream.Group, id string, fields ...string) error {
		_, err := moveDeadLetter(t.Context(), g.Client, stream.DeadLetterMove{
			Stream: g.Key, Topic: g.Key, DeadTopic: deadStream(g.Key), Group: g.Name, Consumer: g.Consumer, ID: id, EntryID: id,
			Control: g.Control, Sought: g.Sought, Fields: fields,
		})
		return err
	}
	for name, run := range map[string]func(t *testing.T, g *stream.Group, id string) error{
		"ack": func(t *testing.T, g *stream.Group, id string) error {
			states, _, err := g.AckOwned(t.Context(), []string{id})
			require.True(t, err != nil || states[0] == stream.Owned)
			return err
		},
		"renewal": func(t *testing.T, g *stream.Group, id string) error {
			states, err := g.Hold(t.Context(), []stream.Pending{{Text: id, Count: stream.KeepCount}})
			require.True(t, err != nil || states[0] == stream.Owned)
			return err
		},
		"dead letter": func(t *testing.T, g *stream.Group, id string) error { return move(t, g, id) },
		"large dead letter": func(t *testing.T, g *stream.Group, id string) error {
			return move(t, g, id, manyFields(5000)...)
		},
		"deferral": func(t *testing.T, g *stream.Group, id string) error {
			target := delayed.Target{Topic: keys.Topic{Name: g.Key, Base: "{" + g.Key + "}"}, Group: g.Name}
			outcomes, _, err := delayed.Defer(t.Context(), g.Client, target, g.Key, delayed.Owner{Consumer: g.Consumer, Sought: g.Sought}, 10,
				[]delayed.Retry{{ID: id, EntryID: id, Delay: time.Hour}})
			require.True(t, err != nil || outcomes[0] == delayed.Deferred)
			return err
		},
		"restore": func(t *testing.T, g *stream.Group, id string) error {
			parsed, err := stream.ParseID(id)
			require.NoError(t, err)
			require.NoError(t, g.Client.XGroupDestroy(t.Context(), g.Key, "g").Err())
			done, err := g.Restore(t.Context(), stream.Span{Last: parsed}, nil)
			require.Equal(t, err == nil, done.Created)
			if err != nil {
				require.Empty(t, g.Client.XInfoGroups(t.Context(), g.Key).Val(), "%v", err)
			}
			return err
		},
	} {
		for sought := range int64(2) {
			t.Run(fmt.Sprintf("%s, after %d seeks", name, sought), func(t *testing.T) {
				t.Parallel()
				client, topic := redistest.Shared(t).Client(t), redistest.Key(t)
				group, ids := pendingFor(t, client, topic)
				group.Sought = sought
				err := run(t, &group, ids[0])
				if sought == 1 {
					require.NoError(t, err)
					return
				}
				require.Equal(t, redisconn.KindSought, redisconn.Classify(err), "%v", err)
				require.Equal(t, stream.Sought{Generation: 1, After: stream.ID{Ms: 5, Seq: 7}}, stream.SoughtBy(err))
				require.Zero(t, client.XLen(t.Context(), deadStream(topic)).Val())
				if name != "restore" {
					require.Len(t, pendingOf(t, client, topic), 2)
					require.Equal(t, "me", pendingOf(t, client, topic)[0].Consumer)
				}
			})
		}
	}
}

// A scan by an older consumer claims nothing, and returns the seek.
func TestSeek_OlderConsumersClaimNothing(t *testing.T) {
	t.Parallel()
	client, topic := redistest.Shared(t).Client(t), redistest.Key(t)
	group, ids := pendingFor(t, client, topic)
	group.Consumer = "other"
	for sought, claimed := range map[int64][]string{0: nil, 1: ids} {
		group.Sought = sought
		found, err := group.Scan(t.Context(), 0, stream.ID{}, 10, stream.Beside{})
		require.NoError(t, err)
		require.ElementsMatch(t, claimed, found.IDs)
		require.Equal(t, stream.Sought{Generation: 1, After: stream.ID{Ms: 5, Seq: 7}}, found.Sought)
	}
}

// While a hash slot moves the stream and the control record can be on two servers, for long: acks and renewals are
// written all the same, and refused all the same.
func TestSeek_SlotApart(t *testing.T) {
	t.Parallel()
	cluster := redistest.StartCluster(t, 2)
	topic := topicOn(t, cluster, 0)
	client := cluster.Client(t)
	group, ids := pendingFor(t, client, topic)
	cluster.Split(controlOf(topic), 1)
	group.Client = cluster.Admin(0) // as that of renewals
	entries := []stream.Pending{{Text: ids[0], Count: stream.KeepCount}}
	_, err := group.Hold(t.Context(), entries)
	require.Equal(t, redisconn.KindSought, redisconn.Classify(err), "%v", err)
	_, _, err = group.AckOwned(t.Context(), ids)
	require.Equal(t, redisconn.KindSought, redisconn.Classify(err), "%v", err)
	group.Sought = 1
	states, err := group.Hold(t.Context(), entries)
	require.NoError(t, err)
	require.Equal(t, []stream.State{stream.Owned}, states)
	states, _, err = group.AckOwned(t.Context(), ids)
	require.NoError(t, err)
	require.Equal(t, []stream.State{stream.Owned, stream.Owned}, states)
}

package tests

import (
	"fmt"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
)

// fiveMinutes keeps entries for exactly that long.
func fiveMinutes(c *redischannels.PublisherConfig) {
	c.Retention = redischannels.Retention{MaxAge: 5 * time.Minute, Exact: true}
}

// addAged appends entries whose age is that by the clock of the server, which it returns.
func addAged(t *testing.T, server *redis.Client, client redis.UniversalClient, topic string, ages ...time.Duration) {
	t.Helper()
	now, err := server.Time(t.Context()).Result()
	require.NoError(t, err)
	for _, age := range ages {
		id := fmt.Sprint(now.Add(-age).UnixMilli(), "-0")
		require.NoError(t, client.XAdd(t.Context(), &redis.XAddArgs{Stream: topic, ID: id, Values: []string{"uuid", age.String()}}).Err())
	}
}

// The age of an entry was measured by the clock of the publisher. One that was ten minutes ahead
// deleted entries whose publishing was just confirmed, and one that was behind kept all.
func TestPublisher_RetentionByAgeUsesTheServersClock(t *testing.T) {
	t.Parallel()
	for _, ahead := range []time.Duration{10 * time.Minute, -10 * time.Minute} {
		t.Run(fmt.Sprint("publisher is ahead by ", ahead), func(t *testing.T) {
			t.Parallel()
			client := redistest.Start(t, redistest.ClockOffset(-ahead)).Client(t)
			for name, change := range map[string]func(*redischannels.PublisherConfig){
				"plain":   func(*redischannels.PublisherConfig) {},
				"durable": pubDurable(1, time.Millisecond), // no replica confirms
			} {
				topic := redistest.Key(t, name)
				addAged(t, client, client, topic, 6*time.Minute, 4*time.Minute)
				before := redistest.CommandStats(t, client)["time"]
				p := newTestPublisher(t, client, fiveMinutes, change)
				_ = p.Publish(topic, pubMessages("single", 1)...)
				_ = p.Publish(topic, pubMessages("batch", 2)...)
				_, uuids := pubEntries(t, client, topic)
				require.Equal(t, []string{"4m0s", "single0", "batch0", "batch1"}, uuids)
				require.Equal(t, before+1, redistest.CommandStats(t, client)["time"])
			}
		})
	}
}

// Nothing is appended before the time is known, so a lost answer is asked for again.
func TestPublisher_LostTimeIsAskedForAgain(t *testing.T) {
	t.Parallel()
	server := redistest.Shared(t)
	proxy := redistest.NewProxy(t, server.Addr())
	client, topic := server.Client(t, redistest.Via(proxy)), redistest.Key(t)
	addAged(t, client, client, topic, 6*time.Minute, 4*time.Minute)
	lost := proxy.DropReply(2, redistest.Command("TIME"))
	p := newTestPublisher(t, client, fiveMinutes)
	require.NoError(t, p.Publish(topic, pubMessages("m", 1)...))
	_, uuids := pubEntries(t, client, topic)
	require.Equal(t, []string{"4m0s", "m0"}, uuids)
	require.Equal(t, 2, lost.Count())
}

// Where the time cannot be asked for, nothing is trimmed by a guess.
func TestPublisher_RetentionByAgeNeedsTheTime(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t, redistest.WithACL("alice on >secret ~* +@all -time"))
	topic := redistest.Key(t)
	p := newTestPublisher(t, server.Client(t, redistest.As("alice", "secret")), fiveMinutes)
	for range 2 {
		err := p.Publish(topic, pubMessages("m", 1)...)
		require.ErrorIs(t, err, redischannels.ErrPermission)
		require.Equal(t, 1, pubError(t, err).Count(redischannels.OutcomeNotAppended))
	}
	require.NoError(t, newTestPublisher(t, server.Client(t, redistest.As("alice", "secret"))).Publish(topic, pubMessages("m", 1)...))
}

// Another server may own the topic after a failure, and its clock is another one too.
func TestPublisher_RetentionByAgeAfterAFailover(t *testing.T) {
	t.Parallel()
	first := redistest.Start(t)
	second := redistest.Start(t, redistest.ClockOffset(-10*time.Minute))
	proxy := redistest.NewProxy(t, first.Addr())
	client, topic := first.Client(t, redistest.Via(proxy)), redistest.Key(t)
	p := newTestPublisher(t, client, fiveMinutes)
	require.NoError(t, p.Publish(topic, pubMessages("m", 1)...))
	addAged(t, second.Client(t), second.Client(t), topic, 6*time.Minute, 4*time.Minute)
	proxy.SetTarget(second.Addr())
	proxy.DropRequest(1, redistest.Command("XADD")) // the one under way fails
	require.ErrorIs(t, p.Publish(topic, pubMessages("lost", 1)...), redischannels.ErrOutcomeUnknown)
	require.NoError(t, p.Publish(topic, pubMessages("n", 1)...))
	_, uuids := pubEntries(t, second.Client(t), topic)
	require.Equal(t, []string{"4m0s", "n0"}, uuids)
}

// Each master of a cluster is asked, and the one that a slot has moved to.
func TestPublisher_RetentionByAgeInACluster(t *testing.T) {
	t.Parallel()
	cluster := redistest.StartCluster(t, 2, redistest.ClockOffset(-10*time.Minute))
	client, topic := cluster.Client(t), redistest.Key(t)
	p := newTestPublisher(t, client, fiveMinutes)
	for round := range 2 {
		addAged(t, cluster.Admin(0), client, topic, 6*time.Minute, 4*time.Minute)
		require.NoError(t, p.Publish(topic, pubMessages("single", 1)...))
		require.NoError(t, p.Publish(topic, pubMessages("batch", 2)...))
		_, uuids := pubEntries(t, client, topic)
		require.Equal(t, []string{"4m0s", "single0", "batch0", "batch1"}, uuids, "round %d", round)
		require.NoError(t, client.Del(t.Context(), topic).Err())
		cluster.MoveSlot(topic, 1-cluster.Owner(0, topic))
	}
}

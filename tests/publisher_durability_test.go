package tests

import (
	"context"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
)

func pubDurable(replicas int, timeout time.Duration) func(*redischannels.PublisherConfig) {
	return func(c *redischannels.PublisherConfig) {
		c.Durability = redischannels.Durability{Replicas: replicas, Timeout: timeout}
	}
}

// pubReplica starts a replica of the server and waits until it is in step.
func pubReplica(t *testing.T, master *redistest.Server) *redistest.Server {
	t.Helper()
	host, port, err := net.SplitHostPort(master.Addr())
	require.NoError(t, err)
	replica := redistest.Start(t, redistest.Arg("replicaof", host, port))
	client := master.Client(t)
	redistest.Eventually(t, 20*time.Second, func() bool {
		return strings.Contains(client.Info(t.Context(), "replication").Val(), "state=online")
	}, "the replica is online")
	return replica
}

// A failover loses what was confirmed by the master alone. Durability waits
// for replicas, and says so when they do not answer.
func TestPublisher_Durability(t *testing.T) {
	t.Parallel()
	master := redistest.Start(t)
	replica := pubReplica(t, master)
	// The read timeout of the client is shorter than the wait for replicas.
	client := master.Client(t, func(o *redis.Options) { o.ReadTimeout = 100 * time.Millisecond })
	ctx := t.Context()

	t.Run("confirmed", func(t *testing.T) {
		topic := redistest.Key(t)
		p := newTestPublisher(t, client, pubDurable(1, 2*time.Second))
		for _, n := range []int{1, 3, 501} {
			ids, err := p.Append(ctx, topic, pubMessages("m", n)...)
			require.NoError(t, err)
			require.NotContains(t, ids, "")
		}
		require.EqualValues(t, 505, replica.Client(t).XLen(ctx, topic).Val(), "the replica has it when Publish returns")
	})
	t.Run("too few", func(t *testing.T) {
		topic := redistest.Key(t)
		p := newTestPublisher(t, client, pubDurable(2, 300*time.Millisecond))
		for _, n := range []int{1, 3} {
			start := time.Now()
			ids, err := p.Append(ctx, topic, pubMessages("m", n)...)
			require.GreaterOrEqual(t, time.Since(start), 290*time.Millisecond)
			require.ErrorIs(t, err, redischannels.ErrUnderReplicated)
			require.ErrorContains(t, err, "1 of 2")
			requireOutcomes(t, err, redischannels.OutcomeUnderReplicated, n)
			require.Len(t, ids, n)
		}
		require.EqualValues(t, 4, client.XLen(ctx, topic).Val())
	})
	t.Run("callers share the wait", func(t *testing.T) {
		topic := redistest.Key(t)
		p := newTestPublisher(t, client, pubDurable(2, 200*time.Millisecond))
		start := time.Now()
		var wg sync.WaitGroup
		for c := range 40 {
			wg.Go(func() {
				if err := p.Publish(topic, pubMessages("m", 1+c%2)...); pubError(t, err).Count(redischannels.OutcomeUnderReplicated) != 1+c%2 {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		require.Less(t, time.Since(start), 2*time.Second)
		require.EqualValues(t, 60, client.XLen(ctx, topic).Val())
	})
	t.Run("a caller that gives up knows its IDs", func(t *testing.T) {
		topic := redistest.Key(t)
		p := newTestPublisher(t, client, pubDurable(2, 2*time.Second))
		pubCtx, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
		defer cancel()
		start := time.Now()
		ids, err := p.Append(pubCtx, topic, pubMessages("m", 2)...)
		require.Less(t, time.Since(start), 200*time.Millisecond+prompt)
		requireOutcomes(t, err, redischannels.OutcomeUnderReplicated, 2)
		inStream, _ := pubEntries(t, client, topic)
		require.Equal(t, inStream, ids)
	})
	t.Run("refused", func(t *testing.T) {
		topic := redistest.Key(t)
		require.NoError(t, client.Set(ctx, topic, "x", 0).Err())
		p := newTestPublisher(t, client, pubDurable(1, time.Second))
		err := p.Publish(topic, pubMessages("m", 2)...)
		require.ErrorIs(t, err, redischannels.ErrWrongType)
		requireOutcomes(t, err, redischannels.OutcomeNotAppended, 2)
	})
	t.Run("replica gone", func(t *testing.T) {
		topic := redistest.Key(t)
		p := newTestPublisher(t, client, pubDurable(1, 200*time.Millisecond))
		replica.Kill()
		err := p.Publish(topic, pubMessages("m", 1)...)
		requireOutcomes(t, err, redischannels.OutcomeUnderReplicated, 1)
		require.EqualValues(t, 1, client.XLen(ctx, topic).Val())
	})
}

// A WAIT whose reply is lost was sent again by go-redis, together with the
// XADDs of its pipeline or on another connection, where all replicas confirm
// what was never written.
func TestPublisher_LostWaitReplyIsUnderReplicated(t *testing.T) {
	t.Parallel()
	master := redistest.Start(t)
	pubReplica(t, master)
	proxy := redistest.NewProxy(t, master.Addr())
	client, direct := master.Client(t, redistest.Via(proxy)), master.Client(t)
	topic := redistest.Key(t)
	p := newTestPublisher(t, client, pubDurable(1, time.Second))
	pubWarm(t, p)
	for i, n := range []int{1, 3} {
		redistest.ResetStats(t, direct)
		proxy.DropReply(1, redistest.Command("wait"))
		err := p.Publish(topic, pubMessages("m", n)...)
		requireOutcomes(t, err, redischannels.OutcomeUnderReplicated, n)
		stats := redistest.CommandStats(t, direct)
		require.EqualValues(t, 1, stats["wait"])
		require.EqualValues(t, n, stats["xadd"])
		require.EqualValues(t, []int{1, 4}[i], direct.XLen(t.Context(), topic).Val())
	}
	proxy.DropReply(1, redistest.Command("xadd"))
	requireOutcomes(t, p.Publish(topic, pubMessages("m", 1)...), redischannels.OutcomeUnknown, 1)
	require.EqualValues(t, 5, direct.XLen(t.Context(), topic).Val())
}

package tests

import (
	"context"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
)

// pubCluster starts two masters, of which the first owns all slots.
func pubCluster(t *testing.T) (first, second *redistest.Server) {
	t.Helper()
	ctx := t.Context()
	enabled := redistest.Arg("cluster-enabled", "yes")
	first, second = redistest.Start(t, enabled), redistest.Start(t, enabled)
	a, b := first.Client(t), second.Client(t)
	require.NoError(t, a.ClusterAddSlotsRange(ctx, 0, 16383).Err())
	host, port, err := net.SplitHostPort(second.Addr())
	require.NoError(t, err)
	require.NoError(t, a.ClusterMeet(ctx, host, port).Err())
	redistest.Eventually(t, 20*time.Second, func() bool {
		for _, c := range []*redis.Client{a, b} {
			if info := c.ClusterInfo(ctx).Val(); !strings.Contains(info, "cluster_state:ok") || !strings.Contains(info, "cluster_known_nodes:2") {
				return false
			}
		}
		return true
	}, "the nodes know each other")
	return first, second
}

// pubMoveSlot gives the slot of a key to the second node.
func pubMoveSlot(t *testing.T, key string, nodes ...*redis.Client) {
	t.Helper()
	ctx := t.Context()
	id := nodes[1].ClusterMyID(ctx).Val()
	slot := nodes[0].ClusterKeySlot(ctx, key).Val()
	for _, c := range nodes {
		require.NoError(t, c.Do(ctx, "cluster", "setslot", slot, "node", id).Err())
	}
}

// A topic is one key, so one slot: transactions and pipelines work in a cluster,
// and a slot that has moved is followed. MOVED is an answer, not a lost reply.
func TestPublisher_Cluster(t *testing.T) {
	t.Parallel()
	first, second := pubCluster(t)
	a, b := first.Client(t), second.Client(t)
	cluster := redis.NewClusterClient(&redis.ClusterOptions{Addrs: []string{first.Addr()}})
	t.Cleanup(func() { _ = cluster.Close() })
	for name, change := range map[string]func(*redischannels.PublisherConfig){
		"plain":   func(*redischannels.PublisherConfig) {},
		"durable": pubDurable(1, 50*time.Millisecond), // no replica confirms
	} {
		t.Run(name, func(t *testing.T) {
			p := newTestPublisher(t, cluster, change)
			// With a context that can end, a sender of the publisher sends.
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			for _, n := range []int{1, 3, 600} {
				topic := redistest.Key(t)
				for range 2 {
					ids, err := p.Append(ctx, topic, pubMessages("m", n)...)
					if name == "durable" {
						pe := pubError(t, err)
						require.Equal(t, min(n, 500), pe.Count(redischannels.OutcomeUnderReplicated), err)
						ids = ids[:min(n, 500)]
					} else {
						require.NoError(t, err)
					}
					require.NotContains(t, ids, "")
				}
				require.EqualValues(t, 2*min(n, map[string]int{"plain": 600, "durable": 500}[name]), a.XLen(t.Context(), topic).Val())

				moved := redistest.Key(t)
				pubMoveSlot(t, moved, a, b)
				_, err := p.Append(ctx, moved, pubMessages("m", min(n, 500))...)
				if name == "durable" {
					requireOutcomes(t, err, redischannels.OutcomeUnderReplicated, min(n, 500))
				} else {
					require.NoError(t, err)
				}
				require.EqualValues(t, min(n, 500), b.XLen(t.Context(), moved).Val())
			}
		})
	}
}

package tests

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
)

// shardConnections is the number of subscribed connections per node.
func shardConnections(t *testing.T, cluster *redistest.Cluster) []int {
	t.Helper()
	var n []int
	for i := range cluster.Nodes {
		n = append(n, pubSubConnections(t, cluster.Admin(i)))
	}
	return n
}

// shardSubscribed waits until exactly this node has a subscription to the topic.
func shardSubscribed(t *testing.T, cluster *redistest.Cluster, topic string, node int) {
	t.Helper()
	redistest.Eventually(t, soon, func() bool {
		for i := range cluster.Nodes {
			if cluster.Nodes[i].PID() == 0 {
				continue
			}
			n, err := cluster.Admin(i).PubSubShardNumSub(t.Context(), topic).Result()
			require.NoError(t, err)
			if (n[topic] == 1) != (i == node) {
				return false
			}
		}
		return true
	}, "subscribed at node %d alone", node)
}

// Sharded Pub/Sub goes silent: after a reconnect to another node, with channels of several
// slots, after a slot has moved.
func TestPubSub_ShardedSubscriptionsFollowTheirSlots(t *testing.T) {
	t.Parallel()
	cluster := redistest.StartCluster(t, 3)
	client := cluster.Client(t)
	pub := newPubSubPub(t, client, shardedPub)

	t.Run("channels of all slots", func(t *testing.T) {
		sub := newPubSub(t, client, shardedSub)
		topics := topicsOf(t, 30)
		var subs []<-chan *message.Message
		for _, topic := range topics {
			subs = append(subs, sub.subscribe(t, topic))
		}
		require.Equal(t, []int{1, 1, 1}, shardConnections(t, cluster), "one connection per node")
		all := func() {
			t.Helper()
			for i, topic := range topics {
				say(t, pub, topic, topic)
				require.Equal(t, []string{topic}, receiveAcked(t, subs[i], 1))
			}
		}
		all()
		for round := 1; round <= 8; round++ {
			for node := range cluster.Nodes {
				require.NoError(t, cluster.Admin(node).Do(t.Context(), "client", "kill", "type", "pubsub").Err())
			}
			sub.events.waitN(t, redischannels.EventInterrupted, 30*round)
			all()
		}
		require.Len(t, sub.events.of(redischannels.EventInterrupted), 240, "one per topic and outage")
		require.Less(t, sub.closeSoon(t), 2*time.Second)
		redistest.Eventually(t, soon, func() bool {
			n := shardConnections(t, cluster)
			return n[0]+n[1]+n[2] == 0
		}, "no connection is left")
	})

	t.Run("slots that move", func(t *testing.T) {
		sub := newPubSub(t, client, shardedSub)
		topics := topicsOf(t, 3)
		topic := topics[0]
		messages := sub.subscribe(t, topic)
		elsewhere, alsoElsewhere := sub.subscribe(t, topics[1]), sub.subscribe(t, topics[2])
		for round := 1; round <= 6; round++ {
			from := cluster.Owner(0, topic)
			to := (from + 1) % 3
			cluster.MoveSlot(topic, to)
			shardSubscribed(t, cluster, topic, to)
			event := sub.events.waitN(t, redischannels.EventInterrupted, round)[round-1]
			require.Equal(t, topic, event.Topic)
			require.Less(t, event.Duration, time.Second, "the new node is named by the old one")
			say(t, pub, topic, fmt.Sprint(round))
			require.Equal(t, []string{fmt.Sprint(round)}, receiveAcked(t, messages, 1))
			for i, others := range []<-chan *message.Message{elsewhere, alsoElsewhere} {
				say(t, pub, topics[i+1], "m")
				receiveAcked(t, others, 1)
			}
		}
		sub.events.none(t, redischannels.EventDisconnected, redischannels.EventError)
		require.Len(t, sub.events.of(redischannels.EventInterrupted), 6)

		// A client that has not heard of the move is sent to the right node as well.
		cluster.MoveSlot(topic+":late", (cluster.Owner(0, topic+":late")+1)%3)
		late := sub.subscribe(t, topic+":late")
		say(t, pub, topic+":late", "m")
		receiveAcked(t, late, 1)
	})

	// Only messages published between the end at one node and the confirmation of the next are
	// lost; subscribing and unsubscribing continue meanwhile.
	t.Run("moves under load", func(t *testing.T) {
		sub := newPubSub(t, client, shardedSub, buffer(100_000, redischannels.DropOldest))
		base := redistest.Key(t)
		topic, steady := "{"+base+"}", "{"+base+"}:steady"
		messages := sub.subscribe(t, steady)
		stop := make(chan struct{})
		var busy sync.WaitGroup
		var churned atomic.Int64
		defer func() {
			close(stop)
			busy.Wait()
		}()
		for range 4 {
			busy.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
					}
					again := newPubSub(t, client, shardedSub)
					if _, err := again.Subscribe(t.Context(), topic); err != nil {
						t.Error(err)
					}
					if _, err := sub.Subscribe(t.Context(), fmt.Sprint(topic, churned.Add(1))); err != nil {
						t.Error(err)
					}
					_ = again.Close()
				}
			})
		}
		for range 5 {
			seen := churned.Load()
			to := (cluster.Owner(0, topic) + 1) % 3
			cluster.MoveSlot(topic, to)
			shardSubscribed(t, cluster, steady, to)
			say(t, pub, steady, "m")
			require.Equal(t, []string{"m"}, receiveAcked(t, messages, 1))
			redistest.Eventually(t, soon, func() bool { return churned.Load() > seen+3 }, "others subscribe")
		}
	})

	t.Run("PUBLISH reaches every node", func(t *testing.T) {
		sub := newPubSub(t, client, patterns)
		plain := newPubSubPub(t, client)
		topic := redistest.Key(t)
		messages, glob := sub.subscribe(t, topic), sub.subscribe(t, topic+"*")
		for i := range 10 {
			say(t, plain, fmt.Sprint(topic, i), fmt.Sprint(i))
			require.Equal(t, []string{fmt.Sprint(i)}, receiveAcked(t, glob, 1))
		}
		want := counted(1, 200)
		say(t, plain, topic, want...)
		require.Equal(t, want, receiveAcked(t, messages, 200), "in order")
		n := shardConnections(t, cluster)
		require.Equal(t, 1, n[0]+n[1]+n[2], "one connection in all")
	})
}

// The node of a shard channel dies: its replica takes over, and the subscription is there. A
// subscription that is not sharded goes to a node that lives.
func TestPubSub_NodeThatDiesIsReplaced(t *testing.T) {
	t.Parallel()
	cluster := redistest.StartCluster(t, 3)
	topic := redistest.Key(t)
	owner := cluster.Owner(0, topic)
	cluster.AddReplica(owner)
	client := cluster.Client(t)
	sharded := newPubSub(t, client, shardedSub)
	messages := sharded.subscribe(t, topic)
	plain := newPubSub(t, client)
	others := plain.subscribe(t, topic)
	shardSubscribed(t, cluster, topic, owner)

	cluster.Nodes[owner].Kill()
	redistest.Eventually(t, 30*time.Second, func() bool {
		n, err := cluster.Admin(3).PubSubShardNumSub(t.Context(), topic).Result()
		return err == nil && n[topic] == 1
	}, "subscribed at the replica")
	event := sharded.events.wait(t, redischannels.EventInterrupted)
	require.Equal(t, topic, event.Topic)
	require.Len(t, sharded.events.of(redischannels.EventDisconnected), 1, "one event per outage")
	redistest.Eventually(t, soon, func() bool {
		pub, err := newPubSubPub(t, client, shardedPub).Send(t.Context(), topic, message.NewMessage("m", nil))
		return err == nil && pub[0] == 1
	}, "published to the replica")
	receiveAcked(t, messages, 1)
	redistest.Eventually(t, soon, func() bool {
		return newPubSubPub(t, client).Publish(topic, message.NewMessage("m", nil)) == nil
	}, "published")
	receiveAcked(t, others, 1)
}

// Keyspace notifications are published on the node of their key only. A subscription got those of
// one node of three, without a word.
func TestPubSub_KeyspaceNotificationsOfAClusterAreRefused(t *testing.T) {
	t.Parallel()
	cluster := redistest.StartCluster(t, 3)
	sub := newPubSub(t, cluster.Client(t), func(c *redischannels.PubSubSubscriberConfig) { c.Patterns = true })
	for _, topic := range []string{
		"__keyspace@0__:orders", "__keyevent@0__:expired", "__keyspace@0__:*", "__keyevent@*__:*", "__key*", "__*", "_*",
	} {
		_, err := sub.Subscribe(t.Context(), topic)
		require.ErrorIs(t, err, redischannels.ErrNotSupported, topic)
		require.ErrorContains(t, err, topic)
	}
	for _, topic := range []string{"*", "orders*", "__orders*", "keyspace"} {
		sub.subscribe(t, topic)
	}
	node := newPubSub(t, cluster.Admin(0), func(c *redischannels.PubSubSubscriberConfig) { c.Patterns = true })
	node.subscribe(t, "__keyevent@0__:*")
}

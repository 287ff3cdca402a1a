package tests

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
)

// topicOn returns a topic that the master has, with its hash tag.
func topicOn(t *testing.T, cluster *redistest.Cluster, master int) string {
	t.Helper()
	for {
		if topic := redistest.Key(t); cluster.Owner(0, topic) == master {
			return topic
		}
	}
}

// Keys of one feature in several slots are refused as a whole (CROSSSLOT); recovery that reads
// from a replica sees no group. Every feature is used on every master, by clients that read
// where they like.
func TestCluster_EveryFeature(t *testing.T) {
	t.Parallel()
	cluster := redistest.StartCluster(t, 3)
	for master := range 3 {
		cluster.AddReplica(master)
	}
	for name, change := range map[string]func(*redis.ClusterOptions){
		"masters":        func(*redis.ClusterOptions) {},
		"ReadOnly":       func(o *redis.ClusterOptions) { o.ReadOnly = true },
		"RouteByLatency": func(o *redis.ClusterOptions) { o.RouteByLatency = true },
		"RouteRandomly":  func(o *redis.ClusterOptions) { o.RouteRandomly = true },
	} {
		t.Run(name, func(t *testing.T) {
			client, masters := cluster.Client(t, change), cluster.Client(t)
			for master := range 3 {
				topic := topicOn(t, cluster, master)
				if name == "masters" { // its lists of dead letters are never behind
					// Without a hash tag, with one in front, in the middle, and with a name of its own
					// for dead letters.
					everyFeature(t, client, topic, nil, nil)
					everyFeature(t, client, "{"+topic+"}:orders", nil, nil)
					everyFeature(t, client, "eu{"+topic+"}orders", nil, func(string) string { return "{" + topic + "}:failed" })
					everyFeature(t, client, "side{"+topic+"}", func(string) string { return "{" + topic + "}:side" }, nil)
					elsewhere := func(string) string { return topicOn(t, cluster, (master+1)%3) }
					_, err := newSub(t, client, func(c *redischannels.SubscriberConfig) { c.DeadLetterTopic = elsewhere }).Subscribe(t.Context(), topic)
					require.ErrorIs(t, err, redischannels.ErrInvalidConfig)
					require.ErrorContains(t, err, "slot")
					durable := newTestPublisher(t, client, watermillFormat, pubDurable(1, 2*time.Second))
					for _, n := range []int{1, 3} {
						require.NoError(t, durable.Publish("{"+topic+"}:durable", pubMessages("m", n)...))
					}
				}
				// The entries of a crashed consumer are claimed and delivered, with the correct
				// count.
				publish(t, client, topic, "left")
				_ = masters.XGroupCreateMkStream(t.Context(), topic, "g", "0").Err()
				unread := masters.XRange(t.Context(), topic, "("+groupOf(t, masters, topic).LastDeliveredID, "+").Val()
				stream := deliverTo(t, masters, topic, "dead", len(unread), time.Hour)
				sub := newSub(t, client)
				messages := sub.subscribe(t, topic)
				msg := receive(t, messages)
				require.Equal(t, stream[0], entryIDOf(t, msg))
				require.Equal(t, 1, countOf(t, msg), "it may only have been buffered there")
				msg.Ack()
				eventuallyPending(t, masters, topic, 0)
				stats, err := sub.GroupStats(t.Context(), topic)
				require.NoError(t, err)
				require.Zero(t, stats.Lag+stats.Pending)
				sub.events.none(t, redischannels.EventError, redischannels.EventDisconnected, redischannels.EventTrimmed)

				// Entries of its own lost connection are found too.
				require.NoError(t, cluster.Admin(master).ClientKillByFilter(t.Context(), "type", "normal", "skipme", "yes").Err())
				publish(t, masters, topic, "after")
				require.Equal(t, []string{"after"}, receiveAcked(t, messages, 1))
				sub.closeSoon(t)
				all := newSub(t, client, fanOut)
				every, err := all.SubscribeFrom(t.Context(), topic, redischannels.AfterID(stream[0]))
				require.NoError(t, err)
				require.Equal(t, []string{"after"}, receiveAcked(t, every, 1))
				n := 0
				for _, err := range all.History(t.Context(), topic, redischannels.AfterID(stream[0]), redischannels.Latest) {
					require.NoError(t, err)
					n++
				}
				require.Equal(t, 1, n)
				all.closeSoon(t)
			}
			for replica := 3; replica < 6 && name != "masters"; replica++ { // which lists its dead letters where it likes
				stats := redistest.CommandStats(t, cluster.Admin(replica))
				for _, command := range []string{"xpending", "xrange", "xread", "xreadgroup", "xautoclaim", "xinfo|stream", "xinfo|groups", "xinfo|consumers", "evalsha", "eval"} {
					require.Zero(t, stats[command], "%s on a replica", command)
				}
			}
		})
	}

	// Fan-out over topics on all masters at once, by one subscriber.
	all := newSub(t, cluster.Client(t), fanOut)
	channels := map[string]<-chan *message.Message{}
	for n := range 6 {
		topic := topicOn(t, cluster, n%3)
		channels[topic] = all.subscribe(t, topic)
	}
	client := cluster.Client(t)
	for topic, messages := range channels {
		publish(t, client, topic, "a", "b")
		require.Equal(t, []string{"a", "b"}, receiveAcked(t, messages, 2))
	}
}

// clusterLoad publishes to a topic and handles what comes, until it is stopped. Some of it
// becomes a dead letter.
type clusterLoad struct {
	mu                 sync.Mutex
	confirmed, handled map[string]int
	rejected           map[string]bool
	every              map[string]int // by a subscription without a group
	sub                *testSub
	stop               func()
}

func startClusterLoad(t *testing.T, cluster *redistest.Cluster, topic string) *clusterLoad {
	t.Helper()
	load := &clusterLoad{confirmed: map[string]int{}, handled: map[string]int{}, rejected: map[string]bool{}, every: map[string]int{}}
	load.sub = newSub(t, cluster.Client(t), inFlight(8), minIdle(2*time.Second))
	messages := load.sub.subscribe(t, topic)
	all := newSub(t, cluster.Client(t), fanOut)
	every := all.subscribe(t, topic)
	pub, err := redischannels.NewPublisher(redischannels.PublisherConfig{Client: cluster.Client(t), Timeout: 2 * time.Second}, nil)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	var work, handling sync.WaitGroup
	work.Go(func() {
		for ctx.Err() == nil {
			msg := message.NewMessage(watermill.NewUUID(), []byte("m"))
			if pub.Publish(topic, msg) == nil {
				load.mu.Lock()
				load.confirmed[msg.UUID]++
				load.mu.Unlock()
			}
			<-time.After(2 * time.Millisecond)
		}
	})
	note := func(messages <-chan *message.Message, seen map[string]int, first func(*message.Message)) func() {
		return func() {
			for msg := range messages {
				load.mu.Lock()
				seen[msg.UUID]++
				load.mu.Unlock()
				first(msg)
				msg.Ack()
			}
		}
	}
	handling.Go(note(messages, load.handled, func(msg *message.Message) {
		load.mu.Lock()
		reject := len(load.handled)%10 == 0
		if reject {
			load.rejected[msg.UUID] = true
		}
		load.mu.Unlock()
		if reject {
			redischannels.Reject(msg, "drawn")
			msg.Nack()
		}
	}))
	handling.Go(note(every, load.every, func(*message.Message) {}))
	load.stop = sync.OnceFunc(func() {
		cancel()
		work.Wait()
		_ = pub.Close()
	})
	t.Cleanup(func() {
		load.stop()
		_ = load.sub.Close()
		_ = all.Close()
		handling.Wait()
	})
	return load
}

// more waits until n more messages are confirmed, and n more are handled and seen.
func (l *clusterLoad) more(t *testing.T, n int) {
	t.Helper()
	count := func() (counts [3]int) {
		l.mu.Lock()
		defer l.mu.Unlock()
		return [3]int{len(l.confirmed), len(l.handled), len(l.every)}
	}
	before := count()
	for i, what := range []string{"confirmed", "handled", "seen without a group"} {
		redistest.Eventually(t, 2*soon, func() bool { return count()[i] >= before[i]+n }, "%d more messages are %s", n, what)
	}
}

// done stops publishing and returns how many confirmed messages were never handled, when all
// that is in the stream was.
func (l *clusterLoad) done(t *testing.T, client redis.UniversalClient, topic string) (lost int) {
	t.Helper()
	l.stop()
	entries, err := client.XRange(t.Context(), topic, "-", "+").Result()
	require.NoError(t, err)
	missing := 0
	redistest.Eventually(t, 2*soon, func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		missing = 0
		for _, e := range entries {
			if uuid := e.Values["_watermill_message_uuid"].(string); l.handled[uuid] == 0 || l.every[uuid] == 0 {
				missing++
			}
		}
		return missing == 0
	}, "everything in the stream is handled, and seen without a group, of %d", len(entries))
	eventuallyPending(t, client, topic, 0)
	l.mu.Lock()
	defer l.mu.Unlock()
	again := 0
	for uuid := range l.confirmed {
		if l.handled[uuid] == 0 {
			lost++
		}
		again += max(0, l.handled[uuid]-1)
	}
	t.Logf("%d confirmed, %d lost, %d handled again", len(l.confirmed), lost, again)
	return lost
}

// A master dies under load, and its replica takes over: publishing and consuming continue.
// Entries that the replica did not have are lost, as without a cluster.
func TestCluster_MasterDiesUnderLoad(t *testing.T) {
	t.Parallel()
	cluster := redistest.StartCluster(t, 3)
	cluster.AddReplica(0)
	topic := topicOn(t, cluster, 0)
	load := startClusterLoad(t, cluster, topic)
	load.more(t, 200)
	killed := time.Now()
	cluster.Nodes[0].Kill()
	redistest.Eventually(t, 2*soon, func() bool { return cluster.Owner(1, topic) == 3 }, "the replica owns the slot")
	load.more(t, 200)
	t.Logf("200 messages confirmed %s after the death", time.Since(killed))
	require.Less(t, load.done(t, cluster.Client(t), topic), 20)
	load.sub.events.none(t, redischannels.EventError)
}

// A slot and its data move to another master under load. Nothing is lost, nothing is handled
// twice without a reason, and the group is not taken for a lost one. For a moment only one of
// the topic and its dead letters has moved (TRYAGAIN).
func TestCluster_SlotMovesUnderLoad(t *testing.T) {
	t.Parallel()
	cluster := redistest.StartCluster(t, 3)
	topic := topicOn(t, cluster, 0)
	load := startClusterLoad(t, cluster, topic)
	for _, to := range []int{1, 2, 0} {
		load.more(t, 100)
		cluster.MoveSlot(topic, to)
	}
	load.more(t, 100)
	client := cluster.Client(t)
	require.Zero(t, load.done(t, client, topic))
	dead := map[string]int{}
	for _, fields := range fieldsOf(t, client, deadStream(topic)) {
		dead[fields["_watermill_message_uuid"].(string)]++
	}
	require.NotEmpty(t, dead)
	require.Len(t, dead, len(load.rejected))
	for uuid, n := range dead {
		require.Equal(t, 1, n, "dead letters of %s", uuid)
		require.True(t, load.rejected[uuid])
	}
	load.sub.events.none(t, redischannels.EventError, redischannels.EventGroupLost)
}

// A client does not know yet that a slot has moved: Subscribe asks the old master, and must
// follow, as every other command does.
func TestCluster_SubscribeAfterASlotHasMoved(t *testing.T) {
	t.Parallel()
	cluster := redistest.StartCluster(t, 3)
	topic := topicOn(t, cluster, 0)
	for name, change := range map[string]func(*redischannels.SubscriberConfig){"group": inFlight(1), "fan-out": fanOut} {
		for _, to := range []int{1, 2, 0} {
			client := cluster.Client(t)
			require.NoError(t, client.Exists(t.Context(), topic).Err()) // it knows where the slot is
			cluster.MoveSlot(topic, to)
			sub := newSub(t, client, change)
			messages, err := sub.Subscribe(t.Context(), topic)
			require.NoError(t, err, "%s, to %d", name, to)
			publish(t, client, topic, "m")
			require.Equal(t, []string{"m"}, receiveAcked(t, messages, 1))
			sub.closeSoon(t)
		}
	}
}

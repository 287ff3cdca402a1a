package promchannels_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/inspect"
	"github.com/flaminco/redischannels/internal/redistest"
	"github.com/flaminco/redischannels/promchannels"
)

const soon = 10 * time.Second

func newMetrics(t *testing.T, config promchannels.Config) *promchannels.Metrics {
	t.Helper()
	metrics, err := promchannels.NewMetrics(config)
	require.NoError(t, err)
	problems, err := testutil.CollectAndLint(metrics)
	require.NoError(t, err)
	require.Empty(t, problems)
	return metrics
}

// exported compares metrics, in which @ stands for their common prefix.
func exported(t *testing.T, c prometheus.Collector, want string, names ...string) {
	t.Helper()
	for i := range names {
		names[i] = "redischannels_" + names[i]
	}
	require.NoError(t, testutil.CollectAndCompare(c, strings.NewReader(strings.ReplaceAll(want, "@", "redischannels_")), names...))
}

// observations returns the number of observations of a histogram.
func observations(t *testing.T, c prometheus.Collector, name string) (n uint64) {
	t.Helper()
	registry := prometheus.NewPedanticRegistry()
	require.NoError(t, registry.Register(c))
	families, err := registry.Gather()
	require.NoError(t, err)
	for _, family := range families {
		if family.GetName() == "redischannels_"+name {
			for _, m := range family.GetMetric() {
				n += m.GetHistogram().GetSampleCount()
				require.Positive(t, m.GetHistogram().GetSampleSum())
			}
		}
	}
	return n
}

func receive(t *testing.T, messages <-chan *message.Message) *message.Message {
	t.Helper()
	select {
	case msg := <-messages:
		return msg
	case <-time.After(soon):
		require.FailNow(t, "no message")
		return nil
	}
}

// The counters of messages that are published, nacked, dead-lettered and acked.
func TestMetrics_OfMessages(t *testing.T) {
	t.Parallel()
	metrics, client, topic := newMetrics(t, promchannels.Config{Topic: func(string) string { return "orders" }}), redistest.Shared(t).Client(t), redistest.Key(t)
	pub, err := redischannels.NewPublisher(redischannels.PublisherConfig{Client: client, Instrumentation: metrics}, nil)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, pub.Close()) })
	sub, err := redischannels.NewSubscriber(redischannels.SubscriberConfig{
		Client: client, ConsumerGroup: "g", NackBackoff: redischannels.Backoff{Min: time.Millisecond}, Instrumentation: metrics, OnEvent: metrics.OnEvent,
	}, nil)
	require.NoError(t, err)
	messages, err := sub.Subscribe(t.Context(), topic)
	require.NoError(t, err)
	newMessage := func() *message.Message { return message.NewMessage(watermill.NewUUID(), []byte("x")) }
	require.NoError(t, pub.Publish(topic, newMessage(), newMessage()))
	receive(t, messages).Nack()
	receive(t, messages).Ack()
	rejected := receive(t, messages)
	redischannels.Reject(rejected, "why")
	rejected.Nack()
	require.NoError(t, sub.Close())
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = pub.Append(canceled, topic, newMessage())
	require.Error(t, err)
	closed := newMessage()
	require.NoError(t, pub.Close())
	require.ErrorIs(t, pub.Publish(topic, closed), redischannels.ErrClosed)

	exported(t, metrics, `
# HELP @published_messages_total Messages by the outcome of their publication.
# TYPE @published_messages_total counter
@published_messages_total{outcome="appended",topic="orders"} 2
@published_messages_total{outcome="not appended",topic="orders"} 2
@published_messages_total{outcome="scheduled",topic="orders"} 0
@published_messages_total{outcome="under-replicated",topic="orders"} 0
@published_messages_total{outcome="unknown",topic="orders"} 0
# HELP @processed_messages_total Deliveries by their outcome.
# TYPE @processed_messages_total counter
@processed_messages_total{group="g",outcome="abandoned",topic="orders"} 0
@processed_messages_total{group="g",outcome="acked",topic="orders"} 1
@processed_messages_total{group="g",outcome="dead-lettered",topic="orders"} 1
@processed_messages_total{group="g",outcome="lost",topic="orders"} 0
@processed_messages_total{group="g",outcome="nacked",topic="orders"} 1
@processed_messages_total{group="g",outcome="released",topic="orders"} 0
@processed_messages_total{group="g",outcome="skipped",topic="orders"} 0
@processed_messages_total{group="g",outcome="timed out",topic="orders"} 0
@processed_messages_total{group="g",outcome="withdrawn",topic="orders"} 0
# HELP @events_total Events of subscriptions.
# TYPE @events_total counter
@events_total{group="g",kind="dead-lettered",topic="orders"} 1
`, "published_messages_total", "processed_messages_total", "events_total")
	require.EqualValues(t, 3, observations(t, metrics, "publish_duration_seconds"))
	require.EqualValues(t, 3, observations(t, metrics, "process_duration_seconds"))
}

// A label per run, or per user, filled the memory of Prometheus.
func TestMetrics_TopicsAreBounded(t *testing.T) {
	t.Parallel()
	metrics := newMetrics(t, promchannels.Config{MaxTopics: 2})
	for _, topic := range []string{"a", "b\xff", "c", "a", "d"} {
		p := redischannels.Publication{Topic: topic, Messages: make([]*message.Message, 1)}
		metrics.PublishEnd(t.Context(), p, time.Second, nil)
		metrics.OnEvent(redischannels.Event{Kind: redischannels.EventDisconnected, Topic: topic})
	}
	exported(t, metrics, `
# HELP @events_total Events of subscriptions.
# TYPE @events_total counter
@events_total{group="",kind="disconnected",topic="_other"} 2
@events_total{group="",kind="disconnected",topic="a"} 2
@events_total{group="",kind="disconnected",topic="b?"} 1
`, "events_total")
	n, err := testutil.GatherAndCount(gatherer(t, metrics), "redischannels_published_messages_total")
	require.NoError(t, err)
	require.Equal(t, 3*5, n)
}

func gatherer(t *testing.T, c prometheus.Collector) prometheus.Gatherer {
	t.Helper()
	registry := prometheus.NewPedanticRegistry()
	require.NoError(t, registry.Register(c))
	return registry
}

func TestConfig_Invalid(t *testing.T) {
	t.Parallel()
	_, err := promchannels.NewMetrics(promchannels.Config{MaxTopics: -1})
	require.ErrorContains(t, err, "Config.MaxTopics: ")
	_, err = promchannels.NewMetrics(promchannels.Config{Buckets: []float64{2, 1}})
	require.ErrorContains(t, err, "Config.Buckets: ")
	_, err = promchannels.NewCollector(promchannels.CollectorConfig{MaxTopics: -1, Timeout: -1, MaxAge: 1})
	require.ErrorIs(t, err, redischannels.ErrInvalidConfig)
	for _, field := range []string{"Inspector", "MaxTopics", "Timeout", "MaxAge"} {
		require.ErrorContains(t, err, "CollectorConfig."+field+": ")
	}
}

func newCollector(t *testing.T, client *redis.Client, change func(*promchannels.CollectorConfig)) *promchannels.Collector {
	t.Helper()
	inspector, err := inspect.New(inspect.Config{Client: client}, nil)
	require.NoError(t, err)
	config := promchannels.CollectorConfig{Inspector: inspector}
	change(&config)
	collector, err := promchannels.NewCollector(config)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, collector.Close()) })
	return collector
}

// The gauges of a topic with a group, from a list of topics and from a scan.
func TestCollector_Gauges(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	client, topic := server.Client(t), "orders"
	require.NoError(t, client.XGroupCreateMkStream(t.Context(), topic, "g", "0").Err())
	for range 3 {
		require.NoError(t, client.XAdd(t.Context(), &redis.XAddArgs{Stream: topic, Values: []string{"a", "b"}}).Err())
	}
	require.NoError(t, client.XReadGroup(t.Context(), &redis.XReadGroupArgs{Group: "g", Consumer: "c", Streams: []string{topic, ">"}, Count: 1}).Err())
	require.NoError(t, client.ZAdd(t.Context(), "{orders}:due", redis.Z{Score: 1, Member: "1"}, redis.Z{Score: 2, Member: "2"}).Err())
	require.NoError(t, client.ZAdd(t.Context(), "{orders}:due:g", redis.Z{Score: 1e15, Member: "1"}).Err())
	require.NoError(t, client.XAdd(t.Context(), &redis.XAddArgs{Stream: "{orders}:dead", Values: []string{"a", "b"}}).Err())
	for name, topics := range map[string][]string{"listed": {topic, "none"}, "scan": nil} {
		t.Run(name, func(t *testing.T) {
			collector := newCollector(t, client, func(c *promchannels.CollectorConfig) { c.Topics = topics })
			exported(t, collector, `
# HELP @collector_up 1 if Redis has replied to the collector in time.
# TYPE @collector_up gauge
@collector_up 1
# HELP @lag Entries that were not delivered to the group yet, at least.
# TYPE @lag gauge
@lag{group="g",topic="orders"} 2
# HELP @pending Entries that were delivered to the group and not acknowledged, deferred ones included.
# TYPE @pending gauge
@pending{group="g",topic="orders"} 2
# HELP @deferred Retries of the group that wait in Redis.
# TYPE @deferred gauge
@deferred{group="g",topic="orders"} 1
# HELP @consumers_alive Consumers of the group that read.
# TYPE @consumers_alive gauge
@consumers_alive{group="g",topic="orders"} 1
# HELP @paused 1 if the group is paused.
# TYPE @paused gauge
@paused{group="g",topic="orders"} 0
# HELP @length Entries of the topic.
# TYPE @length gauge
@length{topic="orders"} 3
# HELP @dead_letters Dead letters of the topic.
# TYPE @dead_letters gauge
@dead_letters{topic="orders"} 1
# HELP @delayed Messages that are not appended to the topic yet.
# TYPE @delayed gauge
@delayed{topic="orders"} 2
`, "collector_up", "lag", "pending", "deferred", "consumers_alive", "paused", "length", "dead_letters", "delayed")
			n, err := testutil.GatherAndCount(gatherer(t, collector), "redischannels_oldest_pending_seconds", "redischannels_bytes", "redischannels_collector_duration_seconds")
			require.NoError(t, err)
			require.Equal(t, 3, n)
			problems, err := testutil.CollectAndLint(collector)
			require.NoError(t, err)
			require.Empty(t, problems)
		})
	}
}

// While Redis is silent a scrape ends in time, without values of the past. Scrapes share one read.
func TestCollector_SilentRedis(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	proxy := redistest.NewProxy(t, server.Addr())
	client := server.Client(t, redistest.Via(proxy), func(o *redis.Options) { o.ReadTimeout, o.MaxRetries = time.Second, -1 })
	direct := server.Client(t)
	require.NoError(t, direct.XAdd(t.Context(), &redis.XAddArgs{Stream: "orders", Values: []string{"a", "b"}}).Err())
	collector := newCollector(t, client, func(c *promchannels.CollectorConfig) {
		c.Timeout, c.MaxAge = 100*time.Millisecond, time.Millisecond
	})
	registry := gatherer(t, collector)
	count := func() int {
		n, err := testutil.GatherAndCount(registry)
		require.NoError(t, err)
		return n
	}
	redistest.Eventually(t, soon, func() bool { return count() == 6 }, "the metrics of a topic, and two of the collector")
	proxy.Blackhole(true)
	redistest.Eventually(t, soon, func() bool { return count() == 1 }, "collector_up")
	exported(t, collector, `
# HELP @collector_up 1 if Redis has replied to the collector in time.
# TYPE @collector_up gauge
@collector_up 0
`)
	proxy.Blackhole(false)
	proxy.Cut()
	redistest.Eventually(t, soon, func() bool { return count() == 6 }, "Redis replies again")
	require.NoError(t, collector.Close())
	require.Equal(t, 1, count())
}

package tests

import (
	"fmt"
	"strconv"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
)

// testPubSub is a Pub/Sub subscriber of one test with the events that it has reported.
type testPubSub struct {
	*redischannels.PubSubSubscriber
	events *events
}

// newPubSub makes a Pub/Sub subscriber with quick settings. It is closed at the end of the
// test.
func newPubSub(t *testing.T, client redis.UniversalClient, change ...func(*redischannels.PubSubSubscriberConfig)) *testPubSub {
	t.Helper()
	return newLoggedPubSub(t, client, nil, change...)
}

func newLoggedPubSub(t *testing.T, client redis.UniversalClient, logger watermill.LoggerAdapter, change ...func(*redischannels.PubSubSubscriberConfig)) *testPubSub {
	t.Helper()
	seen := &events{t: t}
	config := redischannels.PubSubSubscriberConfig{
		Client:       client,
		NackBackoff:  quickBackoff(),
		DrainTimeout: 2 * time.Second,
		OnEvent:      seen.add,
	}
	for _, f := range change {
		f(&config)
	}
	if config.Sharded {
		redistest.NeedsRedis7(t, client, "shard channels")
	}
	sub, err := redischannels.NewPubSubSubscriber(config, logger)
	require.NoError(t, err)
	t.Cleanup(func() { _ = sub.Close() })
	return &testPubSub{PubSubSubscriber: sub, events: seen}
}

// subscribe subscribes until the end of the test.
func (s *testPubSub) subscribe(t *testing.T, topics ...string) <-chan *message.Message {
	t.Helper()
	messages, err := s.SubscribeAll(t.Context(), topics...)
	require.NoError(t, err)
	return messages
}

// closeSoon closes the subscriber and returns how long it took.
func (s *testPubSub) closeSoon(t *testing.T) time.Duration {
	t.Helper()
	return closeSoon(t, s)
}

// newPubSubPub makes a Pub/Sub publisher that is closed at the end of the test.
func newPubSubPub(t *testing.T, client redis.UniversalClient, change ...func(*redischannels.PubSubPublisherConfig)) *redischannels.PubSubPublisher {
	t.Helper()
	config := redischannels.PubSubPublisherConfig{Client: client}
	for _, f := range change {
		f(&config)
	}
	pub, err := redischannels.NewPubSubPublisher(config, nil)
	require.NoError(t, err)
	t.Cleanup(func() { _ = pub.Close() })
	return pub
}

func shardedSub(c *redischannels.PubSubSubscriberConfig) { c.Sharded = true }
func shardedPub(c *redischannels.PubSubPublisherConfig)  { c.Sharded = true }
func patterns(c *redischannels.PubSubSubscriberConfig)   { c.Patterns = true }

// healthInterval sets within what time a silent connection is given up.
func healthInterval(d time.Duration) func(*redischannels.PubSubSubscriberConfig) {
	return func(c *redischannels.PubSubSubscriberConfig) { c.HealthInterval = d }
}

// say publishes payloads in one call.
func say(t *testing.T, pub message.Publisher, topic string, payloads ...string) {
	t.Helper()
	messages := make([]*message.Message, len(payloads))
	for i, p := range payloads {
		messages[i] = message.NewMessage(watermill.NewUUID(), []byte(p))
	}
	require.NoError(t, pub.Publish(topic, messages...))
}

// counted are the payloads first to last.
func counted(first, last int) []string {
	var payloads []string
	for i := first; i <= last; i++ {
		payloads = append(payloads, strconv.Itoa(i))
	}
	return payloads
}

// sum adds up what events of a kind have counted.
func (e *events) sum(kind redischannels.EventKind) int {
	n := 0
	for _, event := range e.of(kind) {
		n += event.Count
	}
	return n
}

// waitN waits for n events of a kind.
func (e *events) waitN(t *testing.T, kind redischannels.EventKind, n int) []redischannels.Event {
	t.Helper()
	redistest.Eventually(t, soon, func() bool { return len(e.of(kind)) >= n }, "%d events %q", n, kind)
	return e.of(kind)
}

// pubSubConnections is the number of connections that are subscribed to something.
func pubSubConnections(t *testing.T, client redis.UniversalClient) int {
	t.Helper()
	list, err := client.Do(t.Context(), "client", "list", "type", "pubsub").Text()
	require.NoError(t, err)
	n := 0
	for _, c := range list {
		if c == '\n' {
			n++
		}
	}
	return n
}

// subscribers is how many connections are subscribed to a channel.
func subscribers(t *testing.T, client redis.UniversalClient, channel string) int {
	t.Helper()
	n, err := client.PubSubNumSub(t.Context(), channel).Result()
	require.NoError(t, err)
	return int(n[channel])
}

// topicsOf are n topics.
func topicsOf(t *testing.T, n int) []string {
	base := redistest.Key(t)
	topics := make([]string, n)
	for i := range topics {
		topics[i] = fmt.Sprintf("%s:%d", base, i)
	}
	return topics
}

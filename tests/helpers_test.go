package tests

import (
	"context"
	"io"
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

const (
	// soon bounds what is expected to happen at once, with room for a loaded machine.
	soon = 10 * time.Second
	// quiet is how long a test looks for something that must not happen.
	quiet = 150 * time.Millisecond

	// Recovery in tests is quick, but no lease runs out while the race detector and
	// a loaded machine hold a goroutine up.
	testMinIdle       = 500 * time.Millisecond
	testClaimInterval = 50 * time.Millisecond
)

// quickTuning is the tuning of the tests.
func quickTuning() redischannels.Tuning {
	return redischannels.Tuning{
		MinIdle:       testMinIdle,
		ClaimInterval: testClaimInterval,
		BlockTime:     time.Second,
		DrainTimeout:  2 * time.Second,
	}
}

// quickBackoff makes redeliveries almost immediate.
func quickBackoff() redischannels.Backoff {
	return redischannels.Backoff{Min: time.Millisecond, Max: 5 * time.Millisecond}
}

// testSub is a subscriber of one test with the events that it has reported.
type testSub struct {
	*redischannels.Subscriber
	events *events
}

// newSub makes a subscriber of the group "g" with quick settings. It is closed at
// the end of the test.
func newSub(t *testing.T, client redis.UniversalClient, change ...func(*redischannels.SubscriberConfig)) *testSub {
	t.Helper()
	return newLoggedSub(t, client, nil, change...)
}

func newLoggedSub(t *testing.T, client redis.UniversalClient, logger watermill.LoggerAdapter, change ...func(*redischannels.SubscriberConfig)) *testSub {
	t.Helper()
	seen := &events{t: t}
	config := redischannels.SubscriberConfig{
		Client:        client,
		ConsumerGroup: "g",
		NackBackoff:   quickBackoff(),
		OnEvent:       seen.add,
		Tuning:        quickTuning(),
	}
	for _, f := range change {
		f(&config)
	}
	sub, err := redischannels.NewSubscriber(config, logger)
	require.NoError(t, err)
	t.Cleanup(func() { _ = sub.Close() })
	return &testSub{Subscriber: sub, events: seen}
}

// fanOut makes a subscriber one without a group.
func fanOut(c *redischannels.SubscriberConfig) { c.ConsumerGroup = "" }

// subscribe subscribes until the end of the test.
func (s *testSub) subscribe(t *testing.T, topic string) <-chan *message.Message {
	t.Helper()
	messages, err := s.Subscribe(t.Context(), topic)
	require.NoError(t, err)
	return messages
}

// events records what a subscriber reports.
type events struct {
	t    *testing.T
	mu   sync.Mutex
	seen []redischannels.Event
}

func (e *events) add(event redischannels.Event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.seen = append(e.seen, event)
}

// of returns the events of a kind.
func (e *events) of(kind redischannels.EventKind) []redischannels.Event {
	e.mu.Lock()
	defer e.mu.Unlock()
	var found []redischannels.Event
	for _, event := range e.seen {
		if event.Kind == kind {
			found = append(found, event)
		}
	}
	return found
}

// wait returns the first event of a kind.
func (e *events) wait(t *testing.T, kind redischannels.EventKind) redischannels.Event {
	t.Helper()
	var found []redischannels.Event
	redistest.Eventually(t, soon, func() bool {
		found = e.of(kind)
		return len(found) > 0
	}, "no event %q", kind)
	return found[0]
}

// none fails the test if there was an event of one of the kinds.
func (e *events) none(t *testing.T, kinds ...redischannels.EventKind) {
	t.Helper()
	for _, kind := range kinds {
		require.Empty(t, e.of(kind), "%s", kind)
	}
}

// receive returns the next message and leaves it unacknowledged.
func receive(t *testing.T, messages <-chan *message.Message) *message.Message {
	t.Helper()
	select {
	case msg, open := <-messages:
		require.True(t, open, "the channel of messages is closed")
		return msg
	case <-time.After(soon):
		require.FailNow(t, "no message", "within %s", soon)
		return nil
	}
}

// receiveAcked returns the payloads of the next n messages, each acknowledged.
func receiveAcked(t *testing.T, messages <-chan *message.Message, n int) []string {
	t.Helper()
	payloads := make([]string, 0, n)
	for range n {
		msg := receive(t, messages)
		payloads = append(payloads, string(msg.Payload))
		msg.Ack()
	}
	return payloads
}

// noMessage fails the test if a message comes within a short time.
func noMessage(t *testing.T, messages <-chan *message.Message) {
	t.Helper()
	select {
	case msg, open := <-messages:
		require.False(t, open, "a message that must not come: %v", msg)
	case <-time.After(quiet):
	}
}

// waitClosed reads what is left until the channel is closed.
func waitClosed(t *testing.T, messages <-chan *message.Message) {
	t.Helper()
	deadline := time.After(soon)
	for {
		select {
		case _, open := <-messages:
			if !open {
				return
			}
		case <-deadline:
			require.FailNow(t, "the channel of messages is not closed")
		}
	}
}

// waitDone waits for the end of a context.
func waitDone(t *testing.T, ctx context.Context) {
	t.Helper()
	waitFor(t, ctx.Done())
}

// waitFor waits until a channel is closed.
func waitFor(t *testing.T, c <-chan struct{}) {
	t.Helper()
	select {
	case <-c:
	case <-time.After(soon):
		require.FailNow(t, "it does not end")
	}
}

// closeSoon closes the subscriber and returns how long it took.
func (s *testSub) closeSoon(t *testing.T) time.Duration {
	t.Helper()
	return closeSoon(t, s)
}

// closeSoon closes what must not take long to close, and returns how long it took.
func closeSoon(t *testing.T, c io.Closer) time.Duration {
	t.Helper()
	start := time.Now()
	closed := make(chan error, 1)
	go func() { closed <- c.Close() }()
	select {
	case err := <-closed:
		require.NoError(t, err)
	case <-time.After(soon):
		require.FailNow(t, "Close does not return")
	}
	return time.Since(start)
}

// publish appends one message per payload and returns the entry IDs.
func publish(t *testing.T, client redis.UniversalClient, topic string, payloads ...string) []string {
	t.Helper()
	pub, err := redischannels.NewPublisher(redischannels.PublisherConfig{Client: client}, nil)
	require.NoError(t, err)
	defer pub.Close()
	messages := make([]*message.Message, len(payloads))
	for i, p := range payloads {
		messages[i] = message.NewMessage(watermill.NewUUID(), []byte(p))
	}
	ids, err := pub.Append(context.WithoutCancel(t.Context()), topic, messages...)
	require.NoError(t, err)
	return ids
}

// pendingOf lists what is pending in the group "g".
func pendingOf(t *testing.T, client redis.UniversalClient, topic string) []redis.XPendingExt {
	t.Helper()
	pending, err := client.XPendingExt(t.Context(), &redis.XPendingExtArgs{
		Stream: topic, Group: "g", Start: "-", End: "+", Count: 10_000,
	}).Result()
	require.NoError(t, err)
	return pending
}

// eventuallyPending waits until n entries are pending in the group "g".
func eventuallyPending(t *testing.T, client redis.UniversalClient, topic string, n int) {
	t.Helper()
	redistest.Eventually(t, soon, func() bool { return len(pendingOf(t, client, topic)) == n }, "%d pending entries", n)
}

// consumersOf returns the names of the consumers of the group "g".
func consumersOf(t *testing.T, client redis.UniversalClient, topic string) []string {
	t.Helper()
	consumers, err := client.XInfoConsumers(t.Context(), topic, "g").Result()
	require.NoError(t, err)
	names := make([]string, len(consumers))
	for i, c := range consumers {
		names[i] = c.Name
	}
	return names
}

// deadStream is the default dead-letter stream of a topic without braces.
func deadStream(topic string) string { return "{" + topic + "}:dead" }

func controlOf(topic string) string { return "{" + topic + "}:control" }

func returnStream(topic, group string) string { return "{" + topic + "}:return:" + group }

// addRaw appends an entry with these names and values.
func addRaw(t *testing.T, client redis.UniversalClient, topic string, fields ...string) string {
	t.Helper()
	id, err := client.XAdd(t.Context(), &redis.XAddArgs{Stream: topic, Values: fields}).Result()
	require.NoError(t, err)
	return id
}

// countOf returns the delivery count of a message.
func countOf(t *testing.T, msg *message.Message) int {
	t.Helper()
	n, ok := redischannels.DeliveryCountFromContext(msg.Context())
	require.True(t, ok)
	return n
}

// entryIDOf returns the entry ID of a message.
func entryIDOf(t *testing.T, msg *message.Message) string {
	t.Helper()
	id, ok := redischannels.EntryIDFromContext(msg.Context())
	require.True(t, ok)
	return id
}

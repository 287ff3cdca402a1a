package tests

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
)

// hangOnEvent makes OnEvent hang, from the first event on, until release.
func hangOnEvent() (onEvent func(redischannels.Event), hangs <-chan struct{}, release func()) {
	entered, released := make(chan struct{}, 10), make(chan struct{})
	return func(redischannels.Event) {
		select {
		case entered <- struct{}{}:
		default:
		}
		<-released
	}, entered, func() { close(released) }
}

// onEventGrace is how long the end of a subscription waits for OnEvent, as its doc says.
const onEventGrace = 5 * time.Second

// requireBounded is of a Close while OnEvent hangs.
func requireBounded(t *testing.T, took time.Duration, logger *redistest.RecordingLogger) {
	t.Helper()
	require.GreaterOrEqual(t, took, onEventGrace, "what OnEvent has not received yet is waited for")
	require.Less(t, took, onEventGrace+3*time.Second)
	require.True(t, logger.Contains("Close has not waited for OnEvent"), "%v", logger.Lines())
}

// Close waited for as long as OnEvent took, 20 s at a DrainTimeout of 1 s, and without end
// where more than 1,000 events waited and a goroutine with another one waited as well.
func TestSubscriber_CloseWhileOnEventHangs(t *testing.T) {
	t.Parallel()
	for name, events := range map[string]int{"one event": 1, "more than may wait": 1200} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			client, topic, logger := redistest.Shared(t).Client(t), redistest.Key(t), redistest.NewRecordingLogger()
			onEvent, hangs, release := hangOnEvent()
			sub := newLoggedSub(t, client, logger, inFlight(10), func(c *redischannels.SubscriberConfig) { c.OnEvent = onEvent })
			t.Cleanup(release)
			sub.subscribe(t, topic)
			for range events {
				addRaw(t, client, topic, "no", "message")
			}
			<-hangs
			dead := "{" + topic + "}:dead"
			moved := func() int { return int(client.XLen(t.Context(), dead).Val()) }
			redistest.Eventually(t, soon, func() bool { return moved() >= min(events, 1000) }, "moved")
			requireBounded(t, sub.closeSoon(t), logger)
			logged := 0
			for _, line := range logger.Lines() {
				if strings.Contains(line, redischannels.EventDeadLettered.String()) {
					logged++
				}
			}
			require.Equal(t, moved(), logged, "what OnEvent did not receive is logged")
		})
	}
	t.Run("without a group", func(t *testing.T) {
		t.Parallel()
		client, topic, logger := redistest.Shared(t).Client(t), redistest.Key(t), redistest.NewRecordingLogger()
		onEvent, hangs, release := hangOnEvent()
		sub := newLoggedSub(t, client, logger, fanOut, func(c *redischannels.SubscriberConfig) { c.OnEvent = onEvent })
		t.Cleanup(release)
		sub.subscribe(t, topic)
		addRaw(t, client, topic, "no", "message")
		<-hangs
		requireBounded(t, sub.closeSoon(t), logger)
	})
}

func TestPubSubSubscriber_CloseWhileOnEventHangs(t *testing.T) {
	t.Parallel()
	client, topic, logger := redistest.Shared(t).Client(t), redistest.Key(t), redistest.NewRecordingLogger()
	onEvent, hangs, release := hangOnEvent()
	sub := newLoggedPubSub(t, client, logger, func(c *redischannels.PubSubSubscriberConfig) { c.OnEvent = onEvent })
	t.Cleanup(release)
	sub.subscribe(t, topic)
	for range 2 {
		require.NoError(t, client.Publish(t.Context(), topic, "no message").Err())
	}
	<-hangs
	requireBounded(t, sub.closeSoon(t), logger)
	require.True(t, logger.Contains("messages=2") || logger.Contains("messages=1"), "%v", logger.Lines())
}

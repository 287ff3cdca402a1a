package tests

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
)

// HandlerTimeout ran from the moment at which a message was offered. An application that takes
// one after the other had it run out for each next message while it handled the one before:
// good messages were nacked, and in the end dead-lettered, by handlers that were in time.
func TestSubscriber_HandlerTimeoutRunsFromDelivery(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	const timeout = 500 * time.Millisecond
	for name, n := range map[string]int{"strict": 1, "not strict": 3} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			topic := redistest.Key(t)
			publish(t, client, topic, "a", "b", "c")
			sub := newSub(t, client, inFlight(n), func(c *redischannels.SubscriberConfig) { c.HandlerTimeout = timeout })
			messages := sub.subscribe(t, topic)
			eventuallyPending(t, client, topic, n)
			// The application is busy for as long as a handler elsewhere takes to time out.
			clock := newSub(t, client, func(c *redischannels.SubscriberConfig) {
				c.ConsumerGroup, c.HandlerTimeout = "clock", timeout+quiet
			})
			receive(t, clock.subscribe(t, topic))
			clock.events.wait(t, redischannels.EventHandlerTimeout)
			for range 3 {
				msg := receive(t, messages)
				deadline, ok := msg.Context().Deadline()
				require.True(t, ok)
				require.Greater(t, time.Until(deadline), timeout/2)
				require.NoError(t, msg.Context().Err())
				require.Equal(t, 1, countOf(t, msg))
				msg.Ack()
			}
			sub.closeSoon(t)
			sub.events.none(t, redischannels.EventHandlerTimeout, redischannels.EventAckIgnored)
			require.Empty(t, pendingOf(t, client, topic))
		})
	}
}

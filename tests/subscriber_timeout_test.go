package tests

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ThreeDotsLabs/watermill/message"
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

// A handler that hangs holds its message and its slot forever. HandlerTimeout counts as a
// nack; in strict order the next attempt waits for the old handler, otherwise it does not.
func TestSubscriber_HandlerTimeout(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	timeout := func(c *redischannels.SubscriberConfig) { c.HandlerTimeout = 50 * time.Millisecond }

	t.Run("strict", func(t *testing.T) {
		t.Parallel()
		topic := redistest.Key(t)
		ids := publish(t, client, topic, "a", "b")
		sub := newSub(t, client, timeout)
		messages := sub.subscribe(t, topic)
		msg := receive(t, messages)
		deadline, ok := msg.Context().Deadline()
		require.True(t, ok)
		require.LessOrEqual(t, time.Until(deadline), 50*time.Millisecond)
		<-msg.Context().Done()
		require.ErrorContains(t, msg.Context().Err(), "deadline")
		require.Equal(t, []string{ids[0]}, sub.events.wait(t, redischannels.EventHandlerTimeout).EntryIDs)
		noMessage(t, messages) // two handlers at once have no order
		msg.Ack()
		again := receive(t, messages)
		require.Equal(t, "a", string(again.Payload), "the late ack is ignored")
		require.Equal(t, 2, countOf(t, again))
		again.Ack()
		require.Equal(t, []string{ids[0]}, sub.events.wait(t, redischannels.EventAckIgnored).EntryIDs)
		require.Equal(t, []string{"b"}, receiveAcked(t, messages, 1))
		eventuallyPending(t, client, topic, 0)
	})
	t.Run("not strict", func(t *testing.T) {
		t.Parallel()
		topic := redistest.Key(t)
		ids := publish(t, client, topic, "a")
		sub := newSub(t, client, timeout, inFlight(2))
		messages := sub.subscribe(t, topic)
		msg := receive(t, messages)
		again := receive(t, messages) // the slot is free although the first handler hangs
		require.Error(t, msg.Context().Err())
		require.Equal(t, 2, countOf(t, again))
		again.Ack()
		eventuallyPending(t, client, topic, 0)
		msg.Ack()
		require.Equal(t, ids, sub.events.wait(t, redischannels.EventAckIgnored).EntryIDs)
	})
	t.Run("to the dead letters", func(t *testing.T) {
		t.Parallel()
		topic := redistest.Key(t)
		publish(t, client, topic, "a")
		sub := newSub(t, client, timeout, inFlight(8), func(c *redischannels.SubscriberConfig) { c.MaxDeliveries = 2 })
		messages := sub.subscribe(t, topic)
		hanging := []*message.Message{receive(t, messages), receive(t, messages)}
		sub.events.wait(t, redischannels.EventDeadLettered)
		require.EqualValues(t, 1, client.XLen(t.Context(), deadStream(topic)).Val())
		noMessage(t, messages)
		for _, msg := range hanging {
			msg.Ack()
		}
	})
}

package tests

import (
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
)

// Redis counts reads, claims and hand-overs alike, so messages that nobody has handled use up
// their deliveries by every deploy. (F24, section 4: the delivery count is the number of times
// that the message was handed to a handler)
func TestSubscriber_ReleasesDoNotCount(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	topic := redistest.Key(t)
	ids := publish(t, client, topic, "a", "b", "c", "d", "e")

	for range 5 {
		sub := newSub(t, client, inFlight(len(ids)), minIdle(time.Minute))
		sub.subscribe(t, topic)
		eventuallyPending(t, client, topic, len(ids))
		sub.closeSoon(t)
		for _, p := range pendingOf(t, client, topic) {
			require.Zero(t, p.RetryCount, "%s was handed to no handler", p.ID)
			require.GreaterOrEqual(t, p.Idle, time.Minute, "%s cannot be claimed at once", p.ID)
		}
	}
	sub := newSub(t, client, inFlight(len(ids)), minIdle(time.Minute))
	messages := sub.subscribe(t, topic)
	for range ids {
		msg := receive(t, messages)
		require.Equal(t, 1, countOf(t, msg))
		msg.Ack()
	}
	eventuallyPending(t, client, topic, 0)
}

// The count that a handler sees, and by which a message is given up, depends on the way that
// the message took to it. (F24, F21)
func TestSubscriber_DeliveryCountIsThatOfDeliveries(t *testing.T) {
	t.Parallel()
	server := redistest.Shared(t)

	t.Run("nack", func(t *testing.T) {
		t.Parallel()
		client, topic := server.Client(t), redistest.Key(t)
		id := publish(t, client, topic, "m")[0]
		messages := newSub(t, client).subscribe(t, topic)
		for want := 1; want <= 4; want++ {
			msg := receive(t, messages)
			require.Equal(t, want, countOf(t, msg))
			require.Equal(t, id, entryIDOf(t, msg))
			pending := pendingOf(t, client, topic)
			require.Len(t, pending, 1)
			require.EqualValues(t, want, pending[0].RetryCount, "the count in Redis")
			if want < 4 {
				msg.Nack()
			} else {
				msg.Ack()
			}
		}
	})
	t.Run("crash", func(t *testing.T) {
		t.Parallel()
		client, topic := server.Client(t), redistest.Key(t)
		publish(t, client, topic, "m")
		for want := 1; want <= 2; want++ {
			child := startConsumer(t, server, topic, "MIN_IDLE=300")
			require.Equal(t, want, child.got(t).count)
			child.Kill()
		}
		msg := receive(t, newSub(t, client, minIdle(300*time.Millisecond)).subscribe(t, topic))
		require.Equal(t, 3, countOf(t, msg))
		require.EqualValues(t, 3, pendingOf(t, client, topic)[0].RetryCount)
		msg.Ack()
	})
	t.Run("hand-back of a nacked message", func(t *testing.T) {
		t.Parallel()
		client, topic := server.Client(t), redistest.Key(t)
		publish(t, client, topic, "m")
		for want := 1; want <= 3; want++ {
			sub := newSub(t, client, minIdle(time.Minute), func(c *redischannels.SubscriberConfig) {
				c.NackBackoff = redischannels.Backoff{Min: time.Minute, Jitter: redischannels.NoJitter}
			})
			msg := receive(t, sub.subscribe(t, topic))
			require.Equal(t, want, countOf(t, msg))
			msg.Nack() // it would come again in a minute, here
			redistest.Eventually(t, soon, func() bool { return msg.Context().Err() != nil }, "the end of the delivery")
			sub.closeSoon(t)
			p := pendingOf(t, client, topic)[0]
			require.EqualValues(t, want, p.RetryCount)
			require.Less(t, p.Idle, 30*time.Second, "the back-off is lost")
			setIdle(t, client, topic, p.Consumer, time.Minute, p.ID) // its end
		}
	})
	t.Run("lost reply of XREADGROUP", func(t *testing.T) {
		t.Parallel()
		topic := redistest.Key(t)
		proxy := redistest.NewProxy(t, server.Addr())
		client, direct := server.Client(t, redistest.Via(proxy)), server.Client(t)
		messages := newSub(t, client).subscribe(t, topic)
		lost := proxy.DropReplyIf(1, redistest.Command("XREADGROUP"), redistest.NotNil)
		publish(t, direct, topic, "m")
		msg := receive(t, messages)
		require.Equal(t, 1, lost.Count())
		require.Equal(t, 1, countOf(t, msg))
		require.EqualValues(t, 1, pendingOf(t, direct, topic)[0].RetryCount)
		msg.Ack()
		eventuallyPending(t, direct, topic, 0)
	})
	t.Run("claim of what was handed back", func(t *testing.T) {
		t.Parallel()
		client, topic := server.Client(t), redistest.Key(t)
		publish(t, client, topic, "m")
		ids := deliverTo(t, client, topic, "other", 1, time.Hour)
		// As a hand-back leaves it.
		require.NoError(t, client.Do(t.Context(), "XCLAIM", topic, "g", "other", 0, ids[0],
			"IDLE", time.Hour.Milliseconds(), "RETRYCOUNT", 0, "JUSTID").Err())
		msg := receive(t, newSub(t, client).subscribe(t, topic))
		require.Equal(t, 1, countOf(t, msg))
		msg.Ack()
	})
}

// RetryAfter and Reject mark a message; the Nack makes them work.
func TestSubscriber_RetryAfterAndReject(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)

	t.Run("RetryAfter", func(t *testing.T) {
		t.Parallel()
		topic := redistest.Key(t)
		publish(t, client, topic, "m")
		messages := newSub(t, client, func(c *redischannels.SubscriberConfig) {
			c.NackBackoff = redischannels.Backoff{Min: time.Hour, Max: time.Hour}
		}).subscribe(t, topic)
		const delay = 80 * time.Millisecond
		msg := receive(t, messages)
		require.True(t, redischannels.RetryAfter(msg, delay))
		noMessage(t, messages) // nothing happens before the Nack
		start := time.Now()
		msg.Nack()
		again := receive(t, messages)
		require.GreaterOrEqual(t, time.Since(start), delay)
		require.Equal(t, 2, countOf(t, again))
		require.True(t, redischannels.RetryAfter(again, delay))
		again.Ack() // an Ack is an Ack
		eventuallyPending(t, client, topic, 0)
		noMessage(t, messages)
	})
	t.Run("RetryAfter without delay", func(t *testing.T) {
		t.Parallel()
		topic := redistest.Key(t)
		publish(t, client, topic, "m")
		messages := newSub(t, client, func(c *redischannels.SubscriberConfig) {
			c.NackBackoff = redischannels.Backoff{Min: time.Hour, Max: time.Hour}
		}).subscribe(t, topic)
		msg := receive(t, messages)
		require.False(t, redischannels.RetryAfter(msg, -1))
		require.True(t, redischannels.RetryAfter(msg, 0))
		msg.Nack()
		receive(t, messages).Ack()
	})
	t.Run("Reject", func(t *testing.T) {
		t.Parallel()
		topic := redistest.Key(t)
		ids := publish(t, client, topic, "bad", "good")
		sub := newSub(t, client)
		messages := sub.subscribe(t, topic)
		msg := receive(t, messages)
		require.True(t, redischannels.Reject(msg, "no such customer"))
		noMessage(t, messages)
		msg.Nack()
		require.Equal(t, []string{"good"}, receiveAcked(t, messages, 1))
		require.Equal(t, []string{ids[0]}, sub.events.wait(t, redischannels.EventDeadLettered).EntryIDs)
		dead, err := client.XRange(t.Context(), deadStream(topic), "-", "+").Result()
		require.NoError(t, err)
		require.Len(t, dead, 1)
		require.Equal(t, "no such customer", dead[0].Values["_dead_reason"])
		require.Equal(t, "1", dead[0].Values["_dead_count"])
		eventuallyPending(t, client, topic, 0)
	})
	t.Run("the last call counts", func(t *testing.T) {
		t.Parallel()
		topic := redistest.Key(t)
		publish(t, client, topic, "m")
		messages := newSub(t, client).subscribe(t, topic)
		msg := receive(t, messages)
		require.True(t, redischannels.Reject(msg, "never"))
		require.True(t, redischannels.RetryAfter(msg, time.Millisecond))
		msg.Nack()
		receive(t, messages).Ack()
		require.Zero(t, client.Exists(t.Context(), deadStream(topic)).Val())
	})
}

// A handler that hangs holds its message and its slot for ever. HandlerTimeout counts as a
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

package tests

import (
	"strings"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
)

// What a publisher takes to be within MaxPayload a subscriber with the same bound must take as
// well, to the byte: else it becomes a dead letter, or is dropped, after it was confirmed. (F104)
func TestInput_PublisherAndSubscriberMeasurePayloadsAlike(t *testing.T) {
	t.Parallel()
	const bound = 1000
	client := redistest.Shared(t).Client(t)
	// largest publishes the largest message that is taken.
	largest := func(t *testing.T, publish func(*message.Message) error) int {
		t.Helper()
		for size := bound; size > 0; size-- {
			msg := message.NewMessage("u", []byte(strings.Repeat("x", size)))
			msg.Metadata.Set("name", "value")
			err := publish(msg)
			if err == nil {
				require.Less(t, size, bound, "the metadata counts as well")
				return size
			}
			require.ErrorIs(t, err, redischannels.ErrTooLarge)
		}
		require.FailNow(t, "nothing is taken")
		return 0
	}

	for name, change := range map[string]func(*redischannels.SubscriberConfig){"group": inFlight(1), "fan-out": fanOut} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			topic := redistest.Key(t)
			pub := newTestPublisher(t, client, watermillFormat, func(c *redischannels.PublisherConfig) { c.MaxPayload = bound })
			just := newSub(t, client, change, func(c *redischannels.SubscriberConfig) { c.MaxPayload = bound })
			less := newSub(t, client, change, func(c *redischannels.SubscriberConfig) {
				c.MaxPayload = bound - 1
				if c.ConsumerGroup != "" {
					c.ConsumerGroup = "h"
				}
			})
			messages, refused := just.subscribe(t, topic), less.subscribe(t, topic)
			size := largest(t, func(msg *message.Message) error { return pub.Publish(topic, msg) })
			require.Len(t, receiveAcked(t, messages, 1)[0], size)
			kind := redischannels.EventDeadLettered
			if name == "fan-out" {
				kind = redischannels.EventUndecodable
			}
			require.ErrorContains(t, less.events.wait(t, kind).Err, "1000 bytes, more than MaxPayload 999")
			noMessage(t, refused)
			just.events.none(t, kind)
		})
	}
	t.Run("Pub/Sub", func(t *testing.T) {
		t.Parallel()
		topic := redistest.Key(t)
		pub := newPubSubPub(t, client, func(c *redischannels.PubSubPublisherConfig) { c.MaxPayload = bound })
		just := newPubSub(t, client, func(c *redischannels.PubSubSubscriberConfig) { c.MaxPayload = bound })
		less := newPubSub(t, client, func(c *redischannels.PubSubSubscriberConfig) { c.MaxPayload = bound - 1 })
		messages, refused := just.subscribe(t, topic), less.subscribe(t, topic)
		size := largest(t, func(msg *message.Message) error { return pub.Publish(topic, msg) })
		require.Len(t, receiveAcked(t, messages, 1)[0], size)
		require.ErrorContains(t, less.events.wait(t, redischannels.EventUndecodable).Err, "1000 bytes, more than MaxPayload 999")
		noMessage(t, refused)
		just.events.none(t, redischannels.EventUndecodable)
	})
}

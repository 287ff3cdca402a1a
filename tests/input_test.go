package tests

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
)

// A topic is a key: any bytes.
func TestInput_TopicsOfAnyBytes(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	elsewhere := func(topic string) string { return topic + ":side" }
	for name, form := range map[string]string{
		"spaces":             " a b  %s ",
		"newlines":           "a\r\nDEL %s\r\n",
		"hash tag":           "{%s}:x",
		"opening brace":      "a{%s",
		"empty hash tag":     "{}%s",
		"closing brace":      "a}%s",
		"binary":             "\x00\xff\xfe%s\x80",
		"pattern characters": "*?[%s]\\",
		"quotes":             `"'%s'"`,
		"not ASCII":          "Bestellungen für %s 订单",
		"percent":            "%%s %%d %s",
		"long":               "%s" + strings.Repeat("x", 10_000),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			topic := fmt.Sprintf(form, redistest.Key(t))
			var side func(string) string
			if strings.Contains(topic, "}") && name != "hash tag" { // the default says that it needs one
				side = elsewhere
				dead := func(c *redischannels.SubscriberConfig) { c.DeadLetterTopic = elsewhere }
				_, err := newSub(t, client, dead).Subscribe(t.Context(), topic)
				require.ErrorIs(t, err, redischannels.ErrInvalidArgument)
				require.ErrorContains(t, err, "SideKeys")
			}
			everyFeature(t, client, topic, side, nil)
			require.NoError(t, client.Del(t.Context(), topic).Err())
		})
	}
}

// Sizes from nothing to the bound, on both sides. A larger message is refused by the publisher,
// and dead-lettered by the subscriber without being decoded.
func TestInput_PayloadsUpToTheBound(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	client := server.Client(t)
	topic := redistest.Key(t)
	sub := newSub(t, client, tuned(func(c *redischannels.Tuning) { // a reply must come within BlockTime + 1 s
		c.MinIdle, c.BlockTime = 2*time.Minute, 39*time.Second
	}))
	messages := sub.subscribe(t, topic)
	pub := newTestPublisher(t, client, watermillFormat)
	for _, size := range []int{0, 1, 1 << 10, 1 << 20, 63 << 20} {
		payload := bytes.Repeat([]byte{0xa5}, size)
		require.NoError(t, pub.Publish(topic, message.NewMessage("m", payload)), size)
		var msg *message.Message
		select {
		case msg = <-messages:
		case <-time.After(4 * soon): // a loaded machine takes its time for 63 MiB
			require.FailNow(t, "no message", "of %d bytes", size)
		}
		require.True(t, bytes.Equal(payload, msg.Payload), "%d bytes", size)
		msg.Ack()
	}
	require.ErrorIs(t, pub.Publish(topic, message.NewMessage("m", make([]byte, 64<<20))), redischannels.ErrTooLarge)
	eventuallyPending(t, client, topic, 0)
	sub.closeSoon(t)

	narrow := newSub(t, client, func(c *redischannels.SubscriberConfig) { c.MaxPayload = 1000 })
	messages = narrow.subscribe(t, topic)
	publish(t, client, topic, strings.Repeat("x", 2000), "small")
	require.Equal(t, []string{"small"}, receiveAcked(t, messages, 1))
	event := narrow.events.wait(t, redischannels.EventDeadLettered)
	require.ErrorContains(t, event.Err, "MaxPayload 1000")
}

// Metadata is the publisher's: names and values of any bytes, also those that the library uses
// itself, neither break an entry nor pretend to be a dead letter.
func TestInput_HostileMetadata(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	topic := redistest.Key(t)
	sub := newSub(t, client)
	messages := sub.subscribe(t, topic)
	msg := message.NewMessage("u\r\n\x00", []byte("p"))
	pub := newTestPublisher(t, client, watermillFormat)
	reserved := message.NewMessage("u", nil)
	reserved.Metadata.Set("_watermill_message_uuid", "another")
	require.Error(t, pub.Publish(topic, reserved))
	for _, name := range []string{
		"", " ", "payload", "metadata", "_dead_reason", "_dead_entry_id", "\x00\xff", "a\r\nDEL b",
		strings.Repeat("n", 10_000),
	} {
		msg.Metadata.Set(name, "value of "+name+"\x00\xff\r\n")
	}
	require.NoError(t, pub.Publish(topic, msg))
	got := receive(t, messages)
	require.True(t, msg.Equals(got), "%q", got.Metadata)
	redischannels.Reject(got, "hostile\r\n\x00\xff")
	got.Nack()
	sub.events.wait(t, redischannels.EventDeadLettered)
	for letter, err := range newDeadLetters(t, client).List(t.Context(), topic, redischannels.DeadLetterQuery{}) {
		require.NoError(t, err)
		require.Equal(t, topic, letter.Topic)
		require.Equal(t, "g", letter.Group)
		again, err := redischannels.WatermillMarshaler{}.Unmarshal(letter.Entry())
		require.NoError(t, err)
		require.True(t, msg.Equals(again))
	}
}

// A message that a publisher accepts within MaxPayload must be accepted by a subscriber with the
// same bound, to the byte: otherwise it is dead-lettered, or dropped, after it was confirmed.
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

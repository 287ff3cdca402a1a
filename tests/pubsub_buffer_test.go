package tests

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
)

func buffer(messages int, drop redischannels.DropPolicy) func(*redischannels.PubSubSubscriberConfig) {
	return func(c *redischannels.PubSubSubscriberConfig) { c.Buffer, c.Drop = messages, drop }
}

// A slow handler: messages are lost after a minute, with one line in a log.
func TestPubSub_DropsFollowThePolicyAndAreCounted(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	pub := newPubSubPub(t, client)
	for name, c := range map[string]struct {
		drop redischannels.DropPolicy
		left []string
	}{
		"oldest": {redischannels.DropOldest, counted(996, 1000)},
		"newest": {redischannels.DropNewest, counted(2, 6)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			logger := redistest.NewRecordingLogger()
			sub := newLoggedPubSub(t, client, logger, buffer(5, c.drop))
			topic, other := redistest.Key(t), redistest.Key(t)
			messages, others := sub.subscribe(t, topic), sub.subscribe(t, other)
			say(t, pub, topic, "1")
			first := receive(t, messages) // and its handler takes its time
			for n := 2; n <= 1000; n += 111 {
				say(t, pub, topic, counted(n, n+110)...)
				say(t, pub, other, fmt.Sprint(n))
				require.Equal(t, []string{fmt.Sprint(n)}, receiveAcked(t, others, 1), "no other subscription waits")
			}
			redistest.Eventually(t, soon, func() bool { return sub.events.sum(redischannels.EventDropped) == 994 },
				"the counts of the events are the number of dropped messages")
			first.Ack()
			require.Equal(t, c.left, receiveAcked(t, messages, 5))
			dropped := sub.events.of(redischannels.EventDropped)
			require.LessOrEqual(t, len(dropped), 4, "the events are few")
			for _, e := range dropped {
				require.Equal(t, topic, e.Topic)
			}
			lines := 0
			for _, line := range logger.Lines("error") {
				if strings.Contains(line, "dropped") {
					lines++
				}
			}
			require.Equal(t, len(dropped), lines)
			noMessage(t, messages)
		})
	}

	t.Run("bytes", func(t *testing.T) {
		t.Parallel()
		sub := newPubSub(t, client, func(c *redischannels.PubSubSubscriberConfig) { c.BufferBytes = 4000 })
		topic := redistest.Key(t)
		messages := sub.subscribe(t, topic)
		say(t, pub, topic, "first")
		first := receive(t, messages)
		for i := range 10 {
			say(t, pub, topic, fmt.Sprint(i)+strings.Repeat("x", 1000))
		}
		redistest.Eventually(t, soon, func() bool { return sub.events.sum(redischannels.EventDropped) == 7 }, "seven dropped")
		say(t, pub, topic, strings.Repeat("y", 10_000)) // larger than the buffer
		redistest.Eventually(t, soon, func() bool { return sub.events.sum(redischannels.EventDropped) == 10 }, "all dropped")
		first.Ack()
		require.Equal(t, []string{strings.Repeat("y", 10_000)}, receiveAcked(t, messages, 1))
	})

	t.Run("the counts are complete at Close", func(t *testing.T) {
		t.Parallel()
		sub := newPubSub(t, client, buffer(5, redischannels.DropOldest))
		topic := redistest.Key(t)
		messages := sub.subscribe(t, topic)
		say(t, pub, topic, counted(1, 1000)...)
		receiveAcked(t, messages, 1)
		say(t, pub, topic, counted(1001, 2000)...)
		redistest.Eventually(t, soon, func() bool { return sub.events.sum(redischannels.EventDropped) > 0 }, "drops")
		marker := redistest.Key(t)
		end := sub.subscribe(t, marker)
		say(t, pub, marker, "all of them have come")
		receiveAcked(t, end, 1)
		sub.closeSoon(t)
		require.Equal(t, 1999, sub.events.sum(redischannels.EventDropped)+sub.events.sum(redischannels.EventAbandoned))
	})
}

// The server kills subscribers that do not read, which costs much more than what they did not
// read.
func TestPubSub_SocketIsAlwaysRead(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t, redistest.Arg("client-output-buffer-limit", "pubsub", "16mb", "0", "0"))
	client := server.Client(t)
	sub := newPubSub(t, client, buffer(10, redischannels.DropOldest))
	topic, other := redistest.Key(t), redistest.Key(t)
	messages, others := sub.subscribe(t, topic), sub.subscribe(t, other)
	pub := newPubSubPub(t, client)
	say(t, pub, topic, "first")
	first := receive(t, messages)
	payload := strings.Repeat("x", 64<<10)
	const rounds, each = 2, 500 // 32 MB in each
	for i := range rounds {
		for range each {
			say(t, pub, topic, payload)
		}
		say(t, pub, other, fmt.Sprint(i))
		require.Equal(t, []string{fmt.Sprint(i)}, receiveAcked(t, others, 1))
	}
	first.Ack()
	receiveAcked(t, messages, 10)
	redistest.Eventually(t, soon, func() bool { return sub.events.sum(redischannels.EventDropped) == rounds*each-10 }, "all drops are counted")
	sub.events.none(t, redischannels.EventDisconnected, redischannels.EventInterrupted)
}

// Ack and Nack store nothing. Their effects are within this process.
func TestPubSub_NackRedeliversInThisProcess(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	pub := newPubSubPub(t, client)
	deliveries := func(n int) func(*redischannels.PubSubSubscriberConfig) {
		return func(c *redischannels.PubSubSubscriberConfig) { c.MaxDeliveries = n }
	}

	t.Run("again with a new message, up to the bound", func(t *testing.T) {
		t.Parallel()
		sub := newPubSub(t, client, deliveries(3), func(c *redischannels.PubSubSubscriberConfig) {
			c.Unmarshaler = redischannels.RawPayload{}
		})
		topic := redistest.Key(t)
		messages := sub.subscribe(t, topic)
		require.NoError(t, client.Publish(t.Context(), topic, "poison").Err())
		require.NoError(t, client.Publish(t.Context(), topic, "next").Err())
		var uuid string
		var last *message.Message
		for n := 1; n <= 3; n++ {
			msg := receive(t, messages)
			require.Equal(t, "poison", string(msg.Payload), "a handler's changes are its own")
			require.Equal(t, n, countOf(t, msg))
			require.NotSame(t, last, msg)
			if n > 1 {
				require.Equal(t, uuid, msg.UUID)
			}
			uuid, last = msg.UUID, msg
			require.NoError(t, msg.Context().Err())
			copy(msg.Payload, "XXXXXX")
			msg.Nack()
			waitDone(t, msg.Context())
		}
		require.Equal(t, []string{"next"}, receiveAcked(t, messages, 1), "the head has held the rest back")
		passed := sub.events.wait(t, redischannels.EventSkipped)
		require.Equal(t, 1, passed.Count)
		require.Equal(t, topic, passed.Topic)
		require.ErrorContains(t, passed.Err, uuid)
	})

	t.Run("RetryAfter and Reject", func(t *testing.T) {
		t.Parallel()
		sub := newPubSub(t, client, func(c *redischannels.PubSubSubscriberConfig) {
			c.NackBackoff = redischannels.Backoff{Min: time.Minute, Max: time.Minute}
		})
		topic := redistest.Key(t)
		messages := sub.subscribe(t, topic)
		say(t, pub, topic, "a", "b")
		msg := receive(t, messages)
		require.True(t, redischannels.RetryAfter(msg, time.Millisecond))
		msg.Nack()
		msg = receive(t, messages)
		require.Equal(t, 2, countOf(t, msg))
		require.True(t, redischannels.Reject(msg, "no good"))
		msg.Nack()
		require.ErrorContains(t, sub.events.wait(t, redischannels.EventSkipped).Err, "no good")
		require.Equal(t, []string{"b"}, receiveAcked(t, messages, 1))
	})

	t.Run("Close does not wait for a back-off", func(t *testing.T) {
		t.Parallel()
		sub := newPubSub(t, client, func(c *redischannels.PubSubSubscriberConfig) {
			c.NackBackoff = redischannels.Backoff{Min: time.Minute, Max: time.Minute}
		})
		topic := redistest.Key(t)
		messages, others := sub.subscribe(t, topic), sub.subscribe(t, topic)
		say(t, pub, topic, "a", "b", "c")
		receive(t, messages).Nack()
		require.Equal(t, []string{"a", "b", "c"}, receiveAcked(t, others, 3)) // all have come over the connection
		require.Less(t, sub.closeSoon(t), time.Second)
		waitClosed(t, messages)
		require.Equal(t, 3, sub.events.sum(redischannels.EventAbandoned), "what is lost at the end is reported")
	})

	t.Run("several in flight", func(t *testing.T) {
		t.Parallel()
		sub := newPubSub(t, client, func(c *redischannels.PubSubSubscriberConfig) { c.MaxInFlight = 3 })
		topic := redistest.Key(t)
		messages := sub.subscribe(t, topic)
		say(t, pub, topic, counted(1, 5)...)
		received := []*message.Message{receive(t, messages), receive(t, messages), receive(t, messages)}
		noMessage(t, messages)
		received[1].Ack()
		receive(t, messages).Ack()
		receive(t, messages).Ack()
		received[0].Ack()
		received[2].Ack()
	})
}

// A message that is none of ours is passed, counted and reported, and does no harm.
func TestPubSub_Undecodable(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	sub := newPubSub(t, client, func(c *redischannels.PubSubSubscriberConfig) { c.MaxPayload = 1000 })
	topic := redistest.Key(t)
	messages := sub.subscribe(t, topic)
	_, err := client.Pipelined(t.Context(), func(pipe redis.Pipeliner) error { // at once, so that few events count them
		for range 500 {
			pipe.Publish(t.Context(), topic, `{"secret":1}`)
		}
		return nil
	})
	require.NoError(t, err)
	require.NoError(t, client.Publish(t.Context(), topic, "\x01\x00\x00"+strings.Repeat("x", 1000)).Err())
	say(t, newPubSubPub(t, client), topic, "good")
	require.Equal(t, []string{"good"}, receiveAcked(t, messages, 1))
	sub.closeSoon(t)
	require.Equal(t, 501, sub.events.sum(redischannels.EventUndecodable))
	found := sub.events.of(redischannels.EventUndecodable)
	require.Less(t, len(found), 5)
	var decode *redischannels.DecodeError
	require.ErrorAs(t, found[0].Err, &decode)
	require.Equal(t, topic, decode.Topic)
	require.NotContains(t, found[0].Err.Error(), "secret")
	require.ErrorContains(t, found[len(found)-1].Err, "more than MaxPayload 1000")

	panics := newPubSub(t, client, func(c *redischannels.PubSubSubscriberConfig) { c.Unmarshaler = brokenPubSub{} })
	topic = redistest.Key(t)
	panics.subscribe(t, topic)
	require.NoError(t, client.Publish(t.Context(), topic, "panic").Err())
	require.NoError(t, client.Publish(t.Context(), topic, "nil").Err())
	require.NoError(t, client.Publish(t.Context(), topic, "error").Err())
	redistest.Eventually(t, soon, func() bool { return panics.events.sum(redischannels.EventUndecodable) == 3 }, "three")
}

type brokenPubSub struct{}

func (brokenPubSub) Unmarshal(_ string, data []byte) (*message.Message, error) {
	switch string(data) {
	case "panic":
		panic("no")
	case "nil":
		return nil, nil
	}
	return nil, errors.New("no")
}

// Close lets handlers finish with live contexts, and leaves those behind that do not.
func TestPubSub_Close(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	client := server.Client(t)
	goroutines := redistest.Goroutines(t)
	pub := newPubSubPub(t, client)

	for name, end := range map[string]func(sub *testPubSub, cancel context.CancelFunc){
		"close":  func(sub *testPubSub, _ context.CancelFunc) { go sub.Close() },
		"cancel": func(_ *testPubSub, cancel context.CancelFunc) { cancel() },
	} {
		t.Run(name, func(t *testing.T) {
			sub := newPubSub(t, client)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			topic := redistest.Key(t)
			messages, err := sub.Subscribe(ctx, topic)
			require.NoError(t, err)
			beside, err := sub.Subscribe(ctx, topic+":beside")
			require.NoError(t, err)
			say(t, pub, topic, "handled", "waits")
			say(t, pub, topic+":beside", "behind them on the connection")
			receiveAcked(t, beside, 1)
			msg := receive(t, messages)
			end(sub, cancel)
			redistest.Eventually(t, soon, func() bool { return subscribers(t, client, topic) == 0 }, "unsubscribed")
			require.NoError(t, msg.Context().Err(), "the handler may finish")
			select {
			case _, open := <-messages:
				require.True(t, open, "the channel stays open while a handler is at work")
				require.FailNow(t, "a message after the end")
			case <-time.After(quiet):
			}
			msg.Ack()
			waitClosed(t, messages)
			redistest.Eventually(t, soon, func() bool { return sub.events.sum(redischannels.EventAbandoned) == 1 }, "one was lost")
			goroutines.Wait(time.Second)
			redistest.Eventually(t, soon, func() bool { return pubSubConnections(t, client) == 0 }, "no connection is left")
		})
	}
	t.Run("stuck handler", func(t *testing.T) {
		sub := newPubSub(t, client, func(c *redischannels.PubSubSubscriberConfig) { c.DrainTimeout = 50 * time.Millisecond })
		topic := redistest.Key(t)
		messages := sub.subscribe(t, topic)
		say(t, pub, topic, "stuck")
		msg := receive(t, messages)
		require.Less(t, sub.closeSoon(t), 2*time.Second)
		waitDone(t, msg.Context())
		waitClosed(t, messages)
		require.Equal(t, 1, sub.events.sum(redischannels.EventAbandoned))
		goroutines.Wait(time.Second)
		require.NoError(t, sub.Close(), "again")
	})
	t.Run("while subscribing and in an outage", func(t *testing.T) {
		proxy := redistest.NewProxy(t, server.Addr())
		through := server.Client(t, redistest.Via(proxy))
		for _, fault := range []func(bool){proxy.Blackhole, proxy.Refuse} {
			sub := newPubSub(t, through)
			sub.subscribe(t, redistest.Key(t))
			fault(true)
			failed := make(chan error, 1)
			go func() {
				_, err := sub.Subscribe(t.Context(), redistest.Key(t))
				failed <- err
			}()
			require.Less(t, sub.closeSoon(t), time.Second)
			require.Error(t, <-failed)
			goroutines.Wait(time.Second)
			fault(false)
		}
	})
	require.NoError(t, client.Ping(t.Context()).Err(), "the client is the caller's")
}

package tests

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill-redisstream/pkg/redisstream"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/compat"
	"github.com/flaminco/redischannels/internal/redistest"
)

// oldClient makes a client for watermill-redisstream, which closes it.
func oldClient(server *redistest.Server) *redis.Client { return redis.NewClient(server.Options()) }

// oldConfig is a configuration of watermill-redisstream for the group "g".
func oldConfig(server *redistest.Server, change ...func(*redisstream.SubscriberConfig)) redisstream.SubscriberConfig {
	config := redisstream.SubscriberConfig{
		Client: oldClient(server), ConsumerGroup: "g",
		BlockTime: 20 * time.Millisecond, DisableIndefiniteInitialBlock: true,
		ClaimInterval: testClaimInterval, MaxIdleTime: testMinIdle,
	}
	for _, f := range change {
		f(&config)
	}
	return config
}

func newOldSub(t *testing.T, config redisstream.SubscriberConfig) *redisstream.Subscriber {
	t.Helper()
	sub, err := redisstream.NewSubscriber(config, nil)
	require.NoError(t, err)
	t.Cleanup(func() { _ = sub.Close() })
	return sub
}

func oldSubscribe(t *testing.T, config redisstream.SubscriberConfig, topic string) <-chan *message.Message {
	t.Helper()
	messages, err := newOldSub(t, config).Subscribe(t.Context(), topic)
	require.NoError(t, err)
	return messages
}

// newSubFrom makes our subscriber of a configuration of watermill-redisstream.
func newSubFrom(t *testing.T, client redis.UniversalClient, from redisstream.SubscriberConfig) *testSub {
	t.Helper()
	require.NoError(t, from.Client.Close())
	from.Client = client
	config, err := compat.SubscriberConfig(from)
	require.NoError(t, err)
	return newSub(t, client, func(c *redischannels.SubscriberConfig) {
		config.OnEvent = c.OnEvent
		*c = config
	})
}

func newOldPub(t *testing.T, server *redistest.Server) message.Publisher {
	t.Helper()
	pub, err := redisstream.NewPublisher(redisstream.PublisherConfig{Client: oldClient(server)}, nil)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, pub.Close()) })
	return pub
}

func newPubFrom(t *testing.T, client redis.UniversalClient) message.Publisher {
	t.Helper()
	config, err := compat.PublisherConfig(redisstream.PublisherConfig{Client: client, Maxlens: map[string]int64{"x": -1}, DefaultMaxlen: 1000})
	require.NoError(t, err)
	pub, err := redischannels.NewPublisher(config, nil)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, pub.Close()) })
	return pub
}

// Both publishers' messages arrive unchanged at both subscribers, in a group of
// its own for each and as fan-out.
func TestInterop_Messages(t *testing.T) {
	t.Parallel()
	server := redistest.Shared(t)
	client := server.Client(t)
	topic := redistest.Key(t)

	readers := map[string]<-chan *message.Message{
		"old group":   oldSubscribe(t, oldConfig(server), topic),
		"our group":   newSubFrom(t, client, oldConfig(server, func(c *redisstream.SubscriberConfig) { c.ConsumerGroup = "h" })).subscribe(t, topic),
		"our fan-out": newSubFrom(t, client, oldConfig(server, func(c *redisstream.SubscriberConfig) { c.ConsumerGroup = "" })).subscribe(t, topic),
		// Their "$" is sent by a goroutine after Subscribe has returned.
		"old fan-out": oldSubscribe(t, oldConfig(server, func(c *redisstream.SubscriberConfig) { c.ConsumerGroup, c.FanOutOldestId = "", "0" }), topic),
	}
	var want []*message.Message
	for i, pub := range []message.Publisher{newOldPub(t, server), newPubFrom(t, client), newOldPub(t, server)} {
		full := message.NewMessage(fmt.Sprintf("full-%d", i), []byte("\x00\xffpayload\r\n"))
		full.Metadata = message.Metadata{"name": "value", "": "empty name", "empty value": "", "ütf": "\xff"}
		empty := message.NewMessage(fmt.Sprintf("empty-%d", i), nil)
		require.NoError(t, pub.Publish(topic, full, empty))
		want = append(want, full, empty)
	}
	for name, messages := range readers {
		t.Run(name, func(t *testing.T) {
			for _, w := range want {
				got := receive(t, messages)
				require.True(t, w.Equals(got), "%q: %v, %q", got.UUID, got.Metadata, got.Payload)
				got.Ack()
			}
		})
	}
	redistest.Eventually(t, soon, func() bool { return len(pendingOf(t, client, topic)) == 0 }, "all acknowledged")
}

// The state of a rolling deployment: consumers of both libraries in one group,
// a nack on each side, and a handler on ours that takes longer than the old side
// leaves an entry alone. Every message is handled once.
func TestInterop_OneGroup(t *testing.T) {
	t.Parallel()
	server := redistest.Shared(t)
	client := server.Client(t)
	topic := redistest.Key(t)
	publishers := []message.Publisher{newOldPub(t, server), newPubFrom(t, client)}
	patient := func(c *redisstream.SubscriberConfig) { c.MaxIdleTime = 2 * time.Second }
	theirs := oldSubscribe(t, oldConfig(server, patient), topic)
	sub := newSubFrom(t, client, oldConfig(server, patient))
	ours := sub.subscribe(t, topic)

	const n = 40
	var mu sync.Mutex
	var handled []string
	shares := map[string]int{}
	done := make(chan struct{}, 10*n)
	consume := func(side string, messages <-chan *message.Message, first time.Duration) {
		nacked := false
		for msg := range messages {
			if !nacked {
				nacked = true
				msg.Nack()
				continue
			}
			mu.Lock()
			handled = append(handled, msg.UUID)
			shares[side]++
			mu.Unlock()
			time.Sleep(first)
			first = 0
			msg.Ack()
			done <- struct{}{}
		}
	}
	go consume("old", theirs, 0) // both end with the context of the test
	go consume("ours", ours, 3*time.Second)
	var want []string
	for i := range n {
		uuid := fmt.Sprintf("%02d", i)
		want = append(want, uuid)
		require.NoError(t, publishers[i%2].Publish(topic, message.NewMessage(uuid, nil)))
	}
	for range n {
		select {
		case <-done:
		case <-time.After(soon):
			require.Fail(t, "not all messages were handled")
		}
	}
	eventuallyPending(t, client, topic, 0)
	mu.Lock()
	defer mu.Unlock()
	slices.Sort(handled)
	require.Equal(t, want, handled)
	require.NotZero(t, shares["old"])
	require.NotZero(t, shares["ours"])
	sub.events.none(t, redischannels.EventLeaseLost, redischannels.EventAckIgnored, redischannels.EventDeadLettered)
}

// A handler of ours takes much longer than either side leaves an entry alone;
// the old side must not claim it.
func TestInterop_OldSideLeavesLeasedEntries(t *testing.T) {
	t.Parallel()
	server := redistest.Shared(t)
	client := server.Client(t)
	topic := redistest.Key(t)
	patient := func(c *redisstream.SubscriberConfig) { c.MaxIdleTime = 1500 * time.Millisecond }
	sub := newSubFrom(t, client, oldConfig(server, patient))
	ours := sub.subscribe(t, topic)
	publish(t, client, topic, "slow")
	msg := receive(t, ours)

	theirs := oldSubscribe(t, oldConfig(server, patient), topic)
	select {
	case got := <-theirs:
		require.Fail(t, "claimed under its handler", got.UUID)
	case <-time.After(4 * time.Second):
	}
	msg.Ack()
	eventuallyPending(t, client, topic, 0)
	sub.events.none(t, redischannels.EventLeaseLost)
}

// Each side takes over what the other leaves behind.
func TestInterop_ClaimFromEachOther(t *testing.T) {
	t.Parallel()
	t.Run("ours from a dead old consumer", func(t *testing.T) {
		t.Parallel()
		server := redistest.Shared(t)
		client := server.Client(t)
		topic := redistest.Key(t)
		old := newOldSub(t, oldConfig(server))
		theirs, err := old.Subscribe(t.Context(), topic)
		require.NoError(t, err)
		publish(t, client, topic, "a", "b", "c")
		receive(t, theirs)
		require.NoError(t, old.Close())
		require.NotEmpty(t, pendingOf(t, client, topic))

		got := receiveAcked(t, newSubFrom(t, client, oldConfig(server)).subscribe(t, topic), 3)
		slices.Sort(got)
		require.Equal(t, []string{"a", "b", "c"}, got)
		eventuallyPending(t, client, topic, 0)
	})
	t.Run("old from a closed consumer of ours", func(t *testing.T) {
		t.Parallel()
		server := redistest.Shared(t)
		client := server.Client(t)
		topic := redistest.Key(t)
		sub := newSubFrom(t, client, oldConfig(server))
		sub.subscribe(t, topic)
		publish(t, client, topic, "a", "b", "c")
		redistest.Eventually(t, soon, func() bool { return len(pendingOf(t, client, topic)) > 0 }, "nothing is held")
		sub.closeSoon(t)
		require.NotEmpty(t, pendingOf(t, client, topic), "released")

		got := receiveAcked(t, oldSubscribe(t, oldConfig(server), topic), 3)
		slices.Sort(got)
		require.Equal(t, []string{"a", "b", "c"}, got)
		eventuallyPending(t, client, topic, 0)
	})
	t.Run("old from the dead letters", func(t *testing.T) {
		t.Parallel()
		server := redistest.Shared(t)
		client := server.Client(t)
		topic := newDeadTopic(t, client)
		require.NoError(t, client.Del(t.Context(), returnStream(topic.name, "g")).Err()) // no consumer of ours was there
		_, id := topic.die(t, "g", "", "_watermill_message_uuid", "1", "payload", "dead")
		letters := newDeadLetters(t, client)
		results, err := letters.Requeue(t.Context(), topic.name, id)
		require.NoError(t, err)
		require.Equal(t, redischannels.RequeueNoReader, results[0].Outcome, "they would never read it")
		results, err = letters.Reappend(t.Context(), topic.name, id)
		require.NoError(t, err)
		require.Equal(t, redischannels.ReappendDone, results[0].Outcome)
		require.Equal(t, []string{"dead"}, receiveAcked(t, oldSubscribe(t, oldConfig(server), topic.name), 1))
	})
}

// Their Close closes the client, ours does not.
func TestInterop_ClientStaysOpen(t *testing.T) {
	t.Parallel()
	server := redistest.Shared(t)
	client := server.Client(t)
	sub := newSubFrom(t, client, oldConfig(server))
	sub.subscribe(t, redistest.Key(t))
	sub.closeSoon(t)
	require.NoError(t, newPubFrom(t, client).Close())
	require.NoError(t, client.Ping(t.Context()).Err())

	theirs := oldClient(server)
	old, err := redisstream.NewPublisher(redisstream.PublisherConfig{Client: theirs}, nil)
	require.NoError(t, err)
	require.NoError(t, old.Close())
	require.ErrorIs(t, theirs.Ping(t.Context()).Err(), redis.ErrClosed)
}

// An entry that ends every subscription of the group there, one after
// another, is a dead letter here.
func TestInterop_UndecodableEntry(t *testing.T) {
	t.Parallel()
	server := redistest.Shared(t)
	client := server.Client(t)
	topic := redistest.Key(t)
	old := newOldSub(t, oldConfig(server))
	theirs, err := old.Subscribe(t.Context(), topic)
	require.NoError(t, err)
	addRaw(t, client, topic, "foreign", "entry")
	publish(t, client, topic, "good")
	waitClosed(t, theirs)
	require.NoError(t, old.Close())

	sub := newSubFrom(t, client, oldConfig(server))
	require.Equal(t, []string{"good"}, receiveAcked(t, sub.subscribe(t, topic), 1))
	sub.events.wait(t, redischannels.EventDeadLettered)
	eventuallyPending(t, client, topic, 0)
	require.Len(t, listIDs(t, newDeadLetters(t, client), topic, redischannels.DeadLetterQuery{Group: "g"}), 1)
}

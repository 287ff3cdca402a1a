package tests

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
)

// groupChild consumes in the group "g" under the name "worker". It acknowledges every message
// but one with the payload "hold".
var groupChild = redistest.ChildMain("group consumer", func() {
	opts, err := redis.ParseURL(os.Getenv("CHILD_REDIS"))
	if err != nil {
		panic(err)
	}
	sub, err := redischannels.NewSubscriber(redischannels.SubscriberConfig{
		Client: redis.NewClient(opts), ConsumerGroup: "g", Consumer: "worker",
		NackBackoff: quickBackoff(), Tuning: quickTuning(),
	}, nil)
	if err != nil {
		panic(err)
	}
	messages, err := sub.Subscribe(context.Background(), os.Getenv("CHILD_TOPIC"))
	if err != nil {
		panic(err)
	}
	fmt.Println("ready")
	for msg := range messages {
		count, _ := redischannels.DeliveryCountFromContext(msg.Context())
		fmt.Printf("got %s %d\n", msg.Payload, count)
		if string(msg.Payload) != "hold" {
			msg.Ack()
		}
	}
})

// startGroupChild starts a consumer that can be killed.
func startGroupChild(t *testing.T, server *redistest.Server, topic string) *redistest.Child {
	t.Helper()
	opts := server.Options()
	child := redistest.StartChild(t, groupChild,
		fmt.Sprintf("CHILD_REDIS=redis://%s/%d", opts.Addr, opts.DB), "CHILD_TOPIC="+topic)
	child.WaitLine("ready", soon)
	return child
}

// Two readers under one configured name handle the same entries.
func TestSubscriber_ConsumerNamesAreUnique(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	client := server.Client(t)
	topic := redistest.Key(t)
	worker := func(c *redischannels.SubscriberConfig) { c.Consumer = "worker" }
	sub := newSub(t, client, worker)
	got := make(chan string, 1000)
	for range 2 { // two Subscribe calls of one subscriber
		messages := sub.subscribe(t, topic)
		go func() {
			for msg := range messages {
				got <- string(msg.Payload)
				msg.Ack()
			}
		}()
	}
	child := startGroupChild(t, server, topic)
	names := consumersOf(t, client, topic)
	require.Len(t, names, 3)
	require.Len(t, slices.Compact(slices.Sorted(slices.Values(names))), 3)
	for _, name := range names {
		require.True(t, strings.HasPrefix(name, "worker-"), name)
	}

	seen := map[string]int{}
	collect := func(n int) {
		t.Helper()
		for deadline := time.After(soon); len(seen) < n; {
			select {
			case payload := <-got:
				seen[payload]++
			case line := <-child.Lines():
				if payload, ok := strings.CutPrefix(line, "got "); ok {
					payload, _, _ = strings.Cut(payload, " ")
					seen[payload]++
				}
			case <-deadline:
				require.FailNow(t, "not all messages came", "%d of %d", len(seen), n)
			}
		}
	}
	var payloads []string
	for n := range 90 {
		payloads = append(payloads, fmt.Sprint(n))
	}
	publish(t, client, topic, payloads...)
	collect(90)
	eventuallyPending(t, client, topic, 0)

	// Only the child does not acknowledge "hold". Until it has it, the others do.
	taken := false
	for n := 0; !taken; n++ {
		publish(t, client, topic, "hold")
		select {
		case <-got:
		case line := <-child.Lines():
			require.Equal(t, "got hold 1", line)
			taken = true
		}
	}
	eventuallyPending(t, client, topic, 1)
	child.Kill()
	publish(t, client, topic, "after")
	seen = map[string]int{}
	collect(2)
	require.Equal(t, map[string]int{"hold": 1, "after": 1}, seen, "each once, by those that live")
	eventuallyPending(t, client, topic, 0)
}

// A handler cannot see the entry ID and the delivery count.
func TestSubscriber_HandlerSeesEntryIDAndDeliveryCount(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	topic := redistest.Key(t)
	ids := publish(t, client, topic, "m")
	messages := newSub(t, client).subscribe(t, topic)
	for count := 1; count <= 3; count++ {
		msg := receive(t, messages)
		require.Equal(t, ids[0], entryIDOf(t, msg))
		require.Equal(t, count, countOf(t, msg))
		group, ok := redischannels.ConsumerGroupFromContext(msg.Context())
		require.True(t, ok)
		require.Equal(t, "g", group)
		name, ok := redischannels.TopicFromContext(context.WithValue(msg.Context(), derivedKey{}, 1))
		require.True(t, ok)
		require.Equal(t, topic, name)
		require.Empty(t, msg.Metadata, "metadata would leak into what the handler publishes")
		if count < 3 {
			msg.Nack()
		} else {
			msg.Ack()
		}
	}

	outside := newSub(t, client, fanOut)
	messages, err := outside.SubscribeFrom(t.Context(), topic, redischannels.Oldest)
	require.NoError(t, err)
	msg := receive(t, messages)
	require.Equal(t, ids[0], entryIDOf(t, msg))
	_, ok := redischannels.ConsumerGroupFromContext(msg.Context())
	require.False(t, ok, "there is no group")
	msg.Ack()
	_, ok = redischannels.EntryIDFromContext(context.Background())
	require.False(t, ok)
}

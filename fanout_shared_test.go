package redischannels

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels/internal/redistest"
	"github.com/flaminco/redischannels/internal/stream"
)

// What no entry tells a blocked read finds out when it looks at its streams from time to time:
// one that went back, and one of which all was trimmed before it was read.
func TestSharedReaderLooksFromTimeToTime(t *testing.T) {
	t.Parallel()
	const soon = 10 * time.Second
	entry := func(topic, id, payload string) *redis.XAddArgs {
		return &redis.XAddArgs{Stream: topic, ID: id, Values: []any{"_watermill_message_uuid", "u", "payload", payload}}
	}
	for name, tt := range map[string]struct {
		change func(redis.Pipeliner, string)
		kind   EventKind
		next   string // ID of the next entry
	}{
		"went back": {func(tx redis.Pipeliner, topic string) {
			tx.Del(t.Context(), topic)
			tx.XAdd(t.Context(), entry(topic, "50-0", "lost sight of"))
			tx.XDel(t.Context(), topic, "50-0")
		}, EventRewound, "51-0"},
		"trimmed": {func(tx redis.Pipeliner, topic string) {
			tx.XAdd(t.Context(), entry(topic, "150-0", "never seen"))
			tx.XTrimMaxLen(t.Context(), topic, 0)
		}, EventGap, "151-0"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			client, topic := redistest.Shared(t).Client(t), redistest.Key(t)
			require.NoError(t, client.XAdd(t.Context(), entry(topic, "100-0", "read")).Err())
			events := make(chan Event, 10)
			sub, err := NewSubscriber(SubscriberConfig{Client: client, OnEvent: func(e Event) { events <- e }}, nil)
			require.NoError(t, err)
			t.Cleanup(func() { require.NoError(t, sub.Close()) })
			messages, err := sub.Subscribe(t.Context(), topic)
			require.NoError(t, err)
			var reader *sharedReader
			redistest.Eventually(t, soon, func() bool {
				sub.shared.mu.Lock()
				defer sub.shared.mu.Unlock()
				for reader = range sub.shared.readers {
					return reader.read != nil
				}
				return false
			}, "a shared read")
			_, err = client.TxPipelined(t.Context(), func(tx redis.Pipeliner) error {
				tt.change(tx, topic)
				return nil
			})
			require.NoError(t, err)

			reader.checkAll()
			reader.stream.Wake(t.Context())
			silent := tt.kind == EventGap && !redistest.IsRedis7(t, client) // which does not know of it
			select {
			case e := <-events:
				require.Equal(t, tt.kind, e.Kind)
				require.False(t, silent, "a gap that nobody can know of")
				var gap *GapError
				if errors.As(e.Err, &gap) {
					require.Equal(t, GapError{Topic: topic, After: "100-0"}, *gap)
				}
			case <-time.After(map[bool]time.Duration{true: soon / 20, false: soon}[silent]):
				require.True(t, silent, "no event")
			}
			require.NoError(t, client.XAdd(t.Context(), entry(topic, tt.next, "on")).Err())
			select {
			case msg := <-messages:
				require.Equal(t, "on", string(msg.Payload))
				msg.Ack()
			case <-time.After(soon):
				require.FailNow(t, "no message")
			}
		})
	}
}

// The looks were one script per stream, one after the other: with 10,000 topics hundreds of
// commands per second, and a reader that reads nothing meanwhile.
func TestSharedReaderLooksAtManyAtOnce(t *testing.T) {
	t.Parallel()
	const topics, soon = 40, 10 * time.Second
	server := redistest.Start(t)
	admin, client, topic := server.Admin(t), server.Client(t), redistest.Key(t)
	own := redistest.NewHook()
	client.AddHook(own)
	sub, err := NewSubscriber(SubscriberConfig{Client: client}, nil)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, sub.Close()) })
	var messages <-chan *message.Message
	for i := range topics {
		messages, err = sub.Subscribe(t.Context(), fmt.Sprintf("{%s}:%d", topic, i))
		require.NoError(t, err)
	}
	var reader *sharedReader
	redistest.Eventually(t, soon, func() bool {
		sub.shared.mu.Lock()
		defer sub.shared.mu.Unlock()
		joined := 0
		for reader = range sub.shared.readers {
			for topic := range reader.topics {
				joined += len(topic.members)
			}
		}
		return joined == topics
	}, "all share a reader")
	redistest.Eventually(t, soon, func() bool { return redistest.BlockedClients(t, admin) == 1 }, "a shared read")
	reads := own.Count("xread")
	for _, lost := range []bool{false, true} { // the script
		if lost {
			require.NoError(t, admin.ScriptFlush(t.Context()).Err())
		}
		before := own.Count("evalsha")
		reader.checkAll()
		reader.stream.Wake(t.Context())
		redistest.Eventually(t, soon, func() bool {
			return own.Count("evalsha") > before && redistest.BlockedClients(t, admin) == 1
		}, "it has looked and reads again")
		require.LessOrEqual(t, own.Count("evalsha")-before, 3)
	}
	require.NoError(t, client.XAdd(t.Context(), &redis.XAddArgs{
		Stream: fmt.Sprintf("{%s}:%d", topic, topics-1), Values: []any{"_watermill_message_uuid", "u", "payload", "on"},
	}).Err())
	select {
	case msg := <-messages:
		require.Equal(t, "on", string(msg.Payload))
		msg.Ack()
	case <-time.After(soon):
		require.FailNow(t, "no message")
	}
	require.Equal(t, reads, own.Count("xread"), "none has left the reader")
}

// A page that is full may have passed over entries that were trimmed, so the stream was looked
// at, by a round trip more, whenever a hundred messages were published at once.
func TestSharedReaderLooksAtNoUsualPage(t *testing.T) {
	t.Parallel()
	const batch, soon = 100, 10 * time.Second
	client, topic := redistest.Shared(t).Client(t), redistest.Key(t)
	own := redistest.NewHook()
	client.AddHook(own)
	publish := func(n int) {
		_, err := client.TxPipelined(t.Context(), func(tx redis.Pipeliner) error {
			for range n {
				tx.XAdd(t.Context(), &redis.XAddArgs{Stream: topic, Values: []any{"_watermill_message_uuid", "u", "payload", "on"}})
			}
			return nil
		})
		require.NoError(t, err)
	}
	publish(2 * batch)
	sub, err := NewSubscriber(SubscriberConfig{Client: client}, nil)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, sub.Close()) })
	messages, err := sub.Subscribe(t.Context(), topic)
	require.NoError(t, err)
	receive := func(n int) {
		for range n {
			select {
			case msg := <-messages:
				msg.Ack()
			case <-time.After(soon):
				require.FailNow(t, "no message")
			}
		}
	}
	redistest.Eventually(t, soon, func() bool {
		sub.shared.mu.Lock()
		defer sub.shared.mu.Unlock()
		for reader := range sub.shared.readers {
			return reader.read != nil
		}
		return false
	}, "a shared read")
	publish(1) // the size of entries is known from now on
	receive(1)
	looks := own.Count("evalsha")
	for range 3 {
		publish(batch)
		receive(batch)
	}
	require.Equal(t, looks, own.Count("evalsha"))
}

// Pages of large entries are no more than what is read into memory that is used again.
func TestSharedReaderPages(t *testing.T) {
	r := sharedReader{all: newSharedReaders(SubscriberConfig{Tuning: Tuning{PrefetchBytes: DefaultPrefetchBytes}})}
	require.Equal(t, firstCount, r.count(1))
	for size, count := range map[int]int{100: sharedCount, 4096: stream.Fitting(4096), 1 << 20: 1} {
		r.largest = size
		require.Equal(t, count, r.count(1))
	}
	r.largest = 4096
	require.Equal(t, DefaultPrefetchBytes/4096/sharedTopics, r.count(sharedTopics))
}

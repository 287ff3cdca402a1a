package redischannels

import (
	"errors"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels/internal/redistest"
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
			select {
			case e := <-events:
				require.Equal(t, tt.kind, e.Kind)
				var gap *GapError
				if errors.As(e.Err, &gap) {
					require.Equal(t, GapError{Topic: topic, Asked: "100-0"}, *gap)
				}
			case <-time.After(soon):
				require.FailNow(t, "no event")
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

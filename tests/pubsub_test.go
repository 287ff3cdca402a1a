package tests

import (
	"context"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
)

// A message arrives as it was published, in the order of publishing, with its topic in the
// context.
func TestPubSub_RoundTrip(t *testing.T) {
	t.Parallel()
	server := redistest.Shared(t)
	for _, protocol := range []int{2, 3} {
		client := server.Client(t, func(o *redis.Options) { o.Protocol = protocol })
		for name, sharded := range map[string]bool{"plain": false, "sharded": true} {
			t.Run(name, func(t *testing.T) {
				topic := redistest.Key(t)
				sub := newPubSub(t, client, func(c *redischannels.PubSubSubscriberConfig) { c.Sharded = sharded })
				pub := newPubSubPub(t, client, func(c *redischannels.PubSubPublisherConfig) { c.Sharded = sharded })
				ctx := context.WithValue(t.Context(), ctxKey{}, "value")
				messages, err := sub.Subscribe(ctx, topic)
				require.NoError(t, err)

				sent := message.NewMessage("uuid", []byte("payload"))
				sent.Metadata.Set("key", "value")
				receivers, err := pub.Send(t.Context(), topic, sent)
				require.NoError(t, err)
				require.Equal(t, []int{1}, receivers)
				got := receive(t, messages)
				require.True(t, sent.Equals(got))
				of, _ := redischannels.TopicFromContext(got.Context())
				require.Equal(t, topic, of)
				require.Equal(t, 1, countOf(t, got))
				require.Equal(t, "value", got.Context().Value(ctxKey{}))
				_, ok := redischannels.EntryIDFromContext(got.Context())
				require.False(t, ok)
				_, ok = redischannels.ConsumerGroupFromContext(got.Context())
				require.False(t, ok)
				require.NoError(t, got.Context().Err())
				got.Ack()
				waitDone(t, got.Context())

				say(t, pub, topic, counted(1, 600)...)
				require.Equal(t, counted(1, 600), receiveAcked(t, messages, 600))
				require.Less(t, sub.closeSoon(t), time.Second)
				waitClosed(t, messages)
				redistest.Eventually(t, soon, func() bool { return subscribers(t, client, topic) == 0 }, "unsubscribed")
				_, err = sub.Subscribe(t.Context(), topic)
				require.ErrorIs(t, err, redischannels.ErrClosed)
			})
		}
	}
}

type ctxKey struct{}

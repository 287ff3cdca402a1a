package unittests

import (
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
)

// claimed returns the delivery count of an entry that a killed process has read and not handled.
func claimed(t *testing.T, client redis.UniversalClient) int {
	ctx := t.Context()
	require.NoError(t, client.XGroupCreateMkStream(ctx, "orders", "billing", "0").Err())
	publisher, err := redischannels.NewPublisher(redischannels.PublisherConfig{Client: client}, nil)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, publisher.Close()) })
	require.NoError(t, publisher.Publish("orders", message.NewMessage(watermill.NewUUID(), nil)))
	require.NoError(t, client.XReadGroup(ctx, &redis.XReadGroupArgs{
		Group: "billing", Consumer: "killed", Streams: []string{"orders", ">"},
	}).Err())

	subscriber, err := redischannels.NewSubscriber(redischannels.SubscriberConfig{
		Client:        client,
		ConsumerGroup: "billing",
		Tuning:        redischannels.Tuning{MinIdle: 100 * time.Millisecond, ClaimInterval: 20 * time.Millisecond},
	}, nil)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, subscriber.Close()) })
	messages, err := subscriber.Subscribe(ctx, "orders")
	require.NoError(t, err)
	msg := <-messages
	msg.Ack()
	count, known := redischannels.DeliveryCountFromContext(msg.Context())
	require.True(t, known)
	return count
}

// A server counts deliveries, and miniredis counts claims too: docs/testing.md says so.
func TestUnit_ClaimsCountOnMiniredis(t *testing.T) {
	require.Equal(t, 1, claimed(t, startRedis(t)))
	client := redis.NewClient(&redis.Options{Addr: miniredis.RunT(t).Addr()})
	t.Cleanup(func() { require.NoError(t, client.Close()) })
	require.Greater(t, claimed(t, client), 1)
}

// miniredis has no shard channels.
func TestUnit_ShardChannelsOnMiniredis(t *testing.T) {
	client := redis.NewClient(&redis.Options{Addr: miniredis.RunT(t).Addr()})
	t.Cleanup(func() { require.NoError(t, client.Close()) })
	subscriber, err := redischannels.NewPubSubSubscriber(redischannels.PubSubSubscriberConfig{Client: client, Sharded: true}, nil)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, subscriber.Close()) })
	_, err = subscriber.Subscribe(t.Context(), "orders")
	require.ErrorIs(t, err, redischannels.ErrUnsupportedServer)
}

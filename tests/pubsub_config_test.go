package tests

import (
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
)

// One wrong field hides the others, so that a configuration is mended in as many steps as it
// has problems.
func TestPubSub_EveryInvalidFieldIsNamed(t *testing.T) {
	t.Parallel()
	client := redis.NewClient(&redis.Options{}) // is not dialed
	defer client.Close()

	_, err := redischannels.NewPubSubSubscriber(redischannels.PubSubSubscriberConfig{
		Sharded: true, Patterns: true, MaxInFlight: -1, Buffer: -1, BufferBytes: -1, Drop: 7, MaxDeliveries: -2,
		NackBackoff: redischannels.Backoff{Min: -1}, MaxPayload: -2, HealthInterval: time.Millisecond,
		SubscribeTimeout: -1, DrainTimeout: -1,
	}, nil)
	requireFields(t, err, "PubSubSubscriberConfig", "Client", "Patterns", "MaxInFlight", "Buffer", "BufferBytes", "Drop",
		"MaxDeliveries", "NackBackoff", "MaxPayload", "HealthInterval", "SubscribeTimeout", "DrainTimeout")

	_, err = redischannels.NewPubSubPublisher(redischannels.PubSubPublisherConfig{MaxPayload: -2, Timeout: -2}, nil)
	requireFields(t, err, "PubSubPublisherConfig", "Client", "MaxPayload", "Timeout")

	for name, change := range map[string]func(*redischannels.PubSubSubscriberConfig){
		"MaxInFlight":      func(c *redischannels.PubSubSubscriberConfig) { c.MaxInFlight = 1_000_000 },
		"Buffer":           func(c *redischannels.PubSubSubscriberConfig) { c.Buffer = 1_000_000_000 },
		"HealthInterval":   func(c *redischannels.PubSubSubscriberConfig) { c.HealthInterval = 5 }, // 5 nanoseconds
		"SubscribeTimeout": func(c *redischannels.PubSubSubscriberConfig) { c.SubscribeTimeout = 10 },
		"DrainTimeout":     func(c *redischannels.PubSubSubscriberConfig) { c.DrainTimeout = 1000 * 24 * time.Hour },
	} {
		config := redischannels.PubSubSubscriberConfig{Client: client}
		change(&config)
		_, err := redischannels.NewPubSubSubscriber(config, nil)
		requireFields(t, err, "PubSubSubscriberConfig", name)
	}

	_, err = redischannels.NewPubSubSubscriber(redischannels.PubSubSubscriberConfig{Client: client}, nil)
	require.NoError(t, err, "zero values are defaults")
	_, err = redischannels.NewPubSubSubscriber(redischannels.PubSubSubscriberConfig{
		Client: client, MaxDeliveries: redischannels.UnlimitedDeliveries, MaxPayload: redischannels.UnlimitedPayload,
		Drop: redischannels.DropNewest,
	}, nil)
	require.NoError(t, err)
	_, err = redischannels.NewPubSubPublisher(redischannels.PubSubPublisherConfig{
		Client: client, Timeout: redischannels.NoPublishTimeout, MaxPayload: redischannels.UnlimitedPayload,
	}, nil)
	require.NoError(t, err)
}

// Clients that cannot be used are refused by the constructor, topics by Subscribe.
func TestPubSub_UnusableArguments(t *testing.T) {
	t.Parallel()
	ring := redis.NewRing(&redis.RingOptions{Addrs: map[string]string{"a": "127.0.0.1:1"}})
	defer ring.Close()
	plain := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1"})
	defer plain.Close()
	for _, client := range []redis.UniversalClient{ring, otherClient{plain}} {
		_, err := redischannels.NewPubSubSubscriber(redischannels.PubSubSubscriberConfig{Client: client}, nil)
		require.ErrorIs(t, err, redischannels.ErrUnsupportedClient)
		_, err = redischannels.NewPubSubPublisher(redischannels.PubSubPublisherConfig{Client: client}, nil)
		require.ErrorIs(t, err, redischannels.ErrUnsupportedClient)
	}
	sub := newPubSub(t, plain)
	for _, topics := range [][]string{{}, {""}, {"a", ""}} {
		_, err := sub.SubscribeAll(t.Context(), topics...)
		require.ErrorIs(t, err, redischannels.ErrInvalidArgument)
	}
}

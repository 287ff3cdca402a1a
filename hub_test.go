package redischannels

import (
	"testing"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
)

// ownFormat is a wire format that reflect.DeepEqual finds different from itself.
type ownFormat struct {
	StreamFormat
	name func() string
}

// A hub keeps a publisher and a subscriber for each setting of its channels: those of a
// format that equals no other grow with each channel, those of one pointer do not.
func TestHubSharesByPointer(t *testing.T) {
	t.Parallel()
	client := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1"})
	t.Cleanup(func() { _ = client.Close() })
	hub, err := NewHub(client, HubConfig{})
	require.NoError(t, err)
	t.Cleanup(func() { _ = hub.Close() })
	format := &ownFormat{WatermillMarshaler{}, func() string { return "own" }}
	for range 10 {
		channel, err := NewStreamChannel[int](hub, "key", StreamChannelConfig{Marshaler: format})
		require.NoError(t, err)
		require.NoError(t, channel.Close())
	}
	require.Len(t, hub.publishers, 1)
	require.Len(t, hub.fanOuts, 1)
	require.Empty(t, hub.channels)
}

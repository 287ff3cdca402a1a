package redischannels

import (
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
)

// ownFormat is a wire format that reflect.DeepEqual finds different from itself.
type ownFormat struct {
	StreamFormat
	name func() string
}

// secretFormat looks the same whatever is in it.
type secretFormat struct {
	StreamFormat
	n int
}

func (secretFormat) GoString() string { return "secret" }

func newOwnFormat() *ownFormat {
	return &ownFormat{WatermillMarshaler{}, func() string { return "own" }}
}

// newTestHub makes a hub on a server that is not there.
func newTestHub(t *testing.T, config HubConfig) *Hub {
	t.Helper()
	client := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1"})
	t.Cleanup(func() { _ = client.Close() })
	hub, err := NewHub(client, config)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, hub.Close()) })
	return hub
}

func newTestChannel(t *testing.T, hub *Hub, config StreamChannelConfig) *Channel[int] {
	t.Helper()
	channel, err := NewStreamChannel[int](hub, "key", config)
	require.NoError(t, err)
	return channel
}

// Channels with equal settings share a publisher and a subscriber; what equals nothing has
// its own.
func TestHub_SharesByEqualSettings(t *testing.T) {
	t.Parallel()
	hub, format := newTestHub(t, HubConfig{}), newOwnFormat()
	retention := func() StreamChannelConfig {
		return StreamChannelConfig{Publisher: PublisherConfig{TopicRetention: map[string]Retention{"a": {MaxLen: 5}}}}
	}
	key := StreamChannelConfig{Subscriber: SubscriberConfig{OrderingKey: func(*message.Message) string { return "" }}}
	n := 0
	for _, test := range []struct {
		name                string
		config              func() StreamChannelConfig
		publishers, fanOuts int
	}{
		{"the zero value", func() StreamChannelConfig { return StreamChannelConfig{} }, 1, 1},
		{"one pointer", func() StreamChannelConfig { return StreamChannelConfig{Format: format} }, 1, 1},
		{"equal maps", retention, 1, 1},
		{"a function", func() StreamChannelConfig { return key }, 1, 10},
		{"formats that look the same", func() StreamChannelConfig {
			n++
			return StreamChannelConfig{Format: secretFormat{WatermillMarshaler{}, n}}
		}, 10, 10},
		{"formats with functions", func() StreamChannelConfig { return StreamChannelConfig{Format: *newOwnFormat()} }, 10, 10},
	} {
		publishers, fanOuts := map[*Publisher]bool{}, map[*Subscriber]bool{}
		for range 10 {
			own := test.config()
			channel := newTestChannel(t, hub, own)
			config := hub.streamConfig(&validation{}, own)
			publisher, release, err := hub.publisher(config.Publisher)
			require.NoError(t, err)
			publishers[publisher] = true
			t.Cleanup(func() { require.NoError(t, release()) })
			together, release, err := hub.fanOut(config.Subscriber)
			require.NoError(t, err)
			fanOuts[together] = true
			t.Cleanup(func() { require.NoError(t, release()) })
			t.Cleanup(func() { require.NoError(t, channel.Close()) })
		}
		require.Len(t, publishers, test.publishers, test.name)
		require.Len(t, fanOuts, test.fanOuts, test.name)
	}
}

// A program that makes a channel per request, each with settings of its own, does not grow.
func TestHub_ClosedChannelsLeaveNothing(t *testing.T) {
	t.Parallel()
	hub := newTestHub(t, HubConfig{})
	left := func() int { return len(hub.publishers) + len(hub.fanOuts) + len(hub.pubsubs) + len(hub.channels) }
	for i := range 100 {
		pubsub, err := NewPubSubChannel[int](hub, "key", PubSubChannelConfig{Subscriber: PubSubSubscriberConfig{Buffer: i + 1}})
		require.NoError(t, err)
		channels := []interface{ Close() error }{
			newTestChannel(t, hub, StreamChannelConfig{Format: newOwnFormat()}),
			newTestChannel(t, hub, StreamChannelConfig{Publisher: PublisherConfig{MaxPayload: i + 1}, Subscriber: SubscriberConfig{MaxPayload: i + 1, ConsumerGroup: "g"}}),
			pubsub,
		}
		require.Equal(t, 8, left())
		for _, channel := range channels {
			require.NoError(t, channel.Close())
			require.NoError(t, channel.Close())
		}
		require.Zero(t, left())
	}

	one, other := newTestChannel(t, hub, StreamChannelConfig{}), newTestChannel(t, hub, StreamChannelConfig{})
	publisher, release, err := hub.publisher(hub.streamConfig(&validation{}, StreamChannelConfig{}).Publisher)
	require.NoError(t, err)
	require.NoError(t, one.Close())
	require.NoError(t, one.Close())
	require.NoError(t, release())
	require.NoError(t, publisher.enter("key"), "the other channel uses it")
	publisher.life.Leave()
	require.NoError(t, other.Close())
	require.ErrorIs(t, publisher.enter("key"), ErrClosed)
	require.Zero(t, left())
}

// Finding what a channel shares takes no more work when there are many others: comparing
// configurations allocates.
func TestHub_ManySettings(t *testing.T) {
	hub := newTestHub(t, HubConfig{})
	one := func() { require.NoError(t, newTestChannel(t, hub, StreamChannelConfig{}).Close()) }
	alone := testing.AllocsPerRun(20, one)
	for i := range 1000 {
		newTestChannel(t, hub, StreamChannelConfig{Publisher: PublisherConfig{MaxPayload: i + 1}, Subscriber: SubscriberConfig{MaxPayload: i + 1}})
	}
	require.Less(t, testing.AllocsPerRun(20, one), 2*alone)
}

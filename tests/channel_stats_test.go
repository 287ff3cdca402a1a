package tests

import (
	"context"
	"testing"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/pubsub/gochannel"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
)

// A channel says what its reader holds and has done, and how far its group is behind.
func TestChannel_Stats(t *testing.T) {
	t.Parallel()
	hub, key := newHubOf(t), redistest.Key(t)
	numbers := streamOf[int](t, hub, key)
	require.Empty(t, numbers.Stats(), "nothing is subscribed before the first use")
	_, err := numbers.GroupStats(t.Context())
	require.ErrorContains(t, err, "no such key")

	write(t, numbers, consecutive(0, 10)...)
	held := []redischannels.Delivery[int]{receiveValue(t, numbers), receiveValue(t, numbers)}
	stats := numbers.Stats()
	require.Len(t, stats, 1)
	require.Equal(t, key, stats[0].Topic)
	require.Equal(t, "g", stats[0].Group)
	require.NotEmpty(t, stats[0].Consumer)
	require.Equal(t, redischannels.StateLive, stats[0].State)
	require.Equal(t, 2, stats[0].InFlight)
	require.EqualValues(t, 2, stats[0].Delivered)

	write(t, streamOf[int](t, hub, key, noGroup), consecutive(10, 5)...)
	group, err := numbers.GroupStats(t.Context())
	require.NoError(t, err)
	require.EqualValues(t, 15, group.Lag+group.Pending)
	require.EqualValues(t, 1, group.Consumers)
	for _, d := range held {
		require.NoError(t, d.Nack())
	}
	again := drainAcked(t, numbers, 15)
	require.Len(t, again, 15)
	redistest.Eventually(t, soon, func() bool {
		s := numbers.Stats()[0]
		return s.InFlight+s.Buffered+s.BackingOff+s.Acking == 0
	}, "something is held")
	require.EqualValues(t, 17, numbers.Stats()[0].Delivered)
	require.EqualValues(t, 2, numbers.Stats()[0].Redelivered)

	require.NoError(t, numbers.Close())
	require.Empty(t, numbers.Stats())
	_, err = numbers.GroupStats(t.Context())
	require.ErrorIs(t, err, redischannels.ErrClosed)
}

// A hub describes each subscription of its channels once, also where channels share a
// subscriber, and each of those its own.
func TestHub_Stats(t *testing.T) {
	t.Parallel()
	hub, key := newHubOf(t), redistest.Key(t)
	require.Empty(t, hub.Stats())
	group := streamOf[int](t, hub, key+"a")
	one, two := streamOf[int](t, hub, key+"b", noGroup), streamOf[int](t, hub, key+"b", noGroup)
	live, err := redischannels.NewPubSubChannel[int](hub.Hub, key+"c", redischannels.PubSubChannelConfig{})
	require.NoError(t, err)
	for _, c := range []*redischannels.Channel[int]{group, one, two, live} {
		_, _, err := c.Reader().TryReceive()
		require.NoError(t, err)
	}
	write(t, one, 1, 2)
	ofOne := receiveValue(t, one)
	require.NoError(t, receiveValue(t, two).Ack())
	ofTwo := receiveValue(t, two)
	require.Len(t, one.Stats(), 1)
	require.EqualValues(t, 1, one.Stats()[0].Delivered)
	require.Len(t, two.Stats(), 1)
	require.EqualValues(t, 2, two.Stats()[0].Delivered)
	var topics []string
	for _, s := range hub.Stats() {
		topics = append(topics, s.Topic)
	}
	require.Equal(t, []string{key + "a", key + "b", key + "b", key + "c"}, topics)
	for _, d := range []redischannels.Delivery[int]{ofOne, ofTwo} {
		require.NoError(t, d.Ack()) // else closing waits for it
	}
	require.NoError(t, one.Close())
	require.Len(t, hub.Stats(), 3)
	_, err = two.GroupStats(t.Context())
	require.ErrorIs(t, err, redischannels.ErrInvalidConfig, "it has no group")
	require.NoError(t, hub.Close())
	require.Empty(t, hub.Stats())
}

// The subscription of a channel on Pub/Sub, and those of its loops.
func TestChannel_PubSubStats(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	client := server.Client(t)
	hub, key := newHub(t, client), redistest.Key(t)
	numbers, err := redischannels.NewPubSubChannel[int](hub.Hub, key, redischannels.PubSubChannelConfig{
		Subscriber: redischannels.PubSubSubscriberConfig{Buffer: 3, MaxDeliveries: 2, NackBackoff: quickBackoff()},
	})
	require.NoError(t, err)
	require.Empty(t, numbers.Stats())
	_, _, err = numbers.Reader().TryReceive()
	require.NoError(t, err)
	write(t, numbers, 1, 2)
	first := receiveValue(t, numbers)
	redistest.Eventually(t, soon, func() bool { return numbers.Stats()[0].Buffered == 1 }, "the second does not wait")
	s := numbers.Stats()[0]
	require.Equal(t, key, s.Topic)
	require.Equal(t, redischannels.StateLive, s.State)
	require.Equal(t, 1, s.InFlight)
	require.Positive(t, s.Bytes)
	require.NoError(t, first.Nack())
	again := receiveValue(t, numbers)
	require.Equal(t, 1, again.Value)
	s = numbers.Stats()[0]
	require.EqualValues(t, 2, s.Delivered)
	require.EqualValues(t, 1, s.Redelivered)

	write(t, numbers, 3, 4, 5, 6) // with 2 that is two too many
	redistest.Eventually(t, soon, func() bool { return numbers.Stats()[0].Dropped == 2 }, "none is dropped")
	require.NoError(t, numbers.Reader().Err())
	require.NoError(t, client.Do(t.Context(), "CLIENT", "KILL", "TYPE", "pubsub").Err())
	hub.events.wait(t, redischannels.EventReconnected)
	redistest.Eventually(t, soon, func() bool {
		s := numbers.Stats()[0]
		return s.Reconnects == 1 && s.State == redischannels.StateLive
	}, "it is not connected again")

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for range numbers.Reader().Follow(ctx, redischannels.Latest) {
		}
	}()
	redistest.Eventually(t, soon, func() bool { return len(numbers.Stats()) == 2 }, "the loop is not seen")
	cancel()
	<-ended
	require.Len(t, numbers.Stats(), 1)
	_, err = numbers.GroupStats(t.Context())
	require.ErrorIs(t, err, redischannels.ErrNotSupported)
	require.NoError(t, again.Ack()) // else closing waits for it
}

// Over a subscriber of another library there is nothing to describe, over one of this there is.
func TestChannel_StatsOfOtherTransports(t *testing.T) {
	t.Parallel()
	other := gochannel.NewGoChannel(gochannel.Config{}, watermill.NopLogger{})
	t.Cleanup(func() { _ = other.Close() })
	client, key := redistest.Shared(t).Client(t), redistest.Key(t)
	ours := newSub(t, client)
	for _, test := range []struct {
		subscriber message.Subscriber
		n          int
	}{{other, 0}, {ours.Subscriber, 1}} {
		c, err := redischannels.NewChannel(nil, test.subscriber, key, redischannels.ChannelConfig[int]{})
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, c.Close()) })
		_, _, err = c.Reader().TryReceive()
		require.NoError(t, err)
		require.Len(t, c.Stats(), test.n)
		_, err = c.GroupStats(t.Context())
		require.ErrorIs(t, err, redischannels.ErrNotSupported)
	}
}

package tests

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
)

// Values of one key are handled one after the other, in their order, also after a Nack.
func TestChannel_OrderingKey(t *testing.T) {
	t.Parallel()
	hub, key := newHubOf(t), redistest.Key(t)
	values := streamOf[string](t, hub, key, redischannels.StreamChannelConfig{
		Codec: redischannels.String,
		Subscriber: redischannels.SubscriberConfig{
			MaxDeliveries: redischannels.UnlimitedDeliveries,
			OrderingKey:   func(msg *message.Message) string { return string(msg.Payload[:1]) },
		},
	})
	const perKey = 20
	var all []string
	for n := range perKey {
		for _, k := range []string{"a", "b", "c", "d"} {
			all = append(all, k+strings.Repeat("i", n))
		}
	}
	write(t, values, all...)

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var mu sync.Mutex
	deliveries, done, next, busy := 0, 0, map[byte]int{}, map[byte]bool{}
	ended := handling(ctx, values, func(_ context.Context, v string) error {
		mu.Lock()
		assert.False(t, busy[v[0]], "two values of key %c are in flight", v[0])
		assert.Equal(t, next[v[0]], len(v)-1, "key %c is out of order", v[0])
		busy[v[0]] = true
		deliveries++
		nack := deliveries%5 == 0
		mu.Unlock()
		time.Sleep(time.Millisecond)
		mu.Lock()
		defer mu.Unlock()
		busy[v[0]] = false
		if nack {
			return assert.AnError
		}
		next[v[0]]++
		if done++; done == len(all) {
			cancel()
		}
		return nil
	}, redischannels.HandleConfig{Concurrency: 8})
	select {
	case err := <-ended:
		require.NoError(t, err)
	case <-time.After(soon):
		require.FailNow(t, "not all are handled")
	}
	require.Equal(t, map[byte]int{'a': perKey, 'b': perKey, 'c': perKey, 'd': perKey}, next)
}

// A handler that exceeds HandlerTimeout loses its context, and the value comes again.
func TestChannel_HandlerTimeout(t *testing.T) {
	t.Parallel()
	hub, key := newHubOf(t), redistest.Key(t)
	numbers := streamOf[int](t, hub, key, redischannels.StreamChannelConfig{
		Subscriber: redischannels.SubscriberConfig{HandlerTimeout: 50 * time.Millisecond},
	})
	ids := write(t, numbers, 1)
	late := receiveValue(t, numbers)
	select {
	case <-late.Context().Done():
		require.ErrorIs(t, late.Context().Err(), context.DeadlineExceeded)
	case <-time.After(soon):
		require.FailNow(t, "the context does not end")
	}
	require.Equal(t, ids, hub.events.wait(t, redischannels.EventHandlerTimeout).EntryIDs)
	again := receiveValue(t, numbers)
	require.Equal(t, 2, again.DeliveryCount)
	require.NoError(t, again.Ack())
	eventuallyPending(t, hub.client, key, 0)
}

// Channels with equal settings share a publisher and a subscriber: closing one of them
// leaves the others as they are, and closing the last leaves no connection.
func TestHub_SharedUntilTheLastChannel(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	hub, key := newHub(t, server.Client(t)), redistest.Key(t)
	admin := server.Client(t)
	for name, open := range map[string]func() *redischannels.Channel[int]{
		"stream": func() *redischannels.Channel[int] { return streamOf[int](t, hub, key, noGroup) },
		"Pub/Sub": func() *redischannels.Channel[int] {
			c, err := redischannels.NewPubSubChannel[int](hub.Hub, key+"live", redischannels.PubSubChannelConfig{})
			require.NoError(t, err)
			return c
		},
	} {
		one, two := open(), open()
		for _, c := range []*redischannels.Channel[int]{one, two} {
			_, _, err := c.Reader().TryReceive()
			require.NoError(t, err)
		}
		require.NoError(t, one.Close())
		_, err := one.Writer().Write(t.Context(), 1)
		require.ErrorIs(t, err, redischannels.ErrClosed)
		write(t, two, 7)
		d := receiveValue(t, two)
		require.Equal(t, 7, d.Value, name)
		require.NoError(t, d.Ack()) // else Close waits for it
		require.NoError(t, two.Close())
		write(t, open(), 8) // with adapters of its own
		var left []string
		redistest.Eventually(t, soon, func() bool {
			left = left[:0]
			for line := range strings.Lines(admin.ClientList(t.Context()).Val()) {
				// One that is not blocked is of the pool, and was used for a check at the stream.
				if strings.Contains(line, "flags=b ") && strings.Contains(line, "cmd=xread") || strings.Contains(line, "sub=1") {
					left = append(left, line)
				}
			}
			return len(left) == 0
		}, "a connection for reading stays: %v", &left)
	}
}

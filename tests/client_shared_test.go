package tests

import (
	"fmt"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
)

// Watermill's suite gives each test adapters of its own, so it does not see that closing one
// of them closes the client of all.
func TestClient_SharedByManyAdapters(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	topic := redistest.Key(t)
	var pubs []*redischannels.Publisher
	for range 3 {
		pub, err := redischannels.NewPublisher(redischannels.PublisherConfig{Client: client}, nil)
		require.NoError(t, err)
		t.Cleanup(func() { _ = pub.Close() })
		pubs = append(pubs, pub)
	}
	group, other, all := newSub(t, client), newSub(t, client), newSub(t, client, fanOut)
	messages := group.subscribe(t, topic)
	closedSoon := other.subscribe(t, topic)
	every := all.subscribe(t, topic)

	require.NoError(t, pubs[0].Close())
	other.closeSoon(t)
	waitClosed(t, closedSoon)
	require.NoError(t, client.Ping(t.Context()).Err())
	require.NoError(t, pubs[1].Publish(topic, message.NewMessage("u", []byte("m"))))
	require.Equal(t, []string{"m"}, receiveAcked(t, messages, 1))
	require.Equal(t, []string{"m"}, receiveAcked(t, every, 1))

	require.ErrorIs(t, pubs[0].Publish(topic, message.NewMessage("u", nil)), redischannels.ErrClosed)
	_, err := other.Subscribe(t.Context(), topic)
	require.ErrorIs(t, err, redischannels.ErrClosed)
	require.ErrorIs(t, other.SubscribeInitialize(topic), redischannels.ErrClosed)

	for _, pub := range pubs {
		require.NoError(t, pub.Close())
	}
	group.closeSoon(t)
	all.closeSoon(t)
	require.NoError(t, client.Ping(t.Context()).Err(), "the client is the caller's")
}

// Each quiet subscription holds a connection of the pool, until publishing and acking
// time out. 20 of them and a publisher share a pool of 2, at one connection for each in a group
// and one for all others.
func TestClient_QuietSubscriptionsLeaveThePoolAlone(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	admin := server.Admin(t)
	require.NoError(t, admin.Ping(t.Context()).Err())
	before := redistest.Connections(t, admin)
	client := server.Client(t, func(o *redis.Options) {
		o.PoolSize = 2
		o.PipelinePoolSize = -1 // pipelines use the same two
		o.PoolTimeout = 2 * time.Second
	})
	topic := redistest.Key(t)
	sub, all := newSub(t, client), newSub(t, client, fanOut)
	var channels []<-chan *message.Message
	for n := range 10 {
		channels = append(channels, sub.subscribe(t, fmt.Sprint(topic, n)), all.subscribe(t, fmt.Sprint(topic, n)))
	}
	redistest.Eventually(t, soon, func() bool { return redistest.BlockedClients(t, admin) == 10+1 }, "all wait for messages")
	require.LessOrEqual(t, redistest.Connections(t, admin), before+2+10+1)
	pub, err := redischannels.NewPublisher(redischannels.PublisherConfig{Client: client}, nil)
	require.NoError(t, err)
	defer pub.Close()
	for round := range 5 {
		for n := range 10 {
			start := time.Now()
			require.NoError(t, pub.Publish(fmt.Sprint(topic, n), message.NewMessage("u", []byte(fmt.Sprint(round)))))
			require.Less(t, time.Since(start), time.Second)
		}
		for _, messages := range channels {
			require.Equal(t, []string{fmt.Sprint(round)}, receiveAcked(t, messages, 1))
		}
	}
	require.LessOrEqual(t, redistest.Connections(t, admin), before+2+10+1)
	for n := range 10 {
		eventuallyPending(t, client, fmt.Sprint(topic, n), 0)
	}
	for _, s := range []*testSub{sub, all} {
		s.events.mu.Lock()
		require.Empty(t, s.events.seen)
		s.events.mu.Unlock()
		s.closeSoon(t)
	}
	redistest.Eventually(t, soon, func() bool { return redistest.Connections(t, admin) <= before+2 }, "the connections are closed")
}

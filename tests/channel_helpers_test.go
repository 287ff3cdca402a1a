package tests

import (
	"context"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
)

type order struct {
	ID     int
	Amount int
}

// testHub is a hub of one test with the events of its channels.
type testHub struct {
	*redischannels.Hub
	client redis.UniversalClient
	events *events
}

// newHub makes a hub whose channels read in the group "g" with quick settings. It is
// closed at the end of the test.
func newHub(t *testing.T, client redis.UniversalClient, change ...func(*redischannels.HubConfig)) *testHub {
	t.Helper()
	seen := &events{t: t}
	config := redischannels.HubConfig{
		OnEvent: seen.add,
		Stream: redischannels.StreamChannelConfig{
			Subscriber: redischannels.SubscriberConfig{ConsumerGroup: "g", NackBackoff: quickBackoff(), Tuning: quickTuning()},
		},
	}
	for _, f := range change {
		f(&config)
	}
	hub, err := redischannels.NewHub(client, config)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, hub.Close()) })
	return &testHub{Hub: hub, client: client, events: seen}
}

// newHubOf is newHub on the shared server.
func newHubOf(t *testing.T, change ...func(*redischannels.HubConfig)) *testHub {
	t.Helper()
	return newHub(t, redistest.Shared(t).Client(t), change...)
}

// streamOf makes a channel of the hub.
func streamOf[T any](t *testing.T, hub *testHub, key string, config ...redischannels.StreamChannelConfig) *redischannels.Channel[T] {
	t.Helper()
	var c redischannels.StreamChannelConfig
	if len(config) > 0 {
		c = config[0]
	}
	channel, err := redischannels.NewStreamChannel[T](hub.Hub, key, c)
	require.NoError(t, err)
	return channel
}

// noGroup is the configuration of a channel without a group.
var noGroup = redischannels.StreamChannelConfig{Subscriber: redischannels.SubscriberConfig{ConsumerGroup: redischannels.NoConsumerGroup}}

// soonCtx is a context for what is expected to happen at once.
func soonCtx(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	t.Cleanup(cancel)
	return ctx
}

// write writes values and returns their IDs.
func write[T any](t *testing.T, channel *redischannels.Channel[T], values ...T) []string {
	t.Helper()
	ids, err := channel.Writer().WriteAll(soonCtx(t), values...)
	require.NoError(t, err)
	return ids
}

// receiveValue returns the next delivery.
func receiveValue[T any](t *testing.T, channel *redischannels.Channel[T]) redischannels.Delivery[T] {
	t.Helper()
	d, err := channel.Reader().Receive(soonCtx(t))
	require.NoError(t, err)
	return d
}

// drainAcked returns the next n values, each acknowledged.
func drainAcked[T any](t *testing.T, channel *redischannels.Channel[T], n int) []T {
	t.Helper()
	var values []T
	for range n {
		d := receiveValue(t, channel)
		values = append(values, d.Value)
		require.NoError(t, d.Ack())
	}
	return values
}

// waitEnd waits until everything of a reader has ended. One that is not closed would hang the
// whole run, which then does not say what is wrong.
func waitEnd[T any](t *testing.T, r *redischannels.Reader[T]) {
	t.Helper()
	select {
	case <-r.Done():
	case <-time.After(soon):
		require.FailNow(t, "the reader is not closed")
	}
}

func consecutive(from, n int) []int {
	values := make([]int, n)
	for i := range values {
		values[i] = from + i
	}
	return values
}

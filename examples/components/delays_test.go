package components

import (
	"context"
	"errors"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
)

// testRetries handles messages that fail a number of times with PoisonQueue, DelayOnError and
// Requeuer, and checks when each attempt was made. All messages have the empty UUID.
func testRetries(t *testing.T, first time.Duration, failures, messages int) {
	server := redistest.Start(t)
	client := server.Client(t)
	orders, failed := redistest.Key(t, "orders"), redistest.Key(t, "failed")
	pub, err := redischannels.NewPublisher(redischannels.PublisherConfig{Client: server.Client(t)}, nil)
	require.NoError(t, err)
	sub, err := redischannels.NewSubscriber(redischannels.SubscriberConfig{Client: client, ConsumerGroup: "billing", MaxInFlight: 32}, nil)
	require.NoError(t, err)
	defer func() { require.NoError(t, sub.Close()) }()

	var mu sync.Mutex
	attempts := map[string][]time.Time{}
	handler := func(msg *message.Message) error {
		mu.Lock()
		defer mu.Unlock()
		payload := string(msg.Payload)
		attempts[payload] = append(attempts[payload], time.Now())
		if len(attempts[payload]) <= failures {
			return errors.New("the bank is closed")
		}
		return nil
	}
	router, err := retrying(pub, sub, orders, failed, first, handler)
	require.NoError(t, err)
	done := make(chan error, 1)
	go func() { done <- router.Run(context.Background()) }()
	defer func() {
		require.NoError(t, router.Close())
		require.NoError(t, <-done)
		require.NoError(t, pub.Close())
	}()
	<-router.Running()
	for n := range messages {
		require.NoError(t, pub.Publish(orders, message.NewMessage("", []byte{byte('a' + n/26), byte('a' + n%26)})))
	}
	redistest.Eventually(t, first<<failures+2*soon, func() bool {
		mu.Lock()
		defer mu.Unlock()
		for _, at := range attempts {
			if len(at) <= failures {
				return false
			}
		}
		return len(attempts) == messages
	}, "all are handled")
	require.Zero(t, client.Exists(t.Context(), "{"+failed+"}:delayed", "{"+failed+"}:due").Val())
	for payload, at := range attempts {
		require.Len(t, at, failures+1, payload)
		for i := 1; i < len(at); i++ {
			want := first << (i - 1)
			require.GreaterOrEqual(t, at[i].Sub(at[i-1]), want, "attempt %d", i+1)
			require.Less(t, at[i].Sub(at[i-1]), 2*want, "attempt %d was delayed twice", i+1)
		}
	}
	require.EqualValues(t, messages*failures, client.XLen(t.Context(), failed).Val())
	require.EqualValues(t, messages*(failures+1), client.XLen(t.Context(), orders).Val())
}

// Requeuer publishes a message with the metadata of its last delay, which must not delay it again.
func TestDelayed_PoisonQueueAndRequeuer(t *testing.T) {
	t.Parallel()
	testRetries(t, time.Second, 2, 30)
}

func TestSoakDelayed_PoisonQueueAndRequeuer(t *testing.T) {
	if os.Getenv("SOAK") == "" {
		t.Skip("a part of make soak")
	}
	testRetries(t, 2*time.Second, 3, 500)
}

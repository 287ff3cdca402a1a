package tests

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	wmtests "github.com/ThreeDotsLabs/watermill/pubsub/tests"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
)

// earlySubscriber subscribes when Watermill's suite announces a topic. The suite publishes
// before it subscribes; here it gets the subscription that was there before.
type earlySubscriber struct {
	*redischannels.PubSubSubscriber
	mu    sync.Mutex
	early map[string]<-chan *message.Message
}

func (s *earlySubscriber) SubscribeInitialize(topic string) error {
	messages, err := s.PubSubSubscriber.Subscribe(context.Background(), topic)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.early[topic] = messages
	return err
}

func (s *earlySubscriber) Subscribe(ctx context.Context, topic string) (<-chan *message.Message, error) {
	s.mu.Lock()
	messages, ok := s.early[topic]
	delete(s.early, topic)
	s.mu.Unlock()
	if ok {
		return messages, nil
	}
	return s.PubSubSubscriber.Subscribe(ctx, topic)
}

// Watermill's suite, as far as it can be held against a transport that stores nothing: its
// tests that look for old messages in a new subscription have equivalents below.
func TestPubSub_Conformance(t *testing.T) {
	for name, sharded := range map[string]bool{"plain": false, "sharded": true} {
		for _, maxInFlight := range []int{1, 32} {
			t.Run(fmt.Sprintf("%s, MaxInFlight %d", name, maxInFlight), func(t *testing.T) {
				pubSubConformance(t, sharded, maxInFlight)
			})
		}
	}
}

func pubSubConformance(t *testing.T, sharded bool, maxInFlight int) {
	client := redistest.Start(t).Client(t)
	construct := func(t *testing.T) (message.Publisher, message.Subscriber) {
		pub := newPubSubPub(t, client, func(c *redischannels.PubSubPublisherConfig) { c.Sharded = sharded })
		sub := newPubSub(t, client, buffer(100_000, redischannels.DropOldest), func(c *redischannels.PubSubSubscriberConfig) {
			c.Sharded = sharded
			c.MaxInFlight = maxInFlight
			c.MaxDeliveries = redischannels.UnlimitedDeliveries
			c.DrainTimeout = 100 * time.Millisecond // the suite closes with messages in flight
		})
		return pub, &earlySubscriber{PubSubSubscriber: sub.PubSubSubscriber, early: make(map[string]<-chan *message.Message)}
	}
	features := wmtests.Features{
		GuaranteedOrder:                     maxInFlight == 1,
		GuaranteedOrderWithSingleSubscriber: maxInFlight == 1,
		ExactlyOnceDelivery:                 true, // within the process, as long as nothing fails
		RequireSingleInstance:               true, // every instance gets every message
	}
	for name, test := range map[string]func(*testing.T, wmtests.TestContext, wmtests.PubSubConstructor){
		"PublishSubscribe":                  wmtests.TestPublishSubscribe,
		"ConcurrentSubscribe":               wmtests.TestConcurrentSubscribe,
		"ConcurrentSubscribeMultipleTopics": wmtests.TestConcurrentSubscribeMultipleTopics,
		"PublishSubscribeInOrder":           wmtests.TestPublishSubscribeInOrder,
		"ResendOnError":                     wmtests.TestResendOnError,
		"NoAck":                             wmtests.TestNoAck,
		"PublisherClose":                    wmtests.TestPublisherClose,
		"Topic":                             wmtests.TestTopic,
		"MessageCtx":                        wmtests.TestMessageCtx,
	} {
		if maxInFlight > 1 && (name == "PublishSubscribeInOrder" || name == "NoAck") {
			continue // they are about order
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, wmtests.TestContext{TestID: wmtests.NewTestID(), Features: features}, construct)
		})
	}

	// TestContinueAfterErrors, for one subscription.
	t.Run("ContinueAfterErrors", func(t *testing.T) {
		t.Parallel()
		pub, sub := construct(t)
		topic := redistest.Key(t)
		messages, err := sub.Subscribe(t.Context(), topic)
		require.NoError(t, err)
		say(t, pub, topic, counted(1, 50)...)
		for range 300 {
			receive(t, messages).Nack()
		}
		require.ElementsMatch(t, counted(1, 50), receiveAcked(t, messages, 50))
	})

	// TestSubscribeCtx, with both subscriptions there before.
	t.Run("SubscribeCtx", func(t *testing.T) {
		t.Parallel()
		pub, sub := construct(t)
		topic := redistest.Key(t)
		ctx, cancel := context.WithCancel(context.WithValue(t.Context(), ctxKey{}, "canceled"))
		canceled, err := sub.Subscribe(ctx, topic)
		require.NoError(t, err)
		messages, err := sub.Subscribe(context.WithValue(t.Context(), ctxKey{}, "lives"), topic)
		require.NoError(t, err)
		say(t, pub, topic, counted(1, 50)...)
		cancel()
		waitClosed(t, canceled)
		for range 50 {
			msg := receive(t, messages)
			require.Equal(t, "lives", msg.Context().Value(ctxKey{}))
			msg.Ack()
		}
	})

	// TestConcurrentClose, of subscriptions without a reader.
	t.Run("ConcurrentClose", func(t *testing.T) {
		t.Parallel()
		pub, sub := construct(t)
		topic := redistest.Key(t)
		for range 50 {
			_, err := sub.Subscribe(t.Context(), topic)
			require.NoError(t, err)
		}
		var publishing sync.WaitGroup
		publishing.Go(func() { say(t, pub, topic, counted(1, 1000)...) })
		require.NoError(t, sub.Close())
		publishing.Wait()
	})
}

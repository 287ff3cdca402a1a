package components

import (
	"context"
	"errors"
	"fmt"
	"log"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/components/requeuer"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/message/router/middleware"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/examples/internal/redisserver"
)

var logger = watermill.NopLogger{}

// The code of docs/delays.md with Watermill's middleware, which is compiled and run here.

// retrying returns a router whose handler gets a message that has failed again after the first delay,
// then after twice that, and so on, and others meanwhile.
func retrying(publisher message.Publisher, subscriber message.Subscriber, orders, waiting string, first time.Duration, bill message.NoPublishHandlerFunc) (*message.Router, error) {
	router, err := message.NewRouter(message.RouterConfig{}, logger)
	if err != nil {
		return nil, err
	}
	failed, err := middleware.PoisonQueue(publisher, waiting)
	if err != nil {
		return nil, err
	}
	later := middleware.DelayOnError{InitialInterval: first, MaxInterval: time.Hour, Multiplier: 2}
	router.AddConsumerHandler("bill", orders, subscriber, bill).AddMiddleware(failed, later.Middleware)

	_, err = requeuer.NewRequeuer(requeuer.Config{
		Subscriber:     subscriber,
		SubscribeTopic: waiting,
		Publisher:      publisher,
		Router:         router,
		GeneratePublishTopic: func(p requeuer.GeneratePublishTopicParams) (string, error) {
			return p.Message.Metadata.Get(middleware.PoisonedTopicKey), nil
		},
	}, logger)
	return router, err
}

// A message that fails is handled again after a second, by the metadata of DelayOnError.
func Example_retriesWithADelay() {
	client, _, stop, err := redisserver.Open(context.Background(), "")
	if err != nil {
		log.Fatal(err)
	}
	defer stop()
	publisher, err := redischannels.NewPublisher(redischannels.PublisherConfig{Client: client}, logger)
	if err != nil {
		log.Fatal(err)
	}
	defer publisher.Close()
	subscriber, err := redischannels.NewSubscriber(redischannels.SubscriberConfig{Client: client, ConsumerGroup: "billing"}, logger)
	if err != nil {
		log.Fatal(err)
	}
	defer subscriber.Close()

	ctx, cancel := context.WithCancel(context.Background())
	var first time.Time
	router, err := retrying(publisher, subscriber, "orders", "orders-failed", time.Second, func(msg *message.Message) error {
		if first.IsZero() {
			first = time.Now()
			return errors.New("the bank is closed")
		}
		fmt.Printf("billed %s, a second later: %v\n", msg.Payload, time.Since(first) >= time.Second)
		cancel()
		return nil
	})
	if err != nil {
		log.Fatal(err)
	}
	if err := publisher.Publish("orders", message.NewMessage("", []byte("order 7"))); err != nil {
		log.Fatal(err)
	}
	if err := router.Run(ctx); err != nil {
		log.Fatal(err)
	}
	// Output: billed order 7, a second later: true
}

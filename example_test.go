package redischannels_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"

	"github.com/flaminco/redischannels"
)

// The Go code of README.md, which is compiled and run here; docs_test.go compares.

// exampleServer stands for redis.NewClient(&redis.Options{Addr: "localhost:6379"}), so that
// the examples run anywhere.
func exampleServer() (client *redis.Client, stop func()) {
	server, err := miniredis.Run()
	if err != nil {
		log.Fatal(err)
	}
	client = redis.NewClient(&redis.Options{Addr: server.Addr()})
	return client, func() {
		_ = client.Close()
		server.Close()
	}
}

var logger = watermill.NopLogger{}

// publishExamples publishes to the topic orders.
func publishExamples(client *redis.Client, payloads ...string) {
	publisher, err := redischannels.NewPublisher(redischannels.PublisherConfig{Client: client}, logger)
	if err != nil {
		log.Fatal(err)
	}
	defer publisher.Close()
	for _, payload := range payloads {
		if err := publisher.Publish("orders", message.NewMessage(watermill.NewUUID(), []byte(payload))); err != nil {
			log.Fatal(err)
		}
	}
}

// A Watermill router consumes in a consumer group: of all processes that run this, one handles
// the message.
func Example() {
	client, stop := exampleServer()
	defer stop()
	ctx, cancel := context.WithCancel(context.Background())
	bill := func(order []byte) error {
		fmt.Printf("bill %s\n", order)
		cancel() // the end of this example
		return nil
	}

	publisher, err := redischannels.NewPublisher(redischannels.PublisherConfig{Client: client}, logger)
	if err != nil {
		log.Fatal(err)
	}
	subscriber, err := redischannels.NewSubscriber(redischannels.SubscriberConfig{
		Client:        client,
		ConsumerGroup: "billing",
		MaxInFlight:   8, // handlers at a time; 1 keeps the order of the stream
	}, logger)
	if err != nil {
		log.Fatal(err)
	}
	router, err := message.NewRouter(message.RouterConfig{}, logger)
	if err != nil {
		log.Fatal(err)
	}
	router.AddConsumerHandler("billing", "orders", subscriber, func(msg *message.Message) error {
		return bill(msg.Payload) // an error: once more after a back-off, a dead letter after 20 times
	})

	err = publisher.Publish("orders", message.NewMessage(watermill.NewUUID(), []byte("order 1")))
	if err != nil {
		log.Fatal(err) // a *redischannels.PublishError: the outcome of each message
	}
	if err := router.Run(ctx); err != nil { // until ctx ends, then it closes the subscriber
		log.Fatal(err)
	}
	if err := publisher.Close(); err != nil {
		log.Fatal(err)
	}
	// Output: bill order 1
}

// Without a consumer group every subscription sees every message, and nothing is stored in
// Redis for it. It begins with what is published next, or at any position.
func ExampleSubscriber_SubscribeFrom() {
	client, stop := exampleServer()
	defer stop()
	publishExamples(client, "order 1", "order 2")
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	show := func(order []byte) {
		fmt.Printf("show %s\n", order)
		if string(order) == "order 2" {
			cancel() // the end of this example
		}
	}

	subscriber, err := redischannels.NewSubscriber(redischannels.SubscriberConfig{Client: client}, logger)
	if err != nil {
		log.Fatal(err)
	}
	defer subscriber.Close()
	// Latest is the default; also Oldest and AfterID(the last ID that was seen).
	hourAgo := redischannels.Since(time.Now().Add(-time.Hour))
	messages, err := subscriber.SubscribeFrom(ctx, "orders", hourAgo)
	if err != nil {
		log.Fatal(err)
	}
	for msg := range messages { // until ctx ends
		show(msg.Payload)
		msg.Ack()
	}
	// Output:
	// show order 1
	// show order 2
}

// History is finite: it ends with what is the last entry when it begins.
func ExampleSubscriber_History() {
	client, stop := exampleServer()
	defer stop()
	publishExamples(client, "order 1", "order 2")
	ctx := context.Background()
	subscriber, err := redischannels.NewSubscriber(redischannels.SubscriberConfig{Client: client}, logger)
	if err != nil {
		log.Fatal(err)
	}
	defer subscriber.Close()

	for msg, err := range subscriber.History(ctx, "orders", redischannels.Oldest, redischannels.Latest) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Printf("%s\n", msg.Payload)
	}
	// Output:
	// order 1
	// order 2
}

// The dead letters of a group are in a separate stream, with their reasons, until an operator
// requeues or deletes them.
func ExampleDeadLetters() {
	client, stop := exampleServer()
	defer stop()
	publishExamples(client, "order 1")
	rejectExample(client)
	ctx := context.Background()

	letters, err := redischannels.NewDeadLetters(redischannels.DeadLettersConfig{Client: client}, logger)
	if err != nil {
		log.Fatal(err)
	}
	var ids []string
	for letter, err := range letters.List(ctx, "orders", redischannels.DeadLetterQuery{Group: "billing"}) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Printf("%s gave up after %d: %s\n", letter.Group, letter.Count, letter.Reason)
		ids = append(ids, letter.ID)
	}
	results, err := letters.Requeue(ctx, "orders", ids...) // or Purge
	if err != nil {
		log.Fatal(err)
	}
	for _, result := range results {
		fmt.Println(result.Outcome)
	}
	// Output:
	// billing gave up after 1: no such customer
	// requeued
}

// rejectExample makes the next order of the group billing a dead letter.
func rejectExample(client *redis.Client) {
	subscriber, err := redischannels.NewSubscriber(redischannels.SubscriberConfig{
		Client:        client,
		ConsumerGroup: "billing",
	}, logger)
	if err != nil {
		log.Fatal(err)
	}
	defer subscriber.Close() // when it returns, the dead letter is written
	messages, err := subscriber.Subscribe(context.Background(), "orders")
	if err != nil {
		log.Fatal(err)
	}
	msg := <-messages
	redischannels.Reject(msg, "no such customer")
	msg.Nack()
}

// A router's handler marks the message and returns an error. The mark takes effect with the
// Nack of the router.
func ExampleReject() {
	errNoCustomer := errors.New("no such customer")
	charge := func([]byte) error { return errNoCustomer }

	handler := func(msg *message.Message) error {
		err := charge(msg.Payload)
		if errors.Is(err, errNoCustomer) {
			redischannels.Reject(msg, err.Error()) // a dead letter, without further attempts
		}
		return err
	}

	// Only messages that a Subscriber has delivered can be marked.
	fmt.Println(handler(message.NewMessage("1", nil)))
	// Output: no such customer
}

// The delay stands for NackBackoff, for this message and this time.
func ExampleRetryAfter() {
	handler := func(msg *message.Message) error {
		count, _ := redischannels.DeliveryCountFromContext(msg.Context())
		redischannels.RetryAfter(msg, time.Duration(count)*time.Minute)
		return errors.New("the bank is closed")
	}

	fmt.Println(handler(message.NewMessage("1", nil)))
	// Output: the bank is closed
}

// After a failure the outcome of each message says whether publishing it again can make a
// duplicate.
func ExamplePublishError() {
	client, stop := exampleServer()
	publisher, err := redischannels.NewPublisher(redischannels.PublisherConfig{Client: client, Timeout: 50 * time.Millisecond}, logger)
	if err != nil {
		log.Fatal(err)
	}
	defer publisher.Close()
	stop() // the server is down

	err = publisher.Publish("orders", message.NewMessage("1", nil), message.NewMessage("2", nil))
	var failed *redischannels.PublishError
	if errors.As(err, &failed) {
		for _, result := range failed.Results {
			fmt.Println(result.UUID, result.Outcome)
		}
	}
	// Output:
	// 1 not appended
	// 2 not appended
}

// Close returns when the handlers are done, their acknowledgements are in Redis, and nothing
// is left behind. The Redis client stays open: it is the caller's.
func ExampleSubscriber_Close() {
	client, stop := exampleServer()
	defer stop()
	publishExamples(client, "order 1")
	ctx := context.Background()
	subscriber, err := redischannels.NewSubscriber(redischannels.SubscriberConfig{
		Client:        client,
		ConsumerGroup: "billing",
		Tuning:        redischannels.Tuning{DrainTimeout: 20 * time.Second},
	}, logger)
	if err != nil {
		log.Fatal(err)
	}
	messages, err := subscriber.Subscribe(ctx, "orders")
	if err != nil {
		log.Fatal(err)
	}

	msg := <-messages
	go func() {
		fmt.Printf("finish %s\n", msg.Payload)
		msg.Ack()
	}()
	if err := subscriber.Close(); err != nil {
		log.Fatal(err)
	}
	pending, err := client.XPending(ctx, "orders", "billing").Result()
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(pending.Count, "pending")
	// Output:
	// finish order 1
	// 0 pending
}

// GroupStats asks Redis how far a consumer group is, whatever processes its consumers are in.
func ExampleSubscriber_GroupStats() {
	client, stop := exampleServer()
	defer stop()
	publishExamples(client, "order 1", "order 2")
	ctx := context.Background()
	subscriber, err := redischannels.NewSubscriber(redischannels.SubscriberConfig{Client: client, ConsumerGroup: "billing"}, logger)
	if err != nil {
		log.Fatal(err)
	}
	defer subscriber.Close()
	if err := subscriber.SubscribeInitialize("orders"); err != nil {
		log.Fatal(err)
	}

	stats, err := subscriber.GroupStats(ctx, "orders")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(stats.Lag, stats.Pending)
	// Output: 2 0
}

package redischannels_test

import (
	"context"
	"fmt"
	"log"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/flaminco/redischannels"
)

// Every subscriber at the moment of publishing gets the message; Redis keeps nothing.
func ExampleNewPubSubSubscriber() {
	client, stop := exampleServer()
	defer stop()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	show := func(price []byte) {
		fmt.Printf("show %s\n", price)
		cancel() // the end of this example
	}

	subscriber, err := redischannels.NewPubSubSubscriber(redischannels.PubSubSubscriberConfig{Client: client}, logger)
	if err != nil {
		log.Fatal(err)
	}
	defer subscriber.Close()
	messages, err := subscriber.Subscribe(ctx, "prices") // live when it returns
	if err != nil {
		log.Fatal(err)
	}
	publisher, err := redischannels.NewPubSubPublisher(redischannels.PubSubPublisherConfig{Client: client}, logger)
	if err != nil {
		log.Fatal(err)
	}
	err = publisher.Publish("prices", message.NewMessage(watermill.NewUUID(), []byte("4.20")))
	if err != nil {
		log.Fatal(err)
	}
	for msg := range messages { // until ctx ends
		show(msg.Payload)
		msg.Ack() // the next one
	}
	// Output: show 4.20
}

// One subscription of several channels and patterns gets each message once. Losses are
// reported: what did not fit into the buffer, and outages.
func ExamplePubSubSubscriber_SubscribeAll() {
	client, stop := exampleServer()
	defer stop()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()

	subscriber, err := redischannels.NewPubSubSubscriber(redischannels.PubSubSubscriberConfig{
		Client:   client,
		Patterns: true,
		Buffer:   10_000,                   // messages; DropOldest is the default
		Drop:     redischannels.DropNewest, // keep what came first
		OnEvent: func(e redischannels.Event) {
			switch e.Kind {
			case redischannels.EventDropped:
				log.Printf("%d messages of %s were dropped", e.Count, e.Topic)
			case redischannels.EventInterrupted:
				log.Printf("%s was not subscribed for up to %v", e.Topic, e.Duration)
			}
		},
	}, logger)
	if err != nil {
		log.Fatal(err)
	}
	defer subscriber.Close()
	messages, err := subscriber.SubscribeAll(ctx, "orders.*", "orders.eu.*", "alarms")
	if err != nil {
		log.Fatal(err)
	}
	publisher, err := redischannels.NewPubSubPublisher(redischannels.PubSubPublisherConfig{Client: client}, logger)
	if err != nil {
		log.Fatal(err)
	}
	err = publisher.Publish("orders.eu.berlin", message.NewMessage(watermill.NewUUID(), []byte("order 1")))
	if err != nil {
		log.Fatal(err)
	}
	msg := <-messages
	topic, _ := redischannels.TopicFromContext(msg.Context())
	msg.Ack()
	fmt.Printf("%s from %s\n", msg.Payload, topic)
	// Output: order 1 from orders.eu.berlin
}

// Plain payloads, as other programs and the .NET library publish them.
func ExampleRawPayload() {
	client, stop := exampleServer()
	defer stop()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()

	subscriber, err := redischannels.NewPubSubSubscriber(redischannels.PubSubSubscriberConfig{
		Client:      client,
		Unmarshaler: redischannels.RawPayload{},
	}, logger)
	if err != nil {
		log.Fatal(err)
	}
	defer subscriber.Close()
	messages, err := subscriber.Subscribe(ctx, "prices")
	if err != nil {
		log.Fatal(err)
	}
	if err := client.Publish(ctx, "prices", `{"eur":4.20}`).Err(); err != nil {
		log.Fatal(err)
	}
	msg := <-messages
	msg.Ack()
	fmt.Printf("%s\n", msg.Payload)
	// Output: {"eur":4.20}
}

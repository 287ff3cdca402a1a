package compat_test

import (
	"context"
	"log"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill-redisstream/pkg/redisstream"
	"github.com/redis/go-redis/v9"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/compat"
)

// The functions here are the snippets of docs/from-redisstream.md.

var (
	client redis.UniversalClient
	logger watermill.LoggerAdapter
)

func ExamplePublisherConfig() {
	config, err := compat.PublisherConfig(redisstream.PublisherConfig{
		Client:        client,
		DefaultMaxlen: 100_000,
		Maxlens:       map[string]int64{"audit": 0},
	})
	if err != nil {
		log.Fatal(err)
	}
	publisher, err := redischannels.NewPublisher(config, logger)
	if err != nil {
		log.Fatal(err)
	}
	defer publisher.Close()
}

func ExampleSubscriberConfig() {
	config, err := compat.SubscriberConfig(redisstream.SubscriberConfig{
		Client:          client,
		ConsumerGroup:   "billing",
		MaxIdleTime:     10 * time.Minute, // above the longest handler of the old side
		NackResendSleep: time.Second,
	})
	if err != nil {
		log.Fatal(err)
	}
	config.OnEvent = func(e redischannels.Event) { log.Println(e.Kind, e.Topic, e.EntryIDs, e.Err) }
	subscriber, err := redischannels.NewSubscriber(config, logger)
	if err != nil {
		log.Fatal(err)
	}
	defer subscriber.Close()
}

func ExampleSubscriberConfig_afterwards() {
	config := redischannels.SubscriberConfig{
		Client:        client,
		ConsumerGroup: "billing",
		MaxInFlight:   16,
	}
	subscriber, err := redischannels.NewSubscriber(config, logger)
	if err != nil {
		log.Fatal(err)
	}
	defer subscriber.Close()
}

func ExampleSubscriberConfig_deadLetters() {
	ctx := context.Background()
	deadLetters, err := redischannels.NewDeadLetters(redischannels.DeadLettersConfig{Client: client}, logger)
	if err != nil {
		log.Fatal(err)
	}
	for letter, err := range deadLetters.List(ctx, "orders", redischannels.DeadLetterQuery{Group: "billing"}) {
		if err != nil {
			log.Fatal(err)
		}
		results, err := deadLetters.Requeue(ctx, "orders", letter.ID)
		if err != nil {
			log.Fatal(err)
		}
		log.Println(letter.EntryID, letter.Reason, results[0].Outcome)
	}
}

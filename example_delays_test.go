package redischannels_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/components/delay"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"

	"github.com/flaminco/redischannels"
)

// The code of docs/delays.md, which is compiled and run here; docs_test.go compares.

// remind publishes a message that is appended later.
func remind(publisher *redischannels.Publisher) error {
	msg := message.NewMessage(watermill.NewUUID(), []byte(`{"order":7}`))
	delay.Message(msg, delay.For(10*time.Minute))
	return publisher.Publish("reminders", msg)
}

// scheduled publishes a message and returns the ID by which it can be canceled.
func scheduled(ctx context.Context, publisher *redischannels.Publisher, msg *message.Message) (string, error) {
	results, err := publisher.AppendResults(ctx, "reminders", msg)
	if err != nil {
		return "", err
	}
	return results[0].DelayedID, nil // empty if it was due at once
}

// writeLater writes a value of a channel.
func writeLater(ctx context.Context, reminders *redischannels.Channel[string]) error {
	_, err := reminders.Writer().WriteAfter(ctx, 10*time.Minute, "call the customer")
	if err != nil {
		return err
	}
	tomorrow := time.Now().AddDate(0, 0, 1)
	_, err = reminders.Writer().WriteAt(ctx, tomorrow, "send the invoice")
	return err
}

// cancelAll cancels what waits.
func cancelAll(ctx context.Context, client *redis.Client) error {
	waiting, err := redischannels.NewDelayedMessages(redischannels.DelayedMessagesConfig{Client: client}, logger)
	if err != nil {
		return err
	}
	for msg, err := range waiting.List(ctx, "reminders") {
		if err != nil {
			return err
		}
		fmt.Println(msg.Due, msg.ID)
		if _, err := waiting.Cancel(ctx, "reminders", msg.ID); err != nil {
			return err
		}
	}
	return nil
}

// keepHouse appends what processes have delayed that have ended.
func keepHouse(ctx context.Context, client *redis.Client) error {
	keeper, err := redischannels.NewHousekeeper(redischannels.HousekeeperConfig{
		Client: client,
		Topics: []string{"reminders", "orders-failed"},
	}, logger)
	if err != nil {
		return err
	}
	return keeper.Run(ctx)
}

// The other functions of the page are called where they wait for nothing.
func Example_delays() {
	client, stop := exampleServer()
	defer stop()
	publisher, err := redischannels.NewPublisher(redischannels.PublisherConfig{Client: client}, logger)
	if err != nil {
		log.Fatal(err)
	}
	defer publisher.Close()
	hub, err := redischannels.NewHub(client, redischannels.HubConfig{})
	if err != nil {
		log.Fatal(err)
	}
	defer hub.Close()
	reminders, err := redischannels.NewStreamChannel[string](hub, "reminders", redischannels.StreamChannelConfig{})
	if err != nil {
		log.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	err = errors.Join(remind(publisher), writeLater(ctx, reminders))
	_, another := scheduled(ctx, publisher, message.NewMessage("", nil))
	kept := make(chan error)
	go func() { kept <- keepHouse(ctx, client) }()
	cancel()
	fmt.Println(errors.Join(err, another, <-kept))
	if err := cancelAll(context.Background(), client); err != nil {
		log.Fatal(err)
	}
}

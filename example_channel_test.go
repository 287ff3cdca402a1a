package redischannels_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/pubsub/gochannel"

	"github.com/flaminco/redischannels"
)

// Order is the value of the examples of channels.
type Order struct {
	ID     int
	Amount int
}

// exampleURL stands for redis://localhost:6379.
func exampleURL() (url string, stop func()) {
	client, stop := exampleServer()
	return "redis://" + client.Options().Addr, stop
}

// exampleOrders makes a channel of the group billing with orders 1 to n in it.
func exampleOrders(n int) (ctx context.Context, orders *redischannels.Channel[Order], stop func()) {
	url, stopServer := exampleURL()
	ctx, cancel := context.WithCancel(context.Background())
	hub, err := redischannels.Open(ctx, url, redischannels.HubConfig{})
	if err != nil {
		log.Fatal(err)
	}
	orders, err = redischannels.NewStreamChannel[Order](hub, "orders", redischannels.StreamChannelConfig{
		Subscriber: redischannels.SubscriberConfig{ConsumerGroup: "billing"},
	})
	if err != nil {
		log.Fatal(err)
	}
	for i := range n {
		if _, err := orders.Writer().Write(ctx, Order{ID: i + 1, Amount: 10 * (i + 1)}); err != nil {
			log.Fatal(err)
		}
	}
	return ctx, orders, func() {
		cancel()
		if err := hub.Close(); err != nil {
			log.Fatal(err)
		}
		stopServer()
	}
}

// A typed channel over a stream: what one writes, one of the group reads.
func ExampleChannel() {
	url, stop := exampleURL()
	defer stop()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	bill := func(order Order) {
		fmt.Printf("bill order %d: %d\n", order.ID, order.Amount)
		cancel() // the end of this example
	}

	hub, err := redischannels.Open(ctx, url, redischannels.HubConfig{})
	if err != nil {
		log.Fatal(err)
	}
	defer hub.Close()
	orders, err := redischannels.NewStreamChannel[Order](hub, "orders", redischannels.StreamChannelConfig{
		Subscriber: redischannels.SubscriberConfig{ConsumerGroup: "billing"},
	})
	if err != nil {
		log.Fatal(err)
	}
	if _, err := orders.Writer().Write(ctx, Order{ID: 1, Amount: 30}); err != nil {
		log.Fatal(err)
	}
	for order, err := range orders.Reader().All(ctx) { // until ctx ends
		if err != nil {
			log.Print(err) // an order that cannot be decoded: it was moved to the dead-letter stream
			continue
		}
		bill(order) // acknowledged when the loop comes back
	}
	// Output: bill order 1: 30
}

// A background consumer: the function's error brings the value again, its nil
// acknowledges. Handle returns when ctx has ended and the calls under way have.
func ExampleReader_Handle() {
	ctx, orders, stop := exampleOrders(1)
	defer stop()
	ctx, cancel := context.WithCancel(ctx)
	tries := 0
	bill := func(ctx context.Context, order Order) error {
		if tries++; tries == 1 {
			return errors.New("the bank is closed")
		}
		fmt.Printf("order %d billed in try %d\n", order.ID, tries)
		cancel() // the end of this example
		return nil
	}

	err := orders.Reader().Handle(ctx, bill, redischannels.HandleConfig{
		Concurrency: 8,
		Middleware:  nil, // any of Watermill's: Retry, Timeout, CircuitBreaker, ...
	})
	if err != nil {
		log.Fatal(err) // the subscription could not be opened
	}
	// Output: order 1 billed in try 2
}

// Many values with one call: those that the function names in a BatchError are redelivered, the others are
// acknowledged.
func ExampleReader_HandleBatch() {
	ctx, orders, stop := exampleOrders(3)
	defer stop()
	ctx, cancel := context.WithCancel(ctx)
	tries := 0
	insert := func(ctx context.Context, rows []Order) (refused []int, err error) {
		if tries++; tries == 1 {
			fmt.Printf("%d orders inserted, order 2 refused\n", len(rows)-1)
			return []int{1}, errors.New("no such customer")
		}
		fmt.Printf("order %d inserted in try %d\n", rows[0].ID, tries)
		cancel() // the end of this example
		return nil, nil
	}

	err := orders.Reader().HandleBatch(ctx, func(ctx context.Context, batch []redischannels.Delivery[Order]) error {
		rows := make([]Order, len(batch))
		for i, d := range batch {
			rows[i] = d.Value
		}
		refused, err := insert(ctx, rows) // all of them by one statement
		if len(refused) > 0 {
			return &redischannels.BatchError{Failed: refused, Err: err} // indexes of the batch
		}
		return err // nil acknowledges all, any other error nacks all
	}, redischannels.BatchConfig{Size: 500, Wait: 200 * time.Millisecond})
	if err != nil {
		log.Fatal(err) // the configuration, or the subscription could not be opened
	}
	// Output:
	// 2 orders inserted, order 2 refused
	// order 2 inserted in try 2
}

// The dead letters of a channel are values: look at them, and return them to the group.
func ExampleChannel_DeadLetters() {
	ctx, orders, stop := exampleOrders(1)
	defer stop()
	delivery, err := orders.Reader().Receive(ctx)
	if err != nil {
		log.Fatal(err)
	}
	if err := delivery.Reject("no such customer"); err != nil {
		log.Fatal(err)
	}
	orders.Reader().Close() // the order is a dead letter when this returns

	for letter, err := range orders.DeadLetters().List(ctx, redischannels.DeadLetterQuery{}) {
		if err != nil {
			log.Print(err) // what does not make an Order, or why the list ends
			continue
		}
		fmt.Printf("order %d: %s\n", letter.Value.ID, letter.Reason)
		if _, err := orders.DeadLetters().Requeue(ctx, letter.ID); err != nil { // or Purge
			log.Fatal(err)
		}
	}
	// Output: order 1: no such customer
}

// Several pods of one group: each makes a channel of its own, and each value goes to
// one of them.
func ExampleNewStreamChannel() {
	url, stop := exampleURL()
	defer stop()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var (
		pods   sync.WaitGroup
		mu     sync.Mutex
		total  int
		orders *redischannels.Channel[Order]
	)
	for range 3 {
		hub, err := redischannels.Open(ctx, url, redischannels.HubConfig{Stream: redischannels.StreamChannelConfig{
			Subscriber: redischannels.SubscriberConfig{ConsumerGroup: "billing"},
		}})
		if err != nil {
			log.Fatal(err)
		}
		orders, err = redischannels.NewStreamChannel[Order](hub, "orders", redischannels.StreamChannelConfig{})
		if err != nil {
			log.Fatal(err)
		}
		reader := orders.Reader()
		pods.Go(func() {
			defer hub.Close()
			for order, err := range reader.All(ctx) {
				if err != nil {
					log.Fatal(err)
				}
				mu.Lock()
				if total += order.Amount; total == 5050 {
					cancel()
				}
				mu.Unlock()
			}
		})
	}
	amounts := make([]Order, 100)
	for i := range amounts {
		amounts[i] = Order{ID: i, Amount: i + 1}
	}
	if _, err := orders.Writer().WriteAll(ctx, amounts...); err != nil {
		log.Fatal(err)
	}
	pods.Wait()
	fmt.Println(total)
	// Output: 5050
}

// Manual acknowledgement: a delivery is ended by its methods, or later by its ID.
func ExampleReader_Receive() {
	ctx, orders, stop := exampleOrders(3)
	defer stop()

	var done []string
	for range 3 {
		delivery, err := orders.Reader().Receive(ctx)
		if err != nil {
			log.Fatal(err)
		}
		if delivery.Value.Amount > 20 {
			err = delivery.Reject("too much") // a dead letter; also Nack, NackAfter
			if err != nil {
				log.Fatal(err)
			}
			continue
		}
		done = append(done, delivery.ID)
	}
	n, err := orders.Reader().Ack(ctx, done...)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(n, "acknowledged")
	// Output: 2 acknowledged
}

// Replay: Follow yields what is in the stream and continues with what is written, without
// gap and without duplicate where they meet. It belongs to no group.
func ExampleReader_Follow() {
	ctx, orders, stop := exampleOrders(2)
	defer stop()

	for delivery, err := range orders.Reader().Follow(ctx, redischannels.Oldest) { // or AfterID, Since
		if err != nil {
			log.Print(err) // *GapError: some were trimmed away; *DecodeError
			continue
		}
		fmt.Println("order", delivery.Value.ID)
		if delivery.Value.ID == 2 {
			if _, err := orders.Writer().Write(ctx, Order{ID: 3}); err != nil {
				log.Fatal(err)
			}
		}
		if delivery.Value.ID == 3 {
			break
		}
	}
	// Output:
	// order 1
	// order 2
	// order 3
}

// History ends with what is the last entry when it begins.
func ExampleReader_History() {
	ctx, orders, stop := exampleOrders(2)
	defer stop()

	for delivery, err := range orders.Reader().History(ctx, redischannels.Oldest) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println("order", delivery.Value.ID)
	}
	// Output:
	// order 1
	// order 2
}

// Notifications: over Pub/Sub every current reader receives a value.
func ExampleNewPubSubChannel() {
	url, stop := exampleURL()
	defer stop()
	ctx := context.Background()
	hub, err := redischannels.Open(ctx, url, redischannels.HubConfig{})
	if err != nil {
		log.Fatal(err)
	}
	defer hub.Close()

	news, err := redischannels.NewPubSubChannel[string](hub, "news", redischannels.PubSubChannelConfig{})
	if err != nil {
		log.Fatal(err)
	}
	if _, _, err := news.Reader().TryReceive(); err != nil { // subscribed from here on
		log.Fatal(err)
	}
	if _, err := news.Writer().Write(ctx, "the shop is open"); err != nil {
		log.Fatal(err)
	}
	headline, err := news.Reader().Read(ctx)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(headline)
	// Output: the shop is open
}

// Event is the interface of all events of ExampleEventBus.
type Event interface{ OrderID() int }

// Placed and Shipped are events.
type (
	Placed  struct{ ID, Amount int }
	Shipped struct{ ID int }
)

// OrderID implements Event.
func (e Placed) OrderID() int { return e.ID }

// OrderID implements Event.
func (e Shipped) OrderID() int { return e.ID }

// Several types over one topic, by names that the registry has.
func ExampleEventBus() {
	transport := gochannel.NewGoChannel(gochannel.Config{Persistent: true}, logger)
	defer transport.Close()
	ctx, cancel := context.WithCancel(context.Background())

	registry := redischannels.NewRegistry[Event](redischannels.RegistryConfig{})
	err := errors.Join(
		redischannels.Register[Placed](registry, "order.placed"),
		redischannels.Register[Shipped](registry, "order.shipped"),
	)
	if err != nil {
		log.Fatal(err)
	}
	bus, err := redischannels.NewEventBus(transport, transport, "events", registry, redischannels.ChannelConfig[Event]{})
	if err != nil {
		log.Fatal(err)
	}
	defer bus.Close()
	if _, err := bus.Publish(ctx, Shipped{ID: 7}); err != nil {
		log.Fatal(err)
	}
	err = bus.Handle(ctx, func(_ context.Context, event Event) error {
		switch event := event.(type) {
		case Placed:
			fmt.Println("placed", event.ID)
		case Shipped:
			fmt.Println("shipped", event.ID)
		}
		cancel() // the end of this example
		return nil
	}, redischannels.HandleConfig{})
	if err != nil {
		log.Fatal(err)
	}
	// Output: shipped 7
}

// A unit test needs no Redis: the channel stands on Watermill's gochannel.
func ExampleNewChannel() {
	ctx := context.Background()
	transport := gochannel.NewGoChannel(gochannel.Config{Persistent: true}, logger)
	defer transport.Close()
	orders, err := redischannels.NewChannel(transport, transport, "orders", redischannels.ChannelConfig[Order]{})
	if err != nil {
		log.Fatal(err)
	}
	defer orders.Close()
	if _, err := orders.Writer().Write(ctx, Order{ID: 1}); err != nil {
		log.Fatal(err)
	}
	order, err := orders.Reader().Read(ctx)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("order", order.ID)
	// Output: order 1
}

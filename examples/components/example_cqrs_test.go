package components

import (
	"context"
	"fmt"
	"log"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/components/cqrs"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"

	"github.com/flaminco/redischannels"
)

// PlaceOrder is a command, OrderPlaced an event.
type PlaceOrder struct{ ID string }

type OrderPlaced struct{ ID string }

// newSubscriber returns the subscriber of a handler: the handlers of a name are one consumer group, in however
// many processes they run.
func newSubscriber(client redis.UniversalClient, handler string) (message.Subscriber, error) {
	return redischannels.NewSubscriber(redischannels.SubscriberConfig{Client: client, ConsumerGroup: handler}, watermill.NopLogger{})
}

// newBuses returns the two buses on one Publisher.
func newBuses(publisher message.Publisher) (*cqrs.CommandBus, *cqrs.EventBus, error) {
	commands, err := cqrs.NewCommandBusWithConfig(publisher, cqrs.CommandBusConfig{
		GeneratePublishTopic: func(p cqrs.CommandBusGeneratePublishTopicParams) (string, error) { return p.CommandName, nil },
		Marshaler:            cqrs.JSONMarshaler{},
	})
	if err != nil {
		return nil, nil, err
	}
	events, err := cqrs.NewEventBusWithConfig(publisher, cqrs.EventBusConfig{
		GeneratePublishTopic: func(p cqrs.GenerateEventPublishTopicParams) (string, error) { return p.EventName, nil },
		Marshaler:            cqrs.JSONMarshaler{},
	})
	return commands, events, err
}

// newProcessors returns the processors of a router.
func newProcessors(router *message.Router, client redis.UniversalClient) (*cqrs.CommandProcessor, *cqrs.EventProcessor, error) {
	commands, err := cqrs.NewCommandProcessorWithConfig(router, cqrs.CommandProcessorConfig{
		GenerateSubscribeTopic: func(p cqrs.CommandProcessorGenerateSubscribeTopicParams) (string, error) { return p.CommandName, nil },
		SubscriberConstructor: func(p cqrs.CommandProcessorSubscriberConstructorParams) (message.Subscriber, error) {
			return newSubscriber(client, p.HandlerName)
		},
		Marshaler: cqrs.JSONMarshaler{},
	})
	if err != nil {
		return nil, nil, err
	}
	events, err := cqrs.NewEventProcessorWithConfig(router, cqrs.EventProcessorConfig{
		GenerateSubscribeTopic: func(p cqrs.EventProcessorGenerateSubscribeTopicParams) (string, error) { return p.EventName, nil },
		SubscriberConstructor: func(p cqrs.EventProcessorSubscriberConstructorParams) (message.Subscriber, error) {
			return newSubscriber(client, p.HandlerName)
		},
		Marshaler: cqrs.JSONMarshaler{},
	})
	return commands, events, err
}

// A command has one handler, whose event reaches every group.
func Example_cqrs() {
	server, err := miniredis.Run() // stands for localhost:6379
	if err != nil {
		log.Fatal(err)
	}
	defer server.Close()
	client := redis.NewClient(&redis.Options{Addr: server.Addr()})
	defer client.Close()
	publisher, err := redischannels.NewPublisher(redischannels.PublisherConfig{Client: client}, watermill.NopLogger{})
	if err != nil {
		log.Fatal(err)
	}
	defer publisher.Close()
	commandBus, eventBus, err := newBuses(publisher)
	if err != nil {
		log.Fatal(err)
	}
	router, err := message.NewRouter(message.RouterConfig{}, watermill.NopLogger{})
	if err != nil {
		log.Fatal(err)
	}
	commands, events, err := newProcessors(router, client)
	if err != nil {
		log.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	placed := func(id string) {
		fmt.Println("placed", id)
		cancel() // the end of this example
	}

	err = commands.AddHandlers(cqrs.NewCommandHandler("orders", func(ctx context.Context, c *PlaceOrder) error {
		return eventBus.Publish(ctx, &OrderPlaced{ID: c.ID})
	}))
	if err != nil {
		log.Fatal(err)
	}
	err = events.AddHandlers(cqrs.NewEventHandler("mail", func(_ context.Context, e *OrderPlaced) error {
		placed(e.ID)
		return nil
	}))
	if err != nil {
		log.Fatal(err)
	}
	if err := commandBus.Send(ctx, &PlaceOrder{ID: "7"}); err != nil {
		log.Fatal(err)
	}
	if err := router.Run(ctx); err != nil {
		log.Fatal(err)
	}
	// Output: placed 7
}

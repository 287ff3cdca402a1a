package main

import (
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/flaminco/redischannels"
)

var ours = library{
	name: "redischannels",
	publisher: func(t *trial) (message.Publisher, error) {
		return redischannels.NewPublisher(redischannels.PublisherConfig{Client: t.connect()}, nil)
	},
	subscriber: func(t *trial, s settings) (message.Subscriber, error) {
		return redischannels.NewSubscriber(oursConfig(t, s), nil)
	},
}

func oursConfig(t *trial, s settings) redischannels.SubscriberConfig {
	config := redischannels.SubscriberConfig{
		Client:        t.connect(),
		ConsumerGroup: group,
		MaxInFlight:   s.maxInFlight,
		OnEvent:       t.event,
	}
	if s.keyed {
		config.OrderingKey = key
	}
	if s.fanOut {
		config.ConsumerGroup, config.StartFrom = "", redischannels.Oldest
	}
	return config
}

// event makes a trial worthless in which something went wrong.
func (t *trial) event(e redischannels.Event) {
	t.fail(&eventError{e})
}

type eventError struct{ event redischannels.Event }

func (e *eventError) Error() string {
	text := "event: " + e.event.Kind.String()
	if e.event.Err != nil {
		text += ": " + e.event.Err.Error()
	}
	return text
}

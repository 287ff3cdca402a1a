package main

import (
	"github.com/ThreeDotsLabs/watermill-redisstream/pkg/redisstream"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"
)

// redisStream is watermill-redisstream. It handles one message at a time, whatever is
// asked for.
var redisStream = library{
	name: "watermill-redisstream",
	publisher: func(t *trial) (message.Publisher, error) {
		return redisstream.NewPublisher(redisstream.PublisherConfig{Client: t.connect()}, nil)
	},
	subscriber: func(t *trial, s settings) (message.Subscriber, error) {
		config := redisstream.SubscriberConfig{
			// Every subscription occupies a connection of the pool.
			Client:        t.connect(func(o *redis.Options) { o.PoolSize = 250 }),
			ConsumerGroup: group,
		}
		if s.fanOut {
			config.ConsumerGroup, config.FanOutOldestId = "", "0"
		}
		return redisstream.NewSubscriber(config, nil)
	},
}

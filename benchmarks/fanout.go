package main

import (
	"context"
	"errors"
	"strconv"
	"time"

	"github.com/ThreeDotsLabs/watermill-redisstream/pkg/redisstream"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"
)

// fanOutRow has so many subscriptions of one topic that all receive every message. The rate
// is that of deliveries, and the second value the number of connections that read.
func fanOutRow(name string, subscriptions, deliveries int) row {
	r := row{
		name: name, unit: "deliveries/s", copies: subscriptions,
		metrics: []metric{{}, {name: "connections", unit: "connections", most: 1}},
		peers: []peer{
			{name: ours.name, messages: deliveries / subscriptions, run: ours.fanOut},
			{name: bare + " XREAD loops", messages: deliveries / subscriptions, run: bareFanOut, least: 1.5},
		},
	}
	if subscriptions <= 100 { // it takes a connection and a command for each delivery
		r.peers = append(r.peers, peer{name: redisStream.name, messages: 8_000 / subscriptions, run: redisStream.fanOut})
	}
	return r
}

// fanOut subscribes as often as the row says; then everything is published at once.
func (l library) fanOut(t *trial) error {
	sub, err := l.subscriber(t, settings{fanOut: true})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(t.ctx)
	defer cancel()
	channels := make([]<-chan *message.Message, t.row.copies)
	for i := range channels {
		if channels[i], err = sub.Subscribe(ctx, t.topic); err != nil {
			return errors.Join(err, sub.Close())
		}
	}
	received := t.loops(len(channels), func(i int) error {
		for msg := range channels[i] {
			t.countCopy(i, msg.UUID, len(msg.Payload))
			msg.Ack()
		}
		return nil
	})
	err = t.flood()
	return errors.Join(err, sub.Close(), <-received, t.check(false))
}

// bareFanOut has a connection and a loop for each subscription.
func bareFanOut(t *trial) error {
	client := t.connect(func(o *redis.Options) { o.PoolSize = t.row.copies })
	decoder := redisstream.DefaultMarshallerUnmarshaller{}
	ended := t.loops(t.row.copies, func(i int) error {
		for last, n := "0", 0; n < t.n; {
			streams, err := client.XRead(t.ctx, &redis.XReadArgs{Streams: []string{t.topic, last}, Count: 1000, Block: 5 * time.Second}).Result()
			if errors.Is(err, redis.Nil) {
				continue
			}
			if err != nil {
				return err
			}
			for _, entry := range streams[0].Messages {
				msg, err := decoder.Unmarshal(entry.Values)
				if err != nil {
					return err
				}
				t.countCopy(i, msg.UUID, len(msg.Payload))
				last, n = entry.ID, n+1
			}
		}
		return nil
	})
	return errors.Join(t.flood(), <-ended, t.check(false))
}

// flood publishes everything by pipelines of a hundred when all subscriptions wait for it, and
// waits until it has arrived. It sets both values of the row.
func (t *trial) flood() error {
	const batch = 100
	reading, err := t.reading()
	if err != nil {
		return err
	}
	client := t.connect()
	if err := t.start(); err != nil {
		return err
	}
	err = calls(t.n, 1, batch, 0, func(from, n int) error {
		_, err := client.Pipelined(t.ctx, func(pipe redis.Pipeliner) error {
			for i := from; i < from+n; i++ {
				pipe.XAdd(t.ctx, &redis.XAddArgs{Stream: t.topic, Values: t.fields(i)})
			}
			return nil
		})
		return err
	})
	if err == nil {
		err = t.awaitAll()
	}
	err = errors.Join(err, t.stop())
	t.values = append(t.values, float64(reading))
	return err
}

// reading counts the connections in which reads wait, as soon as they become no more.
func (t *trial) reading() (n int, err error) {
	for before := 0; n == 0 || n != before; {
		before = n
		pause(t.ctx, 100*time.Millisecond)
		info, err := t.server.Info(t.ctx, "clients")
		if err != nil {
			return 0, err
		}
		if n, err = strconv.Atoi(info["blocked_clients"]); err != nil {
			return 0, err
		}
	}
	return n, nil
}

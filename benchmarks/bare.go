package main

import (
	"context"
	"errors"
	"time"

	"github.com/ThreeDotsLabs/watermill-redisstream/pkg/redisstream"
	"github.com/redis/go-redis/v9"
)

// What a program does that uses go-redis without a library in between.

// bareSubscribe reads by the thousand, makes messages, and acknowledges each batch at once.
func bareSubscribe(t *trial) error {
	if err := t.fill(); err != nil {
		return err
	}
	client := t.connect()
	if err := t.start(); err != nil {
		return err
	}
	decoder := redisstream.DefaultMarshallerUnmarshaller{}
	ids := make([]string, 0, 1000)
	for !t.complete() {
		streams, err := client.XReadGroup(t.ctx, &redis.XReadGroupArgs{
			Group: group, Consumer: "bare", Streams: []string{t.topic, ">"}, Count: 1000, Block: 5 * time.Second,
		}).Result()
		if err != nil {
			return err
		}
		ids = ids[:0]
		for _, entry := range streams[0].Messages {
			msg, err := decoder.Unmarshal(entry.Values)
			if err != nil {
				return err
			}
			t.arrived(msg)
			ids = append(ids, entry.ID)
		}
		if err := client.XAck(t.ctx, t.topic, group, ids...).Err(); err != nil {
			return err
		}
	}
	return errors.Join(t.awaitSettled(), t.stop(), t.check(true))
}

// barePublish sends one XADD per message through what add returns.
func barePublish(goroutines int, face func(*redis.Client) (redis.Cmdable, func() error, error)) func(*trial) error {
	return func(t *trial) error {
		client, done, err := face(t.connect())
		if err != nil {
			return err
		}
		if err := t.start(); err != nil {
			return err
		}
		err = parallel(goroutines, func(g int) error {
			return calls(t.n, goroutines, 1, g, func(i, _ int) error {
				return client.XAdd(t.ctx, &redis.XAddArgs{Stream: t.topic, Values: fields(i)}).Err()
			})
		})
		return errors.Join(err, t.stop(), done(), t.readBack(), t.check(false))
	}
}

func plain(client *redis.Client) (redis.Cmdable, func() error, error) {
	return client, func() error { return nil }, nil
}

// autoPipeline is go-redis's own sharing of pipelines among callers.
func autoPipeline(client *redis.Client) (redis.Cmdable, func() error, error) {
	auto, err := client.AutoPipeline()
	if err != nil {
		return nil, nil, err
	}
	return auto, auto.Close, nil
}

// barePipeline sends so many XADD per pipeline.
func barePipeline(batch int) func(*trial) error {
	return func(t *trial) error {
		client := t.connect()
		if err := t.start(); err != nil {
			return err
		}
		err := calls(t.n, 1, batch, 0, func(from, n int) error {
			_, err := client.Pipelined(t.ctx, func(pipe redis.Pipeliner) error {
				for i := from; i < from+n; i++ {
					pipe.XAdd(context.Background(), &redis.XAddArgs{Stream: t.topic, Values: fields(i)})
				}
				return nil
			})
			return err
		})
		return errors.Join(err, t.stop(), t.readBack(), t.check(false))
	}
}

package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/ThreeDotsLabs/watermill-redisstream/pkg/redisstream"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"
)

// A program that uses go-redis without a library.

// bareBlock is how long reads without a library wait for entries.
const bareBlock = 200 * time.Millisecond

// bareSubscribe reads in so many loops.
func bareSubscribe(loops int) func(*trial) error {
	return func(t *trial) error {
		if err := t.fill(); err != nil {
			return err
		}
		client := t.connect()
		if err := t.start(); err != nil {
			return err
		}
		ended := t.loops(loops, func(i int) error { return bareLoop(t, client, fmt.Sprintf("bare-%d", i), t.arrived) })
		err := t.awaitAll()
		if err == nil {
			err = t.awaitSettled()
		}
		return errors.Join(err, t.stop(), <-ended, t.check(true))
	}
}

// bareLoop reads by the thousand, makes messages, and acknowledges each batch at once.
func bareLoop(t *trial, client *redis.Client, consumer string, got func(*message.Message)) error {
	decoder := redisstream.DefaultMarshallerUnmarshaller{}
	ids := make([]string, 0, 1000)
	for !t.complete() {
		streams, err := client.XReadGroup(t.ctx, &redis.XReadGroupArgs{
			Group: group, Consumer: consumer, Streams: []string{t.topic, ">"}, Count: 1000, Block: bareBlock,
		}).Result()
		if errors.Is(err, redis.Nil) {
			continue
		}
		if err != nil {
			return err
		}
		ids = ids[:0]
		for _, entry := range streams[0].Messages {
			msg, err := decoder.Unmarshal(entry.Values)
			if err != nil {
				return err
			}
			got(msg)
			ids = append(ids, entry.ID)
		}
		if err := client.XAck(t.ctx, t.topic, group, ids...).Err(); err != nil {
			return err
		}
	}
	return nil
}

// loops runs f in so many goroutines until they end; an error ends the trial.
func (t *trial) loops(n int, f func(i int) error) (ended <-chan error) {
	done := make(chan error, 1)
	go func() {
		done <- parallel(n, func(i int) error {
			err := f(i)
			if err != nil {
				t.fail(err)
			}
			return err
		})
	}()
	return done
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
				return client.XAdd(t.ctx, &redis.XAddArgs{Stream: t.topic, Values: t.fields(i)}).Err()
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
					pipe.XAdd(context.Background(), &redis.XAddArgs{Stream: t.topic, Values: t.fields(i)})
				}
				return nil
			})
			return err
		})
		return errors.Join(err, t.stop(), t.readBack(), t.check(false))
	}
}

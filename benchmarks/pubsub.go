package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"

	"github.com/flaminco/redischannels"
)

const (
	// ahead is how many messages of a Pub/Sub trial may be under way: Redis drops a
	// client that does not read, which neither peer should have to prove here.
	ahead = 5_000
	// perSecond is the pace of the trials of latency.
	perSecond = 1_000
)

// pubSubPeer subscribes to the topic of a trial and calls got for each message until the
// context ends.
type pubSubPeer func(t *trial, ctx context.Context, got func(uuid string, size int)) (done <-chan error, err error)

// oursPubSub acknowledges one message after the other.
func oursPubSub(t *trial, ctx context.Context, got func(string, int)) (<-chan error, error) {
	sub, err := redischannels.NewPubSubSubscriber(redischannels.PubSubSubscriberConfig{
		Client:  t.connect(),
		Buffer:  2 * ahead,
		OnEvent: t.event,
	}, nil)
	if err != nil {
		return nil, err
	}
	messages, err := sub.Subscribe(ctx, t.topic)
	if err != nil {
		return nil, err
	}
	done := make(chan error, 1)
	go func() {
		for msg := range messages {
			got(msg.UUID, len(msg.Payload))
			msg.Ack()
		}
		done <- sub.Close()
	}()
	return done, nil
}

// barePubSub is a program with only go-redis: it takes the UUID out of the string and makes no
// message.
func barePubSub(t *trial, ctx context.Context, got func(string, int)) (<-chan error, error) {
	sub := t.connect().Subscribe(ctx, t.topic)
	if _, err := sub.Receive(ctx); err != nil {
		return nil, errors.Join(err, sub.Close())
	}
	messages := sub.Channel(redis.WithChannelSize(2 * ahead))
	done := make(chan error, 1)
	go func() {
		for {
			select {
			case msg := <-messages:
				if len(msg.Payload) < envelopeHead {
					t.fail(fmt.Errorf("a message of %d bytes", len(msg.Payload)))
					continue
				}
				got(msg.Payload[2:envelopeHead-1], len(msg.Payload)-envelopeHead)
			case <-ctx.Done():
				done <- sub.Close()
				return
			}
		}
	}()
	return done, nil
}

// envelopeHead is the part before the payload in the envelope of a message without metadata:
// version, length of the UUID, UUID, number of pairs.
const envelopeHead = 1 + 1 + len(uuidPrefix) + 12 + 1

// envelope is message i as it is published.
func (t *trial) envelope(i int) ([]byte, error) {
	return redischannels.EnvelopeMarshaler{}.Marshal("", message.NewMessage(uuid(i), t.payload))
}

// flood publishes by pipelines of a hundred, as fast as they are received.
func (p pubSubPeer) flood(t *trial) error {
	const batch = 100
	ctx, cancel := context.WithCancel(t.ctx)
	defer cancel()
	room := make(chan struct{}, ahead/batch)
	received := 0
	done, err := p(t, ctx, func(uuid string, size int) {
		t.countOne(uuid, size)
		if received++; received%batch == 0 {
			<-room
		}
	})
	if err != nil {
		return err
	}
	client := t.connect()
	if err := t.start(); err != nil {
		return err
	}
	err = calls(t.n, 1, batch, 0, func(from, n int) error {
		select {
		case room <- struct{}{}:
		case <-t.ctx.Done():
			return t.missing()
		}
		_, err := client.Pipelined(t.ctx, func(pipe redis.Pipeliner) error {
			for i := from; i < from+n; i++ {
				data, err := t.envelope(i)
				if err != nil {
					return err
				}
				pipe.Publish(t.ctx, t.topic, data)
			}
			return nil
		})
		return err
	})
	if err == nil {
		err = t.awaitAll()
	}
	err = errors.Join(err, t.stop())
	cancel()
	return errors.Join(err, <-done, t.check(false))
}

// latency publishes at a steady pace and takes percentiles of the time from publishing to the
// handler as the values, in microseconds.
func (p pubSubPeer) latency(percentiles ...float64) func(*trial) error {
	return func(t *trial) error {
		ctx, cancel := context.WithCancel(t.ctx)
		defer cancel()
		began := time.Now()
		sent, took := make([]atomic.Int64, t.n), make([]time.Duration, t.n)
		done, err := p(t, ctx, func(uuid string, size int) {
			now := time.Since(began)
			if i, err := number(uuid); err == nil && i < t.n {
				took[i] = now - time.Duration(sent[i].Load())
			}
			t.countOne(uuid, size)
		})
		if err != nil {
			return err
		}
		client := t.connect()
		if err := client.Ping(t.ctx).Err(); err != nil {
			return err
		}
		if err := t.start(); err != nil {
			return err
		}
		tick := time.NewTicker(time.Second / perSecond)
		defer tick.Stop()
		for i := 0; i < t.n && err == nil; i++ {
			var data []byte
			if data, err = t.envelope(i); err != nil {
				break
			}
			<-tick.C
			sent[i].Store(int64(time.Since(began)))
			err = client.Publish(t.ctx, t.topic, data).Err()
		}
		if err == nil {
			err = t.awaitAll()
		}
		err = errors.Join(err, t.stop())
		cancel()
		if err := errors.Join(err, <-done, t.check(false)); err != nil {
			return err
		}
		slices.Sort(took)
		t.values = nil
		for _, percentile := range percentiles {
			t.values = append(t.values, float64(took[min(int(float64(t.n)*percentile/100), t.n-1)].Microseconds()))
		}
		return nil
	}
}

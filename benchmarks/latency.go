package main

import (
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"
)

// senders is how many goroutines publish at a steady pace: one that waits for Redis could
// not send the next message in time.
const senders = 16

// latencyRow measures from publishing to the handler while so many messages per second are
// published. The aim is that of 1,000 per second.
func latencyRow(name string, perSecond int, d time.Duration) row {
	n := perSecond * int(d/time.Second)
	p99 := metric{name: "p99"}
	if perSecond == 1000 {
		p99 = metric{name: "p99", against: bare + " XREADGROUP", atMost: 1.1}
	}
	r := row{
		name: name, unit: fmt.Sprintf("µs at %s/s", decimal(float64(perSecond))), rate: perSecond,
		metrics: []metric{{name: "p50"}, p99, {name: "p99.9"}},
		peers: []peer{
			{name: ours.name, messages: n, run: latency(ours.endpoints)},
			{name: bare + " XREADGROUP", messages: n, run: latency(bareEndpoints)},
		},
	}
	if perSecond <= 1000 { // more than it can do
		r.peers = append(r.peers, peer{name: redisStream.name, messages: n, run: latency(redisStream.endpoints)})
	}
	return r
}

// endpoints are the two sides of a row of latency. receive ends when everything has arrived.
type endpoints struct {
	send    func(i int) error
	receive func(got func(*message.Message)) error
	close   func() error
}

// endpoints are a publisher and a subscription of the group.
func (l library) endpoints(t *trial) (endpoints, error) {
	pub, err := l.publisher(t)
	if err != nil {
		return endpoints{}, err
	}
	sub, err := l.subscriber(t, settings{})
	if err != nil {
		return endpoints{}, err
	}
	messages, err := sub.Subscribe(t.ctx, t.topic)
	return endpoints{
		send: func(i int) error { return pub.Publish(t.topic, message.NewMessage(uuid(i), t.payload)) },
		receive: func(got func(*message.Message)) error {
			for msg := range messages {
				got(msg)
				msg.Ack()
			}
			return nil
		},
		close: func() error { return errors.Join(sub.Close(), pub.Close()) },
	}, err
}

// bareEndpoints are XADD and a loop of blocked XREADGROUP, which acknowledges by batches.
func bareEndpoints(t *trial) (endpoints, error) {
	adding, reading := t.connect(), t.connect()
	return endpoints{
		send: func(i int) error {
			return adding.XAdd(t.ctx, &redis.XAddArgs{Stream: t.topic, Values: t.fields(i)}).Err()
		},
		receive: func(got func(*message.Message)) error { return bareLoop(t, reading, "bare", got) },
		close:   func() error { return nil },
	}, nil
}

// latency sends each message at its time. It takes from then on if the sender is still busy
// with the message before, so that what stands still lets all of them wait (no coordinated
// omission), and otherwise from when the sender wakes: timers are up to a millisecond late,
// which is no fault of the library. The first tenth opens connections and is not counted.
func latency(open func(*trial) (endpoints, error)) func(*trial) error {
	return func(t *trial) error {
		if err := t.group("0"); err != nil {
			return err
		}
		ends, err := open(t)
		if err != nil {
			return err
		}
		if err := t.start(); err != nil {
			return err
		}
		began := time.Now()
		sent := make([]atomic.Int64, t.n) // when, or when it was due, since began
		took := hdrhistogram.New(1, time.Minute.Nanoseconds(), 3)
		received := t.loops(1, func(int) error {
			return ends.receive(func(msg *message.Message) {
				now := time.Since(began)
				t.arrived(msg)
				if i, err := number(msg.UUID); err == nil && i >= t.n/10 {
					if err := took.RecordValue(now.Nanoseconds() - sent[i].Load()); err != nil {
						t.fail(err)
					}
				}
			})
		})
		err = t.pace(began, func(i int, due time.Duration) error {
			sent[i].Store(int64(due))
			return ends.send(i)
		})
		if err == nil {
			err = t.awaitAll()
		}
		if err == nil {
			err = t.awaitSettled()
		}
		err = errors.Join(err, t.stop(), ends.close(), <-received, t.check(true))
		t.values = nil
		for _, percentile := range []float64{50, 99, 99.9} {
			t.values = append(t.values, float64(took.ValueAtPercentile(percentile))/1000)
		}
		return err
	}
}

// pace calls send for every message at the time when it is due, counted from began, and returns
// that time, or when it has woken if it has slept until then.
func (t *trial) pace(began time.Time, send func(i int, due time.Duration) error) error {
	return parallel(senders, func(g int) error {
		timer := time.NewTimer(time.Hour)
		defer timer.Stop()
		for i := g; i < t.n; i += senders {
			due := time.Duration(i) * time.Second / time.Duration(t.row.rate)
			if wait := due - time.Since(began); wait > 0 {
				timer.Reset(wait)
				select {
				case <-timer.C:
				case <-t.ctx.Done():
					return t.missing()
				}
				due = time.Since(began)
			}
			if err := send(i, due); err != nil {
				return err
			}
		}
		return nil
	})
}

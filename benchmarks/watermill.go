package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
)

// library is an implementation of Watermill's interfaces. Both get the same work.
type library struct {
	name       string
	publisher  func(t *trial) (message.Publisher, error)
	subscriber func(t *trial, s settings) (message.Subscriber, error)
}

// settings are the settings of a row's subscriber. The zero value is one message at a time.
type settings struct {
	maxInFlight int
	keyed       bool // keep the order of keys, those of key
	fanOut      bool // from the beginning, without a group
}

// key returns the ordering key of a message, which is one of as many as keys says.
func key(msg *message.Message) string { return msg.UUID[len(msg.UUID)-2:] }

// subscribe receives and acknowledges one message after the other, in so many subscriptions
// of one group.
func (l library) subscribe(subscriptions int) func(*trial) error {
	return func(t *trial) error {
		if err := t.fill(); err != nil {
			return err
		}
		return l.subscribeFilled(t, subscriptions)
	}
}

// subscribeFilled is subscribe for a stream that has its messages.
func (l library) subscribeFilled(t *trial, subscriptions int) error {
	var subs subscribers
	for range subscriptions {
		sub, err := l.subscriber(t, settings{})
		if err != nil {
			return err
		}
		subs = append(subs, sub)
	}
	if err := t.start(); err != nil {
		return err
	}
	var subscribing sync.WaitGroup
	subscribing.Add(subscriptions)
	received := t.loops(subscriptions, func(i int) error {
		messages, err := subs[i].Subscribe(t.ctx, t.topic)
		subscribing.Done()
		if err != nil {
			return err
		}
		for msg := range messages {
			t.arrived(msg)
			msg.Ack()
		}
		return nil
	})
	subscribing.Wait()                                // the others may receive everything before that
	return errors.Join(l.finish(t, subs), <-received) // finish closes the channels
}

// subscribers are closed together.
type subscribers []message.Subscriber

func (s subscribers) Close() error {
	return parallel(len(s), func(i int) error { return s[i].Close() })
}

// finish ends a trial of subscribing when everything is acknowledged.
func (l library) finish(t *trial, sub io.Closer) error {
	err := t.awaitAll()
	if err == nil {
		err = t.awaitSettled()
	}
	return errors.Join(err, t.stop(), sub.Close(), t.check(true))
}

// handle lets a handler take some time for each message, as many at once as it is given.
func (l library) handle(s settings, work time.Duration) func(*trial) error {
	return func(t *trial) error {
		if err := t.fill(); err != nil {
			return err
		}
		sub, err := l.subscriber(t, s)
		if err != nil {
			return err
		}
		if err := t.start(); err != nil {
			return err
		}
		messages, err := sub.Subscribe(t.ctx, t.topic)
		if err != nil {
			return err
		}
		received := make(chan struct{})
		go func() {
			defer close(received)
			for msg := range messages {
				handle := func() {
					if s.keyed {
						t.inOrder(msg.UUID)
					}
					t.arrived(msg)
					msg.Ack()
				}
				if work == 0 {
					handle()
				} else {
					time.AfterFunc(work, handle)
				}
			}
		}()
		err = l.finish(t, sub)
		<-received // finish has closed the subscriber, and with it the channel
		return err
	}
}

// route runs Watermill's router with a handler that does nothing.
func (l library) route(t *trial) error {
	if err := t.fill(); err != nil {
		return err
	}
	sub, err := l.subscriber(t, settings{})
	if err != nil {
		return err
	}
	router, err := message.NewRouter(message.RouterConfig{CloseTimeout: 10 * time.Second}, watermill.NopLogger{})
	if err != nil {
		return err
	}
	router.AddConsumerHandler("bench", t.topic, sub, func(msg *message.Message) error {
		t.arrived(msg)
		return nil
	})
	if err := t.start(); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(t.ctx)
	defer cancel()
	ran := make(chan error, 1)
	go func() { ran <- router.Run(ctx) }()
	err = t.awaitAll()
	if err == nil {
		err = t.awaitSettled()
	}
	err = errors.Join(err, t.stop(), router.Close(), <-ran)
	return errors.Join(err, sub.Close(), t.check(true))
}

// publish publishes by so many goroutines, so many messages per call. The messages are made
// before and used again with another UUID, so that the row measures the publisher and not
// what a message costs.
func (l library) publish(goroutines, batch int) func(*trial) error {
	return func(t *trial) error {
		pub, err := l.publisher(t)
		if err != nil {
			return err
		}
		if err := t.start(); err != nil {
			return err
		}
		err = t.publishAll(pub, goroutines, batch)
		return errors.Join(err, t.stop(), pub.Close(), t.readBack(), t.check(false))
	}
}

func (t *trial) publishAll(pub message.Publisher, goroutines, batch int) error {
	return parallel(goroutines, func(g int) error {
		messages := make([]*message.Message, batch)
		for i := range messages {
			messages[i] = message.NewMessage("", t.payload)
		}
		return calls(t.n, goroutines, batch, g, func(from, n int) error {
			for i := range n {
				messages[i].UUID = uuid(from + i)
			}
			return pub.Publish(t.topic, messages[:n]...)
		})
	})
}

// publishThenSubscribe has the shape of ThreeDotsLabs/watermill-benchmark: many goroutines
// publish one by one, and then one subscription receives everything.
func (l library) publishThenSubscribe(goroutines int) func(*trial) error {
	return func(t *trial) error {
		pub, err := l.publisher(t)
		if err != nil {
			return err
		}
		began := time.Now()
		err = t.publishAll(pub, goroutines, 1)
		published := float64(t.n) / time.Since(began).Seconds()
		if err := errors.Join(err, pub.Close(), t.group("0")); err != nil {
			return err
		}
		err = l.subscribeFilled(t, 1)
		t.values = append(t.values, published)
		return err
	}
}

// calls divides n messages among goroutines and their calls, and makes those of goroutine g.
func calls(n, goroutines, batch, g int, call func(from, n int) error) error {
	for from := g * batch; from < n; from += goroutines * batch {
		if err := call(from, min(batch, n-from)); err != nil {
			return err
		}
	}
	return nil
}

// idle counts the commands per second of subscriptions to which nothing happens, a while
// after each of them has received a message: those that are sent, and those that the server executes
// for them, those of scripts included.
func (l library) idle(subscriptions int) func(*trial) error {
	return func(t *trial) error {
		sub, err := l.subscriber(t, settings{})
		if err != nil {
			return err
		}
		pub, err := l.publisher(t)
		if err != nil {
			return err
		}
		var receivers []func()
		for i := range subscriptions {
			topic := fmt.Sprintf("%s:%d", t.topic, i)
			messages, err := sub.Subscribe(t.ctx, topic)
			if err != nil {
				return err
			}
			receivers = append(receivers, func() {
				for msg := range messages {
					t.arrived(msg)
					msg.Ack()
				}
			})
			if err := pub.Publish(topic, message.NewMessage(uuid(i), t.payload)); err != nil {
				return err
			}
		}
		received := make(chan error, 1)
		go func() {
			received <- parallel(subscriptions, func(i int) error {
				receivers[i]()
				return nil
			})
		}()
		err = t.awaitAll()
		pause(t.ctx, t.window/5)
		err = errors.Join(err, t.start())
		before, failed := t.server.Reads(t.ctx)
		err = errors.Join(err, failed)
		pause(t.ctx, t.window)
		after, failed := t.server.Reads(t.ctx)
		err = errors.Join(err, failed, t.stop(), t.ctx.Err(), sub.Close(), pub.Close(), <-received, t.check(false))
		sent, executed := after-before-1, t.commands-2 // without the two INFO
		t.values = []float64{float64(sent) / t.elapsed.Seconds(), float64(executed) / t.elapsed.Seconds()}
		return err
	}
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

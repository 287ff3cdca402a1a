package redischannels

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/flaminco/redischannels/internal/pubsub"
)

// pubSubSubscription is what one Subscribe call receives. Its goroutines:
//
//	run      owns the others; ends the subscription in order
//	deliver  hands messages over, one at a time; as many as MaxInFlight
//
// Messages come through the queue, into which the connection's goroutine pushes.
type pubSubSubscription struct {
	owner   *PubSubSubscriber
	from    origin
	sink    *pubsub.Sink
	out     chan *message.Message // unbuffered: what is in it would be neither held nor handled
	matches atomic.Pointer[origin]

	// fetch ends first, with stop or with the subscriber; then abandoned is closed, if handlers are still
	// running at DrainTimeout.
	fetch     context.Context
	stop      context.CancelFunc
	abandoned chan struct{}
	handlers  sync.WaitGroup

	dropped, undecodable, passed, lost tally
}

func newPubSubSubscription(ctx context.Context, owner *PubSubSubscriber, label string) *pubSubSubscription {
	s := &pubSubSubscription{
		owner:       owner,
		from:        origin{topic: label, values: context.WithoutCancel(ctx)},
		out:         make(chan *message.Message),
		abandoned:   make(chan struct{}),
		dropped:     tally{subject: subject{EventDropped, label}},
		undecodable: tally{subject: subject{EventUndecodable, label}},
		passed:      tally{subject: subject{EventSkipped, label}},
		lost:        tally{subject: subject{EventAbandoned, label}},
	}
	s.fetch, s.stop = context.WithCancel(owner.life.Context())
	s.sink = &pubsub.Sink{Queue: pubsub.NewQueue(pubsub.QueueConfig{
		Messages:   owner.cfg.Buffer,
		Bytes:      owner.cfg.BufferBytes,
		DropNewest: owner.cfg.Drop == DropNewest,
		Dropped:    func(n int) { owner.reports.count(&s.dropped, n, nil) },
	})}
	return s
}

// abort releases a subscription that did not become live.
func (s *pubSubSubscription) abort() {
	s.stop()
	s.owner.mux.Unsubscribe(s.sink)
	s.sink.Queue.Close()
}

// run works until stop and then ends everything in order.
func (s *pubSubSubscription) run() {
	for range s.owner.cfg.MaxInFlight {
		s.handlers.Go(s.deliver)
	}
	<-s.fetch.Done()
	s.owner.mux.Unsubscribe(s.sink)
	if n := s.sink.Queue.Close(); n > 0 {
		s.owner.reports.count(&s.lost, n, errors.New("the subscription ended before they were handed over"))
	}
	s.drain()
}

// drain waits for the handlers, up to DrainTimeout.
func (s *pubSubSubscription) drain() {
	done := make(chan struct{})
	var waiting sync.WaitGroup
	waiting.Go(func() {
		s.handlers.Wait()
		close(done)
	})
	if pause(done, s.owner.cfg.DrainTimeout) {
		close(s.abandoned)
	}
	waiting.Wait()
}

// deliver hands messages to the application until fetch ends.
func (s *pubSubSubscription) deliver() {
	for s.fetch.Err() == nil {
		m, ok := s.sink.Queue.Pop()
		if ok {
			s.handle(m)
			continue
		}
		select {
		case <-s.sink.Queue.Ready:
		case <-s.fetch.Done():
		}
	}
}

// handle hands one message over until it is acknowledged or given up.
func (s *pubSubSubscription) handle(m pubsub.Message) {
	from := s.originOf(m.Channel)
	uuid := ""
	for count := 1; ; count++ {
		msg, err := s.decode(from.topic, m)
		if err != nil {
			s.owner.reports.count(&s.undecodable, 1, err)
			return
		}
		if uuid != "" {
			msg.UUID = uuid // one that was made up stays the same
		}
		uuid = msg.UUID
		d := &delivery{from: from, count: count}
		msg.SetContext(d)
		select {
		case s.out <- msg:
		case <-s.fetch.Done():
			s.owner.reports.count(&s.lost, 1, errors.New("the subscription ended before it was handed over"))
			return
		}
		select {
		case <-msg.Acked():
			d.end()
			return
		case <-msg.Nacked():
			d.end()
		case <-s.abandoned:
			d.end()
			s.owner.reports.count(&s.lost, 1, errors.New("not settled within DrainTimeout"))
			return
		}
		if v := d.verdict.Load(); v != nil && v.handBack && s.fetch.Err() == nil {
			count--
			continue
		}
		if !s.again(d, uuid) {
			return
		}
	}
}

// again waits until a nacked message is due again; false means that it is given up.
func (s *pubSubSubscription) again(d *delivery, uuid string) bool {
	cfg := &s.owner.cfg
	v := d.verdict.Load()
	delay := cfg.NackBackoff.delay(d.count, rand.Float64())
	switch {
	case v != nil && v.reject:
		s.owner.reports.count(&s.passed, 1, fmt.Errorf("message %q was rejected: %s", uuid, v.reason))
		return false
	case cfg.MaxDeliveries > 0 && d.count >= cfg.MaxDeliveries:
		s.owner.reports.count(&s.passed, 1, fmt.Errorf("message %q was delivered %d times without success", uuid, d.count))
		return false
	case v != nil && v.retryAfter:
		delay = v.delay
	}
	if !pause(s.fetch.Done(), delay) {
		s.owner.reports.count(&s.lost, 1, errors.New("the subscription ended before it was redelivered"))
		return false
	}
	return true
}

// originOf tells where a message came from. With a pattern that is the channel, and
// most messages come from the same one as the message before.
func (s *pubSubSubscription) originOf(channel string) *origin {
	topic := strings.TrimPrefix(channel, s.owner.cfg.ChannelPrefix)
	if topic == s.from.topic {
		return &s.from
	}
	if last := s.matches.Load(); last != nil && last.topic == topic {
		return last
	}
	from := &origin{topic: topic, values: s.from.values}
	s.matches.Store(from)
	return from
}

// decode returns the message, or a *DecodeError.
func (s *pubSubSubscription) decode(topic string, m pubsub.Message) (msg *message.Message, err error) {
	fail := func(reason string, err error) error {
		return &DecodeError{Topic: topic, Reason: reason, Err: err}
	}
	cfg := &s.owner.cfg
	if cfg.MaxPayload > 0 && m.Size > cfg.MaxPayload {
		return nil, fail(fmt.Sprintf("has %d bytes, more than MaxPayload %d", m.Size, cfg.MaxPayload), nil)
	}
	defer func() {
		if v := recover(); v != nil {
			msg, err = nil, fail(fmt.Sprintf("the unmarshaler panicked: %v", v), nil)
		}
	}()
	msg, err = cfg.Unmarshaler.Unmarshal(topic, m.Payload)
	switch {
	case err != nil:
		if _, ok := err.(*DecodeError); !ok {
			err = fail("the unmarshaler failed", err)
		}
		return nil, err
	case msg == nil:
		return nil, fail("the unmarshaler returned neither message nor error", nil)
	}
	return msg, nil
}

// Package foreign makes a source.Source of any Watermill subscriber.
package foreign

import (
	"context"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/flaminco/redischannels/internal/source"
)

// keepReturned is how long a message that a reader has returned waits for the next reader of
// this process, before the transport gets it back.
const keepReturned = time.Second

// Config configures [Open].
type Config struct {
	Topic string
	// Patience is how long Close waits for the subscriber to end the subscription.
	Patience time.Duration
	// Skipped is called for a message that cannot be decoded, where the transport has no
	// dead letters. The message is acknowledged.
	Skipped func(id string, err error)
	// Left is called when Close returns although the subscription has not ended.
	Left func()
}

// Source is a subscription of a Watermill subscriber. It has no goroutine of its own, except
// those of timers, which last for a Nack. Messages of the consumers of this module (see inner)
// support every end; others can only be acknowledged, or nacked with the back-off of Redelivery.
type Source struct {
	cfg    Config
	origin source.Origin
	in     <-chan *message.Message
	life   context.Context // of the subscription
	stop   context.CancelFunc
	wake   chan struct{} // there is something in returned

	mu       sync.Mutex
	closed   bool
	returned []delivery  // before what is in in
	timer    *time.Timer // gives returned back to the transport
	retries  retries
}

// delivery is a message that the application does not have.
type delivery struct {
	msg   *message.Message
	split int // see source.Outcome
}

// Open subscribes. The subscription has neither the values nor the end of ctx; if ctx ends
// before subscribe has returned, Open returns its error.
func Open(ctx context.Context, subscribe func(context.Context) (<-chan *message.Message, error), cfg Config) (*Source, error) {
	s := &Source{cfg: cfg, wake: make(chan struct{}, 1)}
	s.origin = source.Origin{Topic: cfg.Topic, Values: context.Background(), Owner: s}
	s.life, s.stop = context.WithCancel(context.Background())
	detach := context.AfterFunc(ctx, s.stop)
	in, err := subscribe(s.life)
	s.in = in
	if !detach() && err == nil {
		err = ctx.Err()
		_ = s.Close(context.WithoutCancel(ctx)) // nil, as it is not bounded by a context
	}
	if err != nil {
		s.stop()
		return nil, err
	}
	return s, nil
}

// NextBatch implements source.Source. The size of a message is that of its payload.
func (s *Source) NextBatch(ctx context.Context, dst []*source.Attempt, limits source.Limits) ([]*source.Attempt, error) {
	d, err := s.next(ctx, limits.Try)
	if d.msg == nil {
		return dst, err
	}
	dst = append(dst, s.attempt(d, limits.Offer))
	if limits.Max == 1 || d.split == source.Single {
		return dst, nil
	}
	waiting := ctx
	if limits.Wait > 0 {
		var cancel context.CancelFunc
		waiting, cancel = context.WithTimeout(ctx, limits.Wait)
		defer cancel()
	}
	bytes := len(d.msg.Payload)
	for n := 1; n < limits.Max && (limits.Bytes == 0 || bytes < limits.Bytes); n++ {
		another, _ := s.next(waiting, limits.Wait <= 0) // the next call returns the error
		if another.msg == nil {
			break
		}
		bytes += len(another.msg.Payload)
		if another.split != d.split || limits.Bytes > 0 && bytes > limits.Bytes {
			s.putFirst(another)
			break
		}
		dst = append(dst, s.attempt(another, limits.Offer))
	}
	return dst, nil
}

// next returns the next message, or none where try is set and none is ready.
func (s *Source) next(ctx context.Context, try bool) (delivery, error) {
	if s.life.Err() != nil {
		return delivery{}, source.ErrClosed
	}
	if err := ctx.Err(); err != nil && !try {
		return delivery{}, err
	}
	for {
		if d, ok := s.takeReturned(); ok {
			return d, nil
		}
		select {
		case msg, open := <-s.in:
			return s.received(msg, open)
		default:
		}
		if try {
			return delivery{}, nil
		}
		select {
		case msg, open := <-s.in:
			return s.received(msg, open)
		case <-s.wake:
		case <-ctx.Done():
			return delivery{}, ctx.Err()
		case <-s.life.Done():
			return delivery{}, source.ErrClosed
		}
	}
}

func (s *Source) received(msg *message.Message, open bool) (delivery, error) {
	switch {
	case !open && s.life.Err() != nil:
		return delivery{}, source.ErrClosed
	case !open:
		return delivery{}, source.ErrEnded
	}
	d := delivery{msg: msg}
	if a := inner(msg); a != nil {
		d.split = a.Split
	}
	return d, nil
}

// inner returns the attempt that a message stands for, if it is one of a Subscriber of this module.
// The context alone does not say so: a transport within the process may keep the context in
// which the message of another subscription is handled, and this one is published.
func inner(msg *message.Message) *source.Attempt {
	if a := source.FromContext(msg.Context()); a != nil && a.Message == msg {
		return a
	}
	return nil
}

func (s *Source) attempt(d delivery, offer bool) *source.Attempt {
	a := &source.Attempt{From: &s.origin, Topic: s.cfg.Topic, Split: d.split, Message: d.msg}
	if in := inner(d.msg); in != nil {
		a.Topic, a.ID, a.Count = in.Topic, in.ID, in.Count
	} else if source.FromContext(d.msg.Context()) != nil {
		d.msg.SetContext(source.NewContext(d.msg.Context(), nil)) // it is that of another message
	}
	if !offer {
		a.StartNow()
	}
	return a
}

// takeReturned takes the first message that was returned.
func (s *Source) takeReturned() (d delivery, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.returned) == 0 {
		return delivery{}, false
	}
	d = s.returned[0]
	s.returned[0] = delivery{}
	if s.returned = s.returned[1:]; len(s.returned) > 0 {
		signal(s.wake) // for the next caller
	} else {
		s.returned = nil
		if s.timer != nil {
			s.timer.Stop()
			s.timer = nil
		}
	}
	return d, true
}

// putFirst returns a message that was not delivered.
func (s *Source) putFirst(d delivery) {
	s.put(d, func() { s.returned = append([]delivery{d}, s.returned...) })
}

// putLast returns a message, behind those that were returned before.
func (s *Source) putLast(d delivery) {
	s.put(d, func() { s.returned = append(s.returned, d) })
}

func (s *Source) put(d delivery, put func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		giveBack(d.msg)
		return
	}
	put()
	if s.timer == nil {
		s.timer = time.AfterFunc(keepReturned, s.giveBackReturned)
	}
	signal(s.wake)
}

// giveBackReturned gives the messages that were returned, but not read, back to
// the transport.
func (s *Source) giveBackReturned() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range s.returned {
		giveBack(d.msg)
	}
	s.returned, s.timer = nil, nil
}

// giveBack gives a message back to the transport. Where that counts deliveries, this one is
// not counted.
func giveBack(msg *message.Message) {
	if a := inner(msg); a != nil {
		a.Request(source.Outcome{Kind: source.Release})
	}
	msg.Nack()
}

// Close implements source.Source. The messages that the application has are not its concern:
// the subscriber waits for them, or does not.
func (s *Source) Close(ctx context.Context) error {
	s.stop()
	s.mu.Lock()
	s.closed = true
	if s.timer != nil {
		s.timer.Stop()
	}
	s.mu.Unlock()
	s.giveBackReturned()
	s.retries.flush()
	timer := time.NewTimer(s.cfg.Patience)
	defer timer.Stop()
	for s.in != nil {
		select {
		case msg, open := <-s.in:
			if !open {
				return nil
			}
			giveBack(msg)
		case <-timer.C:
			s.cfg.Left()
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

var _ source.Source = (*Source)(nil)

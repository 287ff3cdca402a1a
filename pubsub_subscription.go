package redischannels

import (
	"context"
	"fmt"
	"strings"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/flaminco/redischannels/internal/pubsub"
	"github.com/flaminco/redischannels/internal/source"
)

// pubSubSubscription is one source of a PubSubSubscriber, with its counters. It is the observer
// of the source.
type pubSubSubscription struct {
	*pubsub.Subscription
	reports *eventQueue
	detach  func() bool // from the end of the PubSubSubscriber

	owner    *PubSubSubscriber
	topic    string
	began    uint64 // outages of the owner that were over before
	counters counters
}

func (s *PubSubSubscriber) newSubscription(ctx context.Context, label string) *pubSubSubscription {
	sub := &pubSubSubscription{reports: s.reports, owner: s, topic: label, began: s.reconnects.Load()}
	sub.Subscription = pubsub.NewSubscription(pubsub.SubscriptionConfig{
		Mux:   s.mux,
		Topic: func(channel string) string { return strings.TrimPrefix(channel, s.cfg.ChannelPrefix) },
		Origin: &source.Origin{
			Topic: label, Values: context.WithoutCancel(ctx), MaxDeliveries: max(0, s.cfg.MaxDeliveries),
			Watcher: newWatcher(s.cfg.Instrumentation, true, func(err error) { sub.count(EventError, 1, err) }),
		},
		Buffer: s.cfg.Buffer, BufferBytes: s.cfg.BufferBytes, DropNewest: s.cfg.Drop == DropNewest,
		MaxInFlight: s.cfg.MaxInFlight, MaxDeliveries: max(0, s.cfg.MaxDeliveries), Backoff: s.cfg.NackBackoff.after,
		DrainTimeout: s.cfg.DrainTimeout, Observer: sub,
	})
	return sub
}

// The methods of pubsub.SubscriptionObserver.

func (s *pubSubSubscription) Delivered(count int)        { s.counters.delivery(count) }
func (s *pubSubSubscription) Dropped(n int)              { s.count(EventDropped, n, nil) }
func (s *pubSubSubscription) Undecodable(err error)      { s.count(EventUndecodable, 1, err) }
func (s *pubSubSubscription) Skipped(err error)          { s.count(EventSkipped, 1, err) }
func (s *pubSubSubscription) Abandoned(n int, err error) { s.count(EventAbandoned, n, err) }

func (s *pubSubSubscription) count(kind EventKind, n int, err error) {
	e := Event{Kind: kind, Topic: s.topic, Count: n, Err: err}
	s.counters.event(e)
	s.reports.Tally(e)
}

// snapshot implements snapshotter.
func (s *pubSubSubscription) snapshot() (stats SubscriptionStats, ok bool) {
	select {
	case <-s.Done():
		return stats, false
	default:
	}
	state := StateLive
	switch {
	case s.Reading().Err() != nil:
		state = StateClosing
	case s.owner.down.Load():
		state = StateDisconnected
	}
	sizes := s.Sizes()
	of := func(kind EventKind) uint64 { return s.counters.events[kind].Load() }
	return SubscriptionStats{
		Topic: s.topic, State: state,
		InFlight: sizes.InFlight, Buffered: sizes.Buffered, BackingOff: sizes.BackingOff, Bytes: sizes.Bytes,
		Delivered: s.counters.delivered.Load(), Redelivered: s.counters.redelivered.Load(),
		Skipped:    of(EventSkipped) + of(EventUndecodable),
		Dropped:    of(EventDropped),
		Reconnects: s.owner.reconnects.Load() - s.began,
	}, true
}

// message returns the message of an attempt, or a *DecodeError. Its UUID stays the same when it
// is redelivered, even if the library has generated it.
func (s *PubSubSubscriber) message(a *source.Attempt) (msg *message.Message, err error) {
	fail := func(reason string, err error) error {
		return &DecodeError{Topic: a.Topic, Reason: reason, Err: err}
	}
	if size := pubsub.MessageOf(a).Size; s.cfg.MaxPayload > 0 && size > s.cfg.MaxPayload {
		return nil, fail(tooLarge(size, s.cfg.MaxPayload), nil)
	}
	defer func() {
		if v := recover(); v != nil {
			msg, err = nil, fail(fmt.Sprintf("the unmarshaler panicked: %v", v), nil)
		}
	}()
	msg, err = s.cfg.Unmarshaler.Unmarshal(a.Topic, a.Payload)
	switch {
	case err != nil:
		if !isDecodeError(err) {
			err = fail("the unmarshaler failed", err)
		}
		return nil, err
	case msg == nil:
		return nil, fail("the unmarshaler returned neither message nor error", nil)
	}
	if a.ID == "" {
		a.ID = msg.UUID
	}
	msg.UUID = a.ID
	return msg, nil
}

package redischannels

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"

	"github.com/flaminco/redischannels/internal/consumer"
	"github.com/flaminco/redischannels/internal/housekeeper"
	"github.com/flaminco/redischannels/internal/keys"
	"github.com/flaminco/redischannels/internal/source"
	"github.com/flaminco/redischannels/internal/stream"
	"github.com/flaminco/redischannels/internal/tail"
	"github.com/flaminco/redischannels/internal/window"
)

// engine is a source of this library: a consumer, or a fan-out subscription.
type engine interface {
	offerer
	source.Adjuster
	Stop()
	Done() <-chan struct{}
	Sizes() window.Sizes
	Down() bool
	Paused() bool
	Closing() bool
	ConsumerName() string
}

// subscription is one source of a Subscriber, with its events and counters. It is the observer of
// the source.
type subscription struct {
	engine
	topic, group string
	client       redis.UniversalClient
	detach       func() bool   // from the end of the Subscriber
	finished     chan struct{} // closed when all has ended, including events
	decoder      *entryDecoder
	log          watermill.LoggerAdapter
	counters     counters
	reports      *eventQueue
	inMemory     sync.Once           // see InMemory
	keeper       *housekeeper.Handle // for delayed messages of the topic
}

// sourceOptions are the options of a source that are not in the configuration.
type sourceOptions struct {
	reader bool // it is called when the application can receive messages, and gaps are errors
}

// newSubscription returns a subscription whose engine is not open.
func (s *Subscriber) newSubscription(ctx context.Context, topic string, from Position, options sourceOptions) (*subscription, error) {
	fields := watermill.LogFields{"topic": topic}
	if s.cfg.ConsumerGroup != "" {
		fields["consumer_group"] = s.cfg.ConsumerGroup
	}
	sub := &subscription{
		topic: topic, group: s.cfg.ConsumerGroup, client: s.cfg.Client, finished: make(chan struct{}),
		decoder: newEntryDecoder(topic, s.cfg.Unmarshaler, s.cfg.MaxPayload), log: s.logger.With(fields),
	}
	sub.reports = newEventQueue(func(e Event) { logEvent(sub.log, e) }, s.cfg.OnEvent, sub.log, false)
	origin := &source.Origin{
		Topic: topic, Group: s.cfg.ConsumerGroup, Entries: true, Values: context.WithoutCancel(ctx), Timeout: s.cfg.HandlerTimeout,
		HideCauses: s.cfg.HideHandlerErrors, MaxDeliveries: max(0, s.cfg.MaxDeliveries),
		Watcher: newWatcher(s.cfg.Instrumentation, false, sub.instrumentFailed),
	}
	// Its reports are not of this subscription alone, and are not counted.
	observer := keeperObserver{func(e Event) {
		e.Count = len(e.EntryIDs)
		sub.reports.Post(e)
	}}
	if s.cfg.ConsumerGroup == "" {
		sub.keeper = housekeeper.Open(s.cfg.caller, observer)
		sub.engine = s.newFanOut(sub, origin, options)
		return sub, nil
	}
	of, err := sideKeys(topic, s.cfg.SideKeys, s.cfg.Client)
	if err != nil {
		return nil, err
	}
	dead, err := deadLetterTopic(topic, s.cfg.DeadLetterTopic, s.cfg.SideKeys, s.cfg.Client)
	if err != nil {
		return nil, err
	}
	sub.keeper = housekeeper.Open(s.cfg.caller, observer)
	sub.engine = s.newConsumer(sub, of, origin, from, dead, options)
	return sub, nil
}

func (s *Subscriber) newFanOut(sub *subscription, origin *source.Origin, options sourceOptions) *tail.Subscription {
	return tail.NewSubscription(s.readers, tail.SubscriptionConfig{
		Topic: sub.topic, Origin: origin, Window: s.windowConfig(options),
		MaxDeliveries: max(0, s.cfg.MaxDeliveries), Backoff: s.cfg.NackBackoff.after, Prepare: s.preparer(sub.decoder),
		DrainTimeout: s.cfg.Tuning.DrainTimeout, StallAfter: s.stallAfter(options), Gaps: options.reader, Observer: sub,
	})
}

func (s *Subscriber) newConsumer(sub *subscription, of keys.Topic, origin *source.Origin, from Position, dead string, options sourceOptions) *consumer.Consumer {
	t := s.cfg.Tuning
	return consumer.New(consumer.Config{
		Client: s.cfg.Client, Shared: s.cfg.caller,
		Topic: of, Group: sub.group, Start: from.groupStart(),
		Name:    func() (string, error) { return consumerName(s.cfg.Consumer) },
		MinIdle: t.MinIdle, ClaimInterval: t.ClaimInterval, BlockTime: t.BlockTime, ConsumerTimeout: t.ConsumerTimeout,
		DrainTimeout: t.DrainTimeout, StallAfter: s.stallAfter(options),
		Origin: origin, Window: s.windowConfig(options),
		MaxDeliveries: max(0, s.cfg.MaxDeliveries), Backoff: s.cfg.NackBackoff.after, Prepare: s.preparer(sub.decoder),
		DeadTopic: dead, DeadTrim: s.cfg.DeadLetterRetention.trim(),
		DeferAfter: s.cfg.DeferAfter, MaxDeferred: s.cfg.deferred(),
		OnClient: s.cfg.OnReadClient, Observer: sub,
		OnDue: sub.keeper.Due,
	})
}

func (s *Subscriber) windowConfig(options sourceOptions) window.Config {
	keyed := s.cfg.OrderingKey != nil && s.cfg.MaxInFlight > 1
	return window.Config{
		MaxInFlight:   s.cfg.MaxInFlight,
		Ordered:       s.cfg.MaxInFlight == 1,
		Keyed:         keyed,
		Prefetch:      max(0, s.cfg.Tuning.Prefetch),
		PrefetchBytes: s.cfg.Tuning.PrefetchBytes,
		OnDemand:      options.reader,
	}
}

// stallAfter is the time after which waiting callers are reported although there are messages.
// Readers ask for messages when they can receive them; a handler of a Subscriber may just be
// slow.
func (s *Subscriber) stallAfter(options sourceOptions) time.Duration {
	if options.reader {
		return s.cfg.Tuning.BlockTime
	}
	return max(4*s.cfg.Tuning.MinIdle, s.cfg.Tuning.BlockTime)
}

// message returns the message of an attempt, or a *DecodeError.
func (s *subscription) message(a *source.Attempt) (*message.Message, error) {
	if a.Message != nil {
		return a.Message, nil
	}
	return s.decoder.message(&a.Entry)
}

// preparer returns a function that sets the ordering keys of items, or nil without an
// OrderingKey. An item that cannot be decoded has no key; decoding fails again when it is
// delivered.
func (s *Subscriber) preparer(decoder *entryDecoder) func(it *window.Item) {
	if s.cfg.OrderingKey == nil || s.cfg.MaxInFlight == 1 {
		return nil
	}
	return func(it *window.Item) {
		entry := it.Original()
		msg, err := decoder.message(&entry)
		if err != nil {
			return
		}
		defer func() {
			if r := recover(); r != nil {
				it.Reason = fmt.Sprintf("OrderingKey panicked: %v", r)
			}
		}()
		it.Key = s.cfg.OrderingKey(msg)
		it.Message = msg
	}
}

// start opens the engine.
func (s *subscription) start(ctx context.Context, from Position) error {
	switch e := s.engine.(type) {
	case *tail.Subscription:
		err := e.Open(ctx, from.start())
		if err == nil {
			logSubscribed(s.log, "Subscribed without a consumer group", watermill.LogFields{"from": from})
		}
		return err
	case *consumer.Consumer:
		existed, err := e.Open(ctx)
		if err == nil {
			s.logGroup(ctx, existed, from)
		}
		return err
	}
	return nil
}

// end ends the duties beside the engine, which has ended. If Redis is silent it waits for the
// housekeeper, as for other commands.
func (s *subscription) end() {
	_ = s.keeper.Close()
	s.reports.Close()
}

// logGroup writes the line of Subscribe in a group. It shows a misspelled name, which creates a
// new group that reads messages which another group has handled.
func (s *subscription) logGroup(ctx context.Context, existed bool, from Position) {
	if _, silent := s.log.(watermill.NopLogger); silent {
		return // the statistics cost a command
	}
	text, fields := "Subscribed: the consumer group exists and resumes where it is, whatever StartFrom is", watermill.LogFields{"consumer": s.ConsumerName()}
	if !existed {
		text = "Subscribed: the consumer group was created"
		fields["from"] = from
	}
	group := &stream.Group{Client: s.client, Key: s.topic, Name: s.group}
	if found, err := group.Lag(ctx, 0); err == nil {
		fields["last_delivered"], fields["pending"], fields["lag"] = found.LastDelivered, found.Pending, found.Lag
		if found.More {
			delete(fields, "lag")
			fields["lag_at_least"] = found.Lag
		}
	}
	logSubscribed(s.log, text, fields)
}

// report counts an event and adds it to the event queue. In a group it does not wait: the caller
// may hold a lock, and leases must be renewed and acks written meanwhile. Without a group the
// caller waits, because a gap is reported before the entries behind it are delivered.
func (s *subscription) report(e Event) {
	e.Topic, e.Group, e.Consumer = s.topic, s.group, s.ConsumerName()
	if e.Count == 0 {
		e.Count = len(e.EntryIDs)
	}
	s.counters.event(e)
	if s.group == "" {
		s.reports.PostAndWait(e)
		return
	}
	s.reports.Post(e)
}

// logEvent writes an event of a stream to the logger.
func logEvent(log watermill.LoggerAdapter, e Event) {
	fields := watermill.LogFields{}
	if e.Consumer != "" {
		fields["consumer"] = e.Consumer
	}
	if len(e.EntryIDs) > 0 {
		fields["entries"] = e.Count
		fields["first_entry"] = e.EntryIDs[0]
	}
	if e.Position != "" {
		fields["position"] = e.Position
	}
	if e.Duration > 0 {
		fields["duration"] = e.Duration.String()
	}
	text := "Redis stream subscription: " + e.Kind.String()
	switch e.Kind {
	case EventReconnected, EventRecovered, EventReleased:
		log.Info(text, fields)
	default:
		log.Error(text, e.Err, fields)
	}
}

// Stop begins the end. It does not wait, and from then on the duties do not wait for OnEvent.
func (s *subscription) Stop() {
	s.reports.End()
	s.engine.Stop()
}

// Close implements source.Source. It returns after every event was reported.
func (s *subscription) Close(ctx context.Context) error {
	s.Stop()
	select {
	case <-s.finished:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// The methods of consumer.Observer and tail.SubscriptionObserver.

func (s *subscription) Disconnected(err error) {
	s.report(Event{Kind: EventDisconnected, Err: redisError(err)})
}

func (s *subscription) Reconnected(lasted time.Duration) {
	s.report(Event{Kind: EventReconnected, Duration: lasted})
}

func (s *subscription) GroupLost(position string, entries []string, err error) {
	s.report(Event{Kind: EventGroupLost, Position: position, EntryIDs: entries, Err: redisError(err)})
}

func (s *subscription) Trimmed(entries []string, n int) {
	s.report(Event{Kind: EventTrimmed, EntryIDs: entries, Count: n})
}

func (s *subscription) LeaseLost(entries []string, err error) {
	s.report(Event{Kind: EventLeaseLost, EntryIDs: entries, Err: sourceError(err)})
}

func (s *subscription) AckIgnored(entries []string, n int, err error) {
	switch {
	case err == nil:
		err = ErrNotOwner
	case len(entries) == 0:
		err = fmt.Errorf("%w: %w", ErrNotOwner, err)
	}
	s.report(Event{Kind: EventAckIgnored, EntryIDs: entries, Count: n, Err: err})
}

func (s *subscription) AckFailed(entries []string, err error) {
	s.report(Event{Kind: EventAckFailed, EntryIDs: entries, Err: redisError(err)})
}

func (s *subscription) DeadLettered(entry, reason string) {
	s.report(Event{Kind: EventDeadLettered, EntryIDs: []string{entry}, Err: errors.New(reason)})
}

func (s *subscription) DeadLetterFailed(entry string, err error) {
	s.report(Event{Kind: EventDeadLetterFailed, EntryIDs: []string{entry}, Err: redisError(err)})
}

func (s *subscription) Deferred() { s.counters.deferred.Add(1) }

// InMemory logs the first delay that is not deferred, because the default configuration keeps the
// order.
func (s *subscription) InMemory(d time.Duration) {
	s.inMemory.Do(func() {
		s.log.Info("A retry waits in this process only, because MaxInFlight is 1 or there is an OrderingKey", watermill.LogFields{"delay": d.String()})
	})
}

func (s *subscription) HandlerTimeout(entry string) {
	s.report(Event{Kind: EventHandlerTimeout, EntryIDs: []string{entry}})
}

func (s *subscription) Released(entries []string) {
	s.report(Event{Kind: EventReleased, EntryIDs: entries})
}

func (s *subscription) Recovered(entries []string) {
	s.report(Event{Kind: EventRecovered, EntryIDs: entries})
}

func (s *subscription) Abandoned(entries []string, err error) {
	s.report(Event{Kind: EventAbandoned, EntryIDs: entries, Err: err})
}

func (s *subscription) Stalled(n int, why error) {
	s.report(Event{Kind: EventStalled, Count: n, Err: why})
}

// instrumentFailed does not wait for OnEvent, because a message waits.
func (s *subscription) instrumentFailed(err error) {
	e := Event{Kind: EventError, Topic: s.topic, Group: s.group, Consumer: s.ConsumerName(), Err: err}
	s.counters.event(e)
	s.reports.Post(e)
}

func (s *subscription) Failed(err error) { s.report(Event{Kind: EventError, Err: redisError(err)}) }

func (s *subscription) Rewound(last stream.ID) {
	s.report(Event{Kind: EventRewound, Position: last.String()})
}

func (s *subscription) Gap(gap *source.GapError) {
	s.report(Event{Kind: EventGap, Err: sourceError(gap)})
}

func (s *subscription) Undecodable(entry string, err error) {
	s.report(Event{Kind: EventUndecodable, EntryIDs: []string{entry}, Err: err})
}

func (s *subscription) Skipped(entry, reason string) {
	if reason == "" {
		reason = "rejected"
	}
	s.report(Event{Kind: EventSkipped, EntryIDs: []string{entry}, Err: errors.New(reason)})
}

func (s *subscription) Read() { s.counters.read() }

func (s *subscription) Delivered(count int) { s.counters.delivery(count) }

// sourceError converts an error of a source to a public one.
func sourceError(err error) error {
	var gap *source.GapError
	switch {
	case errors.As(err, &gap):
		return &GapError{Topic: gap.Topic, After: gap.After, FirstAvailable: gap.FirstAvailable}
	case errors.Is(err, source.ErrNotOwner):
		return fmt.Errorf("%w: %s", ErrNotOwner, strings.TrimPrefix(err.Error(), source.ErrNotOwner.Error()+": "))
	}
	return err
}

package redischannels

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/flaminco/redischannels/internal/source"
)

// instrument calls an Instrumentation and recovers its panics.
type instrument struct {
	Instrumentation
	failed   func(err error)
	reported atomic.Int64 // when the last panic was reported, in nanoseconds
}

// newPublishInstrument returns nil without an Instrumentation.
func newPublishInstrument(to Instrumentation, logger watermill.LoggerAdapter) *instrument {
	if to == nil {
		return nil
	}
	return &instrument{Instrumentation: to, failed: func(err error) { logger.Error("A message is not observed", err, nil) }}
}

// recovered must be deferred around each call.
func (i *instrument) recovered(method string) {
	v := recover()
	if v == nil {
		return
	}
	now, last := time.Now().UnixNano(), i.reported.Load()
	if (last == 0 || now-last > int64(tallyInterval)) && i.reported.CompareAndSwap(last, now) {
		i.failed(fmt.Errorf("panic in Instrumentation.%s: %v", method, v))
	}
}

// observes reports whether a call is observed. It is called with a nil receiver too.
func (i *instrument) observes(msgs []*message.Message) bool {
	return i != nil && len(msgs) > 0 && !slices.Contains(msgs, nil) // which is refused
}

// publish calls send with the messages, or with copies that have further metadata.
func (i *instrument) publish(ctx context.Context, p Publication, send func(msgs []*message.Message) error) error {
	begun := time.Now()
	ctx, metadata := i.publishStart(ctx, p)
	err := send(withAdded(p.Messages, metadata))
	defer i.recovered("PublishEnd")
	i.PublishEnd(ctx, p, time.Since(begun), err)
	return err
}

func (i *instrument) publishStart(ctx context.Context, p Publication) (started context.Context, metadata message.Metadata) {
	defer i.recovered("PublishStart")
	started = ctx // after a panic
	other, metadata := i.PublishStart(ctx, p)
	if other != nil {
		started = other
	}
	return started, metadata
}

// withAdded returns copies of messages with further metadata, or the messages without any.
func withAdded(msgs []*message.Message, metadata message.Metadata) []*message.Message {
	if len(metadata) == 0 {
		return msgs
	}
	copies := make([]*message.Message, len(msgs))
	for i, msg := range msgs {
		copies[i] = msg.CopyWithContext()
		maps.Copy(copies[i].Metadata, metadata)
	}
	return copies
}

// watcher observes the attempts of one subscription. It implements source.Watcher.
type watcher struct {
	instrument
	pubSub bool
}

// newWatcher returns nil without an Instrumentation.
func newWatcher(to Instrumentation, pubSub bool, failed func(err error)) source.Watcher {
	if to == nil {
		return nil
	}
	w := &watcher{pubSub: pubSub}
	w.Instrumentation, w.failed = to, failed
	return w
}

// watched is a Processing until the deliveries of all its messages have ended.
type watched struct {
	Processing
	w     *watcher
	begun atomic.Int64 // time since epoch, 0 before the application has received the messages
	left  atomic.Int32
	one   [1]ProcessedMessage
	first [1]watchedMessage
}

// watchedMessage is one message of it. It implements source.Watch.
type watchedMessage struct {
	source.Watching
	of    *watched
	index int
}

// watchOne observes an attempt that the application receives alone.
func watchOne(a *source.Attempt, metadata message.Metadata) {
	if w := a.From.Watcher; w != nil {
		w.One(a, metadata)
	}
}

// watchAll observes attempts that the application receives together.
func watchAll(attempts []*source.Attempt, metadataOf func(i int) message.Metadata) {
	if len(attempts) == 0 || attempts[0].From.Watcher == nil {
		return
	}
	metadata := make([]message.Metadata, len(attempts))
	for i := range attempts {
		metadata[i] = metadataOf(i)
	}
	attempts[0].From.Watcher.Together(attempts, metadata)
}

// One implements source.Watcher.
func (w *watcher) One(a *source.Attempt, metadata message.Metadata) {
	p := &watched{w: w}
	p.one[0] = processedMessage(a, metadata)
	p.Messages = p.one[:]
	ctx := p.start(a)
	p.observe(&p.first[0], 0, a, ctx)
}

// Together implements source.Watcher.
func (w *watcher) Together(attempts []*source.Attempt, metadata []message.Metadata) {
	p := &watched{w: w}
	p.Messages = make([]ProcessedMessage, len(attempts))
	for i, a := range attempts {
		p.Messages[i] = processedMessage(a, metadata[i])
	}
	ctx := p.start(attempts[0])
	messages := make([]watchedMessage, len(attempts))
	for i, a := range attempts {
		p.observe(&messages[i], i, a, ctx)
	}
}

func processedMessage(a *source.Attempt, metadata message.Metadata) ProcessedMessage {
	return ProcessedMessage{ID: idOf(a), Topic: a.Topic, DeliveryCount: a.Count, Metadata: metadata}
}

// start calls ProcessStart for messages of which this attempt is the first, and returns the context.
func (p *watched) start(first *source.Attempt) context.Context {
	p.Topic, p.Group, p.PubSub = first.From.Topic, first.From.Group, p.w.pubSub
	p.left.Store(int32(len(p.Messages)))
	if !first.Offered() {
		p.Started()
	}
	return p.w.processStart(first.From.Values, p.Processing)
}

// observe sets what observes an attempt. One that has ended meanwhile, by its timeout, ends here too.
func (p *watched) observe(m *watchedMessage, index int, a *source.Attempt, ctx context.Context) {
	m.of, m.index, m.Values, m.Watching.Watch = p, index, ctx, m
	if !a.Watch(&m.Watching) {
		m.Ended(a, source.Outcome{Kind: source.Expire}, false)
	}
}

func (w *watcher) processStart(ctx context.Context, p Processing) (started context.Context) {
	defer w.recovered("ProcessStart")
	started = ctx // after a panic
	if other := w.ProcessStart(ctx, p); other != nil {
		started = other
	}
	return started
}

// Started records that the application has received the messages.
func (p *watched) Started() { p.begun.CompareAndSwap(0, int64(time.Since(epoch))) }

// epoch is before all messages. The time since it costs half of time.Now.
var epoch = time.Now().Add(-time.Nanosecond)

// Started implements source.Watch.
func (m *watchedMessage) Started() { m.of.Started() }

// Ended implements source.Watch.
func (m *watchedMessage) Ended(a *source.Attempt, o source.Outcome, lost bool) {
	end := endOf(a, o, lost)
	end.Message, end.Left = m.index, int(m.of.left.Add(-1))
	if begun := m.of.begun.Load(); begun != 0 {
		end.Duration = time.Since(epoch) - time.Duration(begun)
	}
	defer m.of.w.recovered("ProcessEnd")
	m.of.w.ProcessEnd(m.Values, m.of.Processing, end)
}

// endOf returns how an attempt has ended.
func endOf(a *source.Attempt, o source.Outcome, lost bool) ProcessEnd {
	last := a.From.MaxDeliveries > 0 && a.Count >= a.From.MaxDeliveries
	switch {
	case o.Kind == source.Expire:
		return ProcessEnd{Outcome: ProcessTimedOut}
	case o.Kind == source.Withdraw:
		return ProcessEnd{Outcome: ProcessWithdrawn}
	case o.Kind == source.Abandon:
		return ProcessEnd{Outcome: ProcessAbandoned}
	case lost:
		return ProcessEnd{Outcome: ProcessLost}
	case o.Kind == source.Ack:
		return ProcessEnd{Outcome: ProcessAcked}
	case o.Kind == source.Release:
		return ProcessEnd{Outcome: ProcessReleased, Delay: max(0, o.Delay)}
	case o.Kind == source.Nack && !last:
		return ProcessEnd{Outcome: ProcessNacked, Delay: o.Delay, Reason: o.Reason}
	case a.From.Group == "":
		return ProcessEnd{Outcome: ProcessSkipped, Reason: o.Reason}
	}
	return ProcessEnd{Outcome: ProcessDeadLettered, Reason: o.Reason}
}

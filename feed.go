package redischannels

import (
	"context"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/flaminco/redischannels/internal/source"
	"github.com/flaminco/redischannels/internal/stream"
)

const (
	// keepUnread is for how long what was taken from the subscription and not used
	// waits for the next reader of this process, before it goes back to the group.
	keepUnread = time.Second
	// stallAfter is when a wait for a settlement is reported, where BlockTime is not
	// known.
	stallAfter = DefaultBlockTime
)

// feedConfig says where a feed has its messages from.
type feedConfig struct {
	topic, group string
	shut         func() // ends the subscription and waits for it
	limit        int    // greatest number of unsettled messages, 0 if the transport has none
	stallAfter   time.Duration
	report       func(Event)
}

// feed is a source.Source of the messages of one subscription of this package. It has no
// goroutine of its own, except the one of a timer that lasts for a Nack.
type feed struct {
	feedConfig
	origin source.Origin
	life   context.Context // until close
	stop   context.CancelFunc
	in     <-chan *message.Message
	start  stream.ID // that the subscription began after; set before in

	unreadReady chan struct{} // there is something in unread
	gapReady    chan struct{} // there is something in gaps
	full        chan struct{} // the limit was reached

	mu     sync.Mutex
	unread []*message.Message
	timer  *time.Timer // gives unread back
	out    int         // how many the application has
	gaps   []gap       // reported by the subscription, not yet told
	last   stream.ID   // up to which there is nothing more to tell before a gap
}

func newFeed(config feedConfig) *feed {
	if config.stallAfter == 0 {
		config.stallAfter = stallAfter
	}
	f := &feed{
		feedConfig:  config,
		unreadReady: make(chan struct{}, 1),
		gapReady:    make(chan struct{}, 1),
		full:        make(chan struct{}, 1),
	}
	f.origin = source.Origin{Topic: config.topic, Group: config.group, Values: context.Background(), Owner: f}
	f.life, f.stop = context.WithCancel(context.Background())
	return f
}

// open subscribes. The subscription outlives ctx, but not before it is open. A subscription to
// a stream without a group tells it gaps and sets start.
func (f *feed) open(ctx context.Context, subscribe func(context.Context, *feed) (<-chan *message.Message, error)) error {
	subscribing, cancel := context.WithCancel(f.life)
	detach := context.AfterFunc(ctx, cancel)
	in, err := subscribe(subscribing, f)
	if !detach() && err == nil {
		err = ctx.Err()
		for msg := range in {
			f.handBack(msg)
		}
	}
	if err != nil {
		cancel()
		return err
	}
	f.last, f.in = f.start, in
	return nil
}

// NextBatch implements source.Source.
func (f *feed) NextBatch(ctx context.Context, dst []*source.Attempt, limits source.Limits) ([]*source.Attempt, error) {
	msg, err := f.next(ctx, limits.Try)
	if msg == nil {
		return dst, err
	}
	dst = append(dst, f.attempt(msg, limits.Offer))
	if limits.Max == 1 {
		return dst, nil
	}
	waiting, cancel := context.WithTimeout(ctx, limits.Wait)
	defer cancel()
	bytes := len(msg.Payload)
	for n := 1; n < limits.Max; n++ {
		msg, err := f.next(waiting, limits.Wait <= 0)
		if err != nil && waiting.Err() == nil {
			f.mu.Lock()
			if e, ok := err.(*source.GapError); ok {
				f.gaps = append([]gap{{GapError: e}}, f.gaps...)
			}
			f.mu.Unlock()
		}
		if msg == nil {
			break
		}
		if bytes += len(msg.Payload); limits.Bytes > 0 && bytes > limits.Bytes {
			f.putNext(msg)
			break
		}
		dst = append(dst, f.attempt(msg, limits.Offer))
	}
	return dst, nil
}

func (f *feed) attempt(msg *message.Message, offer bool) *source.Attempt {
	a := &source.Attempt{From: &f.origin, Topic: f.topic, Message: msg}
	if d := deliveryFrom(msg.Context()); d != nil {
		a.Topic, a.ID, a.Count = d.from.topic, d.id, d.count
	}
	if !offer {
		a.StartNow()
		f.Started(a)
	}
	return a
}

// next returns the next message. The error is that of ctx, or one of package source.
func (f *feed) next(ctx context.Context, try bool) (*message.Message, error) {
	var timer *time.Timer
	defer func() {
		if timer != nil {
			timer.Stop()
		}
	}()
	for {
		if f.life.Err() != nil {
			return nil, source.ErrClosed
		}
		if err := ctx.Err(); err != nil && !try {
			return nil, err
		}
		if msg, err := f.ready(); msg != nil || err != nil || try {
			return msg, err
		}
		var stalled <-chan time.Time
		if f.isFull() {
			if timer == nil {
				timer = time.NewTimer(f.stallAfter)
			}
			stalled = timer.C
		}
		select {
		case msg, open := <-f.in:
			return f.received(msg, open)
		case <-f.unreadReady:
		case <-f.gapReady:
		case <-f.full:
		case <-stalled:
			f.report(Event{Kind: EventStalled, Topic: f.topic, Group: f.group, Count: f.outstanding()})
		case <-ctx.Done():
		case <-f.life.Done():
		}
	}
}

// ready returns what next need not wait for. Where messages come faster than they are read
// that is all, and costs a third of the choice among all that may happen.
func (f *feed) ready() (*message.Message, error) {
	if msg, err := f.takeReady(); msg != nil || err != nil {
		return msg, err
	}
	select {
	case msg, open := <-f.in:
		return f.received(msg, open)
	default:
		return nil, nil
	}
}

func (f *feed) outstanding() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.out
}

func (f *feed) isFull() bool { return f.limit > 0 && f.outstanding() >= f.limit }

// Started implements source.Owner.
func (f *feed) Started(*source.Attempt) {
	f.mu.Lock()
	f.out++
	full := f.limit > 0 && f.out == f.limit
	f.mu.Unlock()
	if full {
		signal(f.full)
	}
}

// Late implements source.Owner. Attempts have no timeout here.
func (f *feed) Late(*source.Attempt, source.Outcome) {}

// Ended implements source.Owner.
func (f *feed) Ended(a *source.Attempt, o source.Outcome) error {
	msg := a.Message
	if o.Kind == source.Withdraw {
		f.putNext(msg)
		return nil
	}
	f.mu.Lock()
	f.out--
	f.mu.Unlock()
	d := deliveryFrom(msg.Context())
	lost := d != nil && d.Err() != nil
	switch o.Kind {
	case source.Ack:
		f.ack(msg)
	case source.Release:
		f.putUnread(msg)
	case source.Undecodable:
		f.undecodable(msg, d, o)
	case source.Reject:
		d.verdict.Store(&verdict{reject: true, reason: o.Reason})
		f.nack(msg)
	default:
		if o.Delay >= 0 {
			d.verdict.Store(&verdict{delay: o.Delay, retryAfter: true})
		}
		f.nack(msg)
	}
	if lost {
		return source.ErrNotOwner
	}
	return nil
}

// undecodable ends a message that can never be handled: by a dead letter in a group, by
// passing it elsewhere.
func (f *feed) undecodable(msg *message.Message, d *delivery, o source.Outcome) {
	if d != nil && d.from.group != "" {
		d.verdict.Store(&verdict{reject: true, reason: o.Reason})
		f.nack(msg)
		return
	}
	f.report(Event{Kind: EventUndecodable, Topic: f.topic, EntryIDs: []string{msg.UUID}, Err: o.Err})
	f.ack(msg)
}

// Start returns the ID that the subscription began after.
func (f *feed) Start() stream.ID { return f.start }

// Close implements source.Source.
func (f *feed) Close(context.Context) error {
	f.stop()
	f.mu.Lock()
	if f.timer != nil {
		f.timer.Stop()
	}
	f.mu.Unlock()
	f.giveBack()
	f.shut()
	return nil
}

// received orders what was read from the subscription behind the gaps before it.
func (f *feed) received(msg *message.Message, open bool) (*message.Message, error) {
	switch {
	case !open && f.life.Err() != nil:
		return nil, source.ErrClosed
	case !open:
		return nil, source.ErrEnded
	case f.group != "":
		return msg, nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.ordered(msg)
}

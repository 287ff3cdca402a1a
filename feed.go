package redischannels

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

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
	subscribe    subscribeFunc
	shut         func() // ends the subscription and waits for it
	limit        int    // greatest number of unsettled messages, 0 if the transport has none
	stallAfter   time.Duration
	report       func(Event)
}

// subscribeFunc opens the subscription of a feed. One to a stream without a group tells
// it gaps and sets start.
type subscribeFunc func(ctx context.Context, f *feed) (<-chan *message.Message, error)

// feed is the untyped side of a Reader: one subscription, opened at the first use, from
// which any number of goroutines take messages. It has no goroutine of its own, except
// the one of a timer that lasts for a Nack.
type feed struct {
	feedConfig
	life    context.Context // until close
	stop    context.CancelFunc
	opening chan struct{} // held while the subscription is opened or closed
	done    chan struct{} // closed when close has ended

	in     <-chan *message.Message // set once, under opening; readers of it hold opened
	opened chan struct{}           // closed when in is set
	start  stream.ID               // that the subscription began after; set before in
	live   func(start stream.ID)   // is told when it has begun; nil or set before the first use

	unreadReady chan struct{} // there is something in unread
	gapReady    chan struct{} // there is something in gaps
	full        chan struct{} // the limit was reached

	mu     sync.Mutex
	ended  bool // the transport has ended the subscription
	unread []unread
	timer  *time.Timer         // gives unread back
	held   map[string]*handled // the latest by the ID that the application knows
	out    int                 // how many are held
	gaps   []gap               // reported by the subscription, not yet told
	last   stream.ID           // up to which there is nothing more to tell before a gap

	children map[*feed]struct{} // closed with this one
}

// handled is a message that the application has and must settle.
type handled struct {
	feed  *feed
	msg   *message.Message
	id    string
	older *handled // of the same ID, still held when this one came; nil mostly
	done  bool     // settled
}

func newFeed(config feedConfig) *feed {
	if config.stallAfter == 0 {
		config.stallAfter = stallAfter
	}
	f := &feed{
		feedConfig:  config,
		opening:     make(chan struct{}, 1),
		done:        make(chan struct{}),
		opened:      make(chan struct{}),
		unreadReady: make(chan struct{}, 1),
		gapReady:    make(chan struct{}, 1),
		full:        make(chan struct{}, 1),
		held:        make(map[string]*handled),
		children:    make(map[*feed]struct{}),
	}
	f.life, f.stop = context.WithCancel(context.Background())
	return f
}

// next returns the next message. The error is that of ctx, of subscribing, wraps
// ErrClosed, or is a *GapError, after which it goes on.
func (f *feed) next(ctx context.Context) (*message.Message, error) {
	if err := f.open(ctx); err != nil {
		return nil, err
	}
	var timer *time.Timer
	defer func() {
		if timer != nil {
			timer.Stop()
		}
	}()
	for {
		if msg, err := f.ready(); msg != nil || err != nil {
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
			if !open {
				return nil, f.end()
			}
			return f.received(msg)
		case <-f.unreadReady:
		case <-f.gapReady:
		case <-f.full:
		case <-stalled:
			f.report(Event{Kind: EventStalled, Topic: f.topic, Group: f.group, Count: f.outstanding()})
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-f.life.Done():
			return nil, f.closedError()
		}
	}
}

// tryNext is next for those who do not wait: both results are nil when nothing is ready.
func (f *feed) tryNext() (*message.Message, error) {
	if err := f.open(f.life); err != nil {
		return nil, err
	}
	return f.ready()
}

// ready returns what next need not wait for. Where messages come faster than they are read
// that is all, and costs a third of the choice among all that may happen.
func (f *feed) ready() (*message.Message, error) {
	if msg, err := f.takeReady(); msg != nil || err != nil {
		return msg, err
	}
	select {
	case msg, open := <-f.in:
		if !open {
			return nil, f.end()
		}
		return f.received(msg)
	default:
		return nil, nil
	}
}

// open subscribes unless that was done.
func (f *feed) open(ctx context.Context) error {
	if err := ctx.Err(); err != nil && f.life.Err() == nil {
		return err
	}
	select {
	case <-f.opened:
		return f.closedError()
	default:
	}
	select {
	case f.opening <- struct{}{}:
		defer func() { <-f.opening }()
	case <-ctx.Done():
		return ctx.Err()
	case <-f.life.Done():
		return f.closedError()
	}
	if err := f.closedError(); err != nil || f.in != nil {
		return err
	}
	// The subscription outlives the call that opens it, but not before it is open.
	subscribing, cancel := context.WithCancel(f.life)
	detach := context.AfterFunc(ctx, cancel)
	in, err := f.subscribe(subscribing, f)
	if !detach() && err == nil {
		err = ctx.Err()
		f.drainMessages(in)
	}
	if err != nil {
		cancel()
		if closed := f.closedError(); closed != nil {
			return closed
		}
		return err
	}
	if f.live != nil {
		f.live(f.start)
	}
	f.last = f.start
	f.in = in
	close(f.opened)
	return nil
}

// drainMessages reads from a subscription that is ending.
func (f *feed) drainMessages(in <-chan *message.Message) {
	for msg := range in {
		f.handBack(msg)
	}
}

// hold makes a message one that the application must settle, also by its ID.
func (f *feed) hold(msg *message.Message) *handled {
	h := f.lend(msg)
	f.mu.Lock()
	defer f.mu.Unlock()
	h.older = f.held[h.id]
	f.held[h.id] = h
	return h
}

// lend is hold for a message that is settled here when the application comes back.
func (f *feed) lend(msg *message.Message) *handled {
	h := &handled{feed: f, msg: msg, id: idOf(msg)}
	f.mu.Lock()
	f.out++
	full := f.limit > 0 && f.out == f.limit
	f.mu.Unlock()
	if full {
		signal(f.full)
	}
	return h
}

// find returns the message that the application has under this ID, the latest of several.
func (f *feed) find(id string) (*handled, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	h, ok := f.held[id]
	if !ok {
		return nil, fmt.Errorf("redischannels: settle %s: %w", id, ErrNotPending)
	}
	return h, nil
}

// release takes a message from those that the application must settle; settle is what
// is done with it then. The error tells that it was not one, or that the group has
// given it to somebody else, in which case there is nothing to settle any more.
func (h *handled) release(settle func(*feed, *message.Message)) error {
	if !h.feed.forget(h) {
		return fmt.Errorf("redischannels: settle %s: %w", h.id, ErrNotPending)
	}
	d := h.feed.deliveryOf(h.msg)
	lost := d != nil && d.Err() != nil
	settle(h.feed, h.msg)
	if lost {
		return fmt.Errorf("redischannels: settle %s: %w", h.id, ErrNotOwner)
	}
	return nil
}

// forget reports whether the message was held until now. One ID may be held twice: somebody
// has published a message again, and the transport has no IDs of its own.
func (f *feed) forget(h *handled) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if h.done {
		return false
	}
	h.done = true
	f.out--
	if f.held[h.id] != h {
		return true
	}
	older := h.older
	for older != nil && older.done {
		older = older.older
	}
	if older == nil {
		delete(f.held, h.id)
	} else {
		f.held[h.id] = older
	}
	return true
}

func (h *handled) ack() error  { return h.release((*feed).ack) }
func (h *handled) nack() error { return h.release((*feed).nack) }

// unread gives the message to the next reader as if it had not been read.
func (h *handled) unread() {
	_ = h.release((*feed).putUnread)
}

func (f *feed) outstanding() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.out
}

func (f *feed) isFull() bool { return f.limit > 0 && f.outstanding() >= f.limit }

// end is the error of a subscription that is over: by close, or its transport has ended it.
func (f *feed) end() error {
	f.mu.Lock()
	if f.life.Err() == nil {
		f.ended = true
	}
	f.mu.Unlock()
	f.stop()
	return f.closedError()
}

// closedError tells why nothing can be read any more, or returns nil.
func (f *feed) closedError() error {
	if f.life.Err() == nil {
		return nil
	}
	if f.endedByTransport() {
		return fmt.Errorf("redischannels: read %q: the subscription was ended by its subscriber: %w", f.topic, ErrClosed)
	}
	return fmt.Errorf("redischannels: read %q: reader: %w", f.topic, ErrClosed)
}

// close ends the subscription. It waits for the messages that the application has, as
// long as the subscription does.
func (f *feed) close() {
	f.stop()
	f.opening <- struct{}{}
	defer func() { <-f.opening }()
	select {
	case <-f.done:
		return
	default:
	}
	f.mu.Lock()
	if f.timer != nil {
		f.timer.Stop()
	}
	children := slices.Collect(maps.Keys(f.children))
	f.mu.Unlock()
	for _, child := range children {
		child.close()
	}
	f.giveBack()
	if f.shut != nil {
		f.shut()
	}
	close(f.done)
}

// adopt makes close close another feed as well.
func (f *feed) adopt(child *feed) error {
	f.mu.Lock()
	f.children[child] = struct{}{}
	f.mu.Unlock()
	return f.closedError() // if close has begun it may have missed the child
}

// disown closes a feed that was adopted.
func (f *feed) disown(child *feed) {
	child.close()
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.children, child)
}

// isEnd tells whether an error of next ends a loop without a word: that of ctx and that of
// close do. Others are told, also the one of a subscription that its transport has ended.
func (f *feed) isEnd(ctx context.Context, err error) bool {
	var gap *GapError
	var undecodable *DecodeError
	if errors.As(err, &gap) || errors.As(err, &undecodable) {
		return false // it would be lost
	}
	return ctx.Err() != nil || f.life.Err() != nil && !f.endedByTransport()
}

func (f *feed) endedByTransport() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.ended
}

package tail

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/flaminco/redischannels/internal/dispatch"
	"github.com/flaminco/redischannels/internal/source"
	"github.com/flaminco/redischannels/internal/stream"
	"github.com/flaminco/redischannels/internal/window"
)

// admitBlock is the number of items in one allocation: few enough that one item does not keep
// many others in memory.
const admitBlock = 16

// lookEvery is the time between two checks for deliveries that take long.
const lookEvery = time.Second

// SubscriptionObserver is notified of the events of a subscription.
type SubscriptionObserver interface {
	Observer
	Rewound(last stream.ID)
	Gap(gap *source.GapError)
	Undecodable(entry string, err error)
	Skipped(entry, reason string)
	HandlerTimeout(entry string)
	AckIgnored(entries []string, n int, err error)
	Abandoned(entries []string, err error)
	Delivered(count int)
	Stalled(n int, why error)
}

// SubscriptionConfig configures [NewSubscription].
type SubscriptionConfig struct {
	Topic         string
	Origin        *source.Origin // of the attempts; NewSubscription sets its Owner
	Window        window.Config  // NewSubscription sets From
	MaxDeliveries int            // after which a message is skipped; 0 for no bound
	Backoff       func(delivered int) time.Duration
	Prepare       func(it *window.Item) // see consumer.Config
	DrainTimeout  time.Duration
	StallAfter    time.Duration
	Gaps          bool // NextBatch returns gaps, in their places
	Observer      SubscriptionObserver
}

// Subscription is one fan-out subscription: a follower whose entries go into a window. It
// implements source.Source.
type Subscription struct {
	*dispatch.Dispatcher
	cfg      SubscriptionConfig
	win      *window.Window
	follower *Follower

	reading context.Context
	stop    context.CancelFunc
	done    chan struct{} // closed when nothing is left

	mu   sync.Mutex
	gaps []placedGap // not yet returned
}

// placedGap is a gap that is returned when everything up to after was delivered.
type placedGap struct {
	err   *source.GapError
	after stream.ID
}

// NewSubscription returns a subscription. Open or Abort must follow.
func NewSubscription(readers *Readers, cfg SubscriptionConfig) *Subscription {
	s := &Subscription{cfg: cfg, done: make(chan struct{})}
	s.reading, s.stop = context.WithCancel(context.Background())
	cfg.Window.From, cfg.Window.MaxDeliveries = cfg.Origin, cfg.MaxDeliveries
	s.win = window.New(cfg.Window)
	s.Dispatcher = dispatch.New(dispatch.Config{
		Window: s.win, Policy: (*policy)(s), MaxDeliveries: cfg.MaxDeliveries,
		Backoff: cfg.Backoff, Before: s.gap,
	})
	cfg.Origin.Owner = s.Dispatcher
	s.follower = readers.Follow(cfg.Topic, s, cfg.Observer)
	return s
}

// Open makes the subscription live, or returns an error that the caller can fix.
func (s *Subscription) Open(ctx context.Context, start stream.Start) error {
	page, err := s.follower.Open(ctx, start)
	if err != nil {
		s.Abort()
		return err
	}
	s.Put(page)
	go s.run()
	return nil
}

// Abort releases a subscription that was not opened.
func (s *Subscription) Abort() {
	s.stop()
	s.Dispatcher.Stop()
	s.follower.Close()
	close(s.done)
}

// run works until stop and then ends the subscription in order.
func (s *Subscription) run() {
	defer close(s.done)
	var reading sync.WaitGroup
	reading.Go(s.read)
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	for s.reading.Err() == nil {
		select {
		case <-look.C:
			s.win.BlockLong(lookEvery)
			s.win.DetachLong(lookEvery)
			if stall, ok := s.win.Stalled(s.cfg.StallAfter); ok {
				s.cfg.Observer.Stalled(stall.InFlight+stall.BackingOff, stall.Reason())
			}
		case <-s.reading.Done():
		}
	}
	s.Dispatcher.Stop()
	reading.Wait()
	s.follower.Close()
	s.win.Close()
	if abandoned := s.Drain(s.cfg.DrainTimeout); len(abandoned) > 0 {
		s.cfg.Observer.Abandoned(abandoned, nil)
	}
	s.win.Close()
}

// read reads the stream into the window until stop: up to its end by reads of its own, from there
// on through the reader that followers share. It needs only the position: entries of a lost reply
// are read again.
func (s *Subscription) read() {
	for s.reading.Err() == nil {
		count := s.win.Room.BeginRead(1)
		if count == 0 {
			select {
			case <-s.win.Room.Changed:
			case <-s.reading.Done():
			}
			continue
		}
		page, end, err := s.follower.Read(s.reading, count)
		s.win.Room.EndRead(len(page.Entries))
		if err != nil {
			continue
		}
		s.Put(page)
		stream.Recycle(page.Entries)
		if !end || !s.follower.Join() {
			continue
		}
		select {
		case <-s.follower.Expelled():
			s.follower.Resume()
		case <-s.reading.Done():
		}
	}
}

// Room implements Sink.
func (s *Subscription) Room(entries []stream.Entry) int {
	room, bytes := s.win.Room.Spare()
	n := 0
	for n < len(entries) && n < room && bytes > 0 {
		bytes -= entries[n].Size
		n++
	}
	return n
}

// Put implements Sink: it puts entries into the window.
func (s *Subscription) Put(page Page) {
	if page.Rewound != nil {
		s.cfg.Observer.Rewound(page.Rewound.Last)
	}
	if page.Gap != nil {
		s.putGap(page.Gap)
	}
	for block := range slices.Chunk(page.Entries, admitBlock) {
		items := make([]window.Item, len(block))
		for i := range block {
			items[i] = window.Item{Entry: block[i].Share(), Counted: true}
			if s.cfg.Prepare != nil {
				s.cfg.Prepare(&items[i])
			}
		}
		s.win.Admit(items, time.Now())
	}
}

func (s *Subscription) putGap(gap *Gap) {
	err := &source.GapError{Topic: s.cfg.Topic, After: gap.After.String()}
	if !gap.First.IsZero() {
		err.FirstAvailable = gap.First.String()
	}
	s.cfg.Observer.Gap(err)
	if !s.cfg.Gaps {
		return
	}
	s.mu.Lock()
	s.gaps = append(s.gaps, placedGap{err, gap.After})
	if len(s.gaps) == 1 {
		s.win.Bar(gap.After)
	}
	s.mu.Unlock()
	s.win.Pass()
}

// gap returns the next gap as an error, if everything before it was delivered.
func (s *Subscription) gap() error {
	if !s.cfg.Gaps || !s.win.AtBar() {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.gaps) == 0 {
		return nil
	}
	err := s.gaps[0].err
	if s.gaps = s.gaps[1:]; len(s.gaps) > 0 {
		s.win.Bar(s.gaps[0].after)
	} else {
		s.win.Unbar()
	}
	return err
}

// Close implements source.Source.
func (s *Subscription) Close(ctx context.Context) error {
	s.stop()
	select {
	case <-s.done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Stop begins to close, and Done is closed when that is done.
func (s *Subscription) Stop()                 { s.stop() }
func (s *Subscription) Done() <-chan struct{} { return s.done }

// Sizes are those of the window; Down and Closing are the other state.
func (s *Subscription) Sizes() window.Sizes { return s.win.Sizes() }
func (s *Subscription) Down() bool          { return s.follower.Down() }
func (s *Subscription) Paused() bool        { return false }
func (s *Subscription) Closing() bool       { return s.reading.Err() != nil }

// ConsumerName returns the empty name: there is no consumer in Redis.
func (s *Subscription) ConsumerName() string { return "" }

// policy handles the deliveries of a fan-out subscription. It implements dispatch.Policy.
type policy Subscription

func (p *policy) Delivered(count int) { p.cfg.Observer.Delivered(count) }

func (p *policy) Acked(it *window.Item) (late bool) {
	p.win.Finish(it)
	return false
}

// Defer implements dispatch.Policy: nothing is stored for a subscription without a group.
func (p *policy) Defer(*window.Item, source.Outcome, time.Duration, bool) bool { return false }

func (p *policy) GiveUp(it *window.Item, o source.Outcome) {
	if o.Kind == source.Undecodable {
		p.cfg.Observer.Undecodable(it.Text, o.Err)
	} else {
		p.cfg.Observer.Skipped(it.Text, o.Reason)
	}
	p.win.Finish(it)
}

// Recalled never happens: there is no other consumer to give them to.
func (p *policy) Recalled([]*window.Item) {}

func (p *policy) AckIgnored(id string, err error) { p.cfg.Observer.AckIgnored([]string{id}, 1, err) }

func (p *policy) TimedOut(id string) { p.cfg.Observer.HandlerTimeout(id) }

package pubsub

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/flaminco/redischannels/internal/source"
)

// SubscriptionObserver is notified of the outcomes of the messages of a subscription. Its methods
// must not wait.
type SubscriptionObserver interface {
	Delivered(count int)        // the application has received a message
	Dropped(n int)              // because the buffer was full
	Undecodable(err error)      // one could not be decoded
	Skipped(err error)          // one was skipped
	Abandoned(n int, err error) // they were lost when the subscription ended
}

// SubscriptionConfig configures [NewSubscription].
type SubscriptionConfig struct {
	Mux           *Mux
	Topic         func(channel string) string // returns the topic of a message
	Origin        *source.Origin              // of the attempts; NewSubscription sets its Owner
	Buffer        int
	BufferBytes   int
	DropNewest    bool
	MaxInFlight   int
	MaxDeliveries int // after which a message is skipped; 0 for no bound
	Backoff       func(delivered int) time.Duration
	DrainTimeout  time.Duration
	Observer      SubscriptionObserver
}

// Subscription is one subscription: its messages come from the bounded queue to which the
// connection pushes. A nacked message stays in memory, and counts as in flight, until it is due
// again. It implements source.Source.
type Subscription struct {
	cfg    SubscriptionConfig
	sink   *Sink
	ready  chan struct{} // a place is free, or a message is due
	recall chan struct{}

	reading context.Context
	stop    context.CancelFunc
	drained chan struct{} // closed: no caller waits for the end of an attempt
	done    chan struct{} // closed when all goroutines have ended

	mu      sync.Mutex
	held    map[*delivery]struct{} // in flight, or waiting to be redelivered
	waiting []*delivery            // those that wait, by due time
	idle    chan struct{}          // nothing is in flight; made by drain
}

// delivery is a message that was taken from the queue and has not ended.
type delivery struct {
	message Message
	id      string // of its Watermill message, if there is one
	count   int    // of deliveries
	split   int    // of the last Nack
	due     time.Time
	attempt *source.Attempt // in flight
}

// NewSubscription returns a subscription. Open or Abort must follow.
func NewSubscription(cfg SubscriptionConfig) *Subscription {
	s := &Subscription{
		cfg: cfg, ready: make(chan struct{}, 1), recall: make(chan struct{}, 1),
		drained: make(chan struct{}), done: make(chan struct{}), held: make(map[*delivery]struct{}),
	}
	s.reading, s.stop = context.WithCancel(context.Background())
	s.sink = &Sink{Queue: NewQueue(QueueConfig{
		Messages: cfg.Buffer, Bytes: cfg.BufferBytes, DropNewest: cfg.DropNewest, Dropped: cfg.Observer.Dropped,
	})}
	cfg.Origin.Owner = s
	return s
}

// Open subscribes to the names and returns when Redis has confirmed that.
func (s *Subscription) Open(ctx context.Context, names []Name) error {
	if err := s.cfg.Mux.Subscribe(ctx, s.sink, names); err != nil {
		s.Abort()
		return err
	}
	go s.run()
	return nil
}

// Abort releases a subscription that was not opened.
func (s *Subscription) Abort() {
	s.stop()
	s.cfg.Mux.Unsubscribe(s.sink)
	s.sink.Queue.Close()
	close(s.drained)
	close(s.done)
}

var (
	errNotDelivered    = errors.New("the subscription ended before they were delivered")
	errNotRedelivered  = errors.New("the subscription ended before it was redelivered")
	errNotAcknowledged = errors.New("not acknowledged within DrainTimeout")
)

// run works until stop and then ends the subscription in order.
func (s *Subscription) run() {
	defer close(s.done)
	<-s.reading.Done()
	signal(s.recall)
	s.cfg.Mux.Unsubscribe(s.sink)
	if n := s.sink.Queue.Close(); n > 0 {
		s.cfg.Observer.Abandoned(n, errNotDelivered)
	}
	s.mu.Lock()
	s.idle = make(chan struct{}, 1)
	waiting := s.waiting
	s.waiting = nil
	for _, d := range waiting {
		delete(s.held, d)
	}
	empty := len(s.held) == 0
	s.mu.Unlock()
	if len(waiting) > 0 {
		s.cfg.Observer.Abandoned(len(waiting), errNotRedelivered)
	}
	if !empty {
		s.drain()
	}
	close(s.drained)
}

// drain waits for the attempts in flight, up to DrainTimeout, and abandons those that are left.
func (s *Subscription) drain() {
	timer := time.NewTimer(s.cfg.DrainTimeout)
	defer timer.Stop()
	select {
	case <-s.idle:
		return
	case <-timer.C:
	}
	s.mu.Lock()
	var attempts []*source.Attempt
	for d := range s.held {
		attempts = append(attempts, d.attempt)
	}
	s.mu.Unlock()
	for _, a := range attempts {
		_ = a.End(source.Outcome{Kind: source.Abandon})
	}
}

// NextBatch implements source.Source.
func (s *Subscription) NextBatch(ctx context.Context, dst []*source.Attempt, limits source.Limits) ([]*source.Attempt, error) {
	first := len(dst)
	var until time.Time
	bytes := 0
	for {
		if err := s.err(ctx); err != nil {
			return ended(dst, first, err)
		}
		var due time.Duration
		for len(dst)-first < limits.Max && (limits.Bytes == 0 || bytes < limits.Bytes) {
			var a *source.Attempt
			if a, due = s.next(limits.Offer, dst[first:], left(limits, dst[first:], bytes)); a == nil {
				break
			}
			bytes += len(a.Payload)
			dst = append(dst, a)
		}
		n := len(dst) - first
		if n > 0 && until.IsZero() {
			until = time.Now().Add(limits.Wait)
		}
		full := n >= limits.Max || limits.Bytes > 0 && bytes >= limits.Bytes || due == 0
		if full || limits.Try || n > 0 && !time.Now().Before(until) {
			signal(s.ready) // the next caller checks
			return dst, nil
		}
		if n > 0 {
			due = min(due, time.Until(until))
		}
		s.wait(ctx, due)
	}
}

// left returns the maximum size of the next message of a batch: no limit for the first one.
func left(limits source.Limits, batch []*source.Attempt, bytes int) int {
	if limits.Bytes == 0 || len(batch) == 0 {
		return math.MaxInt
	}
	return limits.Bytes - bytes
}

// wait waits until there may be something to deliver, for d at most.
func (s *Subscription) wait(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-s.sink.Queue.Ready:
	case <-s.ready:
	case <-timer.C:
	case <-ctx.Done():
	case <-s.reading.Done():
	}
}

func (s *Subscription) err(ctx context.Context) error {
	if s.reading.Err() != nil {
		return source.ErrClosed
	}
	return ctx.Err()
}

// ended returns a batch that has begun, or the error.
func ended(dst []*source.Attempt, first int, err error) ([]*source.Attempt, error) {
	if len(dst) > first {
		return dst, nil
	}
	return dst, err
}

// next returns the next attempt for a batch, of at most most bytes, or the time until one is due:
// 0 if the next one is not for this batch.
func (s *Subscription) next(offer bool, batch []*source.Attempt, most int) (*source.Attempt, time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	due := time.Hour
	if s.reading.Err() != nil {
		return nil, due
	}
	var d *delivery
	if len(s.waiting) > 0 {
		if wait := time.Until(s.waiting[0].due); wait > 0 {
			due = wait
		} else if !joins(batch, s.splitOf(s.waiting[0])) || len(s.waiting[0].message.Payload) > most {
			return nil, 0
		} else {
			d, s.waiting = s.waiting[0], s.waiting[1:]
		}
	}
	if d == nil && !joins(batch, 0) {
		return nil, 0
	}
	if d == nil && len(s.held) < s.cfg.MaxInFlight {
		m, ok, larger := s.sink.Queue.Pop(most)
		if larger {
			return nil, 0
		}
		if ok {
			d = &delivery{message: m}
			s.held[d] = struct{}{}
		}
	}
	if d == nil {
		return nil, due
	}
	a := &source.Attempt{
		From: s.cfg.Origin, Topic: s.cfg.Topic(d.message.Channel), ID: d.id, Count: d.count + 1, Split: s.splitOf(d), Held: d,
		Payload: d.message.Payload,
	}
	d.count++
	d.attempt = a
	if !offer {
		a.StartNow()
		s.cfg.Observer.Delivered(a.Count)
	}
	return a, due
}

// splitOf returns the sub-batch of a message. A message that is delivered for the last time is
// alone: it must not be skipped because of others.
func (s *Subscription) splitOf(d *delivery) int {
	if s.cfg.MaxDeliveries > 1 && d.count+1 >= s.cfg.MaxDeliveries {
		return source.Single
	}
	return d.split
}

// joins reports whether a message with this split (see source.Outcome) may be in a batch.
func joins(batch []*source.Attempt, split int) bool {
	return len(batch) == 0 || batch[0].Split == split && split != source.Single
}

// MessageOf returns the message of an attempt of a Subscription.
func MessageOf(a *source.Attempt) Message { return a.Held.(*delivery).message }

// Started implements source.Owner.
func (s *Subscription) Started(a *source.Attempt) { s.cfg.Observer.Delivered(a.Count) }

// Late implements source.Owner. There is no timeout.
func (s *Subscription) Late(*source.Attempt, source.Outcome) {}

// Ended implements source.Owner.
func (s *Subscription) Ended(a *source.Attempt, o source.Outcome) error {
	d := a.Held.(*delivery)
	d.id = a.ID
	switch {
	case o.Kind == source.Ack:
		s.forget(d)
	case o.Kind == source.Undecodable:
		s.cfg.Observer.Undecodable(o.Err)
		s.forget(d)
	case o.Kind == source.Reject:
		s.cfg.Observer.Skipped(fmt.Errorf("message %q was rejected: %s", d.id, o.Reason))
		s.forget(d)
	case o.Kind == source.Abandon:
		s.cfg.Observer.Abandoned(1, errNotAcknowledged)
		s.forget(d)
	case o.Kind == source.Withdraw, o.Kind == source.Release:
		d.count--
		s.again(d, max(0, o.Delay))
	case s.cfg.MaxDeliveries > 0 && d.count >= s.cfg.MaxDeliveries:
		s.cfg.Observer.Skipped(fmt.Errorf("message %q was delivered %d times without success%s", d.id, d.count, suffix(o.Reason)))
		s.forget(d)
	case o.Delay >= 0:
		d.split = o.Split
		s.again(d, o.Delay)
	default:
		d.split = o.Split
		s.again(d, s.cfg.Backoff(d.count))
	}
	return nil
}

// again redelivers a message when the delay is over.
func (s *Subscription) again(d *delivery, delay time.Duration) {
	s.mu.Lock()
	if s.reading.Err() != nil {
		s.mu.Unlock()
		err := errNotRedelivered
		if d.count == 0 {
			err = errNotDelivered
		}
		s.cfg.Observer.Abandoned(1, err)
		s.forget(d)
		return
	}
	d.attempt, d.due = nil, time.Now().Add(delay)
	at, _ := slices.BinarySearchFunc(s.waiting, d.due, func(w *delivery, due time.Time) int {
		return cmp.Or(w.due.Compare(due), -1) // behind those that are due at the same time
	})
	s.waiting = slices.Insert(s.waiting, at, d)
	s.mu.Unlock()
	signal(s.ready)
}

// forget frees the place of a message.
func (s *Subscription) forget(d *delivery) {
	s.mu.Lock()
	delete(s.held, d)
	if s.idle != nil && len(s.held) == 0 {
		signal(s.idle)
	}
	s.mu.Unlock()
	signal(s.ready)
}

// Adjust implements source.Adjuster. The order is always that of arrival, unless a message is
// redelivered.
func (s *Subscription) Adjust(maxInFlight int, _ bool) {
	s.mu.Lock()
	s.cfg.MaxInFlight = max(s.cfg.MaxInFlight, maxInFlight)
	s.mu.Unlock()
	signal(s.ready)
}

// Recall receives a value when the subscription ends.
func (s *Subscription) Recall() <-chan struct{} { return s.recall }

// Recalled reports whether an offer must be withdrawn.
func (s *Subscription) Recalled(*source.Attempt) bool { return s.reading.Err() != nil }

// Drained is closed when no caller waits for the end of an attempt.
func (s *Subscription) Drained() <-chan struct{} { return s.drained }

// Sizes are the numbers of messages of a subscription, and their size together.
type Sizes struct {
	InFlight, Buffered, BackingOff int
	Bytes                          int
}

// Sizes returns the current sizes of the subscription.
func (s *Subscription) Sizes() Sizes {
	s.mu.Lock()
	sizes := Sizes{InFlight: len(s.held) - len(s.waiting), BackingOff: len(s.waiting)}
	for d := range s.held {
		sizes.Bytes += d.message.cost()
	}
	s.mu.Unlock()
	buffered, bytes := s.sink.Queue.Size()
	sizes.Buffered = buffered
	sizes.Bytes += bytes
	return sizes
}

// Reading ends when the subscription begins to close.
func (s *Subscription) Reading() context.Context { return s.reading }

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

// Stop begins to close; Done is closed at the end.
func (s *Subscription) Stop()                 { s.stop() }
func (s *Subscription) Done() <-chan struct{} { return s.done }

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// suffix is the last error of a handler at the end of a text.
func suffix(reason string) string {
	if reason == "" {
		return ""
	}
	return ": " + reason
}

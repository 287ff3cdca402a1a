package redischannels

import (
	"context"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/flaminco/redischannels/internal/redisconn"
	"github.com/flaminco/redischannels/internal/stream"
	"github.com/flaminco/redischannels/internal/window"
)

const (
	// drainGrace is what the writing of the last settlements may take after the
	// handlers are done, and taking back what a Subscribe that fails has made.
	drainGrace = 5 * time.Second
	// handBackLimit is what handing back may take at the end. What it does not reach ages.
	handBackLimit = 2 * time.Second
	// wakeInterval is the time between two attempts at waking a blocked read, and
	// wakeLimit is when its connection is closed instead.
	wakeInterval = 5 * time.Millisecond
	wakeLimit    = 100 * time.Millisecond
	// controlMemory is for how long a failed background duty counts as failing
	// while reading works.
	controlMemory = time.Second
	// untoldEvents is how many events wait for OnEvent at most. Beyond it what those of a
	// group are about waits as well, and those of Pub/Sub are merged: memory is bounded,
	// and nothing goes untold.
	untoldEvents = 1000
)

// subscription is one topic consumed by one Subscribe call. Its goroutines:
//
//	run       owns the others; ends the subscription in order
//	reading   fetches entries into the window (reading.go, fanout.go)
//	dispatch  hands messages over, one at a time; in strict order it also waits
//	          for each to be settled (dispatch.go)
//	watch     with MaxInFlight above 1: one per message in flight
//	settle    writes acknowledgements and dead letters; groups only (settle.go)
//	keep      renews leases; groups only (keep.go)
//	search    claims, hands back, removes idle consumers; groups only (keep.go)
//
// They share the window, whose lock is never held over a call of Redis. The locks that
// are, and their order, are listed in CONTRIBUTING.md.
type subscription struct {
	origin
	deadTopic string
	joined    bool // the consumer exists in Redis
	cfg       subscriberSettings
	log       watermill.LoggerAdapter
	out       chan *message.Message
	decoder   *decoder
	win       *window.Window
	reader    *stream.Reader // of a group
	grp       *stream.Group  // nil for fan-out

	// fetch ends first, with stop; then abandoned is closed, if handlers are still
	// running at DrainTimeout; then flushing, when no more settlements can come;
	// then keeping. settleCtx bounds the calls after stop.
	fetch      context.Context
	stop       context.CancelFunc
	abandoned  chan struct{}
	flushing   chan struct{}
	keeping    chan struct{}
	settleCtx  context.Context
	settleStop context.CancelFunc

	recall   chan struct{}  // to dispatch: look whether the offered item is to be taken back
	renewNow chan struct{}  // to keep: leases were voided
	handlers sync.WaitGroup // dispatch and the watchers

	restores  int                       // of the group since the last read; reading's own
	cut       bool                      // the connection was why the last read failed; reading's own
	unread    *stream.ID                // lastSeen before the first read whose reply did not come; reading's, then run's own
	shared    *sharedReaders            // of reading without a group
	feed      *feed                     // that the messages are for; nil where they are for no Reader
	behind    chan struct{}             // the shared reader goes on without us
	unshared  error                     // why, if it cannot read; guarded by the lock of sharedReaders
	cursor    stream.Cursor             // of reading without a group; whoever reads now, owns it
	firstSeen atomic.Pointer[stream.ID] // first new entry that was delivered here, nil before
	lastSeen  atomic.Pointer[stream.ID] // greatest ID that is known to be delivered to the group
	walk      walk
	ownLost   atomic.Bool           // entries may be assigned to us unseen
	missing   atomic.Pointer[error] // what told that the group is gone, to the reader
	reaped    time.Time             // last reap; open's and then search's own
	losses    losses                // the same
	returned  sync.Map              // stream.ID of entries that were handed back: how often they were handed over, or inRedis
	leases    sync.Mutex            // held over a renewal and over a hand-back
	writing   sync.Mutex            // held while settlements are written, and while a group is restored
	outage    outage
	settleErr outage
	counters  counters
	reports   *reporter // of a group
}

func newSubscription(ctx context.Context, cfg subscriberSettings, logger watermill.LoggerAdapter, topic string) *subscription {
	fields := watermill.LogFields{"topic": topic}
	if cfg.ConsumerGroup != "" {
		fields["consumer_group"] = cfg.ConsumerGroup
	}
	// A lease runs from the sending of the read: one that blocks for long would return
	// entries whose lease is over.
	block := max(min(cfg.Tuning.BlockTime, cfg.Tuning.MinIdle/3), minBlockTime)
	s := &subscription{
		origin:  origin{topic: topic, group: cfg.ConsumerGroup, values: context.WithoutCancel(ctx)},
		cfg:     cfg,
		log:     logger.With(fields),
		out:     make(chan *message.Message), // unbuffered: what is in it would be neither held nor handled
		decoder: newDecoder(cfg.SubscriberConfig, topic),
		win: window.New(window.Config{
			MaxInFlight:   cfg.MaxInFlight,
			Prefetch:      max(0, cfg.Tuning.Prefetch),
			PrefetchBytes: cfg.Tuning.PrefetchBytes,
			OnDemand:      cfg.onDemand,
			Keyed:         cfg.OrderingKey != nil && cfg.MaxInFlight > 1,
			LeaseTime:     cfg.Tuning.MinIdle - cfg.Tuning.MinIdle/6,
		}),
		abandoned: make(chan struct{}),
		flushing:  make(chan struct{}),
		keeping:   make(chan struct{}),
		recall:    make(chan struct{}, 1),
		behind:    make(chan struct{}, 1),
		renewNow:  make(chan struct{}, 1),
	}
	if cfg.ConsumerGroup != "" {
		s.reports = newReporter(s.tell, untoldEvents, false)
		s.reader = stream.NewReader(cfg.Client, topic, block, cfg.OnReadClient, s.connected)
		s.grp = &stream.Group{Client: cfg.Client, Key: topic, Name: cfg.ConsumerGroup}
	}
	s.origin.sub = s
	s.lastSeen.Store(&stream.ID{})
	s.fetch, s.stop = context.WithCancel(context.Background())
	s.settleCtx, s.settleStop = context.WithCancel(context.Background())
	s.outage = outage{sub: s, down: EventDisconnected, up: EventReconnected}
	s.settleErr = outage{sub: s, down: EventAckFailed}
	return s
}

// open makes the subscription live, or fails for what the caller can mend.
func (s *subscription) open(ctx context.Context, from Position) error {
	if s.grp == nil {
		return s.openFanOut(ctx, from)
	}
	var err error
	if s.deadTopic, err = deadLetterTopic(s.cfg.DeadLetterTopic, s.topic, s.cfg.Client); err != nil {
		return err
	}
	existed, err := s.grp.Ensure(ctx, from.groupStart())
	if err != nil {
		return err
	}
	if existed && from != Oldest {
		logSubscribed(s.log, "The consumer group exists: it resumes where it stands, StartFrom is ignored", nil)
	}
	err = redisconn.Follow(ctx, s.cfg.Client, func() error { return s.reader.ProbeGroup(ctx, s.group, s.grp.Consumer) })
	// Where its reply was lost the probe may have created the consumer.
	s.joined = err == nil || redisconn.Classify(err) == redisconn.KindNetwork
	if err != nil {
		return err
	}
	if err := s.grp.Probe(ctx, s.deadTopic); err != nil {
		return err
	}
	s.walk.slot = acquireWalk(walkKey{s.cfg.caller, s.topic, s.group})
	if err := s.reap(ctx); err != nil {
		return err
	}
	// The first walk begins here, so that its errors have a caller; reading goes
	// on with it before it asks for new entries.
	s.walk.begin()
	err = s.stepWalk(ctx)
	if redisconn.Classify(err) == redisconn.KindNetwork {
		err = s.stepWalk(ctx) // the client does not repeat it; the reader finds what the first one took
	}
	return err
}

// abort releases what open has made.
func (s *subscription) abort() {
	bound := time.AfterFunc(drainGrace, s.settleStop)
	defer bound.Stop()
	s.handBackAll()
	s.leave()
	s.walk.slot.release()
	s.stop()
	s.settleStop()
	s.tellRest()
}

// tellRest returns when every event was told.
func (s *subscription) tellRest() {
	if s.reports != nil {
		s.reports.close()
	}
}

// run works until stop and then ends everything in order.
func (s *subscription) run() {
	defer s.settleStop()
	var reading, settling, keeping sync.WaitGroup
	s.handlers.Go(s.dispatch)
	if s.grp == nil {
		reading.Go(s.readFanOut)
	} else {
		reading.Go(s.readGroup)
		settling.Go(s.settle)
		keeping.Go(s.keep)
		keeping.Go(s.search)
	}

	<-s.fetch.Done()
	left := make(chan struct{})
	var waking sync.WaitGroup
	if s.grp != nil {
		waking.Go(func() { endRead(s.settleCtx, s.reader, left) })
	}
	reading.Wait()
	close(left)
	waking.Wait()
	s.handBackAll()
	s.drain()
	s.handBackAll() // nacked while draining

	bound := time.AfterFunc(drainGrace, s.settleStop)
	defer bound.Stop()
	close(s.flushing)
	settling.Wait()
	close(s.keeping)
	keeping.Wait()
	s.handBackAll() // claimed by the last step of a walk
	s.leave()
	s.walk.slot.release()
	s.tellRest()
}

// handBackAll hands back what no handler has begun.
func (s *subscription) handBackAll() { s.handBackAtEnd(s.win.Close()) }

// handBackAtEnd is handBack for a server that may not be there any more: all retries of the
// client would hold up the end.
func (s *subscription) handBackAtEnd(items []*window.Item) {
	ctx, cancel := context.WithTimeout(s.settleCtx, handBackLimit)
	defer cancel()
	s.handBack(ctx, items)
}

// endRead ends a blocked read: it asks the server until the reading goroutine has left.
// A closed connection would leave the server with a client that it may still send an
// entry to, so that comes only at wakeLimit.
func endRead(ctx context.Context, reader *stream.Reader, left <-chan struct{}) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var dropping sync.WaitGroup
	dropping.Go(func() {
		defer cancel() // Wake may wait for a connection of the pool
		for pause(left, wakeLimit) {
			reader.Drop()
		}
	})
	for {
		reader.Wake(ctx)
		if !pause(left, wakeInterval) {
			break
		}
	}
	dropping.Wait()
}

// drain waits for the handlers, up to DrainTimeout.
func (s *subscription) drain() {
	done := make(chan struct{})
	var waiting sync.WaitGroup
	waiting.Go(func() {
		s.handlers.Wait()
		close(done)
	})
	if pause(done, s.cfg.Tuning.DrainTimeout) {
		close(s.abandoned)
		for _, value := range s.win.Values() {
			if d, ok := value.(*delivery); ok {
				s.abandon(d)
			}
		}
		<-done
		if items := s.win.Active(); len(items) > 0 {
			s.report(Event{Kind: EventAbandoned, EntryIDs: texts(items)})
		}
	}
	waiting.Wait()
}

// leave gives back what was assigned to this consumer unseen, removes the consumer if
// nothing of it is pending, and closes its connection.
func (s *subscription) leave() {
	if s.grp == nil {
		return
	}
	defer s.reader.Close()
	if !s.joined {
		return
	}
	ctx := s.settleCtx
	if s.ownLost.Load() {
		if err := s.handBackUnseen(ctx); err != nil {
			s.log.Debug("Cannot give back entries that were never seen", watermill.LogFields{"err": err})
		}
	}
	if err := s.grp.Leave(ctx); err != nil {
		s.log.Debug("Cannot remove the consumer, others will", watermill.LogFields{"err": err})
	}
}

// retryDelay is the back-off of everything that talks to Redis in the background.
func retryDelay(attempt int) time.Duration {
	return Backoff{Min: 50 * time.Millisecond, Max: time.Second, Factor: 2, Jitter: 0.2}.delay(attempt, rand.Float64())
}

// duty is what can fail in the background. An outage begins with the first that
// fails and ends when none does any more.
type duty uint8

const (
	dutyRead    duty = iota // the reading goroutine
	dutyControl             // everything on the caller's client but settling
	dutySettle
	dutyShared // the reader that fan-out subscriptions share
	duties
)

// outage turns a row of failures into one event, and its end into another.
type outage struct {
	sub      *subscription
	down, up EventKind

	mu       sync.Mutex
	since    time.Time
	last     time.Time
	attempts [duties]int
	forgiven bool // one failure was let pass
}

func (o *outage) failing() bool { return o.attempts != [duties]int{} }

// open reports whether there is an outage now.
func (o *outage) open() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.failing()
}

// failed reports the first failure of a row and returns how often this duty has
// failed in a row.
func (o *outage) failed(d duty, err error, ids ...string) int {
	o.mu.Lock()
	first := !o.failing()
	if first {
		o.since = time.Now()
	}
	o.attempts[d]++
	o.last = time.Now()
	attempts := o.attempts[d]
	o.mu.Unlock()
	redisconn.Relocate(o.sub.cfg.Client)
	if first {
		o.sub.report(Event{Kind: o.down, Err: redisError(err), EntryIDs: ids})
	}
	return attempts
}

// over ends a duty's row of failures.
func (o *outage) over(d duty) {
	o.mu.Lock()
	failing, since := o.failing(), o.since
	o.attempts[d] = 0
	if d == dutyRead && time.Since(o.last) > controlMemory {
		// Duties that come seldom would keep a past outage open.
		o.attempts[dutyControl] = 0
	}
	ended := failing && !o.failing()
	if !o.failing() {
		o.forgiven = false
	}
	o.mu.Unlock()
	if ended && o.up != 0 {
		o.sub.report(Event{Kind: o.up, Duration: time.Since(since)})
	}
}

// report has the logger and OnEvent told. In a group that is left to the reporter: what
// has happened may hold a lock, and leases are to be renewed and acks written while
// somebody takes his time. Without a group it is done at once, since a gap is told before
// what comes behind it.
func (s *subscription) report(e Event) {
	e.Topic, e.Group = s.topic, s.group
	if s.grp != nil {
		e.Consumer = s.grp.Consumer
	}
	if e.Count == 0 {
		e.Count = len(e.EntryIDs)
	}
	s.counters.event(e)
	if s.grp == nil {
		s.tell(e)
		return
	}
	s.reports.post(e)
}

func (s *subscription) tell(e Event) {
	fields := watermill.LogFields{}
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
		s.log.Info(text, fields)
	default:
		s.log.Error(text, e.Err, fields)
	}
	tellEvent(s.cfg.OnEvent, s.log, e)
}

func texts(items []*window.Item) []string {
	ids := make([]string, len(items))
	for i, it := range items {
		ids[i] = it.Text
	}
	return ids
}

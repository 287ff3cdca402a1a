// Package consumer is a subscription in a consumer group: it reads the entries of one or more
// streams of a hash slot, claims those of crashed consumers, renews the leases of its entries,
// and writes how deliveries end.
//
// Each duty is a type with its own state:
//
//	reader     reads new entries
//	obtainer   pending entries: claimed ones, and own ones whose reply was lost
//	claimer    claim scans, and the state of the other consumers
//	releases   releases entries that wait too long
//	keeper     renews leases, and prepares deliveries that are not counted yet
//	acker      writes acknowledgements
//	mover      moves entries to the dead-letter stream
//	deferrer   stores retries with long delays
//	restorer   re-creates a lost group
//	pauser     checks whether the group is paused
//
// A dispatch.Dispatcher on the window selects the next delivery.
package consumer

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/flaminco/redischannels/internal/delayed"
	"github.com/flaminco/redischannels/internal/dispatch"
	"github.com/flaminco/redischannels/internal/keys"
	"github.com/flaminco/redischannels/internal/outage"
	"github.com/flaminco/redischannels/internal/redisconn"
	"github.com/flaminco/redischannels/internal/source"
	"github.com/flaminco/redischannels/internal/stream"
	"github.com/flaminco/redischannels/internal/window"
)

// drainGrace is the maximum time for writing the last acknowledgements and dead letters after the
// handlers are done, and for undoing a failed Open.
const drainGrace = 5 * time.Second

// leastTimeout is the minimum timeout of a renewal, even if MinIdle is short.
const leastTimeout = 250 * time.Millisecond

// Config configures [New]. All fields are required unless noted.
type Config struct {
	Client redis.UniversalClient // of the caller; never closed
	Shared any                   // shared by the consumers of one process, which scan in turn

	Topic keys.Topic
	Group string
	Name  func() (string, error) // returns a name that no other consumer has
	Start string                 // ID after which a new group begins

	MinIdle         time.Duration
	ClaimInterval   time.Duration
	BlockTime       time.Duration
	ConsumerTimeout time.Duration
	DrainTimeout    time.Duration
	StallAfter      time.Duration // after which waiting callers are reported although there are entries

	Origin        *source.Origin // of the attempts; New sets its Owner
	Window        window.Config  // New sets From, LeaseTime and MaxDeliveries
	MaxDeliveries int            // 0 for no bound
	Backoff       func(delivered int) time.Duration

	// Prepare sets the ordering key of an item before it is delivered, or a Reason for which it
	// is dead-lettered. It may be nil.
	Prepare func(it *window.Item)

	DeadTopic string
	DeadTrim  stream.Trim

	DeferAfter  time.Duration // a retry that the application requests is deferred if its delay is longer
	MaxDeferred int           // maximum number in the group; 0: none is deferred

	// OnDue receives a due set of the topic or the group that is not empty, and the time until its first
	// entry is due. It must return soon and must not call the consumer.
	OnDue func(target delayed.Target, wait time.Duration)

	OnClient func(*redis.Client) // receives each client that is opened; may be nil
	Observer Observer
}

// Consumer is one subscription. It implements source.Source.
type Consumer struct {
	*dispatch.Dispatcher
	cfg    Config
	id     *identity
	win    *window.Window
	outage *outage.Outage

	reader   *reader
	obtain   *obtainer
	claimer  *claimer
	releases *releases
	keeper   *keeper
	acker    *acker
	mover    *mover
	deferrer *deferrer
	restorer *restorer
	pauser   *pauser

	// reading ends first, by stop; then working, when everything is written.
	reading context.Context
	stop    context.CancelFunc
	working context.Context
	quit    context.CancelFunc
	done    chan struct{} // closed when all goroutines have ended
	joined  bool          // the consumer may exist in Redis
}

// New returns a consumer. It sends no commands to Redis.
func New(cfg Config) *Consumer {
	c := &Consumer{cfg: cfg, done: make(chan struct{})}
	c.reading, c.stop = context.WithCancel(context.Background())
	c.working, c.quit = context.WithCancel(context.Background())
	cfg.Window.From = cfg.Origin
	cfg.Window.LeaseTime = cfg.MinIdle - cfg.MinIdle/6
	cfg.Window.MaxDeliveries = cfg.MaxDeliveries
	cfg.Window.Pausable = true
	cfg.Window.Deferrable = cfg.MaxDeferred > 0 && !cfg.Window.Keyed
	c.win = window.New(cfg.Window)
	c.outage = &outage.Outage{
		Down: func(err error, _ []string) { cfg.Observer.Disconnected(err) },
		Up:   cfg.Observer.Reconnected,
	}
	c.id = newIdentity(cfg.Client, cfg.Topic, cfg.Group)
	// The reader's connection. A lease begins when the read is sent, so a read that blocks for
	// long would return entries with expired leases.
	block := max(min(cfg.BlockTime, cfg.MinIdle/3), time.Millisecond)
	connection := stream.NewReader(cfg.Client, cfg.Topic.Name, block, cfg.OnClient, c.connected)

	c.restorer = newRestorer(c)
	c.obtain = newObtainer(c)
	c.claimer = newClaimer(c)
	timeout := max(cfg.MinIdle/4, leastTimeout)
	control := redisconn.NewControl(cfg.Client, cfg.Topic.Name, timeout, cfg.OnClient)
	c.keeper = newKeeper(c, control)
	c.pauser = &pauser{c: c, control: control}
	c.releases = &releases{id: c.id, control: control, timeout: timeout, minIdle: cfg.MinIdle, restorer: c.restorer, lost: &c.obtain.lost, unknown: &c.obtain.unknown, outage: c.outage, failed: c.failed}
	c.acker = newAcker(c)
	c.deferrer = newDeferrer(c)
	c.mover = newMover(c)
	c.reader = newReader(c, connection)
	c.Dispatcher = dispatch.New(dispatch.Config{
		Window: c.win, Policy: (*policy)(c), MaxDeliveries: cfg.MaxDeliveries, Backoff: cfg.Backoff,
	})
	cfg.Origin.Owner = c.Dispatcher
	return c
}

// connected ends all leases: another connection may mean another server, which may not have the
// claims of the old one. The first read on it may block for long.
func (c *Consumer) connected() {
	c.win.Leases.Void()
	c.keeper.reconnected()
}

// Open makes the consumer live, or returns an error that the caller can fix. existed reports
// whether the group existed.
func (c *Consumer) Open(ctx context.Context) (existed bool, err error) {
	name, err := c.cfg.Name()
	if err != nil {
		return false, err
	}
	c.id.self.Store(&self{name: name})
	err = redisconn.Guard(func() (err error) {
		existed, err = c.open(ctx)
		return err
	})
	if err != nil {
		c.abort()
		return false, err
	}
	go c.run()
	return existed, nil
}

func (c *Consumer) open(ctx context.Context) (existed bool, err error) {
	if err := c.join(ctx); err != nil {
		return false, err
	}
	for i := range c.id.keys {
		group := c.id.on(c.cfg.Client, i)
		start := c.cfg.Start
		if i > 0 {
			start = stream.ID{}.String() // all entries of the return stream are for the group
		}
		there, err := group.Ensure(ctx, start)
		if err != nil {
			return false, err
		}
		existed = existed || there && i == 0
		err = redisconn.Follow(ctx, c.cfg.Client, func() error { return c.reader.probe(ctx, i) })
		// If its reply was lost the probe may have created the consumer.
		c.joined = c.joined || err == nil || redisconn.Classify(err) == redisconn.KindNetwork
		if err != nil {
			return false, err
		}
		probe := func(ctx context.Context, pipe redis.Pipeliner) {
			delayed.ProbeMove(ctx, pipe, c.id.targets[i])
			if i > 0 && c.cfg.MaxDeferred > 0 {
				delayed.ProbeDefer(ctx, pipe, c.id.targets[i])
			}
		}
		if err := group.Probe(ctx, c.cfg.DeadTopic, probe); err != nil {
			return false, err
		}
	}
	if _, err := stream.Time(ctx, c.cfg.Client, c.cfg.DeadTopic); err != nil { // moves need it
		return false, err
	}
	return existed, c.claimer.open(ctx)
}

// join reports settings that differ from those of another subscription of the group, and reads
// whether the group is paused, and how often it was sought.
func (c *Consumer) join(ctx context.Context) error {
	own := delayed.Settings{MinIdle: c.cfg.MinIdle.Truncate(time.Millisecond), ConsumerTimeout: c.cfg.ConsumerTimeout.Truncate(time.Millisecond)}
	sent := time.Now()
	before, paused, sought, err := delayed.Join(ctx, c.cfg.Client, c.id.targets[1], own)
	if err != nil {
		return err
	}
	c.id.self.Store(&self{name: c.id.consumer(), sought: sought})
	c.win.Pause.Looked(sent, paused)
	if before.MinIdle != 0 && before.MinIdle != own.MinIdle {
		c.cfg.Observer.Failed(fmt.Errorf("the MinIdle of the group is %s here and was %s in another subscription: entries are claimed too early from the one with the greater value", own.MinIdle, before.MinIdle))
	}
	if before.ConsumerTimeout != 0 && before.ConsumerTimeout != own.ConsumerTimeout {
		c.cfg.Observer.Failed(fmt.Errorf("the ConsumerTimeout of the group is %s here and was %s in another subscription: the shorter one removes idle consumers", own.ConsumerTimeout, before.ConsumerTimeout))
	}
	return nil
}

// abort undoes Open.
func (c *Consumer) abort() {
	bound := time.AfterFunc(drainGrace, c.quit)
	defer bound.Stop()
	c.Dispatcher.Stop()
	c.stop()
	c.releases.atEnd(c.working, c.win.Close())
	c.leave()
	c.quit()
	close(c.done)
}

// run works until stop and then ends the duties in order: undelivered entries are released; the
// deliveries in flight end, or are abandoned; their ends are written, acknowledgements before
// dead letters; and the consumer leaves the group.
func (c *Consumer) run() {
	defer close(c.done)
	defer c.quit()
	var reading, writing, keeping sync.WaitGroup
	reading.Go(func() { c.reader.run(c.reading) })
	reading.Go(func() { c.upkeep(c.reading) })
	reading.Go(func() { c.pauser.run(c.reading) })
	writing.Go(func() { c.acker.run(c.working) })
	writing.Go(func() { c.mover.run(c.working) })
	keeping.Go(func() { c.keeper.run(c.working) })

	<-c.reading.Done()
	c.Dispatcher.Stop()
	left := make(chan struct{})
	var waking sync.WaitGroup
	waking.Go(func() { c.reader.stream.End(c.working, left) })
	reading.Wait()
	close(left)
	waking.Wait()
	c.releaseHeld()
	if abandoned := c.Drain(c.cfg.DrainTimeout); len(abandoned) > 0 {
		c.cfg.Observer.Abandoned(abandoned, nil)
		// Other consumers claim them after MinIdle, with their counts.
		c.releases.atEnd(c.working, c.win.Abandon(c.cfg.MinIdle))
	}
	c.releaseHeld() // nacked while draining

	bound := time.AfterFunc(drainGrace, c.quit)
	defer bound.Stop()
	close(c.acker.flushing)
	close(c.mover.flushing)
	writing.Wait()
	c.releaseHeld() // those that could not be deferred
	close(c.keeper.ending)
	keeping.Wait()
	c.leave()
}

// releaseHeld releases undelivered entries, or defers them until their back-off is over.
func (c *Consumer) releaseHeld() {
	c.releases.atEnd(c.working, c.deferrer.atEnd(c.working, c.win.Close()))
}

// upkeep claims entries of crashed consumers, and releases entries that wait too long. It is not
// part of the keeper: its commands may take long, and leases must be renewed meanwhile.
func (c *Consumer) upkeep(ctx context.Context) {
	scan := time.NewTimer(c.claimer.delay())
	defer scan.Stop()
	look := time.NewTicker(staleCheck)
	defer look.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-look.C:
			c.win.BlockLong(staleAfter)
			c.releaseBuffered(ctx)
			c.reader.halt()
			c.win.Probe()
			c.stalled()
		case <-scan.C:
			scan.Reset(c.claimer.delay())
			c.claimer.begin(ctx)
		case <-c.claimer.turn:
			c.claimer.next(ctx)
		}
	}
}

// releaseBuffered releases buffered entries: while the group is paused none stays, so that it can be
// sought.
func (c *Consumer) releaseBuffered(ctx context.Context) {
	if !c.Paused() {
		c.releaseStale(ctx)
	} else if items := c.win.Pause.TakeBuffered(); len(items) > 0 {
		c.release(items)
	}
}

// releaseStale releases entries that wait for a busy application, or for an ordering key that has
// too many, if the group has another active consumer.
func (c *Consumer) releaseStale(ctx context.Context) {
	if c.obtain.unknown.Load() {
		c.claimer.company(ctx) // it counts the trimmed entries that the lost reply may have named
	}
	stale, left := c.win.Room.Oldest() >= staleAfter, c.win.LeftOut()
	if !stale && !left || !c.claimer.company(ctx) {
		return
	}
	if left {
		c.reader.share(ctx)
	}
	if !stale {
		return
	}
	items, recalled := c.win.Room.TakeStale(staleAfter, c.cfg.MinIdle)
	if recalled {
		c.Ask()
	}
	if len(items) > 0 {
		c.release(items)
	}
}

// release releases entries for other consumers. With an order those that no other consumer claims
// return before new entries are read.
func (c *Consumer) release(items []*window.Item) {
	c.releases.release(c.working, items)
	if c.ordered() {
		c.claimer.restart()
		c.reader.away.Store(true)
		c.reader.stream.Wake(c.working) // the entries for which it waits are behind them
	}
	c.win.Released(len(items))
	c.cfg.Observer.Released(texts(items))
}

// stalled reports, once, callers that wait although there are entries.
func (c *Consumer) stalled() {
	if s, ok := c.win.Stalled(c.cfg.StallAfter); ok {
		c.cfg.Observer.Stalled(s.InFlight+s.BackingOff, s.Reason())
	}
}

// ordered reports whether there is an order among entries.
func (c *Consumer) ordered() bool { return c.cfg.Window.Keyed || c.win.Ordered() }

// leave releases entries that a lost reply has assigned to this consumer, removes the consumer if
// it has nothing pending, and closes its connections.
func (c *Consumer) leave() {
	defer c.claimer.close()
	defer c.reader.stream.Close()
	defer c.keeper.control.Close()
	if !c.joined {
		return
	}
	if c.obtain.lost.Load() {
		_ = c.obtain.releaseUnseen(c.working) // otherwise they are claimed after MinIdle
	}
	if c.obtain.unknown.Load() {
		_ = c.claimer.reap(c.working, stream.CountNew) // it counts the trimmed entries that a lost reply may have named
	}
	for i := range c.id.keys {
		_ = c.id.on(c.cfg.Client, i).Leave(c.working) // otherwise other consumers remove it
	}
}

// failed handles an error of a duty that is repeated anyway.
func (c *Consumer) failed(d outage.Duty, of int, err error) {
	if c.reading.Err() != nil {
		return
	}
	switch kind := redisconn.Classify(err); {
	case c.restorer.missing(of, err):
	case kind.Retryable(), kind == redisconn.KindCanceled, kind == redisconn.KindWrongType:
		c.fail(d, err)
	default:
		c.cfg.Observer.Failed(err)
	}
}

// fail records a failure and returns the number of consecutive failures of the duty.
func (c *Consumer) fail(d outage.Duty, err error) int {
	attempts := c.outage.Failed(d, err)
	redisconn.Relocate(c.cfg.Client)
	return attempts
}

// Close implements source.Source.
func (c *Consumer) Close(ctx context.Context) error {
	c.stop()
	select {
	case <-c.done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Stop begins to close; Done is closed at the end.
func (c *Consumer) Stop()                 { c.stop() }
func (c *Consumer) Done() <-chan struct{} { return c.done }

// Sizes are those of the window; Down, Paused and Closing are the other state.
func (c *Consumer) Sizes() window.Sizes { return c.win.Sizes() }
func (c *Consumer) Down() bool          { return c.outage.Open() }
func (c *Consumer) Paused() bool        { return c.win.Pause.Paused() }
func (c *Consumer) Closing() bool       { return c.reading.Err() != nil }

// ConsumerName returns the name of the consumer in Redis.
func (c *Consumer) ConsumerName() string { return c.id.consumer() }

// policy handles the deliveries of a consumer. It implements dispatch.Policy.
type policy Consumer

func (p *policy) Delivered(count int) { p.cfg.Observer.Delivered(count) }

func (p *policy) Acked(it *window.Item) (late bool) { return p.win.Acks.Ack(it) }

func (p *policy) GiveUp(it *window.Item, o source.Outcome) {
	reason := o.Reason
	if reason == "" {
		reason = "rejected"
	}
	p.win.Acks.Move(it, reason)
}

func (p *policy) Recalled(items []*window.Item) {
	// Other consumers have the time of a claim scan before an entry is offered here again.
	p.win.RestRecalled(p.cfg.ClaimInterval + p.cfg.ClaimInterval/5)
	(*Consumer)(p).release(items)
}

func (p *policy) AckIgnored(id string, err error) { p.cfg.Observer.AckIgnored([]string{id}, 1, err) }

func (p *policy) TimedOut(id string) { p.cfg.Observer.HandlerTimeout(id) }

// prepare completes an item before it is admitted.
func (c *Consumer) prepare(it *window.Item) {
	if it.Stream > 0 {
		if r, ok := it.TakeReturn(); ok {
			it.Origin = &window.Origin{ID: r.ID, Text: r.Text, Delivered: r.Count}
		}
	}
	if c.cfg.Prepare != nil {
		c.cfg.Prepare(it)
	}
}

// texts returns the IDs of entries in the topic.
func texts(items []*window.Item) []string {
	ids := make([]string, len(items))
	for i, it := range items {
		ids[i] = it.EntryID()
	}
	return ids
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

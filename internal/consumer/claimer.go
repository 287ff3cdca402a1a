package consumer

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/flaminco/redischannels/internal/outage"
	"github.com/flaminco/redischannels/internal/redisconn"
	"github.com/flaminco/redischannels/internal/stream"
)

const (
	// claimBatch is the maximum number of entries that one step of a scan claims.
	claimBatch = 100
	// reapEvery is the number of scans between two checks for idle consumers and of the position
	// of the group: a few commands, which idle subscriptions should not send with each scan.
	reapEvery = 4
)

// claimer claims entries of crashed consumers: a cursor moves through the group's pending
// entries, in steps as there is room. Its goroutine is upkeep; the reader takes part in the first
// scan.
type claimer struct {
	c    *Consumer
	turn chan struct{} // for one more step
	slot *scanSlot

	dueSets []string

	mu      sync.Mutex
	running bool
	of      int // stream of the running scan
	cursor  stream.ID

	// These belong to the goroutine.
	scans  int
	reaped time.Time

	// The state of the group in the topic. A return stream loses no entries, and a consumer that
	// reads one stream reads the other.
	losses losses
	peers  peers
	base   stream.ID // no pending entry was older at the last check
	sought int64     // these are of the time after this many seeks
}

func newClaimer(c *Consumer) *claimer {
	k := &claimer{c: c, turn: make(chan struct{}, 1)}
	for _, target := range c.id.targets {
		k.dueSets = append(k.dueSets, target.Due())
	}
	return k
}

// open reads the position of the group and begins the first scan, so that its errors have a
// caller.
func (k *claimer) open(ctx context.Context) error {
	k.slot = acquireSlot(slotKey{k.c.cfg.Shared, k.c.id.keys[0], k.c.cfg.Group})
	if err := k.reap(ctx, stream.CountNew); err != nil {
		return err
	}
	k.start()
	k.cursor = stream.ID{}.Next() // without pending entries a scan from 0-0 would not need its permissions
	if k.c.ordered() {
		// Released entries come first, including those that wait for their retry.
		if more, err := k.c.obtain.released(ctx, k.c.cfg.Client, k.c.win.Room.Claim()); more || err != nil {
			return err
		}
	}
	_, err := k.step(ctx)
	if redisconn.Classify(err) == redisconn.KindNetwork {
		_, err = k.step(ctx) // the client does not retry it; the reader finds the entries of the first attempt
	}
	return err
}

func (k *claimer) close() { k.slot.release() }

// delay is the time until the next scan.
func (k *claimer) delay() time.Duration {
	d := k.c.cfg.ClaimInterval
	return d + time.Duration((rand.Float64()-0.5)*0.2*float64(d))
}

// begin begins a scan if it is this consumer's turn; otherwise it only shows that the consumer is
// active.
func (k *claimer) begin(ctx context.Context) {
	switch {
	case k.c.reader.shared.Load() && k.company(ctx):
		// It would claim the released entries of an ordering key, and release them again behind
		// entries that other consumers have claimed since.
	case k.c.win.Room.Claim() == 0 || k.slot.due(k.c.cfg.ClaimInterval):
		// Without room the scan waits for room; until then a sibling with room has the turn.
		k.start()
		signal(k.turn)
	}
	if !k.active() || k.c.win.Room.Claim() == 0 {
		k.touch(ctx)
	}
	if k.scans++; k.scans >= reapEvery && k.reaps(ctx, stream.CountNew) {
		k.scans = 0 // else it is tried again next time
	}
}

// failed handles an error of a script about all streams, or about one that it names.
func (k *claimer) failed(d outage.Duty, err error) {
	k.c.failed(d, max(0, k.c.restorer.named(err)), err)
}

// scan makes a step of a scan from a cursor in a stream.
func (k *claimer) scan(ctx context.Context, of int, cursor stream.ID, count int) (stream.Scanned, error) {
	sent := time.Now()
	beside := stream.Beside{Streams: k.c.id.keys[of+1:], Due: k.dueSets}
	scanned, err := k.c.id.on(k.c.cfg.Client, of).Scan(ctx, k.c.cfg.MinIdle, cursor, count, beside)
	scanned.Of += of
	if err == nil {
		k.due(scanned.Due)
		if scanned.Pause != stream.PauseUnknown {
			k.c.pauser.saw(sent, scanned.Pause == stream.Paused, scanned.Sought)
		}
	}
	return scanned, err
}

// touch shows other consumers that this one is active.
func (k *claimer) touch(ctx context.Context) {
	if _, err := k.scan(ctx, 0, stream.ID{}, 0); err != nil {
		k.failed(outage.Scan, err)
		return
	}
	k.c.outage.Over(outage.Scan)
}

// due returns when the first entries of the due sets are due.
func (k *claimer) due(waits []time.Duration) {
	for i, wait := range waits {
		if wait >= 0 {
			k.c.cfg.OnDue(k.c.id.targets[i], wait)
		}
	}
}

// next continues the scan as far as there is room. Its entries must not overtake entries that
// were left out of the window and are about to be read again.
func (k *claimer) next(ctx context.Context) {
	if !k.active() || k.c.win.Room.Claim() == 0 || k.c.win.Behind() || ctx.Err() != nil {
		return
	}
	if _, err := k.step(ctx); err != nil {
		k.end()
		k.failed(outage.Scan, err)
		return
	}
	k.c.outage.Over(outage.Scan)
	signal(k.turn)
}

func (k *claimer) start() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.running {
		k.running, k.of, k.cursor = true, 0, stream.ID{}
	}
}

// restart restarts a running scan.
func (k *claimer) restart() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.of, k.cursor = 0, stream.ID{}
}

func (k *claimer) end() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.running = false
}

func (k *claimer) active() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.running
}

// position returns the position of the scan.
func (k *claimer) position() (of int, cursor stream.ID, running bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.of, k.cursor, k.running
}

// move advances the scan, unless it was restarted.
func (k *claimer) move(of int, from stream.ID, scanned stream.Scanned) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.of != of || k.cursor != from {
		return
	}
	k.of, k.cursor = scanned.Of, scanned.Next
	if k.cursor.IsZero() {
		k.of++
		k.running = k.of < len(k.c.id.keys)
	}
}

// step claims the next entries of the scan and reports whether it has found some.
func (k *claimer) step(ctx context.Context) (found bool, err error) {
	o := k.c.obtain
	if err := o.begin(ctx, k.c.cfg.Client); err != nil {
		return false, err
	}
	defer o.mu.Unlock()
	of, cursor, running := k.position()
	count := min(k.c.win.Room.Claim(), claimBatch)
	if !running || count == 0 {
		return false, nil
	}
	sent := time.Now()
	scanned, err := k.scan(ctx, of, cursor, count)
	if err == nil && scanned.Pause == stream.Paused {
		return false, nil
	}
	if err != nil {
		o.lost.Store(true)
		if scanned.Lost {
			o.unknown.Store(true)
		}
		return false, err
	}
	k.move(of, cursor, scanned)
	of = scanned.Of
	o.trimmed(of, scanned.Trimmed)
	released := make(map[string]bool, len(scanned.Released))
	for _, id := range scanned.Released {
		released[id] = true
	}
	err = o.fetch(ctx, k.c.id.on(k.c.cfg.Client, of), of, scanned.IDs, sent, provenance{released: released})
	return len(scanned.IDs) > 0, err
}

// company reports whether the group has another active consumer. It sends a command at most once
// a second.
func (k *claimer) company(ctx context.Context) bool {
	if time.Since(k.reaped) > staleAfter && !k.reaps(ctx, stream.CountNone) {
		return false
	}
	return k.peers.alive > 0
}

// reaps is reap by upkeep, and reports whether it has succeeded.
func (k *claimer) reaps(ctx context.Context, count stream.Counting) bool {
	if err := k.reap(ctx, count); err != nil {
		k.failed(outage.Reap, err)
		return false
	}
	k.c.outage.Over(outage.Reap)
	return true
}

// reap removes idle consumers, and records the position of the group.
func (k *claimer) reap(ctx context.Context, count stream.Counting) error {
	k.reaped = time.Now()
	self := k.c.id.on(k.c.cfg.Client, 0)
	if self.Sought != k.sought { // what was lost before counts from a new position
		k.losses, k.base, k.sought = losses{}, stream.ID{}, self.Sought
	}
	opts := stream.ReapOptions{Timeout: k.c.cfg.ConsumerTimeout, Alive: 2 * k.c.cfg.ClaimInterval, Count: count, Control: k.c.cfg.Topic.Control()}
	if opts.Count == stream.CountNew && k.losses.base > 0 {
		opts.Count = stream.CountAll
	}
	if k.c.obtain.unknown.Swap(false) {
		opts.Base = k.base
	}
	standing, err := self.Reap(ctx, opts, k.c.id.keys[1:]...)
	if err != nil {
		k.c.obtain.unknown.CompareAndSwap(false, !opts.Base.IsZero())
		return err
	}
	k.peers.see(standing.Others, standing.Sent, time.Now())
	k.c.restorer.stands(self.Sought, standing)
	if n, lost := k.losses.see(standing); lost {
		k.c.cfg.Observer.Trimmed(nil, n)
	}
	if standing.Removed {
		// Pending entries may have been trimmed, and the reply that named them was lost.
		k.c.cfg.Observer.Trimmed(nil, 0)
	}
	if k.base = standing.Oldest; k.base.IsZero() {
		k.base = standing.LastDelivered.Next()
	}
	return nil
}

// peers are the other consumers of a group. A consumer is active if it was active after its first
// check, or has joined since the first check; the name of a crashed process is not.
type peers struct {
	looked bool
	first  map[string]time.Time // the first check of a name; zero if it has joined later
	alive  int
}

func (p *peers) see(others []stream.Idle, sent, received time.Time) {
	first := make(map[string]time.Time, len(others))
	p.alive = 0
	for _, other := range others {
		since, known := p.first[other.Name]
		if !known && !p.looked {
			since = received
		}
		if since.IsZero() || other.Idle+time.Millisecond < sent.Sub(since) {
			since = time.Time{}
			p.alive++
		}
		first[other.Name] = since
	}
	p.first, p.looked = first, true
}

// losses are the undelivered entries that a group has lost, as observed by one of its consumers.
type losses struct {
	known bool
	base  int64     // lost when the group had last read all entries
	seen  int64     // lost since then, and reported
	at    stream.ID // position of the group when an unknown number was reported
}

// see returns the number of entries lost since its last call, 0 for an unknown number.
func (l *losses) see(group stream.Standing) (n int, lost bool) {
	switch {
	case group.LostUntilNow >= 0:
		n := group.LostUntilNow - l.base - l.seen
		lost = l.known && n > 0 // earlier losses are not reported by this subscription
		l.known, l.base, l.seen = true, group.LostUntilNow, 0
		return int(n), lost
	case group.Lost < 0:
		lost = l.at != group.LastDelivered
		l.at = group.LastDelivered
		return 0, lost
	case group.Lost == 0:
		return 0, false
	}
	if group.Lost < l.base+l.seen {
		l.base, l.seen = 0, 0 // another stream, or the server counts the lost ones as read
	}
	total := group.Lost - l.base
	l.known, n, l.seen = true, int(total-l.seen), total
	return n, n > 0
}

// slotKey names the scans of one group; consumers of one process share them.
type slotKey struct {
	client       any
	topic, group string
}

// scanSlot ensures that only one of the consumers of a group in this process scans per
// ClaimInterval.
type scanSlot struct {
	key  slotKey
	refs int
	last time.Time
}

var slots = struct {
	sync.Mutex
	all map[slotKey]*scanSlot
}{all: make(map[slotKey]*scanSlot)}

func acquireSlot(key slotKey) *scanSlot {
	slots.Lock()
	defer slots.Unlock()
	slot := slots.all[key]
	if slot == nil {
		slot = &scanSlot{key: key}
		slots.all[key] = slot
	}
	slot.refs++
	slot.last = time.Now()
	return slot
}

// due reports whether it is time for a scan and takes the turn.
func (s *scanSlot) due(interval time.Duration) bool {
	slots.Lock()
	defer slots.Unlock()
	if time.Since(s.last) < interval/2 {
		return false
	}
	s.last = time.Now()
	return true
}

func (s *scanSlot) release() {
	if s == nil {
		return
	}
	slots.Lock()
	defer slots.Unlock()
	if s.refs--; s.refs == 0 {
		delete(slots.all, s.key)
	}
}

func exhausted(n int) string { return fmt.Sprintf("delivered %d times without success", n) }

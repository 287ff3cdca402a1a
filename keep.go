package redischannels

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/flaminco/redischannels/internal/redisconn"
	"github.com/flaminco/redischannels/internal/stream"
	"github.com/flaminco/redischannels/internal/window"
)

const (
	// holdBatch is how many entries one script renews or hands back.
	holdBatch = 200
	// claimBatch is how many entries one step of a walk claims at most.
	claimBatch = 100
	// staleAfter is how long an entry waits for a busy application before it is
	// handed back, and staleCheck how often that is looked at.
	staleAfter = time.Second
	staleCheck = 250 * time.Millisecond
	// reapEvery is after how many walks idle consumers are looked for, and where the
	// group stands: four commands, which idle subscriptions should not cost each time.
	reapEvery = 4
	// inRedis says of an entry that Redis knows how often it was handed to a handler.
	inRedis = -1
)

// keep renews leases until keeping is closed.
func (s *subscription) keep() {
	renew := time.NewTicker(s.cfg.Tuning.MinIdle / 3)
	defer renew.Stop()
	for {
		select {
		case <-s.keeping:
			return
		case <-renew.C:
		case <-s.renewNow:
		}
		s.renew()
	}
}

// search looks for entries and consumers of the dead and hands back what waits too long,
// until stop. It is not for keep to do: a command may take long, and so may the reader, with
// which this takes turns, and leases must be renewed meanwhile.
func (s *subscription) search() {
	claim := time.NewTimer(s.claimDelay())
	defer claim.Stop()
	stale := time.NewTicker(staleCheck)
	defer stale.Stop()
	walks := 0
	turn := make(chan struct{}, 1) // for one step of a walk, which may have many
	for {
		select {
		case <-s.fetch.Done():
			return
		case <-stale.C:
			s.handBackStale()
		case <-claim.C:
			claim.Reset(s.claimDelay())
			if s.win.ClaimRoom() == 0 {
				// The reader walks as soon as there is room; until then the turn is
				// a sibling's that has some.
				s.walk.begin()
			} else if s.walk.slot.due(s.cfg.Tuning.ClaimInterval) {
				s.walk.begin()
				signal(turn)
			}
			if walks++; walks%reapEvery == 0 {
				if err := s.reap(s.fetch); err != nil {
					s.backgroundFailed(err)
				}
			}
		case <-turn:
			if s.claimStep() {
				signal(turn)
			}
		}
	}
}

func (s *subscription) claimDelay() time.Duration {
	d := s.cfg.Tuning.ClaimInterval
	return d + time.Duration((rand.Float64()-0.5)*0.2*float64(d))
}

// renew extends the leases of everything that is held.
func (s *subscription) renew() {
	items := s.win.Expiring(s.cfg.Tuning.MinIdle / 6)
	for len(items) > 0 {
		n := min(len(items), holdBatch)
		batch, states, err := s.renewBatch(items[:n])
		items = items[n:]
		if err != nil {
			s.backgroundFailed(err)
			return
		}
		var vanished []*window.Item
		for i, it := range batch {
			switch states[i] {
			case stream.Trimmed:
				s.trimmed(it)
			case stream.OtherOwner:
				s.lost(it, states[i])
			case stream.NotPending:
				vanished = append(vanished, it)
			}
		}
		// Of one that is being settled that is what its settlement looks like, and to wait
		// for the reply to it would hold up the next renewal.
		if vanished = s.win.Unsettled(vanished); len(vanished) > 0 {
			s.vanished(vanished...)
		}
		s.outage.over(dutyControl)
	}
}

// renewBatch renews those items that are held still, and returns them with what Redis
// says of them.
func (s *subscription) renewBatch(items []*window.Item) ([]*window.Item, []stream.State, error) {
	// Without the lock: an item is handed back between the look and the command, which
	// then makes a peer wait for MinIdle.
	s.leases.Lock()
	defer s.leases.Unlock()
	items = s.win.Held(items)
	if len(items) == 0 {
		return nil, nil, nil
	}
	sent := time.Now()
	states, err := s.grp.Hold(s.settleCtx, stream.KeepIdle, texts(items), nil)
	if err != nil {
		return nil, nil, err
	}
	for i, it := range items {
		if states[i] == stream.Owned {
			s.win.Renewed(sent, it)
		}
	}
	return items, states, nil
}

// backgroundFailed handles an error of a duty that comes again by itself.
func (s *subscription) backgroundFailed(err error) {
	if s.fetch.Err() != nil {
		return
	}
	switch kind := redisconn.Classify(err); {
	case s.groupMissing(err):
	case kind.Retryable(), kind == redisconn.KindCanceled, kind == redisconn.KindWrongType:
		s.outage.failed(dutyControl, err)
	default:
		s.report(Event{Kind: EventError, Err: redisError(err)})
	}
}

// handBackStale gives entries that wait for a busy application to the group's
// other consumers, if there are any.
func (s *subscription) handBackStale() {
	if s.win.Oldest() < staleAfter {
		return
	}
	if s.walk.alone() {
		// Somebody may have come since. Asked once a second, and only while
		// something waits.
		if time.Since(s.reaped) < staleAfter {
			return
		}
		if err := s.reap(s.fetch); err != nil {
			s.backgroundFailed(err)
			return
		}
		if s.walk.alone() {
			return
		}
	}
	items := s.takeStale()
	if len(items) == 0 {
		return
	}
	s.report(Event{Kind: EventReleased, EntryIDs: texts(items)})
}

// takeStale hands back what has waited for too long.
func (s *subscription) takeStale() []*window.Item {
	// Without the lock: the reader, which looks for entries that are ours and not held,
	// leases one again between the look and the command, which then lets a peer have it.
	s.walk.mu.Lock()
	defer s.walk.mu.Unlock()
	items, recalled := s.win.TakeStale(staleAfter, s.cfg.Tuning.MinIdle)
	if recalled {
		signal(s.recall)
	}
	s.handBack(s.settleCtx, items)
	return items
}

// handBack makes entries that are no longer held claimable at once, or when their
// back-off is over, and takes back the delivery that was counted but did not
// happen. Entries that it cannot reach become claimable after MinIdle.
func (s *subscription) handBack(ctx context.Context, items []*window.Item) {
	if s.grp == nil || len(items) == 0 {
		return
	}
	s.leases.Lock()
	defer s.leases.Unlock()
	s.ownLost.Store(true) // some may come back to us
	// One call per idle time: those that are not in back-off share one.
	byIdle := make(map[time.Duration][]*window.Item)
	for _, it := range items {
		s.returned.Store(it.ID, it.Handed)
		idle := max(0, s.cfg.Tuning.MinIdle-s.win.Due(it)).Truncate(time.Millisecond)
		byIdle[idle] = append(byIdle[idle], it)
	}
	for idle, group := range byIdle {
		for len(group) > 0 {
			n := min(len(group), holdBatch)
			batch := group[:n]
			group = group[n:]
			counts := make([]int, n)
			for i, it := range batch {
				counts[i] = it.Handed
			}
			states, err := s.grp.Hold(ctx, idle, texts(batch), counts)
			if err != nil {
				s.backgroundFailed(err)
				return
			}
			for i, it := range batch {
				s.returned.Store(it.ID, inRedis)
				if states[i] == stream.Trimmed {
					s.trimmed(it)
				}
			}
		}
	}
}

// handBackUnseen hands back what is pending for this consumer and not held.
func (s *subscription) handBackUnseen(ctx context.Context) error {
	return s.eachUnseen(ctx, func(page []stream.Pending) error {
		ids := make([]string, 0, len(page))
		counts := make([]int, 0, len(page))
		for _, p := range page {
			n, ok := s.returned.Load(p.ID)
			if !ok {
				n = s.handedBefore(p.ID, p.Count)
			} else if n != 0 {
				continue // it was handed back, or has a back-off that this would end
			}
			ids, counts = append(ids, p.Text), append(counts, n.(int))
		}
		if len(ids) == 0 {
			return nil
		}
		return s.holdUnseen(ctx, s.cfg.Tuning.MinIdle, ids, counts)
	})
}

// holdUnseen is Hold for entries that are not held. Those that the stream no longer has leave
// the group by it.
func (s *subscription) holdUnseen(ctx context.Context, idle time.Duration, ids []string, counts []int) error {
	states, err := s.grp.Hold(ctx, idle, ids, counts)
	var trimmed []string
	for i, state := range states {
		if state == stream.Trimmed {
			trimmed = append(trimmed, ids[i])
		}
	}
	if len(trimmed) > 0 {
		s.report(Event{Kind: EventTrimmed, EntryIDs: trimmed})
	}
	return err
}

// reap removes dead consumers and remembers where the group stands.
func (s *subscription) reap(ctx context.Context) error {
	s.reaped = time.Now()
	group, err := s.grp.Reap(ctx, s.cfg.Tuning.ConsumerTimeout)
	if err != nil {
		return err
	}
	s.walk.setOthers(group.Others)
	s.sawID(group.LastDelivered)
	if n, lost := s.losses.see(group); lost {
		s.report(Event{Kind: EventTrimmed, Count: n})
	}
	return nil
}

// losses are the entries that a group has lost before they were delivered, as far as
// one of its subscriptions knows.
type losses struct {
	known bool
	base  int64     // lost when the group had last read everything
	seen  int64     // lost since then, and reported
	at    stream.ID // where the group stood when an unknown number was reported
}

// see returns how many entries were lost since it was called last, 0 for an unknown
// number.
func (l *losses) see(group stream.Standing) (n int, lost bool) {
	switch {
	case group.LostUntilNow >= 0:
		n := group.LostUntilNow - l.base - l.seen
		lost = l.known && n > 0 // what was lost before this subscription is not its news
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

// walk is the search for entries that their consumers have left alone: a cursor
// that goes once through the group's pending entries, in steps as there is room.
type walk struct {
	slot *walkSlot

	mu      sync.Mutex
	running bool
	cursor  stream.ID
	others  int // other consumers of the group, when last seen
}

func (w *walk) begin() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.running {
		w.running, w.cursor = true, stream.ID{}
	}
}

func (w *walk) end() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.running = false
}

func (w *walk) active() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.running
}

func (w *walk) setOthers(n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.others = n
}

func (w *walk) alone() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.others == 0
}

// claimStep goes on with the walk, and reports whether it should be called again. Where
// there is no room, the reader continues the walk when there is.
func (s *subscription) claimStep() bool {
	if !s.walk.active() || s.win.ClaimRoom() == 0 || s.fetch.Err() != nil {
		return false
	}
	if err := s.stepWalk(s.fetch); err != nil {
		s.walk.end()
		s.backgroundFailed(err)
		return false
	}
	return true
}

// stepWalk claims the next entries of the walk. Its callers are the reader and the
// search; the lock makes their steps follow each other.
func (s *subscription) stepWalk(ctx context.Context) error {
	s.walk.mu.Lock()
	defer s.walk.mu.Unlock()
	if !s.walk.running {
		return nil
	}
	count := min(s.win.ClaimRoom(), claimBatch)
	if count == 0 {
		return nil
	}
	sent := time.Now()
	ids, deleted, next, err := s.grp.Claim(ctx, s.cfg.Tuning.MinIdle, s.walk.cursor, count)
	if err != nil {
		s.ownLost.Store(true)
		return err
	}
	s.walk.cursor = next
	s.walk.running = !next.IsZero()
	// Redis 7 looks for trimmed entries before it looks at idle times, so some may be
	// held, here or elsewhere.
	held, deleted := s.win.Find(deleted)
	for _, it := range held {
		s.trimmed(it)
	}
	if len(deleted) > 0 {
		s.report(Event{Kind: EventTrimmed, EntryIDs: deleted})
	}
	err = s.obtain(ctx, ids, sent, func(id stream.ID, count int) int {
		s.returned.Delete(id)
		return count
	})
	if err != nil {
		s.ownLost.Store(true)
	}
	return err
}

// walkKey names the walks of one group; subscriptions of one process share them.
type walkKey struct {
	client       any
	topic, group string
}

// walkSlot sees to it that of all subscriptions of a group in this process only
// one walks per ClaimInterval.
type walkSlot struct {
	key  walkKey
	refs int
	last time.Time
}

var walks = struct {
	sync.Mutex
	slots map[walkKey]*walkSlot
}{slots: make(map[walkKey]*walkSlot)}

func acquireWalk(key walkKey) *walkSlot {
	walks.Lock()
	defer walks.Unlock()
	slot := walks.slots[key]
	if slot == nil {
		slot = &walkSlot{key: key}
		walks.slots[key] = slot
	}
	slot.refs++
	slot.last = time.Now()
	return slot
}

// due reports whether it is time for a walk and takes it on.
func (w *walkSlot) due(interval time.Duration) bool {
	walks.Lock()
	defer walks.Unlock()
	if time.Since(w.last) < interval/2 {
		return false
	}
	w.last = time.Now()
	return true
}

func (w *walkSlot) release() {
	if w == nil {
		return
	}
	walks.Lock()
	defer walks.Unlock()
	if w.refs--; w.refs == 0 {
		delete(walks.slots, w.key)
	}
}

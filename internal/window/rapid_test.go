package window

import (
	"fmt"

	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/flaminco/redischannels/internal/source"
)

// TestWindow_Model lets a reader, callers, handlers and the others do what they may do in any order,
// on a clock of its own, and compares.
func TestWindow_Model(t *testing.T) {
	for _, order := range []string{"none", "strict", "keys"} {
		t.Run(order, func(t *testing.T) {
			rapid.Check(t, func(rt *rapid.T) {
				cfg := config(rapid.SampledFrom([]int{1, 2, 5, 8}).Draw(rt, "MaxInFlight"))
				cfg.Prefetch = rapid.SampledFrom([]int{0, 3, 20, 50}).Draw(rt, "Prefetch")
				cfg.PrefetchBytes = rapid.SampledFrom([]int{1, 500, 1 << 20}).Draw(rt, "PrefetchBytes")
				cfg.MaxDeliveries = rapid.SampledFrom([]int{0, 0, 3}).Draw(rt, "MaxDeliveries")
				cfg.OnDemand = rapid.Bool().Draw(rt, "OnDemand")
				cfg.LeaseTime = time.Second
				cfg.Ordered, cfg.Keyed = order == "strict", order == "keys"
				bound := rapid.SampledFrom([]int{0, 2, 5}).Draw(rt, "bound of a key")
				pump := rapid.Bool().Draw(rt, "pump")
				seed := rapid.Uint64().Draw(rt, "seed")
				steps := rapid.IntRange(1, 400).Draw(rt, "steps")
				inBubble(t, rt, func(t require.TestingT) { newModel(cfg, bound, pump).run(t, seed, steps) })
			})
		})
	}
}

// inBubble runs a property on a clock of its own. A failure is one of rt, which finds a smaller case.
func inBubble(t *testing.T, rt *rapid.T, property func(require.TestingT)) {
	var f failure
	synctest.Test(t, func(*testing.T) {
		defer func() {
			if r := recover(); r != nil && r != any(&f) {
				panic(r)
			}
		}()
		property(&f)
	})
	if f.text != "" {
		rt.Fatal(f.text)
	}
}

// failure is a require.TestingT that keeps what has failed.
type failure struct{ text string }

func (f *failure) Errorf(format string, args ...any) { f.text += fmt.Sprintf(format, args...) }

func (f *failure) FailNow() { panic(f) }

func (m *model) run(t require.TestingT, seed uint64, steps int) {
	random := rand.New(rand.NewPCG(seed, seed))
	actions := []func(require.TestingT, *rand.Rand){
		m.read, m.read, m.read, m.claim, m.call, m.call, m.call, m.call, m.call, m.call, m.receive, m.end, m.end, m.end,
		m.write, m.keep, m.keep, m.lose, m.trim, m.stale, m.long, m.hold, m.adjust, m.sleep,
	}
	for range steps {
		actions[random.IntN(len(actions))](t, random)
		m.check(t)
	}
	m.drain(t, random)
}

// call does what one of the callers does next.
func (m *model) call(t require.TestingT, random *rand.Rand) {
	c := m.callers[random.IntN(len(m.callers))]
	if c.batch == nil && !m.begin(c, random) {
		return
	}
	due := m.w.Due()
	switch {
	case c.asleep && random.IntN(20) == 0:
		m.leave(c) // the batch has begun and its time is over, or the context has ended
		return
	case c.asleep && !signalled(m.w.Ready) && due != 1:
		if m.ordered() && len(c.taken) > 0 {
			return // another caller may have had the token
		}
		before := len(c.taken)
		m.take(t, c)
		require.Len(t, c.taken, before, "an item was ready, and nothing woke the caller")
		return
	}
	m.take(t, c)
	if !c.asleep {
		m.leave(c)
	}
}

// begin begins a call of NextBatch. Who sends on a channel has one offer at a time.
func (m *model) begin(c *caller, random *rand.Rand) bool {
	limits := source.Limits{Max: 1 + random.IntN(4), Bytes: []int{0, 0, 50, 200}[random.IntN(4)]}
	if m.pump {
		limits = source.Limits{Max: 1, Offer: true}
		if m.pick(random, func(e *entry) bool { return e.offered }) != nil {
			return false
		}
	}
	m.batches++
	*c = caller{batch: &Batch{}, number: m.batches, limits: limits}
	m.want(c, limits.Max)
	return true
}

// want says how many more a caller wants.
func (m *model) want(c *caller, n int) {
	m.wanted += n - c.batch.wanted
	m.w.Want(c.batch, n)
}

// leave ends a call of NextBatch.
func (m *model) leave(c *caller) {
	m.want(c, 0)
	for _, e := range c.taken {
		e.caller = nil
	}
	c.batch = nil
	m.w.Pass()
}

// take takes what there is for a caller. It does not sleep then if the batch is complete.
func (m *model) take(t require.TestingT, c *caller) {
	attempts := m.w.Take(nil, c.limits, c.batch)
	m.woken(t)
	for _, a := range attempts {
		it := a.Held.(*Item)
		e := m.entries[it.Identity()]
		require.NotNil(t, e, "an item that is not held")
		require.Equal(t, buffered, e.place)
		m.mayTake(t, c, e, a)
		require.Equal(t, e.count+1, a.Count)
		e.place, e.batch, e.caller, e.offered = flying, c.number, c, c.limits.Offer
		if !e.offered {
			e.count++
		}
		require.Equal(t, e.count, it.Delivered)
		c.taken = append(c.taken, e)
		m.wanted--
	}
	c.asleep = len(c.taken) < c.limits.Max && !(len(c.taken) > 0 && c.batch.Full)
}

// woken notes which back-offs are over.
func (m *model) woken(t require.TestingT) {
	for _, e := range m.all(func(e *entry) bool { return e.place == backing && e.item.due == 0 }) {
		require.False(t, time.Now().Before(e.due))
		e.place = buffered
	}
}

// mayTake asserts that an entry may be delivered to a caller.
func (m *model) mayTake(t require.TestingT, c *caller, e *entry, a *source.Attempt) {
	require.Less(t, len(c.taken), c.limits.Max)
	require.False(t, time.Now().Before(m.rest))
	if m.bar != nil {
		require.False(t, m.bar.Less(e.id.ID))
	}
	size := e.item.Size
	for _, other := range c.taken {
		require.Equal(t, a.Split, other.item.attempt.Split)
		require.NotEqual(t, source.Single, a.Split)
		size += other.item.Size
	}
	if c.limits.Bytes > 0 && len(c.taken) > 0 {
		require.LessOrEqual(t, size, c.limits.Bytes)
	}
	if last := m.cfg.MaxDeliveries > 1 && e.count+1 >= m.cfg.MaxDeliveries; last || e.item.Alone {
		require.Equal(t, source.Single, a.Split)
	}
	for _, other := range m.entries {
		if other == e {
			continue
		}
		m.mayBeside(t, c, e, other)
	}
}

// mayBeside asserts that an entry may be delivered while there is another one.
func (m *model) mayBeside(t require.TestingT, c *caller, e, other *entry) {
	together := other.place == flying && other.caller == c
	if other.place == flying {
		require.False(t, e.item.Alone || other.item.Alone, "not alone")
		require.True(t, !m.ordered() || together, "beside another batch")
		require.True(t, !m.cfg.Keyed || other.key != e.key || together, "two batches of one key")
	}
	require.False(t, m.ordered() && other.place == backing, "one that backs off blocks all others")
	// Entries that were read are delivered in order. Those that were claimed come when they come, and
	// one that was trimmed does not leave the window, whatever is released.
	if e.id.Stream != other.id.Stream || e.key != other.key || e.trimmed || e.id.ID.Ms <= firstRead {
		return
	}
	if (m.ordered() || m.cfg.Keyed) && other.id.ID.Ms > firstRead && other.id.ID.Less(e.id.ID) && other.place < acking {
		require.True(t, together, "%v overtakes %v", e.id, other.id)
	}
}

// receive starts or withdraws an offer.
func (m *model) receive(t require.TestingT, random *rand.Rand) {
	e := m.pick(random, func(e *entry) bool { return e.offered && e.caller == nil })
	if e == nil {
		return
	}
	recalled := m.w.Recalled(e.item)
	require.True(t, recalled || !e.lost)
	switch random.IntN(3) {
	case 0:
		e.offered = false
		switch {
		case e.lost:
			m.w.Remove(e.item)
			delete(m.entries, e.id)
		case recalled:
			m.rest = time.Now().Add(20 * time.Millisecond)
			m.w.Rest(20 * time.Millisecond)
			m.w.Remove(e.item)
			m.released(e.item, random.IntN(3) == 0)
		default:
			m.w.Return(e.item)
			e.place = buffered
		}
	case 1:
		m.w.Start(e.item)
		m.w.Start(e.item)
		e.offered = false
		e.count++
		require.Equal(t, e.count, e.item.Delivered)
		require.False(t, m.w.Room.Paused())
	}
}

// end ends a delivery in one of the ways there are.
func (m *model) end(t require.TestingT, random *rand.Rand) {
	e := m.pick(random, func(e *entry) bool { return e.place == flying && e.caller == nil && !e.offered })
	if e == nil {
		return
	}
	delay := time.Duration(random.IntN(200)) * time.Millisecond
	refused := m.w.OutOfOrder(e.item)
	require.Equal(t, m.outOfOrder(e), refused)
	switch kind := random.IntN(8); {
	case e.lost:
		m.w.Finish(e.item)
		delete(m.entries, e.id)
	case kind == 0:
		m.w.Backoff(e.item, delay, []int{0, 0, 7, 8, source.Single}[random.IntN(5)])
		m.postponed(t, e, delay)
	case kind == 1:
		m.w.Uncount(e.item, delay)
		e.count--
		m.postponed(t, e, delay)
	case kind == 2:
		m.w.Acks.Move(e.item, "no use")
		e.place = moving
		m.moves = append(m.moves, e)
	case kind == 3:
		counts := random.IntN(2) == 0
		m.w.Acks.Defer(e.item, delay, counts, "later")
		if !counts {
			e.count--
		}
		require.True(t, e.item.Deferred)
		e.place, e.due = moving, time.Now().Add(delay)
		m.moves = append(m.moves, e)
	case refused:
		m.w.Uncount(e.item, 0)
		e.count--
		m.postponed(t, e, 0)
	default:
		require.False(t, m.w.Acks.Ack(e.item))
		e.place = acking
		if e.trimmed {
			delete(m.entries, e.id)
			return
		}
		m.acks = append(m.acks, e)
	}
}

// outOfOrder reports whether another one of the batch comes before an entry and is to be redelivered.
func (m *model) outOfOrder(e *entry) bool {
	return slices.ContainsFunc(m.all(func(other *entry) bool {
		redelivery := other.place == backing || other.place == buffered
		return redelivery && other.batch == e.batch && (m.ordered() || m.cfg.Keyed && other.key == e.key)
	}), func(other *entry) bool { return other.item.before(e.item) })
}

// postponed notes that an item backs off, and that others of its key may have left the window.
func (m *model) postponed(t require.TestingT, e *entry, delay time.Duration) {
	e.place, e.due = backing, time.Now().Add(delay)
	m.shed(t, func(key string) bool { return key == e.key })
	if k := m.w.keys.states[e.key]; m.cfg.Keyed {
		excess := m.all(func(other *entry) bool {
			return other.place == buffered && other.key == e.key && !other.item.ownsKey && !other.trimmed && m.behind(other)
		})
		require.True(t, k.held <= m.w.keys.bound || len(excess) == 0, "a key holds more than it may")
	}
}

// behind reports whether no entry of the key of one that owns it comes behind it.
func (m *model) behind(e *entry) bool {
	return len(m.all(func(other *entry) bool {
		held := other.place == buffered || other.place == flying || other.place == backing
		return held && other.key == e.key && other.item.ownsKey && e.item.before(other.item)
	})) == 0
}

// shed notes what has left the window because its key, for which ok holds, does not get on.
func (m *model) shed(t require.TestingT, ok func(key string) bool) {
	for _, e := range m.all(func(e *entry) bool { return e.place == buffered && e.item.in == nil }) {
		require.True(t, m.cfg.Keyed && ok(e.key) && m.w.keys.states[e.key].overflow)
		require.False(t, e.trimmed, "one that is in memory only")
		e.place, e.item = unseen, nil
	}
}

// long bounds the keys of which one is in flight for long.
func (m *model) long(t require.TestingT, random *rand.Rand) {
	if random.IntN(4) == 0 {
		m.w.BlockLong(50 * time.Millisecond)
	}
	m.shed(t, func(key string) bool {
		return m.pick(random, func(e *entry) bool {
			return e.place == flying && e.key == key && e.item.started < m.w.now()-instant(50*time.Millisecond)
		}) != nil
	})
}

// write writes the ends of entries.
func (m *model) write(t require.TestingT, random *rand.Rand) {
	written := func(ended []*entry, pending []*Item) []*entry {
		require.Len(t, pending, len(ended))
		for i, it := range pending {
			require.Same(t, ended[i].item, it, "in the order in which they ended")
		}
		n := random.IntN(len(ended) + 1)
		for _, e := range ended[:n] {
			m.w.Remove(e.item)
			delete(m.entries, e.id)
		}
		return ended[n:]
	}
	m.acks = written(m.acks, m.w.Acks.Pending(nil))
	m.moves = written(m.moves, m.w.Acks.PendingMoves(nil))
	m.keepDeferred(t, random)
}

// keepDeferred has an item wait in the window that cannot be deferred.
func (m *model) keepDeferred(t require.TestingT, random *rand.Rand) {
	i := slices.IndexFunc(m.moves, func(e *entry) bool { return e.item.Deferred })
	if i < 0 || random.IntN(2) == 0 {
		return
	}
	e := m.moves[i]
	m.moves = slices.Delete(m.moves, i, i+1)
	m.w.Acks.Keep(e.item)
	m.w.Acks.Keep(e.item)
	if e.lost {
		delete(m.entries, e.id)
		return
	}
	require.Equal(t, e.count, e.item.Delivered)
	require.False(t, e.item.Deferred)
	m.postponed(t, e, max(0, time.Until(e.due)))
}

// adjust has everything delivered in order from now on, as the first call for ordered batches does.
func (m *model) adjust(_ require.TestingT, random *rand.Rand) {
	released := m.pick(random, func(e *entry) bool { return e.place == unseen })
	if m.cfg.Keyed || released != nil || random.IntN(20) != 0 {
		return
	}
	m.w.Adjust(m.cfg.MaxInFlight+random.IntN(3), random.IntN(3) == 0)
	m.cfg.MaxInFlight = m.w.cfg.MaxInFlight
}

// drain handles everything that is left: nothing may be stuck. Nothing acts without being woken.
func (m *model) drain(t require.TestingT, random *rand.Rand) {
	m.bar = nil
	m.w.Unbar()
	for range 20_000 {
		if len(m.entries) == 0 {
			break
		}
		m.readNext(t, random, false)
		m.call(t, random)
		m.receive(t, random)
		m.end(t, random)
		m.write(t, random)
		m.prepare(t)
		if random.IntN(5) == 0 {
			m.w.Leases.Renewed(time.Now(), m.w.Leases.Expiring(300*time.Millisecond)...)
			time.Sleep(10 * time.Millisecond)
		}
		m.check(t)
	}
	require.Empty(t, m.entries, "stuck")
	if m.pass != nil {
		m.w.EndPass(false)
	}
	m.w.BeginPass() // nothing is pending
	m.w.EndPass(true)
	for _, c := range m.callers {
		if c.batch != nil {
			m.leave(c)
		}
	}
	m.w.Room.EndRead(0)
	time.Sleep(time.Second)
	require.Empty(t, m.w.Take(nil, source.Limits{Max: 1}, &Batch{})) // the application receives
	empty(t, m.w)
	require.Zero(t, m.w.Due())
	require.NotZero(t, m.w.Room.BeginRead(1), "an empty window that reads nothing")
	require.Empty(t, m.w.Close())
}

package window

import (
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/flaminco/redischannels/internal/stream"
)

// model knows which items a window must have.
type model struct {
	w        *Window
	cfg      Config
	last     int          // greatest entry that was read
	claimed  int          // entries below it are claimed, the newest first
	granted  int          // of the read that is under way
	held     map[int]bool // every item that was admitted and not taken out
	handled  []*Item      // started and not settled
	offered  *Item
	settling []*Item
	keys     map[string]bool // of items that are offered, handled or in back-off
	order    map[string]int  // per key, or "" in strict order: the entry that was settled last
	finished map[int]bool
}

// firstRead is the first entry that is read; those before it are claimed.
const firstRead = 1000

// TestWindow lets a reader, a dispatcher, handlers and a keeper do what they may do in any
// order, on a clock of its own, and compares.
func TestWindow(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		cfg := Config{
			MaxInFlight:   rapid.SampledFrom([]int{1, 2, 5}).Draw(rt, "MaxInFlight"),
			Prefetch:      rapid.SampledFrom([]int{0, 3, 20}).Draw(rt, "Prefetch"),
			PrefetchBytes: rapid.SampledFrom([]int{1, 500, 1 << 20}).Draw(rt, "PrefetchBytes"),
			LeaseTime:     time.Second,
		}
		cfg.Keyed = cfg.MaxInFlight > 1 && rapid.Bool().Draw(rt, "Keyed")
		seed := rapid.Uint64().Draw(rt, "seed")
		steps := rapid.IntRange(1, 300).Draw(rt, "steps")
		synctest.Test(t, func(t *testing.T) { newModel(cfg).run(t, seed, steps) })
	})
}

func newModel(cfg Config) *model {
	return &model{
		w: New(cfg), cfg: cfg, last: firstRead, claimed: firstRead, held: make(map[int]bool),
		keys: make(map[string]bool), order: make(map[string]int), finished: make(map[int]bool),
	}
}

func (m *model) run(t require.TestingT, seed uint64, steps int) {
	random := rand.New(rand.NewPCG(seed, seed))
	actions := []func(require.TestingT, *rand.Rand){
		m.read, m.read, m.claim, m.next, m.next, m.next, m.settle, m.settle, m.settle, m.done, m.done,
		m.lose, m.stale, m.sleep,
	}
	for range steps {
		actions[random.IntN(len(actions))](t, random)
		m.check(t)
	}
	m.drain(t, random)
}

func (m *model) key(n int) string {
	if !m.cfg.Keyed {
		return ""
	}
	return string(rune('a' + n%4))
}

func (m *model) admit(random *rand.Rand, ids ...int) {
	var items []Item
	for _, n := range ids {
		it := Item{
			Entry:   stream.NewEntry(stream.ID{Ms: uint64(n)}, []string{string(make([]byte, 1+random.IntN(100)))}),
			Counted: true, Key: m.key(n), Alone: n < firstRead && random.IntN(3) == 0,
		}
		items = append(items, it)
		m.held[n] = true
	}
	m.w.Admit(items, time.Now())
}

// read begins or ends a read. While it is under way other things happen.
func (m *model) read(t require.TestingT, random *rand.Rand) {
	if m.granted == 0 {
		m.granted = m.w.BeginRead()
		return
	}
	n := random.IntN(m.granted + 1)
	m.granted = 0
	m.w.EndRead(n)
	var ids []int
	for range n {
		m.last++
		ids = append(ids, m.last)
	}
	m.admit(random, ids...)
}

func (m *model) claim(_ require.TestingT, random *rand.Rand) {
	for range min(m.w.ClaimRoom(), random.IntN(4)) {
		m.claimed--
		m.admit(random, m.claimed)
	}
}

// next hands the next item over, or only offers it.
func (m *model) next(t require.TestingT, random *rand.Rand) {
	it := m.offered
	if it == nil {
		if it, _ = m.w.Next(); it == nil {
			return
		}
		n := int(it.ID.Ms)
		require.True(t, m.held[n], "an item that is not held")
		if m.cfg.Keyed {
			require.False(t, m.keys[it.Key], "two of one key")
		}
		if m.w.strict() {
			require.Empty(t, m.handled)
			require.Zero(t, m.w.backoff.n, "a nacked item holds back all others")
			if waiting := m.w.waiting.head; waiting != nil {
				require.True(t, it.ID.Less(waiting.ID), "not the first in stream order")
			}
		}
		if m.cfg.Keyed || m.w.strict() {
			// Claimed ones come when they come; those that were read come in order.
			if n > firstRead && it.Handed == 0 {
				require.Greater(t, n, m.order[it.Key], "out of order")
			}
		}
		if it.Alone {
			require.Empty(t, m.handled)
		}
		for _, other := range m.handled {
			require.False(t, other.Alone, "beside one that is to be alone")
		}
		if m.cfg.Keyed {
			m.keys[it.Key] = true
		}
		m.w.Offer(it, n)
		m.offered = it
	}
	if random.IntN(4) == 0 {
		return // nobody receives it yet
	}
	m.offered = nil
	if m.w.Recalled(it) {
		m.forget(it)
		m.w.Done(it)
		return
	}
	m.w.Started(it)
	m.handled = append(m.handled, it)
}

// settle ends the handling of one item in one of the ways there are.
func (m *model) settle(t require.TestingT, random *rand.Rand) {
	if len(m.handled) == 0 {
		return
	}
	i := random.IntN(len(m.handled))
	it := m.handled[i]
	m.handled = append(m.handled[:i], m.handled[i+1:]...)
	n := int(it.ID.Ms)
	switch {
	case m.w.Lost(it):
		m.forget(it)
		m.w.Finish(it)
	case random.IntN(3) == 0:
		m.w.Backoff(it, time.Duration(random.IntN(200))*time.Millisecond)
		// The key stays taken, but this item may come again.
		delete(m.keys, it.Key)
	default:
		if n > firstRead {
			m.order[it.Key] = max(n, m.order[it.Key])
		}
		delete(m.keys, it.Key)
		m.w.Settle(it)
		m.settling = append(m.settling, it)
	}
}

func (m *model) done(t require.TestingT, _ *rand.Rand) {
	require.Equal(t, len(m.settling), len(m.w.Settling(nil)))
	for i, it := range m.w.Settling(nil) {
		require.Same(t, m.settling[i], it, "settlements in their order")
		m.forget(it)
	}
	m.w.Done(m.settling...)
	m.settling = nil
}

// lose lets another consumer take an item.
func (m *model) lose(_ require.TestingT, random *rand.Rand) {
	if random.IntN(4) != 0 {
		return
	}
	time.Sleep(time.Millisecond)
	items := m.w.Expiring(0)
	if len(items) == 0 {
		return
	}
	it := items[random.IntN(len(items))]
	active := it.in == &m.w.active || it.in == &m.w.settling
	if _, first := m.w.Lose(it, false); first && !active {
		m.forget(it)
	}
}

// stale hands back what has waited.
func (m *model) stale(_ require.TestingT, random *rand.Rand) {
	if random.IntN(4) != 0 {
		return
	}
	items, _ := m.w.TakeStale(50*time.Millisecond, 200*time.Millisecond)
	for _, it := range items {
		m.forget(it)
	}
}

func (m *model) sleep(_ require.TestingT, random *rand.Rand) {
	time.Sleep(time.Duration(random.IntN(100)) * time.Millisecond)
}

func (m *model) forget(it *Item) {
	delete(m.held, int(it.ID.Ms))
	if it == m.offered || m.keys[it.Key] && it.ownsKey {
		delete(m.keys, it.Key)
	}
}

// check compares the window with the model.
func (m *model) check(t require.TestingT) {
	w := m.w
	require.Equal(t, len(m.held), w.Len(), "something was lost or is there twice")
	ids := w.IDs()
	size := 0
	w.each(func(it *Item) { size += it.Size })
	require.Len(t, ids, len(m.held))
	for n := range m.held {
		require.Contains(t, ids, stream.ID{Ms: uint64(n)})
	}
	require.Equal(t, size, w.bytes)
	require.LessOrEqual(t, w.active.n, m.cfg.MaxInFlight)
	// Claims do not wait for the room that a blocked read has reserved.
	require.LessOrEqual(t, w.Len(), 2*(m.cfg.Prefetch+m.cfg.MaxInFlight))
	queued := 0
	for _, k := range w.keys {
		queued += k.queue.n
	}
	require.Equal(t, queued, w.blocked)
	require.Len(t, w.Pending(), w.Len()-m.lost())
}

// lost is the number of items that are lost and still handled.
func (m *model) lost() (n int) {
	m.w.each(func(it *Item) {
		if it.lost {
			n++
		}
	})
	return n
}

// drain handles everything that is left: nothing may be stuck.
func (m *model) drain(t require.TestingT, random *rand.Rand) {
	if m.granted > 0 {
		m.w.EndRead(0)
		m.granted = 0
	}
	for range 10_000 {
		if len(m.held) == 0 {
			break
		}
		m.next(t, random)
		m.settle(t, random)
		m.done(t, random)
		time.Sleep(10 * time.Millisecond)
		m.check(t)
	}
	require.Empty(t, m.held, "stuck")
	w := m.w
	require.Zero(t, w.bytes)
	require.Zero(t, w.blocked)
	require.Empty(t, w.keys)
	require.False(t, w.alone)
	_, _ = w.Next() // the application receives
	require.NotZero(t, w.BeginRead(), "an empty window that fetches nothing")
	w.EndRead(0)
	require.Empty(t, w.Close())
}

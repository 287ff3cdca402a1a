package window

import (
	"cmp"
	"maps"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels/internal/source"
	"github.com/flaminco/redischannels/internal/stream"
)

// place is where an entry is.
type place uint8

const (
	unseen   place = iota // pending in Redis for this consumer, and not held
	buffered              // held
	flying
	backing
	acking
	moving
)

// entry is the state in the model of an entry that has not ended.
type entry struct {
	id            Identity
	key           string
	place         place
	item          *Item
	count         int // deliveries
	size          int
	due           time.Time
	batch         int     // in which it was delivered last, by the count of the model
	caller        *caller // who has not yet returned the batch
	offered       bool    // and not started
	away          bool    // released, so it comes before new ones
	again         bool    // was pending already
	lost, trimmed bool
}

// caller is one that calls NextBatch, again and again.
type caller struct {
	batch  *Batch // of the call in progress
	limits source.Limits
	number int
	taken  []*entry
	asleep bool // until Ready has a token, or something is due
}

// model knows what a window must have, and does to it what the parts of a subscription do: a reader
// of two streams, a claimer, callers, handlers, a keeper of leases and a writer of acknowledgements.
type model struct {
	w   *Window
	cfg Config

	pump    bool // the application receives from a channel: one caller, which offers
	entries map[Identity]*entry
	last    [2]int // greatest entry of each stream that was read
	claimed [2]int // entries below it are claimed, the latest first
	granted int    // of the read that is under way
	sent    time.Time
	reading bool // the reader does not sleep
	pass    *Identity

	callers []*caller
	batches int
	wanted  int
	acks    []*entry // in the order in which they ended
	moves   []*entry
	bar     *stream.ID
	rest    time.Time
}

// firstRead is the first entry that is read; those before it are claimed.
const firstRead = 1000

func newModel(cfg Config, bound int, pump bool) *model {
	m := &model{w: New(cfg), cfg: cfg, pump: pump, entries: make(map[Identity]*entry), reading: true}
	if bound > 0 {
		m.w.keys.bound = bound
	}
	m.last, m.claimed = [2]int{firstRead, firstRead}, [2]int{firstRead, firstRead}
	m.callers = []*caller{{}}
	if !pump {
		m.callers = append(m.callers, &caller{}, &caller{})
	}
	return m
}

func (m *model) ordered() bool { return m.w.cfg.Ordered }

func (m *model) key(n int) string {
	if !m.cfg.Keyed {
		return ""
	}
	return string(rune('a' + n%3))
}

// pick returns one of the entries for which ok holds, or nil.
func (m *model) pick(random *rand.Rand, ok func(*entry) bool) *entry {
	all := m.all(ok)
	if len(all) == 0 {
		return nil
	}
	return all[random.IntN(len(all))]
}

// all returns those entries for which ok holds, by stream and ID.
func (m *model) all(ok func(*entry) bool) []*entry {
	var all []*entry
	for _, e := range m.entries {
		if ok(e) {
			all = append(all, e)
		}
	}
	slices.SortFunc(all, func(a, b *entry) int { return compare(a.id, b.id) })
	return all
}

func compare(a, b Identity) int { return cmp.Or(cmp.Compare(a.Stream, b.Stream), a.ID.Compare(b.ID)) }

// admit offers entries to the window, in which they may be left out.
func (m *model) admit(t require.TestingT, random *rand.Rand, sent time.Time, entries ...*entry) {
	items := make([]Item, len(entries))
	for i, e := range entries {
		items[i] = Item{
			Entry:  stream.NewEntry(e.id.ID, []string{string(make([]byte, e.size))}),
			Stream: e.id.Stream, Delivered: e.count, Key: e.key, Counted: random.IntN(4) > 0,
			Alone: e.count >= 2 && random.IntN(2) == 0,
		}
		if e.again && random.IntN(4) == 0 {
			items[i].Backoff = time.Duration(random.IntN(100)) * time.Millisecond
		}
		if random.IntN(20) == 0 {
			items[i].Reason = "not readable"
		}
		m.entries[e.id] = e
	}
	m.w.Admit(items, sent)
	for i, e := range entries {
		switch it := &items[i]; {
		case it.in == nil:
			require.True(t, m.w.behind || m.cfg.Keyed && m.w.keys.states[e.key].overflow, "left out")
		case it.Reason != "":
			e.place, e.item, e.away = moving, it, false
			m.moves = append(m.moves, e)
		case it.Backoff > 0:
			e.place, e.item, e.away, e.due = backing, it, false, time.Now().Add(it.Backoff)
		default:
			e.place, e.item, e.away = buffered, it, false
		}
	}
	m.shed(t, func(string) bool { return slices.ContainsFunc(items, func(it Item) bool { return it.Backoff > 0 }) })
}

// read does what the reader does next.
func (m *model) read(t require.TestingT, random *rand.Rand) { m.readNext(t, random, true) }

func (m *model) readNext(t require.TestingT, random *rand.Rand, more bool) {
	if signalled(m.w.Room.Changed) {
		m.reading = true
	}
	switch {
	case m.granted > 0:
		n := random.IntN(m.granted + 1)
		if !more {
			n = 0
		}
		m.granted = 0
		m.w.Room.EndRead(n)
		for of := range m.last {
			var page []*entry
			for ; n > 0 && (of == 1 || random.IntN(2) == 0); n-- {
				m.last[of] += 1 + random.IntN(2)
				page = append(page, m.newEntry(random, of, m.last[of]))
			}
			m.admit(t, random, m.sent, page...)
		}
	case m.pass != nil:
		m.stepPass(t, random)
	case !m.reading:
	case (m.ordered() || m.cfg.Keyed || !more) && !m.w.Room.Paused() && m.reclaim(t, random):
	case m.w.Drained() && !m.w.Room.Paused():
		m.w.BeginPass()
		m.pass = &Identity{}
	default:
		m.granted, m.sent = m.w.Room.BeginRead(1), time.Now()
		m.reading = m.granted > 0
	}
}

func (m *model) newEntry(random *rand.Rand, of, n int) *entry {
	return &entry{id: Identity{of, stream.ID{Ms: uint64(n)}}, key: m.key(n), size: 1 + random.IntN(100)}
}

// stepPass offers some of the pending entries that are not held, or ends the pass.
func (m *model) stepPass(t require.TestingT, random *rand.Rand) {
	page := m.all(func(e *entry) bool { return e.place == unseen && compare(e.id, *m.pass) > 0 })
	if len(page) == 0 || random.IntN(20) == 0 {
		m.w.EndPass(len(page) == 0)
		m.pass = nil
		return
	}
	page = page[:min(len(page), 1+random.IntN(5))]
	for _, e := range page {
		e.again = true
	}
	m.pass = &page[len(page)-1].id
	m.admit(t, random, time.Now(), page...)
}

// reclaim takes back what was released, before anything is read where there is an order.
func (m *model) reclaim(t require.TestingT, random *rand.Rand) bool {
	away := m.all(func(e *entry) bool { return e.away })
	room := m.w.Room.Claim()
	if len(away) == 0 {
		return false
	}
	if room == 0 {
		m.reading = false
		return true
	}
	slices.SortStableFunc(away, func(a, b *entry) int { return a.id.Stream - b.id.Stream })
	away = away[:min(len(away), room)]
	for _, e := range away {
		e.away, e.again = false, true
	}
	m.admit(t, random, time.Now(), away...)
	return true
}

// claim takes entries over from another consumer.
func (m *model) claim(t require.TestingT, random *rand.Rand) {
	if m.pass != nil {
		return
	}
	for range min(m.w.Room.Claim(), random.IntN(4)) {
		of := random.IntN(2)
		m.claimed[of] -= 1 + random.IntN(2)
		if m.claimed[of] <= 0 {
			return
		}
		e := m.newEntry(random, of, m.claimed[of])
		e.count = random.IntN(3)
		m.admit(t, random, time.Now(), e)
	}
}

// stale releases what is buffered for too long: it comes back, or is claimed by another consumer.
func (m *model) stale(t require.TestingT, random *rand.Rand) {
	if random.IntN(4) != 0 {
		return
	}
	order := m.ordered() || m.cfg.Keyed
	m.w.Room.Oldest()
	m.woken(t)
	expected := m.all(func(e *entry) bool {
		return e.place == buffered && !e.trimmed && !m.held(e)
	})
	items, _ := m.w.Room.TakeStale(50*time.Millisecond, 200*time.Millisecond)
	time.Sleep(time.Nanosecond) // what is sent from now on is sent later
	if order && len(items) > 0 {
		require.Len(t, items, len(expected), "all or nothing")
	}
	slices.SortFunc(items, func(a, b *Item) int { return compare(a.Identity(), b.Identity()) })
	for _, it := range items {
		m.released(it, random.IntN(3) == 0)
	}
}

// held reports whether an entry comes before one of its order that is in flight or backs off.
func (m *model) held(e *entry) bool {
	return len(m.all(func(other *entry) bool {
		started := other.place == flying || other.place == backing
		return started && other.id.Stream == e.id.Stream && other.key == e.key && e.id.ID.Less(other.id.ID)
	})) > 0
}

// released is the fate of an entry that left the window.
func (m *model) released(it *Item, claimed bool) {
	e := m.entries[it.Identity()]
	e.place, e.item, e.away, e.count = unseen, nil, true, it.Delivered
	if claimed {
		delete(m.entries, e.id)
	}
}

// lose lets another consumer take an entry.
func (m *model) lose(t require.TestingT, random *rand.Rand) {
	if random.IntN(4) != 0 {
		return
	}
	e := m.pick(random, func(e *entry) bool { return !e.trimmed && !e.lost })
	switch {
	case e == nil:
		return
	case e.place == unseen:
		delete(m.entries, e.id)
		return
	}
	a, first := m.w.Leases.Lose(e.item, false)
	require.True(t, first)
	e.lost = true
	switch e.place {
	case flying:
		require.Same(t, e.item, a.Held)
	case buffered, backing:
		delete(m.entries, e.id)
	}
}

// trim takes an entry out of its stream. An item in the window stays.
func (m *model) trim(t require.TestingT, random *rand.Rand) {
	if random.IntN(8) != 0 {
		return
	}
	e := m.pick(random, func(e *entry) bool { return !e.trimmed && !e.lost })
	switch {
	case e == nil:
	case e.place == unseen:
		delete(m.entries, e.id)
	default:
		require.True(t, m.w.Leases.Trim(e.item))
		e.trimmed = true
	}
}

// keep renews leases, and prepares what callers wait for.
func (m *model) keep(t require.TestingT, random *rand.Rand) {
	switch random.IntN(8) {
	case 0:
		m.w.Leases.Renewed(time.Now(), m.w.Leases.Expiring(300*time.Millisecond)...)
	case 1:
		m.w.Leases.Void()
	default:
		m.prepare(t)
	}
}

func (m *model) prepare(t require.TestingT) {
	if !signalled(m.w.Leases.Prepare) {
		return
	}
	items := m.w.Leases.Wanted()
	require.LessOrEqual(t, len(items), max(0, min(m.wanted, m.cfg.MaxInFlight-m.w.active.n)))
	for _, it := range items {
		require.Equal(t, buffered, m.entries[it.Identity()].place)
	}
	if len(items) > 0 {
		m.w.Leases.Prepared(time.Now(), items...)
	}
}

func (m *model) sleep(_ require.TestingT, random *rand.Rand) {
	time.Sleep(time.Duration(random.IntN(100)) * time.Millisecond)
}

// hold bars what comes later, or rests, for a while.
func (m *model) hold(_ require.TestingT, random *rand.Rand) {
	switch random.IntN(8) {
	case 0:
		m.bar = &stream.ID{Ms: uint64(max(m.last[0], m.last[1]))}
		m.w.Bar(*m.bar)
	case 1, 2:
		m.bar = nil
		m.w.Unbar()
	case 3:
		d := time.Duration(random.IntN(50)) * time.Millisecond
		m.rest = time.Now().Add(d)
		m.w.Rest(d)
	}
}

// check compares the window with the model.
func (m *model) check(t require.TestingT) {
	w := m.w
	held := m.all(func(e *entry) bool { return e.place != unseen })
	require.Equal(t, len(held), w.held(), "something was lost, or is there twice")
	ids := w.Leases.IDs()
	sizes := Sizes{}
	for _, e := range held {
		_, known := ids[e.id]
		require.Equal(t, !e.trimmed, known)
		sizes.Bytes += e.item.Size
		switch e.place {
		case buffered:
			sizes.Buffered++
		case flying:
			sizes.InFlight++
		case backing:
			sizes.BackingOff++
		default:
			sizes.Acking++
		}
	}
	require.Equal(t, sizes, w.Sizes())
	require.LessOrEqual(t, w.active.n, w.cfg.MaxInFlight)
	// Claims do not wait for the room that a blocked read has reserved.
	again := len(m.all(func(e *entry) bool { return e.place != unseen && e.again }))
	require.LessOrEqual(t, w.held()-again, 2*(m.cfg.Prefetch+w.cfg.MaxInFlight))
	require.Equal(t, m.wanted, w.wanted)
	if m.bar != nil {
		before := m.all(func(e *entry) bool { return e.place == buffered && !m.bar.Less(e.id.ID) })
		require.Equal(t, len(before) == 0, w.AtBar())
	}
	m.checkKeys(t)
}

// checkKeys compares the keyring with the items that there are.
func (m *model) checkKeys(t require.TestingT) {
	got, want := map[string][4]int{}, map[string][4]int{}
	queued := 0
	for key, k := range m.w.keys.states {
		queued += k.queue.n
		require.True(t, k.held > 0 || k.overflow, "a state that nothing needs")
		got[key] = [4]int{k.held, k.active, k.flying, k.queue.n}
	}
	require.Equal(t, queued, m.w.keys.queued)
	if !m.cfg.Keyed {
		require.Empty(t, got)
		return
	}
	maps.DeleteFunc(got, func(_ string, counts [4]int) bool { return counts[0] == 0 })
	for _, e := range m.entries {
		if e.place == unseen || e.place == acking || e.place == moving {
			continue
		}
		counts := want[e.key]
		counts[0]++
		if e.item.ownsKey {
			counts[1]++
		}
		if e.place == flying {
			require.True(t, e.item.ownsKey)
			counts[2]++
		}
		if e.item.in == &m.w.keys.states[e.key].queue {
			counts[3]++
		}
		want[e.key] = counts
	}
	require.Equal(t, want, got)
}

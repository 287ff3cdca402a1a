package dispatch

import (
	"context"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels/internal/redistest"
	"github.com/flaminco/redischannels/internal/source"
	"github.com/flaminco/redischannels/internal/stream"
	"github.com/flaminco/redischannels/internal/window"
)

func TestMain(m *testing.M) { redistest.Main(m) }

// kit is a dispatcher on a window, and the policy of a subscription that needs no Redis.
type kit struct {
	*Dispatcher
	win    *window.Window
	before func() error

	mu sync.Mutex
	log
}

// log is the reports to a policy.
type log struct {
	delivered []int // counts
	acked     []string
	givenUp   []source.Outcome
	recalled  []string
	ignored   []string // "ID: cause"
	timedOut  []string
	backoffs  []int // counts with which a back-off was asked for
	recalls   int
}

// seen returns what the policy was called with so far.
func (k *kit) seen() log {
	k.mu.Lock()
	defer k.mu.Unlock()
	return log{
		slices.Clone(k.delivered), slices.Clone(k.acked), slices.Clone(k.givenUp), slices.Clone(k.recalled),
		slices.Clone(k.ignored), slices.Clone(k.timedOut), slices.Clone(k.backoffs), k.recalls,
	}
}

// backoff is the back-off of the owner.
const backoff = time.Minute

// newKit makes one. change may alter its configuration.
func newKit(change func(w *window.Config, o *source.Origin, c *Config)) *kit {
	k := &kit{}
	origin := &source.Origin{Topic: "topic", Values: context.Background()}
	wc := window.Config{From: origin, MaxInFlight: 10, Prefetch: 100, PrefetchBytes: 1 << 20}
	cfg := Config{Policy: k, Before: func() error { return k.err() }, Backoff: func(delivered int) time.Duration {
		k.mu.Lock()
		defer k.mu.Unlock()
		k.backoffs = append(k.backoffs, delivered)
		return backoff
	}}
	if change != nil {
		change(&wc, origin, &cfg)
	}
	k.win = window.New(wc)
	cfg.Window = k.win
	k.Dispatcher = New(cfg)
	origin.Owner = k.Dispatcher
	return k
}

func (k *kit) err() error {
	if k.before == nil {
		return nil
	}
	return k.before()
}

func (k *kit) note(f func()) {
	k.mu.Lock()
	defer k.mu.Unlock()
	f()
}

func (k *kit) Delivered(count int) {
	if k.running.Load() < 1 {
		panic("a drain would not wait for it")
	}
	k.note(func() { k.delivered = append(k.delivered, count) })
}

func (k *kit) Acked(it *window.Item) (late bool) {
	if k.win.Acks.Ack(it) {
		return true
	}
	k.note(func() { k.acked = append(k.acked, it.Text) })
	k.win.Remove(it)
	return false
}

func (k *kit) Defer(*window.Item, source.Outcome, time.Duration, bool) bool { return false }

func (k *kit) GiveUp(it *window.Item, o source.Outcome) {
	k.note(func() { k.givenUp = append(k.givenUp, o) })
	k.win.Finish(it)
}

func (k *kit) Recalled(items []*window.Item) {
	k.note(func() {
		for _, it := range items {
			k.recalled = append(k.recalled, it.Text)
		}
		k.recalls++
	})
	k.win.RestRecalled(0)
}

func (k *kit) AckIgnored(id string, err error) {
	if err != nil {
		id += ": " + err.Error()
	}
	k.note(func() { k.ignored = append(k.ignored, id) })
}

func (k *kit) TimedOut(id string) { k.note(func() { k.timedOut = append(k.timedOut, id) }) }

// item makes an item of the n-th entry.
func item(n int) window.Item {
	return window.Item{Entry: stream.NewEntry(stream.ID{Ms: uint64(n)}, []string{"name", "value"}), Counted: true}
}

// admit puts entries into the window.
func (k *kit) admit(entries ...int) {
	var items []window.Item
	for _, n := range entries {
		items = append(items, item(n))
	}
	k.win.Admit(items, time.Now())
}

// next calls NextBatch, which must return the attempts of entries within the time.
func (k *kit) next(t *testing.T, limits source.Limits, within time.Duration, entries ...int) []*source.Attempt {
	t.Helper()
	begun := time.Now()
	batch, err := k.NextBatch(t.Context(), nil, limits)
	require.NoError(t, err)
	require.Equal(t, entries, ids(batch))
	require.Equal(t, within, time.Since(begun))
	return batch
}

// one takes the next attempt.
func (k *kit) one(t *testing.T, entry int) *source.Attempt {
	t.Helper()
	return k.next(t, source.Limits{Max: 1}, 0, entry)[0]
}

// none asserts that nothing is ready.
func (k *kit) none(t *testing.T) {
	t.Helper()
	k.next(t, source.Limits{Max: 1, Try: true}, 0)
}

func ids(batch []*source.Attempt) []int {
	var entries []int
	for _, a := range batch {
		entries = append(entries, int(a.Held.(*window.Item).ID.Ms))
	}
	return entries
}

// idle asserts that no attempt is waited for.
func (k *kit) idle(t *testing.T) {
	t.Helper()
	require.Zero(t, k.running.Load())
	require.Empty(t, k.win.Attempts())
}

// end ends attempts, in the order of their entries.
func end(t *testing.T, o source.Outcome, batch ...*source.Attempt) {
	t.Helper()
	require.True(t, slices.IsSortedFunc(batch, func(a, b *source.Attempt) int {
		return a.Held.(*window.Item).ID.Compare(b.Held.(*window.Item).ID)
	}))
	for _, a := range batch {
		require.NoError(t, a.End(o))
	}
}

var (
	ack  = source.Outcome{Kind: source.Ack}
	nack = source.Outcome{Kind: source.Nack, Delay: source.OwnersDelay}
)

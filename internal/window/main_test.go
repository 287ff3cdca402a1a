package window

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels/internal/redistest"
	"github.com/flaminco/redischannels/internal/source"
	"github.com/flaminco/redischannels/internal/stream"
)

func TestMain(m *testing.M) { redistest.Main(m) }

// item makes an item of the n-th entry.
func item(n int) Item {
	return Item{Entry: stream.NewEntry(stream.ID{Ms: uint64(n)}, []string{"name", "value"}), Counted: true}
}

// items makes items of the entries first to last.
func items(first, last int) []Item {
	var all []Item
	for n := first; n <= last; n++ {
		all = append(all, item(n))
	}
	return all
}

// keyed makes an item of an ordering key.
func keyed(n int, key string) Item {
	it := item(n)
	it.Key = key
	return it
}

// config is that of a usual window.
func config(maxInFlight int) Config {
	return Config{
		From: &source.Origin{Topic: "topic", Values: context.Background()}, MaxInFlight: maxInFlight,
		Ordered: maxInFlight == 1, Prefetch: 100, PrefetchBytes: 1 << 20, LeaseTime: 10 * time.Second,
	}
}

// take takes a batch, which must be of these entries.
func take(t *testing.T, w *Window, limits source.Limits, entries ...int) []*Item {
	t.Helper()
	return join(t, w, limits, &Batch{}, entries...)
}

// join takes more for a batch.
func join(t *testing.T, w *Window, limits source.Limits, b *Batch, entries ...int) []*Item {
	t.Helper()
	var got []int
	var taken []*Item
	for _, a := range w.Take(nil, limits, b) {
		it := a.Held.(*Item)
		got, taken = append(got, int(it.ID.Ms)), append(taken, it)
		require.Equal(t, it.Text, a.ID)
		require.True(t, w.InFlight(a))
	}
	require.Equal(t, entries, got)
	return taken
}

// start takes the next item, which must be that of the n-th entry, and starts it.
func start(t *testing.T, w *Window, n int) *Item {
	t.Helper()
	return take(t, w, source.Limits{Max: 1}, n)[0]
}

// offer takes the next item without starting it.
func offer(t *testing.T, w *Window, n int) *Item {
	t.Helper()
	return take(t, w, source.Limits{Max: 1, Offer: true}, n)[0]
}

// none asserts that nothing may be delivered, and returns the time to wait.
func none(t *testing.T, w *Window) time.Duration {
	t.Helper()
	take(t, w, source.Limits{Max: 1})
	return w.Due()
}

// ack ends items in flight, and writes their acknowledgements.
func ack(t *testing.T, w *Window, items ...*Item) {
	t.Helper()
	for _, it := range items {
		require.False(t, w.OutOfOrder(it))
		require.False(t, w.Acks.Ack(it))
	}
	w.Remove(items...)
}

// empty asserts that nothing is left of anything.
func empty(t require.TestingT, w *Window) {
	require.Zero(t, w.Sizes())
	require.Zero(t, w.held())
	require.Zero(t, w.keys.queued)
	require.Empty(t, w.keys.states)
	require.False(t, w.alone)
	require.Zero(t, w.offers)
	require.Zero(t, w.begun)
	require.Empty(t, w.recall)
}

// signalled reports whether a channel has a signal, and takes it.
func signalled(c chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

func leased(w *Window, it *Item) bool {
	return w.Acks.Standings([]*Item{it}, nil)[0] == Leased
}

// wanted returns the items that are to be prepared for a number of waiting callers.
func wanted(w *Window, callers int) []*Item {
	var b Batch
	w.Want(&b, callers)
	defer w.Want(&b, 0)
	return w.Leases.Wanted()
}

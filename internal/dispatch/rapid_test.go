package dispatch

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/flaminco/redischannels/internal/source"
	"github.com/flaminco/redischannels/internal/window"
)

// crowd are callers whose contexts are short, and what they have received.
type crowd struct {
	k      *kit
	offers bool

	waiting atomic.Int32 // calls of NextBatch in progress
	begun   atomic.Int32 // the same, of those that can wait with a batch that has begun

	mu      sync.Mutex
	counts  map[string]int // deliveries
	wrong   error
	ordered bool
	last    string
}

// TestNextBatch_ShortContexts lets eight callers wait with contexts that end all the time, while entries
// come. Each is delivered once, with a count of 1, and no caller waits beside one that is ready.
func TestNextBatch_ShortContexts(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		inFlight := rapid.SampledFrom([]int{1, 3, 100}).Draw(rt, "MaxInFlight")
		order := rapid.SampledFrom([]string{"none", "strict", "keys"}).Draw(rt, "order")
		offers := rapid.Bool().Draw(rt, "offers")
		seed := rapid.Uint64().Draw(rt, "seed")
		var wrong error
		synctest.Test(t, func(t *testing.T) {
			k := newKit(func(w *window.Config, _ *source.Origin, _ *Config) {
				w.MaxInFlight, w.Ordered, w.Keyed = inFlight, order == "strict", order == "keys"
			})
			c := &crowd{k: k, offers: offers, counts: make(map[string]int), ordered: order == "strict"}
			wrong = c.run(t, rand.New(rand.NewPCG(seed, 1)))
		})
		if wrong != nil {
			rt.Fatal(wrong)
		}
	})
}

func (c *crowd) run(t *testing.T, random *rand.Rand) error {
	ctx, cancel := context.WithCancel(t.Context())
	var all sync.WaitGroup
	for range 8 {
		own := rand.New(rand.NewPCG(random.Uint64(), 2))
		all.Go(func() { c.call(ctx, own) })
	}
	n := 0
	for n < 60 {
		var items []window.Item
		for range random.IntN(4) {
			n++
			it := item(n)
			it.Key = fmt.Sprint(random.IntN(3))
			items = append(items, it)
		}
		c.k.win.Admit(items, time.Now())
		time.Sleep(time.Duration(random.IntN(3000)) * time.Microsecond)
		synctest.Wait()
		c.look()
	}
	for range 1000 {
		if c.acked() == n {
			break
		}
		time.Sleep(time.Millisecond)
	}
	cancel()
	all.Wait()
	if len(c.counts) != n {
		c.fail("delivered are %d of %d", len(c.counts), n)
	}
	if sizes := c.k.win.Sizes(); sizes != (window.Sizes{}) {
		c.fail("left is %+v", sizes)
	}
	if running := c.k.running.Load(); running != 0 {
		c.fail("%d are waited for", running)
	}
	return c.wrong
}

func (c *crowd) acked() int { return len(c.k.seen().acked) }

// look asserts, while nothing happens, that no caller waits beside an item that is ready.
func (c *crowd) look() {
	sizes := c.k.win.Sizes()
	if c.waiting.Load() == c.begun.Load() || sizes.Buffered == 0 || c.k.win.Due() != 0 {
		return
	}
	if a := c.k.win.Take(nil, source.Limits{Max: 1, Offer: true}, &window.Batch{}); len(a) > 0 {
		c.fail("%s is ready, and %d callers wait: %+v", a[0].ID, c.waiting.Load(), sizes)
		c.k.win.Return(a[0].Held.(*window.Item))
	}
}

func (c *crowd) fail(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wrong = errors.Join(c.wrong, fmt.Errorf(format, args...))
}

// call is one of the callers.
func (c *crowd) call(ctx context.Context, random *rand.Rand) {
	for ctx.Err() == nil {
		limits := source.Limits{Max: 1 + random.IntN(3), Wait: time.Duration(random.IntN(3)) * time.Millisecond}
		if c.offers && random.IntN(2) == 0 {
			limits = source.Limits{Max: 1, Offer: true}
		}
		short, cancel := context.WithTimeout(ctx, time.Duration(random.IntN(5000))*time.Microsecond)
		c.waiting.Add(1)
		if limits.Wait > 0 {
			c.begun.Add(1)
		}
		batch, err := c.k.NextBatch(short, nil, limits)
		c.waiting.Add(-1)
		if limits.Wait > 0 {
			c.begun.Add(-1)
		}
		cancel()
		switch {
		case err != nil && len(batch) > 0:
			c.fail("attempts beside %w", err)
		case err == nil && (len(batch) == 0 || len(batch) > limits.Max):
			c.fail("%d attempts of %d", len(batch), limits.Max)
		}
		c.handle(batch, limits.Offer, random)
		if random.IntN(4) == 0 {
			time.Sleep(time.Duration(random.IntN(2000)) * time.Microsecond)
		}
	}
}

// handle handles a batch for a while. An offer may be withdrawn.
func (c *crowd) handle(batch []*source.Attempt, offered bool, random *rand.Rand) {
	if offered && len(batch) > 0 {
		if random.IntN(3) == 0 {
			if err := batch[0].End(source.Outcome{Kind: source.Withdraw}); err != nil {
				c.fail("withdrawn: %w", err)
			}
			return
		}
		batch[0].Start()
	}
	for _, a := range batch {
		c.received(a)
	}
	time.Sleep(time.Duration(random.IntN(1000)) * time.Microsecond)
	for _, a := range batch {
		if err := a.End(ack); err != nil {
			c.fail("acknowledged: %w", err)
		}
	}
}

func (c *crowd) received(a *source.Attempt) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.counts[a.ID]++; c.counts[a.ID] > 1 || a.Count != 1 {
		c.wrong = errors.Join(c.wrong, fmt.Errorf("%s was delivered %d times, with count %d", a.ID, c.counts[a.ID], a.Count))
	}
	before := window.Identity{}
	_, _ = fmt.Sscanf(c.last, "%d-%d", &before.ID.Ms, &before.ID.Seq)
	if it := a.Held.(*window.Item); c.ordered && it.ID.Less(before.ID) {
		c.wrong = errors.Join(c.wrong, fmt.Errorf("%s came after %s", a.ID, c.last))
	}
	c.last = a.ID
}

// TestNextBatch_ContextsEndTogether has all contexts end at the moment at which an entry comes: it is
// either delivered, or there for the next caller, uncounted.
func TestNextBatch_ContextsEndTogether(t *testing.T) {
	for round := range 300 {
		synctest.Test(t, func(t *testing.T) {
			k := newKit(nil)
			var got []*source.Attempt
			var mu sync.Mutex
			var all sync.WaitGroup
			for i := range 8 {
				all.Go(func() {
					ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
					defer cancel()
					limits := source.Limits{Max: 1 + i%2, Offer: i%4 == 0, Wait: time.Duration(round%3) * time.Millisecond}
					batch, err := k.NextBatch(ctx, nil, limits)
					require.Equal(t, err == nil, len(batch) > 0)
					mu.Lock()
					defer mu.Unlock()
					got = append(got, batch...)
				})
			}
			time.Sleep(time.Millisecond)
			k.admit(1, 2, 3)
			all.Wait()
			require.Equal(t, 3, len(got)+k.win.Sizes().Buffered)
			require.EqualValues(t, len(got), k.running.Load())
			for _, a := range got {
				require.Equal(t, 1, a.Count)
			}
			for range k.win.Sizes().Buffered {
				batch, err := k.NextBatch(t.Context(), nil, source.Limits{Max: 1})
				require.NoError(t, err)
				require.Equal(t, 1, batch[0].Count)
			}
		})
	}
}

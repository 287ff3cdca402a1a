package tail

import (
	"context"
	"errors"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/flaminco/redischannels/internal/lifecycle/lifecycletest"
	"github.com/flaminco/redischannels/internal/redistest"
	"github.com/flaminco/redischannels/internal/stream"
)

// Not parallel: the test counts goroutines.
func TestPager_Life(t *testing.T) {
	h := newHarness(t, redistest.Start(t))
	lifecycletest.Stress(t, ErrClosed, func() lifecycletest.Subject {
		// Pagers of one Readers, each closed by its user or by Readers.
		readers := NewReaders(h.cfg)
		return lifecycletest.Subject{
			Call: func(ctx context.Context) error {
				p, err := readers.Open(ctx, "topic", latest, 10, 1000, new(seen))
				if err != nil {
					return err
				}
				defer p.Close()
				ctx, cancel := context.WithTimeout(ctx, time.Millisecond)
				defer cancel()
				if _, err = p.Next(ctx); errors.Is(err, context.DeadlineExceeded) {
					return nil
				}
				return err
			},
			Close: func() error { readers.Close(); return nil },
		}
	})
	lifecycletest.Stress(t, ErrClosed, func() lifecycletest.Subject {
		p, _ := h.pager(t, "other", latest, 10)
		var turn sync.Mutex // Next is for one goroutine
		return lifecycletest.Subject{
			Call: func(ctx context.Context) error {
				turn.Lock()
				defer turn.Unlock()
				ctx, cancel := context.WithTimeout(ctx, time.Millisecond)
				defer cancel()
				_, err := p.Next(ctx)
				if errors.Is(err, context.DeadlineExceeded) {
					return nil
				}
				return err
			},
			Close: func() error { p.Close(); return nil },
		}
	})
}

// However a stream grows and is read in between, with the trimming of a retention: entries
// come in order, each once, and where some are missing a gap stands in their place.
func TestPager_OrderAndGaps(t *testing.T) {
	t.Parallel()
	h := newHarness(t, redistest.Start(t))
	if !redistest.IsRedis7(t, h.client) {
		t.Skip("before Redis 7 a stream does not know what was removed from it")
	}
	topics := 0
	rapid.Check(t, func(rt *rapid.T) {
		topics++
		topic := "topic" + strconv.Itoa(topics)
		limit := rapid.IntRange(1, 20).Draw(rt, "limit")
		keep := int64(rapid.IntRange(1, 40).Draw(rt, "MAXLEN"))
		p, err := h.Open(t.Context(), topic, after(stream.ID{}), limit, 8<<20, new(seen))
		require.NoError(rt, err)
		defer p.Close()
		added, got := 0, 0
		read := func(ctx context.Context) bool {
			page, err := p.Next(ctx)
			if err != nil {
				return false
			}
			require.LessOrEqual(rt, len(page.Entries), limit)
			require.Nil(rt, page.Rewound)
			for i, e := range page.Entries {
				id := int(e.ID.Ms)
				require.Greater(rt, id, got)
				require.True(rt, id == got+1 || i == 0 && page.Gap != nil || got == 0, "%d behind %d without a gap", id, got)
				got = id
			}
			if page.Gap != nil && len(page.Entries) == 0 {
				require.GreaterOrEqual(rt, int(page.Gap.Next.Ms), got)
				got = int(page.Gap.Next.Ms)
			}
			p.mu.Lock()
			defer p.mu.Unlock()
			require.LessOrEqual(rt, p.entries, limit)
			return true
		}
		for range rapid.IntRange(1, 12).Draw(rt, "steps") {
			if rapid.Bool().Draw(rt, "append") {
				pipe := h.client.Pipeline()
				for range rapid.IntRange(1, 60).Draw(rt, "entries") {
					added++
					pipe.XAdd(t.Context(), &redis.XAddArgs{
						Stream: topic, MaxLen: keep, ID: strconv.Itoa(added) + "-0", Values: []string{"v", "x"},
					})
				}
				_, err := pipe.Exec(t.Context())
				require.NoError(rt, err)
				continue
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond) // the shared reader may bring something
			read(ctx)
			cancel()
		}
		if added > 0 { // what is left, and what is known to be lost
			added++
			add(t, h.client, topic, strconv.Itoa(added)+"-0", "last")
			for got < added {
				ctx, cancel := context.WithTimeout(t.Context(), soon)
				require.True(rt, read(ctx), "stopped at %d of %d", got, added)
				cancel()
			}
		}
	})
}

// A pager whose user is slow keeps no more than its limit, and does not delay another.
func TestPager_SlowUserDelaysNoOther(t *testing.T) {
	t.Parallel()
	const limit, n = 10, 500
	h, topic := newHarness(t, redistest.Start(t)), redistest.Key(t)
	slow, _ := h.pager(t, topic, latest, limit)
	quick, _ := h.pager(t, topic, latest, limit)
	pages := live(t, quick)
	// The slow one joins and then does not come back.
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err := slow.Next(ctx)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	h.blocked(t, 2)
	for i := range n {
		add(t, h.client, topic, strconv.Itoa(i+1)+"-0", strconv.Itoa(i))
	}
	for i := 0; i < n; {
		for _, e := range receive(t, pages).Entries {
			i++
			require.Equal(t, uint64(i), e.ID.Ms)
		}
	}
	require.Equal(t, limit, slow.entries)
	for i := 0; i < n; {
		page, _ := next(t, slow)
		for _, e := range page.Entries {
			i++
			require.Equal(t, uint64(i), e.ID.Ms)
		}
	}
}

// The entries that wait in a pager are not those of the shared reader, which uses their memory
// again.
func TestPager_KeepsItsEntries(t *testing.T) {
	t.Parallel()
	h, topic := newHarness(t, redistest.Start(t)), redistest.Key(t)
	p, _ := h.pager(t, topic, latest, 1000)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err := p.Next(ctx)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	h.blocked(t, 1)
	var want, got []string
	for i := range 300 { // each page is more than what is copied, and less than a chunk
		value := strconv.Itoa(i) + string(make([]byte, 2000))
		want = append(want, value)
	}
	for i := 0; i < len(want); i += 100 {
		pipe := h.client.TxPipeline()
		for _, v := range want[i : i+100] {
			pipe.XAdd(t.Context(), &redis.XAddArgs{Stream: topic, Values: []string{"v", v}})
		}
		_, err := pipe.Exec(t.Context())
		require.NoError(t, err)
	}
	for len(got) < len(want) {
		page, values := next(t, p)
		got = append(got, values...)
		stream.Recycle(page.Entries)
	}
	require.Equal(t, want, got)
}

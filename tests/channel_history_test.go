package tests

import (
	"context"
	"errors"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
)

// History begins right behind the ID, ends by itself, and concerns no group.
func TestChannel_History(t *testing.T) {
	t.Parallel()
	hub, key := newHubOf(t), redistest.Key(t)
	numbers := streamOf[int](t, hub, key)
	for i, id := range []string{"1-0", "1-1", "2-0", "2-7"} {
		_, err := hub.client.Do(t.Context(), "XADD", key, id, "_watermill_message_uuid", "u", "metadata", "", "payload", strconv.Itoa(i)).Result()
		require.NoError(t, err)
	}
	for from, want := range map[redischannels.Position][]int{
		"":                           {0, 1, 2, 3},
		redischannels.Oldest:         {0, 1, 2, 3},
		redischannels.AfterID("1-0"): {1, 2, 3},
		redischannels.AfterID("2-6"): {3},
		redischannels.AfterID("2-7"): nil,
		redischannels.Latest:         nil,
	} {
		var got []int
		for d, err := range numbers.Reader().History(t.Context(), from) {
			require.NoError(t, err)
			got = append(got, d.Value)
		}
		require.Equal(t, want, got, from)
	}
	require.Empty(t, hub.client.XInfoGroups(t.Context(), key).Val())
	for d, err := range numbers.Reader().History(t.Context(), redischannels.AfterID("2-0")) {
		require.NoError(t, err)
		require.Equal(t, "2-7", d.ID)
		require.Equal(t, int64(2), d.Time.UnixMilli())
	}
	for _, err := range numbers.Reader().History(t.Context(), redischannels.AfterID("x")) {
		require.ErrorIs(t, err, redischannels.ErrInvalidArgument)
	}
	n := 0
	for _, err := range numbers.Reader().Follow(soonCtx(t), redischannels.AfterID("x")) {
		require.ErrorIs(t, err, redischannels.ErrInvalidArgument)
		n++
	}
	require.Equal(t, 1, n, "it can never work")
}

// The history of a closed reader continued: without a group it is read by a subscriber that others
// have as well, and what was fetched before came all the same.
func TestChannel_HistoryEndsWithItsReader(t *testing.T) {
	t.Parallel()
	for name, config := range map[string]redischannels.StreamChannelConfig{"group": {}, "no group": noGroup} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			hub, key := newHubOf(t), redistest.Key(t)
			numbers := streamOf[int](t, hub, key, config)
			write(t, numbers, 1, 2, 3)
			read := func() (got []int, errs []error) {
				for d, err := range numbers.Reader().History(t.Context(), redischannels.Oldest) {
					if err != nil {
						errs = append(errs, err)
						continue
					}
					got = append(got, d.Value)
					require.NoError(t, numbers.Close())
				}
				return got, errs
			}
			for _, want := range [][]int{{1}, nil, nil} { // closed by the body, before, and with nothing to read
				got, errs := read()
				require.Equal(t, want, got)
				require.Len(t, errs, 1)
				require.ErrorIs(t, errs[0], redischannels.ErrClosed)
				if want == nil {
					require.NoError(t, hub.client.Del(t.Context(), key).Err())
				}
			}
		})
	}
}

// History and live meet without gap and without duplicate at full publishing speed.
func TestChannel_FollowHasOneCursor(t *testing.T) {
	t.Parallel()
	hub, key := newHubOf(t), redistest.Key(t)
	numbers := streamOf[int](t, hub, key)
	const before, after, batch = 2000, 8000, 100
	for i := 0; i < before; i += batch {
		write(t, numbers, consecutive(i, batch)...)
	}
	published := make(chan error, 1)
	started := make(chan struct{})
	go func() {
		<-started
		for i := before; i < before+after; i += batch {
			if _, err := numbers.Writer().WriteAll(t.Context(), consecutive(i, batch)...); err != nil {
				published <- err
				return
			}
		}
		published <- nil
	}()
	next := 0
	ctx, cancel := context.WithTimeout(t.Context(), 6*soon)
	defer cancel()
	for d, err := range numbers.Reader().Follow(ctx, redischannels.Oldest) {
		require.NoError(t, err)
		if next == 0 {
			close(started)
		}
		require.Equal(t, next, d.Value)
		if next++; next == before+after {
			break
		}
	}
	require.Equal(t, before+after, next)
	require.NoError(t, <-published)
	hub.events.none(t, redischannels.EventGap)

	// From an ID, and on into silence.
	next = 0
	quietly, stop := context.WithTimeout(t.Context(), 10*quiet)
	defer stop()
	for d, err := range numbers.Reader().Follow(quietly, redischannels.Latest) {
		require.NoError(t, err)
		next = d.Value
	}
	require.Zero(t, next)
	require.Empty(t, hub.client.XInfoGroups(t.Context(), key).Val())
}

// A position that was trimmed away is a *GapError before everything else.
func TestChannel_GapComesFirst(t *testing.T) {
	t.Parallel()
	hub, key := newHubOf(t), redistest.Key(t)
	reports := redistest.IsRedis7(t, hub.client) // what it has deleted; others continue without a report
	begin := map[bool]int{true: 0, false: 1}[reports]
	config := noGroup
	config.Subscriber.StartFrom = redischannels.Oldest
	numbers := streamOf[int](t, hub, key)
	ids := write(t, numbers, consecutive(0, 10)...)
	require.NoError(t, hub.client.XTrimMinID(t.Context(), key, ids[5]).Err())

	from := redischannels.AfterID(ids[1])
	check := func(n *int, d redischannels.Delivery[int], err error) bool {
		if *n == 0 {
			var gap *redischannels.GapError
			require.ErrorAs(t, err, &gap)
			require.Equal(t, ids[1], gap.After)
			require.Equal(t, ids[5], gap.FirstAvailable)
		} else {
			require.NoError(t, err)
			require.Equal(t, 4+*n, d.Value)
		}
		*n++
		return *n == 6
	}
	n := begin
	for d, err := range numbers.Reader().History(t.Context(), from) {
		check(&n, d, err)
	}
	require.Equal(t, 6, n)
	n = begin
	for d, err := range numbers.Reader().Follow(soonCtx(t), from) {
		if check(&n, d, err) {
			break
		}
	}
	require.Equal(t, 6, n)
	config.Subscriber.StartFrom = from
	fan := streamOf[int](t, hub, key, config)
	ok, err := fan.Reader().WaitToRead(soonCtx(t))
	require.True(t, ok)
	require.NoError(t, err)
	n = begin
	for d, err := range fan.Reader().Deliveries(soonCtx(t)) {
		if err == nil {
			require.NoError(t, d.Ack())
		}
		if check(&n, d, err) {
			break
		}
	}

	// Nothing is left behind the gap: it is given at once.
	require.NoError(t, hub.client.XTrimMaxLen(t.Context(), key, 0).Err())
	if !reports {
		write(t, numbers, 10)
	}
	for d, err := range numbers.Reader().Follow(soonCtx(t), redischannels.AfterID(ids[6])) {
		if !reports {
			require.NoError(t, err)
			require.Equal(t, 10, d.Value)
			break
		}
		var gap *redischannels.GapError
		require.ErrorAs(t, err, &gap)
		require.Empty(t, gap.FirstAvailable)
		break
	}
}

// Readers of a stream without a group get an error about values that are trimmed ahead of them,
// behind those that they still have.
func TestChannel_GapWhileReading(t *testing.T) {
	t.Parallel()
	hub, key := newHubOf(t), redistest.Key(t)
	reports := redistest.IsRedis7(t, hub.client) // what it has deleted; others continue without a report
	config := noGroup
	config.Subscriber.StartFrom, config.Subscriber.MaxInFlight, config.Subscriber.Tuning.Prefetch = redischannels.Oldest, 1, redischannels.NoPrefetch
	numbers := streamOf[int](t, hub, key, config)
	ids := write(t, numbers, consecutive(0, 200)...)
	first := receiveValue(t, numbers)
	require.Zero(t, first.Value)
	require.NoError(t, hub.client.XTrimMinID(t.Context(), key, ids[150]).Err())
	require.NoError(t, first.Ack())
	last, gaps := 0, 0
	for d, err := range numbers.Reader().Deliveries(soonCtx(t)) {
		var gap *redischannels.GapError
		if errors.As(err, &gap) {
			require.Equal(t, ids[last], gap.After)
			gaps++
			last = 149
			continue
		}
		require.NoError(t, err)
		if !reports && d.Value == 150 {
			last = 149
		}
		require.Equal(t, last+1, d.Value)
		require.NoError(t, d.Ack())
		if last = d.Value; last == 199 {
			break
		}
	}
	require.Equal(t, map[bool]int{true: 1, false: 0}[reports], gaps)
}

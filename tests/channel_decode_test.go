package tests

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
)

// badEntries are ways in which an entry makes no order, by the marshaler or the codec.
func badEntries(t *testing.T, hub *testHub, key string) (ids []string) {
	t.Helper()
	for _, fields := range [][]string{
		{"data", `{"ID":"text"}`},                // another type
		{"data", "null"},                         // no value
		{"other", "x"},                           // no data at all
		{"data", "{"},                            // no JSON
		{"data", `[1]`},                          // another shape
		{"data", `{"ID":1}`, "data", `{"ID":2}`}, // which?
		{"data", `{"ID":1}`, "metadata", "no msgpack \x00"}, // damaged
	} {
		ids = append(ids, addRaw(t, hub.client, key, fields...))
	}
	return ids
}

var flaminco = redischannels.StreamChannelConfig{Marshaler: redischannels.FlamincoMarshaler{}}

// F79, F80, F81: an entry that cannot be decoded is told of, ends in the dead letters,
// is not pending for ever, and hides no other.
func TestChannel_UndecodableInAGroup(t *testing.T) {
	t.Parallel()
	hub, key := newHubOf(t), redistest.Key(t)
	orders := streamOf[order](t, hub, key, flaminco)
	write(t, orders, order{ID: 1})
	bad := badEntries(t, hub, key)
	write(t, orders, order{ID: 2})

	var got []order
	failed := map[string]*redischannels.DecodeError{}
	for o, err := range orders.Reader().All(soonCtx(t)) {
		var failure *redischannels.DecodeError
		if errors.As(err, &failure) {
			require.Zero(t, o)
			failed[failure.EntryID] = failure
			continue
		}
		require.NoError(t, err)
		if got = append(got, o); len(got) == 2 {
			break
		}
	}
	require.Equal(t, []order{{ID: 1}, {ID: 2}}, got)
	require.Len(t, failed, len(bad))
	for _, id := range bad {
		require.Contains(t, failed, id)
		require.Equal(t, key, failed[id].Topic)
		require.NotEmpty(t, failed[id].Reason)
	}
	redistest.Eventually(t, soon, func() bool {
		return hub.client.XLen(t.Context(), deadStream(key)).Val() == int64(len(bad))
	}, "dead letters")
	dead, err := hub.client.XRange(t.Context(), deadStream(key), "-", "+").Result()
	require.NoError(t, err)
	found := false
	for _, letter := range dead {
		require.Contains(t, bad, letter.Values["_dead_entry_id"])
		if letter.Values["_dead_entry_id"] == bad[0] {
			found = true
			require.Equal(t, `{"ID":"text"}`, letter.Values["data"], "unchanged")
			require.NotContains(t, letter.Values["_dead_reason"], "text", "no payload")
		}
	}
	require.True(t, found)
	require.Equal(t, 2, drainAcked(t, orders, 1)[0].ID, "the one at the break")
	eventuallyPending(t, hub.client, key, 0)
}

// Without a group, and in History and Follow, it is yielded in its place and passed.
func TestChannel_UndecodableWithoutAGroup(t *testing.T) {
	t.Parallel()
	hub, key := newHubOf(t), redistest.Key(t)
	config := flaminco
	config.ConsumerGroup, config.StartFrom = redischannels.NoConsumerGroup, redischannels.Oldest
	orders := streamOf[order](t, hub, key, config)
	write(t, orders, order{ID: 1})
	bad := badEntries(t, hub, key)
	write(t, orders, order{ID: 2})

	check := func(next func() (order, error)) {
		t.Helper()
		first, err := next()
		require.NoError(t, err)
		require.Equal(t, 1, first.ID)
		for _, id := range bad {
			_, err := next()
			var failure *redischannels.DecodeError
			require.ErrorAs(t, err, &failure)
			require.Equal(t, id, failure.EntryID)
		}
		last, err := next()
		require.NoError(t, err)
		require.Equal(t, 2, last.ID)
	}
	check(func() (order, error) { return orders.Reader().Read(soonCtx(t)) })
	var history []error
	for _, err := range orders.Reader().History(t.Context(), redischannels.Oldest) {
		history = append(history, err)
	}
	require.Len(t, history, 2+len(bad))
	n := 0
	for d, err := range orders.Reader().Follow(soonCtx(t), redischannels.Oldest) {
		require.Equal(t, n > 0 && n <= len(bad), err != nil)
		if err == nil {
			require.NoError(t, d.Context().Err())
			require.ErrorIs(t, d.Ack(), redischannels.ErrNotSupported)
		}
		if n++; n == 2+len(bad) {
			break
		}
	}
	require.Zero(t, hub.client.Exists(t.Context(), deadStream(key)).Val())
}

// TryReceive went over a value that cannot be decoded as if nothing were ready, and nobody was told.
func TestChannel_TryReceiveReportsUndecodable(t *testing.T) {
	t.Parallel()
	for name, group := range map[string]string{"group": "g", "no group": redischannels.NoConsumerGroup} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			hub, key := newHubOf(t), redistest.Key(t)
			config := flaminco
			config.ConsumerGroup, config.StartFrom = group, redischannels.Oldest
			orders := streamOf[order](t, hub, key, config)
			bad := addRaw(t, hub.client, key, "data", "{")
			write(t, orders, order{ID: 1})
			ok, err := orders.Reader().WaitToRead(soonCtx(t))
			require.NoError(t, err)
			require.True(t, ok)
			_, ok, err = orders.Reader().TryReceive()
			var failure *redischannels.DecodeError
			require.ErrorAs(t, err, &failure)
			require.Equal(t, bad, failure.EntryID)
			require.False(t, ok)
			require.Equal(t, []order{{ID: 1}}, drainAcked(t, orders, 1))
		})
	}
}

// F82: a value of another type decoded "successfully" into an empty one.
func TestChannel_StrictJSON(t *testing.T) {
	t.Parallel()
	type invoice struct{ Number, Total int }
	hub, key := newHubOf(t), redistest.Key(t)
	invoices := streamOf[invoice](t, hub, key)
	orders := streamOf[order](t, hub, key, redischannels.StreamChannelConfig{Codec: redischannels.StrictJSON})
	write(t, invoices, invoice{Number: 1})
	_, err := orders.Reader().Receive(soonCtx(t))
	var failure *redischannels.DecodeError
	require.ErrorAs(t, err, &failure)
	event := hub.events.wait(t, redischannels.EventDeadLettered)
	require.Equal(t, []string{failure.EntryID}, event.EntryIDs)
}

// An entry above MaxPayload was known to events only: those who read were not told.
func TestChannel_TooLargeIsReported(t *testing.T) {
	t.Parallel()
	hub, key := newHubOf(t), redistest.Key(t)
	small := redischannels.StreamChannelConfig{MaxPayload: 200, Codec: redischannels.String}
	texts := streamOf[string](t, hub, key, small)
	wide := small
	wide.MaxPayload = 0
	ids := write(t, streamOf[string](t, hub, key, wide), strings.Repeat("x", 200), "short")
	var failure *redischannels.DecodeError
	n := 0
	for d, err := range texts.Reader().Follow(soonCtx(t), redischannels.Oldest) {
		if n++; n == 2 {
			require.NoError(t, err)
			require.Equal(t, "short", d.Value)
			break
		}
		require.ErrorAs(t, err, &failure)
		require.Equal(t, ids[0], failure.EntryID)
	}
	_, err := texts.Reader().Receive(soonCtx(t))
	require.ErrorAs(t, err, &failure)
	require.Equal(t, ids[0], failure.EntryID)
	require.Contains(t, failure.Reason, "more than MaxPayload 200")
	require.Equal(t, []string{"short"}, drainAcked(t, texts, 1))
	event := hub.events.wait(t, redischannels.EventDeadLettered)
	require.Equal(t, ids[:1], event.EntryIDs)
	require.ErrorContains(t, event.Err, "MaxPayload 200")
	eventuallyPending(t, hub.client, key, 0)
}

// Every codec carries its values.
func TestChannel_Codecs(t *testing.T) {
	t.Parallel()
	hub := newHubOf(t)
	texts := streamOf[string](t, hub, redistest.Key(t, "s"), redischannels.StreamChannelConfig{Codec: redischannels.String})
	write(t, texts, "", "a\x00b", "null")
	require.Equal(t, []string{"", "a\x00b", "null"}, drainAcked(t, texts, 3))
	raw := streamOf[[]byte](t, hub, redistest.Key(t, "b"), redischannels.StreamChannelConfig{Codec: redischannels.Bytes})
	write(t, raw, []byte{0, 255})
	require.Equal(t, []byte{0, 255}, drainAcked(t, raw, 1)[0])
	pointers := streamOf[*order](t, hub, redistest.Key(t, "p"))
	write(t, pointers, &order{ID: 1})
	require.Equal(t, 1, drainAcked(t, pointers, 1)[0].ID)
	_, err := pointers.Writer().Write(t.Context(), nil)
	require.ErrorContains(t, err, "null")
	lists := streamOf[[]int](t, hub, redistest.Key(t, "l"))
	write(t, lists, nil, []int{1})
	require.Equal(t, [][]int{nil, {1}}, drainAcked(t, lists, 2))
}

// F12: History begins right behind the ID, ends by itself, and concerns no group.
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

// The history of a closed reader went on: without a group it is read by a subscriber that others
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

// F13: history and live meet without gap and without duplicate at full publishing speed.
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

// F77: a position that was trimmed away is a *GapError before everything else.
func TestChannel_GapComesFirst(t *testing.T) {
	t.Parallel()
	hub, key := newHubOf(t), redistest.Key(t)
	tells := redistest.IsRedis7(t, hub.client) // what it has deleted; others go on in silence
	begin := map[bool]int{true: 0, false: 1}[tells]
	config := noGroup
	config.StartFrom = redischannels.Oldest
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
	config.StartFrom = from
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

	// Nothing is left behind the gap: it is told at once.
	require.NoError(t, hub.client.XTrimMaxLen(t.Context(), key, 0).Err())
	if !tells {
		write(t, numbers, 10)
	}
	for d, err := range numbers.Reader().Follow(soonCtx(t), redischannels.AfterID(ids[6])) {
		if !tells {
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

// Readers of a stream without a group are told of values that are trimmed ahead of them,
// behind those that they still have.
func TestChannel_GapWhileReading(t *testing.T) {
	t.Parallel()
	hub, key := newHubOf(t), redistest.Key(t)
	tells := redistest.IsRedis7(t, hub.client) // what it has deleted; others go on in silence
	config := noGroup
	config.StartFrom, config.MaxInFlight, config.Tuning.Prefetch = redischannels.Oldest, 1, redischannels.NoPrefetch
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
		if !tells && d.Value == 150 {
			last = 149
		}
		require.Equal(t, last+1, d.Value)
		require.NoError(t, d.Ack())
		if last = d.Value; last == 199 {
			break
		}
	}
	require.Equal(t, map[bool]int{true: 1, false: 0}[tells], gaps)
}

package tests

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"slices"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
)

// Nothing is said to Redis before the first use; a channel used only for writing issues no read command
// and never joins a group. Publishing through a channel started a reader that stole the
// group's messages.
func TestChannel_WriterNeverReads(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	hub := newHub(t, server.Client(t))
	admin := server.Client(t)
	require.NoError(t, admin.Ping(t.Context()).Err())
	redistest.ResetStats(t, admin)

	numbers := streamOf[int](t, hub, "numbers")
	require.Zero(t, commandsBut(t, admin), "no I/O before the first use")
	for i := range 20 {
		_, err := numbers.Writer().Write(t.Context(), i)
		require.NoError(t, err)
		require.NoError(t, numbers.Writer().WaitToWrite(t.Context()))
	}
	write(t, numbers, consecutive(20, 10)...)
	for name := range redistest.CommandStats(t, admin) {
		// ZRANGE checks whether a crashed process has left delayed messages.
		require.Contains(t, []string{"xadd", "zrange", "multi", "exec", "hello", "client|setinfo", "client|maint_notifications", "client", "info", "config|resetstat", "config", "ping"}, name)
	}
	groups, err := admin.XInfoGroups(t.Context(), "numbers").Result()
	require.NoError(t, err)
	require.Empty(t, groups)

	reader := streamOf[int](t, hub, "numbers")
	require.Equal(t, consecutive(0, 30), drainAcked(t, reader, 30), "all 30 are there for a reader")
}

// commandsBut counts the commands but those of the count itself.
func commandsBut(t *testing.T, client redis.UniversalClient) (n int64) {
	t.Helper()
	for name, calls := range redistest.CommandStats(t, client) {
		if name != "info" && !strings.HasPrefix(name, "config") {
			n += calls
		}
	}
	return n
}

// A write error was `false`.
func TestChannel_WriteErrors(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	hub := newHub(t, server.Client(t))
	require.NoError(t, hub.client.Set(t.Context(), "text", "x", 0).Err())
	wrong := streamOf[int](t, hub, "text")
	_, err := wrong.Writer().Write(t.Context(), 1)
	require.ErrorIs(t, err, redischannels.ErrWrongType)
	_, err = wrong.Reader().Receive(soonCtx(t))
	require.ErrorIs(t, err, redischannels.ErrWrongType, "and reading says so too")

	values := streamOf[any](t, hub, "values")
	_, err = values.Writer().Write(t.Context(), func() {})
	require.ErrorContains(t, err, "encode")
	_, err = values.Writer().WriteAll(t.Context(), 1, make(chan int))
	require.ErrorContains(t, err, "value 1")
	require.Zero(t, hub.client.XLen(t.Context(), "values").Val(), "one that cannot be encoded prevents all")

	gone := streamOf[int](t, hub, "gone", redischannels.StreamChannelConfig{Publisher: redischannels.PublisherConfig{Timeout: 100 * time.Millisecond}})
	server.Stop()
	_, err = gone.Writer().Write(t.Context(), 1)
	var failed *redischannels.PublishError
	require.ErrorAs(t, err, &failed)
}

// WaitToWrite is back-pressure: it waits for the group, or for the stream to shrink.
func TestChannel_WaitToWrite(t *testing.T) {
	t.Parallel()
	hub := newHubOf(t)
	waits := func(w *redischannels.Writer[int]) {
		ctx, cancel := context.WithTimeout(t.Context(), quiet)
		defer cancel()
		require.ErrorIs(t, w.WaitToWrite(ctx), context.DeadlineExceeded)
	}
	key := redistest.Key(t, "lag")
	c := streamOf[int](t, hub, key, redischannels.StreamChannelConfig{MaxLag: 3})
	require.NoError(t, c.Writer().WaitToWrite(t.Context()), "no stream yet")
	write(t, c, 1, 2, 3)
	waits(c.Writer())
	ready := make(chan error, 1)
	go func() { ready <- c.Writer().WaitToWrite(soonCtx(t)) }()
	drainAcked(t, c, 3)
	require.NoError(t, <-ready, "the group has read them")

	// After XDEL Redis 7 reports no lag, and before 7.0 never.
	write(t, c, 4, 5, 6, 7)
	drainAcked(t, c, 4)
	require.NoError(t, c.Close())
	other := streamOf[int](t, hub, key, redischannels.StreamChannelConfig{MaxLag: 3})
	ids := write(t, other, 8, 9, 10, 11)
	require.NoError(t, hub.client.XDel(t.Context(), key, ids[1]).Err())
	waits(other.Writer())
	drainAcked(t, other, 3)
	require.NoError(t, other.Writer().WaitToWrite(soonCtx(t)))

	key = redistest.Key(t, "len")
	c = streamOf[int](t, hub, key, redischannels.StreamChannelConfig{MaxLen: 2})
	write(t, c, 1)
	require.NoError(t, c.Writer().WaitToWrite(t.Context()))
	write(t, c, 2)
	waits(c.Writer())
	require.NoError(t, hub.client.XTrimMaxLen(t.Context(), key, 1).Err())
	require.NoError(t, c.Writer().WaitToWrite(soonCtx(t)))
}

// Complete is local to the Channel value, sends nothing, and names its reason.
func TestChannel_Complete(t *testing.T) {
	t.Parallel()
	hub, key := newHubOf(t), redistest.Key(t)
	c, other := streamOf[int](t, hub, key), streamOf[int](t, hub, key)
	require.NoError(t, c.Writer().Err())
	reason := errors.New("the import is over")
	require.True(t, c.Writer().Complete(reason))
	require.False(t, c.Writer().Complete(nil))
	for _, w := range []*redischannels.Writer[int]{c.Writer(), c.Writer().With(nil)} {
		_, err := w.Write(t.Context(), 1)
		require.ErrorIs(t, err, redischannels.ErrCompleted)
		require.ErrorIs(t, err, reason)
		require.ErrorIs(t, w.Err(), redischannels.ErrCompleted)
		require.ErrorIs(t, w.WaitToWrite(t.Context()), redischannels.ErrCompleted)
	}
	require.Zero(t, hub.client.Exists(t.Context(), key).Val(), "nothing is sent")
	write(t, other, 1)
	require.Equal(t, []int{1}, drainAcked(t, c, 1), "its reader continues")
}

// A WriteAll of several transactions of which one fails says which values were written, and
// that not all were.
func TestChannel_WriteAllReportsWhatWasWritten(t *testing.T) {
	t.Parallel()
	client, key := redistest.Shared(t).Client(t), redistest.Key(t)
	proxy := redistest.NewProxy(t, redistest.Shared(t).Addr())
	hub := newHub(t, redistest.Shared(t).Client(t, redistest.Via(proxy)))
	numbers := streamOf[int](t, hub, key)
	write(t, numbers, -1, -2) // from here on each EXEC is one of values
	require.NoError(t, client.Del(t.Context(), key).Err())
	proxy.BeforeReply(1, redistest.Command("exec"), func() { // the second one finds no stream
		require.NoError(t, client.Rename(t.Context(), key, key+"-first").Err())
		require.NoError(t, client.Set(t.Context(), key, "x", time.Minute).Err())
	})
	ids, err := numbers.Writer().WriteAll(soonCtx(t), consecutive(0, 1200)...)
	require.ErrorIs(t, err, redischannels.ErrWrongType)
	var failed *redischannels.PublishError
	require.ErrorAs(t, err, &failed)
	require.Equal(t, 500, failed.Count(redischannels.OutcomeAppended))
	require.Equal(t, 700, failed.Count(redischannels.OutcomeNotAppended))
	require.Len(t, ids, 1200)
	require.Equal(t, 500, slices.Index(ids, ""))
	require.Equal(t, slices.Repeat([]string{""}, 700), ids[500:])
	entries, err := client.XRange(t.Context(), key+"-first", "-", "+").Result()
	require.NoError(t, err)
	require.Len(t, entries, 500)
	for i, e := range entries {
		require.Equal(t, e.ID, ids[i])
	}
}

// The lag of XINFO GROUPS is wrong after trimming, XDEL and XGROUP SETID: WaitToWrite waited for
// a group that had read everything, forever.
func TestChannel_WaitToWriteWhereTheServersLagIsWrong(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	readAll := func(t *testing.T, topic string) {
		require.NoError(t, client.XReadGroup(t.Context(), &redis.XReadGroupArgs{
			Group: "g", Consumer: "c", Streams: []string{topic, ">"}, Block: -1}).Err())
	}
	for name, act := range map[string]func(t *testing.T, topic string, ids []string){
		"trimmed": func(t *testing.T, topic string, _ []string) {
			require.NoError(t, client.XTrimMaxLen(t.Context(), topic, 10).Err())
			readAll(t, topic)
		},
		"deleted": func(t *testing.T, topic string, ids []string) {
			require.NoError(t, client.XDel(t.Context(), topic, ids[1], ids[15]).Err())
			readAll(t, topic)
		},
		"last deleted": func(t *testing.T, topic string, ids []string) {
			require.NoError(t, client.XDel(t.Context(), topic, ids[19]).Err())
			readAll(t, topic)
		},
		"moved": func(t *testing.T, topic string, ids []string) {
			require.NoError(t, client.XGroupSetID(t.Context(), topic, "g", ids[18]).Err())
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			topic := redistest.Key(t)
			require.NoError(t, client.XGroupCreateMkStream(t.Context(), topic, "g", "0").Err())
			ids := publish(t, client, topic, numbered(20)...)
			c := streamOf[int](t, newHub(t, client), topic, redischannels.StreamChannelConfig{MaxLag: 3})
			full, cancel := context.WithTimeout(t.Context(), quiet)
			defer cancel()
			require.ErrorIs(t, c.Writer().WaitToWrite(full), context.DeadlineExceeded)
			act(t, topic, ids)
			require.NoError(t, c.Writer().WaitToWrite(soonCtx(t)))
		})
	}
}

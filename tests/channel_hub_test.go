package tests

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
)

// F101: everything that Open has made is gone after Close, and a client of the caller
// is not touched.
func TestHub_CloseReleasesEverything(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	admin := server.Client(t)
	require.NoError(t, admin.Ping(t.Context()).Err())
	before := redistest.Connections(t, admin)
	hub, err := redischannels.Open(t.Context(), "redis://"+server.Addr()+"/0?pool_size=4", redischannels.HubConfig{})
	require.NoError(t, err)
	group, err := redischannels.NewStreamChannel[int](hub, "a", redischannels.StreamChannelConfig{ConsumerGroup: "g"})
	require.NoError(t, err)
	fan, err := redischannels.NewStreamChannel[int](hub, "a", redischannels.StreamChannelConfig{})
	require.NoError(t, err)
	_, _, err = fan.Reader().TryReceive()
	require.NoError(t, err)
	write(t, group, 1, 2)
	for range 2 {
		_, err = group.Reader().Read(t.Context())
		require.NoError(t, err)
	}
	blocked := make(chan error, 1)
	go func() {
		_, err := fan.Reader().Read(t.Context())
		for err == nil {
			_, err = fan.Reader().Read(t.Context())
		}
		blocked <- err
	}()
	following, leave := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(leave)
		for range group.Reader().Follow(t.Context(), redischannels.Oldest) {
			following <- struct{}{}
			<-leave // a body that does not come back while the hub is closed
		}
	}()
	<-following
	require.NoError(t, hub.Close())
	waitEnd(t, group.Reader())
	waitEnd(t, fan.Reader())
	require.ErrorIs(t, <-blocked, redischannels.ErrClosed)
	redistest.Eventually(t, soon, func() bool { return redistest.Connections(t, admin) == before }, "connections are left")
	consumers, err := admin.XInfoConsumers(t.Context(), "a", "g").Result()
	require.NoError(t, err)
	require.Empty(t, consumers)
	require.NoError(t, hub.Close(), "again")
	leave <- struct{}{}
	<-leave

	mine, err := redischannels.NewHub(admin, redischannels.HubConfig{})
	require.NoError(t, err)
	require.NoError(t, mine.Close())
	require.NoError(t, admin.Ping(t.Context()).Err(), "the client is the caller's")
}

// The schemes are those of go-redis' parsers.
func TestHub_OpenURL(t *testing.T) {
	t.Parallel()
	server := redistest.Shared(t)
	hub, err := redischannels.Open(t.Context(), "redis://"+server.Addr(), redischannels.HubConfig{})
	require.NoError(t, err)
	require.NoError(t, hub.Close())
	for url, want := range map[string]string{
		"://":                              "cannot be parsed",
		"http://localhost":                 "scheme",
		"redis+ring://localhost":           "redis+ring is none of",
		"redis+sentinel://localhost:26379": "master_name",
		"redis://localhost?wrong=1":        "wrong",
		"redis://localhost/a":              "database",
	} {
		_, err := redischannels.Open(t.Context(), url, redischannels.HubConfig{})
		require.ErrorIs(t, err, redischannels.ErrInvalidArgument, url)
		require.ErrorContains(t, err, want, url)
	}
	_, err = redischannels.Open(t.Context(), "redis://127.0.0.1:1?max_retries=-1", redischannels.HubConfig{})
	require.Error(t, err, "nobody listens")
	require.NotErrorIs(t, err, redischannels.ErrInvalidArgument)
	_, err = redischannels.Open(t.Context(), "redis://"+server.Addr(), redischannels.HubConfig{Stream: redischannels.StreamChannelConfig{MaxLag: -1}})
	require.ErrorIs(t, err, redischannels.ErrInvalidConfig)
}

// Nothing is said to Redis before the first use; who only writes issues no read command
// and never joins a group (F99: publishing through a channel started a reader that
// stole the group's messages).
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
		require.Contains(t, []string{"xadd", "multi", "exec", "hello", "client|setinfo", "client|maint_notifications", "client", "info", "config|resetstat", "config", "ping"}, name)
	}
	groups, err := admin.XInfoGroups(t.Context(), "numbers").Result()
	require.NoError(t, err)
	require.Empty(t, groups)

	reader := streamOf[int](t, hub, "numbers")
	require.Equal(t, consecutive(0, 30), drainAcked(t, reader, 30), "all 30 are there for who reads")
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

// Channels of one hub share its publisher where they write in the same way, and each
// closes alone (F95: disposing one reader ended the others).
func TestHub_ChannelsAreIndependent(t *testing.T) {
	t.Parallel()
	hub, key := newHubOf(t), redistest.Key(t)
	one, other := streamOf[int](t, hub, key, noGroup), streamOf[int](t, hub, key, noGroup)
	for _, c := range []*redischannels.Channel[int]{one, other} {
		_, _, err := c.Reader().TryReceive()
		require.NoError(t, err)
	}
	require.NoError(t, one.Close())
	_, err := one.Writer().Write(t.Context(), 1)
	require.ErrorIs(t, err, redischannels.ErrClosed)
	write(t, other, 2)
	v, err := other.Reader().Read(soonCtx(t))
	require.NoError(t, err)
	require.Equal(t, 2, v)
}

// Reading and writing after Close answer ErrClosed, whatever is used.
func TestChannel_UseAfterClose(t *testing.T) {
	t.Parallel()
	for name, close := range map[string]func(*testHub, *redischannels.Channel[int]) error{
		"channel": func(_ *testHub, c *redischannels.Channel[int]) error { return c.Close() },
		"hub":     func(h *testHub, _ *redischannels.Channel[int]) error { return h.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			hub, key := newHubOf(t), redistest.Key(t)
			c := streamOf[int](t, hub, key)
			write(t, c, 1, 2)
			d := receiveValue(t, c)
			require.NoError(t, d.Ack())
			require.NoError(t, c.Reader().Err())
			require.NoError(t, close(hub, c))
			waitEnd(t, c.Reader())
			require.ErrorIs(t, c.Reader().Err(), redischannels.ErrClosed)
			require.ErrorIs(t, c.Writer().Err(), redischannels.ErrClosed)
			ctx := t.Context()
			_, err := c.Reader().Read(ctx)
			require.ErrorIs(t, err, redischannels.ErrClosed)
			_, err = c.Reader().Receive(ctx)
			require.ErrorIs(t, err, redischannels.ErrClosed)
			_, _, err = c.Reader().TryReceive()
			require.ErrorIs(t, err, redischannels.ErrClosed)
			for range c.Reader().All(ctx) {
				require.FailNow(t, "a closed reader yields")
			}
			err = c.Reader().Handle(ctx, func(context.Context, int) error { return nil }, redischannels.HandleConfig{})
			require.ErrorIs(t, err, redischannels.ErrClosed)
			for _, err := range c.Reader().History(ctx, redischannels.Oldest) {
				require.ErrorIs(t, err, redischannels.ErrClosed)
			}
			for _, err := range c.Reader().Follow(ctx, redischannels.Oldest) {
				require.ErrorIs(t, err, redischannels.ErrClosed)
			}
			_, err = c.Writer().WriteAll(ctx, 1)
			require.ErrorIs(t, err, redischannels.ErrClosed)
			require.ErrorIs(t, c.Writer().WaitToWrite(ctx), redischannels.ErrClosed)
			require.Error(t, d.Ack(), "acked before")
			require.NoError(t, c.Close(), "again")
			_, err = redischannels.NewStreamChannel[int](hub.Hub, key, redischannels.StreamChannelConfig{})
			if name == "hub" {
				require.ErrorIs(t, err, redischannels.ErrClosed)
			} else {
				require.NoError(t, err)
			}
		})
	}
}

// Close waits for the deliveries that are out, and their acknowledgements are written.
func TestChannel_CloseDrains(t *testing.T) {
	t.Parallel()
	hub, key := newHubOf(t), redistest.Key(t)
	c := streamOf[int](t, hub, key)
	write(t, c, consecutive(0, 5)...)
	d := receiveValue(t, c)
	closed := make(chan error, 1)
	go func() { closed <- c.Close() }()
	redistest.Eventually(t, soon, func() bool { return c.Reader().Err() != nil }, "close has begun")
	select {
	case <-closed:
		require.FailNow(t, "Close did not wait")
	case <-time.After(quiet):
	}
	require.NoError(t, d.Context().Err(), "it may finish")
	require.NoError(t, d.Ack())
	require.NoError(t, <-closed)
	for _, p := range pendingOf(t, hub.client, key) {
		require.NotEqual(t, d.ID, p.ID, "its acknowledgement is written")
		require.Zero(t, p.RetryCount, "what nobody has begun is handed back")
	}
}

// An acknowledgement that comes too late, because the group has given the value to somebody
// else, says so.
func TestChannel_AckAfterLeaseLost(t *testing.T) {
	t.Parallel()
	hub, key := newHubOf(t), redistest.Key(t)
	mine := streamOf[int](t, hub, key)
	write(t, mine, 1, 2)
	first, second := receiveValue(t, mine), receiveValue(t, mine)
	require.NoError(t, hub.client.XClaimJustID(t.Context(), &redis.XClaimArgs{
		Stream: key, Group: "g", Consumer: "other", MinIdle: 0, Messages: []string{first.ID, second.ID},
	}).Err())
	waitDone(t, first.Context())
	waitDone(t, second.Context())
	require.ErrorIs(t, first.Ack(), redischannels.ErrNotOwner)
	n, err := mine.Reader().Ack(t.Context(), second.ID)
	require.Zero(t, n)
	require.ErrorIs(t, err, redischannels.ErrNotOwner)
	require.Len(t, pendingOf(t, hub.client, key), 2, "they are still the other one's")
}

// Acking twice, a foreign ID, what was never received: a clear error, and nothing else
// is harmed.
func TestChannel_AckMisuse(t *testing.T) {
	t.Parallel()
	hub, key := newHubOf(t), redistest.Key(t)
	mine, other := streamOf[int](t, hub, key), streamOf[int](t, hub, key)
	write(t, mine, 1, 2, 3)
	d := receiveValue(t, mine)
	require.NoError(t, d.Ack())
	require.ErrorIs(t, d.Ack(), redischannels.ErrNotPending)
	require.ErrorIs(t, d.Nack(), redischannels.ErrNotPending)
	require.ErrorIs(t, d.Reject("x"), redischannels.ErrNotPending)

	held := receiveValue(t, mine)
	foreign := receiveValue(t, other)
	n, err := mine.Reader().Ack(t.Context(), d.ID, foreign.ID, held.ID, "nonsense")
	require.Equal(t, 1, n)
	require.ErrorIs(t, err, redischannels.ErrNotPending)
	require.ErrorContains(t, err, foreign.ID)
	require.ErrorContains(t, err, "nonsense")
	require.NotContains(t, err.Error(), held.ID)
	require.ErrorIs(t, held.Ack(), redischannels.ErrNotPending, "it was acked by its ID")
	require.NoError(t, foreign.Context().Err(), "the foreign delivery is untouched")
	require.NoError(t, foreign.Ack())
	require.ErrorIs(t, redischannels.Delivery[int]{}.Ack(), redischannels.ErrNotSupported)
	eventuallyPending(t, hub.client, key, 0)
	hub.events.none(t, redischannels.EventAckIgnored)
}

// F4: a write error was `false`.
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

	gone := streamOf[int](t, hub, "gone", redischannels.StreamChannelConfig{PublishTimeout: 100 * time.Millisecond})
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

	// After XDEL Redis 7 tells no lag, and before 7.0 never.
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
	require.Equal(t, []int{1}, drainAcked(t, c, 1), "its reader goes on")
}

// What cannot work is refused when the channel is made.
func TestChannel_ConstructionErrors(t *testing.T) {
	t.Parallel()
	hub := newHubOf(t)
	var nilCodec *customCodec
	for name, make := range map[string]func() error{
		"func": func() error {
			_, err := redischannels.NewStreamChannel[func()](hub.Hub, "k", redischannels.StreamChannelConfig{})
			return err
		},
		"chan": func() error {
			_, err := redischannels.NewChannel[chan int](nil, nil, "k", redischannels.ChannelConfig[chan int]{})
			return err
		},
		"field": func() error {
			_, err := redischannels.NewStreamChannel[struct{ Done []chan int }](hub.Hub, "k", redischannels.StreamChannelConfig{})
			return err
		},
		"interface": func() error {
			_, err := redischannels.NewStreamChannel[fmt.Stringer](hub.Hub, "k", redischannels.StreamChannelConfig{})
			return err
		},
		"nil codec": func() error {
			_, err := redischannels.NewStreamChannel[int](hub.Hub, "k", redischannels.StreamChannelConfig{Codec: nilCodec})
			return err
		},
		"bytes of int": func() error {
			_, err := redischannels.NewStreamChannel[int](hub.Hub, "k", redischannels.StreamChannelConfig{Codec: redischannels.Bytes})
			return err
		},
		"lag without a group": func() error {
			_, err := redischannels.NewStreamChannel[int](hub.Hub, "k", redischannels.StreamChannelConfig{ConsumerGroup: redischannels.NoConsumerGroup, MaxLag: 1})
			return err
		},
		"concurrency": func() error {
			c := streamOf[int](t, hub, "k")
			return c.Reader().Handle(t.Context(), func(context.Context, int) error { return nil }, redischannels.HandleConfig{Concurrency: 1000})
		},
	} {
		err := make()
		require.ErrorIs(t, err, redischannels.ErrInvalidConfig, name)
		require.NotErrorIs(t, err, redischannels.ErrInvalidArgument, name)
		t.Logf("%s: %v", name, err)
	}
	for name, call := range map[string]func() error{
		"handler": func() error { _, err := redischannels.HandlerFunc[int](nilCodec, nil); return err },
		"producer": func() error {
			_, err := redischannels.ProducerHandlerFunc(nil, func(context.Context, int) ([]chan int, error) { return nil, nil })
			return err
		},
		"no hub": func() error {
			_, err := redischannels.NewStreamChannel[int](nil, "k", redischannels.StreamChannelConfig{})
			return err
		},
		"no key": func() error {
			_, err := redischannels.NewStreamChannel[int](hub.Hub, "", redischannels.StreamChannelConfig{})
			return err
		},
		"no client": func() error { _, err := redischannels.NewHub(nil, redischannels.HubConfig{}); return err },
		"no function": func() error {
			c := streamOf[int](t, hub, "k")
			return c.Reader().Handle(t.Context(), nil, redischannels.HandleConfig{})
		},
		"codec": func() error {
			_, err := redischannels.HandlerFunc(redischannels.BasicCodec("YAML"), func(context.Context, int) error { return nil })
			return err
		},
	} {
		err := call()
		require.ErrorIs(t, err, redischannels.ErrInvalidArgument, name)
		require.NotErrorIs(t, err, redischannels.ErrInvalidConfig, name)
		t.Logf("%s: %v", name, err)
	}
}

// A bound on the lag of a group that the hub has as a default does not keep channels without a
// group from being made.
func TestHub_DefaultLagIsForGroups(t *testing.T) {
	t.Parallel()
	hub, key := newHubOf(t, func(c *redischannels.HubConfig) { c.Stream.MaxLag = 1 }), redistest.Key(t)
	fan := streamOf[int](t, hub, key, noGroup)
	write(t, fan, 1, 2)
	require.NoError(t, fan.Writer().WaitToWrite(soonCtx(t)))
	grouped := streamOf[int](t, hub, key)
	ctx, cancel := context.WithTimeout(t.Context(), quiet)
	defer cancel()
	require.ErrorIs(t, grouped.Writer().WaitToWrite(ctx), context.DeadlineExceeded)
}

type customCodec struct{}

func (*customCodec) Encode(any) ([]byte, error) { return nil, nil }
func (*customCodec) Decode([]byte, any) error   { return nil }

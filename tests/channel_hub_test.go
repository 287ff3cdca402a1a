package tests

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
)

// Everything that Open has made is closed after Close, and a client of the caller
// is not touched.
func TestHub_CloseReleasesEverything(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	admin := server.Client(t)
	require.NoError(t, admin.Ping(t.Context()).Err())
	before := redistest.Connections(t, admin)
	hub, err := redischannels.Open(t.Context(), "redis://"+server.Addr()+"/0?pool_size=4", redischannels.HubConfig{})
	require.NoError(t, err)
	group, err := redischannels.NewStreamChannel[int](hub, "a", redischannels.StreamChannelConfig{Subscriber: redischannels.SubscriberConfig{ConsumerGroup: "g"}})
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
	require.NoError(t, hub.Client().Ping(t.Context()).Err())
	require.NoError(t, hub.Close())
	require.ErrorIs(t, hub.Client().Ping(t.Context()).Err(), redis.ErrClosed)
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
	require.Error(t, err, "nothing listens")
	require.NotErrorIs(t, err, redischannels.ErrInvalidArgument)
	_, err = redischannels.Open(t.Context(), "redis://"+server.Addr(), redischannels.HubConfig{Stream: redischannels.StreamChannelConfig{MaxLag: -1}})
	require.ErrorIs(t, err, redischannels.ErrInvalidConfig)
}

// Channels of one hub share its publisher where they write in the same way, and each
// closes alone; disposing one reader ended the others.
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

// Reading and writing after Close return ErrClosed, whatever is used.
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
		require.Zero(t, p.RetryCount, "what no handler has begun is released")
	}
}

// Invalid settings are refused when the channel is created.
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
			_, err := redischannels.NewStreamChannel[int](hub.Hub, "k", redischannels.StreamChannelConfig{Subscriber: noGroup.Subscriber, MaxLag: 1})
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

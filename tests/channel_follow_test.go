package tests

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
)

// followed is one Follow in a goroutine of its own.
type followed struct {
	seen chan any // values and gaps
	stop context.CancelFunc
	done chan struct{}
}

func follow(t *testing.T, channel *redischannels.Channel[int], from redischannels.Position) *followed {
	ctx, cancel := context.WithCancel(t.Context())
	f := &followed{seen: make(chan any, 100), stop: cancel, done: make(chan struct{})}
	go func() {
		defer close(f.done)
		for d, err := range channel.Reader().Follow(ctx, from) {
			if err != nil {
				f.seen <- err
			} else {
				f.seen <- d.Value
			}
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-f.done
	})
	return f
}

func (f *followed) next(t *testing.T) any {
	t.Helper()
	select {
	case v := <-f.seen:
		return v
	case <-time.After(soon):
		require.FailNow(t, "nothing comes", "for %s", soon)
		return nil
	}
}

// A Follow was a connection, so 50 rooms were 50. An error or the end of one does not
// concern the others.
func TestChannel_FollowsShareAConnection(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	admin := server.Admin(t)
	var readClients atomic.Int32
	hub := newHub(t, server.Client(t, func(o *redis.Options) { o.PoolSize = 4 }), func(c *redischannels.HubConfig) {
		c.OnReadClient = func(*redis.Client) { readClients.Add(1) }
		c.Stream.Subscriber.Tuning.BlockTime = time.Minute
	})
	const rooms = 50
	channels := make([]*redischannels.Channel[int], rooms)
	follows := make([]*followed, rooms)
	ids := make([][]string, rooms)
	for i := range channels {
		// Half of them belong to a group, which Follow has nothing to do with.
		config := redischannels.StreamChannelConfig{}
		if i%2 == 0 {
			config = noGroup
		}
		channels[i] = streamOf[int](t, hub, fmt.Sprint("room", i), config)
		ids[i] = write(t, channels[i], 1, 2, 3)
	}
	const trimmed = 7 // where the server reports what it has deleted
	reports := redistest.IsRedis7(t, admin)
	require.NoError(t, admin.XTrimMaxLen(t.Context(), fmt.Sprint("room", trimmed), 1).Err())
	for i, c := range channels {
		follows[i] = follow(t, c, redischannels.AfterID(ids[i][0]))
	}
	beside := follow(t, channels[trimmed], redischannels.Oldest)
	require.Equal(t, 3, beside.next(t), "the gap is that of the other, who asked for an ID")
	for i, f := range follows {
		if i == trimmed && reports {
			var gap *redischannels.GapError
			err, _ := f.next(t).(error)
			require.ErrorAs(t, err, &gap)
			require.Equal(t, redischannels.GapError{Topic: "room7", After: ids[i][0], FirstAvailable: ids[i][2]}, *gap)
		} else if i != trimmed {
			require.Equal(t, 2, f.next(t))
		}
		require.Equal(t, 3, f.next(t))
	}
	redistest.Eventually(t, soon, func() bool { return redistest.BlockedClients(t, admin) == 1 }, "one blocked read")
	for i := rooms - 1; i >= 0; i-- {
		write(t, channels[i], 4)
		require.Equal(t, 4, follows[i].next(t))
	}
	require.Equal(t, 4, beside.next(t))
	require.EqualValues(t, 1, readClients.Load())

	follows[trimmed].stop()
	<-follows[trimmed].done
	require.NoError(t, channels[8].Close())
	<-follows[8].done
	for i, f := range follows {
		if i != trimmed && i != 8 {
			write(t, channels[i], 5)
			require.Equal(t, 5, f.next(t))
		}
	}
	write(t, channels[trimmed], 5)
	require.Equal(t, 5, beside.next(t))
	require.EqualValues(t, 1, readClients.Load())
	require.LessOrEqual(t, redistest.BlockedClients(t, admin), 1)

	var closing sync.WaitGroup
	for _, c := range channels {
		closing.Go(func() { _ = c.Close() })
	}
	closing.Wait()
	require.Zero(t, redistest.BlockedClients(t, admin))
	groups, err := admin.XInfoGroups(t.Context(), "room1").Result()
	require.NoError(t, err)
	require.Empty(t, groups)
}

// A Follow that starts beside one that is already live joins its read, ahead of it or behind
// it, while all are written to at full speed. Nothing is missing and nothing comes twice.
func TestChannel_FollowJoinsOthersAtFullSpeed(t *testing.T) {
	t.Parallel()
	hub, key := newHubOf(t), redistest.Key(t)
	numbers := streamOf[int](t, hub, key)
	ctx, cancel := context.WithTimeout(t.Context(), 6*soon)
	defer cancel()
	type place struct {
		id    string
		value int
	}
	var last atomic.Pointer[place]
	last.Store(&place{id: write(t, numbers, 0)[0]})
	exact := func(ctx context.Context, from *place, enough func(v int) bool) error {
		next := from.value + 1
		for d, err := range numbers.Reader().Follow(ctx, redischannels.AfterID(from.id)) {
			if err != nil || d.Value != next {
				return fmt.Errorf("%d in the place of %d: %w", d.Value, next, err)
			}
			if next++; enough(d.Value) {
				return nil
			}
		}
		return ctx.Err()
	}
	var others sync.WaitGroup
	defer others.Wait()
	writing, stop := context.WithCancel(ctx)
	defer stop()
	others.Go(func() {
		for v := 1; writing.Err() == nil; v += 5 {
			ids, err := numbers.Writer().WriteAll(ctx, consecutive(v, 5)...)
			if err != nil {
				t.Error(err)
				return
			}
			last.Store(&place{ids[4], v + 4})
		}
	})
	live := make(chan struct{})
	others.Go(func() {
		var once sync.Once
		err := exact(writing, last.Load(), func(int) bool {
			once.Do(func() { close(live) })
			return false
		})
		if writing.Err() == nil {
			t.Error(err)
		}
	})
	<-live
	recent := last.Load()
	for range 100 {
		from := recent // it has some to catch up with
		recent = last.Load()
		require.NoError(t, exact(ctx, from, func(v int) bool { return v >= recent.value+50 }))
	}
}

// A reader that has caught up further than the shared read has delivered joins it all the same, and
// is not given again what it has.
func TestChannel_FollowJoinsAheadOfTheOthers(t *testing.T) {
	t.Parallel()
	proxy, key := redistest.NewProxy(t, redistest.Shared(t).Addr()), redistest.Key(t)
	hub := newHub(t, redistest.Shared(t).Client(t, redistest.Via(proxy)), func(c *redischannels.HubConfig) {
		c.Stream.Subscriber.Tuning.BlockTime = time.Minute // no read times out
	})
	numbers := streamOf[int](t, hub, key)
	release := make(chan struct{})
	blocking := redistest.And(redistest.Contains("BLOCK"), redistest.Contains(key))
	blocked := proxy.BeforeRequest(1, blocking, func() {})
	proxy.BeforeReply(1, blocking, func() { <-release })
	first := follow(t, numbers, redischannels.Oldest)
	blocked.Wait(t, soon)
	write(t, numbers, 1, 2)
	second := follow(t, numbers, redischannels.Oldest)
	require.Equal(t, 1, second.next(t))
	require.Equal(t, 2, second.next(t))
	require.Empty(t, first.seen, "its read is blocked")
	close(release)
	write(t, numbers, 3)
	for want := 1; want <= 3; want++ {
		require.Equal(t, want, first.next(t))
	}
	require.Equal(t, 3, second.next(t))
}

// Settings that matter for reading part the subscribers; readers without a group and
// Follow of equal settings are together.
func TestChannel_SharedReadersBySettings(t *testing.T) {
	t.Parallel()
	var readClients atomic.Int32
	hub, key := newHubOf(t, func(c *redischannels.HubConfig) {
		c.OnReadClient = func(*redis.Client) { readClients.Add(1) }
		c.Stream.Subscriber.Tuning.BlockTime = time.Minute // no read times out, however slow the machine is
	}), redistest.Key(t)
	one := streamOf[int](t, hub, key, noGroup)
	_, _, err := one.Reader().TryReceive()
	require.NoError(t, err)
	other := noGroup
	other.Subscriber.StartFrom = redischannels.Oldest
	two := streamOf[int](t, hub, key+"2", other)
	write(t, two, 1)
	require.Equal(t, 1, receiveValue(t, two).Value)
	f := follow(t, one, redischannels.Oldest)
	write(t, one, 1)
	require.Equal(t, 1, f.next(t))
	require.Equal(t, 1, receiveValue(t, one).Value)
	require.EqualValues(t, 1, readClients.Load())

	apart := noGroup
	apart.Subscriber.MaxPayload = 1000
	three := streamOf[int](t, hub, key, apart)
	_, _, err = three.Reader().TryReceive()
	require.NoError(t, err)
	write(t, one, 2)
	require.Equal(t, 2, receiveValue(t, three).Value) // maybe by a read of its own, before it joins
	redistest.Eventually(t, soon, func() bool { return readClients.Load() == 2 }, "a connection of its own")
}

// LastID is Latest as an ID.
func TestChannel_LastID(t *testing.T) {
	t.Parallel()
	hub, key := newHubOf(t), redistest.Key(t)
	c := streamOf[int](t, hub, key)
	id, err := c.Reader().LastID(t.Context())
	require.NoError(t, err)
	require.Equal(t, "0-0", id)
	ids := write(t, c, 1, 2)
	require.NoError(t, hub.client.XDel(t.Context(), key, ids[1]).Err())
	id, err = c.Reader().LastID(t.Context())
	require.NoError(t, err)
	require.Equal(t, ids[1], id)
	news := must(redischannels.NewPubSubChannel[int](hub.Hub, key, redischannels.PubSubChannelConfig{}))
	_, err = news.Reader().LastID(t.Context())
	require.ErrorIs(t, err, redischannels.ErrNotSupported)
	require.NoError(t, c.Close())
	_, err = c.Reader().LastID(t.Context())
	require.ErrorIs(t, err, redischannels.ErrClosed)
}

// Follow of a Pub/Sub channel sees what comes, beside the reader of the channel, and
// refuses positions that nothing is kept for.
func TestChannel_FollowPubSub(t *testing.T) {
	t.Parallel()
	hub, key := newHubOf(t), redistest.Key(t)
	c := must(redischannels.NewPubSubChannel[int](hub.Hub, key, redischannels.PubSubChannelConfig{}))
	for _, err := range c.Reader().Follow(t.Context(), redischannels.Oldest) {
		require.ErrorIs(t, err, redischannels.ErrNotSupported)
	}
	_, _, err := c.Reader().TryReceive()
	require.NoError(t, err)
	f := follow(t, c, redischannels.Latest)
	values := 0
	redistest.Eventually(t, soon, func() bool {
		values++
		write(t, c, values)
		return len(f.seen) > 0
	}, "the subscription is there")
	first := f.next(t).(int)
	write(t, c, 1000)
	for v := first; v != 1000; {
		next := f.next(t).(int)
		require.True(t, next == v+1 || next == 1000)
		v = next
	}
	for want := 1; want <= values; want++ {
		d := receiveValue(t, c)
		require.Equal(t, want, d.Value, "nothing is taken from the reader")
		require.NoError(t, d.Ack())
	}
	f.stop()
	<-f.done
}

// The end of the context, or of the reader, ends a loop also where more was read already: the
// rest of a page came all the same.
func TestChannel_FollowEndsInsideAPage(t *testing.T) {
	t.Parallel()
	for _, end := range []string{"context", "reader"} {
		t.Run(end, func(t *testing.T) {
			t.Parallel()
			hub, key := newHubOf(t), redistest.Key(t)
			numbers := streamOf[int](t, hub, key)
			write(t, numbers, 1, 2, 3)
			ctx, cancel := context.WithCancel(soonCtx(t))
			defer cancel()
			var seen []int
			for d, err := range numbers.Reader().Follow(ctx, redischannels.Oldest) {
				require.NoError(t, err)
				seen = append(seen, d.Value)
				if end == "context" {
					cancel()
				} else {
					require.NoError(t, numbers.Close())
				}
			}
			require.Equal(t, []int{1}, seen)
		})
	}
}

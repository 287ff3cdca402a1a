package tests

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
	"github.com/flaminco/redischannels/sse"
)

// Clients that break off at random positions and resume at one of two instances, while
// entries are written at full speed, see each of them once and in order: from the ring,
// from Redis, or where the other instance was ahead.
func TestSSE_ResumeAtFullSpeed(t *testing.T) {
	t.Parallel()
	const n, clients = 4000, 8
	key := redistest.Key(t)
	var urls []string
	for range 2 {
		channel := streamOf[int](t, newHubOf(t), key)
		urls = append(urls, serveSSE(t, newSSE(t, channel, sse.Options[int]{
			Start:  func(*http.Request) redischannels.Position { return redischannels.Oldest },
			Buffer: 100, // small, so that Redis is asked as well
			OnError: func(err error) {
				if !errors.Is(err, sse.ErrSlowClient) {
					t.Errorf("unexpected: %v", err)
				}
			},
		})))
	}
	var reading sync.WaitGroup
	failures := make(chan string, clients)
	for i := range clients {
		reading.Go(func() {
			if err := resumeAtRandom(t.Context(), urls, n, rand.New(rand.NewPCG(uint64(i), 1))); err != nil {
				failures <- fmt.Sprintf("client %d: %v", i, err)
			}
		})
	}
	hub := newHubOf(t)
	writer := streamOf[int](t, hub, key)
	for i := 0; i < n; i += 20 {
		write(t, writer, consecutive(i, 20)...)
	}
	reading.Wait()
	close(failures)
	for f := range failures {
		t.Error(f)
	}
	groups, err := hub.client.XInfoGroups(t.Context(), key).Result()
	require.NoError(t, err)
	require.Empty(t, groups)
}

// resumeAtRandom reads the numbers up to n, over as many connections as it takes.
func resumeAtRandom(ctx context.Context, urls []string, n int, random *rand.Rand) error {
	next, last := 0, ""
	for next < n {
		err := func() error {
			ctx, cancel := context.WithTimeout(ctx, 3*soon)
			defer cancel()
			r, err := http.NewRequestWithContext(ctx, http.MethodGet, urls[random.IntN(len(urls))], nil)
			if err != nil {
				return err
			}
			if last != "" {
				r.Header.Set("Last-Event-ID", last)
			}
			resp, err := http.DefaultClient.Do(r)
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			part := 1 + random.IntN(1+random.IntN(800))
			return eachEvent(resp.Body, func(e sseEvent) (bool, error) {
				if e.ID != "" {
					last = e.ID
				}
				if e.Data == "" {
					return true, nil
				}
				if got := e.Data; e.Name != "" || got != strconv.Itoa(next) {
					return false, fmt.Errorf("%s %s in place of %d", e.Name, got, next)
				}
				next++
				part--
				return part > 0 && next < n, nil
			})
		}()
		if err != nil && !errors.Is(err, io.EOF) { // too slow for the ring: it continues
			return err
		}
	}
	return nil
}

// While a client reads a page from Redis the ring continues and gives up what the page has
// not: the client must read on, not jump to where the ring is now.
func TestSSE_RingRunsAway(t *testing.T) {
	t.Parallel()
	server, key := redistest.Shared(t), redistest.Key(t)
	client := server.Client(t)
	channel, writer := streamOf[int](t, newHub(t, client), key), streamOf[int](t, newHub(t, server.Client(t)), key)
	url := serveSSE(t, newSSE(t, channel, sse.Options[int]{Buffer: 5}))
	ids := write(t, writer, consecutive(0, 10)...)
	quick := openSSE(t, url, after(ids[9])).live()
	for i := 10; i < 20; i += 5 { // no more at once than the ring holds
		write(t, writer, consecutive(i, 5)...)
		require.Equal(t, numbers(i, 5), quick.data(5))
	}

	scripts := 0
	client.AddHook(redistest.After("evalsha", func(context.Context, redis.Cmder) error {
		if scripts++; scripts == 2 { // where the stream ends, then what is in it
			for i := 20; i < 60; i += 4 { // the quick one follows
				write(t, writer, consecutive(i, 4)...)
				require.Equal(t, numbers(i, 4), quick.data(4))
			}
		}
		return nil
	}))
	require.Equal(t, numbers(1, 59), openSSE(t, url, after(ids[0])).data(59))
	require.Greater(t, scripts, 2)
}

// A client that was sent only its position, by the server or by a heartbeat, resumes there
// as well.
func TestSSE_ResumeWithoutAnEvent(t *testing.T) {
	t.Parallel()
	hub, key := newHubOf(t), redistest.Key(t)
	channel := streamOf[int](t, hub, key)
	write(t, channel, 1)
	handler := newSSE(t, channel, sse.Options[int]{
		Heartbeat: 5 * time.Millisecond,
		Filter: func(*http.Request) func(redischannels.Delivery[int]) bool {
			return func(d redischannels.Delivery[int]) bool { return d.Value%2 == 0 }
		},
	})
	url := serveSSE(t, handler)
	s := openSSE(t, url).live()
	s.close()
	require.NotEmpty(t, s.lastID)
	write(t, channel, 2)
	s = openSSE(t, url, after(s.lastID))
	require.Equal(t, []string{"2"}, s.data(1))
	ids := write(t, channel, 3)
	for s.lastID != ids[0] {
		require.Empty(t, s.next().Data)
	}
}

// Reconnects within the ring cost Redis nothing.
func TestSSE_Herd(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	admin := server.Admin(t)
	hub := newHub(t, server.Client(t, func(o *redis.Options) { o.PoolSize = 4 }), func(c *redischannels.HubConfig) {
		c.Stream.Subscriber.Tuning.BlockTime = time.Minute
	})
	channel := streamOf[int](t, hub, "room")
	url := serveSSE(t, newSSE(t, channel, sse.Options[int]{}))
	stays := openSSE(t, url).live()
	ids := write(t, channel, consecutive(0, 100)...)
	require.Equal(t, numbers(0, 100), stays.data(100))
	redistest.Eventually(t, soon, func() bool { return redistest.BlockedClients(t, admin) == 1 }, "one blocked read")
	connections := redistest.Connections(t, admin)
	redistest.ResetStats(t, admin)

	const herd = 99
	streams := make([]*sseStream, herd)
	for i := range streams {
		streams[i] = openSSE(t, url, after(ids[i]))
	}
	for i, s := range streams {
		require.Equal(t, numbers(i+1, 99-i), s.data(99-i))
	}
	require.Zero(t, commandsBut(t, admin)-redistest.CommandStats(t, admin)["client|unblock"], "%v", redistest.CommandStats(t, admin))
	require.Equal(t, connections, redistest.Connections(t, admin))
	write(t, channel, 100)
	for _, s := range streams {
		require.Equal(t, []string{"100"}, s.data(1))
	}
	require.LessOrEqual(t, redistest.BlockedClients(t, admin), 1)
}

// A gap of trimmed entries is reported, where it is, to a client that resumes and to one that is connected.
func TestSSE_Gap(t *testing.T) {
	t.Parallel()
	server, key := redistest.Start(t), redistest.Key(t)
	proxy := redistest.NewProxy(t, server.Addr())
	hub := newHub(t, server.Client(t, redistest.Via(proxy)))
	direct := newHub(t, server.Client(t))
	reports := redistest.IsRedis7(t, direct.client) // what it has deleted; others continue without a report
	channel, writer := streamOf[int](t, hub, key), streamOf[int](t, direct, key)
	ids := write(t, writer, consecutive(0, 10)...)
	require.NoError(t, direct.client.XTrimMaxLen(t.Context(), key, 3).Err())
	url := serveSSE(t, newSSE(t, channel, sse.Options[int]{OnError: func(error) {}}))

	s := openSSE(t, url, after(ids[2]))
	if reports {
		require.Equal(t, sseEvent{Name: sse.EventGap, Data: fmt.Sprintf(`{"from":%q,"to":%q}`, ids[2], ids[7])}, s.event())
	}
	require.Equal(t, numbers(7, 3), s.data(3))

	// While the instance is away from Redis, more is trimmed than written before.
	proxy.Refuse(true)
	proxy.Cut()
	more := write(t, writer, consecutive(10, 10)...)
	require.NoError(t, direct.client.XTrimMaxLen(t.Context(), key, 2).Err())
	proxy.Refuse(false)
	gap := sseEvent{Name: sse.EventGap, Data: fmt.Sprintf(`{"from":%q,"to":%q}`, ids[9], more[8])}
	if reports {
		require.Equal(t, gap, s.event())
	}
	require.Equal(t, numbers(18, 2), s.data(2))
	// A client that comes back from the ring gets it as well.
	s = openSSE(t, url, after(ids[9]))
	if reports {
		require.Equal(t, gap, s.event())
	}
	require.Equal(t, numbers(18, 2), s.data(2))

	// Nothing is left.
	require.NoError(t, direct.client.XTrimMaxLen(t.Context(), key, 0).Err())
	s = openSSE(t, serveSSE(t, newSSE(t, writer, sse.Options[int]{})), after(ids[0]))
	if reports {
		require.Equal(t, sseEvent{Name: sse.EventGap, Data: fmt.Sprintf(`{"from":%q}`, ids[0])}, s.event())
		require.Equal(t, more[9], s.next().ID, "it is given where it is now")
	}
	write(t, writer, 20)
	require.Equal(t, []string{"20"}, s.data(1))
}

// An entry that comes just when the first client does, in place of the last one before it,
// is no gap: nothing between them was missed.
func TestSSE_StartsWithoutAGap(t *testing.T) {
	t.Parallel()
	server, key := redistest.Shared(t), redistest.Key(t)
	client, direct := server.Client(t), newHub(t, server.Client(t))
	channel, writer := streamOf[int](t, newHub(t, client), key), streamOf[int](t, direct, key)
	ids := write(t, writer, consecutive(0, 3)...)
	last, err := channel.Reader().LastID(t.Context()) // by the script that the handler uses
	require.NoError(t, err)
	require.Equal(t, ids[2], last)

	var once sync.Once
	url := serveSSE(t, newSSE(t, channel, sse.Options[int]{}))
	client.AddHook(redistest.After("evalsha", func(context.Context, redis.Cmder) error {
		once.Do(func() { // the handler knows where the stream ends
			write(t, writer, 3)
			require.NoError(t, direct.client.XTrimMaxLen(t.Context(), key, 1).Err())
		})
		return nil
	}))
	s := openSSE(t, url)
	write(t, writer, 4)
	first := s.data(1)[0]
	if first == "3" { // the client was live before it came
		first = s.data(1)[0]
	}
	require.Equal(t, "4", first)
}

// A stream that is deleted restarts, also for a client that has an ID of the old one.
func TestSSE_StreamIsRecreated(t *testing.T) {
	t.Parallel()
	hub, key := newHubOf(t), redistest.Key(t)
	channel := streamOf[int](t, hub, key)
	url := serveSSE(t, newSSE(t, channel, sse.Options[int]{}))
	require.NoError(t, hub.client.XAdd(t.Context(), &redis.XAddArgs{Stream: key, ID: "1-1", Values: entryOf(t, hub, 0)}).Err())
	const future = "99999999999999-7"
	s := openSSE(t, url, after(future))
	require.Equal(t, sseEvent{Name: sse.EventGap, Data: `{"from":"` + future + `"}`}, s.event())
	require.Equal(t, sseEvent{ID: "1-1", Data: "0"}, s.event(), "from the oldest on")
	ids := write(t, channel, 1)
	require.Equal(t, sseEvent{ID: ids[0], Data: "1"}, s.event())
}

// entryOf returns the fields of an entry that holds a value.
func entryOf(t *testing.T, hub *testHub, v int) map[string]any {
	t.Helper()
	key := redistest.Key(t)
	write(t, streamOf[int](t, hub, key), v)
	entries, err := hub.client.XRange(t.Context(), key, "-", "+").Result()
	require.NoError(t, err)
	return entries[0].Values
}

package tests

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
	"github.com/flaminco/redischannels/sse"
)

// stuck is a client that takes nothing before it is given to.
func stuck(t *testing.T, url string) *http.Response {
	t.Helper()
	transport := &http.Transport{ReadBufferSize: 1024}
	t.Cleanup(transport.CloseIdleConnections)
	r, cancel := sseRequest(t, url)
	t.Cleanup(cancel)
	resp, err := transport.RoundTrip(r)
	require.NoError(t, err)
	t.Cleanup(func() { _ = resp.Body.Close() })
	require.Equal(t, http.StatusOK, resp.StatusCode)
	return resp
}

// A client that takes nothing would hold memory or others. It is closed, at a deadline
// while a write is under way, or when the ring has moved on, and resumes without gap.
func TestSSE_SlowClient(t *testing.T) {
	t.Parallel()
	const n, size = 150, 64 << 10
	for name, options := range map[string]sse.Options[string]{
		"write timeout": {WriteTimeout: 700 * time.Millisecond, BufferBytes: 2 * n * size},
		"ring":          {WriteTimeout: time.Minute, Buffer: 20},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			hub, key := newHubOf(t), redistest.Key(t)
			channel := streamOf[string](t, hub, key)
			options.Encode = func(d redischannels.Delivery[string]) ([]byte, error) { return []byte(d.Value), nil }
			reported := make(chan error, 10)
			options.OnError = func(err error) { reported <- err }
			handler := newSSE(t, channel, options)
			url := serveSSE(t, handler)
			slow, quick := stuck(t, url), openSSE(t, url).live()
			number := func(data string) int {
				text, _, _ := strings.Cut(data, " ")
				i, err := strconv.Atoi(text)
				require.NoError(t, err)
				return i
			}
			padding := " " + strings.Repeat("x", size)
			for i := range n {
				write(t, channel, strconv.Itoa(i)+padding)
				require.Equal(t, i, number(quick.data(1)[0]), "the other is not blocked")
			}
			if name == "write timeout" {
				redistest.Eventually(t, soon, func() bool { return handler.Clients() == 1 }, "it is closed")
			}
			next, last := 0, ""
			err := eachEvent(slow.Body, func(e sseEvent) (bool, error) {
				if e.ID != "" {
					last = e.ID
				}
				if e.Data != "" {
					require.Equal(t, next, number(e.Data))
					next++
				}
				return true, nil
			})
			require.Error(t, err)
			require.Equal(t, name == "ring", errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF), "%v", err)
			require.Less(t, next, n)
			redistest.Eventually(t, soon, func() bool { return handler.Clients() == 1 }, "it is closed")
			require.ErrorIs(t, <-reported, sse.ErrSlowClient)
			again := openSSE(t, url, after(last))
			for ; next < n; next++ {
				require.Equal(t, next, number(again.data(1)[0]))
			}
		})
	}
}

// Every client was a connection to Redis in the naive way. Any number of clients, of any
// number of rooms, are one.
func TestSSE_OneConnection(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	admin := server.Admin(t)
	hub := newHub(t, server.Client(t, func(o *redis.Options) { o.PoolSize = 4 }))
	before := redistest.Connections(t, admin)
	var streams []*sseStream
	var channels []*redischannels.Channel[int]
	const rooms, clients = 10, 20
	for room := range rooms {
		channel := streamOf[int](t, hub, fmt.Sprint("room", room))
		channels = append(channels, channel)
		url := serveSSE(t, newSSE(t, channel, sse.Options[int]{}))
		for range clients {
			streams = append(streams, openSSE(t, url).live())
		}
	}
	redistest.Eventually(t, soon, func() bool { return redistest.BlockedClients(t, admin) == 1 }, "one blocked read")
	for i, channel := range channels {
		write(t, channel, i)
	}
	for i, s := range streams {
		require.Equal(t, []string{fmt.Sprint(i / clients)}, s.data(1))
	}
	require.LessOrEqual(t, redistest.Connections(t, admin), before+5, "the pool's, and one")
}

// The original leaked a consumer group per connection.
func TestSSE_LeavesNothing(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	admin := server.Admin(t)
	client := server.Client(t, func(o *redis.Options) { o.PoolSize, o.MinIdleConns = 4, 4 })
	hub := newHub(t, client)
	channel := streamOf[int](t, hub, "room")
	write(t, channel, 1)
	goroutines := redistest.Goroutines(t)
	handler := newSSE(t, channel, sse.Options[int]{})
	web := httptest.NewServer(handler)
	defer web.Close()
	redistest.Eventually(t, soon, func() bool { return redistest.Connections(t, admin) == 5 }, "the pool is full")
	transport := &http.Transport{}
	var cycling sync.WaitGroup
	failures := make(chan error, 1000)
	for range 4 {
		cycling.Go(func() {
			for range 250 {
				ctx, cancel := context.WithCancel(t.Context())
				r, err := http.NewRequestWithContext(ctx, http.MethodGet, web.URL, nil)
				if err == nil {
					var resp *http.Response
					if resp, err = transport.RoundTrip(r); err == nil {
						_, err = io.ReadFull(resp.Body, make([]byte, len("retry: 2000\n\nid: ")))
						_ = resp.Body.Close()
					}
				}
				cancel()
				if err != nil {
					failures <- err
				}
			}
		})
	}
	cycling.Wait()
	close(failures)
	for err := range failures {
		require.NoError(t, err)
	}
	redistest.Eventually(t, soon, func() bool { return handler.Clients() == 0 }, "all have left")
	goroutines.Wait(soon)
	require.Zero(t, redistest.BlockedClients(t, admin))
	redistest.Eventually(t, soon, func() bool { return redistest.Connections(t, admin) == 5 }, "only the pool is left")
	groups, err := admin.XInfoGroups(t.Context(), "room").Result()
	require.NoError(t, err)
	require.Empty(t, groups)
	require.Equal(t, []string{"room"}, admin.Keys(t.Context(), "*").Val())
}

// Clients stay while Redis is away, also those that come meanwhile, and resume where they
// were.
func TestSSE_RedisRestarts(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t, redistest.AOF())
	hub := newHub(t, server.Client(t))
	channel := streamOf[int](t, hub, "room")
	options := sse.Options[int]{Heartbeat: 20 * time.Millisecond, OnError: func(error) {}}
	url := serveSSE(t, newSSE(t, channel, options))
	var reported atomic.Int64
	options.OnError = func(error) { reported.Add(1) }
	other := serveSSE(t, newSSE(t, streamOf[int](t, hub, "room"), options)) // without clients before
	ids := write(t, channel, consecutive(0, 3)...)
	connected := openSSE(t, url).live()

	server.Kill()
	beats := func(s *sseStream) *sseStream {
		t.Helper()
		for range 3 {
			for s.next().Comment == "" {
			}
		}
		return s
	}
	beats(connected)
	all := []*sseStream{
		connected,
		beats(openSSE(t, url)),                  // at the end of the ring
		beats(openSSE(t, url, after(ids[2]))),   // in the ring
		beats(openSSE(t, url, after(ids[0]))),   // has to ask Redis
		beats(openSSE(t, other)),                // there is no ring
		beats(openSSE(t, other, after(ids[1]))), // nor here
	}
	redistest.Eventually(t, soon, func() bool { return reported.Load() > 0 }, "an attempt has failed")
	server.Restart()
	all[4].live() // from now on
	write(t, channel, consecutive(3, 50)...)
	for i, from := range []int{3, 3, 3, 1, 3, 2} {
		require.Equal(t, numbers(from, 53-from), all[i].data(53-from), i)
	}
	require.EqualValues(t, 1, reported.Load(), "each attempt failed, the first is reported")
}

// A Redis that does not answer delays neither heartbeats nor the end.
func TestSSE_RedisFreezes(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	hub := newHub(t, server.Client(t, func(o *redis.Options) { o.ReadTimeout, o.MaxRetries = time.Minute, -1 }))
	channel := streamOf[int](t, hub, "room")
	handler := newSSE(t, channel, sse.Options[int]{Heartbeat: 20 * time.Millisecond, OnError: func(error) {}})
	url := serveSSE(t, handler)
	ids := write(t, channel, 1, 2)
	stays := openSSE(t, url).live()
	server.Pause()
	defer server.Resume()
	asks := openSSE(t, url, after(ids[0]))
	for _, s := range []*sseStream{stays, asks} {
		for range 10 {
			for s.next().Comment == "" {
			}
		}
	}
	begun := time.Now()
	asks.close()
	redistest.Eventually(t, soon, func() bool { return handler.Clients() == 1 }, "it has left")
	require.Less(t, time.Since(begun), time.Second)
	server.Resume()
	write(t, channel, 3)
	require.Equal(t, []string{"3"}, stays.data(1))
}

// Pub/Sub has no past: clients see what is published from their connection on.
func TestSSE_PubSub(t *testing.T) {
	t.Parallel()
	hub, key := newHubOf(t), redistest.Key(t)
	channel := must(redischannels.NewPubSubChannel[int](hub.Hub, key, redischannels.PubSubChannelConfig{}))
	handler := newSSE(t, channel, sse.Options[int]{Heartbeat: 50 * time.Millisecond, OnError: func(error) {}})
	url := serveSSE(t, handler)
	for round := range 3 {
		one, two := openSSE(t, url), openSSE(t, url, after("nonsense"))
		write(t, channel, round)
		require.NoError(t, hub.client.Publish(t.Context(), key, "no envelope").Err())
		for _, s := range []*sseStream{one, two} {
			require.Equal(t, sseEvent{Data: fmt.Sprint(round)}, s.event())
			require.Equal(t, sseEvent{Name: sse.EventUndecodable, Data: "{}"}, s.event())
			for s.next().Comment == "" {
			}
		}
		one.close()
		two.close()
		redistest.Eventually(t, soon, func() bool {
			return hub.client.PubSubNumSub(t.Context(), key).Val()[key] == 0
		}, "nothing is subscribed without clients")
	}
}

// onFlush is a ResponseWriter that calls f behind its first flush.
type onFlush struct {
	wrapped
	f func()
}

func (w *onFlush) FlushError() error {
	err := http.NewResponseController(w.w).Flush()
	if f := w.f; f != nil {
		w.f = nil
		f()
	}
	return err
}

// A client looked for its place behind the beginning of the response: what was written between
// the two, by a writer that had seen the response begin, did not come.
func TestSSE_LiveWhenTheResponseBegins(t *testing.T) {
	t.Parallel()
	hub, key := newHubOf(t), redistest.Key(t)
	channel := streamOf[int](t, hub, key)
	handler := newSSE(t, channel, sse.Options[int]{})
	other := openSSE(t, serveSSE(t, handler))
	written := make(chan struct{})
	s := openSSE(t, serveSSE(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		handler.ServeHTTP(&onFlush{wrapped{w}, func() {
			defer close(written)
			write(t, channel, 1)
			require.Equal(t, []string{"1"}, other.data(1))
		}}, r)
	})))
	<-written // the response is here as soon as it is flushed
	write(t, channel, 2)
	require.Equal(t, []string{"1", "2"}, s.data(2))
}

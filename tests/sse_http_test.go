package tests

import (
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
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

// answer sends a request and returns its answer, which is no stream.
func answer(t *testing.T, url string, changes ...func(*http.Request)) (*http.Response, string) {
	t.Helper()
	r, cancel := sseRequest(t, url, changes...)
	defer cancel()
	defer time.AfterFunc(soon, cancel).Stop() // it might be a stream
	resp, err := http.DefaultClient.Do(r)
	require.NoError(t, err)
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	return resp, string(text)
}

func method(name string) func(*http.Request) { return func(r *http.Request) { r.Method = name } }

func TestSSE_Refusals(t *testing.T) {
	t.Parallel()
	hub, key := newHubOf(t), redistest.Key(t)
	channel := streamOf[int](t, hub, key)
	handler := newSSE(t, channel, sse.Options[int]{
		MaxClients: 2,
		Retry:      2500 * time.Millisecond,
		Start: func(r *http.Request) redischannels.Position {
			if from := r.URL.Query().Get("from"); from != "" {
				return redischannels.AfterID(from)
			}
			return ""
		},
		Authorize: func(r *http.Request) error {
			switch r.Header.Get("Authorization") {
			case "":
				return fmt.Errorf("secret: %w", sse.ErrUnauthorized)
			case "wrong":
				return errors.New("secret")
			}
			return nil
		},
	})
	url := serveSSE(t, handler)
	as := func(who string) func(*http.Request) {
		return func(r *http.Request) { r.Header.Set("Authorization", who) }
	}

	resp, _ := answer(t, url, method(http.MethodPost), as("me"))
	require.Equal(t, http.StatusMethodNotAllowed, resp.StatusCode)
	require.Equal(t, "GET, HEAD", resp.Header.Get("Allow"))
	for who, status := range map[string]int{"": http.StatusUnauthorized, "wrong": http.StatusForbidden} {
		resp, text := answer(t, url, as(who))
		require.Equal(t, status, resp.StatusCode)
		require.NotContains(t, text, "secret")
	}
	for _, bad := range []string{"x", "1-", "-1", "1-2-3", "1 2", "99999999999999999999-0", "\u20ac"} {
		resp, text := answer(t, url, as("me"), after(bad))
		require.Equal(t, http.StatusBadRequest, resp.StatusCode, bad)
		require.Contains(t, text, "last event ID")
		resp, _ = answer(t, url, as("me"), func(r *http.Request) { r.URL.RawQuery = "lastEventId=" + strings.ReplaceAll(bad, " ", "+") })
		require.Equal(t, http.StatusBadRequest, resp.StatusCode, bad)
	}
	resp, text := answer(t, url+"?from=x", as("me"))
	require.Equal(t, http.StatusBadRequest, resp.StatusCode)
	require.Contains(t, text, "start")

	resp, text = answer(t, url, as("me"), method(http.MethodHead))
	require.Equal(t, http.StatusOK, resp.StatusCode)
	require.Equal(t, "text/event-stream", resp.Header.Get("Content-Type"))
	require.Empty(t, text)
	require.Zero(t, handler.Clients())

	one, two := openSSE(t, url, as("me")).live(), openSSE(t, url, as("me")).live()
	resp, text = answer(t, url, as("me"))
	require.Equal(t, http.StatusServiceUnavailable, resp.StatusCode)
	require.Equal(t, "3", resp.Header.Get("Retry-After"))
	require.Contains(t, text, "too many clients")
	require.Equal(t, 2, handler.Clients())
	two.close()
	redistest.Eventually(t, soon, func() bool { return handler.Clients() == 1 }, "one has left")
	openSSE(t, url, as("me")).live()

	require.NoError(t, handler.Close())
	one.ended()
	resp, _ = answer(t, url, as("me"))
	require.Equal(t, http.StatusServiceUnavailable, resp.StatusCode)
}

// Each client is sent what its request may have; gaps and undecodable entries go to all.
func TestSSE_Filter(t *testing.T) {
	t.Parallel()
	hub, key := newHubOf(t), redistest.Key(t)
	channel := streamOf[order](t, hub, key)
	handler := newSSE(t, channel, sse.Options[order]{
		Filter: func(r *http.Request) func(redischannels.Delivery[order]) bool {
			if r.URL.Path == "/admin" {
				return nil
			}
			return func(d redischannels.Delivery[order]) bool { return "/"+fmt.Sprint(d.Value.ID) == r.URL.Path }
		},
		Event:   func(d redischannels.Delivery[order]) string { return "of" + fmt.Sprint(d.Value.ID) },
		Encode:  func(d redischannels.Delivery[order]) ([]byte, error) { return fmt.Append(nil, d.Value.Amount), nil },
		OnError: func(error) {},
	})
	url := serveSSE(t, handler)
	first := write(t, channel, order{1, 10}, order{2, 20}, order{1, 11})
	for _, live := range []bool{true, false} { // from the ring and from Redis
		var from []func(*http.Request)
		if !live {
			from = append(from, after(first[0]))
		}
		one, admin := openSSE(t, url+"/1", from...), openSSE(t, url+"/admin", from...)
		if live {
			one.live()
			admin.live()
			write(t, channel, order{2, 20}, order{1, 11})
		}
		require.Equal(t, []string{"20", "11"}, admin.data(2))
		e := one.event()
		require.Equal(t, "of1", e.Name)
		require.Equal(t, "11", e.Data)
		one.close()
		admin.close()
		redistest.Eventually(t, soon, func() bool { return handler.Clients() == 0 }, "they have left")
	}
}

// A value that makes no event is reported in its place, and the stream continues.
func TestSSE_Undecodable(t *testing.T) {
	t.Parallel()
	hub, key := newHubOf(t), redistest.Key(t)
	channel := streamOf[string](t, hub, key)
	var mu sync.Mutex
	var reported []string
	url := serveSSE(t, newSSE(t, channel, sse.Options[string]{
		Event: func(d redischannels.Delivery[string]) string {
			if d.Value == "panic" {
				panic("oops")
			}
			return strings.TrimPrefix(d.Value, "name")
		},
		Encode: func(d redischannels.Delivery[string]) ([]byte, error) {
			switch d.Value {
			case "error":
				return nil, errors.New("no")
			case "binary":
				return []byte("\xff"), nil
			}
			return []byte(d.Value), nil
		},
		OnError: func(err error) {
			mu.Lock()
			defer mu.Unlock()
			reported = append(reported, err.Error())
		},
	}))
	live := openSSE(t, url).live()
	start := live.lastID
	var bad []string
	bad = append(bad, must(hub.client.XAdd(t.Context(), &redis.XAddArgs{Stream: key, Values: []string{"foreign", "field"}}).Result()))
	bad = append(bad, write(t, channel, "panic", "error", "binary", "namea\nb")...)
	good := write(t, channel, "name")
	for _, s := range []*sseStream{live, openSSE(t, url, after(start))} {
		for _, id := range bad {
			require.Equal(t, sseEvent{ID: id, Name: sse.EventUndecodable, Data: `{"id":"` + id + `"}`}, s.event())
		}
		require.Equal(t, sseEvent{ID: good[0], Data: "name"}, s.event())
	}
	mu.Lock()
	defer mu.Unlock()
	for i, want := range []string{bad[0], "oops", ": no", "UTF-8", "multiline"} {
		require.Contains(t, reported[i], want)
	}
	require.Len(t, reported, len(bad), "the ring is not decoded again")
}

// A panic in OnError ended the process: the goroutines that follow the channel and read from
// Redis are those of the handler, not of a request.
func TestSSE_OnErrorPanics(t *testing.T) {
	t.Parallel()
	hub, key := newHubOf(t), redistest.Key(t)
	channel := streamOf[string](t, hub, key)
	var reported atomic.Int64
	options := sse.Options[string]{OnError: func(error) {
		reported.Add(1)
		panic("oops")
	}}
	live := openSSE(t, serveSSE(t, newSSE(t, channel, options))).live()
	bad := must(hub.client.XAdd(t.Context(), &redis.XAddArgs{Stream: key, Values: []string{"foreign", "field"}}).Result())
	good := write(t, channel, "good")
	expect := func(s *sseStream) {
		t.Helper()
		require.Equal(t, sseEvent{ID: bad, Name: sse.EventUndecodable, Data: `{"id":"` + bad + `"}`}, s.event())
		require.Equal(t, sseEvent{ID: good[0], Data: `"good"`}, s.event())
	}
	expect(live) // from the broadcast
	another := serveSSE(t, newSSE(t, streamOf[string](t, hub, key), options))
	expect(openSSE(t, another, after("0-1"))) // from a page
	require.EqualValues(t, 2, reported.Load())
}

// An empty value is an event: without a data line browsers would not report it. Lines
// stay lines.
func TestSSE_Data(t *testing.T) {
	t.Parallel()
	hub, key := newHubOf(t), redistest.Key(t)
	channel := streamOf[string](t, hub, key)
	url := serveSSE(t, newSSE(t, channel, sse.Options[string]{
		Encode: func(d redischannels.Delivery[string]) ([]byte, error) { return []byte(d.Value), nil },
		Retry:  sse.NoRetry,
	}))
	r, cancel := sseRequest(t, url)
	defer cancel()
	defer time.AfterFunc(soon, cancel).Stop()
	resp, err := http.DefaultClient.Do(r)
	require.NoError(t, err)
	defer resp.Body.Close()
	ids := write(t, channel, "", "a\r\nid: 1-1\n\ndata: b\rc\n", "end")
	want := "id: 0-0\n\n" +
		"id: " + ids[0] + "\ndata: \n\n" +
		"id: " + ids[1] + "\ndata: a\ndata: id: 1-1\ndata: \ndata: data: b\ndata: c\n\n" +
		"id: " + ids[2] + "\ndata: end\n\n"
	text := make([]byte, len(want))
	_, err = io.ReadFull(resp.Body, text)
	require.NoError(t, err)
	require.Equal(t, want, string(text))
}

// Deadlines of the server are for other requests, those of the stream end no idle one, and
// heartbeats come: over HTTP/1.1 and HTTP/2, through a ResponseWriter that is wrapped.
func TestSSE_LongStreams(t *testing.T) {
	t.Parallel()
	for _, h2 := range []bool{false, true} {
		t.Run(fmt.Sprintf("http2=%v", h2), func(t *testing.T) {
			t.Parallel()
			hub, key := newHubOf(t), redistest.Key(t)
			channel := streamOf[int](t, hub, key)
			// The timeouts bound the handshake as well, and are shorter than the time between two writes.
			const timeout = 500 * time.Millisecond
			handler := newSSE(t, channel, sse.Options[int]{Heartbeat: timeout + 200*time.Millisecond, WriteTimeout: timeout})
			server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				handler.ServeHTTP(wrapped{w}, r)
			}))
			server.Config.ReadTimeout, server.Config.WriteTimeout = timeout, timeout
			server.EnableHTTP2 = h2
			server.StartTLS()
			t.Cleanup(server.Close)
			s := openSSEWith(t, server.Client(), server.URL).live()
			require.Equal(t, h2, s.resp.ProtoMajor == 2)
			for i := range 3 {
				require.Equal(t, sseEvent{Comment: "keep-alive"}, s.next())
				write(t, channel, i)
				require.Equal(t, []string{fmt.Sprint(i)}, s.data(1))
			}
			require.NoError(t, handler.Close())
			s.ended()
			require.ErrorIs(t, s.err, io.EOF, "it ends in order")
		})
	}
}

// wrapped is a ResponseWriter of a middleware that knows nothing of flushing.
type wrapped struct{ w http.ResponseWriter }

func (w wrapped) Header() http.Header         { return w.w.Header() }
func (w wrapped) Write(p []byte) (int, error) { return w.w.Write(p) }
func (w wrapped) WriteHeader(status int)      { w.w.WriteHeader(status) }
func (w wrapped) Unwrap() http.ResponseWriter { return w.w }

// A ResponseWriter that cannot flush would hold events back forever.
func TestSSE_WithoutFlush(t *testing.T) {
	t.Parallel()
	hub, key := newHubOf(t), redistest.Key(t)
	reported := make(chan error, 1)
	handler := newSSE(t, streamOf[int](t, hub, key), sse.Options[int]{OnError: func(err error) { reported <- err }})
	resp, text := answer(t, serveSSE(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		handler.ServeHTTP(struct{ http.ResponseWriter }{w}, r)
	})))
	require.Equal(t, http.StatusInternalServerError, resp.StatusCode)
	require.Contains(t, text, "streaming")
	require.ErrorIs(t, <-reported, http.ErrNotSupported)
	require.Zero(t, handler.Clients())
}

// Shutdown waits for requests, and those of streams do not end by themselves.
func TestSSE_Shutdown(t *testing.T) {
	t.Parallel()
	hub, key := newHubOf(t), redistest.Key(t)
	channel := streamOf[int](t, hub, key)
	handler := newSSE(t, channel, sse.Options[int]{})
	server := httptest.NewUnstartedServer(handler)
	closed := make(chan struct{})
	server.Config.RegisterOnShutdown(func() {
		defer close(closed)
		_ = handler.Close()
	})
	server.Start()
	t.Cleanup(server.Close)
	var streams []*sseStream
	for range 20 {
		streams = append(streams, openSSE(t, server.URL).live())
	}
	begun := time.Now()
	require.NoError(t, server.Config.Shutdown(soonCtx(t)))
	<-closed
	require.Less(t, time.Since(begun), 3*time.Second)
	for _, s := range streams {
		s.ended()
	}
}

// When the channel is closed the streams end, and say so to who comes.
func TestSSE_ChannelCloses(t *testing.T) {
	t.Parallel()
	hub, key := newHubOf(t), redistest.Key(t)
	channel := streamOf[int](t, hub, key)
	url := serveSSE(t, newSSE(t, channel, sse.Options[int]{}))
	s := openSSE(t, url).live()
	require.NoError(t, channel.Close())
	s.ended()
	resp, _ := answer(t, url)
	require.Equal(t, http.StatusServiceUnavailable, resp.StatusCode)
}

// A client whose context ends, by a session for example, is ended.
func TestSSE_RequestContext(t *testing.T) {
	t.Parallel()
	hub, key := newHubOf(t), redistest.Key(t)
	handler := newSSE(t, streamOf[int](t, hub, key), sse.Options[int]{})
	ctx, expire := context.WithCancel(t.Context())
	url := serveSSE(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { handler.ServeHTTP(w, r.WithContext(ctx)) }))
	s := openSSE(t, url).live()
	expire()
	s.ended()
	redistest.Eventually(t, soon, func() bool { return handler.Clients() == 0 }, "it has left")
}

// gzipped is a middleware as many are: it compresses when the status is written, and hides the
// handler's flush from the writer below until then.
type gzipped struct {
	http.ResponseWriter
	zip *gzip.Writer
}

func (w *gzipped) WriteHeader(status int) {
	if w.zip == nil {
		w.Header().Set("Content-Encoding", "gzip")
		w.zip = gzip.NewWriter(w.ResponseWriter)
		w.ResponseWriter.WriteHeader(status)
	}
}

func (w *gzipped) Write(p []byte) (int, error) {
	w.WriteHeader(http.StatusOK)
	return w.zip.Write(p)
}

func (w *gzipped) Flush() {
	if w.zip != nil {
		_ = w.zip.Flush()
	}
	_ = http.NewResponseController(w.ResponseWriter).Flush()
}

// The handler flushed before it wrote the status: a middleware that compresses sent gzip without
// saying so.
func TestSSE_BehindCompression(t *testing.T) {
	t.Parallel()
	hub, key := newHubOf(t), redistest.Key(t)
	channel := streamOf[int](t, hub, key)
	handler := newSSE(t, channel, sse.Options[int]{})
	s := openSSE(t, serveSSE(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		handler.ServeHTTP(&gzipped{ResponseWriter: w}, r)
	}))).live() // Go's client decodes what says that it is gzip
	write(t, channel, 7)
	require.Equal(t, []string{"7"}, s.data(1))
}

// An event of a value cannot pass for one of the handler's own.
func TestSSE_EventsOfTheHandlerAreRefused(t *testing.T) {
	t.Parallel()
	for _, name := range []string{sse.EventGap, sse.EventUndecodable} {
		hub, key := newHubOf(t), redistest.Key(t)
		channel := streamOf[int](t, hub, key)
		reported := make(chan error, 10)
		handler := newSSE(t, channel, sse.Options[int]{
			Event:   func(redischannels.Delivery[int]) string { return name },
			OnError: func(err error) { reported <- err },
		})
		s := openSSE(t, serveSSE(t, handler)).live()
		write(t, channel, 7)
		require.Equal(t, sse.EventUndecodable, s.next().Name)
		require.ErrorContains(t, <-reported, name)
	}
}

package sse

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/feed"
	"github.com/flaminco/redischannels/internal/stream"
)

// handlerOf makes a handler that records its errors.
func handlerOf[T any](t *testing.T, runs *Runs[T]) (*RunsHandler[T], *[]error) {
	t.Helper()
	reported := new([]error)
	h, err := runs.Handler(RunsOptions[T]{Options: Options[T]{OnError: func(err error) { *reported = append(*reported, err) }}})
	require.NoError(t, err)
	return h, reported
}

// state is the reply of a look.
func state(status string, left time.Duration) []any {
	return []any{"7", status, "", left.Milliseconds(), "1000", "3", "null", ""}
}

func replies(values []any, err error) func(fakeCall) ([]any, error) {
	return func(fakeCall) ([]any, error) { return values, err }
}

// A run that has viewers is checked when its writer's lease may be over, until it has ended. An outage is
// reported once.
func TestRunsHandler_Watch(t *testing.T) {
	t.Parallel()
	inBubble(t, RunsConfig{}, func(t *testing.T, runs *Runs[string], fake *fakeRedis) {
		h, reported := handlerOf(t, runs)
		f, err := h.open("a")
		require.NoError(t, err)
		fake.set(replies(state("running", 10*time.Second), nil))
		h.expect(f, stream.RunState{State: "running", Left: 3 * time.Second})
		for _, at := range []time.Duration{3001 * ms, 13002 * ms} {
			time.Sleep(at - time.Since(fake.began))
			synctest.Wait()
			calls := fake.take()
			require.Equal(t, []string{"look"}, texts(calls))
			require.Equal(t, at, calls[0].at)
		}
		for outage := 1; outage <= 2; outage++ {
			fake.set(replies(nil, errLoading))
			time.Sleep(time.Minute)
			looks := len(fake.take())
			require.Greater(t, looks, 3, "it is checked again")
			require.Less(t, looks, 100, "after longer and longer times")
			require.Len(t, *reported, outage)
			require.ErrorContains(t, (*reported)[outage-1], `read run "a": LOADING`)
			fake.set(replies(state("running", 10*time.Second), nil))
			time.Sleep(time.Minute)
			require.Less(t, len(fake.take()), 8)
		}
		fake.set(replies(state("lost", 0), nil))
		time.Sleep(time.Minute)
		require.Equal(t, []string{"look"}, texts(fake.take()), "it has ended")
		h.release(f)
		require.NoError(t, h.Close())
	})
}

// Without viewers a run is not checked.
func TestRunsHandler_WatchEndsWithTheLastViewer(t *testing.T) {
	t.Parallel()
	inBubble(t, RunsConfig{}, func(t *testing.T, runs *Runs[string], fake *fakeRedis) {
		h, reported := handlerOf(t, runs)
		running := stream.RunState{State: "running", Left: time.Second}
		f, err := h.open("a")
		require.NoError(t, err)
		second, err := h.open("a")
		require.NoError(t, err)
		require.Same(t, f, second)
		h.expect(f, running)
		h.release(f)
		fake.set(replies(state("running", time.Second), nil))
		time.Sleep(1500 * ms)
		require.Len(t, fake.take(), 1, "one is left")
		h.release(f)
		h.expect(f, running) // of a viewer that has left meanwhile
		time.Sleep(time.Minute)
		require.Empty(t, fake.take())
		require.Empty(t, h.feeds)
		_, err = f.channel.Writer().Write(t.Context(), nil)
		require.ErrorIs(t, err, redischannels.ErrClosed, "the channel is closed")
		require.NoError(t, h.Close())
		require.Empty(t, *reported)
	})
}

// Close waits for a check.
func TestRunsHandler_CloseWaitsForTheCheck(t *testing.T) {
	t.Parallel()
	inBubble(t, RunsConfig{}, func(t *testing.T, runs *Runs[string], fake *fakeRedis) {
		h, _ := handlerOf(t, runs)
		f, err := h.open("a")
		require.NoError(t, err)
		answer := make(chan struct{})
		fake.set(func(fakeCall) ([]any, error) { <-answer; return state("lost", 0), nil })
		h.expect(f, stream.RunState{State: "running", Left: time.Second})
		time.Sleep(2 * time.Second)
		closed := make(chan error, 1)
		go func() { closed <- h.Close() }()
		synctest.Wait()
		require.Empty(t, closed)
		close(answer)
		require.NoError(t, <-closed)
		h.release(f)
	})
}

// While the state of a run cannot be read, an EventSource gets a stream that ends, since it does not
// reconnect after an error, and a WebSocket a status. An error that does not pass is one for both.
func TestRunsHandler_Later(t *testing.T) {
	t.Parallel()
	socket := func(ctx context.Context) context.Context {
		return feed.WithTransport(ctx, func(feed.Request) feed.Transport { panic("it is not opened") })
	}
	plain := func(ctx context.Context) context.Context { return ctx }
	for name, test := range map[string]struct {
		method  string
		context func(context.Context) context.Context
		err     error
		status  int
		body    string
		retry   string
	}{
		"EventSource": {http.MethodGet, plain, errLoading, http.StatusOK, "retry: 2000\n\n", ""},
		"HEAD":        {http.MethodHead, plain, errLoading, http.StatusOK, "", ""},
		"WebSocket":   {http.MethodGet, socket, errLoading, http.StatusServiceUnavailable, "Redis cannot be reached\n", "2"},
		"permanent":   {http.MethodGet, plain, redisError("WRONGTYPE Operation"), http.StatusInternalServerError, "the run cannot be read\n", ""},
		"and socket":  {http.MethodGet, socket, redisError("WRONGTYPE Operation"), http.StatusInternalServerError, "the run cannot be read\n", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			inBubble(t, RunsConfig{}, func(t *testing.T, runs *Runs[string], fake *fakeRedis) {
				h, reported := handlerOf(t, runs)
				fake.set(replies(nil, test.err))
				r := httptest.NewRequestWithContext(test.context(t.Context()), test.method, "/", nil)
				r.SetPathValue("id", "a")
				w := httptest.NewRecorder()
				h.ServeHTTP(w, r)
				require.Equal(t, test.status, w.Code)
				require.Equal(t, test.body, w.Body.String())
				require.Equal(t, test.retry, w.Header().Get("Retry-After"))
				require.Len(t, *reported, 1)
				require.Zero(t, h.Clients())
				require.NoError(t, h.Close())
			})
		})
	}
}

// Decode panics or fails for some payloads.
func (c faultyCodec) Decode(payload []byte, value any) error {
	switch string(payload) {
	case `"panic"`:
		panic("boom")
	case `"error"`:
		return errors.New("no such word")
	}
	return c.Codec.Decode(payload, value)
}

// A piece that cannot be decoded is an event with its ID, and reported.
func TestRunsHandler_DecodeFails(t *testing.T) {
	t.Parallel()
	inBubble(t, RunsConfig{Codec: faultyCodec{redischannels.JSON}}, func(t *testing.T, runs *Runs[string], fake *fakeRedis) {
		h, reported := handlerOf(t, runs)
		for text, problem := range map[string]string{"panic": "the codec panicked: boom", "error": "no such word"} {
			*reported = nil
			e, err := h.event(redischannels.Delivery[[]byte]{ID: "7-2", Value: fmt.Appendf(nil, "%q", text)}, nil)
			require.NoError(t, err)
			require.Equal(t, stream.ID{Ms: 7, Seq: 2}, e.ID)
			require.Equal(t, "id: 7-2\nevent: undecodable\ndata: {\"id\":\"7-2\"}\n\n", string(e.Wire))
			require.Len(t, *reported, 1)
			require.EqualError(t, (*reported)[0], "redischannels/sse: decode 7-2 of a run: "+problem)
		}
		require.NoError(t, h.Close())
	})
}

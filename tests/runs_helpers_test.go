package tests

import (
	"context"
	"encoding/json"
	"net/http"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels/internal/redistest"
	"github.com/flaminco/redischannels/sse"
)

// runsTest is one process that writes and serves runs.
type runsTest struct {
	*sse.Runs[string]
	t      *testing.T
	client redis.UniversalClient
	name   string
	url    string
}

// newRuns makes runs whose writers are lost after a second, and serves them. Those of one name see
// each other.
func newRuns(t *testing.T, client redis.UniversalClient, name string, change ...func(*sse.RunsConfig)) *runsTest {
	t.Helper()
	config := sse.RunsConfig{Name: name, WriterLease: time.Second, Coalesce: time.Millisecond}
	for _, f := range change {
		f(&config)
	}
	r := &runsTest{t: t, client: client, name: name}
	runs, err := sse.NewRuns[string](newHub(t, client).Hub, config)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, runs.Close()) })
	r.Runs = runs
	handler, err := runs.Handler(sse.RunsOptions[string]{Options: sse.Options[string]{Retry: sse.NoRetry}})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, handler.Close()) })
	mux := http.NewServeMux()
	mux.Handle("GET /runs/{id}", handler)
	r.url = serveSSE(t, mux) + "/runs/"
	return r
}

// start starts a run.
func (r *runsTest) start(id string) *sse.Run[string] {
	r.t.Helper()
	run, err := r.Start(soonCtx(r.t), id)
	require.NoError(r.t, err)
	return run
}

// view opens a view of a run.
func (r *runsTest) view(id string, changes ...func(*http.Request)) *sseStream {
	r.t.Helper()
	return openSSE(r.t, r.url+id, changes...)
}

// status returns the status of the answer to a request that is not served.
func (r *runsTest) status(id, lastEventID string) int {
	r.t.Helper()
	return sseStatus(r.t, r.url+id, lastEventID)
}

// entries is the number of entries of a run in Redis.
func (r *runsTest) entries(id string) int64 {
	r.t.Helper()
	n := int64(0)
	for _, key := range r.keys() {
		if r.client.Type(r.t.Context(), key).Val() == "stream" && len(key) > len(id) && key[len(key)-len(id)-1:] == ":"+id {
			n += r.client.XLen(r.t.Context(), key).Val()
		}
	}
	return n
}

// keys are all keys of these runs in Redis.
func (r *runsTest) keys() []string {
	r.t.Helper()
	keys, err := r.client.Keys(r.t.Context(), "{"+r.name+":*").Result()
	require.NoError(r.t, err)
	return keys
}

// sharedRuns are runs on the shared server.
func sharedRuns(t *testing.T, change ...func(*sse.RunsConfig)) *runsTest {
	t.Helper()
	return newRuns(t, redistest.Shared(t).Client(t), redistest.Key(t), change...)
}

// flushed writes values and returns when Redis has them.
func flushed(t *testing.T, run *sse.Run[string], values ...string) {
	t.Helper()
	require.NoError(t, run.Write(soonCtx(t), values...))
	require.NoError(t, run.Flush(soonCtx(t)))
}

// pieces returns the values of the next n events, which are pieces.
func (s *sseStream) pieces(n int) []string {
	s.t.Helper()
	var values []string
	for range n {
		e := s.event()
		require.Empty(s.t, e.Name, "%+v", e)
		values = append(values, pieceOf(s.t, e))
	}
	return values
}

func pieceOf(t *testing.T, e sseEvent) (value string) {
	t.Helper()
	require.NoError(t, json.Unmarshal([]byte(e.Data), &value))
	return value
}

// begins returns the data of the next event, which is the start of a run.
func (s *sseStream) begins() (info sse.RunStart) {
	s.t.Helper()
	e := s.event()
	require.Equal(s.t, sse.EventStart, e.Name, "%+v", e)
	require.NoError(s.t, json.Unmarshal([]byte(e.Data), &info))
	return info
}

// ends returns the data of the next event, which is the end of a run, and that of the response.
func (s *sseStream) ends() (end sse.RunEnd) {
	s.t.Helper()
	e := s.event()
	require.Equal(s.t, sse.EventEnd, e.Name, "%+v", e)
	require.NoError(s.t, json.Unmarshal([]byte(e.Data), &end))
	s.ended()
	return end
}

// browse follows a run as a browser does that looks again after a 204 until that is over. It calls on
// with what a page gets.
func browse(ctx context.Context, url func() string, on func(sseEvent), over func() bool) {
	for last := ""; ctx.Err() == nil; {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, url(), nil)
		if err != nil {
			return
		}
		request.Header.Set("Last-Event-ID", last)
		response, err := http.DefaultClient.Do(request)
		if err != nil { // its server was killed
			time.Sleep(20 * time.Millisecond)
			continue
		}
		_ = eachEvent(response.Body, func(e sseEvent) (bool, error) {
			if e.ID != "" {
				last = e.ID
			}
			if e.Data != "" {
				on(e)
			}
			return true, nil
		})
		_ = response.Body.Close()
		if response.StatusCode == http.StatusNoContent {
			if over() {
				return
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
}

package tests

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
	gosse "github.com/tmaxmax/go-sse"

	"github.com/flaminco/redischannels/internal/redistest"
	"github.com/flaminco/redischannels/sse"
)

// On a cluster every tenth reply is lost: each viewer sees each piece once, and reading takes at most
// one connection per bucket.
func TestRuns_Cluster(t *testing.T) {
	t.Parallel()
	cluster := redistest.StartCluster(t, 3)
	client := cluster.Client(t)
	var replies atomic.Int64
	client.AddHook(redistest.After("evalsha", func(context.Context, redis.Cmder) error {
		if replies.Add(1)%10 == 0 {
			return io.EOF
		}
		return nil
	}))
	const buckets, count, pieces = 4, 40, 30
	r := newRuns(t, client, "runs", func(c *sse.RunsConfig) {
		c.Buckets, c.WriterLease, c.OnError = buckets, 30*time.Second, func(error) {}
	})
	runs, views := make([]*sse.Run[string], count), make([]*sseStream, count)
	for i := range runs {
		runs[i] = r.start(fmt.Sprint(i))
		views[i] = r.view(fmt.Sprint(i))
		for views[i].lastID == "" { // a view whose look was lost ends, and comes back
			select {
			case e, open := <-views[i].events:
				if open {
					views[i].lastID = e.ID
				} else {
					views[i] = r.view(fmt.Sprint(i))
				}
			case <-time.After(soon):
				require.FailNow(t, "no event")
			}
		}
	}
	blocked := 0
	for node := range 3 {
		blocked += redistest.BlockedClients(t, cluster.Admin(node))
	}
	require.LessOrEqual(t, blocked, buckets)
	var writing sync.WaitGroup
	for _, run := range runs {
		writing.Go(func() {
			for i := range pieces {
				if run.Write(t.Context(), fmt.Sprint(i)) != nil || i%5 == 0 && run.Flush(t.Context()) != nil {
					t.Errorf("run %s: piece %d", run.ID(), i)
				}
			}
			if err := run.End(t.Context(), nil); err != nil {
				t.Errorf("run %s: %v", run.ID(), err)
			}
		})
	}
	for _, s := range views {
		require.Equal(t, numbers(0, pieces), s.pieces(pieces))
		require.Equal(t, sse.RunEnd{Status: sse.RunDone}, s.ends())
	}
	writing.Wait()
	require.Greater(t, replies.Load(), int64(count))
}

// A client that is not ours resumes after its connections were cut, and gives up after the end.
func TestRuns_OtherClientResumes(t *testing.T) {
	t.Parallel()
	r := sharedRuns(t)
	handler, err := r.Handler(sse.RunsOptions[string]{
		Options: sse.Options[string]{Retry: 10 * time.Millisecond},
		ID:      func(*http.Request) string { return "a" },
	})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, handler.Close()) })
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	run := r.start("a")
	request, cancel := sseRequest(t, server.URL)
	defer cancel()
	connection := gosse.DefaultClient.NewConnection(request)
	events := make(chan gosse.Event, 1000)
	connection.SubscribeToAll(func(e gosse.Event) { events <- e })
	connected := make(chan error, 1)
	go func() { connected <- connection.Connect() }()
	next := func() (e gosse.Event) {
		t.Helper()
		for e.Data == "" { // this client reports a retry as an event
			select {
			case e = <-events:
			case <-time.After(soon):
				require.FailNow(t, "no event")
			}
		}
		return e
	}
	require.Equal(t, sse.EventStart, next().Type)
	for i := range 20 {
		flushed(t, run, fmt.Sprint(i))
		if i%5 == 0 {
			server.CloseClientConnections()
		}
	}
	require.NoError(t, run.End(t.Context(), nil))
	for i := range 20 {
		require.Equal(t, fmt.Sprintf("%q", fmt.Sprint(i)), next().Data)
	}
	require.Equal(t, sse.EventEnd, next().Type)
	require.Error(t, <-connected, "204")
	for len(events) > 0 {
		require.Empty(t, (<-events).Data)
	}
}

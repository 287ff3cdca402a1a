package tests

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
	"github.com/flaminco/redischannels/sse"
)

// runsVia are runs whose commands go through a proxy.
func runsVia(t *testing.T, server *redistest.Server, change ...func(*sse.RunsConfig)) (*runsTest, *redistest.Proxy) {
	t.Helper()
	proxy := redistest.NewProxy(t, server.Addr())
	client := server.Client(t, redistest.Via(proxy), func(o *redis.Options) { o.ReadTimeout = 300 * time.Millisecond })
	return newRuns(t, client, redistest.Key(t), change...), proxy
}

// aboutRun matches the scripts about a run.
func aboutRun(r *runsTest) redistest.Match {
	return redistest.And(redistest.Script(), redistest.Contains("{"+r.name+":"))
}

// The reply to a start, an append, an end or a stop is lost: it is sent again, and takes place once.
func TestRuns_LostReplyWritesNothingTwice(t *testing.T) {
	t.Parallel()
	r, proxy := runsVia(t, redistest.Shared(t), func(c *sse.RunsConfig) { c.OnError = func(error) {} })
	warm := r.start("warm") // the scripts are known to the server
	flushed(t, warm, "p")
	require.NoError(t, warm.End(t.Context(), nil))
	lose := func(what string) func() {
		rule := proxy.DropReply(1, redistest.And(aboutRun(r), redistest.Contains(what)))
		return func() { t.Helper(); rule.Wait(t, soon) }
	}
	lost := lose(":run:a")
	run := r.start("a")
	lost()
	for i := range 5 {
		lost = lose(fmt.Sprintf(`"piece-%d"`, i))
		flushed(t, run, fmt.Sprintf("piece-%d", i))
		lost()
	}
	lost = lose("the end")
	require.NoError(t, run.End(t.Context(), fmt.Errorf("the end")))
	lost()
	require.EqualValues(t, 6, r.entries("a"))
	s := r.view("a")
	s.begins()
	require.Equal(t, []string{"piece-0", "piece-1", "piece-2", "piece-3", "piece-4"}, s.pieces(5))
	require.Equal(t, sse.RunEnd{Status: sse.RunFailed, Error: "the end"}, s.ends())

	stopped := r.start("b")
	lost = lose("stopped")
	require.NoError(t, r.Stop(t.Context(), "b"))
	lost()
	<-stopped.Context().Done()
	require.EqualValues(t, 1, r.entries("b"))
}

// Every tenth reply is lost, while several runs are written and read.
func TestRuns_ManyLostReplies(t *testing.T) {
	t.Parallel()
	r, proxy := runsVia(t, redistest.Shared(t), func(c *sse.RunsConfig) {
		c.WriterLease, c.OnError = 30*time.Second, func(error) {}
	})
	var replies atomic.Int64
	proxy.DropReplyIf(-1, aboutRun(r), func([]byte) bool { return replies.Add(1)%10 == 0 })
	const pieces = 100
	for id := range 5 {
		t.Run(fmt.Sprint(id), func(t *testing.T) {
			run, err := r.Start(t.Context(), fmt.Sprint(id))
			require.NoError(t, err)
			for i := range pieces {
				require.NoError(t, run.Write(t.Context(), fmt.Sprint(i)))
				if i%3 == 0 {
					require.NoError(t, run.Flush(t.Context()))
				}
			}
			require.NoError(t, run.End(t.Context(), nil))
			s := r.view(fmt.Sprint(id))
			s.begins()
			require.Equal(t, numbers(0, pieces), s.pieces(pieces))
			require.Equal(t, sse.RunEnd{Status: sse.RunDone}, s.ends())
		})
	}
}

// Established connections go silent and new ones work: a writer is not lost, and viewers
// continue.
func TestRuns_SilentConnections(t *testing.T) {
	t.Parallel()
	r, proxy := runsVia(t, redistest.Shared(t), func(c *sse.RunsConfig) {
		c.WriterLease, c.OnError = 3*time.Second, func(error) {}
	})
	run := r.start("a")
	flushed(t, run, "before")
	proxy.Blackhole(true)
	require.NoError(t, run.Write(t.Context(), "meanwhile"))
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	require.ErrorIs(t, run.Flush(ctx), context.DeadlineExceeded)
	proxy.Blackhole(false)
	flushed(t, run, "after")
	require.NoError(t, run.End(t.Context(), nil))
	s := r.view("a")
	s.begins()
	require.Equal(t, []string{"before", "meanwhile", "after"}, s.pieces(3))
	require.Equal(t, sse.RunEnd{Status: sse.RunDone}, s.ends())
}

// Redis is away: pieces wait, Write waits when the buffer is full, viewers stay, and an EventSource
// that comes meanwhile comes back.
func TestRuns_Outage(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t, redistest.AOF())
	r := newRuns(t, server.Client(t), "runs", func(c *sse.RunsConfig) {
		c.WriterLease, c.BufferBytes, c.OnError = 30*time.Second, 1000, func(error) {}
	})
	handler, err := r.Handler(sse.RunsOptions[string]{
		Options: sse.Options[string]{OnError: func(error) {}, Heartbeat: 20 * time.Millisecond, Retry: 70 * time.Millisecond},
		ID:      func(*http.Request) string { return "a" },
	})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, handler.Close()) })
	url := serveSSE(t, handler)
	run := r.start("a")
	flushed(t, run, "0")
	s := openSSE(t, url)
	s.begins()
	s.pieces(1)
	server.Kill()
	written := 1
	for {
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		err := run.Write(ctx, fmt.Sprint(written))
		cancel()
		if err != nil {
			require.ErrorIs(t, err, context.DeadlineExceeded)
			break
		}
		written++
	}
	require.Greater(t, written, 5)
	refused := openSSE(t, url, after(s.lastID))
	require.Equal(t, sseEvent{Retry: "70"}, refused.next())
	refused.ended()
	server.Restart()
	require.NoError(t, run.End(t.Context(), nil))
	require.Equal(t, numbers(1, written-1), s.pieces(written-1))
	require.Equal(t, sse.RunEnd{Status: sse.RunDone}, s.ends())
}

// Redis refuses writes because it is out of memory: nothing is written, also not in part, and the
// writer waits.
func TestRuns_OutOfMemory(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	admin := server.Admin(t)
	r := newRuns(t, server.Client(t), "runs", func(c *sse.RunsConfig) { c.WriterLease, c.OnError = 30*time.Second, func(error) {} })
	run := r.start("a")
	require.NoError(t, admin.ConfigSet(t.Context(), "maxmemory", "1").Err())
	require.NoError(t, run.Write(t.Context(), "p"))
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	require.ErrorIs(t, run.Flush(ctx), context.DeadlineExceeded)
	_, err := r.Start(t.Context(), "b")
	require.ErrorIs(t, err, redischannels.ErrOutOfMemory)
	require.NoError(t, admin.ConfigSet(t.Context(), "maxmemory", "0").Err())
	require.NoError(t, run.End(t.Context(), nil))
	require.EqualValues(t, 2, r.entries("a"))
	require.Len(t, r.keys(), 3)
}

// Keys of another type are left alone, and everything says so.
func TestRuns_WrongType(t *testing.T) {
	t.Parallel()
	r := sharedRuns(t)
	key := func(run *sse.Run[string], id, kind string) string {
		for _, key := range r.keys() {
			if strings.HasSuffix(key, kind+id) {
				return key
			}
		}
		t.Fatal("no key")
		return ""
	}
	run := r.start("a")
	flushed(t, run, "p")
	for _, kind := range []string{":events:", ":run:"} {
		name := key(run, "a", kind)
		require.NoError(t, r.client.Rename(t.Context(), name, name+":moved").Err())
		require.NoError(t, r.client.Set(t.Context(), name, "x", time.Minute).Err())
		_, err := r.Start(t.Context(), "a")
		require.ErrorIs(t, err, redischannels.ErrWrongType)
		require.ErrorIs(t, r.Stop(t.Context(), "a"), redischannels.ErrWrongType)
		_, err = r.Info(t.Context(), "a")
		require.ErrorIs(t, err, redischannels.ErrWrongType)
		require.Equal(t, http.StatusInternalServerError, r.status("a", ""))
		require.NoError(t, r.client.Rename(t.Context(), name+":moved", name).Err())
	}
}

// A loss in Redis, by an eviction or a failover, ends the writer, and viewers restart with the
// remaining pieces.
func TestRuns_RedisLosesARun(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{":run:", ":events:"} {
		t.Run(strings.Trim(kind, ":"), func(t *testing.T) {
			t.Parallel()
			r := sharedRuns(t)
			run := r.start("a")
			flushed(t, run, "p")
			s := r.view("a")
			s.begins()
			s.pieces(1)
			last := s.lastID
			s.close()
			for _, key := range r.keys() {
				if strings.Contains(key, kind) {
					require.NoError(t, r.client.Del(t.Context(), key).Err())
				}
			}
			require.NoError(t, run.Write(t.Context(), "q"))
			<-run.Context().Done()
			require.ErrorIs(t, run.End(t.Context(), nil), sse.ErrLost)
			if kind == ":run:" {
				require.Equal(t, http.StatusNoContent, r.status("a", last))
			}
			redistest.Eventually(t, soon, func() bool {
				anew, err := r.Start(t.Context(), "a")
				if err == nil {
					flushed(t, anew, "again")
				}
				return err == nil
			}, "its lease is over")
			s = r.view("a", after(last))
			if e := s.event(); e.Name == sse.EventEnd { // that of the lost epoch
				s = r.view("a", after(s.lastID))
				s.begins()
			}
			require.Equal(t, []string{"again"}, s.pieces(1))
		})
	}
}

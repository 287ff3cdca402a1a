package tests

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
	"github.com/flaminco/redischannels/sse"
)

// A viewer sees the history, what is written, and the end; wherever it resumes, each piece once.
func TestRuns_View(t *testing.T) {
	t.Parallel()
	r := sharedRuns(t)
	require.Equal(t, http.StatusNoContent, r.status("none", ""))
	run, err := r.StartWith(t.Context(), "a", map[string]string{"model": "tiny"})
	require.NoError(t, err)
	first := r.view("a")
	info := first.begins()
	require.Equal(t, sse.RunStart{ID: "a", Epoch: run.Epoch(), Started: info.Started, Metadata: map[string]string{"model": "tiny"}}, info)
	require.WithinDuration(t, time.Now(), info.Started, time.Minute)
	flushed(t, run, "one", "two")
	require.Equal(t, []string{"one", "two"}, first.pieces(2))
	two := first.lastID
	late := r.view("a")
	late.begins()
	require.Equal(t, []string{"one", "two"}, late.pieces(2))
	require.Equal(t, two, late.lastID, "IDs are the same for all")
	flushed(t, run, "three")
	resumed := r.view("a", after(two))
	for _, s := range []*sseStream{first, late, resumed} {
		require.Equal(t, []string{"three"}, s.pieces(1))
	}
	require.NoError(t, run.End(t.Context(), nil))
	for _, s := range []*sseStream{first, late, resumed} {
		require.Equal(t, sse.RunEnd{Status: sse.RunDone}, s.ends())
		require.Equal(t, first.lastID, s.lastID)
	}
	require.Equal(t, http.StatusNoContent, r.status("a", first.lastID), "an EventSource gives up")
	again := r.view("a", after(two))
	require.Equal(t, []string{"three"}, again.pieces(1))
	require.Equal(t, sse.RunEnd{Status: sse.RunDone}, again.ends())
	again = r.view("a")
	require.Equal(t, info, again.begins(), "the same for all")
	require.Equal(t, []string{"one", "two", "three"}, again.pieces(3))
	require.Equal(t, sse.RunEnd{Status: sse.RunDone}, again.ends())

	require.ErrorIs(t, run.Write(t.Context(), "four"), sse.ErrRunEnded)
	require.ErrorIs(t, run.Context().Err(), context.Canceled)
	require.NoError(t, run.End(t.Context(), nil), "again")
	require.EqualValues(t, 4, r.entries("a"))
	require.Equal(t, http.StatusBadRequest, r.status("a", "nonsense"))
	require.Equal(t, http.StatusBadRequest, r.status(strings.Repeat("x", 300), ""))
}

// A failure has a text, and a status that the writer decides.
func TestRuns_EndStatus(t *testing.T) {
	t.Parallel()
	r := sharedRuns(t)
	for id, test := range map[string]struct {
		cause error
		end   sse.RunEnd
	}{
		"failed":  {errors.New("no more tokens"), sse.RunEnd{Status: sse.RunFailed, Error: "no more tokens"}},
		"long":    {errors.New(strings.Repeat("é", 2000)), sse.RunEnd{Status: sse.RunFailed, Error: strings.Repeat("é", 512)}},
		"stopped": {fmt.Errorf("by the user: %w", sse.ErrStopped), sse.RunEnd{Status: sse.RunStopped}},
	} {
		run := r.start(id)
		require.NoError(t, run.Write(t.Context(), "p"))
		require.NoError(t, run.End(t.Context(), test.cause))
		s := r.view(id)
		s.begins()
		s.pieces(1)
		require.Equal(t, test.end, s.ends())
	}
}

// One writer at a time; a run that has ended, and one whose writer is lost, is restarted with a
// higher epoch, and its viewers restart.
func TestRuns_Restart(t *testing.T) {
	t.Parallel()
	r := sharedRuns(t)
	run := r.start("a")
	_, err := r.Start(t.Context(), "a")
	require.ErrorIs(t, err, sse.ErrRunning)
	flushed(t, run, "old")
	s := r.view("a")
	s.begins()
	s.pieces(1)
	middle := s.lastID
	require.NoError(t, run.End(t.Context(), nil))
	s.ends()
	anew := r.start("a")
	require.Greater(t, anew.Epoch(), run.Epoch())
	flushed(t, anew, "new")
	for _, seen := range []string{"", s.lastID, "1-1"} {
		s := r.view("a", after(seen))
		require.Equal(t, anew.Epoch(), s.begins().Epoch)
		require.Equal(t, []string{"new"}, s.pieces(1))
	}
	// Who has not seen the end of the epoch before still does.
	s = r.view("a", after(middle))
	require.Equal(t, sse.RunEnd{Status: sse.RunDone}, s.ends())
	require.Equal(t, anew.Epoch(), r.view("a", after(s.lastID)).begins().Epoch)
}

// A write of an older epoch is refused.
func TestRuns_SupersededWriterWritesNothing(t *testing.T) {
	t.Parallel()
	proxy := redistest.NewProxy(t, redistest.Shared(t).Addr())
	name := redistest.Key(t)
	frozen := newRuns(t, redistest.Shared(t).Client(t, redistest.Via(proxy)), name, func(c *sse.RunsConfig) { c.WriterLease = 300 * time.Millisecond })
	other := newRuns(t, redistest.Shared(t).Client(t), name)
	old := frozen.start("a")
	flushed(t, old, "old")
	proxy.Refuse(true)
	require.NoError(t, old.Write(t.Context(), "late"))
	var anew *sse.Run[string]
	redistest.Eventually(t, soon, func() (ok bool) {
		var err error
		anew, err = other.Start(t.Context(), "a")
		return err == nil
	}, "the lease is over")
	proxy.Refuse(false)
	<-old.Context().Done()
	require.ErrorIs(t, old.Flush(t.Context()), sse.ErrSuperseded)
	require.ErrorIs(t, old.End(t.Context(), nil), sse.ErrSuperseded)
	flushed(t, anew, "new")
	require.EqualValues(t, 3, other.entries("a"), "old, its end, new")
	require.NoError(t, anew.End(t.Context(), nil))
}

// A run is stopped from any process, and all that concern it notice.
func TestRuns_StopFromAnotherProcess(t *testing.T) {
	t.Parallel()
	r := sharedRuns(t)
	other := newRuns(t, redistest.Shared(t).Client(t), r.name)
	require.ErrorIs(t, other.Stop(t.Context(), "none"), sse.ErrNoRun)
	for _, silent := range []bool{true, false} {
		id := fmt.Sprint("silent-", silent)
		run := r.start(id)
		flushed(t, run, "p")
		s := r.view(id)
		s.begins()
		s.pieces(1)
		require.NoError(t, other.Stop(t.Context(), id))
		require.NoError(t, other.Stop(t.Context(), id), "again")
		require.Equal(t, sse.RunEnd{Status: sse.RunStopped}, s.ends())
		if !silent {
			_ = run.Write(t.Context(), "too late") // is buffered, or refused already
		}
		<-run.Context().Done()
		require.ErrorIs(t, run.Write(t.Context(), "x"), sse.ErrStopped)
		require.NoError(t, run.End(t.Context(), run.Context().Err()))
		require.EqualValues(t, 2, r.entries(id))
	}
	run := r.start("done")
	require.NoError(t, run.End(t.Context(), nil))
	require.ErrorIs(t, other.Stop(t.Context(), "done"), sse.ErrRunEnded)
}

// A writer that is not heard of ends its run as lost, once, however many find that out.
func TestRuns_DeadWriterIsLost(t *testing.T) {
	t.Parallel()
	proxy := redistest.NewProxy(t, redistest.Shared(t).Addr())
	name := redistest.Key(t)
	dying := newRuns(t, redistest.Shared(t).Client(t, redistest.Via(proxy)), name)
	run := dying.start("a")
	flushed(t, run, "p")
	var views []*sseStream
	var others []*runsTest
	for range 3 {
		other := newRuns(t, redistest.Shared(t).Client(t), name)
		others = append(others, other)
		for range 3 {
			s := other.view("a")
			s.begins()
			s.pieces(1)
			views = append(views, s)
		}
	}
	// It lives as long as it is silent.
	time.Sleep(1500 * time.Millisecond)
	info, err := others[0].Info(t.Context(), "a")
	require.NoError(t, err)
	require.Equal(t, sse.RunRunning, info.Status)
	proxy.Refuse(true)
	cut := time.Now()
	for _, s := range views {
		require.Equal(t, sse.RunEnd{Status: sse.RunLost}, s.ends())
		require.Equal(t, views[0].lastID, s.lastID)
	}
	require.Less(t, time.Since(cut), 3*time.Second)
	require.EqualValues(t, 2, others[0].entries("a"))
	proxy.Refuse(false)
	<-run.Context().Done()
	require.ErrorIs(t, run.Write(t.Context(), "x"), sse.ErrLost)
	require.ErrorIs(t, run.End(t.Context(), nil), sse.ErrLost)
}

// A lost run that has no viewer is ended by the first call that reads it, once.
func TestRuns_LostWithoutViewers(t *testing.T) {
	t.Parallel()
	for name, read := range map[string]func(*testing.T, *runsTest){
		"Info": func(t *testing.T, r *runsTest) {
			info, err := r.Info(t.Context(), "a")
			require.NoError(t, err)
			require.Equal(t, sse.RunLost, info.Status)
		},
		"List": func(t *testing.T, r *runsTest) {
			for info, err := range r.List(t.Context()) {
				require.NoError(t, err)
				require.Equal(t, sse.RunLost, info.Status)
			}
		},
		"Stop":  func(t *testing.T, r *runsTest) { require.ErrorIs(t, r.Stop(t.Context(), "a"), sse.ErrRunEnded) },
		"Start": func(t *testing.T, r *runsTest) { r.start("a") },
		"view":  func(t *testing.T, r *runsTest) { r.view("a").begins() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			config := func(c *sse.RunsConfig) { c.WriterLease, c.Buckets, c.OnError = time.Minute, 1, func(error) {} }
			dying, proxy := runsVia(t, redistest.Shared(t), config)
			flushed(t, dying.start("a"), "p")
			proxy.Refuse(true)
			r := newRuns(t, redistest.Shared(t).Client(t), dying.name, config)
			key := "{" + r.name + ":0}:"
			require.NoError(t, r.client.HSet(t.Context(), key+"run:a", "lease", 1).Err())
			read(t, r)
			require.EqualValues(t, 2, r.entries("a"))
			end := r.client.XRevRangeN(t.Context(), key+"events:a", "+", "-", 1).Val()[0]
			require.Equal(t, map[string]any{"end": "lost", "p": ""}, end.Values)
			require.Error(t, r.Stop(t.Context(), "none"))
			_, err := r.Info(t.Context(), "a")
			require.NoError(t, err)
			require.EqualValues(t, 2, r.entries("a"), "once")
		})
	}
}

// A lost run that nobody reads leaves no key after its TTL.
func TestRuns_LostKeysExpire(t *testing.T) {
	t.Parallel()
	dying, proxy := runsVia(t, redistest.Shared(t), func(c *sse.RunsConfig) {
		c.TTL, c.WriterLease, c.OnError = time.Second, time.Second, func(error) {}
	})
	flushed(t, dying.start("a"), "p")
	proxy.Refuse(true)
	other := newRuns(t, redistest.Shared(t).Client(t), dying.name)
	require.Len(t, other.keys(), 3)
	redistest.Eventually(t, soon, func() bool { return len(other.keys()) == 0 }, "nothing is left")
}

// No key is left after the TTL, also not the index.
func TestRuns_KeysExpire(t *testing.T) {
	t.Parallel()
	testKeysExpire(t, 200)
}

func TestSoakRunsKeysExpire(t *testing.T) {
	soak(t)
	testKeysExpire(t, 10_000)
}

func testKeysExpire(t *testing.T, count int) {
	r := newRuns(t, redistest.Start(t).Client(t), "runs", func(c *sse.RunsConfig) { c.TTL, c.WriterLease = 500*time.Millisecond, 500*time.Millisecond })
	for i := range count {
		run := r.start(fmt.Sprint(i))
		require.NoError(t, run.Write(t.Context(), "p"))
		require.NoError(t, run.End(t.Context(), nil))
	}
	require.NotEmpty(t, r.keys())
	redistest.Eventually(t, soon, func() bool { return r.client.DBSize(t.Context()).Val() == 0 }, "nothing is left")
}

// A run is kept for TTL after its end, by which the index knows it as well.
func TestRuns_KeptAfterTheEnd(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(*runsTest, *sse.Run[string]) error{
		"End":  func(_ *runsTest, run *sse.Run[string]) error { return run.End(t.Context(), nil) },
		"Stop": func(r *runsTest, run *sse.Run[string]) error { return r.Stop(t.Context(), run.ID()) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := sharedRuns(t, func(c *sse.RunsConfig) { c.WriterLease = time.Minute })
			run := r.start("a")
			flushed(t, run, "p")
			index := ""
			for _, key := range r.keys() {
				require.NoError(t, r.client.Expire(t.Context(), key, time.Minute).Err())
				if strings.HasSuffix(key, ":index") {
					index = key
					require.NoError(t, r.client.ZAdd(t.Context(), key, redis.Z{Score: 1, Member: "a"}).Err())
				}
			}
			require.NoError(t, end(r, run))
			require.Len(t, r.keys(), 3)
			for _, key := range r.keys() {
				require.Greater(t, r.client.TTL(t.Context(), key).Val(), sse.DefaultRunTTL/2, "%s", key)
			}
			require.Greater(t, r.client.ZScore(t.Context(), index, "a").Val(), float64(time.Now().UnixMilli()))
		})
	}
}

// The index has only the runs that there are: it would grow for as long as runs are started.
func TestRuns_IndexForgetsExpiredRuns(t *testing.T) {
	t.Parallel()
	r := sharedRuns(t, func(c *sse.RunsConfig) {
		c.Buckets, c.TTL, c.WriterLease = 1, 200*time.Millisecond, 200*time.Millisecond
	})
	require.NoError(t, r.start("a").End(t.Context(), nil))
	index := "{" + r.name + ":0}:index"
	require.NoError(t, r.client.Persist(t.Context(), index).Err())
	redistest.Eventually(t, soon, func() bool { return len(r.keys()) == 1 }, "only the index is left")
	require.Equal(t, []string{"a"}, r.client.ZRange(t.Context(), index, 0, -1).Val())
	r.start("b")
	require.Equal(t, []string{"b"}, r.client.ZRange(t.Context(), index, 0, -1).Val())
}

// Entries are kept of the epoch that is written and of the one before, of those before that at most a
// part of a node of the stream.
func TestRuns_OldEpochsAreTrimmed(t *testing.T) {
	t.Parallel()
	r := sharedRuns(t)
	for range 4 {
		run := r.start("a")
		flushed(t, run, numbers(0, 500)...)
		require.NoError(t, run.End(t.Context(), nil))
	}
	require.GreaterOrEqual(t, r.entries("a"), int64(2*501))
	require.Less(t, r.entries("a"), int64(3*501))
}

// A run lives longer than its TTL as long as its writer does.
func TestRuns_LongRunKeepsItsKeys(t *testing.T) {
	t.Parallel()
	r := sharedRuns(t, func(c *sse.RunsConfig) { c.TTL, c.WriterLease = 300*time.Millisecond, 300*time.Millisecond })
	run := r.start("a")
	flushed(t, run, "one")
	time.Sleep(time.Second)
	flushed(t, run, "two")
	require.NoError(t, run.End(t.Context(), nil))
	s := r.view("a")
	s.begins()
	require.Equal(t, []string{"one", "two"}, s.pieces(2))
}

func TestRuns_List(t *testing.T) {
	t.Parallel()
	r := sharedRuns(t)
	for i := range 300 {
		require.NoError(t, r.start(fmt.Sprint(i)).End(t.Context(), nil))
	}
	run := r.start("a{b}:c")
	flushed(t, run, "p", "q")
	found := map[string]sse.RunInfo{}
	for info, err := range r.List(t.Context()) {
		require.NoError(t, err)
		require.NotContains(t, found, info.ID)
		found[info.ID] = info
	}
	require.Len(t, found, 301)
	require.Equal(t, sse.RunDone, found["7"].Status)
	require.Equal(t, sse.RunInfo{ID: run.ID(), Epoch: run.Epoch(), Status: sse.RunRunning, Started: found[run.ID()].Started, Pieces: 2}, found[run.ID()])
	_, err := r.Info(t.Context(), "none")
	require.ErrorIs(t, err, sse.ErrNoRun)
}

// List leaves out a run of the index that Redis has lost, and has an error after Close.
func TestRuns_ListOfLostRuns(t *testing.T) {
	t.Parallel()
	r := sharedRuns(t, func(c *sse.RunsConfig) { c.Buckets = 1 })
	require.NoError(t, r.start("a").End(t.Context(), nil))
	require.NoError(t, r.start("b").End(t.Context(), nil))
	require.NoError(t, r.client.Del(t.Context(), "{"+r.name+":0}:run:a").Err())
	list := func() (ids []string, err error) {
		for info, failure := range r.List(t.Context()) {
			if failure != nil {
				return ids, failure
			}
			ids = append(ids, info.ID)
		}
		return ids, nil
	}
	ids, err := list()
	require.NoError(t, err)
	require.Equal(t, []string{"b"}, ids)
	require.NoError(t, r.Close())
	ids, err = list()
	require.ErrorIs(t, err, redischannels.ErrClosed)
	require.Empty(t, ids)
}

// Close ends the runs of this process, so that another one may start them at once.
func TestRuns_CloseEndsItsRuns(t *testing.T) {
	t.Parallel()
	r := sharedRuns(t)
	other := newRuns(t, redistest.Shared(t).Client(t), r.name)
	run := r.start("a")
	require.NoError(t, run.Write(t.Context(), "p"))
	s := other.view("a")
	s.begins()
	require.NoError(t, r.Close())
	require.Equal(t, []string{"p"}, s.pieces(1))
	require.Equal(t, sse.RunEnd{Status: sse.RunLost}, s.ends())
	<-run.Context().Done()
	require.ErrorIs(t, run.Write(t.Context(), "q"), redischannels.ErrClosed)
	require.ErrorIs(t, run.End(t.Context(), nil), redischannels.ErrClosed)
	_, err := r.Start(t.Context(), "b")
	require.ErrorIs(t, err, redischannels.ErrClosed)
	other.start("a")
}

// Any number of viewers and runs share one connection for reading.
func TestRuns_OneReadingConnection(t *testing.T) {
	t.Parallel()
	testOneReadingConnection(t, 20, 5)
}

func TestSoakRunsOneReadingConnection(t *testing.T) {
	soak(t)
	testOneReadingConnection(t, 100, 50)
}

func testOneReadingConnection(t *testing.T, count, viewers int) {
	server := redistest.Start(t)
	admin := server.Admin(t)
	r := newRuns(t, server.Client(t, func(o *redis.Options) { o.PoolSize = 4 }), "runs", func(c *sse.RunsConfig) { c.WriterLease = time.Minute })
	before := redistest.Connections(t, admin)
	var views []*sseStream
	var runs []*sse.Run[string]
	for i := range count {
		runs = append(runs, r.start(fmt.Sprint(i)))
		for range viewers {
			s := r.view(fmt.Sprint(i))
			s.begins()
			views = append(views, s)
		}
	}
	redistest.Eventually(t, soon, func() bool { return redistest.BlockedClients(t, admin) == 1 }, "one blocked read")
	for i, run := range runs {
		flushed(t, run, fmt.Sprint(i))
	}
	for i, s := range views {
		require.Equal(t, []string{fmt.Sprint(i / viewers)}, s.pieces(1))
	}
	require.LessOrEqual(t, redistest.Connections(t, admin), before+5, "the pool's, and one")
	for _, run := range runs {
		require.NoError(t, run.End(t.Context(), nil))
	}
	for _, s := range views {
		s.ends()
	}
	redistest.Eventually(t, soon, func() bool { return redistest.BlockedClients(t, admin) == 0 }, "no viewers, no read")
}

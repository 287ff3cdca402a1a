package tests

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels/internal/redistest"
	"github.com/flaminco/redischannels/sse"
)

// runsFailover are runs whose commands go through a proxy to a master that has a replica.
type runsFailover struct {
	*runsTest
	proxy           *redistest.Proxy
	master, replica *redistest.Server
}

func newRunsFailover(t *testing.T) *runsFailover {
	t.Helper()
	f := &runsFailover{master: redistest.Start(t)}
	host, port, err := net.SplitHostPort(f.master.Addr())
	require.NoError(t, err)
	f.replica = redistest.Start(t, redistest.Arg("replicaof", host, port))
	f.runsTest, f.proxy = runsVia(t, f.master, func(c *sse.RunsConfig) { c.OnError = func(error) {} })
	return f
}

// inStep returns when the replica has everything.
func (f *runsFailover) inStep() {
	f.t.Helper()
	client := f.master.Client(f.t)
	redistest.Eventually(f.t, soon, func() bool {
		require.NoError(f.t, client.Set(f.t.Context(), "mark", time.Now().UnixNano(), 0).Err())
		n, err := client.Wait(f.t.Context(), 1, time.Second).Result()
		return err == nil && n == 1
	}, "the replica is in step")
}

// part promotes the replica, which has nothing of what is written to the master from now on.
func (f *runsFailover) part() {
	f.t.Helper()
	require.NoError(f.t, f.replica.Admin(f.t).Do(f.t.Context(), "replicaof", "no", "one").Err())
}

// failover sends everything to what was the replica.
func (f *runsFailover) failover() {
	f.proxy.SetTarget(f.replica.Addr())
	f.proxy.Cut()
}

// The master fails before the reply to an append, when a viewer has seen the piece and the replica has
// not got it. The writer sends it again, and no viewer sees it twice.
func TestRuns_FailoverBeforeReply(t *testing.T) {
	t.Parallel()
	f := newRunsFailover(t)
	run := f.start("a")
	flushed(t, run, "0", "1")
	live, leaving := f.view("a"), f.view("a")
	for _, s := range []*sseStream{live, leaving} {
		s.begins()
		s.pieces(2)
	}
	f.inStep()
	f.part()
	rule := f.proxy.BeforeReply(1, redistest.And(aboutRun(f.runsTest), redistest.Contains(`"2"`)), func() {
		live.pieces(1)
		leaving.pieces(1)
		leaving.close()
		f.failover()
	})
	flushed(t, run, "2")
	rule.Wait(t, soon)
	flushed(t, run, "3")
	resumed := f.view("a", after(leaving.lastID))
	require.NoError(t, run.End(t.Context(), nil))
	for _, s := range []*sseStream{live, resumed} {
		require.Equal(t, []string{"3"}, s.pieces(1))
		require.Equal(t, sse.RunEnd{Status: sse.RunDone}, s.ends())
	}
}

// The replica that is promoted has not got pieces that were flushed. The run is lost, viewers begin
// again with what there is, and the epoch does not repeat.
func TestRuns_FailoverLosesPieces(t *testing.T) {
	t.Parallel()
	f := newRunsFailover(t)
	run := f.start("a")
	flushed(t, run, "0", "1")
	f.inStep()
	f.part()
	flushed(t, run, "2", "3")
	live := f.view("a")
	live.begins()
	live.pieces(4)
	f.failover()
	<-run.Context().Done()
	require.ErrorIs(t, run.End(t.Context(), nil), sse.ErrLost)
	e := live.event()
	require.Equal(t, sse.EventEnd, e.Name)
	require.Equal(t, http.StatusNoContent, f.status("a", live.lastID))
	anew := f.start("a")
	require.Greater(t, anew.Epoch(), run.Epoch())
	resumed := f.view("a", after(live.lastID))
	require.Equal(t, anew.Epoch(), resumed.begins().Epoch)
}

// The replica that is promoted has nothing of a run: its viewers see the one that is restarted, or
// that there is none.
func TestRuns_FailoverLosesRun(t *testing.T) {
	t.Parallel()
	for _, again := range []bool{false, true} {
		f := newRunsFailover(t)
		f.inStep()
		f.part()
		run := f.start("a")
		flushed(t, run, "0")
		live := f.view("a")
		live.begins()
		live.pieces(1)
		f.failover()
		if again {
			anew := f.start("a")
			require.Greater(t, anew.Epoch(), run.Epoch())
			flushed(t, anew, "new")
			<-run.Context().Done()
			require.ErrorIs(t, run.Write(t.Context(), "late"), sse.ErrSuperseded)
		} else {
			<-run.Context().Done()
			require.ErrorIs(t, run.End(t.Context(), nil), sse.ErrLost)
		}
		live.ended()
		if again {
			s := f.view("a", after(live.lastID))
			s.begins()
			require.Equal(t, []string{"new"}, s.pieces(1))
		} else {
			require.Equal(t, http.StatusNoContent, f.status("a", live.lastID))
		}
	}
}

// The master dies while runs are written: every viewer sees pieces once and in order, and one end; runs
// that are written from then on are complete, and have greater epochs.
func TestRuns_Sentinel(t *testing.T) {
	t.Parallel()
	const count = 20
	set := redistest.StartSentinels(t, 1)
	r := newRuns(t, set.Client(t), "runs", func(c *sse.RunsConfig) { c.WriterLease, c.OnError = 5*time.Second, func(error) {} })
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	stop := make(chan struct{})
	var writing, viewing sync.WaitGroup
	var written atomic.Int64
	seen := make([][]sseEvent, 2*count)
	over := make([]atomic.Bool, count)
	before := make([]string, count)
	for id := range count {
		run := r.start(fmt.Sprint(id))
		before[id] = run.Epoch()
		writing.Go(func() {
			for i := 0; run.Write(ctx, fmt.Sprint(i)) == nil && run.Flush(ctx) == nil; i++ {
				written.Add(1)
				select {
				case <-stop:
					_ = run.End(ctx, nil) // or it is lost
					return
				case <-time.After(time.Millisecond):
				}
			}
			_ = run.End(ctx, nil)
		})
		for _, place := range []int{2 * id, 2*id + 1} {
			viewing.Go(func() {
				browse(ctx, func() string { return r.url + fmt.Sprint(id) }, func(e sseEvent) { seen[place] = append(seen[place], e) }, over[id].Load)
			})
		}
	}
	redistest.Eventually(t, soon, func() bool { return written.Load() > 20*count }, "runs are written")
	old := set.Master()
	old.Kill()
	set.AwaitFailover(old)
	var fresh *sse.Run[string]
	redistest.Eventually(t, soon, func() (ok bool) { // the client learns of the new master by an error
		var err error
		fresh, err = r.Start(t.Context(), "fresh")
		return err == nil
	}, "the new master is found")
	flushed(t, fresh, "piece")
	require.NoError(t, fresh.End(t.Context(), nil))
	close(stop)
	writing.Wait()
	for id := range count {
		var anew *sse.Run[string]
		redistest.Eventually(t, soon, func() (ok bool) {
			var err error
			anew, err = r.Start(t.Context(), fmt.Sprint(id))
			return err == nil
		}, "the run has ended, or its lease")
		require.Greater(t, anew.Epoch(), before[id])
		flushed(t, anew, "0")
		require.NoError(t, anew.End(t.Context(), nil))
		over[id].Store(true)
	}
	viewing.Wait()
	require.NoError(t, ctx.Err())
	for _, events := range seen {
		checkEpochs(t, events)
	}
}

// checkEpochs says that events are those of whole epochs.
func checkEpochs(t *testing.T, events []sseEvent) {
	t.Helper()
	next := -1 // piece; none before the start
	for _, e := range events {
		switch e.Name {
		case sse.EventStart:
			require.Equal(t, -1, next, "%+v: the epoch before has an end", e)
			next = 0
		case sse.EventEnd:
			require.NotEqual(t, -1, next, "%+v: one end", e)
			next = -1
		default:
			require.Equal(t, fmt.Sprint(next), pieceOf(t, e), "%+v", e)
			next++
		}
	}
	require.Equal(t, -1, next, "the last one has an end")
}

// An epoch is greater than all before, also where the clock of a new master is behind that of the
// former one, or the record is lost and only the entries are left.
func TestRuns_EpochsGrow(t *testing.T) {
	t.Parallel()
	r := sharedRuns(t)
	run := r.start("a")
	require.NoError(t, run.End(t.Context(), nil))
	var record string
	for _, key := range r.keys() {
		if strings.Contains(key, ":run:") {
			record = key
		}
	}
	ahead := time.Now().Add(time.Hour).UnixMilli()
	require.NoError(t, r.client.HSet(t.Context(), record, "epoch", ahead).Err())
	run = r.start("a")
	require.Equal(t, fmt.Sprint(ahead+1), run.Epoch())
	flushed(t, run, "p")
	require.NoError(t, r.client.Del(t.Context(), record).Err())
	run = r.start("a")
	require.Equal(t, fmt.Sprint(ahead+2), run.Epoch())
	s := r.view("a")
	require.Equal(t, run.Epoch(), s.begins().Epoch)
	flushed(t, run, "q")
	require.Equal(t, []string{"q"}, s.pieces(1))
}

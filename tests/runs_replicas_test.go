package tests

import (
	"context"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels/internal/redistest"
	"github.com/flaminco/redischannels/sse"
)

// runsUnderFaults are runs that are written and viewed at any of three processes, of which one after
// the other is killed or frozen.
type runsUnderFaults struct {
	*replicas
	client  redis.UniversalClient
	servers []*redis.Client      // of the masters
	readers int                  // the most reading connections of one process so far
	ended   map[string]time.Time // when a viewer has first seen the end of an epoch
	reruns  []string             // epochs whose process was frozen until another one had restarted the run
}

// run runs everything and checks what came of it. parallel is how many runs are written at once.
func (r *runsUnderFaults) run(runs, parallel, viewers, faults int) {
	ctx, cancel := context.WithTimeout(r.t.Context(), 10*time.Minute)
	defer cancel()
	seen := make([][][]sseEvent, runs)
	slots := make(chan struct{}, parallel)
	done := make(chan struct{})
	go func() {
		defer close(done)
		var viewing sync.WaitGroup
		defer viewing.Wait()
		for id := range runs {
			slots <- struct{}{}
			seen[id] = make([][]sseEvent, viewers)
			r.order(fmt.Sprint(id))
			var all sync.WaitGroup
			for v := range viewers {
				all.Go(func() { seen[id][v] = r.view(ctx, fmt.Sprint(id)) })
			}
			viewing.Go(func() { all.Wait(); <-slots })
		}
	}()
	for i := range faults {
		r.mu.Lock()
		next := r.flushes + rand.IntN(runs*r.pieces/8/faults)
		r.mu.Unlock()
		r.await(done, func() bool { return r.flushes > next })
		r.count()
		if i%2 == 0 {
			r.kill(rand.IntN(3))
		} else {
			r.freeze(rand.IntN(3))
		}
	}
	<-done
	require.NoError(r.t, ctx.Err())
	r.check(seen)
}

// await returns when what the processes and viewers have said meets a condition, or everything is done.
func (r *runsUnderFaults) await(done <-chan struct{}, condition func() bool) {
	r.t.Helper()
	redistest.Eventually(r.t, time.Minute, func() bool {
		select {
		case <-done:
			return true
		default:
			r.mu.Lock()
			defer r.mu.Unlock()
			return condition()
		}
	}, "progress")
}

// count notes how many connections of a process wait for entries.
func (r *runsUnderFaults) count() {
	r.t.Helper()
	readers := map[string]int{}
	for _, server := range r.servers {
		list, err := server.ClientList(r.t.Context()).Result()
		require.NoError(r.t, err)
		for line := range strings.Lines(list) {
			if _, rest, ok := strings.Cut(line, " name="); ok && strings.Contains(line, " flags=b ") {
				name, _, _ := strings.Cut(rest, " ")
				readers[name]++
			}
		}
	}
	for _, n := range readers {
		r.readers = max(r.readers, n)
	}
}

// kill kills a process and starts another one, and returns when viewers have seen the ends of
// what it was writing. Runs that it had not started are written by others.
func (r *runsUnderFaults) kill(i int) {
	p := r.live[i]
	r.mu.Lock()
	p.killed = time.Now()
	r.mu.Unlock()
	p.child.Kill()
	<-p.read
	r.start(i)
	for _, id := range r.inState(p, "ordered") {
		r.order(id)
		r.mu.Lock()
		delete(p.states, id)
		r.mu.Unlock()
	}
	r.await(nil, func() bool {
		for epoch, report := range r.epochs {
			if report.by == p && report.over == "" && r.ended[epoch].IsZero() {
				return false
			}
		}
		return true
	})
}

// freeze freezes a process until others have restarted the runs that it is writing, and returns when
// it has noticed that.
func (r *runsUnderFaults) freeze(i int) {
	p := r.live[i]
	p.child.Pause()
	r.mu.Lock()
	p.frozen = true
	var again, old []string
	for epoch, report := range r.epochs {
		if id, _, _ := strings.Cut(epoch, " "); report.by == p && report.over == "" && r.orders[id] == 1 {
			again, old = append(again, id), append(old, epoch)
		}
	}
	r.mu.Unlock()
	for _, id := range again {
		r.order(id)
	}
	r.await(nil, func() bool {
		restarted := 0
		for epoch, report := range r.epochs {
			if id, _, _ := strings.Cut(epoch, " "); report.by != p && slices.Contains(again, id) {
				restarted++
			}
		}
		return restarted == len(again)
	})
	r.mu.Lock()
	p.frozen = false
	r.mu.Unlock()
	p.child.Resume()
	r.reruns = append(r.reruns, old...)
}

// view follows a run at whatever process answers, until there is nothing more and no process is to
// write more, and returns what it was sent.
func (r *runsUnderFaults) view(ctx context.Context, id string) (events []sseEvent) {
	browse(ctx, func() string { return "http://" + r.any() + "/runs/" + id }, func(e sseEvent) {
		events = append(events, e)
		if e.Name == sse.EventEnd {
			r.hasEnded(id, e.ID)
		}
	}, func() bool { return len(events) > 0 && r.isOver(id) })
	return events
}

// hasEnded notes that a viewer has seen the end of an epoch.
func (r *runsUnderFaults) hasEnded(id, end string) {
	epoch, _, _ := strings.Cut(end, "-")
	r.mu.Lock()
	defer r.mu.Unlock()
	if key := id + " " + epoch; r.ended[key].IsZero() {
		r.ended[key] = time.Now()
	}
}

// recorded is an epoch as Redis has it.
type recorded struct {
	id     string
	events []sseEvent // pieces and the end
	status sse.RunStatus
	ended  time.Time // by the clock of the server, of the last epoch
}

// recorded returns the epochs of a run. In each its pieces come once and in order, then one end, and
// nothing of it behind that.
func (r *runsUnderFaults) recorded(id string) (epochs []*recorded) {
	t := r.t
	h := fnv.New32a()
	_, _ = h.Write([]byte(id))
	keys := fmt.Sprintf("{%s:%d}:", sse.DefaultRunsName, h.Sum32()%replicaBuckets)
	entries, err := r.client.XRange(t.Context(), keys+"events:"+id, "-", "+").Result()
	require.NoError(t, err)
	expires, err := r.client.ZScore(t.Context(), keys+"index", id).Result()
	require.NoError(t, err)
	var now *recorded
	for _, entry := range entries {
		epoch, number, _ := strings.Cut(entry.ID, "-")
		if now == nil || now.id != epoch {
			require.True(t, now == nil || now.status != "", "run %s: epoch %s has no end", id, now)
			now = &recorded{id: epoch}
			epochs = append(epochs, now)
		}
		require.Empty(t, now.status, "run %s: an entry behind the end of its epoch", id)
		event := sseEvent{ID: entry.ID}
		if status, ok := entry.Values["end"].(string); ok {
			now.status = sse.RunStatus(status)
			event.Name, event.Data = sse.EventEnd, fmt.Sprintf(`{"status":%q}`, status)
		} else {
			n := len(now.events)
			require.Equal(t, fmt.Sprint(n+1), number, "run %s", id)
			event.Data = fmt.Sprintf("%q", fmt.Sprint(n))
			require.Equal(t, event.Data, entry.Values["p"], "run %s", id)
		}
		now.events = append(now.events, event)
	}
	require.True(t, now != nil && now.status != "", "run %s has no end", id)
	now.ended = time.UnixMilli(int64(expires)).Add(-sse.DefaultRunTTL)
	return epochs
}

// check says that each viewer has seen each piece of an epoch once and in order, and then its one
// end: the pieces in Redis, at least the flushed ones; and that epochs end as their writers have.
func (r *runsUnderFaults) check(seen [][][]sseEvent) {
	t := r.t
	lost, within, seenWithin := 0, time.Duration(0), time.Duration(0)
	for id, viewers := range seen {
		epochs := r.recorded(fmt.Sprint(id))
		for _, e := range epochs {
			report := r.epochs[fmt.Sprint(id, " ", e.id)]
			if report == nil {
				continue // it was killed before it could say so
			}
			pieces := len(e.events) - 1
			require.GreaterOrEqual(t, pieces, report.flushed, "run %d", id)
			switch report.over {
			case "done":
				require.Equal(t, sse.RunDone, e.status, "run %d", id)
				require.Equal(t, r.pieces, pieces, "run %d", id)
			case "failed":
				require.Fail(t, "failed", "run %d", id)
			case "lost", "superseded":
				require.Equal(t, sse.RunLost, e.status, "run %d", id)
			}
			if e.status == sse.RunLost {
				lost++
				if !report.by.killed.IsZero() && !e.ended.IsZero() {
					within = max(within, e.ended.Sub(report.by.killed))
					seenWithin = max(seenWithin, r.ended[fmt.Sprint(id, " ", e.id)].Sub(report.by.killed))
				}
			}
		}
		for _, events := range viewers {
			r.checkViewer(fmt.Sprint("run ", id), events, epochs)
		}
	}
	superseded := 0
	for _, epoch := range r.reruns {
		if r.epochs[epoch].over != "done" {
			superseded++
		}
	}
	t.Logf("of %d runs and %d epochs %d were lost, at most %v after their process was killed, seen after %v; %d of %d writers that were frozen were superseded; at most %d reading connections",
		len(seen), len(r.epochs), lost, within.Round(time.Millisecond), seenWithin.Round(time.Millisecond), superseded, len(r.reruns), r.readers)
	require.Positive(t, lost)
	require.Positive(t, superseded)
	require.Less(t, within, 2*replicaLease, "lost within the lease")
	require.Positive(t, r.readers)
	if len(r.servers) == 1 {
		require.Equal(t, 1, r.readers)
	}
	require.LessOrEqual(t, r.readers, replicaBuckets)
}

// checkViewer says that a viewer has seen all epochs since it came, from the start to the end.
func (r *runsUnderFaults) checkViewer(id string, events []sseEvent, epochs []*recorded) {
	r.t.Helper()
	require.NotEmpty(r.t, events, id)
	for i, e := range epochs {
		var start sse.RunStart
		n := len(e.events) + 1
		require.NotEmpty(r.t, events, id)
		require.Equal(r.t, sse.EventStart, events[0].Name, id)
		require.NoError(r.t, json.Unmarshal([]byte(events[0].Data), &start))
		if start.Epoch != e.id && i == 0 {
			continue // it came later
		}
		require.Equal(r.t, e.id, start.Epoch, id)
		require.GreaterOrEqual(r.t, len(events), n, id)
		require.Equal(r.t, e.events, events[1:n], id)
		events = events[n:]
	}
	require.Empty(r.t, events, id)
}

// Writers and serving processes are killed and frozen: every viewer sees each piece that was flushed
// once, in order, and one end, as all others do; a superseded writer writes nothing more.
func TestRuns_ReplicasKilled(t *testing.T) {
	t.Parallel()
	underFaults(t).run(80, 20, 2, 3)
}

func TestSoakRuns(t *testing.T) {
	soak(t)
	underFaults(t).run(2000, 250, 2, 20)
}

// The same in a cluster, where every tenth reply to a script is lost; reading takes at most one
// connection per bucket and process.
func TestRuns_ClusterReplicasKilled(t *testing.T) {
	t.Parallel()
	underFaultsInCluster(t).run(80, 20, 2, 3)
}

func TestSoakRunsCluster(t *testing.T) {
	soak(t)
	underFaultsInCluster(t).run(2000, 250, 2, 20)
}

func soak(t *testing.T) {
	t.Helper()
	if os.Getenv("SOAK") == "" {
		t.Skip("SOAK is not set: this is for make soak")
	}
}

const piecesUnderFaults = 400

func underFaults(t *testing.T) *runsUnderFaults {
	t.Helper()
	server := redistest.Start(t)
	client := server.Client(t)
	return &runsUnderFaults{
		replicas: startReplicas(t, piecesUnderFaults, "CHILD_ADDRS="+server.Addr()),
		client:   client, servers: []*redis.Client{client}, ended: map[string]time.Time{},
	}
}

func underFaultsInCluster(t *testing.T) *runsUnderFaults {
	t.Helper()
	cluster := redistest.StartCluster(t, 3)
	r := &runsUnderFaults{client: cluster.Client(t), ended: map[string]time.Time{}}
	var addrs []string
	for i, node := range cluster.Nodes {
		addrs = append(addrs, node.Addr())
		r.servers = append(r.servers, cluster.Admin(i))
	}
	r.replicas = startReplicas(t, piecesUnderFaults, "CHILD_LOSE=1", "CHILD_ADDRS="+strings.Join(addrs, ","))
	return r
}

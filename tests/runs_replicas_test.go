package tests

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
	"github.com/flaminco/redischannels/sse"
)

// runsReplica serves runs, and writes those that are named by lines "ID PIECES" of its standard
// input. It says
//
//	at ADDR            it serves there
//	flushed ID N       so many pieces of a run are in Redis
//	over ID ERROR      End has returned
var runsReplica = redistest.ChildMain("runs", func() {
	fail := func(err error) {
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	var output sync.Mutex
	say := func(format string, args ...any) {
		output.Lock()
		defer output.Unlock()
		fmt.Printf(format+"\n", args...)
	}
	client := redis.NewClient(&redis.Options{Addr: os.Getenv("CHILD_ADDR")})
	hub, err := redischannels.NewHub(client, redischannels.HubConfig{})
	fail(err)
	runs, err := sse.NewRuns[string](hub, sse.RunsConfig{WriterLease: replicasLease})
	fail(err)
	handler, err := runs.Handler(sse.RunsOptions[string]{})
	fail(err)
	mux := http.NewServeMux()
	mux.Handle("GET /runs/{id}", handler)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	fail(err)
	go func() { fail(http.Serve(listener, mux)) }()
	say("at %s", listener.Addr())
	write := func(id string, pieces int) error {
		run, err := runs.Start(context.Background(), id)
		if err != nil {
			return err
		}
		for i := range pieces {
			if err := run.Write(run.Context(), fmt.Sprint(i)); err != nil {
				return errors.Join(err, run.End(context.Background(), err))
			}
			if rand.IntN(4) == 0 {
				if err := run.Flush(context.Background()); err == nil {
					say("flushed %s %d", id, i+1)
				}
				time.Sleep(time.Duration(rand.IntN(40)) * time.Millisecond)
			}
		}
		return run.End(context.Background(), nil)
	}
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		id, text, _ := strings.Cut(lines.Text(), " ")
		pieces, err := strconv.Atoi(text)
		fail(err)
		go func() { say("over %s %v", id, write(id, pieces)) }()
	}
})

const replicasLease = 2 * time.Second

// replicas are processes that are killed and started again.
type replicas struct {
	t      *testing.T
	server *redistest.Server

	mu      sync.Mutex
	addrs   []string
	stdin   []*redistest.Child
	flushed map[string]int  // by run: pieces that are known to be in Redis
	over    map[string]bool // its End has returned nil
	readers sync.WaitGroup
}

func startReplicas(t *testing.T, n int) *replicas {
	r := &replicas{t: t, server: redistest.Start(t), flushed: map[string]int{}, over: map[string]bool{},
		addrs: make([]string, n), stdin: make([]*redistest.Child, n)}
	t.Cleanup(r.readers.Wait)
	for i := range n {
		r.start(i)
	}
	return r
}

func (r *replicas) start(i int) {
	child := redistest.StartChild(r.t, runsReplica, "CHILD_ADDR="+r.server.Addr())
	addr := child.WaitLine("at ", 20*time.Second)
	r.mu.Lock()
	r.addrs[i], r.stdin[i] = addr, child
	r.mu.Unlock()
	r.readers.Go(func() {
		for line := range child.Lines() {
			words := strings.Fields(line)
			r.mu.Lock()
			switch {
			case len(words) == 3 && words[0] == "flushed":
				r.flushed[words[1]], _ = strconv.Atoi(words[2])
			case len(words) == 3 && words[0] == "over":
				r.over[words[1]] = words[2] == "<nil>"
			}
			r.mu.Unlock()
		}
	})
}

// any returns the address of a replica.
func (r *replicas) any() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.addrs[rand.IntN(len(r.addrs))]
}

// view follows a run as a browser does, at whatever replica answers, until there is nothing more,
// and returns what it was sent.
func (r *replicas) view(ctx context.Context, id string) (events []sseEvent, err error) {
	last := ""
	for ctx.Err() == nil {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+r.any()+"/runs/"+id, nil)
		if err != nil {
			return nil, err
		}
		request.Header.Set("Last-Event-ID", last)
		response, err := http.DefaultClient.Do(request)
		if err != nil || response.StatusCode == http.StatusNoContent && len(events) == 0 {
			time.Sleep(20 * time.Millisecond) // killed, or not yet started
			continue
		}
		if response.StatusCode == http.StatusNoContent {
			return events, response.Body.Close()
		}
		_ = eachEvent(response.Body, func(e sseEvent) (bool, error) {
			if e.ID != "" {
				last = e.ID
			}
			if e.Data != "" {
				events = append(events, e)
			}
			return true, nil
		})
		_ = response.Body.Close()
	}
	return events, ctx.Err()
}

// testReplicas has runs written and viewed while the replicas of two thirds of them are killed.
func testReplicas(t *testing.T, runs, pieces, viewers, kills int) {
	r := startReplicas(t, 3)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	seen := make([][][]sseEvent, runs)
	var viewing sync.WaitGroup
	for id := range runs {
		seen[id] = make([][]sseEvent, viewers)
		for v := range viewers {
			viewing.Go(func() { seen[id][v], _ = r.view(ctx, fmt.Sprint(id)) })
		}
	}
	for id := range runs {
		_, err := fmt.Fprintf(r.stdin[id%3].Stdin(), "%d %d\n", id, pieces)
		require.NoError(t, err)
	}
	observer := newRuns(t, r.server.Client(t), sse.DefaultRunsName)
	for id := range runs {
		redistest.Eventually(t, 30*time.Second, func() bool {
			_, err := observer.Info(ctx, fmt.Sprint(id))
			return err == nil
		}, "it has started")
	}
	for i := range kills {
		r.stdin[i%2].Kill()
		r.start(i % 2)
		time.Sleep(time.Duration(rand.IntN(500)) * time.Millisecond)
	}
	viewing.Wait()
	require.NoError(t, ctx.Err())
	lost := 0
	for id := range runs {
		if r.check(fmt.Sprint(id), seen[id], pieces) == sse.RunLost {
			lost++
		}
	}
	require.Positive(t, lost, "nothing was killed in the middle")
	require.Less(t, lost, runs)
}

// check says that all viewers of a run have seen the same, each piece once and in order, and one end,
// and returns which.
func (r *replicas) check(id string, viewers [][]sseEvent, pieces int) sse.RunStatus {
	r.t.Helper()
	events := viewers[0]
	for _, others := range viewers[1:] {
		require.Equal(r.t, events, others, "run %s", id)
	}
	require.GreaterOrEqual(r.t, len(events), 2, "run %s", id)
	require.Equal(r.t, sse.EventStart, events[0].Name)
	for i, e := range events[1 : len(events)-1] {
		require.Empty(r.t, e.Name)
		require.Equal(r.t, fmt.Sprint(i), pieceOf(r.t, e), "run %s", id)
	}
	var end sse.RunEnd
	require.Equal(r.t, sse.EventEnd, events[len(events)-1].Name)
	require.NoError(r.t, json.Unmarshal([]byte(events[len(events)-1].Data), &end))
	r.mu.Lock()
	defer r.mu.Unlock()
	require.GreaterOrEqual(r.t, len(events)-2, r.flushed[id], "run %s", id)
	require.True(r.t, end.Status == sse.RunDone && len(events)-2 == pieces || end.Status == sse.RunLost && !r.over[id], "run %s: %+v after %d", id, end, len(events)-2)
	return end.Status
}

// Writers and serving replicas are killed: every viewer sees each piece that was flushed once, in
// order, and one end.
func TestRuns_ReplicasKilled(t *testing.T) {
	t.Parallel()
	testReplicas(t, 50, 400, 2, 4)
}

func TestSoakRuns(t *testing.T) {
	if os.Getenv("SOAK") == "" {
		t.Skip("SOAK is not set: this is for make soak")
	}
	testReplicas(t, 2000, 1000, 2, 20)
}

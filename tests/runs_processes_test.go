package tests

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
	"github.com/flaminco/redischannels/sse"
)

const (
	replicaLease   = 2 * time.Second
	replicaBuckets = 4
)

// runsReplica serves runs in the Redis of CHILD_ADDRS, and writes those that lines "ID PIECES" of its
// standard input name, as soon as they have no other writer. With CHILD_LOSE=1 it gets no reply to
// every tenth script. On its output it says
//
//	at ADDR              it serves there
//	started ID EPOCH
//	flushed ID EPOCH N   so many pieces of the epoch are in Redis
//	over ID EPOCH HOW    writing has ended: done, lost, superseded, or failed
var runsReplica = redistest.ChildMain("runs", func() {
	addrs := strings.Split(os.Getenv("CHILD_ADDRS"), ",")
	client := redis.NewUniversalClient(&redis.UniversalOptions{
		Addrs: addrs, ClientName: os.Getenv("CHILD_NAME"), IsClusterMode: len(addrs) > 1,
	})
	if os.Getenv("CHILD_LOSE") == "1" {
		client.AddHook(loseEveryTenth(new(atomic.Int64)))
	}
	hub, err := redischannels.NewHub(client, redischannels.HubConfig{})
	exitOn(err)
	runs, err := sse.NewRuns[string](hub, sse.RunsConfig{WriterLease: replicaLease, Buckets: replicaBuckets})
	exitOn(err)
	handler, err := runs.Handler(sse.RunsOptions[string]{})
	exitOn(err)
	mux := http.NewServeMux()
	mux.Handle("GET /runs/{id}", handler)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	exitOn(err)
	go func() { exitOn(http.Serve(listener, mux)) }()
	w := &runsWriter{runs: runs}
	w.say("at %s", listener.Addr())
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		id, text, _ := strings.Cut(lines.Text(), " ")
		pieces, err := strconv.Atoi(text)
		exitOn(err)
		go w.write(id, pieces)
	}
})

func exitOn(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// loseEveryTenth makes the client lose every tenth reply to a script.
func loseEveryTenth(replies *atomic.Int64) redis.Hook {
	return redistest.After("evalsha", func(context.Context, redis.Cmder) error {
		if replies.Add(1)%10 == 0 {
			return io.EOF
		}
		return nil
	})
}

// runsWriter writes runs as something does that makes pieces slowly.
type runsWriter struct {
	runs   *sse.Runs[string]
	output sync.Mutex
}

func (w *runsWriter) say(format string, args ...any) {
	w.output.Lock()
	defer w.output.Unlock()
	fmt.Printf(format+"\n", args...)
}

func (w *runsWriter) write(id string, pieces int) {
	ctx := context.Background()
	run, err := w.runs.Start(ctx, id)
	for err != nil { // another writer has it, or the reply was lost
		time.Sleep(50 * time.Millisecond)
		run, err = w.runs.Start(ctx, id)
	}
	w.say("started %s %s", id, run.Epoch())
	for i := range pieces {
		if run.Write(run.Context(), fmt.Sprint(i)) != nil {
			break
		}
		if rand.IntN(4) == 0 {
			if run.Flush(ctx) == nil {
				w.say("flushed %s %s %d", id, run.Epoch(), i+1)
			}
			time.Sleep(time.Duration(rand.IntN(40)) * time.Millisecond)
		}
	}
	how := "failed"
	switch err := run.End(ctx, nil); {
	case err == nil:
		how = "done"
	case errors.Is(err, sse.ErrSuperseded):
		how = "superseded"
	case errors.Is(err, sse.ErrLost):
		how = "lost"
	}
	w.say("over %s %s %s", id, run.Epoch(), how)
}

// replica is one process, with the runs that it was ordered to write.
type replica struct {
	child  *redistest.Child
	name   string
	addr   string
	read   chan struct{}     // closed when all of its output is read
	states map[string]string // by run: ordered, started or over
	killed time.Time
	frozen bool
}

// epochReport is the report of the writer of an epoch.
type epochReport struct {
	by      *replica
	flushed int
	over    string
}

// replicas are three processes over one Redis that are killed and frozen, in whose place others come.
type replicas struct {
	t      *testing.T
	env    []string
	pieces int // of each run

	mu      sync.Mutex
	live    []*replica
	made    int                     // processes so far
	orders  map[string]int          // by run: how often a process was ordered to write it
	flushes int                     // so far
	epochs  map[string]*epochReport // by "ID EPOCH"
}

func startReplicas(t *testing.T, pieces int, env ...string) *replicas {
	r := &replicas{t: t, env: env, pieces: pieces, live: make([]*replica, 3), orders: map[string]int{}, epochs: map[string]*epochReport{}}
	for i := range r.live {
		r.start(i)
	}
	return r
}

// start starts the process of a place.
func (r *replicas) start(i int) {
	r.t.Helper()
	name := fmt.Sprint("replica-", r.made)
	child := redistest.StartChild(r.t, runsReplica, append(r.env, "CHILD_NAME="+name)...)
	p := &replica{child: child, name: name, addr: child.WaitLine("at ", 20*time.Second), read: make(chan struct{}), states: map[string]string{}}
	go func() {
		defer close(p.read)
		for line := range child.Lines() {
			r.hear(p, strings.Fields(line))
		}
	}()
	r.t.Cleanup(func() { child.Kill(); <-p.read })
	r.mu.Lock()
	defer r.mu.Unlock()
	r.made++
	r.live[i] = p
}

// hear takes note of what a process says.
func (r *replicas) hear(p *replica, words []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	id, epoch := words[1], words[1]+" "+words[2]
	switch words[0] {
	case "started":
		p.states[id] = "started"
		r.epochs[epoch] = &epochReport{by: p}
	case "flushed":
		r.epochs[epoch].flushed, _ = strconv.Atoi(words[3])
		r.flushes++
	case "over":
		p.states[id] = "over"
		r.epochs[epoch].over = words[3]
	}
}

// order has a run written by any process that is not frozen.
func (r *replicas) order(id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := r.live[rand.IntN(len(r.live))]
	for p.frozen {
		p = r.live[rand.IntN(len(r.live))]
	}
	p.states[id] = "ordered"
	r.orders[id]++
	_, _ = fmt.Fprintf(p.child.Stdin(), "%s %d\n", id, r.pieces) // kill orders again what it has not started
}

// inState returns the runs of a process that are in a state.
func (r *replicas) inState(p *replica, state string) (ids []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for id, s := range p.states {
		if s == state {
			ids = append(ids, id)
		}
	}
	return ids
}

// isOver reports whether no process is to write more of a run.
func (r *replicas) isOver(id string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p := range r.live {
		if state := p.states[id]; state == "ordered" || state == "started" {
			return false
		}
	}
	return true
}

// any returns the address of a process.
func (r *replicas) any() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.live[rand.IntN(len(r.live))].addr
}

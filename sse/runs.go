package sse

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"iter"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/backoff"
	"github.com/flaminco/redischannels/internal/bridge"
	"github.com/flaminco/redischannels/internal/lifecycle"
	"github.com/flaminco/redischannels/internal/redisconn"
	"github.com/flaminco/redischannels/internal/stream"
)

// maxRunID and maxRunMetadata are bounds in bytes.
const (
	maxRunID       = 256
	maxRunMetadata = 4 << 10
)

// The errors of runs that a caller may branch on.
var (
	// ErrRunning means that a run of this ID has a writer.
	ErrRunning = errors.New("the run has a writer")
	// ErrNoRun means that there is no run of this ID, or not any more.
	ErrNoRun = errors.New("no such run")
	// ErrRunEnded means that the run has ended, by End.
	ErrRunEnded = errors.New("the run has ended")
	// ErrStopped means that the run was ended by Stop.
	ErrStopped = errors.New("the run was stopped")
	// ErrSuperseded means that a newer writer has restarted the run.
	ErrSuperseded = errors.New("the run has a newer writer")
	// ErrLost means that the run was ended as lost, because nothing was heard of its writer for
	// WriterLease, or that Redis no longer has all of it.
	ErrLost = errors.New("the run is lost")
)

// Runs are streams that begin, are written piece by piece by one writer, and end: the answer of a
// model, the progress of a job. Any number of viewers sees each piece that was flushed once, in
// order, and then how the run ended, whatever becomes of their connections, of the writer and of
// this process. It is safe for concurrent use.
//
// A run is identified by an ID of the application's. Of one ID there is one writer at a time:
// restarting it begins another epoch, which viewers see from its beginning.
type Runs[T any] struct {
	config RunsConfig
	codec  redischannels.Codec
	client redis.UniversalClient
	hub    *redischannels.Hub // of the channels that viewers read
	leave  func()             // the caller's hub
	links  []*redisconn.Link  // one per bucket
	life   *lifecycle.State

	mu   sync.Mutex
	runs map[*Run[T]]struct{} // that have a writer here
}

// NewRuns returns runs on the client of a hub, which stays the caller's and whose Close closes
// them. It does not talk to Redis. The errors wrap [redischannels.ErrInvalidConfig],
// [redischannels.ErrInvalidArgument] or [redischannels.ErrClosed].
func NewRuns[T any](hub *redischannels.Hub, config RunsConfig) (*Runs[T], error) {
	var errs []error
	if hub == nil {
		errs = append(errs, fmt.Errorf("redischannels/sse: hub: %w: must not be nil", redischannels.ErrInvalidArgument))
	}
	config = config.withDefaults()
	if checker, ok := config.Codec.(redischannels.TypeChecker); ok {
		if err := checker.CheckType(reflect.TypeFor[T]()); err != nil {
			errs = append(errs, fmt.Errorf("redischannels/sse: RunsConfig.Codec: %w: %w", redischannels.ErrInvalidConfig, err))
		}
	}
	if err := errors.Join(append(errs, config.Validate())...); err != nil {
		return nil, err
	}
	r := &Runs[T]{
		config: config,
		codec:  config.Codec,
		client: hub.Client(),
		life:   lifecycle.New(fmt.Errorf("redischannels/sse: runs: %w", redischannels.ErrClosed)),
		runs:   make(map[*Run[T]]struct{}),
	}
	own, leave, err := bridge.JoinHub(hub, r.Close)
	if err != nil {
		return nil, err
	}
	r.hub, r.leave = own.(*redischannels.Hub), leave
	timeout := min(config.WriterLease/3, 5*time.Second)
	for bucket := range config.Buckets {
		r.links = append(r.links, redisconn.NewLink(r.client, r.index(bucket), timeout, bridge.OnReadClient(hub)))
	}
	return r, nil
}

// RunInfo is how a run stands.
type RunInfo struct {
	ID       string            `json:"id"`
	Epoch    string            `json:"epoch"` // greater than those of the runs of this ID before
	Status   RunStatus         `json:"status"`
	Error    string            `json:"error,omitempty"` // of RunFailed
	Started  time.Time         `json:"started"`         // by the clock of the server
	Pieces   int64             `json:"pieces"`
	Metadata map[string]string `json:"metadata,omitempty"`
}

// RunStatus is how a run stands, or how it has ended.
type RunStatus string

// The statuses of a run.
const (
	RunRunning RunStatus = "running"
	RunDone    RunStatus = "done"
	RunFailed  RunStatus = "failed"
	RunStopped RunStatus = "stopped"
	RunLost    RunStatus = "lost" // nothing was heard of the writer for its lease
)

// Start starts a run and returns its writer. The error is ErrRunning as long as another writer has
// the run; one whose lease is over loses it. A run that has ended is restarted.
func (r *Runs[T]) Start(ctx context.Context, id string) (*Run[T], error) {
	return r.StartWith(ctx, id, nil)
}

// StartWith is Start with metadata that viewers get before the first piece, up to 4 KiB as JSON.
func (r *Runs[T]) StartWith(ctx context.Context, id string, metadata map[string]string) (*Run[T], error) {
	text, err := json.Marshal(metadata)
	if err != nil || len(text) > maxRunMetadata {
		return nil, fmt.Errorf("redischannels/sse: metadata: %w: must be at most %d bytes as JSON, got %d", redischannels.ErrInvalidArgument, maxRunMetadata, len(text))
	}
	if err := r.life.Enter(); err != nil {
		return nil, err
	}
	defer r.life.Leave()
	key, err := r.key(id)
	if err != nil {
		return nil, err
	}
	var answer stream.RunAnswer
	token := rand.Text()
	err = r.again(ctx, id, func(client redis.UniversalClient) (err error) {
		answer, err = key.StartRun(ctx, client, r.config.times(), token, string(text))
		return err
	})
	switch {
	case err != nil:
		return nil, fmt.Errorf("redischannels/sse: start run %q: %w", id, err)
	case answer.Outcome == stream.RunRunning:
		return nil, fmt.Errorf("redischannels/sse: start run %q: %w", id, ErrRunning)
	}
	run := newRun(r, id, key, answer.Text)
	if err := r.life.Err(); err != nil { // Close may have missed it
		run.abandon()
		return nil, err
	}
	return run, nil
}

// Stop ends a run as stopped, from any process: its viewers see that at once, and the context of
// its writer ends with its next write, or within a second. A run that was stopped before is no
// error. The errors are ErrNoRun, ErrRunEnded if it has ended otherwise, or those of Redis, after
// which it may be stopped.
func (r *Runs[T]) Stop(ctx context.Context, id string) error {
	if err := r.life.Enter(); err != nil {
		return err
	}
	defer r.life.Leave()
	key, err := r.key(id)
	if err != nil {
		return err
	}
	var answer stream.RunAnswer
	err = r.again(ctx, id, func(client redis.UniversalClient) (err error) {
		answer, err = key.EndRun(ctx, client, r.config.TTL, "", string(RunStopped), "", 0)
		return err
	})
	switch {
	case err != nil:
	case answer.Outcome == stream.RunMissing:
		err = ErrNoRun
	case answer.Text != string(RunStopped):
		err = ErrRunEnded
	}
	if err != nil {
		err = fmt.Errorf("redischannels/sse: stop run %q: %w", id, err)
	}
	return err
}

// Info returns how a run stands. The error is ErrNoRun, or that of Redis.
func (r *Runs[T]) Info(ctx context.Context, id string) (RunInfo, error) {
	state, err := r.look(ctx, id)
	if err == nil && state.Epoch == 0 {
		err = fmt.Errorf("redischannels/sse: run %q: %w", id, ErrNoRun)
	}
	return runInfo(id, state), err
}

// List yields the runs that there are, in no order. An error is the last thing yielded.
func (r *Runs[T]) List(ctx context.Context) iter.Seq2[RunInfo, error] {
	return func(yield func(RunInfo, error) bool) {
		for bucket := range r.config.Buckets {
			if more, err := r.listBucket(ctx, bucket, yield); err != nil {
				yield(RunInfo{}, fmt.Errorf("redischannels/sse: list runs: %w", bridge.RedisError(err)))
				return
			} else if !more {
				return
			}
		}
	}
}

// listPage is how many runs are looked at by one round trip, about.
const listPage = 100

// listBucket yields the runs of a bucket. It reports false if the loop was left.
func (r *Runs[T]) listBucket(ctx context.Context, bucket int, yield func(RunInfo, error) bool) (more bool, err error) {
	seen := make(map[string]bool) // a scan may return a member twice
	for cursor := uint64(0); ; {
		if err := r.life.Err(); err != nil {
			return false, err
		}
		var found []string
		if found, cursor, err = r.client.ZScan(ctx, r.index(bucket), cursor, "", listPage).Result(); err != nil {
			return false, err
		}
		var keys []stream.RunID
		for i := 0; i < len(found); i += 2 { // members and scores
			if key, err := r.key(found[i]); err == nil && !seen[found[i]] {
				seen[found[i]] = true
				keys = append(keys, key)
			}
		}
		states, err := stream.LookRuns(ctx, r.client, keys, r.config.TTL)
		if err != nil {
			return false, err
		}
		for i, state := range states {
			if state.Epoch != 0 && !yield(runInfo(keys[i].ID, state), nil) {
				return false, nil
			}
		}
		if cursor == 0 {
			return true, nil
		}
	}
}

func runInfo(id string, s stream.RunState) RunInfo {
	info := RunInfo{ID: id, Epoch: strconv.FormatUint(s.Epoch, 10), Status: RunStatus(s.State), Error: s.Text, Started: s.Started, Pieces: s.Pieces}
	_ = json.Unmarshal([]byte(s.Metadata), &info.Metadata) // what is not ours has none
	return info
}

// Close ends the contexts of the writers of this process, writes what they have buffered, and ends
// their runs as lost, so that another process may start them at once. It waits 5 s at most, and
// returns when nothing is left. Handlers are closed before. It may be called often.
func (r *Runs[T]) Close() error {
	return r.life.Close(func() error {
		r.mu.Lock()
		var closing sync.WaitGroup
		for run := range r.runs {
			closing.Go(run.abandon)
		}
		r.mu.Unlock()
		closing.Wait()
		for _, link := range r.links {
			link.Close()
		}
		r.leave()
		return r.hub.Close()
	})
}

// look returns how a run stands. It is a call of its own.
func (r *Runs[T]) look(ctx context.Context, id string) (state stream.RunState, err error) {
	if err := r.life.Enter(); err != nil {
		return state, err
	}
	defer r.life.Leave()
	key, err := r.key(id)
	if err != nil {
		return state, err
	}
	err = r.link(id).Do(ctx, func(client redis.UniversalClient) (err error) {
		state, err = key.LookRun(ctx, client, r.config.TTL)
		return err
	})
	if err != nil {
		err = fmt.Errorf("redischannels/sse: look at run %q: %w", id, bridge.RedisError(err))
	}
	return state, err
}

// again calls f with the client to use, and once more if that has failed in a way that another
// connection may not: f can be sent twice.
func (r *Runs[T]) again(ctx context.Context, id string, f func(redis.UniversalClient) error) error {
	err := r.link(id).Do(ctx, f)
	for attempt := 1; attempt <= 3 && redisconn.Classify(err).Retryable() && pause(ctx, attempt); attempt++ {
		err = r.link(id).Do(ctx, f)
	}
	return bridge.RedisError(err)
}

// key returns the keys of a run.
func (r *Runs[T]) key(id string) (stream.RunID, error) {
	if id == "" || len(id) > maxRunID {
		return stream.RunID{}, fmt.Errorf("redischannels/sse: run ID: %w: must have 1 to %d bytes, got %d", redischannels.ErrInvalidArgument, maxRunID, len(id))
	}
	bucket := r.bucket(id)
	return stream.RunID{ID: id, Record: r.prefix(bucket) + "run:" + id, Entries: r.prefix(bucket) + "events:" + id, Index: r.index(bucket)}, nil
}

func (r *Runs[T]) bucket(id string) int {
	h := fnv.New32a()
	_, _ = h.Write([]byte(id)) // never an error
	return int(h.Sum32() % uint32(r.config.Buckets))
}

func (r *Runs[T]) link(id string) *redisconn.Link { return r.links[r.bucket(id)] }

func (r *Runs[T]) prefix(bucket int) string {
	return fmt.Sprintf("{%s:%d}:", r.config.Name, bucket)
}

func (r *Runs[T]) index(bucket int) string { return r.prefix(bucket) + "index" }

// validName reports whether a name can stand in a hash tag.
func validName(name string) bool { return name != "" && !strings.ContainsAny(name, "{}\r\n\x00") }

// pause waits before Redis is asked again. It reports false if ctx has ended.
func pause(ctx context.Context, attempt int) bool {
	return backoff.Wait(ctx.Done(), backoff.Redis.After(attempt))
}

package sse

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
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

// maxRunMetadata is the maximum size in bytes.
const maxRunMetadata = 4 << 10

// Runs are streams that begin, are written piece by piece by one writer, and end, such as the
// answer of a model or the progress of a job. Each viewer receives each flushed piece once and in
// order, and then how the run ended, whatever happens to its connection, the writer and this
// process. It is safe for concurrent use.
//
// The application chooses the ID of a run. An ID has one writer at a time. A restart begins a new
// epoch, which viewers receive from its beginning.
type Runs[T any] struct {
	config RunsConfig
	codec  redischannels.Codec
	client redis.UniversalClient
	hub    *redischannels.Hub // of the channels that viewers read
	leave  func()             // unregisters from the caller's hub
	links  []*redisconn.Link  // one per bucket
	life   *lifecycle.State

	mu   sync.Mutex
	runs map[*Run[T]]struct{} // that have a writer here
}

// NewRuns returns runs on the client of a hub. The caller owns the hub, whose Close closes the
// runs. It sends no commands to Redis. The errors wrap [redischannels.ErrInvalidConfig],
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

// Start starts a run and returns its writer. The error is ErrRunning as long as another writer
// has the run; a writer whose lease has expired loses it. A run that has ended is restarted.
func (r *Runs[T]) Start(ctx context.Context, id string) (*Run[T], error) {
	return r.StartWith(ctx, id, nil)
}

// StartWith is Start with metadata that viewers receive before the first piece, up to 4 KiB as
// JSON.
func (r *Runs[T]) StartWith(ctx context.Context, id string, metadata map[string]string) (*Run[T], error) {
	text, _ := json.Marshal(metadata) // never an error: strings
	if len(text) > maxRunMetadata {
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
	err = r.retry(ctx, id, func(client redis.UniversalClient) (err error) {
		answer, err = key.StartRun(ctx, client, r.config.times(), token, string(text))
		return err
	}, thrice)
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

// Stop ends a run as stopped, from any process. Its viewers receive the end at once, and the
// context of its writer ends with its next write, or within a second. For a run that was already
// stopped it returns nil. The errors are ErrNoRun, ErrRunEnded if it has ended in another way, or
// those of Redis, after which it may or may not be stopped.
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
	err = r.retry(ctx, id, func(client redis.UniversalClient) (err error) {
		answer, err = key.EndRun(ctx, client, r.config.TTL, "", string(RunStopped), "", 0)
		return err
	}, thrice)
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

// Close ends the contexts of the writers of this process, writes their buffers, and ends their
// runs as lost, so that another process may start them at once. It waits at most 5 s, and returns
// when all goroutines have ended. Close the handlers first. It may be called several times. Its
// error is that of closing the connections, or [redischannels.ErrCloseTimeout] after 20 s.
func (r *Runs[T]) Close() error {
	return r.life.CloseWithin(0, func() error {
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

// retry calls f, whose command may be sent twice, until it succeeds, ctx ends, the error is
// permanent, or more returns false for the number of failures and the last error.
func (r *Runs[T]) retry(ctx context.Context, id string, f func(redis.UniversalClient) error, more func(failed int, err error) bool) error {
	for failed := 1; ; failed++ {
		err := r.link(id).Do(ctx, f)
		if !redisconn.Classify(err).Retryable() || !more(failed, err) || !backoff.Wait(ctx.Done(), backoff.Redis.After(failed)) {
			return bridge.RedisError(err)
		}
	}
}

// thrice is the more of calls for which a caller waits.
func thrice(failed int, _ error) bool { return failed <= 3 }

// always is the more of calls that continue after an outage.
func always(int, error) bool { return true }

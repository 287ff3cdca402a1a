package sse

import (
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/flaminco/redischannels/internal/bridge"
	"github.com/flaminco/redischannels/internal/stream"
)

// RunInfo is the state of a run.
type RunInfo struct {
	ID       string            `json:"id"`
	Epoch    string            `json:"epoch"` // greater than those of earlier runs of this ID
	Status   RunStatus         `json:"status"`
	Error    string            `json:"error,omitempty"` // of RunFailed
	Started  time.Time         `json:"started"`         // by the clock of the server
	Pieces   int64             `json:"pieces"`
	Metadata map[string]string `json:"metadata,omitempty"`
}

// RunStatus is the status of a run.
type RunStatus string

// The statuses of a run.
const (
	RunRunning RunStatus = "running"
	RunDone    RunStatus = "done"
	RunFailed  RunStatus = "failed"
	RunStopped RunStatus = "stopped"
	RunLost    RunStatus = "lost" // the lease of the writer has expired
)

// Info returns the state of a run. The error is ErrNoRun, or that of Redis.
func (r *Runs[T]) Info(ctx context.Context, id string) (RunInfo, error) {
	state, err := r.look(ctx, id)
	switch {
	case err != nil:
		return RunInfo{}, err
	case state.Epoch == 0:
		return RunInfo{}, fmt.Errorf("redischannels/sse: run %q: %w", id, ErrNoRun)
	}
	return runInfo(id, state), nil
}

// List yields the existing runs, in no order. An error ends the list.
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

// listPage is the approximate number of runs that are read by one round trip.
const listPage = 100

// listBucket yields the runs of a bucket. It returns false if the loop was left.
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
	_ = json.Unmarshal([]byte(s.Metadata), &info.Metadata) // foreign records have none
	return info
}

// look returns the state of a run. It is a separate call.
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
		err = fmt.Errorf("redischannels/sse: read run %q: %w", id, bridge.RedisError(err))
	}
	return state, err
}

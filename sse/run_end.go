package sse

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/flaminco/redischannels/internal/stream"
)

// abandonWait bounds how long Close waits for Redis.
const abandonWait = 5 * time.Second

// End ends the run when everything that was written is in Redis: as done for nil, as stopped for an
// error that wraps ErrStopped, as failed for others, whose text (1,024 bytes at most) viewers get.
// Nothing can be written from then on. It waits out outages until ctx ends. It returns nil as well
// for a run that Stop has ended. After the error of ctx, or of Redis, the run may have ended; End may
// be called again, and without that the run is lost when its lease is over. Other errors are the
// cause of Context: the run has ended otherwise.
func (r *Run[T]) End(ctx context.Context, cause error) error {
	status, text := RunDone, ""
	switch {
	case errors.Is(cause, ErrStopped):
		status = RunStopped
	case cause != nil:
		status, text = RunFailed, cause.Error()
	}
	if err := r.runs.life.Enter(); err != nil {
		return err
	}
	defer r.runs.life.Leave()
	err := r.end(ctx, status, text, ErrRunEnded)
	if errors.Is(err, ErrStopped) {
		return nil
	}
	return err
}

// end writes the end of the run behind its pieces. over is what writing returns afterwards.
func (r *Run[T]) end(ctx context.Context, status RunStatus, text string, over error) error {
	r.mu.Lock()
	r.ending = true
	r.mu.Unlock()
	if err := r.Flush(ctx); err != nil {
		return err
	}
	r.mu.Lock()
	number, err := r.number, r.err
	r.mu.Unlock()
	switch {
	case errors.Is(err, ErrRunEnded):
		return nil
	case err != nil:
		return err
	}
	var answer stream.RunAnswer
	err = r.runs.retry(ctx, r.id, func(client redis.UniversalClient) (err error) {
		answer, err = r.key.EndRun(ctx, client, r.runs.config.TTL, r.epoch, string(status), text, number)
		return err
	}, always)
	switch {
	case err != nil:
		return fmt.Errorf("redischannels/sse: end run %q: %w", r.id, err)
	case answer.Outcome == stream.RunEnded && answer.Text == string(status):
		_ = r.finish(over)
		return nil
	}
	return r.finish(outcomeError(answer))
}

// outcomeError is why a writer cannot write after an answer.
func outcomeError(answer stream.RunAnswer) error {
	switch {
	case answer.Outcome == stream.RunSuperseded:
		return ErrSuperseded
	case answer.Outcome == stream.RunMissing:
		return fmt.Errorf("%w: Redis no longer has all of it", ErrLost)
	case answer.Text == string(RunStopped):
		return ErrStopped
	case answer.Text == string(RunLost):
		return ErrLost
	}
	return ErrRunEnded
}

// finish ends writing. It returns the error that writing returns from now on, which the first
// call decides.
func (r *Run[T]) finish(err error) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err != nil {
		return r.err
	}
	r.err = r.failure(err)
	r.pieces, r.bytes = nil, 0
	r.cancel(r.err)
	r.advance()
	r.die()
	return r.err
}

// abandon ends the run because its Runs are closed.
func (r *Run[T]) abandon() {
	closed := r.runs.life.Err()
	r.cancel(closed)
	ctx, cancel := context.WithTimeout(context.Background(), abandonWait)
	defer cancel()
	if err := r.end(ctx, RunLost, "", closed); err != nil && r.alive.Err() == nil {
		r.runs.config.OnError(err)
	}
	_ = r.finish(closed)
}

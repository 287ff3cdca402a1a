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

// End ends the run when all written values are in Redis: as done for nil, as stopped for an error
// that wraps ErrStopped, and as failed for any other error, whose text (at most 1,024 bytes)
// viewers receive. Then nothing can be written. During an outage it retries until ctx ends. It
// also returns nil for a run that Stop has ended. After an error of ctx or of Redis the run may
// or may not have ended. End may then be called again; otherwise the run is lost when its lease
// expires. Any other error is the cause of Context: the run has ended in another way.
func (r *Run[T]) End(ctx context.Context, cause error) error {
	status, text := RunDone, ""
	switch {
	case errors.Is(cause, ErrStopped):
		status = RunStopped
	case cause != nil:
		status, text = RunFailed, cause.Error()
	}
	err := r.end(ctx, status, text, ErrRunEnded)
	if errors.Is(err, ErrStopped) {
		return nil
	}
	return err
}

// end writes the end of the run behind its pieces. over is the error of later writes.
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
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(r.alive, cancel)() // another call has ended it, such as Close
	var answer stream.RunAnswer
	err = r.runs.retry(ctx, r.id, func(client redis.UniversalClient) (err error) {
		answer, err = r.key.EndRun(ctx, client, r.runs.config.TTL, r.epoch, string(status), text, number)
		return err
	}, always)
	switch {
	case err != nil && r.alive.Err() != nil:
		return r.Flush(ctx) // it is over, by another call
	case err != nil:
		return fmt.Errorf("redischannels/sse: end run %q: %w", r.id, err)
	case answer.Outcome == stream.RunEnded && answer.Text == string(status):
		_ = r.finish(over)
		return nil
	}
	return r.finish(outcomeError(answer))
}

// outcomeError returns why a writer cannot write after a reply.
func outcomeError(answer stream.RunAnswer) error {
	switch {
	case answer.Outcome == stream.RunSuperseded:
		return ErrSuperseded
	case answer.Outcome == stream.RunMissing:
		return fmt.Errorf("%w: Redis no longer has the complete run", ErrLost)
	case answer.Text == string(RunStopped):
		return ErrStopped
	case answer.Text == string(RunLost):
		return ErrLost
	}
	return ErrRunEnded
}

// finish ends writing. It returns the error of later writes, which the first call sets.
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

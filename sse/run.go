package sse

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/bridge"
	"github.com/flaminco/redischannels/internal/redisconn"
	"github.com/flaminco/redischannels/internal/stream"
)

const (
	// pieceSize is what a piece costs in the buffer of a writer beside its payload, about.
	pieceSize = 64
	// sendPieces and sendBytes bound one append, for which Redis does nothing else.
	sendPieces = 256
	sendBytes  = 256 << 10
	// abandonWait bounds how long Close waits for Redis.
	abandonWait = 5 * time.Second
)

// Run is the writer of one epoch of a run. It is safe for concurrent use. It must be ended by End,
// or by Close of its Runs; otherwise it renews its lease as long as the process lives.
type Run[T any] struct {
	runs  *Runs[T]
	id    string
	key   stream.RunID
	epoch string

	ctx    context.Context // of the application: ends when nothing can be written any more
	cancel context.CancelCauseFunc
	urgent chan struct{}   // pieces are to be sent now
	filled chan struct{}   // the buffer was empty, and is not
	alive  context.Context // until err is set
	die    context.CancelFunc

	mu      sync.Mutex
	pieces  [][]byte // that are not known to be in Redis, in order
	bytes   int      // of them
	number  uint64   // of the last piece that is known to be there
	changed chan struct{}
	ending  bool  // by End: there are no more pieces
	err     error // why nothing can be written any more
}

func newRun[T any](runs *Runs[T], id string, key stream.RunID, epoch string) *Run[T] {
	r := &Run[T]{
		runs: runs, id: id, key: key, epoch: epoch,
		urgent:  make(chan struct{}, 1),
		filled:  make(chan struct{}, 1),
		changed: make(chan struct{}),
	}
	r.ctx, r.cancel = context.WithCancelCause(context.Background())
	r.alive, r.die = context.WithCancel(context.Background())
	runs.mu.Lock()
	runs.runs[r] = struct{}{}
	runs.mu.Unlock()
	runs.life.Go(r.keep)
	return r
}

// ID returns the ID of the run.
func (r *Run[T]) ID() string { return r.id }

// Epoch returns the epoch of this writer: a number that is greater than that of all before.
func (r *Run[T]) Epoch() string { return r.epoch }

// Context ends when nothing can be written any more. Its cause wraps ErrStopped after Stop,
// ErrSuperseded, ErrLost, ErrRunEnded after End, or [redischannels.ErrClosed]; or it is an error of
// Redis that does not pass, such as one that wraps [redischannels.ErrPermission].
func (r *Run[T]) Context() context.Context { return r.ctx }

// Write appends values to the run. They are buffered, and sent together with others soon; while
// Redis cannot be reached they wait, and so does Write when the buffer is full, until ctx ends. An
// error means that none of the values is written: one that cannot be encoded, is too large
// ([redischannels.ErrTooLarge]), that of ctx, or the cause of Context. Whether buffered values are
// in Redis is known by Flush and End only.
func (r *Run[T]) Write(ctx context.Context, values ...T) error {
	pieces := make([][]byte, len(values))
	size := 0
	for i := range values {
		piece, err := r.encode(&values[i])
		if err != nil {
			return fmt.Errorf("redischannels/sse: write to run %q: %w", r.id, err)
		}
		pieces[i] = piece
		size += len(piece) + pieceSize
	}
	for {
		changed, err := r.buffer(pieces, size)
		if changed == nil {
			return err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// encode returns the payload of a value. A panic of the codec is an error.
func (r *Run[T]) encode(value *T) (piece []byte, err error) {
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("the codec panicked: %v", v)
		}
	}()
	if piece, err = r.runs.codec.Encode(value); err != nil {
		return nil, fmt.Errorf("encode: %w", err)
	}
	if len(piece) > r.runs.config.BufferBytes {
		return nil, fmt.Errorf("%w: a piece of %d bytes, the limit is %d (RunsConfig.BufferBytes)", redischannels.ErrTooLarge, len(piece), r.runs.config.BufferBytes)
	}
	return piece, nil
}

// buffer adds pieces, or returns what is closed when there may be room.
func (r *Run[T]) buffer(pieces [][]byte, size int) (full <-chan struct{}, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.err != nil:
		return nil, r.err
	case r.ending:
		return nil, r.failure(ErrRunEnded)
	case len(r.pieces) > 0 && r.bytes+size > r.runs.config.BufferBytes:
		signal(r.urgent)
		return r.changed, nil
	case len(pieces) == 0:
		return nil, nil
	}
	if len(r.pieces) == 0 {
		signal(r.filled)
	}
	r.pieces = append(r.pieces, pieces...)
	r.bytes += size
	return nil, nil
}

// Flush returns when everything that was written before is in Redis, where viewers see it. The
// error is that of ctx, and then it may get there later, or the cause of Context, and then a part
// of it may be there.
func (r *Run[T]) Flush(ctx context.Context) error {
	r.mu.Lock()
	target, err := r.number+uint64(len(r.pieces)), r.err
	r.mu.Unlock()
	if err != nil { // what was in the buffer is no longer there
		if errors.Is(err, ErrRunEnded) {
			return nil
		}
		return err
	}
	signal(r.urgent)
	for {
		r.mu.Lock()
		reached, changed, err := r.number >= target, r.changed, r.err
		r.mu.Unlock()
		switch {
		case reached:
			return nil
		case err != nil:
			return err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

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
	if errors.Is(err, ErrRunEnded) {
		return nil
	} else if err != nil {
		return err
	}
	answer, err := r.writeEnd(ctx, status, text, number)
	switch {
	case err != nil:
		return fmt.Errorf("redischannels/sse: end run %q: %w", r.id, bridge.RedisError(err))
	case answer.Outcome == stream.RunEnded && answer.Text == string(status):
		_ = r.finish(over)
		return nil
	}
	return r.finish(outcomeError(answer))
}

// writeEnd tries until there is an answer, ctx ends, or trying does not help.
func (r *Run[T]) writeEnd(ctx context.Context, status RunStatus, text string, number uint64) (answer stream.RunAnswer, err error) {
	for attempt := 1; ; attempt++ {
		err = r.runs.link(r.id).Do(ctx, func(client redis.UniversalClient) (err error) {
			answer, err = r.key.EndRun(ctx, client, r.runs.config.TTL, r.epoch, string(status), text, number)
			return err
		})
		if !redisconn.Classify(err).Retryable() || !pause(ctx, attempt) {
			return answer, err
		}
	}
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

func (r *Run[T]) failure(err error) error {
	return fmt.Errorf("redischannels/sse: write to run %q: %w", r.id, err)
}

// advance wakes those who wait for the buffer. The lock is held.
func (r *Run[T]) advance() {
	close(r.changed)
	r.changed = make(chan struct{})
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

// keep sends what is in the buffer and renews the lease, until the run is over.
func (r *Run[T]) keep() {
	defer r.forget()
	renew := time.NewTicker(r.runs.config.renewal())
	defer renew.Stop()
	coalesce := time.NewTimer(time.Hour)
	coalesce.Stop()
	defer coalesce.Stop()
	for {
		select {
		case <-r.filled:
			if wait := r.runs.config.Coalesce; wait != NoCoalesce {
				coalesce.Reset(wait)
				continue
			}
		case <-coalesce.C:
		case <-r.urgent:
		case <-renew.C:
		case <-r.alive.Done():
			return
		}
		r.send()
	}
}

// forget removes the run from those that Close ends.
func (r *Run[T]) forget() {
	r.runs.mu.Lock()
	defer r.runs.mu.Unlock()
	delete(r.runs.runs, r)
}

// send sends what is in the buffer, or renews the lease if there is nothing. It tries until it
// succeeds or the run is over.
func (r *Run[T]) send() {
	for renew := true; ; renew = false {
		number, pieces, ending := r.next()
		if len(pieces) == 0 && (!renew || ending) {
			return // an End that has failed leaves the run to its lease
		}
		answer, ok := r.append(number, pieces)
		switch {
		case !ok:
			return
		case answer.Outcome != stream.RunAppended:
			_ = r.finish(outcomeError(answer))
			return
		}
		r.sent(pieces)
	}
}

// next returns the pieces of the next append and the number of the first of them.
func (r *Run[T]) next() (number uint64, pieces [][]byte, ending bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	n, bytes := 0, 0
	for n < len(r.pieces) && n < sendPieces && (n == 0 || bytes+len(r.pieces[n]) <= sendBytes) {
		bytes += len(r.pieces[n])
		n++
	}
	return r.number + 1, slices.Clone(r.pieces[:n]), r.ending
}

// append sends pieces until there is an answer. It reports false when the run is over.
func (r *Run[T]) append(number uint64, pieces [][]byte) (answer stream.RunAnswer, ok bool) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		select {
		case <-r.alive.Done():
			cancel()
		case <-ctx.Done():
		}
	}()
	for attempt := 1; ; attempt++ {
		err := r.runs.link(r.id).Do(r.alive, func(client redis.UniversalClient) (err error) {
			answer, err = r.key.AppendRun(r.alive, client, r.runs.config.times(), r.epoch, number, pieces)
			return err
		})
		switch {
		case err == nil:
			return answer, true
		case !redisconn.Classify(err).Retryable():
			_ = r.finish(bridge.RedisError(err))
			return answer, false
		case attempt == 1:
			r.runs.config.OnError(r.failure(bridge.RedisError(err)))
		}
		if !pause(r.alive, attempt) {
			return answer, false
		}
	}
}

// sent removes pieces that are in Redis from the buffer.
func (r *Run[T]) sent(pieces [][]byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err != nil {
		return
	}
	for _, piece := range pieces {
		r.bytes -= len(piece) + pieceSize
	}
	r.pieces = r.pieces[len(pieces):]
	if len(r.pieces) == 0 {
		r.pieces = nil
	}
	r.number += uint64(len(pieces))
	r.advance()
}

// signal wakes the receiver of a channel, if it is not yet to wake.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

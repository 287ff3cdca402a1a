package sse

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/stream"
)

// pieceSize is what a piece takes in the buffer of a writer besides its payload, approximately.
const pieceSize = 64

// Run is the writer of one epoch of a run. It is safe for concurrent use. It must be ended by
// End, or by Close of its Runs; otherwise it renews its lease as long as the process runs.
type Run[T any] struct {
	runs  *Runs[T]
	id    string
	key   stream.RunID
	epoch string

	ctx    context.Context // of the application: ends when nothing can be written
	cancel context.CancelCauseFunc
	urgent chan struct{}   // pieces are to be sent now
	filled chan struct{}   // the buffer was empty, and is not
	alive  context.Context // until err is set
	die    context.CancelFunc

	mu      sync.Mutex
	pieces  [][]byte // that are not certainly in Redis, in order
	bytes   int      // of them
	number  uint64   // of the last piece that is certainly there
	changed chan struct{}
	ending  bool  // by End: there are no more pieces
	err     error // why nothing can be written
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

// Epoch returns the epoch of this writer: a number that is greater than those of all earlier
// writers.
func (r *Run[T]) Epoch() string { return r.epoch }

// Context returns a context that ends when nothing can be written. Its cause wraps ErrStopped
// after Stop, ErrSuperseded, ErrLost, ErrRunEnded after End, or [redischannels.ErrClosed]; or it
// is a permanent error of Redis, such as one that wraps [redischannels.ErrPermission].
func (r *Run[T]) Context() context.Context { return r.ctx }

// Write appends values to the run. They are buffered, and sent soon together with others. While
// Redis cannot be reached they stay in the buffer; if they do not fit into it, Write waits until
// ctx ends. With an error none of the values is written. It is the error of a value that cannot
// be encoded, [redischannels.ErrTooLarge] if the values exceed RunsConfig.BufferBytes, the error
// of ctx, or the cause of Context.
// Only Flush and End confirm that buffered values are in Redis.
func (r *Run[T]) Write(ctx context.Context, values ...T) error {
	pieces := make([][]byte, len(values))
	size := 0
	for i := range values {
		piece, err := r.encode(&values[i])
		if err != nil {
			return r.failure(err)
		}
		pieces[i] = piece
		size += len(piece) + pieceSize
	}
	if limit := r.runs.config.BufferBytes; size > limit {
		return r.failure(fmt.Errorf("%w: %d values take %d bytes of the buffer, the limit is %d (RunsConfig.BufferBytes)", redischannels.ErrTooLarge, len(values), size, limit))
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
	defer recovered(&err, "the codec")
	if piece, err = r.runs.codec.Encode(value); err != nil {
		return nil, fmt.Errorf("encode: %w", err)
	}
	return piece, nil
}

// buffer adds pieces, or returns a channel that is closed when there may be room.
func (r *Run[T]) buffer(pieces [][]byte, size int) (full <-chan struct{}, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.err != nil:
		return nil, r.err
	case r.ending:
		return nil, r.failure(ErrRunEnded)
	case r.bytes+size > r.runs.config.BufferBytes:
		signal(r.urgent)
		return r.changed, nil
	}
	if len(r.pieces) == 0 {
		signal(r.filled)
	}
	r.pieces = append(r.pieces, pieces...)
	r.bytes += size
	return nil, nil
}

// Flush returns when all values written before are in Redis, where viewers receive them. The
// error is that of ctx, after which the values may be written later, or the cause of Context,
// after which a part of them may be written.
func (r *Run[T]) Flush(ctx context.Context) error {
	r.mu.Lock()
	target, err := r.number+uint64(len(r.pieces)), r.err
	r.mu.Unlock()
	if err != nil { // the buffer was dropped
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

func (r *Run[T]) failure(err error) error {
	return fmt.Errorf("redischannels/sse: write to run %q: %w", r.id, err)
}

// advance wakes the callers that wait for the buffer. The lock is held.
func (r *Run[T]) advance() {
	close(r.changed)
	r.changed = make(chan struct{})
}

package redischannels

import (
	"context"
	"fmt"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/flaminco/redischannels/internal/source"
)

// Defaults of [BatchConfig].
const (
	DefaultBatchSize  = 100
	DefaultBatchBytes = 4 << 20
	DefaultBatchWait  = 100 * time.Millisecond
)

const (
	// UnlimitedBatchBytes as BatchConfig.Bytes bounds batches by their number of values only.
	UnlimitedBatchBytes = -1
	// NoBatchWait as BatchConfig.Wait makes a batch of the values that are buffered when its
	// first value arrives.
	NoBatchWait time.Duration = -1
)

// BatchConfig configures [Reader.HandleBatch]. The zero value makes batches of up to 100
// values, one batch at a time.
//
// Size times Concurrency values are in flight together. If neither the channel nor its hub
// configures MaxInFlight, it is raised to that number. A configured MaxInFlight below it is an
// error.
type BatchConfig struct {
	// Size is the maximum number of values in a batch, 1 to 100,000. A batch of this size is
	// delivered at once. Higher means fewer calls, and more values that are redelivered after a
	// crash. Defaults to DefaultBatchSize.
	Size int

	// Bytes is the maximum size of the entries of a batch, at least 1. A single entry may exceed
	// it. Tuning.PrefetchBytes also bounds the entries in flight, and so the size of batches.
	// Defaults to DefaultBatchBytes; UnlimitedBatchBytes turns it off.
	Bytes int

	// Wait is how long a batch waits for further values after its first one, at least 1 ms. It
	// adds to the latency of a value if few arrive. Defaults to DefaultBatchWait; NoBatchWait
	// turns it off.
	Wait time.Duration

	// Concurrency is the number of batches that are handled at a time. Defaults to
	// DefaultConcurrency.
	Concurrency int

	// Ordered delivers one batch at a time, in stream order: redelivered values come before those
	// behind them. It needs a Concurrency of 1. Without it there is no order among values, except
	// those of the same OrderingKey.
	Ordered bool
}

// Validate reports every problem of the configuration in one joined error. Each names
// its field and wraps [ErrInvalidConfig]. The MaxInFlight of a channel is checked by
// [Reader.HandleBatch].
func (c BatchConfig) Validate() error {
	v := validation{prefix: "BatchConfig"}
	c.withDefaults().validate(&v)
	return v.err()
}

func (c BatchConfig) validate(v *validation) {
	v.intRange("Size", c.Size, 1, maxInFlightLimit, "")
	v.intRange("Concurrency", c.Concurrency, 1, maxInFlightLimit, "")
	if c.Bytes != UnlimitedBatchBytes {
		v.intRange("Bytes", c.Bytes, 1, 1<<40, "UnlimitedBatchBytes")
	}
	if c.Wait != NoBatchWait {
		v.duration("Wait", c.Wait, time.Millisecond)
	}
	if c.Ordered && c.Concurrency > 1 {
		v.addf("Ordered", "needs a Concurrency of 1, got %d", c.Concurrency)
	}
	if c.Concurrency > 0 && c.Size > maxInFlightLimit/c.Concurrency {
		v.addf("Size", "must be at most %d together with Concurrency, got %d times %d", maxInFlightLimit, c.Size, c.Concurrency)
	}
}

// withDefaults returns a copy in which zeros are replaced.
func (c BatchConfig) withDefaults() BatchConfig {
	c.Size = orDefault(c.Size, DefaultBatchSize)
	c.Bytes = orDefault(c.Bytes, DefaultBatchBytes)
	c.Wait = orDefault(c.Wait, DefaultBatchWait)
	c.Concurrency = orDefault(c.Concurrency, DefaultConcurrency)
	return c
}

// limits returns those of one batch.
func (c BatchConfig) limits() source.Limits {
	return source.Limits{Max: c.Size, Bytes: max(0, c.Bytes), Wait: max(0, c.Wait)}
}

// BatchError is the error of a batch that has failed in part: see [Reader.HandleBatch].
type BatchError struct {
	Failed []int // indexes of the deliveries to nack; the others are acknowledged
	Err    error // the cause, or nil
}

// Error implements error.
func (e *BatchError) Error() string {
	if e.Err == nil {
		return fmt.Sprintf("redischannels: %d values of a batch have failed", len(e.Failed))
	}
	return fmt.Sprintf("redischannels: %d values of a batch have failed: %v", len(e.Failed), e.Err)
}

// Unwrap returns the cause.
func (e *BatchError) Unwrap() error { return e.Err }

// ReceiveBatch returns 1 to n deliveries. Each must be ended, like that of [Reader.Receive]. It
// waits for the first one until ctx ends or the reader is closed, and then for further ones until
// there are n, or for wait. With an error it returns no deliveries. A value that cannot be
// decoded is left out, and its *[DecodeError] is the error of the next read.
//
// If neither the channel nor its hub configures MaxInFlight, it is raised to n. An n above a
// configured MaxInFlight is an error that wraps [ErrInvalidArgument].
func (r *Reader[T]) ReceiveBatch(ctx context.Context, n int, wait time.Duration) ([]Delivery[T], error) {
	if n < 1 || n > maxInFlightLimit || r.transport.fixed && n > r.transport.limit {
		most := maxInFlightLimit
		if r.transport.fixed {
			most = r.transport.limit
		}
		return nil, invalidArgument("n", fmt.Errorf("must be 1 to MaxInFlight (%d), got %d", most, n))
	}
	if wait < 0 {
		return nil, invalidArgument("wait", fmt.Errorf("must not be negative, got %v", wait))
	}
	if err := r.adjust(ctx, n, false); err != nil {
		return nil, err
	}
	for {
		attempts, err := r.source.next(ctx, nil, source.Limits{Max: n, Wait: wait})
		if err != nil {
			return nil, err
		}
		batch, failures := r.decodeBatch(attempts)
		r.source.returnError(failures...)
		for i := range batch {
			batch[i].unacked = &r.unacked
			r.unacked.add(batch[i].ID, batch[i].attempt)
		}
		if len(batch) > 0 {
			return batch, nil
		}
	}
}

// adjust sets how many deliveries may be in flight, and whether they are in order.
func (r *Reader[T]) adjust(ctx context.Context, n int, ordered bool) error {
	src, err := r.source.open(ctx)
	if err != nil {
		return err
	}
	if a, ok := src.(source.Adjuster); ok && (ordered || n > r.transport.limit) {
		a.Adjust(n, ordered)
	}
	return nil
}

// decodeBatch returns the deliveries of attempts, and the errors of those that cannot be decoded.
func (r *Reader[T]) decodeBatch(attempts []*source.Attempt) (batch []Delivery[T], failures []error) {
	batch = make([]Delivery[T], 0, len(attempts))
	for _, a := range attempts {
		value, metadata, err := r.value(a)
		if err == nil {
			batch = append(batch, r.delivery(a, value, metadata))
		} else if err = r.refuse(a, err); !isSkip(err) {
			failures = append(failures, err)
		}
	}
	if len(batch) > 0 && batch[0].attempt.From.Watcher != nil {
		decoded := make([]*source.Attempt, len(batch))
		for i := range batch {
			decoded[i] = batch[i].attempt
		}
		watchAll(decoded, func(i int) message.Metadata { return batch[i].Metadata })
	}
	return batch, failures
}

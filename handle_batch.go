package redischannels

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync/atomic"

	"github.com/ThreeDotsLabs/watermill"

	"github.com/flaminco/redischannels/internal/source"
)

// HandleBatch calls fn for batches of values until ctx ends or the reader is closed. It then
// waits for running calls and returns nil. It is for operations that are cheaper for many values
// than for each, such as an insert.
//
// When fn returns nil the batch is acknowledged. A *[BatchError] nacks the deliveries that it
// names and acknowledges the others. Any other error, a panic, and a *BatchError that names no
// delivery or one that does not exist, nack the whole batch. A delivery that fn has ended itself,
// by one of its methods, stays so. With an ordering key, and with Ordered, a delivery behind a
// nacked one is not acknowledged but redelivered behind it, which does not count.
//
// A batch that was nacked as a whole is redelivered at once as 16 smaller ones, and each of these
// that fails again as single values. A value that always fails is therefore alone from its third
// delivery on, and only then backs off. A value whose next delivery would be the last before
// MaxDeliveries is always delivered alone: no value is dead-lettered because of its neighbors.
//
// The error, or the Err of a *BatchError, is the reason of the dead letter as with
// [Reader.Handle]. [Permanent] and [WithRetryAfter] apply to the deliveries that a *BatchError
// names, and to a single delivery; a larger batch that fails as a whole is first redelivered in
// parts.
//
// The context of fn has the values of ctx. It is not canceled with ctx but DrainTimeout later, so
// that a running call can finish. HandlerTimeout begins for each delivery when it joins the
// batch, even while the batch waits for more. The context of fn ends with the first timeout. If
// all deliveries time out, the batch has failed as a whole. The other errors are those of
// [Reader.Handle] and of config, which wrap [ErrInvalidConfig].
func (r *Reader[T]) HandleBatch(ctx context.Context, fn func(ctx context.Context, batch []Delivery[T]) error, config BatchConfig) error {
	v := validation{prefix: "BatchConfig"}
	config = config.withDefaults()
	config.validate(&v)
	if fixed := r.transport.limit; r.transport.fixed && len(v.errs) == 0 && config.Size*config.Concurrency > fixed {
		v.addf("Size", "must be at most MaxInFlight of the channel (%d) together with Concurrency, got %d times %d", fixed, config.Size, config.Concurrency)
	}
	if err := errors.Join(missingFunction(fn == nil), v.err()); err != nil {
		return err
	}
	if err := r.adjust(ctx, config.Size*config.Concurrency, config.Ordered); err != nil {
		return r.openError(ctx, err)
	}
	b := &batching[T]{reader: r, logger: r.transport.logger, fn: fn, limits: config.limits()}
	return r.work(ctx, config.Concurrency, b.work)
}

// batching is one call of HandleBatch.
type batching[T any] struct {
	reader *Reader[T]
	logger watermill.LoggerAdapter
	fn     func(context.Context, []Delivery[T]) error
	limits source.Limits
}

// work handles batches one after the other.
func (b *batching[T]) work(ctx context.Context, w *worker) {
	var attempts []*source.Attempt
	for {
		var err error
		attempts, err = b.reader.source.next(ctx, attempts[:0], b.limits)
		switch {
		case err == nil:
			b.handle(ctx, w, attempts)
			clear(attempts) // for the garbage collector
		case isReported(err):
			b.logger.Error("Entries cannot be read", err, watermill.LogFields{"topic": b.reader.source.topic})
		default:
			return // ctx has ended, or the subscription
		}
	}
}

// handle calls fn with the values of attempts and ends the attempts.
func (b *batching[T]) handle(ctx context.Context, w *worker, attempts []*source.Attempt) {
	batch, failures := b.reader.decodeBatch(attempts)
	for _, err := range failures {
		b.logger.Error("A value was not handled", err, watermill.LogFields{"topic": b.reader.source.topic})
	}
	if len(batch) == 0 {
		return
	}
	attempts = attempts[:0]
	for i := range batch { // fn may change the batch
		attempts = append(attempts, batch[i].attempt)
	}
	whole := wholeOutcomes(len(attempts), attempts[0].Split)
	expireTogether(attempts, whole)
	handling, cancel := handlingContext(ctx, attempts[0])
	w.begin(nil, cancel)
	err := safely(func() error { return b.fn(handling, batch) })
	w.end()
	b.end(attempts, whole, err)
}

// handlingContext returns the context of a call for a batch, which ends with the timeout of its first attempt.
func handlingContext(ctx context.Context, first *source.Attempt) (context.Context, context.CancelFunc) {
	ctx = context.WithoutCancel(ctx)
	if first.From.Watcher != nil {
		ctx = &valuesContext{context.WithoutCancel(first.Values()), ctx}
	}
	if deadline, ok := first.Deadline(); ok {
		return context.WithDeadline(ctx, deadline)
	}
	return context.WithCancel(ctx)
}

// end ends attempts with the result of fn. An attempt that fn has ended is no longer pending.
func (b *batching[T]) end(attempts []*source.Attempt, whole func(i int) source.Outcome, err error) {
	outcomes := batchOutcomes(len(attempts), whole, err)
	ignored := 0
	var cause error
	for i, a := range attempts {
		err := endHandled(a, outcomes(i))
		if err != nil && !errors.Is(err, source.ErrNotPending) && !errors.Is(err, source.ErrOutOfOrder) {
			ignored++
			cause = endError(err)
		}
	}
	fields := watermill.LogFields{"topic": b.reader.source.topic, "values": len(attempts), "first_id": idOf(attempts[0])}
	if err != nil {
		b.logger.Error("A batch was not handled", explained(err, len(attempts)), fields)
	}
	if ignored > 0 {
		b.logger.Info("The end of deliveries is ignored", fields.Add(watermill.LogFields{"ignored": ignored, "err": cause}))
	}
}

// expireTogether makes attempts whose timeout expires end as a batch that has failed as a whole.
func expireTogether(attempts []*source.Attempt, whole func(i int) source.Outcome) {
	if attempts[0].From.Timeout <= 0 {
		return
	}
	for i, a := range attempts {
		a.Request(whole(i))
	}
}

// splitParts is the number of parts of a batch that has failed as a whole.
const splitParts = 16

// splits is the last number of a part.
var splits atomic.Int64

// batchOutcomes returns the outcomes of the attempts of a batch of n for the error of fn. whole
// returns their outcomes if all have failed.
func batchOutcomes(n int, whole func(i int) source.Outcome, err error) func(i int) source.Outcome {
	ack := source.Outcome{Kind: source.Ack}
	if err == nil {
		return func(int) source.Outcome { return ack }
	}
	var part *BatchError
	if !errors.As(err, &part) || !part.fits(n) {
		return wholeFailed(n, whole, err)
	}
	nack := failedOutcome(source.Outcome{Kind: source.Nack, Delay: source.OwnersDelay}, cmp.Or(part.Err, err))
	failed := make([]bool, n)
	for _, i := range part.Failed {
		failed[i] = true
	}
	return func(i int) source.Outcome {
		if failed[i] {
			return nack
		}
		return ack
	}
}

// wholeFailed returns the outcomes of the attempts of a batch of n that has failed as a whole
// with err. The request of err, such as Permanent, applies only to a single value: it may not be
// meant for the others.
func wholeFailed(n int, whole func(i int) source.Outcome, err error) func(i int) source.Outcome {
	failed := failedOutcome(whole(0), err)
	return func(i int) source.Outcome {
		if n == 1 {
			return failed
		}
		o := whole(i)
		o.Cause = failed.Cause
		return o
	}
}

// wholeOutcomes returns the outcomes of the attempts of a batch of n that has failed as a whole.
// split is the number of the part if the batch was one.
func wholeOutcomes(n, split int) func(i int) source.Outcome {
	whole := source.Outcome{Kind: source.Nack, Split: source.Single}
	switch {
	case n == 1:
		whole.Delay = source.OwnersDelay
	case split == 0 && n > splitParts:
		first := int(splits.Add(splitParts)) - splitParts + 1
		return func(i int) source.Outcome {
			part := whole
			part.Split = first + i*splitParts/n
			return part
		}
	}
	return func(int) source.Outcome { return whole }
}

// explained returns the error with which a batch of n is logged. For a BatchError that nacks the
// whole batch it has the reason.
func explained(err error, n int) error {
	var part *BatchError
	if !errors.As(err, &part) || part.fits(n) {
		return err
	}
	got := "none"
	if i := slices.IndexFunc(part.Failed, func(i int) bool { return i < 0 || i >= n }); i >= 0 {
		got = strconv.Itoa(part.Failed[i])
	}
	return fmt.Errorf("the whole batch is nacked: BatchError.Failed must have indexes from 0 to %d, got %s: %w", n-1, got, err)
}

// fits reports whether the error names deliveries of a batch of n.
func (e *BatchError) fits(n int) bool {
	return len(e.Failed) > 0 && !slices.ContainsFunc(e.Failed, func(i int) bool { return i < 0 || i >= n })
}

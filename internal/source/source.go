// Package source defines the common types of the consumers of a topic: a Source, which returns
// attempts, and the Attempt, one attempt to handle one message. It has no policy: the Owner of an
// attempt handles its outcome.
package source

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Source is a subscription from which attempts are taken.
type Source interface {
	// NextBatch appends attempts to dst. It waits for the first one, then until limits are
	// reached, and is safe for concurrent use. It returns an error only without an attempt:
	// that of ctx, ErrClosed, ErrEnded, or a *GapError, after which it can be called again.
	NextBatch(ctx context.Context, dst []*Attempt, limits Limits) ([]*Attempt, error)

	// Close ends the subscription: it releases undelivered messages, waits for the running
	// attempts within the bound of its configuration, and returns when all goroutines have ended
	// or ctx ends.
	Close(ctx context.Context) error
}

// Limits bound one NextBatch.
type Limits struct {
	Max   int           // number of attempts, at least 1
	Bytes int           // size of their entries, 0 for no bound; one attempt may exceed it
	Wait  time.Duration // how long to wait for more after the first attempt

	// Offer leaves the attempts offered. The caller starts each, or ends it by Withdraw when
	// the source recalls it.
	Offer bool

	// Try returns at once, without an attempt and without an error if none is ready.
	Try bool
}

// Adjuster is implemented by a Source whose bounds can change while it is read.
type Adjuster interface {
	// Adjust allows at least maxInFlight attempts to run. With ordered the attempts are in stream
	// order from then on: those of one NextBatch together, and none before these have ended and
	// none of them backs off.
	Adjust(maxInFlight int, ordered bool)
}

var (
	// ErrClosed is returned by a source that was closed.
	ErrClosed = errors.New("source is closed")
	// ErrEnded is returned by a source whose transport has ended the subscription.
	ErrEnded = errors.New("the subscription was ended by its subscriber")
	// ErrNotPending is returned for the end of an attempt that has ended before.
	ErrNotPending = errors.New("attempt has ended")
	// ErrNotOwner is returned for the end of an attempt whose entry belongs to another consumer,
	// or for whose end no caller waits.
	ErrNotOwner = errors.New("entry is not owned")
	// ErrOutOfOrder is returned for the Ack of an attempt behind another one of its batch and its
	// order (that of its ordering key, or of the stream) that will be redelivered. The attempt
	// has not ended: after a Release it is redelivered behind the other.
	ErrOutOfOrder = errors.New("an earlier message of the order will be redelivered")
	// ErrNotSupported is returned for an end that the transport cannot carry out. The attempt
	// has not ended.
	ErrNotSupported = errors.New("not supported by the transport")
)

// GapError reports entries that were trimmed before they were read. Reading continues.
type GapError struct {
	Topic          string
	After          string // ID of the last entry before the gap
	FirstAvailable string // ID of the first entry behind it, empty without one
}

// Error implements error.
func (e *GapError) Error() string {
	return fmt.Sprintf("entries of %q after %s were trimmed", e.Topic, e.After)
}

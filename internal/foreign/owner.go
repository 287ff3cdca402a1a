package foreign

import (
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/flaminco/redischannels/internal/source"
)

// Started implements source.Owner.
func (s *Source) Started(*source.Attempt) {}

// Late implements source.Owner. Attempts have no timeout.
func (s *Source) Late(*source.Attempt, source.Outcome) {}

// Ended implements source.Owner.
func (s *Source) Ended(a *source.Attempt, o source.Outcome) error {
	msg, of := a.Message, inner(a.Message)
	plainNack := o.Kind == source.Nack && o.Delay == source.OwnersDelay
	switch {
	case o.Kind == source.Ack:
		s.retries.forget(msg.UUID)
		msg.Ack()
	case o.Kind == source.Withdraw:
		s.putFirst(delivery{msg, a.Split})
	case o.Kind == source.Expire, o.Kind == source.Abandon:
	case o.Kind == source.Release && o.Delay <= 0:
		s.putLast(delivery{msg, a.Split})
	case of != nil:
		if plainNack { // what the application has asked for counts
			requested := of.Requested()
			requested.Cause, o = o.Cause, requested
		}
		of.Request(o)
		msg.Nack()
	case o.Kind == source.Undecodable:
		s.cfg.Skipped(msg.UUID, o.Err)
		s.retries.forget(msg.UUID)
		msg.Ack()
	case o.Kind == source.Nack && o.Split != 0 && o.Delay == 0:
		s.putLast(delivery{msg, o.Split}) // the transport knows no batches
	case plainNack:
		s.retries.nack(msg)
	default:
		return source.ErrNotSupported
	}
	return nil
}

// The back-off between a Nack and the redelivery, which many transports make at once.
const (
	retryMin = 10 * time.Millisecond
	retryMax = time.Second
	// maxFailed is of how many messages the number of nacks is remembered.
	maxFailed = 1000
)

// retries nacks messages after a back-off that grows with each Nack of the same UUID, until it
// is acknowledged. The zero value is ready for use.
type retries struct {
	mu      sync.Mutex
	flushed bool
	failed  map[string]int // nacks by UUID
	waiting map[*message.Message]*time.Timer
}

func (r *retries) nack(msg *message.Message) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.flushed {
		msg.Nack()
		return
	}
	if r.waiting == nil {
		r.waiting, r.failed = make(map[*message.Message]*time.Timer), make(map[string]int)
	}
	if len(r.failed) >= maxFailed {
		clear(r.failed)
	}
	delay := min(retryMin<<min(r.failed[msg.UUID], 10), retryMax)
	r.failed[msg.UUID]++
	r.waiting[msg] = time.AfterFunc(delay, func() {
		r.mu.Lock()
		delete(r.waiting, msg)
		r.mu.Unlock()
		msg.Nack()
	})
}

func (r *retries) forget(uuid string) {
	r.mu.Lock()
	delete(r.failed, uuid)
	r.mu.Unlock()
}

// flush nacks the messages that wait, and all later ones, at once.
func (r *retries) flush() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.flushed = true
	for msg, timer := range r.waiting {
		timer.Stop()
		msg.Nack()
	}
	r.waiting = nil
}

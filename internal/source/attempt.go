package source

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/flaminco/redischannels/internal/stream"
)

// Kind is the kind of an outcome.
type Kind uint8

// The kinds of outcomes.
const (
	Ack         Kind = iota + 1
	Nack             // redelivered after Delay, or after the owner's back-off
	Reject           // can never succeed
	Undecodable      // the same, because it cannot be decoded
	Release          // redelivered after Delay; this delivery does not count
	Withdraw         // an offer that was not received
	Expire           // the handler took longer than its timeout
	Abandon          // the owner no longer waits for the end
)

// Single as Outcome.Split delivers a message in a separate batch.
const Single = -1

// OwnersDelay as Outcome.Delay means the back-off of the owner.
const OwnersDelay time.Duration = -1

// Outcome is the end of an attempt.
type Outcome struct {
	Kind   Kind
	Delay  time.Duration // of Nack and Release
	Split  int           // of Nack: messages of one number are delivered in one batch, 0 for any
	Reason string        // of Reject and Undecodable, and of a Nack that is the last
	Cause  string        // the error of the handler: the Reason if that is empty
	Err    error         // of Undecodable
}

// Owner is notified of the course of attempts. Its methods are called without any lock of this package.
type Owner interface {
	// Started is called once for an attempt that was offered, when it starts.
	Started(a *Attempt)
	// Ended is called once, for the first end, and again for Abandon after Expire. An error
	// revokes the end; Expire and Abandon cannot be refused.
	Ended(a *Attempt, o Outcome) error
	// Late is called for the first end after Expire.
	// It follows the call of Ended for Expire, whenever the end comes.
	Late(a *Attempt, o Outcome)
}

// Origin has the common data of the attempts of one subscription.
type Origin struct {
	Topic, Group string
	Entries      bool            // the IDs of attempts are those of stream entries
	Values       context.Context // gives attempts its values; never canceled
	Timeout      time.Duration   // of one attempt, 0 for none
	Owner        Owner
	HideCauses   bool // Outcome.Cause never becomes the Reason

	MaxDeliveries int     // of one message, 0 for no bound; for a Watch
	Watcher       Watcher // observes attempts; nil for none
}

// Watcher observes attempts that the application receives. It calls Attempt.Watch for each. It is
// not called under a lock of a source.
type Watcher interface {
	// One is Together for one attempt, without memory for slices.
	One(a *Attempt, metadata message.Metadata)
	Together(attempts []*Attempt, metadata []message.Metadata)
}

// Watching is what observes an attempt. It is behind one pointer, because there is an Attempt per
// message.
type Watching struct {
	Values context.Context // of the context of the attempt, instead of those of its Origin
	Watch  Watch
}

// Watch observes one attempt. Its methods are called without a lock of this package.
type Watch interface {
	// Started is called when the application has received an attempt that was offered.
	Started()
	// Ended is called once: for the first end that the owner has accepted. lost reports that the
	// entry belonged to another consumer by then.
	Ended(a *Attempt, o Outcome, lost bool)
}

// state is the state of an attempt:
//
//	offered -> started -> ended
//	                   -> expired -> ended      (the end of the handler comes late)
//	                   -> abandoned -> ended    (no longer waited for)
//	offered -> ended                            (withdrawn or undecodable)
type state uint8

const (
	offered state = iota
	started
	ended
	expired
	abandoned
)

// Attempt is one attempt at handling one message. It is the context of the handler too: there is
// one per message, so it costs one allocation, and a channel only if Done is called. The context
// ends with the attempt, not with the context of the subscription.
//
// Its exported fields are set before it is returned and do not change, except Entry, which the
// caller releases after decoding.
type Attempt struct {
	From  *Origin
	Topic string // of the message: for a Pub/Sub pattern the channel to which it was published
	ID    string // entry ID, empty if the transport has none
	Count int    // 1 for the first delivery, 0 if the transport does not count
	Split int    // of the previous Nack; all attempts of a batch have the same
	Held  any    // data of the owner

	Entry   stream.Entry     // of a stream; the attempt's own share of its memory
	Payload []byte           // of Pub/Sub; shared, not to be changed
	Message *message.Message // decoded already, or of another subscriber

	request  atomic.Pointer[Outcome]   // requested outcome of a Nack of the message
	deadline atomic.Pointer[time.Time] // see Deadline

	mu       sync.Mutex
	state    state
	lost     bool // its entry belongs to another consumer
	expiring bool // the owner is being notified of Expire

	done  chan struct{}
	err   error       // of the context, nil as long as it has not ended
	timer *time.Timer // of the timeout
	next  *Outcome    // of an end that was called while the owner is being notified of Expire
	watch *Watching   // nil for none; set before the application has the attempt
}

// Start records that the application has received the attempt.
func (a *Attempt) Start() {
	a.mu.Lock()
	first := a.state == offered
	if first {
		a.state = started
	}
	watch := a.watch
	a.mu.Unlock()
	if first {
		if watch != nil {
			watch.Watch.Started()
		}
		a.From.Owner.Started(a)
	}
}

// StartNow starts an attempt that was never offered. The owner calls it and is not notified. Its
// timeout runs by itself.
func (a *Attempt) StartNow() {
	a.state = started
	if a.From.Timeout > 0 {
		a.mu.Lock()
		a.Deadline()
		a.timer = time.AfterFunc(a.From.Timeout, func() { _ = a.End(Outcome{Kind: Expire}) })
		a.mu.Unlock()
	}
}

// Offered reports whether the application has not received the attempt yet.
func (a *Attempt) Offered() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.state == offered
}

// Watch sets what observes the attempt, before the application receives it. It returns false,
// without any effect, if the attempt has ended by its timeout already.
func (a *Attempt) Watch(w *Watching) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.state != offered && a.state != started {
		return false
	}
	a.watch = w
	return true
}

// End ends the attempt: the first end takes effect. The error is ErrNotPending if it had ended,
// and ErrNotOwner if its entry was lost or it had expired.
func (a *Attempt) End(o Outcome) error {
	a.mu.Lock()
	before, lost, watch := a.state, a.lost, a.watch
	switch {
	case before == ended, before == abandoned && o.Kind >= Expire, before == expired && o.Kind == Expire:
		a.mu.Unlock()
		return ErrNotPending
	case o.Kind == Expire:
		a.state, a.expiring = expired, true
	case o.Kind == Abandon:
		a.state = abandoned
	default:
		a.state = ended
	}
	behind := before == expired && a.expiring
	if behind {
		next := o // a copy, so that other ends need no memory
		a.next = &next
	}
	a.mu.Unlock()

	switch {
	case before == abandoned:
		return ErrNotOwner
	case before == expired:
		if !behind {
			a.endExpired(o)
		}
		if o.Kind == Abandon {
			return nil
		}
		return ErrNotOwner
	case o.Kind == Expire:
		a.expire(o)
	default:
		a.cancel(context.Canceled) // before the next delivery
		if o.Reason == "" && !a.From.HideCauses {
			o.Reason = o.Cause
		}
		if err := a.From.Owner.Ended(a, o); err != nil {
			a.mu.Lock()
			a.state = before
			a.mu.Unlock()
			return err
		}
	}
	if watch != nil {
		watch.Watch.Ended(a, o, lost)
	}
	if lost {
		return ErrNotOwner
	}
	return nil
}

// expire ends the attempt for the owner, and then reports an end that was called meanwhile.
func (a *Attempt) expire(o Outcome) {
	a.cancel(context.DeadlineExceeded)
	_ = a.From.Owner.Ended(a, o)
	a.mu.Lock()
	a.expiring = false
	next := a.next
	a.mu.Unlock()
	if next != nil {
		a.endExpired(*next)
	}
}

// endExpired is the first end after Expire.
func (a *Attempt) endExpired(o Outcome) {
	if o.Kind == Abandon {
		_ = a.From.Owner.Ended(a, o)
		return
	}
	a.From.Owner.Late(a, o)
}

// Lose records that the entry belongs to another consumer: the context ends, the attempt does
// not.
func (a *Attempt) Lose() {
	a.mu.Lock()
	a.lost = true
	a.mu.Unlock()
	a.cancel(context.Canceled)
}

// Cancel ends the context, and the timeout with it; the attempt can still be ended.
func (a *Attempt) Cancel() { a.cancel(context.Canceled) }

// Request sets the outcome of a Nack of the message. The last call takes effect.
func (a *Attempt) Request(o Outcome) { a.request.Store(&o) }

// Requested returns the requested outcome of a Nack of the message.
func (a *Attempt) Requested() Outcome {
	if o := a.request.Load(); o != nil {
		return *o
	}
	return Outcome{Kind: Nack, Delay: OwnersDelay}
}

func (a *Attempt) cancel(err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.timer != nil {
		a.timer.Stop()
	}
	if a.err != nil {
		return
	}
	a.err = err
	if a.done != nil {
		close(a.done)
	}
}

// Deadline implements context.Context. The timeout begins with the first call, when the
// application has received the message: while it is offered it is not handled.
func (a *Attempt) Deadline() (time.Time, bool) {
	if a.From.Timeout <= 0 {
		return time.Time{}, false
	}
	if a.deadline.Load() == nil {
		deadline := time.Now().Add(a.From.Timeout)
		a.deadline.CompareAndSwap(nil, &deadline)
	}
	return *a.deadline.Load(), true
}

// Done implements context.Context.
func (a *Attempt) Done() <-chan struct{} {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.done == nil {
		a.done = make(chan struct{})
		if a.err != nil {
			close(a.done)
		}
	}
	return a.done
}

// Err implements context.Context.
func (a *Attempt) Err() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.err
}

// Value implements context.Context.
func (a *Attempt) Value(key any) any {
	if key == (attemptKey{}) {
		return a
	}
	return a.Values().Value(key)
}

// Values returns the values of the context, without those about the attempt.
func (a *Attempt) Values() context.Context {
	if a.watch != nil {
		return a.watch.Values
	}
	return a.From.Values
}

type attemptKey struct{}

// NewContext returns a context derived from ctx that belongs to an attempt, or, with nil, to
// none.
func NewContext(ctx context.Context, a *Attempt) context.Context {
	return context.WithValue(ctx, attemptKey{}, a)
}

// FromContext returns the attempt that a context belongs to, or nil.
func FromContext(ctx context.Context) *Attempt {
	a, _ := ctx.Value(attemptKey{}).(*Attempt)
	return a
}

var _ context.Context = (*Attempt)(nil)

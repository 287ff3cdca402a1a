package redischannels

import (
	"context"
	"fmt"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/flaminco/redischannels/internal/stream"
	"github.com/flaminco/redischannels/internal/window"
)

// delivery is one attempt at handling one message, and the message's context.
// It is a context type of its own because there is one per message: it costs one
// allocation, and a channel only when somebody asks for Done. It ends with the
// attempt, not with the context of Subscribe, whose values it has: handlers keep
// a live context while a subscription drains.
type delivery struct {
	from     *origin
	id       string
	count    int
	deadline atomic.Pointer[time.Time] // see Deadline
	verdict  atomic.Pointer[verdict]

	// item is there for whoever takes it first to see to the settlement: a Reader that has
	// acknowledged the message, a goroutine that watches it, or the end of the subscription.
	// That spares most messages of a Reader the goroutine. See entrust.
	item atomic.Pointer[window.Item]

	mu   sync.Mutex
	over bool // it has ended
	late bool // by its deadline
	done chan struct{}
}

// origin is what the deliveries of one topic in one subscription have in common.
type origin struct {
	topic, group string
	values       context.Context // values of the Subscribe context, never cancelled
	sub          *subscription   // nil for Pub/Sub
}

// Deadline implements context.Context. It runs from the first call: that is made when the
// application has the message, by the application or by who watches it. While it is being
// offered nobody handles it.
func (d *delivery) Deadline() (time.Time, bool) {
	if d.from.sub == nil || d.from.sub.cfg.HandlerTimeout <= 0 {
		return time.Time{}, false
	}
	if d.deadline.Load() == nil {
		deadline := time.Now().Add(d.from.sub.cfg.HandlerTimeout)
		d.deadline.CompareAndSwap(nil, &deadline)
	}
	return *d.deadline.Load(), true
}

// Done implements context.Context.
func (d *delivery) Done() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.done == nil {
		d.done = make(chan struct{})
		if d.over {
			close(d.done)
		}
	}
	return d.done
}

// Err implements context.Context.
func (d *delivery) Err() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case !d.over:
		return nil
	case d.late:
		return context.DeadlineExceeded
	}
	return context.Canceled
}

// Value implements context.Context.
func (d *delivery) Value(key any) any {
	if key == (deliveryKey{}) {
		return d
	}
	return d.from.values.Value(key)
}

// end cancels the context when the attempt is over, and expire when it is late. The first of
// them counts.
func (d *delivery) end()    { d.endAs(false) }
func (d *delivery) expire() { d.endAs(true) }

func (d *delivery) endAs(late bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.over {
		return
	}
	d.over, d.late = true, late
	if d.done != nil {
		close(d.done)
	}
}

// taken stands for an item that somebody has taken from its delivery.
var taken window.Item

// take returns the item for the caller to see to, or nil if it is somebody else's.
func (d *delivery) take() *window.Item {
	if it := d.item.Swap(&taken); it != &taken {
		return it
	}
	return nil
}

// deliveryOf returns the delivery of a message of a Reader. Not every one in its context is
// that: a transport within the process may keep the context in which somebody handles the
// message of another Reader, and publishes this one.
func (f *feed) deliveryOf(msg *message.Message) *delivery {
	d := deliveryFrom(msg.Context())
	if d != nil && d.from.sub != nil && d.from.sub.feed != nil && d.from.sub.feed != f {
		return nil
	}
	return d
}

// ack acknowledges a message of a Reader. Nobody waits for that where nobody watches it.
func (f *feed) ack(msg *message.Message) {
	acked := msg.Ack()
	d := f.deliveryOf(msg)
	switch {
	case d == nil:
	case !acked:
		d.watch(msg)
	default:
		if it := d.take(); it != nil {
			d.from.sub.acknowledged(it, d)
		}
	}
}

// nack refuses a message of a Reader.
func (f *feed) nack(msg *message.Message) {
	msg.Nack()
	if d := f.deliveryOf(msg); d != nil {
		d.watch(msg)
	}
}

// handBack ends a delivery that nobody has used: it is not counted.
func (f *feed) handBack(msg *message.Message) {
	if d := f.deliveryOf(msg); d != nil {
		d.verdict.Store(&verdict{handBack: true})
	}
	f.nack(msg)
}

// watch has the settlement of a message of a Reader awaited.
func (d *delivery) watch(msg *message.Message) {
	if it := d.take(); it != nil {
		go func() { // one of the subscription's handlers since it was entrusted
			sub := d.from.sub
			defer sub.handlers.Done()
			sub.started(it, d)
			sub.watch(it, msg, d)
		}()
	}
}

// decoder turns entries into messages for one subscription.
type decoder struct {
	*entryDecoder
	orderingKey func(*message.Message) string
}

func newDecoder(cfg SubscriberConfig, topic string) *decoder {
	d := &decoder{entryDecoder: newEntryDecoder(topic, cfg.Unmarshaler, cfg.MaxPayload)}
	if cfg.MaxInFlight > 1 {
		d.orderingKey = cfg.OrderingKey
	}
	return d
}

// decode returns the message of an entry, or a *DecodeError.
func (d *decoder) decode(e *stream.Entry) (msg *message.Message, err error) { return d.message(e) }

// prepare finds out the ordering key of an item. One that cannot be decoded has
// no key; it fails again when it is handed over.
func (d *decoder) prepare(it *window.Item) {
	if d.orderingKey == nil {
		return
	}
	msg, err := d.decode(&it.Entry)
	if err != nil {
		return
	}
	defer func() {
		if r := recover(); r != nil {
			it.Reason = fmt.Sprintf("OrderingKey panicked: %v", r)
		}
	}()
	it.Key = d.orderingKey(msg)
	it.Message = msg
}

// delay returns the back-off before delivery n+1, after n deliveries.
func (b Backoff) delay(n int, random float64) time.Duration {
	d := min(float64(b.Min)*math.Pow(b.Factor, float64(max(n, 1)-1)), float64(b.Max))
	d += d * max(0, b.Jitter) * (2*random - 1)
	return min(max(time.Duration(d), 0), b.Max)
}

var _ context.Context = (*delivery)(nil)

package redischannels

import (
	"context"
	"fmt"
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
	deadline time.Time // zero without HandlerTimeout
	verdict  atomic.Pointer[verdict]

	mu   sync.Mutex
	done chan struct{}
	err  error
}

// origin is what the deliveries of one topic in one subscription have in common.
type origin struct {
	topic, group string
	values       context.Context // values of the Subscribe context, never cancelled
}

// Deadline implements context.Context.
func (d *delivery) Deadline() (time.Time, bool) { return d.deadline, !d.deadline.IsZero() }

// Done implements context.Context.
func (d *delivery) Done() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.done == nil {
		d.done = make(chan struct{})
		if d.err != nil {
			close(d.done)
		}
	}
	return d.done
}

// Err implements context.Context.
func (d *delivery) Err() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.err
}

// Value implements context.Context.
func (d *delivery) Value(key any) any {
	if key == (deliveryKey{}) {
		return d
	}
	return d.from.values.Value(key)
}

// end cancels the context; the first error stays.
func (d *delivery) end(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.err != nil {
		return
	}
	d.err = err
	if d.done != nil {
		close(d.done)
	}
}

// maxNames bounds the field names that a decoder keeps: entries of foreign
// producers may have any.
const maxNames = 256

// decoder turns entries into messages for one subscription.
type decoder struct {
	topic       string
	unmarshaler Unmarshaler
	maxPayload  int
	orderingKey func(*message.Message) string
	mu          sync.Mutex
	names       map[string]string
	fields      []Field
}

func newDecoder(cfg SubscriberConfig, topic string) *decoder {
	d := &decoder{topic: topic, unmarshaler: cfg.Unmarshaler, maxPayload: cfg.MaxPayload, names: make(map[string]string)}
	if cfg.MaxInFlight > 1 {
		d.orderingKey = cfg.OrderingKey
	}
	return d
}

// decode returns the message of an entry, or a *DecodeError.
func (d *decoder) decode(e *stream.Entry) (msg *message.Message, err error) {
	if d.maxPayload > 0 && e.Size > d.maxPayload {
		return nil, d.failure(e, tooLarge(e.Size, d.maxPayload), nil)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.fields = d.fields[:0]
	e.Fields(d.addField)
	defer func() {
		clear(d.fields) // keep no reply alive
		if r := recover(); r != nil {
			msg, err = nil, d.failure(e, fmt.Sprintf("the unmarshaler panicked: %v", r), nil)
		}
	}()
	msg, err = d.unmarshaler.Unmarshal(Entry{Topic: d.topic, ID: e.Text, Fields: d.fields})
	switch {
	case err != nil:
		if _, ok := err.(*DecodeError); !ok {
			err = d.failure(e, "the unmarshaler failed", err)
		}
		return nil, err
	case msg == nil:
		return nil, d.failure(e, "the unmarshaler returned neither message nor error", nil)
	}
	return msg, nil
}

func (d *decoder) addField(name, value []byte) {
	s, ok := d.names[string(name)]
	if !ok {
		s = string(name)
		if len(d.names) < maxNames && len(s) <= maxNames {
			d.names[s] = s
		}
	}
	d.fields = append(d.fields, Field{Name: s, Value: value})
}

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

func tooLarge(size, limit int) string {
	return fmt.Sprintf("has %d bytes, more than MaxPayload %d", size, limit)
}

func (d *decoder) failure(e *stream.Entry, reason string, err error) error {
	return &DecodeError{Topic: d.topic, EntryID: e.Text, Reason: reason, Err: err}
}

// delay returns the back-off before delivery n+1, after n deliveries.
func (b Backoff) delay(n int, random float64) time.Duration {
	d := float64(b.Min)
	for ; n > 1 && d < float64(b.Max); n-- {
		d *= b.Factor
	}
	d = min(d, float64(b.Max))
	d += d * b.Jitter * (2*random - 1)
	return min(max(time.Duration(d), 0), b.Max)
}

var _ context.Context = (*delivery)(nil)

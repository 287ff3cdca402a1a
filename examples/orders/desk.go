package main

import (
	"errors"
	"fmt"
	"hash/fnv"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/message/router/middleware"

	"github.com/flaminco/redischannels"
)

const (
	group         = "order-desk"
	consumers     = 2
	maxDeliveries = 5
)

// desk handles the orders.
type desk struct {
	imp   *importer
	books books
	stock stock

	deliveries, attempts, duplicates atomic.Int64
}

func newDesk(imp *importer) *desk {
	return &desk{imp: imp, books: books{imp.client, imp.names}, stock: stock{asked: make(map[string]int)}}
}

// router has a handler per consumer, each with a subscriber of its own, so that Redis divides
// the messages between them. They could as well be two processes.
func (d *desk) router() (*message.Router, error) {
	router, err := message.NewRouter(message.RouterConfig{CloseTimeout: 15 * time.Second}, d.imp.logger)
	if err != nil {
		return nil, err
	}
	// The first is the outermost: a panic becomes an error, which is retried, and what still
	// fails then goes back to Redis. The last error is the reason of the dead letter.
	router.AddMiddleware(
		redischannels.HandlerErrors,
		d.counting,
		middleware.Retry{
			MaxRetries:      2,
			InitialInterval: 20 * time.Millisecond,
			MaxInterval:     time.Second,
			Multiplier:      2,
			ShouldRetry:     func(p middleware.RetryParams) bool { return !redischannels.IsPermanent(p.Err) },
			Logger:          d.imp.logger,
		}.Middleware,
		middleware.Recoverer,
	)
	for i := 1; i <= consumers; i++ {
		name := fmt.Sprint("consumer-", i)
		subscriber, err := redischannels.NewSubscriber(redischannels.SubscriberConfig{
			Client:        d.imp.client,
			ConsumerGroup: group,
			Consumer:      name,
			MaxInFlight:   16,
			MaxDeliveries: maxDeliveries,
			NackBackoff:   redischannels.Backoff{Min: 50 * time.Millisecond, Max: time.Second},
			OnEvent:       func(e redischannels.Event) { d.note(name, e) },
			Tuning:        d.imp.tuning,
		}, d.imp.logger)
		if err != nil {
			return nil, err
		}
		router.AddConsumerHandler(name, d.imp.names.topic, subscriber, d.handle)
	}
	return router, nil
}

// note prints what an operator would want to know.
func (d *desk) note(consumer string, e redischannels.Event) {
	switch e.Kind {
	case redischannels.EventDeadLettered: // the summary has them
	case redischannels.EventRecovered:
		d.imp.out.printf("%s: takes over from another consumer, entries: %d", consumer, e.Count)
	case redischannels.EventReconnected:
		d.imp.out.printf("%s: reconnected after %v", consumer, e.Duration.Round(time.Millisecond))
	default:
		text := fmt.Sprintf("%s: %s", consumer, e.Kind)
		if e.Count > 0 {
			text += fmt.Sprintf(", entries: %d", e.Count)
		}
		if e.Err != nil {
			text += fmt.Sprintf(": %v", e.Err)
		}
		d.imp.out.printf("%s", text)
	}
}

// counting counts deliveries.
func (d *desk) counting(next message.HandlerFunc) message.HandlerFunc {
	return func(msg *message.Message) ([]*message.Message, error) {
		d.deliveries.Add(1)
		return next(msg)
	}
}

// handle handles one order: one row.
func (d *desk) handle(msg *message.Message) error {
	d.attempts.Add(1)
	ctx := msg.Context()
	line, err := strconv.Atoi(msg.Metadata.Get(lineKey))
	if err != nil {
		return redischannels.Permanent(errors.New("message has no line"))
	}
	o, err := parseOrder(string(msg.Payload))
	if err != nil {
		return redischannels.Permanent(err)
	}
	if d.imp.slow > 0 {
		if err := wait(ctx, d.imp.slow); err != nil {
			return err
		}
	}
	if err := d.stock.reserve(warehouse(o.sku), o); err != nil {
		return err
	}
	from, now, err := d.books.enter(ctx, o, line)
	switch {
	case err != nil:
		return fmt.Errorf("enter order %s: %w", o.id, err)
	case from != line:
		return redischannels.Permanent(fmt.Errorf("order %s is on line %d already", o.id, from))
	case !now:
		d.duplicates.Add(1)
	}
	return nil
}

// retries is how often an order was handled again within one delivery.
func (d *desk) retries() int64 { return max(0, d.attempts.Load()-d.deliveries.Load()) }

// stock stands for a service of another test that is unreliable in a reproducible way: of 100
// orders about 5 fail at first and 1 for longer than Retry tries, so that it is delivered again.
type stock struct {
	mu    sync.Mutex
	asked map[string]int
}

var errStockBusy = errors.New("stock service: temporarily unavailable")

func (s *stock) reserve(warehouse string, o order) error {
	h := fnv.New32a()
	_, _ = h.Write([]byte(warehouse + o.id))
	refusals := 0
	switch n := h.Sum32() % 100; {
	case n < 5:
		refusals = 1
	case n == 5:
		refusals = 4
	default:
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.asked[o.id] < refusals {
		s.asked[o.id]++
		return errStockBusy
	}
	return nil
}

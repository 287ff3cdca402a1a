package redischannels

import (
	"context"
	"slices"
	"sync"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/flaminco/redischannels/internal/source"
)

// SubscribeBatch is Subscribe for handlers that process many messages in one call: each element
// of the channel is a batch, bounded by config. Watermill routers, their middleware and their
// subscriber decorators do not support batches: the application reads the channel itself.
//
// Every message of a batch must be ended, with Ack or Nack, in any order and from any goroutine.
// RetryAfter, Postpone and Reject work for each. Nacks without one of these take effect together.
// When another message of the batch ends in another way, only the nacked messages have failed,
// and are redelivered after NackBackoff. If all are nacked the batch has failed as a whole, and
// is redelivered in parts as described for [Reader.HandleBatch]. Up to Concurrency batches are in
// flight. A batch that is not received for Tuning.MinIdle is released to other consumers of the
// group.
//
// With MaxInFlight 1, its default, batches are ordered as with BatchConfig.Ordered. Otherwise
// MaxInFlight must be at least Size times Concurrency. With an order, including that of
// OrderingKey, a message that is acknowledged behind a nacked one is redelivered behind it, which
// does not count.
//
// The channel is closed like that of Subscribe. The errors are those of Subscribe, and those of
// config, which wrap [ErrInvalidConfig].
func (s *Subscriber) SubscribeBatch(ctx context.Context, topic string, config BatchConfig) (<-chan []*message.Message, error) {
	config = config.withDefaults()
	if err := s.validateBatch(config); err != nil {
		return nil, err
	}
	ordered := config.Ordered || s.cfg.MaxInFlight == 1
	sub, err := s.open(ctx, topic, s.cfg.StartFrom, sourceOptions{})
	if err != nil {
		return nil, err
	}
	sub.Adjust(config.Size*config.Concurrency, ordered)
	p := &batchPump{
		src: sub, decode: sub.message, limits: config.limits(), inOrder: ordered || s.cfg.OrderingKey != nil,
		slots: make(chan struct{}, config.Concurrency), out: make(chan []*message.Message),
	}
	p.limits.Offer = true
	s.pump(ctx, sub, p.run, func() { close(p.out) })
	return p.out, nil
}

// validateBatch checks the config of SubscribeBatch, with the defaults filled in.
func (s *Subscriber) validateBatch(config BatchConfig) error {
	v := validation{prefix: "BatchConfig"}
	config.validate(&v)
	limit, values := s.cfg.MaxInFlight, config.Size*config.Concurrency
	switch {
	case len(v.errs) > 0:
	case limit == 1 && config.Concurrency > 1:
		v.addf("Concurrency", "must be 1 if MaxInFlight of the subscriber is 1, which keeps the order, got %d", config.Concurrency)
	case limit > 1 && values > limit:
		v.addf("Size", "must be at most MaxInFlight of the subscriber (%d) together with Concurrency, got %d times %d", limit, config.Size, config.Concurrency)
	}
	if most := s.cfg.Tuning.MinIdle / 2; s.cfg.ConsumerGroup != "" && config.Wait > most {
		v.addf("Wait", "must be at most half of Tuning.MinIdle (%v), because a batch that is not received for longer is released, got %v", most, config.Wait)
	}
	return v.err()
}

// batchPump sends the messages of a source in batches, and ends the attempts by their Ack and
// Nack. Its goroutines are run, and one per message in flight.
type batchPump struct {
	src      offerer
	decode   func(a *source.Attempt) (*message.Message, error)
	limits   source.Limits
	inOrder  bool          // all messages, or those of a key
	slots    chan struct{} // has an element for each batch in flight
	out      chan []*message.Message
	handlers sync.WaitGroup
}

// run sends until the source ends, and returns when every attempt has ended or was abandoned.
func (p *batchPump) run() {
	defer p.handlers.Wait()
	for {
		p.slots <- struct{}{}
		attempts, err := p.src.NextBatch(context.Background(), nil, p.limits)
		if err != nil {
			return // it has ended
		}
		if attempts = p.decodeAll(attempts); len(attempts) == 0 || !p.send(attempts) {
			<-p.slots
			continue
		}
		b := newSentBatch(p, attempts)
		for i := range attempts {
			p.handlers.Go(func() { b.watch(i) })
		}
	}
}

// decodeAll decodes the messages of attempts, and returns the attempts that have one.
func (p *batchPump) decodeAll(attempts []*source.Attempt) []*source.Attempt {
	attempts = slices.DeleteFunc(attempts, func(a *source.Attempt) bool {
		msg, err := p.decode(a)
		a.Entry.Release()
		if err != nil {
			_ = a.End(undecodableOutcome(err))
			return true
		}
		a.Message = msg
		msg.SetContext(a)
		return false
	})
	watchAll(attempts, func(i int) message.Metadata { return attempts[i].Message.Metadata })
	return attempts
}

// send sends a batch to the application. It returns false if the application has not received it
// and the source has recalled one of its messages.
func (p *batchPump) send(attempts []*source.Attempt) bool {
	batch := make([]*message.Message, len(attempts)) // the application owns it
	for i, a := range attempts {
		batch[i] = a.Message
	}
	for {
		select {
		case p.out <- batch:
			for _, a := range attempts {
				a.Start()
			}
			return true
		case <-p.src.Recall():
		}
		if slices.ContainsFunc(attempts, p.src.Recalled) {
			for _, a := range attempts {
				_ = a.End(source.Outcome{Kind: source.Withdraw})
			}
			return false
		}
	}
}

// sentBatch is a batch that the application has received. A nack without a delay waits until the
// batch has failed as a whole, or in part.
type sentBatch struct {
	pump     *batchPump
	attempts []*source.Attempt
	whole    func(i int) source.Outcome // the outcomes if all have failed

	mu     sync.Mutex
	ended  []bool
	first  int // all before it have ended
	left   int // number of those that have not ended
	nacked []int
	partly bool // one has ended in another way
}

func newSentBatch(p *batchPump, attempts []*source.Attempt) *sentBatch {
	b := &sentBatch{
		pump: p, attempts: attempts, ended: make([]bool, len(attempts)), left: len(attempts),
		whole: wholeOutcomes(len(attempts), attempts[0].Split),
	}
	expireTogether(attempts, b.whole)
	return b
}

// watch waits until the application ends a message.
func (b *sentBatch) watch(i int) {
	a, drained := b.attempts[i], b.pump.src.Drained()
	timeout, stop := timeoutOf(a)
	defer stop()
	o := await(a, a.Message, timeout, drained)
	if o.Kind != source.Expire {
		b.end(i, o)
		return
	}
	_ = a.End(o)
	b.end(i, o)
	if o = await(a, a.Message, nil, drained); o.Kind != 0 {
		_ = a.End(o) // too late; with an order the next batch waits for it
	}
}

// end ends a message. With an order, it first ends the earlier messages that the application has
// acked or nacked: their goroutines may be late.
func (b *sentBatch) end(i int, o source.Outcome) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.pump.inOrder {
		for k := b.first; k < i; k++ {
			if before := outcomeOf(b.attempts[k], b.attempts[k].Message); before.Kind != 0 {
				b.take(k, before)
			}
		}
	}
	b.take(i, o)
	for b.first < len(b.ended) && b.ended[b.first] {
		b.first++
	}
}

func (b *sentBatch) take(i int, o source.Outcome) {
	if b.ended[i] {
		return
	}
	b.ended[i] = true
	a := b.attempts[i]
	switch {
	case o.Kind == source.Expire: // it has failed, and ends as Request says
	case isPlainNack(o) && !b.partly:
		a.Cancel()
		b.nacked = append(b.nacked, i)
	default:
		b.failPartly()
		b.endOne(a, o)
	}
	if b.left--; b.left > 0 {
		return
	}
	if !b.partly {
		b.failWhole()
	}
	<-b.pump.slots
}

// isPlainNack reports whether a message was nacked without RetryAfter, Postpone or Reject.
func isPlainNack(o source.Outcome) bool {
	return o.Kind == source.Nack && (o.Delay == source.OwnersDelay || o.Split != 0)
}

func (b *sentBatch) endOne(a *source.Attempt, o source.Outcome) {
	if isPlainNack(o) {
		o = source.Outcome{Kind: source.Nack, Delay: source.OwnersDelay}
	}
	if o.Kind != 0 {
		_ = endInOrder(a, o)
	}
}

// failPartly ends the nacked messages of a batch that has failed in part.
func (b *sentBatch) failPartly() {
	b.partly = true
	slices.Sort(b.nacked)
	for _, i := range b.nacked {
		b.endOne(b.attempts[i], source.Outcome{Kind: source.Nack, Delay: source.OwnersDelay})
	}
	b.nacked = nil
}

// failWhole ends the messages of a batch that has failed as a whole.
func (b *sentBatch) failWhole() {
	slices.Sort(b.nacked)
	for _, i := range b.nacked {
		_ = b.attempts[i].End(b.whole(i))
	}
}

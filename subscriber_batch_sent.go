package redischannels

import (
	"slices"
	"sync"

	"github.com/flaminco/redischannels/internal/source"
)

// sentBatch is a batch that the application has. A nack without a delay of its own waits until the batch has
// failed as a whole, or in part.
type sentBatch struct {
	pump     *batchPump
	attempts []*source.Attempt
	whole    func(i int) source.Outcome // the ends where all have failed

	mu     sync.Mutex
	ended  []bool
	first  int // those before it have ended
	left   int // those that have not
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
		_ = a.End(o) // too late; in order the next batch waits for it
	}
}

// end takes the end of a message. Where there is an order, it takes those first that the application has
// given to messages before it: their goroutines may be late.
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

// failPartly ends the nacked messages: not all of the batch have failed.
func (b *sentBatch) failPartly() {
	b.partly = true
	slices.Sort(b.nacked)
	for _, i := range b.nacked {
		b.endOne(b.attempts[i], source.Outcome{Kind: source.Nack, Delay: source.OwnersDelay})
	}
	b.nacked = nil
}

// failWhole ends the messages of a batch of which all have failed.
func (b *sentBatch) failWhole() {
	slices.Sort(b.nacked)
	for _, i := range b.nacked {
		_ = b.attempts[i].End(b.whole(i))
	}
}

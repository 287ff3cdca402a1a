package redischannels

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/flaminco/redischannels/internal/source"
)

// offerer is a source that offers attempts and may recall an offer.
type offerer interface {
	source.Source
	// Recall receives a value when the sender of an offer should check Recalled.
	Recall() <-chan struct{}
	Recalled(a *source.Attempt) bool
	// Drained is closed when no caller waits for the end of an attempt.
	Drained() <-chan struct{}
}

// pump sends the messages of a source on a channel, and ends the attempts by their Ack and Nack.
// Its goroutines are run, and with MaxInFlight above 1 one per message in flight.
type pump struct {
	src      offerer
	decode   func(a *source.Attempt) (*message.Message, error)
	strict   bool                  // the next message waits for the end of this one
	out      chan *message.Message // unbuffered: a buffered message would be neither recallable nor handled
	handlers sync.WaitGroup
}

// run sends until the source ends, and returns when every attempt has ended or was abandoned.
func (p *pump) run() {
	defer p.handlers.Wait()
	var next [1]*source.Attempt
	for {
		batch, err := p.src.NextBatch(context.Background(), next[:0], source.Limits{Max: 1, Offer: true})
		if err != nil {
			return // it has ended
		}
		p.offer(batch[0])
	}
}

// offer sends one message, and starts or does the wait for its end.
func (p *pump) offer(a *source.Attempt) {
	msg, err := p.decode(a)
	a.Entry.Release()
	if err != nil {
		_ = a.End(undecodableOutcome(err))
		return
	}
	a.Message = msg
	watchOne(a, msg.Metadata)
	msg.SetContext(a)
	if !p.send(a, msg) {
		_ = a.End(source.Outcome{Kind: source.Withdraw})
		return
	}
	a.Start()
	if p.strict {
		p.watch(a, msg)
	} else {
		p.handlers.Go(func() { p.watch(a, msg) })
	}
}

// send sends a message to the application. It returns false if the application has not received
// it and the source has recalled it.
func (p *pump) send(a *source.Attempt, msg *message.Message) bool {
	// Usually the application is already waiting, and a single send costs a third of a select
	// over three cases.
	select {
	case p.out <- msg:
		return true
	default:
	}
	for {
		select {
		case p.out <- msg:
			return true
		case <-p.src.Recall():
			if p.src.Recalled(a) {
				return false
			}
		}
	}
}

// watch waits until the application ends a message.
func (p *pump) watch(a *source.Attempt, msg *message.Message) {
	timeout, stop := timeoutOf(a)
	defer stop()
	o := await(a, msg, timeout, p.src.Drained())
	if o.Kind == source.Expire {
		_ = a.End(o)
		o = await(a, msg, nil, p.src.Drained()) // its late end
	}
	if o.Kind != 0 {
		_ = a.End(o)
	}
}

// timeoutOf returns a channel that receives a value when the timeout of an attempt expires, or
// nil.
func timeoutOf(a *source.Attempt) (timeout <-chan time.Time, stop func() bool) {
	deadline, ok := a.Deadline()
	if !ok {
		return nil, func() bool { return false }
	}
	timer := time.NewTimer(time.Until(deadline))
	return timer.C, timer.Stop
}

// await waits until the application ends a message, and returns the outcome: Expire if the
// timeout is first, and the zero Outcome if no caller waits for the end.
func await(a *source.Attempt, msg *message.Message, timeout <-chan time.Time, drained <-chan struct{}) source.Outcome {
	select {
	case <-msg.Acked():
	case <-msg.Nacked():
	case <-timeout:
	case <-drained:
	}
	// Select chooses among ready cases at random, and this goroutine may be late.
	if o := outcomeOf(a, msg); o.Kind != 0 {
		return o
	}
	select {
	case <-drained:
		return source.Outcome{}
	default:
		return source.Outcome{Kind: source.Expire}
	}
}

// outcomeOf returns the outcome that the application has given a message, or the zero Outcome.
func outcomeOf(a *source.Attempt, msg *message.Message) source.Outcome {
	select {
	case <-msg.Acked():
		return source.Outcome{Kind: source.Ack}
	case <-msg.Nacked():
		return a.Requested()
	default:
		return source.Outcome{}
	}
}

// undecodableOutcome is the outcome of an attempt that cannot be decoded.
func undecodableOutcome(err error) source.Outcome {
	o := source.Outcome{Kind: source.Undecodable, Reason: "undecodable", Err: err}
	var failure *DecodeError
	if errors.As(err, &failure) {
		o.Reason = failure.Error()
	}
	return o
}

package redischannels

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/flaminco/redischannels/internal/source"
)

// offerer is a source that offers attempts, and may want an offer back.
type offerer interface {
	source.Source
	// Recall has a token when the holder of an offer should look at Recalled.
	Recall() <-chan struct{}
	Recalled(a *source.Attempt) bool
	// Drained is closed when no caller waits for the end of an attempt any more.
	Drained() <-chan struct{}
}

// pump sends the messages of a source on a channel, and makes of their Ack and Nack the ends of the
// attempts. Its goroutines: run, and with MaxInFlight above 1 one per message in flight.
type pump struct {
	src      offerer
	decode   func(a *source.Attempt) (*message.Message, error)
	strict   bool                  // the next message waits for the end of this one
	out      chan *message.Message // unbuffered: what is in it would be neither held nor handled
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

// offer sends one message, and sees to it that its end is awaited.
func (p *pump) offer(a *source.Attempt) {
	msg, err := p.decode(a)
	a.Entry.Release()
	if err != nil {
		_ = a.End(undecodableOutcome(err))
		return
	}
	a.Message = msg
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

// send gives a message to the application. It reports false if the application has not received
// it and the source wants it back.
func (p *pump) send(a *source.Attempt, msg *message.Message) bool {
	// Mostly the application waits already, and a lone send costs a third of what
	// the choice among three does.
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

// timeoutOf returns a channel that has a value when the timeout of an attempt has run out, or nil.
func timeoutOf(a *source.Attempt) (timeout <-chan time.Time, stop func() bool) {
	deadline, ok := a.Deadline()
	if !ok {
		return nil, func() bool { return false }
	}
	timer := time.NewTimer(time.Until(deadline))
	return timer.C, timer.Stop
}

// await waits until the application ends a message, and returns how: by Expire if the timeout comes first, and
// by nothing if no caller waits for the end any more.
func await(a *source.Attempt, msg *message.Message, timeout <-chan time.Time, drained <-chan struct{}) source.Outcome {
	select {
	case <-msg.Acked():
	case <-msg.Nacked():
	case <-timeout:
	case <-drained:
	}
	// The choice among the cases above is by chance, and this goroutine may be late.
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

// outcomeOf returns how the application has ended a message, or nothing.
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

// undecodableOutcome is the end of an attempt of which no message can be made.
func undecodableOutcome(err error) source.Outcome {
	o := source.Outcome{Kind: source.Undecodable, Reason: "undecodable", Err: err}
	var failure *DecodeError
	if errors.As(err, &failure) {
		o.Reason = failure.Error()
	}
	return o
}

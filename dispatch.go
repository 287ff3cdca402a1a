package redischannels

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/flaminco/redischannels/internal/stream"
	"github.com/flaminco/redischannels/internal/window"
)

// dispatch hands messages to the application until the window is closed.
func (s *subscription) dispatch() {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for s.fetch.Err() == nil {
		it, wait := s.win.Next()
		if it != nil {
			s.handOver(it)
			continue
		}
		var due <-chan time.Time
		if wait > 0 {
			timer.Reset(wait)
			due = timer.C
		}
		select {
		case <-s.win.Ready:
		case <-due:
		case <-s.fetch.Done():
		}
	}
}

// handOver offers one message and sees to it that its settlement is awaited.
func (s *subscription) handOver(it *window.Item) {
	count := it.Handed + 1
	if s.cfg.MaxDeliveries > 0 && count > s.cfg.MaxDeliveries {
		s.giveUp(it, fmt.Sprintf("delivered %d times without success", it.Handed))
		return
	}
	msg, _ := it.Message.(*message.Message)
	if msg == nil {
		var err error
		if msg, err = s.decoder.decode(&it.Entry); err != nil {
			s.undecodable(it, err)
			return
		}
	} else {
		it.Message = nil // each attempt has a message of its own
	}
	if it.Reason != "" { // the ordering key could not be had
		s.giveUp(it, it.Reason)
		return
	}

	d := &delivery{from: &s.origin, id: it.Text, count: count}
	if s.grp == nil || !s.win.OfferLeased(it, d) {
		if s.grp != nil && !s.ensureLease(it, count) {
			return
		}
		s.win.Offer(it, d)
	}
	msg.SetContext(d)
	entrusted := s.feed != nil && !s.strict() && s.cfg.HandlerTimeout == 0 && s.entrust(it, d)
	if !s.send(it, msg) {
		if entrusted {
			s.abandon(d)
		}
		return
	}
	s.counters.handedOver(count)
	s.started(it, d)
	switch {
	case entrusted:
	case s.strict():
		s.watch(it, msg, d)
	default:
		s.handlers.Go(func() { s.watch(it, msg, d) })
	}
}

// strict reports whether the next message waits for the settlement of this one.
func (s *subscription) strict() bool { return s.cfg.MaxInFlight == 1 }

// send gives a message to the application. It reports false if that has not taken it and
// the item is taken care of.
func (s *subscription) send(it *window.Item, msg *message.Message) bool {
	// Mostly the application waits already, and a lone send costs a third of what
	// the choice among three does.
	select {
	case s.out <- msg:
		return true
	default:
	}
	for {
		select {
		case s.out <- msg:
			return true
		case <-s.recall:
			if s.win.Recalled(it) {
				s.takeBack(it)
				return false
			}
		case <-s.fetch.Done():
			s.handBackAtEnd([]*window.Item{it})
			s.win.Done(it)
			return false
		}
	}
}

// started says that the application has a message. Of a Reader that may be later than that
// it tells of the settlement: whoever is first says it.
func (s *subscription) started(it *window.Item, d *delivery) {
	if s.win.Started(it) {
		d.end()
	}
}

// entrust leaves it to a Reader to tell of an acknowledgement. It reports false when the
// subscription waits for none any more.
func (s *subscription) entrust(it *window.Item, d *delivery) bool {
	s.handlers.Add(1)
	if !d.item.CompareAndSwap(nil, it) {
		s.handlers.Done()
		return false
	}
	select {
	case <-s.abandoned: // before the item was there
		s.abandon(d)
	default:
	}
	return true
}

// acknowledged ends what entrust has begun.
func (s *subscription) acknowledged(it *window.Item, d *delivery) {
	s.started(it, d)
	d.end()
	if !s.settled(it) {
		s.handlers.Done()
		return
	}
	go func() { // OnEvent may be slow, or it is OnEvent that has acknowledged
		defer s.handlers.Done()
		s.settledLate(it.Text)
	}()
}

// abandon ends what entrust has begun without a settlement.
func (s *subscription) abandon(d *delivery) {
	if d.take() != nil {
		d.end()
		s.handlers.Done()
	}
}

// takeBack ends an offer that the application did not take up: the entry is
// somebody else's, or has waited for so long that a peer should have it. In the
// latter case peers get the time of a claim walk before it is offered again.
func (s *subscription) takeBack(it *window.Item) {
	if s.win.Lost(it) {
		s.win.Done(it)
		return
	}
	s.win.Rest(s.cfg.Tuning.ClaimInterval + s.cfg.Tuning.ClaimInterval/5)
	s.handBack(s.settleCtx, []*window.Item{it})
	s.win.Done(it)
	s.report(Event{Kind: EventReleased, EntryIDs: []string{it.Text}})
}

// ensureLease sees to it that the entry is ours for the time being and that Redis
// counts the delivery that is about to happen. It reports false when the item
// cannot be handed over now; the item is then taken care of.
func (s *subscription) ensureLease(it *window.Item, count int) bool {
	set := stream.KeepCount
	if !it.Counted {
		set = count
	}
	sent := time.Now()
	states, err := s.grp.Hold(s.settleCtx, stream.KeepIdle, []string{it.Text}, []int{set})
	if err != nil {
		attempt := 1
		if !s.groupMissing(err) {
			attempt = s.outage.failed(dutyControl, err)
		}
		s.win.Return(it)
		pause(s.fetch.Done(), retryDelay(attempt))
		return false
	}
	s.outage.over(dutyControl)
	switch states[0] {
	case stream.Owned:
		s.win.Renewed(sent, it)
		s.win.SetCounted(it)
		return true
	case stream.Trimmed:
		s.trimmed(it)
		return true
	case stream.NotPending:
		s.vanished(it)
	default:
		s.lost(it, states[0])
	}
	switch {
	case s.win.Gone(it):
		return true
	case s.win.Lost(it):
		s.win.Done(it)
	default:
		s.win.Return(it) // it is back
	}
	return false
}

// watch waits until the application settles a message.
func (s *subscription) watch(it *window.Item, msg *message.Message, d *delivery) {
	var timeout <-chan time.Time
	if deadline, ok := d.Deadline(); ok {
		timer := time.NewTimer(time.Until(deadline))
		defer timer.Stop()
		timeout = timer.C
	}
	late := false
	select {
	case <-msg.Acked():
	case <-msg.Nacked():
	case <-s.abandoned:
	case <-timeout:
		late = true
	}
	select { // the choice among the cases above is by chance, and this goroutine may be late
	case <-msg.Acked():
		d.end()
		s.acked(it)
	case <-msg.Nacked():
		d.end()
		s.nacked(it, d.verdict.Load())
	default:
		if late {
			s.timedOut(it, msg, d)
		} else {
			d.end()
		}
	}
}

// timedOut counts as a nack. In strict order the next attempt waits until the old
// handler is done, because two handlers at once have no order.
func (s *subscription) timedOut(it *window.Item, msg *message.Message, d *delivery) {
	d.expire()
	s.report(Event{Kind: EventHandlerTimeout, EntryIDs: []string{it.Text}})
	id, strict := it.Text, s.strict()
	if !strict {
		s.nacked(it, d.verdict.Load())
	}
	select {
	case <-msg.Acked():
		s.report(Event{Kind: EventAckIgnored, EntryIDs: []string{id},
			Err: errors.New("acknowledged after HandlerTimeout")})
	case <-msg.Nacked():
	case <-s.abandoned:
		return
	}
	if strict {
		s.nacked(it, d.verdict.Load())
	}
}

func (s *subscription) acked(it *window.Item) {
	if s.settled(it) {
		s.settledLate(it.Text)
	}
}

// settled ends an item that was acknowledged, and reports whether that came too late.
func (s *subscription) settled(it *window.Item) (late bool) {
	if s.grp == nil {
		s.win.Finish(it)
		return false
	}
	return s.win.Acked(it)
}

func (s *subscription) nacked(it *window.Item, v *verdict) {
	switch {
	case s.win.Lost(it):
		s.settledLate(it.Text)
		s.win.Finish(it)
	case v != nil && v.handBack:
		s.win.Unhand(it)
	case v != nil && v.reject:
		s.giveUp(it, v.reason)
	case s.cfg.MaxDeliveries > 0 && it.Handed >= s.cfg.MaxDeliveries:
		s.giveUp(it, fmt.Sprintf("delivered %d times without success", it.Handed))
	case v != nil && v.retryAfter:
		s.win.Backoff(it, v.delay)
	default:
		s.win.Backoff(it, s.cfg.NackBackoff.delay(it.Handed, rand.Float64()))
	}
}

// giveUp ends the attempts at a message: by a dead letter in a group, by passing
// it elsewhere.
func (s *subscription) giveUp(it *window.Item, reason string) {
	if reason == "" {
		reason = "rejected"
	}
	if s.grp != nil {
		it.Reason = reason
		s.win.Settle(it)
		return
	}
	s.report(Event{Kind: EventSkipped, EntryIDs: []string{it.Text}, Err: errors.New(reason)})
	s.win.Finish(it)
}

// undecodable ends an entry that makes no message.
func (s *subscription) undecodable(it *window.Item, err error) {
	if s.grp != nil {
		s.giveUp(it, err.Error())
		return
	}
	s.report(Event{Kind: EventUndecodable, EntryIDs: []string{it.Text}, Err: err})
	s.win.Finish(it)
}

func (s *subscription) settledLate(ids ...string) {
	s.report(Event{Kind: EventAckIgnored, EntryIDs: ids, Err: ErrNotOwner})
}

// lost handles an entry that a script found to be somebody else's, or nobody's.
func (s *subscription) lost(it *window.Item, state stream.State) {
	value, first := s.win.Lose(it, state == stream.NotPending)
	if !first {
		return
	}
	err := fmt.Errorf("%w: another consumer has claimed it", ErrNotOwner)
	if state == stream.NotPending {
		err = fmt.Errorf("%w: it is not pending in the group", ErrNotOwner)
	}
	s.report(Event{Kind: EventLeaseLost, EntryIDs: []string{it.Text}, Err: err})
	if d, ok := value.(*delivery); ok {
		d.end()
		select {
		case s.recall <- struct{}{}:
		default:
		}
	}
}

// trimmed handles an entry that the stream no longer has. It lives on in memory.
func (s *subscription) trimmed(it *window.Item) {
	if s.win.SetGone(it) {
		s.report(Event{Kind: EventTrimmed, EntryIDs: []string{it.Text}})
	}
}

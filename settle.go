package redischannels

import (
	"errors"
	"fmt"
	"time"

	"github.com/flaminco/redischannels/internal/redisconn"
	"github.com/flaminco/redischannels/internal/stream"
	"github.com/flaminco/redischannels/internal/window"
)

// ackBatch is how many entries one acknowledgement covers at most.
const ackBatch = 1000

// settle writes settlements until flushing is closed and none is left. Those that
// arrive while a batch is being written make up the next one, so a single message
// is acknowledged at once and a flood in batches.
func (s *subscription) settle() {
	var (
		items    []*window.Item
		flushing = s.flushing
		wait     time.Duration
		timer    = time.NewTimer(0)
	)
	defer timer.Stop()
	for {
		var retry <-chan time.Time
		if wait > 0 {
			timer.Reset(wait)
			retry = timer.C
		}
		select {
		case <-s.win.Flush:
		case <-retry:
		case <-flushing:
			flushing = nil // look once more, then leave when nothing is left
		case <-s.settleCtx.Done():
			if items = s.win.Settling(items[:0]); len(items) > 0 {
				s.report(Event{Kind: EventAbandoned, EntryIDs: texts(items),
					Err: errors.New("settlements could not be written in time")})
			}
			return
		}
		items = s.win.Settling(items[:0])
		wait = s.write(items)
		clear(items)
		if flushing == nil {
			if items = s.win.Settling(items[:0]); len(items) == 0 {
				return
			}
			wait = max(wait, time.Millisecond)
		}
	}
}

// write writes the settlements that are due and returns the time until the next of
// those that have failed, or 0.
func (s *subscription) write(items []*window.Item) (wait time.Duration) {
	s.writing.Lock()
	defer s.writing.Unlock()
	now := time.Now()
	standings := s.win.Standings(items, make([]window.Standing, 0, len(items)))
	leased := make([]*window.Item, 0, len(items))
	var unsure, dead, late []*window.Item
	for i, it := range items {
		switch standing := standings[i]; {
		case !it.Retry.IsZero() && it.Retry.After(now):
		case standing == window.StandingLost:
			late = append(late, it)
		case it.Reason != "":
			dead = append(dead, it)
		case standing == window.StandingGone:
			s.win.Done(it)
		case standing == window.StandingLeased && !it.Sent:
			leased = append(leased, it)
		default:
			unsure = append(unsure, it)
		}
	}
	if len(late) > 0 {
		s.settledLate(texts(late)...)
		s.win.Done(late...)
	}
	for len(leased) > 0 {
		n := min(len(leased), ackBatch)
		s.ack(leased[:n])
		leased = leased[n:]
	}
	s.ackOwned(unsure)
	for _, it := range dead {
		s.moveToDeadLetter(it)
	}
	for _, it := range items {
		if it.Retry.IsZero() {
			continue
		}
		if d := it.Retry.Sub(now); d > 0 && (wait == 0 || d < wait) {
			wait = d
		}
	}
	return wait
}

// ack acknowledges entries whose lease holds: nobody else can own them.
func (s *subscription) ack(items []*window.Item) {
	ids := make([]*string, len(items))
	for i, it := range items {
		ids[i] = &it.Text
	}
	n, lost, err := s.grp.Ack(s.settleCtx, ids)
	switch {
	case redisconn.Classify(err) == redisconn.KindNetwork:
		if lost {
			sent(items)
		}
		s.ackOwned(items)
		return
	case err != nil:
		s.settleFailed(err, items)
		return
	case n == 0:
		// The group is gone, which XACK does not say, or was made again without or,
		// by now, with these entries: what a script finds is final.
		s.ackOwned(items)
		return
	}
	s.settleErr.over(dutySettle)
	s.win.Done(items...)
	if missing := len(items) - int(n); missing > 0 {
		// Somebody acknowledged them without owning them.
		s.report(Event{Kind: EventAckIgnored, Count: missing,
			Err: fmt.Errorf("%w: %d of %d acknowledged entries were not pending", ErrNotOwner, missing, len(items))})
	}
}

// ackOwned acknowledges entries of which it is not certain who owns them, or whether they
// are acknowledged already.
func (s *subscription) ackOwned(items []*window.Item) {
	for len(items) > 0 {
		batch := items[:min(len(items), ackBatch/10)]
		states, lost, err := s.grp.AckOwned(s.settleCtx, texts(batch))
		if lost {
			sent(batch)
		}
		if err != nil {
			s.settleFailed(err, items) // as would the others
			return
		}
		s.settleErr.over(dutySettle)
		var late []string
		for i, it := range batch {
			if states[i] != stream.Owned && (states[i] != stream.NotPending || !it.Sent) {
				late = append(late, it.Text)
			}
		}
		s.win.Done(batch...)
		if len(late) > 0 {
			s.settledLate(late...)
		}
		items = items[len(batch):]
	}
}

// sent notes that the reply to an acknowledgement did not come: what is not pending any more
// was acknowledged by it.
func sent(items []*window.Item) {
	for _, it := range items {
		it.Sent = true
	}
}

// settleFailed keeps items for a later attempt; their entries stay leased.
func (s *subscription) settleFailed(err error, items []*window.Item) {
	switch gone := s.groupMissing(err); {
	case gone && s.fetch.Err() != nil:
		s.settledLate(texts(items)...) // nobody is left to make it again
		s.win.Done(items...)
		return
	case !gone:
		s.settleErr.failed(dutySettle, err, texts(items)...)
	}
	now := time.Now()
	for _, it := range items {
		it.Attempts++
		it.Retry = now.Add(retryDelay(it.Attempts))
	}
}

// moveToDeadLetter moves one entry to the dead-letter stream.
func (s *subscription) moveToDeadLetter(it *window.Item) {
	move := stream.DeadLetterMove{
		Topic:     s.topic,
		DeadTopic: s.deadTopic,
		Group:     s.group,
		Consumer:  s.grp.Consumer,
		EntryID:   it.Text,
		Reason:    it.Reason,
		Count:     it.Handed,
		Again:     it.Attempts > 0,
		Trim:      s.cfg.DeadLetterRetention.trim(time.Now()),
	}
	if s.win.Gone(it) {
		move.Fields = namesAndValues(&it.Entry)
	}
	result, err := stream.MoveToDeadLetter(s.settleCtx, s.cfg.Client, move)
	if err == nil && result.Outcome == stream.DeadLetterGone && move.Fields == nil {
		s.trimmed(it)
		move.Fields = namesAndValues(&it.Entry)
		result, err = stream.MoveToDeadLetter(s.settleCtx, s.cfg.Client, move)
	}
	if err != nil {
		s.deadLetterFailed(err, it)
		return
	}
	s.win.Done(it)
	if result.Outcome == stream.DeadLetterMoved {
		s.report(Event{Kind: EventDeadLettered, EntryIDs: []string{it.Text}, Err: errors.New(it.Reason)})
	} else {
		s.settledLate(it.Text)
	}
}

func (s *subscription) deadLetterFailed(err error, it *window.Item) {
	it.Attempts++
	it.Retry = time.Now().Add(retryDelay(it.Attempts))
	if it.Attempts == 1 {
		s.report(Event{Kind: EventDeadLetterFailed, EntryIDs: []string{it.Text}, Err: redisError(err)})
	}
}

// namesAndValues returns names and values in turn.
func namesAndValues(e *stream.Entry) []string {
	var flat []string
	e.Fields(func(name, value []byte) { flat = append(flat, string(name), string(value)) })
	return flat
}

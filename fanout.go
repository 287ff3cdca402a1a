package redischannels

import (
	"context"
	"time"

	"github.com/flaminco/redischannels/internal/stream"
	"github.com/flaminco/redischannels/internal/window"
)

// openFanOut resolves the start to an entry ID and sees to it that reading works.
func (s *subscription) openFanOut(ctx context.Context, from Position) error {
	info, err := stream.Stat(ctx, s.cfg.Client, s.topic)
	if err != nil {
		return err
	}
	s.cursor = from.id
	if from.kind == positionLatest {
		s.cursor = info.Last
	}
	s.position = info.Position(s.cursor)
	// What it reads is read again; it fails where reading fails for want of rights.
	if _, err := stream.ReadAfter(ctx, s.cfg.Client, s.topic, s.cursor, 1); err != nil {
		return err
	}
	s.checkGap(info)
	return nil
}

// readFanOut reads the stream into the window until stop: up to its end by reads of its
// own, from there on through the reader that subscriptions share. The cursor is all
// that it needs: what a lost reply had is read again.
func (s *subscription) readFanOut() {
	s.shared.attach(s)
	defer s.shared.detach(s)
	check := false
	for s.fetch.Err() == nil {
		count := s.win.BeginRead()
		if count == 0 {
			select {
			case <-s.win.Room:
			case <-s.fetch.Done():
			}
			continue
		}
		// After an error the stream may be another one; behind others it may be
		// trimmed ahead of us.
		if check {
			if err := s.checkStream(); err != nil {
				s.win.EndRead(0)
				s.fanOutFailed(err)
				continue
			}
		}
		// A short page reaches beyond what the shared reader has delivered before.
		shared := s.shared.delivered(s.topic)
		entries, err := stream.ReadAfter(s.fetch, s.cfg.Client, s.topic, s.cursor, count)
		s.win.EndRead(len(entries))
		check = true
		if err != nil {
			s.fanOutFailed(err)
			continue
		}
		s.counters.read()
		s.outage.over(dutyRead)
		s.admitFanOut(entries)
		if len(entries) == count {
			continue
		}
		if s.cursor.Less(shared) {
			s.cursor = shared // the entries between were deleted
		}
		if !s.shared.join(s) {
			continue
		}
		select {
		case <-s.behind:
		case <-s.fetch.Done():
		}
	}
}

// admitFanOut puts entries behind the cursor into the window.
func (s *subscription) admitFanOut(entries []stream.Entry) {
	if len(entries) == 0 {
		return
	}
	items := make([]window.Item, len(entries))
	for i, e := range entries {
		items[i] = window.Item{Entry: e, Counted: true}
		s.decoder.prepare(&items[i])
	}
	s.cursor = entries[len(entries)-1].ID
	if s.position != stream.UnknownPosition {
		s.position += int64(len(entries))
	}
	s.win.Admit(items, time.Now())
}

// takeShared admits what the shared reader has read as far as there is room, and
// reports whether that was all.
func (s *subscription) takeShared(entries []stream.Entry) bool {
	for len(entries) > 0 && !s.cursor.Less(entries[0].ID) {
		entries = entries[1:]
	}
	room, bytes := s.win.Spare()
	n := 0
	for n < len(entries) && n < room && bytes > 0 {
		bytes -= entries[n].Size
		n++
	}
	s.admitFanOut(entries[:n])
	return n == len(entries)
}

// checkStream notices a stream that went back and entries that were trimmed.
func (s *subscription) checkStream() error {
	info, err := stream.Stat(s.fetch, s.cfg.Client, s.topic)
	if err != nil {
		return err
	}
	if info.Last.Less(s.cursor) {
		s.report(Event{Kind: EventRewound, Position: info.Last.String()})
		s.cursor, s.position = stream.ID{}, info.Head()
		return nil
	}
	s.checkGap(info)
	return nil
}

func (s *subscription) checkGap(info stream.Info) {
	if s.cursor == info.Last {
		s.position = info.Added // from now on it is known
	}
	if !info.Gap(s.cursor, s.position) {
		return
	}
	gap := &GapError{Topic: s.topic, Asked: s.cursor.String()}
	if !info.First.IsZero() {
		gap.FirstAvailable = info.First.String()
		s.cursor = info.First.Prev()
	} else {
		s.cursor = info.Last
	}
	s.position = info.Head()
	s.report(Event{Kind: EventGap, Err: gap})
	if s.feed != nil {
		s.feed.gap(gap)
	}
}

func (s *subscription) fanOutFailed(err error) {
	if s.fetch.Err() != nil {
		return
	}
	if timedOut(err) && s.outage.quiet() {
		return
	}
	attempt := s.outage.failed(dutyRead, err)
	pause(s.fetch.Done(), retryDelay(attempt))
}

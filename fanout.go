package redischannels

import (
	"context"
	"time"

	"github.com/flaminco/redischannels/internal/stream"
	"github.com/flaminco/redischannels/internal/window"
)

// rewindCheck is how often a quiet reader looks whether its stream went back.
const rewindCheck = 30 * time.Second

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
	if err := s.reader.Probe(ctx); err != nil {
		return err
	}
	s.checkGap(info)
	return nil
}

// readFanOut reads the stream into the window until stop. The cursor is all that
// it needs: what a lost reply had is read again.
func (s *subscription) readFanOut() {
	checked, behind, failed := time.Now(), false, false
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
		if failed || behind || time.Since(checked) > rewindCheck {
			if err := s.checkStream(); err != nil {
				s.win.EndRead(0)
				failed = true
				s.fanOutFailed(err)
				continue
			}
			checked, failed = time.Now(), false
		}
		entries, err := s.reader.Read(s.fetch, s.cursor, count)
		s.win.EndRead(len(entries))
		if err != nil {
			failed = true
			s.fanOutFailed(err)
			continue
		}
		s.counters.read()
		s.outage.over(dutyRead)
		if len(entries) == 0 {
			behind = false
			continue
		}
		behind = len(entries) == count
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

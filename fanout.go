package redischannels

import (
	"context"
	"slices"
	"time"

	"github.com/flaminco/redischannels/internal/redisconn"
	"github.com/flaminco/redischannels/internal/stream"
	"github.com/flaminco/redischannels/internal/window"
)

// openFanOut resolves the start to an entry ID and sees to it that reading works.
func (s *subscription) openFanOut(ctx context.Context, from Position) error {
	info, err := stream.Stat(ctx, s.cfg.Client, s.topic)
	if err != nil {
		return err
	}
	s.cursor = from.cursor(info)
	// What it reads is read again; it fails where reading fails for want of rights.
	err = redisconn.Follow(ctx, s.cfg.Client, func() error {
		_, err := stream.ReadAfter(ctx, s.cfg.Client, s.topic, s.cursor.ID, 1)
		return err
	})
	if err != nil {
		return err
	}
	s.checkCursor(nil, info)
	return nil
}

// readFanOut reads the stream into the window until stop: up to its end by reads of its
// own, from there on through the reader that subscriptions share. The cursor is all
// that it needs: what a lost reply had is read again.
func (s *subscription) readFanOut() {
	s.shared.attach(s)
	defer s.shared.detach(s)
	for s.fetch.Err() == nil {
		count := s.win.BeginRead()
		if count == 0 {
			select {
			case <-s.win.Room:
			case <-s.fetch.Done():
			}
			continue
		}
		// A short page reaches beyond what the shared reader has delivered before.
		shared := s.shared.delivered(s.topic)
		entries, info, err := s.readAfter(count)
		s.win.EndRead(len(entries))
		if err != nil {
			s.fanOutFailed(err)
			continue
		}
		s.counters.read()
		s.outage.over(dutyRead)
		rewound := s.checkCursor(entries, info)
		s.admitFanOut(entries)
		full := len(entries) == count
		stream.Recycle(entries)
		if rewound || full {
			continue
		}
		if s.cursor.ID.Less(shared) {
			s.cursor.ID = shared // the entries between were deleted
		}
		if !s.shared.join(s) {
			continue
		}
		select {
		case <-s.behind:
		case <-s.fetch.Done():
			return
		}
		if err := s.shared.failure(s); err != nil {
			s.outage.failed(dutyShared, err)
		} else {
			s.outage.over(dutyShared)
		}
	}
}

// readAfter reads up to count entries behind the cursor, and then looks at the stream.
func (s *subscription) readAfter(count int) ([]stream.Entry, stream.Info, error) {
	entries, err := stream.ReadAfter(s.fetch, s.cfg.Client, s.topic, s.cursor.ID, count)
	if err != nil {
		return nil, stream.Info{}, err
	}
	info, err := stream.Stat(s.fetch, s.cfg.Client, s.topic)
	if err != nil {
		return nil, stream.Info{}, err // they are read again
	}
	return entries, info, nil
}

// checkCursor moves the cursor behind entries that were read and reports a stream that went
// back, where it returns true, and entries that were trimmed before these.
func (s *subscription) checkCursor(entries []stream.Entry, info stream.Info) bool {
	asked := s.cursor.ID
	missed, rewound := s.cursor.Check(entries, info)
	if rewound {
		s.report(Event{Kind: EventRewound, Position: info.Last.String()})
	}
	if missed {
		gap := newGapError(s.topic, asked, entries, info)
		s.report(Event{Kind: EventGap, Err: gap})
		if s.feed != nil {
			var behind stream.ID
			if len(entries) == 0 {
				behind = s.cursor.ID
			}
			s.feed.gap(gap, behind)
		}
	}
	return rewound
}

func newGapError(topic string, asked stream.ID, entries []stream.Entry, info stream.Info) *GapError {
	gap := &GapError{Topic: topic, After: asked.String()}
	switch {
	case len(entries) > 0:
		gap.FirstAvailable = entries[0].Text
	case !info.First.IsZero():
		gap.FirstAvailable = info.First.String()
	}
	return gap
}

// admitFanOut puts entries into the window.
func (s *subscription) admitFanOut(entries []stream.Entry) {
	for block := range slices.Chunk(entries, admitBlock) {
		items := make([]window.Item, len(block))
		for i := range block {
			items[i] = s.newItem(&block[i])
		}
		s.win.Admit(items, time.Now())
	}
}

// takeShared admits what the shared reader has read as far as there is room, and
// reports whether that was all. info is of after the read, nil where nothing is missing.
func (s *subscription) takeShared(entries []stream.Entry, info *stream.Info) bool {
	for len(entries) > 0 && !s.cursor.ID.Less(entries[0].ID) {
		entries = entries[1:]
	}
	room, bytes := s.win.Spare()
	n := 0
	for n < len(entries) && n < room && bytes > 0 {
		bytes -= entries[n].Size
		n++
	}
	if info == nil {
		s.cursor.Move(entries[:n])
	} else if n > 0 {
		s.checkCursor(entries[:n], *info)
	}
	s.admitFanOut(entries[:n])
	return n == len(entries)
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

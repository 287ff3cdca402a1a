package redischannels

import (
	"context"
	"errors"
	"maps"
	"net"
	"slices"
	"time"

	"github.com/flaminco/redischannels/internal/redisconn"
	"github.com/flaminco/redischannels/internal/stream"
	"github.com/flaminco/redischannels/internal/window"
)

const (
	// ownPage is how many of our own pending entries are listed at once.
	ownPage = 100
	// admitBlock is how many items have their memory together: few enough for the allocator's
	// sizes of small objects, and for one of them not to keep many others.
	admitBlock = 32
)

// connected ends all leases: another connection may mean another server, which may not know
// what the old one gave us. The reader can wait for long in its first read by it.
func (s *subscription) connected() {
	s.win.Void()
	signal(s.renewNow)
}

// readGroup fetches entries of the group into the window until stop.
func (s *subscription) readGroup() {
	for s.fetch.Err() == nil {
		if !s.step() {
			continue
		}
		count := s.win.BeginRead()
		if count == 0 {
			s.awaitRoom()
			continue
		}
		before := s.lastSeen.Load()
		entries, err := s.reader.ReadGroup(s.fetch, s.group, s.grp.Consumer, count)
		s.win.EndRead(len(entries))
		if err != nil {
			if s.unread == nil {
				s.unread = before
			}
			s.readFailed(err)
			continue
		}
		s.counters.read()
		s.outage.over(dutyRead)
		s.restores = 0
		s.admit(entries, s.reader.Sent())
		stream.Recycle(entries)
	}
}

// step does what comes before reading new entries, for the sake of order: entries
// that are ours already, then those that the walk can claim. It reports whether
// reading may go on.
func (s *subscription) step() bool {
	if cause := s.missing.Swap(nil); cause != nil {
		s.readFailed(*cause)
		return false
	}
	if s.ownLost.Load() && !s.win.Paused() {
		if err := s.recoverOwn(s.fetch); err != nil {
			s.readFailed(err)
			return false
		}
	}
	if !s.walk.active() {
		return true
	}
	if s.win.ClaimRoom() == 0 {
		s.awaitRoom()
		return false
	}
	if err := s.stepWalk(s.fetch); err != nil {
		s.walk.end()
		s.readFailed(err)
		return false
	}
	return !s.walk.active()
}

// awaitRoom waits until there may be room for entries, or until stop. An outage of the
// connection is over then if our own entries could be looked at since: until the application
// has finished something there is no read that would show it.
func (s *subscription) awaitRoom() {
	if s.cut && !s.ownLost.Load() {
		s.cut = false
		s.outage.over(dutyRead)
	}
	select {
	case <-s.win.Room:
	case <-s.fetch.Done():
	}
}

// admit puts new entries into the window.
func (s *subscription) admit(entries []stream.Entry, sent time.Time) {
	if len(entries) == 0 {
		return
	}
	var held map[stream.ID]struct{}
	if !s.lastSeen.Load().Less(entries[0].ID) {
		// Delivered a second time: the group was made again where it stood for
		// another consumer, which did not know of what we have.
		held = s.win.IDs()
	}
	if s.firstSeen.Load() == nil {
		first := entries[0].ID
		s.firstSeen.Store(&first)
	}
	s.sawID(entries[len(entries)-1].ID)
	for block := range slices.Chunk(entries, admitBlock) {
		items := make([]window.Item, 0, len(block))
		for i := range block {
			if _, ok := held[block[i].ID]; !ok {
				items = append(items, s.newItem(&block[i]))
			}
		}
		s.win.Admit(items, sent)
	}
}

// newItem makes an item of an entry that was not delivered before.
func (s *subscription) newItem(e *stream.Entry) window.Item {
	it := window.Item{Entry: e.Share(), Counted: true}
	s.decoder.prepare(&it)
	return it
}

// sawID remembers the greatest ID that was delivered to the group.
func (s *subscription) sawID(id stream.ID) {
	for {
		last := s.lastSeen.Load()
		if !last.Less(id) || s.lastSeen.CompareAndSwap(last, &id) {
			return
		}
	}
}

// readFailed decides how reading goes on after an error. Whatever the error, the
// server may have assigned entries to us that we have not seen.
func (s *subscription) readFailed(err error) {
	s.ownLost.Store(true)
	if s.fetch.Err() != nil {
		return
	}
	if timedOut(err) && s.outage.quiet() {
		// Redis starts BLOCK anew when another consumer was faster, so one timeout
		// is not an outage yet. The connection is replaced by the next read.
		return
	}
	switch redisconn.Classify(err) {
	case redisconn.KindNoGroup, redisconn.KindWrongType:
		if err = s.restore(err); err == nil {
			// Something that removes the group again and again must not make this
			// a hot loop.
			if s.restores++; s.restores > 1 {
				pause(s.fetch.Done(), retryDelay(s.restores))
			}
			return
		}
	}
	s.cut = redisconn.Classify(err).Retryable()
	attempt := s.outage.failed(dutyRead, err)
	pause(s.fetch.Done(), retryDelay(attempt))
}

// groupMissing has the reader make the group again if the error says that it is gone,
// and reports whether it does. The reader may be waiting for room and so not notice: a
// nacked message that holds back all others can itself not be handed over without it.
func (s *subscription) groupMissing(err error) bool {
	if redisconn.Classify(err) != redisconn.KindNoGroup {
		return false
	}
	s.missing.Store(&err)
	signal(s.win.Room)
	return true
}

// timedOut reports a read that had no answer in time.
func timedOut(err error) bool {
	var timeout net.Error
	return errors.As(err, &timeout) && timeout.Timeout() && !isCanceled(err)
}

// quiet reports whether there is no outage, once: the next failure is one.
func (o *outage) quiet() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.failing() || o.forgiven {
		return false
	}
	o.forgiven = true
	return true
}

// recoverOwn fetches entries that are pending for this consumer but not held: the
// reply that brought them was lost, or they were handed back and nobody took them.
func (s *subscription) recoverOwn(ctx context.Context) error {
	// What a step of the walk has claimed and not yet admitted is not unseen, nor is what is
	// being handed back.
	s.walk.mu.Lock()
	defer s.walk.mu.Unlock()
	s.ownLost.Store(false)
	var before []any // what is handed back from now on is left for the next time
	s.returned.Range(func(id, _ any) bool {
		before = append(before, id)
		return true
	})
	err := s.eachUnseen(ctx, func(page []stream.Pending) error {
		ids := make([]string, len(page))
		for i, p := range page {
			ids[i] = p.Text
		}
		sent := time.Now()
		if err := s.holdUnseen(ctx, stream.KeepIdle, ids, nil); err != nil {
			return err
		}
		return s.obtain(ctx, ids, sent, func(id stream.ID, count int) int {
			switch n, ok := s.returned.LoadAndDelete(id); {
			case !ok:
				return s.handedBefore(id, count)
			case n != inRedis:
				return n.(int) // Redis could not be told
			}
			return count
		})
	})
	if err != nil {
		return err // ownLost is set again with the error
	}
	s.unread = nil
	for _, id := range before {
		s.returned.Delete(id) // somebody else's by now
	}
	return nil
}

// handedBefore tells from the count in Redis how often an entry of ours that was never seen
// was handed to a handler. A read counts 1 in advance, also where its reply never came; what
// else is here was claimed from one that had it.
func (s *subscription) handedBefore(id stream.ID, count int) int {
	if count == 1 && s.unread != nil && s.unread.Less(id) {
		return 0
	}
	return count
}

// eachUnseen calls f with pages of the entries that are pending for this consumer
// and not held.
func (s *subscription) eachUnseen(ctx context.Context, f func([]stream.Pending) error) error {
	var after stream.ID
	for {
		page, err := s.grp.Own(ctx, after, ownPage)
		if err != nil || len(page) == 0 {
			return err
		}
		after = page[len(page)-1].ID
		full := len(page) == ownPage
		held := s.win.IDs()
		unseen := page[:0]
		for _, p := range page {
			if _, ok := held[p.ID]; !ok {
				unseen = append(unseen, p)
			}
		}
		if len(unseen) > 0 {
			if err := f(unseen); err != nil {
				return err
			}
		}
		if !full {
			return nil
		}
	}
}

// obtain reads the fields of entries that are assigned to this consumer since
// leased, and admits them. handed tells from an entry's count in Redis how often it
// was handed to a handler.
func (s *subscription) obtain(ctx context.Context, ids []string, leased time.Time, handed func(stream.ID, int) int) error {
	if len(ids) == 0 {
		return nil
	}
	// A walk also claims what is held here, where the server was away for longer than
	// MinIdle. Looked at afterwards only, such an entry is one that was fetched, then
	// acknowledged and forgotten: it would be put back into the group.
	before := s.win.IDs()
	for len(ids) > 0 {
		fetched, err := s.grp.Fetch(ctx, ids)
		if err != nil {
			return err
		}
		ids = ids[len(fetched):]
		held := s.win.IDs() // what the reader has admitted meanwhile
		maps.Copy(held, before)
		s.admitFetched(fetched, held, leased, handed)
	}
	return nil
}

// admitFetched is the second half of obtain.
func (s *subscription) admitFetched(fetched []stream.Fetched, held map[stream.ID]struct{}, leased time.Time, handed func(stream.ID, int) int) {
	var trimmed, recovered []string
	items := make([]window.Item, 0, len(fetched))
	for _, f := range fetched {
		switch f.State {
		case stream.Owned:
			if _, ok := held[f.Entry.ID]; ok {
				continue
			}
			n := handed(f.Entry.ID, f.Count)
			it := window.Item{Entry: f.Entry, Handed: n, Counted: f.Count == n+1, Alone: n >= 2}
			s.decoder.prepare(&it)
			items = append(items, it)
			recovered = append(recovered, f.Entry.Text)
			s.sawID(f.Entry.ID)
		case stream.Trimmed:
			trimmed = append(trimmed, f.Entry.Text)
		case stream.OtherOwner, stream.NotPending:
			// Somebody was faster; nothing of it is here.
		}
	}
	s.win.Admit(items, leased)
	if len(recovered) > 0 {
		s.report(Event{Kind: EventRecovered, EntryIDs: recovered})
	}
	if len(trimmed) > 0 {
		s.report(Event{Kind: EventTrimmed, EntryIDs: trimmed})
	}
}

// restore creates the group again after it or its stream vanished.
func (s *subscription) restore(cause error) error {
	// Without the lock: an entry is acknowledged between the look and the script, which
	// then puts it back, and it is handled again.
	s.writing.Lock()
	defer s.writing.Unlock()
	held := s.win.Pending()
	done, err := s.restoreGroup(s.fetch, held)
	if done.Created || done.Lost || len(done.Entries) > 0 {
		position := done.Start
		if !done.Created {
			position = "" // another consumer has created it, or we have and this is an echo
		}
		s.report(Event{Kind: EventGroupLost, EntryIDs: done.Entries, Position: position, Err: redisError(cause)})
	}
	if err != nil {
		return err
	}
	if done.Start == "0-0" {
		// Another stream, which may use the IDs of the entries that are held again.
		s.lastSeen.Store(&stream.ID{})
		s.firstSeen.Store(nil)
		s.unread = nil
		ids := make([]string, len(held))
		for i, h := range held {
			ids[i] = h.Text
		}
		items, _ := s.win.Find(ids)
		for _, it := range items {
			s.trimmed(it)
		}
	}
	s.missing.Store(nil)
	s.win.Void()
	signal(s.renewNow)
	return nil
}

func (s *subscription) restoreGroup(ctx context.Context, held []stream.Pending) (stream.Restored, error) {
	last := *s.lastSeen.Load()
	first := last
	if id := s.firstSeen.Load(); id != nil {
		first = *id
	}
	return s.grp.Restore(ctx, first, last, held)
}

// vanished handles entries that are held but not pending in the group. While a lease
// has not run out nobody can have claimed and settled its entry. So either another
// consumer has made a lost group again and did not know of it: it is put back. Or it
// was trimmed, and another consumer's walk was the first to see that.
func (s *subscription) vanished(items ...*window.Item) {
	s.writing.Lock()
	defer s.writing.Unlock()
	items, held, expired := s.win.Unexpired(items)
	for _, it := range expired {
		s.lost(it, stream.NotPending)
	}
	if len(items) == 0 {
		return
	}
	sent := time.Now()
	done, err := s.restoreGroup(s.settleCtx, held)
	if err != nil {
		s.backgroundFailed(err) // they are found again
		return
	}
	states, err := s.grp.Hold(s.settleCtx, stream.KeepIdle, texts(items), nil)
	for i, state := range states {
		switch it := items[i]; state {
		case stream.Owned:
			s.win.Renewed(sent, it)
			if !slices.Contains(done.Entries, it.Text) { // the reply that said so was lost
				done.Entries = append(done.Entries, it.Text)
			}
		case stream.OtherOwner:
			s.lost(it, stream.OtherOwner)
		case stream.NotPending, stream.Trimmed:
			s.trimmed(it)
		}
	}
	if len(done.Entries) > 0 {
		s.report(Event{Kind: EventGroupLost, EntryIDs: done.Entries,
			Err: errors.New("the group was made again without entries that are held here")})
	}
	if err != nil {
		s.backgroundFailed(err)
	}
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

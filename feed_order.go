package redischannels

import (
	"slices"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/flaminco/redischannels/internal/source"
	"github.com/flaminco/redischannels/internal/stream"
)

// gap is a GapError with its place.
type gap struct {
	*source.GapError
	asked  stream.ID // of the last entry before it
	behind stream.ID // where reading has gone on, if it found nothing behind the gap
}

// ordered returns a message, or a gap that comes before it: then the message is the next
// thing unread. mu is held.
func (f *feed) ordered(msg *message.Message) (*message.Message, error) {
	text, ok := EntryIDFromContext(msg.Context())
	if !ok {
		return msg, nil
	}
	id, err := stream.ParseID(text)
	if err != nil {
		return msg, nil
	}
	if len(f.gaps) > 0 && f.gaps[0].asked.Less(id) {
		f.unread = slices.Insert(f.unread, 0, msg)
		f.keepUnread()
		return nil, f.tellGap()
	}
	if f.last.Less(id) { // not one that comes again
		f.last = id
	}
	return msg, nil
}

// gap notes a gap; it is told behind the messages before it. behind is where reading goes on
// if there is nothing to read behind it.
func (f *feed) gap(err *GapError, behind stream.ID) {
	asked, _ := stream.ParseID(err.After)
	f.mu.Lock()
	f.gaps = append(f.gaps, gap{&source.GapError{Topic: err.Topic, After: err.After, FirstAvailable: err.FirstAvailable}, asked, behind})
	f.mu.Unlock()
	signal(f.gapReady)
}

// tellGap returns the first gap. mu is held.
func (f *feed) tellGap() error {
	first := f.gaps[0]
	f.gaps = f.gaps[1:]
	if f.last.Less(first.behind) {
		f.last = first.behind
	}
	return first.GapError
}

// putUnread gives a message to the next reader, behind those that were put before.
func (f *feed) putUnread(msg *message.Message) {
	f.putBack(msg, func() { f.unread = append(f.unread, msg) })
}

// putNext gives what next has just returned to the next reader, before all else.
func (f *feed) putNext(msg *message.Message) {
	f.putBack(msg, func() { f.unread = slices.Insert(f.unread, 0, msg) })
}

func (f *feed) putBack(msg *message.Message, put func()) {
	f.mu.Lock()
	closed := f.life.Err() != nil
	if !closed {
		put()
		f.keepUnread()
	}
	f.mu.Unlock()
	if closed {
		f.handBack(msg)
	}
}

// keepUnread lets a reader know, and begins the time after which peers may have what
// nobody reads here.
func (f *feed) keepUnread() {
	signal(f.unreadReady)
	if f.timer == nil {
		f.timer = time.AfterFunc(keepUnread, f.giveBack)
	}
}

// takeReady returns what comes before anything new, if there is something: what is unread, or
// a gap up to which everything was read.
func (f *feed) takeReady() (*message.Message, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.unread) == 0 {
		if len(f.gaps) > 0 && !f.last.Less(f.gaps[0].asked) {
			return nil, f.tellGap()
		}
		return nil, nil
	}
	first := f.unread[0]
	f.unread = f.unread[1:]
	if len(f.unread) > 0 {
		signal(f.unreadReady)
	} else if f.timer != nil {
		f.timer.Stop()
		f.timer = nil
	}
	if len(f.gaps) > 0 {
		return f.ordered(first)
	}
	return first, nil
}

// giveBack lets the subscription have what nobody has read.
func (f *feed) giveBack() {
	f.mu.Lock()
	back := f.unread
	f.unread, f.timer = nil, nil
	f.mu.Unlock()
	for _, msg := range back {
		f.handBack(msg)
	}
}

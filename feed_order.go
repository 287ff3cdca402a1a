package redischannels

import (
	"slices"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/flaminco/redischannels/internal/stream"
)

// unread is something that was taken and is to be given to the next reader.
type unread struct {
	msg *message.Message
	err error
}

// gap is a GapError with its place.
type gap struct {
	*GapError
	asked  stream.ID // of the last entry before it
	behind stream.ID // where reading has gone on, if it found nothing behind the gap
}

// received orders what was read from the subscription behind the gaps before it.
func (f *feed) received(msg *message.Message) (*message.Message, error) {
	if f.group != "" {
		return msg, nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.ordered(msg)
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
		f.unread = slices.Insert(f.unread, 0, unread{msg: msg})
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
	f.gaps = append(f.gaps, gap{err, asked, behind})
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
	f.putBack(func() { f.unread = append(f.unread, unread{msg: msg}) }, msg)
}

// putNext gives what next has just returned to the next reader, before all else.
func (f *feed) putNext(msg *message.Message, err error) {
	f.putBack(func() { f.unread = slices.Insert(f.unread, 0, unread{msg, err}) }, msg)
}

func (f *feed) putBack(put func(), msg *message.Message) {
	f.mu.Lock()
	closed := f.life.Err() != nil
	if !closed {
		put()
		f.keepUnread()
	}
	f.mu.Unlock()
	if closed && msg != nil {
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
	if first.msg != nil && len(f.gaps) > 0 {
		return f.ordered(first.msg)
	}
	return first.msg, first.err
}

// giveBack lets the subscription have what nobody has read.
func (f *feed) giveBack() {
	f.mu.Lock()
	var back []*message.Message
	rest := f.unread[:0]
	for _, u := range f.unread {
		if u.msg != nil {
			back = append(back, u.msg)
		} else {
			rest = append(rest, u)
		}
	}
	f.unread, f.timer = rest, nil
	f.mu.Unlock()
	for _, msg := range back {
		f.handBack(msg)
	}
}

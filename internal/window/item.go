package window

import (
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/flaminco/redischannels/internal/source"
	"github.com/flaminco/redischannels/internal/stream"
)

// Item is one entry in the window. Exported fields are set before Admit. Fields that are set by
// methods are guarded by the lock of the window.
type Item struct {
	stream.Entry
	Stream    int     // which stream of the subscription it is from
	Delivered int     // deliveries that Redis counts for the entry; set by methods
	Origin    *Origin // of an entry of a return stream
	Key       string  // ordering key
	Message   *message.Message
	Counted   bool          // the count in Redis already includes the next delivery; set by methods
	Suspect   bool          // claimed with a count of 1: it may have been delivered once, which does not count
	Backoff   time.Duration // the rest of its back-off when it is admitted
	Alone     bool          // delivered while nothing else is in flight: it may kill the process

	// For the goroutine that writes the end of the item.
	Reason   string // of its dead letter; empty for an ack
	Attempts int
	Retry    time.Time
	Sent     bool // an acknowledgement was sent and its reply lost
	Deferred bool // it must be stored until its retry is due, for the Reason; set by methods

	owner    owner
	offered  bool // and not started
	recalled bool
	ownsKey  bool
	detached bool
	probe    bool // read although back-offs filled the window
	batch    int  // of its last delivery
	split    int  // its sub-batch, 0 for none
	attempt  *source.Attempt
	leased   instant // when the command that obtained or renewed the lease was sent
	admitted instant
	started  instant // its delivery
	due      instant
	delay    time.Duration // see Delay

	in         *list
	prev, next *Item
}

// Origin is the original of an entry of a return stream.
type Origin struct {
	ID        stream.ID
	Text      string
	Delivered int // deliveries that were counted before
}

// Deliveries returns the delivery count of this entry and its original.
func (it *Item) Deliveries() int {
	if it.Origin != nil {
		return it.Origin.Delivered + it.Delivered
	}
	return it.Delivered
}

// EntryID returns the ID of the entry in the topic.
func (it *Item) EntryID() string {
	if it.Origin != nil {
		return it.Origin.Text
	}
	return it.Text
}

// Original returns the entry of the topic. It is not a share.
func (it *Item) Original() stream.Entry {
	e := it.Entry
	if it.Origin != nil {
		e.ID, e.Text = it.Origin.ID, it.Origin.Text
	}
	return e
}

// Identity is the stream and the ID of an item.
type Identity struct {
	Stream int
	ID     stream.ID
}

// Identity returns that of the item.
func (it *Item) Identity() Identity { return Identity{it.Stream, it.ID} }

// owner is the last known owner of the entry of an item.
type owner uint8

const (
	ownerSelf    owner = iota // if the lease is valid
	ownerOther                // another consumer, or none
	ownerTrimmed              // the stream no longer has it
)

// detach gives an item its own memory.
func (it *Item) detach() {
	if !it.detached {
		it.detached = true
		it.Detach()
	}
}

// Delay returns the rest of the back-off of an item that Close has returned.
func (it *Item) Delay() time.Duration { return it.delay }

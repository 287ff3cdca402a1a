// Package tail reads streams without a consumer group: fan-out subscriptions, Follow,
// History and, through them, Server-Sent Events.
//
// A [Follower] is one place in a stream. It moves to the end of the stream by reads of its
// own, and from there on through a blocked read that all followers of one [Readers] share.
// What is read goes to a [Sink] in stream order, page by page, with the gaps and rewinds in
// their places. A [Pager] is a follower whose pages are pulled; nothing that is only read
// needs more than that. [History] reads up to an end that is fixed when it begins.
//
// Locks: under the one of Readers nothing waits but for a page that is being delivered, and no
// command is sent. The one of a Pager guards its buffer; the shared reader takes it while it
// delivers, under no other.
package tail

import (
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/flaminco/redischannels/internal/stream"
)

// Config is fixed for the life of [Readers].
type Config struct {
	Client       redis.UniversalClient
	BlockTime    time.Duration       // of a shared read
	PageBytes    int                 // of a page of a shared read, about
	OnReadClient func(*redis.Client) // is given each client that is opened; may be nil
}

// Page is what one read has found in a stream.
type Page struct {
	Entries []stream.Entry // the receiver calls [stream.Recycle] when it is done with them
	Gap     *Gap           // entries before Entries were removed before they were read
	Rewound *Rewind        // the stream went back; the next page begins with its first entry
}

// Empty reports whether there is nothing in the page.
func (p *Page) Empty() bool { return len(p.Entries) == 0 && p.Gap == nil && p.Rewound == nil }

// Gap says between which entries others were removed before they were read.
type Gap struct {
	After stream.ID // the last entry that was read, or where reading was to begin
	First stream.ID // the first entry that is left; zero if none is
	Next  stream.ID // reading resumes after this ID, where the page has no entries
}

// Rewind says up to which ID a stream reaches whose IDs went back.
type Rewind struct {
	Last stream.ID
}

// Observer receives the events of one follower, from the goroutine that reads for it.
type Observer interface {
	// Read is called after each read that Redis has replied, with entries or without. It
	// must not block.
	Read()
	// Disconnected is called once per outage.
	Disconnected(err error)
	// Reconnected is called at the end of an outage.
	Reconnected(outage time.Duration)
}

// check moves the cursor behind entries that were read and returns them as a page with what
// info, asked for afterwards, says about those before them.
func check(cursor *stream.Cursor, entries []stream.Entry, info stream.Info) Page {
	page := Page{Entries: entries}
	after := cursor.ID
	missed, rewound := cursor.Check(entries, info)
	if rewound {
		page.Rewound = &Rewind{Last: info.Last}
	}
	if missed {
		page.Gap = &Gap{After: after, First: info.First, Next: cursor.ID}
		if len(entries) > 0 {
			page.Gap.First = entries[0].ID
		}
	}
	return page
}

// pageSize is how many entries a read asks for: few at first, since their size is not known,
// then more from page to page up to what the limits allow.
type pageSize struct {
	n       int
	most    int
	bytes   int // of a page, as far as the sizes seen so far allow to know
	largest int // size of the largest recent entry
}

// firstCount is how many entries are read while their size is not known.
const firstCount = 10

func newPageSize(most, bytes int) pageSize {
	return pageSize{n: min(firstCount, most), most: most, bytes: bytes}
}

// read adapts the size to entries that were read.
func (s *pageSize) read(entries []stream.Entry) {
	if len(entries) == 0 {
		return
	}
	s.largest -= s.largest / 8
	for i := range entries {
		s.largest = max(s.largest, entries[i].Size)
	}
	s.n = min(4*s.n, s.most, max(1, s.bytes/max(1, s.largest)))
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

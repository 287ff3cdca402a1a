// Package tail reads streams without a consumer group: fan-out subscriptions, Follow,
// History and, through them, Server-Sent Events.
//
// A [Follower] is one place in a stream. It moves to the end of the stream by its own reads, and
// then reads by a blocked read that all followers of one [Readers] share. The entries go to a
// [Sink] in stream order, page by page, with the gaps and rewinds in their places. A [Pager] is a
// follower whose pages are pulled, for readers that acknowledge nothing. [History] reads up to an
// end that is fixed when it begins.
//
// Locks: under the lock of Readers code waits only for a page that is being delivered, and sends
// no command. The one of a Pager guards its buffer; the shared reader takes it while it delivers,
// under no other.
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
	OnReadClient func(*redis.Client) // receives each client that is opened; may be nil
}

// Page is the result of one read of a stream.
type Page struct {
	Entries []stream.Entry // the receiver calls [stream.Recycle] when it is done with them
	Gap     *Gap           // entries before Entries were removed before they were read
	Rewound *Rewind        // the stream went back; the next page begins with its first entry
}

// Empty reports whether the page is empty.
func (p *Page) Empty() bool { return len(p.Entries) == 0 && p.Gap == nil && p.Rewound == nil }

// Gap reports that entries were removed before they were read.
type Gap struct {
	After stream.ID // the last entry that was read, or where reading was to begin
	First stream.ID // the first remaining entry; zero if there is none
	Next  stream.ID // reading resumes after this ID, if the page has no entries
}

// Rewind reports that the last ID of a stream went back.
type Rewind struct {
	Last stream.ID
}

// Observer receives the events of one follower, from the goroutine that reads for it.
type Observer interface {
	// Read is called after each reply to a read, with or without entries. It must not block.
	Read()
	// Disconnected is called once per outage.
	Disconnected(err error)
	// Reconnected is called at the end of an outage.
	Reconnected(outage time.Duration)
}

// check moves the cursor behind entries that were read and returns them as a page, with the gap
// or rewind before them according to info, which was read afterwards.
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

// pageSize is the number of entries of a read: few at first, because their size is unknown, then
// more from page to page up to the limits.
type pageSize struct {
	n       int
	most    int
	bytes   int // of a page, as estimated from the sizes so far
	largest int // size of the largest recent entry
}

// firstCount is the number of entries that are read while their size is unknown.
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

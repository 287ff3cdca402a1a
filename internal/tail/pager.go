package tail

import (
	"cmp"
	"context"
	"errors"
	"sync"

	"github.com/flaminco/redischannels/internal/lifecycle"
	"github.com/flaminco/redischannels/internal/stream"
)

// ownBytes is the approximate size of a page that a pager reads by itself.
const ownBytes = 512 << 10

// ErrClosed is the error of a Pager, and of Open, after Close.
var ErrClosed = errors.New("redischannels: pager closed")

// PagerObserver receives the events of a pager, from the goroutine that calls Next, before
// the page that they belong to is returned.
type PagerObserver interface {
	Observer
	Gap(Gap)
	Rewound(Rewind)
}

// Pager reads a stream page by page, for one goroutine that calls Next. It needs no goroutine:
// pages of the shared reader wait in a bounded buffer, and entries that do not fit are read again
// when there is room.
type Pager struct {
	follower *Follower
	observer PagerObserver
	life     *lifecycle.State
	detach   func() bool   // from the life of Readers
	ready    chan struct{} // pages is not empty

	// These belong to the goroutine that calls Next.
	joined bool
	size   pageSize

	mu      sync.Mutex
	pages   []Page // that Open and the shared reader have found
	entries int    // in pages
	bytes   int    // of them
	limit   int
	most    int // bytes
}

// Open returns a pager of a stream that begins at start. Up to entries entries and about bytes bytes wait in the pager. The errors are
// ErrClosed and those of Redis.
func (a *Readers) Open(ctx context.Context, topic string, start stream.Start,
	entries, bytes int, observer PagerObserver) (*Pager, error) {
	if err := a.life.Enter(); err != nil {
		return nil, err
	}
	p := &Pager{
		observer: observer,
		life:     lifecycle.New(ErrClosed),
		ready:    make(chan struct{}, 1),
		size:     newPageSize(entries, min(bytes, ownBytes)),
		limit:    entries,
		most:     bytes,
	}
	_ = p.life.Enter() // Close waits until all is set
	p.follower = a.Follow(topic, p, observer)
	p.detach = context.AfterFunc(a.life.Context(), p.Close)
	ctx, cancel := both(ctx, a.life.Context())
	defer cancel()
	first, err := p.follower.Open(ctx, start)
	p.life.Leave()
	if err == nil {
		err = a.life.Err()
	}
	if err != nil {
		p.Close()
		return nil, cmp.Or(a.life.Err(), err)
	}
	if !first.Empty() {
		p.Put(first)
	}
	return p, nil
}

// At returns the ID behind which the next page begins. It is for before the first Next.
func (p *Pager) At() stream.ID { return p.follower.At() }

// Next waits for the next page, which is not empty, and returns it; it resumes after outages. The
// error is that of ctx or ErrClosed.
func (p *Pager) Next(ctx context.Context) (Page, error) {
	if err := p.life.Enter(); err != nil {
		return Page{}, err
	}
	defer p.life.Leave()
	page, err := p.next(ctx)
	if page.Rewound != nil {
		p.observer.Rewound(*page.Rewound)
	}
	if page.Gap != nil {
		p.observer.Gap(*page.Gap)
	}
	return page, err
}

func (p *Pager) next(ctx context.Context) (Page, error) {
	closed := p.life.Context()
	for {
		if err := cmp.Or(p.life.Err(), ctx.Err()); err != nil {
			return Page{}, err
		}
		if page, ok := p.take(); ok {
			return page, nil
		}
		if !p.joined {
			if page := p.read(ctx); !page.Empty() {
				return page, nil
			}
			continue
		}
		select {
		case <-p.ready:
		case <-p.follower.Expelled():
			p.joined = false
			p.follower.Resume()
		case <-ctx.Done():
		case <-closed.Done():
		}
	}
}

// read reads a page by itself, and joins the shared reader when that was the last one. An empty
// page means no new entries, or an error.
func (p *Pager) read(ctx context.Context) Page {
	ctx, cancel := both(ctx, p.life.Context())
	defer cancel()
	page, end, err := p.follower.Read(ctx, p.size.n)
	if err != nil {
		return Page{}
	}
	p.size.read(page.Entries)
	if end {
		// Later entries wait in the buffer, behind this page.
		p.joined = p.follower.Join()
	}
	return page
}

// both returns a context that ends with either of two.
func both(ctx, other context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	detach := context.AfterFunc(other, cancel)
	return ctx, func() {
		detach()
		cancel()
	}
}

// Close ends reading and returns when the pager has ended, except for a page that a caller of
// Next still uses. It may be called at any time, from any goroutine, and several times.
func (p *Pager) Close() {
	_ = p.life.Close(func() error { // always nil
		<-p.life.Idle()
		p.detach()
		p.follower.Close()
		p.follower.readers.life.Leave()
		return nil
	})
}

// take returns the first page in the buffer.
func (p *Pager) take() (Page, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.pages) == 0 {
		return Page{}, false
	}
	page := p.pages[0]
	p.pages[0] = Page{}
	if p.pages = p.pages[1:]; len(p.pages) == 0 {
		p.pages = nil
	}
	p.entries -= len(page.Entries)
	for i := range page.Entries {
		p.bytes -= page.Entries[i].Size
	}
	return page, true
}

// Room implements Sink.
func (p *Pager) Room(entries []stream.Entry) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	n, bytes := 0, p.bytes
	for n < len(entries) && p.entries+n < p.limit && bytes < p.most {
		bytes += entries[n].Size
		n++
	}
	return n
}

// Put implements Sink.
func (p *Pager) Put(page Page) {
	entries := make([]stream.Entry, len(page.Entries))
	size := 0
	for i := range entries {
		entries[i] = page.Entries[i].Share()
		size += entries[i].Size
	}
	page.Entries = entries
	p.mu.Lock()
	p.pages = append(p.pages, page)
	p.entries += len(entries)
	p.bytes += size
	p.mu.Unlock()
	signal(p.ready)
}

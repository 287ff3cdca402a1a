package tail

import (
	"context"

	"github.com/redis/go-redis/v9"

	"github.com/flaminco/redischannels/internal/backoff"
	"github.com/flaminco/redischannels/internal/outage"
	"github.com/flaminco/redischannels/internal/redisconn"
	"github.com/flaminco/redischannels/internal/stream"
)

// Sink receives the pages of the shared reader for a follower. Its methods are called by the
// goroutine of that reader, one after the other, and must not block for long: all followers of
// the reader wait.
type Sink interface {
	// Room returns how many of the entries, from the first on, the sink accepts.
	Room(entries []stream.Entry) int
	// Put takes a page. Its entries are those of the reader, which recycles them: the sink
	// keeps copies made by [stream.Entry.Share].
	Put(page Page)
}

// Follower is one place in one stream. Its methods but Down are for one goroutine.
type Follower struct {
	readers  *Readers
	topic    *topic
	sink     Sink
	observer Observer
	cursor   stream.Cursor // of the current reader: the shared reader from Join on, until it signals behind
	outage   outage.Outage
	behind   chan struct{} // the shared reader continues without this follower
	unshared error         // why, if it cannot read; guarded by the lock of Readers
}

// Follow returns a follower of a stream, which reads nothing before Open. Close must follow.
func (a *Readers) Follow(topic string, sink Sink, observer Observer) *Follower {
	return &Follower{
		readers:  a,
		topic:    a.attach(topic),
		sink:     sink,
		observer: observer,
		outage: outage.Outage{
			Down: func(err error, _ []string) { observer.Disconnected(err) },
			Up:   observer.Reconnected,
		},
		behind: make(chan struct{}, 1),
	}
}

// Close returns when the sink receives no more pages. The last follower that is closed ends the
// shared reader.
func (f *Follower) Close() { f.readers.detach(f) }

// Open resolves the position at which reading begins, and fails if reading would fail, for
// example without a permission. The page has no entries; it has the gap or the rewind at the
// beginning, if any.
func (f *Follower) Open(ctx context.Context, start stream.Start) (Page, error) {
	var info stream.Info
	err := f.topic.reader.link.Do(ctx, func(client redis.UniversalClient) (err error) {
		if info, err = stream.Stat(ctx, client, start.Look(f.topic.name)); err != nil {
			return err
		}
		f.cursor = start.Cursor(info)
		return redisconn.Follow(ctx, client, func() error {
			_, err := stream.ReadAfter(ctx, client, f.topic.name, f.cursor.ID, 1) // it is read again
			return err
		})
	})
	if err != nil {
		return Page{}, err
	}
	return check(&f.cursor, nil, info), nil
}

// At returns the ID of the last entry that was read, or before which reading began. It is
// for the current reader.
func (f *Follower) At() stream.ID { return f.cursor.ID }

// Read reads up to count entries behind the place, without waiting for any. After an error it
// waits, and the next call reads the entries. end means that Join is next, after the page was
// processed.
func (f *Follower) Read(ctx context.Context, count int) (page Page, end bool, err error) {
	// A short page reaches beyond what the shared reader has delivered before.
	shared := f.readers.delivered(f.topic)
	entries, info, err := f.readAfter(ctx, count)
	if err != nil {
		f.failed(ctx, err)
		return Page{}, false, err
	}
	f.observer.Read()
	f.outage.Over(outage.Read)
	page = check(&f.cursor, entries, info)
	if page.Rewound != nil || len(entries) == count {
		return page, false, nil
	}
	if f.cursor.ID.Less(shared) {
		f.cursor.ID = shared // the entries between were deleted
	}
	return page, true, nil
}

// readAfter reads up to count entries behind the cursor, and then checks the stream.
func (f *Follower) readAfter(ctx context.Context, count int) (entries []stream.Entry, info stream.Info, err error) {
	err = f.topic.reader.link.Do(ctx, func(client redis.UniversalClient) (err error) {
		if entries, err = stream.ReadAfter(ctx, client, f.topic.name, f.cursor.ID, count); err != nil {
			return err
		}
		info, err = stream.Stat(ctx, client, f.cursor.Look(f.topic.name, entries))
		return err // they are read again
	})
	return entries, info, err
}

// failed handles an error of a read.
func (f *Follower) failed(ctx context.Context, err error) {
	if ctx.Err() != nil {
		return
	}
	if redisconn.TimedOut(err) && f.outage.Quiet() {
		return
	}
	attempt := f.outage.Failed(outage.Read, err)
	redisconn.Relocate(f.readers.cfg.Client)
	backoff.Wait(ctx.Done(), backoff.Redis.After(attempt))
}

// Join makes the shared reader put the entries behind the position into the sink, until Expelled
// receives. It returns false if there are entries to read before that.
func (f *Follower) Join() bool { return f.readers.join(f) }

// Expelled receives when the shared reader continues without this follower, which has joined.
// Resume comes next, and then Read.
func (f *Follower) Expelled() <-chan struct{} { return f.behind }

// Resume reports the outage that the follower was expelled for, or its end.
func (f *Follower) Resume() {
	if err := f.readers.failure(f); err != nil {
		f.outage.Failed(outage.Shared, err)
		redisconn.Relocate(f.readers.cfg.Client)
	} else {
		f.outage.Over(outage.Shared)
	}
}

// Down reports whether there is an outage now. It is safe for concurrent use.
func (f *Follower) Down() bool { return f.outage.Open() }

// deliver puts the entries of the shared reader into the sink, as far as there is room, and
// reports whether these were all. info is of after the read, nil if no entry is missing.
func (f *Follower) deliver(entries []stream.Entry, info *stream.Info) bool {
	for len(entries) > 0 && !f.cursor.ID.Less(entries[0].ID) {
		entries = entries[1:]
	}
	n := f.sink.Room(entries)
	if n == 0 {
		return len(entries) == 0
	}
	page := Page{Entries: entries[:n]}
	if info == nil {
		f.cursor.Move(entries[:n])
	} else {
		page = check(&f.cursor, entries[:n], *info)
	}
	f.sink.Put(page)
	return n == len(entries)
}

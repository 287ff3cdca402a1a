package consumer

import (
	"context"
	"errors"
	"net"
	"slices"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/flaminco/redischannels/internal/backoff"
	"github.com/flaminco/redischannels/internal/outage"
	"github.com/flaminco/redischannels/internal/redisconn"
	"github.com/flaminco/redischannels/internal/stream"
	"github.com/flaminco/redischannels/internal/window"
)

const (
	// admitBlock is the number of items in one allocation: few enough that one item does not keep
	// many others in memory.
	admitBlock = 16
	// scanFirst is how long the first claim scan may find nothing before new entries are also
	// read.
	scanFirst = 300 * time.Millisecond
)

// reader fetches entries. To keep the order, it fetches the entries that are pending for this
// consumer, those that it has released, and those of the first claim scan before new entries. Its
// fields, except the atomic ones, belong to its goroutine.
type reader struct {
	c      *Consumer
	stream *stream.Reader

	away     atomic.Bool   // there may be released entries that others must not overtake
	sharing  atomic.Bool   // entries that were left out must be released
	shared   atomic.Bool   // some were released, since released entries were last claimed
	halted   atomic.Bool   // nothing is read, because the group is paused
	returned bool          // the last read has brought entries of the return stream
	restores int           // of the group since the last read
	cut      bool          // the last read failed because of the connection
	scanned  bool          // the first claim scan is over, or takes too long
	vain     time.Duration // for how long it has found nothing
}

func newReader(c *Consumer, connection *stream.Reader) *reader {
	return &reader{c: c, stream: connection}
}

// probe fails if reading a stream in the group would fail. (It makes Redis create the consumer.)
func (r *reader) probe(ctx context.Context, of int) error {
	return r.stream.ProbeGroup(ctx, r.c.id.keys[of], r.c.cfg.Group, r.c.id.consumer())
}

// run fetches entries into the window until ctx ends.
func (r *reader) run(ctx context.Context) {
	r.away.Store(r.c.ordered()) // entries that an earlier consumer has released come before new ones
	for ctx.Err() == nil {
		if r.before(ctx) {
			r.read(ctx)
		}
	}
}

func (r *reader) read(ctx context.Context) {
	keys := r.c.id.keys
	// COUNT applies to each stream. A return stream is almost always empty: only if it was not,
	// both must fit, so that one read may exceed the room, by at most twice.
	streams := 1
	if r.returned {
		streams = len(keys)
	}
	count := r.c.win.Room.BeginRead(streams)
	if count == 0 {
		r.awaitRoom(ctx)
		return
	}
	pages, err := r.stream.ReadGroup(ctx, r.c.cfg.Group, r.c.id.consumer(), keys, count)
	n := 0
	for i := range pages {
		n = max(n, len(pages[i].Entries))
	}
	r.returned = slices.ContainsFunc(pages, func(p stream.Page) bool { return p.Key == keys[1] })
	r.c.win.Room.EndRead(n)
	if err != nil {
		r.failed(ctx, err)
		return
	}
	r.c.cfg.Observer.Read()
	r.c.outage.Over(outage.Read)
	r.restores = 0
	for i := range pages {
		if of := slices.Index(keys, pages[i].Key); of >= 0 {
			r.admit(of, pages[i].Entries, r.stream.Sent())
		} else { // a hook has changed the key
			r.c.cfg.Observer.Failed(errors.New("redis has returned entries of a stream that was not requested"))
		}
		stream.Recycle(pages[i].Entries)
	}
}

// before fetches the entries that come before new ones, and reports whether new ones may be read.
func (r *reader) before(ctx context.Context) bool {
	if sought := r.c.id.newer(); sought != nil {
		r.rename(ctx, *sought)
		return false
	}
	if of, cause := r.c.restorer.next(); cause != nil {
		r.failedOf(ctx, of, cause)
		return false
	}
	if r.c.Paused() {
		r.halted.Store(true)
		r.awaitRoom(ctx)
		return false
	}
	if r.halted.Swap(false) {
		r.resume()
	}
	more, err := r.pending(ctx)
	if err != nil {
		r.failed(ctx, err)
		return false
	}
	if more {
		r.awaitRoom(ctx)
		return false
	}
	return r.scanned || r.firstScan(ctx)
}

// rename takes a new name after a seek of the group: what was delivered before is lost, and what a
// handler still ends is refused, since it belongs to the old name.
func (r *reader) rename(ctx context.Context, sought stream.Sought) {
	name, err := r.c.cfg.Name()
	if err != nil {
		r.failed(ctx, err)
		return
	}
	r.c.obtain.mu.Lock() // pending entries are obtained under one name
	r.c.restorer.rename(name, sought)
	r.c.obtain.mu.Unlock()
	r.halted.Store(true)
}

// halt ends a read that blocks although the group is paused.
func (r *reader) halt() {
	if r.c.Paused() && !r.halted.Load() {
		r.stream.Wake(r.c.working)
	}
}

// resume begins like Open: with pending entries.
func (r *reader) resume() {
	r.away.Store(r.c.ordered())
	r.scanned, r.vain = false, 0
	r.c.claimer.start()
}

// pending fetches pending entries, which come before new ones. It reports whether there may be
// more that wait for room.
func (r *reader) pending(ctx context.Context) (more bool, err error) {
	if (r.sharing.Load() || r.away.Load() || r.c.obtain.lost.Load() || r.c.win.Drained()) && r.c.win.Leaving() {
		return true, nil // entries that are being released look like those of a lost reply
	}
	if r.sharing.Swap(false) {
		r.shared.Store(true)
		if err := r.c.obtain.releaseUnseen(ctx); err != nil {
			return false, err
		}
	}
	if r.c.win.Room.Paused() {
		return false, nil
	}
	if r.shared.Load() && r.c.win.Drained() {
		r.shared.Store(false)
		r.away.Store(true) // they come before those that were left out since
	}
	for r.away.Load() && ctx.Err() == nil {
		room := r.c.win.Room.Claim()
		if room == 0 {
			return true, nil
		}
		r.away.Store(false)
		err := r.stream.Do(ctx, func(client *redis.Client) (err error) {
			more, err = r.c.obtain.released(ctx, client, room)
			return err
		})
		if more || err != nil {
			r.away.Store(true)
		}
		if err != nil {
			return false, err
		}
	}
	if !r.c.obtain.lost.Load() && !r.c.win.Drained() {
		return false, nil
	}
	err = r.stream.Do(ctx, func(client *redis.Client) error { return r.c.obtain.own(ctx, client) })
	if r.scanned {
		signal(r.c.claimer.turn) // the claimer may have waited for this
	}
	return false, err
}

// share makes the reader release the entries that were left out, between two reads.
func (r *reader) share(ctx context.Context) {
	r.sharing.Store(true)
	signal(r.c.win.Room.Changed)
	r.stream.Wake(ctx)
}

// firstScan takes part in the first claim scan, and reports whether new entries may be read.
func (r *reader) firstScan(ctx context.Context) bool {
	if !r.c.claimer.active() || r.vain > scanFirst {
		r.scanned = true
		signal(r.c.claimer.turn)
		return true
	}
	if r.c.win.Room.Claim() == 0 {
		r.awaitRoom(ctx)
		r.vain = 0
		return false
	}
	begun := time.Now()
	found, err := r.c.claimer.step(ctx)
	if err != nil {
		r.c.claimer.end()
		r.failed(ctx, err)
	}
	if r.vain += time.Since(begun); found {
		r.vain = 0
	}
	return false
}

// awaitRoom waits until there may be room for entries. An outage of the connection is then over
// if our own entries could be listed since: until the application has finished a message there is
// no read that would show it.
func (r *reader) awaitRoom(ctx context.Context) {
	if r.cut && !r.c.obtain.lost.Load() {
		r.cut = false
		r.c.outage.Over(outage.Read)
	}
	select {
	case <-r.c.win.Room.Changed:
		if r.scanned {
			signal(r.c.claimer.turn) // there may be room for entries of a scan
		}
	case <-ctx.Done():
	}
}

// admit admits new entries to the window.
func (r *reader) admit(of int, entries []stream.Entry, sent time.Time) {
	if len(entries) == 0 {
		return
	}
	var held map[window.Identity]struct{}
	if !r.c.restorer.seen(of).Less(entries[0].ID) {
		// Delivered a second time: the group was re-created by another consumer, which did not
		// know our entries, or in a return stream.
		held = r.c.win.Leases.IDs()
	}
	r.c.restorer.read(of, entries)
	for block := range slices.Chunk(entries, admitBlock) {
		items := make([]window.Item, 0, len(block))
		for i := range block {
			if _, ok := held[window.Identity{Stream: of, ID: block[i].ID}]; !ok {
				items = append(items, window.Item{Entry: block[i].Share(), Stream: of, Counted: true})
				r.c.prepare(&items[len(items)-1]) // a copy would be allocated for the call
			}
		}
		r.c.win.Admit(items, sent)
	}
}

// failed handles an error of a read. Whatever the error, the server may have assigned entries to
// us in a lost reply.
func (r *reader) failed(ctx context.Context, err error) {
	r.failedOf(ctx, -1, err)
}

// failedOf is failed for one stream, or -1 for those that the error names.
func (r *reader) failedOf(ctx context.Context, of int, err error) {
	r.c.obtain.lost.Store(true)
	if ctx.Err() != nil {
		return
	}
	if timedOut(err) {
		r.c.keeper.control.Reset() // the connection of the renewals may be silent too
		if r.c.outage.Quiet() {
			// Redis restarts BLOCK when another consumer was faster, so one timeout is not an
			// outage yet. The next read replaces the connection.
			return
		}
	}
	switch redisconn.Classify(err) {
	case redisconn.KindNoGroup, redisconn.KindWrongType:
		cause := err
		err = r.stream.Do(ctx, func(client *redis.Client) error {
			return r.c.restorer.restore(ctx, client, of, cause)
		})
		if err == nil {
			// A program that removes the group repeatedly must not cause a hot loop.
			if r.restores++; r.restores > 1 {
				backoff.Wait(ctx.Done(), backoff.Redis.After(r.restores))
			}
			return
		}
	}
	if r.c.restorer.sought(err) {
		return // to take a new name
	}
	r.cut = redisconn.Classify(err).Retryable()
	backoff.Wait(ctx.Done(), backoff.Redis.After(r.c.fail(outage.Read, err)))
}

// timedOut reports a read that had no reply in time.
func timedOut(err error) bool {
	var timeout net.Error
	return errors.As(err, &timeout) && timeout.Timeout() && redisconn.Classify(err) != redisconn.KindCanceled
}

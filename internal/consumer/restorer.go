package consumer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/flaminco/redischannels/internal/redisconn"
	"github.com/flaminco/redischannels/internal/source"
	"github.com/flaminco/redischannels/internal/stream"
	"github.com/flaminco/redischannels/internal/window"
)

// restorer re-creates a lost group at its position, and restores the entries of the window to it.
// It records the last delivered entry of each stream. The reader restores; other duties report
// the loss to it.
type restorer struct {
	c *Consumer

	// writing is held for reading while acknowledgements and moves are written, and locked while
	// a group is restored. Without it an entry could be acknowledged between the list of entries
	// and the script, which would then restore it, and it would be handled again.
	writing sync.RWMutex

	mu    sync.Mutex
	spans []stream.Span
	cause []error // why the group is missing in a stream, for the reader
}

func newRestorer(c *Consumer) *restorer {
	n := len(c.id.keys)
	return &restorer{c: c, spans: make([]stream.Span, n), cause: make([]error, n)}
}

// read records new entries that were read.
func (r *restorer) read(of int, entries []stream.Entry) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := &r.spans[of]
	if s.First.IsZero() {
		s.First = entries[0].ID
	}
	if s.Last.Less(entries[0].ID) {
		s.Added += int64(len(entries))
	}
	s.Reach(entries[len(entries)-1].ID)
}

// saw records an entry that was delivered to the group, and the minimum number of entries added
// up to it.
func (r *restorer) saw(of int, last stream.ID, added int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := &r.spans[of]
	s.Added = max(s.Added, added)
	s.Reach(last)
}

// stands is saw for the position of the group, as it was for a consumer after so many seeks.
func (r *restorer) stands(sought int64, standing stream.Standing) {
	r.writing.RLock() // a seek changes both
	defer r.writing.RUnlock()
	if r.c.id.self.Load().sought == sought {
		r.saw(0, standing.LastDelivered, standing.Read)
	}
}

// sought makes the reader take a new name if the error means that the group was sought, and reports
// whether it does.
func (r *restorer) sought(err error) bool {
	if redisconn.Classify(err) != redisconn.KindSought {
		return false
	}
	if to := stream.SoughtBy(err); to.Generation > r.c.id.self.Load().sought {
		r.c.pauser.saw(time.Now(), true, to)
	}
	return true
}

// rename takes a new name after a seek of the group, which stands elsewhere now, and ends what this
// consumer holds. Nothing is being written meanwhile.
func (r *restorer) rename(name string, to stream.Sought) {
	r.writing.Lock()
	defer r.writing.Unlock()
	for of := range r.spans {
		for _, it := range r.c.win.Leases.Owned(of) {
			r.lose(it, false, errSought)
		}
	}
	r.mu.Lock()
	r.spans[0] = stream.Span{Last: to.After}
	r.mu.Unlock()
	r.c.id.self.Store(&self{name: name, sought: to.Generation})
}

// seen returns the greatest ID that is known to be delivered to the group.
func (r *restorer) seen(of int) stream.ID {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.spans[of].Last
}

// missing makes the reader re-create the group if the error means that it is lost, or take a new name
// if it was sought, and reports whether it does. The reader may be waiting for room and not detect it: a nacked message that
// blocks all others cannot be delivered without the group.
func (r *restorer) missing(of int, err error) bool {
	if r.sought(err) {
		return true
	}
	if redisconn.Classify(err) != redisconn.KindNoGroup {
		return false
	}
	r.mu.Lock()
	r.cause[of] = err
	r.mu.Unlock()
	signal(r.c.win.Room.Changed)
	return true
}

// next returns a stream in which the group is missing, and why.
func (r *restorer) next() (of int, cause error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for of, cause := range r.cause {
		if cause != nil {
			r.cause[of] = nil
			return of, cause
		}
	}
	return -1, nil
}

// restore re-creates the group in a stream, or with -1 in those that the cause may be about. A
// group that is lost in the topic is usually lost in its return stream too, which is not a
// separate event.
func (r *restorer) restore(ctx context.Context, client redis.UniversalClient, of int, cause error) error {
	if of < 0 {
		of = r.named(cause)
	}
	created := false
	for i := range r.c.id.keys {
		if of >= 0 && of != i && !created {
			continue
		}
		done, err := r.restoreIn(ctx, client, i)
		if done.Lost || len(done.Entries) > 0 || done.Created && !created {
			position := done.Start
			if !done.Created {
				position = "" // another consumer has created it, or we have and this is a repetition
			}
			r.c.cfg.Observer.GroupLost(position, r.entryIDs(i, done.Entries), cause)
		}
		if err != nil {
			return err
		}
		created = created || done.Created
	}
	return nil
}

// entryIDs returns the IDs in the topic of entries that were restored to a stream.
func (r *restorer) entryIDs(of int, ids []string) []string {
	held, rest := r.c.win.Leases.Find(of, ids)
	return append(rest, texts(held)...)
}

// named returns the stream that an error of a read names, or -1.
func (r *restorer) named(err error) int {
	for i, key := range r.c.id.keys {
		if strings.Contains(err.Error(), "'"+key+"'") {
			return i
		}
	}
	return -1
}

func (r *restorer) restoreIn(ctx context.Context, client redis.UniversalClient, of int) (stream.Restored, error) {
	r.writing.Lock()
	defer r.writing.Unlock()
	owned := r.c.win.Leases.Owned(of)
	done, err := r.put(ctx, client, of, r.c.win.Leases.Counts(owned))
	if err != nil {
		return done, err
	}
	if done.Start == "0-0" && of == 0 {
		// Another stream, which may reuse the IDs of the entries in the window.
		r.mu.Lock()
		r.spans[of] = stream.Span{}
		r.mu.Unlock()
		for _, it := range owned {
			r.trimmed(it)
		}
	}
	r.mu.Lock()
	r.cause[of] = nil
	r.mu.Unlock()
	r.c.win.Leases.Void()
	signal(r.c.keeper.renew)
	return done, nil
}

// put runs the script.
func (r *restorer) put(ctx context.Context, client redis.UniversalClient, of int, held []stream.Pending) (stream.Restored, error) {
	r.mu.Lock()
	span := r.spans[of]
	r.mu.Unlock()
	return r.c.id.on(client, of).Restore(ctx, span, held)
}

var errForgotten = errors.New("the group was re-created without entries of this consumer")

// vanished handles entries of a stream that are held but not pending in the group. While a lease is valid
// no other consumer can have claimed and ended its entry. So either another consumer has re-created a lost
// group and did not know of it: it is put back. Or it was trimmed, and another consumer's scan
// was the first to see that. After an error they are found again.
func (r *restorer) vanished(ctx context.Context, of int, items []*window.Item) error {
	r.writing.Lock()
	defer r.writing.Unlock()
	items, expired := r.c.win.Leases.Unexpired(items)
	for _, it := range expired {
		r.lost(it, stream.NotPending)
	}
	if len(items) == 0 {
		return nil
	}
	return r.putBack(ctx, of, items)
}

func (r *restorer) putBack(ctx context.Context, of int, items []*window.Item) error {
	sent := time.Now()
	held := r.c.win.Leases.Counts(items)
	client, err := r.c.keeper.control.Client(ctx)
	if err != nil {
		return err
	}
	done, err := r.put(ctx, client, of, held)
	if err != nil {
		return err
	}
	for i := range held {
		held[i].Count = stream.KeepCount
	}
	states, err := r.c.id.on(client, of).Hold(ctx, held)
	for i, state := range states {
		switch it := items[i]; state {
		case stream.Owned:
			r.c.win.Leases.Renewed(sent, it)
			if !slices.Contains(done.Entries, it.Text) { // the reply with this result was lost
				done.Entries = append(done.Entries, it.Text)
			}
		case stream.OtherOwner:
			r.lost(it, stream.OtherOwner)
		case stream.NotPending, stream.Trimmed:
			r.trimmed(it)
		}
	}
	if len(done.Entries) > 0 {
		r.c.cfg.Observer.GroupLost("", r.entryIDs(of, done.Entries), errForgotten)
	}
	return err
}

var (
	errClaimed    = fmt.Errorf("%w: another consumer has claimed it", source.ErrNotOwner)
	errSought     = fmt.Errorf("%w: the group was sought", source.ErrNotOwner)
	errNotPending = fmt.Errorf("%w: it is not pending in the group", source.ErrNotOwner)
)

// lost handles an entry that a script found to belong to another consumer, or to none.
func (r *restorer) lost(it *window.Item, state stream.State) {
	err := errClaimed
	if state == stream.NotPending {
		err = errNotPending
	}
	r.lose(it, state == stream.NotPending, err)
}

// lose ends the delivery of an entry that is not ours; vanished says that it belongs to none.
func (r *restorer) lose(it *window.Item, vanished bool, err error) {
	attempt, first := r.c.win.Leases.Lose(it, vanished)
	if !first {
		return
	}
	r.c.cfg.Observer.LeaseLost([]string{it.EntryID()}, err)
	if attempt != nil {
		attempt.Lose()
		r.c.Ask()
	}
}

// trimmed handles an entry that the stream no longer has. It stays in memory.
func (r *restorer) trimmed(it *window.Item) {
	if r.c.win.Leases.Trim(it) {
		r.c.cfg.Observer.Trimmed([]string{it.EntryID()}, 1)
	}
}

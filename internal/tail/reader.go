package tail

import (
	"context"
	"errors"
	"net"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/flaminco/redischannels/internal/backoff"
	"github.com/flaminco/redischannels/internal/redisconn"
	"github.com/flaminco/redischannels/internal/stream"
)

const (
	// sharedCount is the maximum number of entries of each stream in a shared read. It is more
	// than are usually published at once: after a full page the stream is checked.
	sharedCount = 256
	// rewindCheck is the time between two checks of whether a stream went back.
	rewindCheck = 30 * time.Second
	// wakeInterval is the time between two attempts at waking a blocked read. Its connection is
	// closed instead at endLimit, when the reader ends, and at interruptLimit otherwise: later,
	// because then all members read by themselves.
	wakeInterval   = 5 * time.Millisecond
	endLimit       = 100 * time.Millisecond
	interruptLimit = 500 * time.Millisecond
	// ownTimeout bounds the commands of followers on the library's own connections, in addition
	// to the timeouts of the caller's client.
	ownTimeout = 5 * time.Second
)

// reader is one goroutine with one connection that reads up to maxTopics streams, in Redis
// Cluster of one hash slot.
type reader struct {
	all    *Readers
	slot   int
	stream *stream.Reader
	link   *redisconn.Link // of the reads that its followers make by themselves
	ctx    context.Context
	stop   context.CancelFunc
	done   chan struct{}

	// Guarded by the lock of Readers.
	topics      map[*topic]struct{}
	read        chan struct{} // closed at the end of the read in progress; nil without one
	interrupted chan struct{} // the read that interrupt has last ended

	waking sync.WaitGroup // goroutines of interrupt

	// These belong to the goroutine.
	largest  int // size of the largest recent entry
	failures int // of reads in a row
}

func newReader(all *Readers, slot int, key string) *reader {
	r := &reader{
		all:    all,
		slot:   slot,
		stream: stream.NewReader(all.cfg.Client, key, all.cfg.BlockTime, all.cfg.OnReadClient, nil),
		link:   redisconn.NewLink(all.cfg.Client, key, ownTimeout, all.cfg.OnReadClient),
		done:   make(chan struct{}),
		topics: make(map[*topic]struct{}),
	}
	r.ctx, r.stop = context.WithCancel(context.Background())
	return r
}

// interrupt ends the read in progress, so that the next one has all topics. It does not wait
// for that. The lock of Readers is held.
func (r *reader) interrupt() {
	if r.read == nil || r.interrupted == r.read {
		return
	}
	read := r.read
	r.interrupted = read
	r.waking.Go(func() { r.wake(r.ctx, read, interruptLimit) })
}

// wake asks the server to end a blocked read, until done. That goes through the caller's pool,
// where a silent connection may take its ReadTimeout, so after limit the connection of the
// read is closed.
func (r *reader) wake(ctx context.Context, done <-chan struct{}, limit time.Duration) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var dropping sync.WaitGroup
	dropping.Go(func() {
		defer cancel() // Wake may wait for a connection of the pool
		for backoff.Wait(done, limit) {
			r.link.Suspect() // the connections of the caller's pool may be silent too
			r.stream.Drop()
		}
	})
	for {
		r.stream.Wake(ctx)
		if !backoff.Wait(done, wakeInterval) {
			break
		}
	}
	dropping.Wait()
}

// end ends the goroutine, which has no topic left, and waits for it.
func (r *reader) end() {
	r.stop()
	r.wake(context.Background(), r.done, endLimit)
	r.waking.Wait()
	r.link.Close()
}

// asked is a topic of one read, and the cursor that was sent.
type asked struct {
	*topic
	cursor stream.Cursor
	check  bool
}

func (r *reader) run() {
	defer close(r.done)
	defer r.stream.Close()
	checked := time.Now()
	for {
		if time.Since(checked) > rewindCheck {
			checked = time.Now()
			r.checkAll()
		}
		topics := r.begin()
		if topics == nil {
			return
		}
		count := r.count(len(topics))
		pages, err := r.readTopics(topics, count)
		r.finish(topics, err)
		if r.failures > 1 {
			// Each may have read by itself and be back at once.
			backoff.Wait(r.ctx.Done(), backoff.Redis.After(r.failures))
		}
		for i := range pages {
			r.deliver(&pages[i], topics[pages[i].Key], count)
			stream.Recycle(pages[i].Entries)
		}
	}
}

// begin waits until there are topics to read and returns them, or nil when the reader is no
// longer needed.
func (r *reader) begin() map[string]asked {
	a := r.all
	a.mu.Lock()
	defer a.mu.Unlock()
	for len(r.topics) > 0 {
		topics := make(map[string]asked)
		for t := range r.topics {
			if len(t.members) > 0 {
				topics[t.name] = asked{t, t.cursor, t.check}
				t.check = false
			}
		}
		if len(topics) > 0 {
			r.read = make(chan struct{})
			return topics
		}
		a.changed.Wait()
	}
	return nil
}

// finish marks the end of a read. After an error the members read by themselves: each detects and
// reports the error of its stream, and joins again when it is over. If the error persists it is
// the connection: then they report its error, and the end of the outage.
func (r *reader) finish(topics map[string]asked, err error) {
	closed := errors.Is(err, net.ErrClosed) // by interrupt
	if err != nil && !closed {
		r.link.Failed(err)
	}
	a := r.all
	a.mu.Lock()
	defer a.mu.Unlock()
	close(r.read)
	r.read = nil
	count := func(failures *int) {
		switch {
		case err == nil:
			*failures = 0
		case !closed:
			*failures++
		}
	}
	count(&r.failures)
	for _, t := range topics {
		before := t.failures
		count(&t.failures)
		switch {
		case t.failures > 1:
			t.topic.expel(err)
		case err != nil || before > 1: // at first another topic may be the cause
			t.topic.expel(nil)
		}
		if t.topic.cursor.ID == t.cursor.ID {
			t.topic.cursor = t.cursor // includes the state of the stream
		}
		for f := range t.members {
			f.observer.Read()
		}
	}
}

// count is how many entries of each stream a read asks for.
func (r *reader) count(topics int) int {
	if r.largest == 0 {
		return firstCount
	}
	return min(sharedCount, stream.Fitting(r.largest), max(1, r.all.cfg.PageBytes/r.largest/topics))
}

// readTopics checks the streams with check set and waits for new entries in all of them.
func (r *reader) readTopics(topics map[string]asked, count int) (pages []stream.Page, err error) {
	r.checkTopics(topics)
	keys := make([]string, 0, len(topics))
	cursors := make([]stream.ID, 0, len(topics))
	for name, t := range topics {
		keys = append(keys, name)
		cursors = append(cursors, t.cursor.ID)
	}
	if len(keys) == 0 {
		return nil, nil
	}
	return r.stream.Read(r.ctx, keys, cursors, count)
}

// checkTopics checks the streams with check set, all of them together: there may be thousands in
// a process. Those with a problem are removed from the topics.
func (r *reader) checkTopics(topics map[string]asked) {
	var looks []stream.Look
	for name, t := range topics {
		if t.check {
			looks = append(looks, t.cursor.Look(name, nil))
		}
	}
	if len(looks) == 0 {
		return
	}
	infos, err := r.stat(looks...)
	for i := range looks {
		name := looks[i].Key
		t := topics[name]
		if err == nil && t.fits(nil, infos[i]) {
			topics[name] = t
			continue
		}
		delete(topics, name)
		r.expel(t)
	}
}

// stat reads the state of streams over the connection of the reader, which is idle between two
// reads: the client's pool may have connections from before an outage, each of which costs its
// ReadTimeout.
func (r *reader) stat(looks ...stream.Look) (infos []stream.Info, err error) {
	err = r.stream.Do(r.ctx, func(client *redis.Client) (err error) {
		infos, err = stream.StatAll(r.ctx, client, looks)
		return err
	})
	return infos, err
}

// look checks a stream after a read of it. It returns nil if there is a problem.
func (r *reader) look(t *asked, entries []stream.Entry) *stream.Info {
	infos, err := r.stat(t.cursor.Look(t.name, entries))
	if err == nil && t.fits(entries, infos[0]) {
		return &infos[0]
	}
	r.expel(*t)
	return nil
}

// fits moves the cursor behind the entries and returns false if the stream went back, and at a
// gap without entries.
func (t *asked) fits(entries []stream.Entry, info stream.Info) bool {
	gap, rewound := t.cursor.Check(entries, info)
	return !rewound && (!gap || len(entries) > 0)
}

// expel makes the members of a topic read by themselves and detect its problem.
func (r *reader) expel(t asked) {
	r.all.mu.Lock()
	defer r.all.mu.Unlock()
	t.topic.expel(nil)
}

// deliver passes a page to the members of its topic.
func (r *reader) deliver(page *stream.Page, t asked, count int) {
	if len(page.Entries) == 0 {
		return
	}
	r.largest -= r.largest / 8
	for i := range page.Entries {
		r.largest = max(r.largest, page.Entries[i].Size)
	}
	sent := t.cursor.ID
	var info *stream.Info // nil if no entry can be missing
	if !t.cursor.Doubtful(page.Entries, count) {
		t.cursor.Move(page.Entries)
	} else if info = r.look(&t, page.Entries); info == nil {
		return
	}
	a := r.all
	a.mu.Lock()
	if a.topics[page.Key] != t.topic || t.topic.cursor.ID != sent {
		a.mu.Unlock()
		return // others have joined since, from elsewhere
	}
	t.delivering = true
	a.mu.Unlock()

	var full []*Follower
	for f := range t.members {
		if !f.deliver(page.Entries, info) {
			full = append(full, f)
		}
	}

	a.mu.Lock()
	defer a.mu.Unlock()
	t.delivering = false
	t.topic.cursor = t.cursor
	for _, f := range full {
		delete(t.members, f)
		signal(f.behind)
	}
	a.changed.Broadcast()
}

// checkAll makes every stream be checked before the next read.
func (r *reader) checkAll() {
	r.all.mu.Lock()
	defer r.all.mu.Unlock()
	for t := range r.topics {
		t.check = true
	}
}

package redischannels

import (
	"context"
	"errors"
	"net"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/flaminco/redischannels/internal/redisconn"
	"github.com/flaminco/redischannels/internal/stream"
)

const (
	// sharedTopics is how many streams one blocked read covers at most.
	sharedTopics = 256
	// sharedCount is how many entries of each it returns at most, firstCount as long
	// as their size is not known. It is more than are usually published at once: behind
	// a full page the stream is looked at.
	sharedCount = 256
	firstCount  = 10
	// rewindCheck is how often a shared reader looks whether a stream went back.
	rewindCheck = 30 * time.Second
)

// sharedReaders are the blocked reads that the fan-out subscriptions of a Subscriber
// share. A subscription joins when it has read up to the end of its stream, and is
// expelled when its window is full or something is wrong; then it reads by itself
// again. So one that is slow holds up nobody and needs no more memory than others.
type sharedReaders struct {
	cfg SubscriberConfig

	mu      sync.Mutex
	changed sync.Cond // a reader may have something to do, or has delivered a page
	topics  map[string]*sharedTopic
	readers map[*sharedReader]struct{}
}

// sharedTopic is one stream of a shared reader. All of it is guarded by the lock of
// sharedReaders.
type sharedTopic struct {
	name       string
	reader     *sharedReader
	refs       int           // subscriptions, joined or not
	cursor     stream.Cursor // up to which it was delivered to the members
	members    map[*subscription]struct{}
	delivering bool // without the lock; nobody joins or leaves meanwhile
	check      bool // it is to be looked at before the next read
	failures   int  // of reads in a row
}

// sharedReader is one goroutine with one connection that reads up to sharedTopics
// streams, in Redis Cluster of one hash slot.
type sharedReader struct {
	all    *sharedReaders
	slot   int
	stream *stream.Reader
	ctx    context.Context
	stop   context.CancelFunc
	done   chan struct{}

	// Guarded by the lock of sharedReaders.
	topics map[*sharedTopic]struct{}
	read   chan struct{} // closed at the end of the read that is under way; nil without one

	largest  int // size of the largest recent entry; the goroutine's own
	failures int // in a row; the same
}

func newSharedReaders(cfg SubscriberConfig) *sharedReaders {
	a := &sharedReaders{
		cfg:     cfg,
		topics:  make(map[string]*sharedTopic),
		readers: make(map[*sharedReader]struct{}),
	}
	a.changed.L = &a.mu
	return a
}

// attach finds a place for the topic of a subscription, until detach. Nothing is read
// for it before join.
func (a *sharedReaders) attach(s *subscription) {
	a.mu.Lock()
	defer a.mu.Unlock()
	t := a.topics[s.topic]
	if t == nil {
		t = &sharedTopic{name: s.topic, reader: a.readerFor(s.topic), members: make(map[*subscription]struct{})}
		t.reader.topics[t] = struct{}{}
		a.topics[s.topic] = t
	}
	t.refs++
}

// readerFor returns a reader that has room for the topic. The lock is held.
func (a *sharedReaders) readerFor(topic string) *sharedReader {
	slot := 0
	if _, cluster := a.cfg.Client.(*redis.ClusterClient); cluster {
		slot = redisconn.Slot(topic)
	}
	for r := range a.readers {
		if r.slot == slot && len(r.topics) < sharedTopics {
			return r
		}
	}
	r := &sharedReader{
		all:    a,
		slot:   slot,
		stream: stream.NewReader(a.cfg.Client, topic, a.cfg.Tuning.BlockTime, a.cfg.OnReadClient, nil),
		done:   make(chan struct{}),
		topics: make(map[*sharedTopic]struct{}),
	}
	r.ctx, r.stop = context.WithCancel(context.Background())
	a.readers[r] = struct{}{}
	go r.run() // ended and waited for by the last detach
	return r
}

// settled returns the topic when nothing of it is being delivered. The lock is held.
func (a *sharedReaders) settled(name string) *sharedTopic {
	t := a.topics[name]
	for t.delivering {
		a.changed.Wait()
	}
	return t
}

// delivered returns up to which entry the topic was delivered to its members, zero if
// it has none.
func (a *sharedReaders) delivered(name string) stream.ID {
	a.mu.Lock()
	defer a.mu.Unlock()
	t := a.settled(name)
	if len(t.members) == 0 {
		return stream.ID{}
	}
	return t.cursor.ID
}

// join makes the reader deliver what is behind the subscription's cursor, until detach
// or a signal on behind. It reports false if the reader is ahead of the cursor.
func (a *sharedReaders) join(s *subscription) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	t := a.settled(s.topic)
	if len(t.members) > 0 {
		if s.cursor.ID.Less(t.cursor.ID) {
			return false
		}
		t.members[s] = struct{}{}
		return true
	}
	t.cursor = s.cursor
	t.members[s] = struct{}{}
	a.changed.Broadcast()
	if read := t.reader.read; read != nil { // without this topic
		a.mu.Unlock()
		t.reader.interrupt(s.settleCtx, read)
		a.mu.Lock()
	}
	return true
}

// detach ends what attach and join have begun. Nothing is delivered to the
// subscription any more when it returns; the last one waits for the reader's end.
func (a *sharedReaders) detach(s *subscription) {
	a.mu.Lock()
	t := a.settled(s.topic)
	r := t.reader
	delete(t.members, s)
	if t.refs--; t.refs == 0 {
		delete(a.topics, t.name)
		delete(r.topics, t)
	}
	last := len(r.topics) == 0
	if last {
		delete(a.readers, r)
		a.changed.Broadcast()
	}
	a.mu.Unlock()
	if last {
		r.stop()
		endRead(s.settleCtx, r.stream, r.done)
	}
}

// expel makes the members of a topic read by themselves, because of an error of the reader
// or nil. The lock is held.
func (t *sharedTopic) expel(err error) {
	for s := range t.members {
		s.unshared = err
		signal(s.behind)
	}
	clear(t.members)
}

// failure returns the error for which a subscription was expelled, or nil.
func (a *sharedReaders) failure(s *subscription) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	err := s.unshared
	s.unshared = nil
	return err
}

// interrupt ends the read that is under way, so that the next one has all topics.
func (r *sharedReader) interrupt(ctx context.Context, read <-chan struct{}) {
	for {
		r.stream.Wake(ctx)
		if !pause(read, wakeInterval) {
			return
		}
	}
}

// asked is a topic of one read, and the cursor that was sent.
type asked struct {
	*sharedTopic
	cursor stream.Cursor
	check  bool
}

func (r *sharedReader) run() {
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
		r.end(topics, err)
		if r.failures > 1 {
			// Each may have read by itself and be back at once.
			pause(r.ctx.Done(), retryDelay(r.failures))
		}
		for i := range pages {
			r.deliver(&pages[i], topics[pages[i].Key], count)
			stream.Recycle(pages[i].Entries)
		}
	}
}

// begin waits until there is something to read and returns the topics, or nil when the
// reader is not needed any more.
func (r *sharedReader) begin() map[string]asked {
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

// end marks the end of a read. After an error the members read by themselves: each
// finds out what is wrong with its stream, reports it, and comes back when it is mended. When
// that does not help it is the connection: they are told so, and when it can read again.
func (r *sharedReader) end(topics map[string]asked, err error) {
	a := r.all
	a.mu.Lock()
	defer a.mu.Unlock()
	close(r.read)
	r.read = nil
	count := func(failures *int) {
		switch {
		case err == nil:
			*failures = 0
		case !errors.Is(err, net.ErrClosed): // else it was closed by interrupt
			*failures++
		}
	}
	count(&r.failures)
	for _, t := range topics {
		before := t.failures
		count(&t.failures)
		switch {
		case t.failures > 1:
			t.sharedTopic.expel(err)
		case err != nil || before > 1: // at first another topic may be the cause
			t.sharedTopic.expel(nil)
		}
		if t.sharedTopic.cursor.ID == t.cursor.ID {
			t.sharedTopic.cursor = t.cursor // what was seen of the stream
		}
		for s := range t.members {
			s.counters.read()
		}
	}
}

// count is how many entries of each stream a read asks for.
func (r *sharedReader) count(topics int) int {
	if r.largest == 0 {
		return firstCount
	}
	return min(sharedCount, stream.Fitting(r.largest), max(1, r.all.cfg.Tuning.PrefetchBytes/r.largest/topics))
}

// readTopics looks at the streams that are to be looked at and waits for new entries in
// all of them.
func (r *sharedReader) readTopics(topics map[string]asked, count int) ([]stream.Page, error) {
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

// checkTopics looks at the streams that are to be looked at, all of them together: there may
// be thousands in a process. Those with a problem are taken from the topics.
func (r *sharedReader) checkTopics(topics map[string]asked) {
	var names []string
	for name, t := range topics {
		if t.check {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return
	}
	infos, err := stream.StatAll(r.ctx, r.all.cfg.Client, names)
	for i, name := range names {
		t := topics[name]
		if err == nil && t.fits(nil, infos[i]) {
			topics[name] = t
			continue
		}
		delete(topics, name)
		r.expel(t)
	}
}

// look looks at a stream after a read of it. It returns nil where there is a problem.
func (r *sharedReader) look(t *asked, entries []stream.Entry) *stream.Info {
	info, err := stream.Stat(r.ctx, r.all.cfg.Client, t.name)
	if err == nil && t.fits(entries, info) {
		return &info
	}
	r.expel(*t)
	return nil
}

// fits moves the cursor behind the entries and reports false where the stream went back, and
// at a gap without entries.
func (t *asked) fits(entries []stream.Entry, info stream.Info) bool {
	gap, rewound := t.cursor.Check(entries, info)
	return !rewound && (!gap || len(entries) > 0)
}

// expel makes the members of a topic find out by themselves what is wrong with it.
func (r *sharedReader) expel(t asked) {
	r.all.mu.Lock()
	defer r.all.mu.Unlock()
	t.sharedTopic.expel(nil)
}

// deliver hands a page to the members of its topic.
func (r *sharedReader) deliver(page *stream.Page, t asked, count int) {
	if len(page.Entries) == 0 {
		return
	}
	r.largest -= r.largest / 8
	for i := range page.Entries {
		r.largest = max(r.largest, page.Entries[i].Size)
	}
	sent := t.cursor.ID
	var info *stream.Info // nil where nothing can be missing
	if !t.cursor.Doubtful(page.Entries, count) {
		t.cursor.Move(page.Entries)
	} else if info = r.look(&t, page.Entries); info == nil {
		return
	}
	a := r.all
	a.mu.Lock()
	if a.topics[page.Key] != t.sharedTopic || t.sharedTopic.cursor.ID != sent {
		a.mu.Unlock()
		return // others have joined since, from elsewhere
	}
	t.delivering = true
	a.mu.Unlock()

	var full []*subscription
	for s := range t.members {
		if !s.takeShared(page.Entries, info) {
			full = append(full, s)
		}
	}

	a.mu.Lock()
	defer a.mu.Unlock()
	t.delivering = false
	t.sharedTopic.cursor = t.cursor
	for _, s := range full {
		delete(t.members, s)
		signal(s.behind)
	}
	a.changed.Broadcast()
}

// checkAll has every stream looked at before the next read.
func (r *sharedReader) checkAll() {
	r.all.mu.Lock()
	defer r.all.mu.Unlock()
	for t := range r.topics {
		t.check = true
	}
}

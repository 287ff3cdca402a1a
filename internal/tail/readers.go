package tail

import (
	"sync"

	"github.com/redis/go-redis/v9"

	"github.com/flaminco/redischannels/internal/lifecycle"
	"github.com/flaminco/redischannels/internal/redisconn"
	"github.com/flaminco/redischannels/internal/stream"
)

// maxTopics is the maximum number of streams of one blocked read.
const maxTopics = 256

// Readers are the blocked reads that followers share. A follower joins when it has read up to the
// end of its stream, and is expelled when its sink is full or on an error; then it reads by
// itself again. A slow one therefore does not delay others and needs no more memory.
type Readers struct {
	cfg Config

	mu      sync.Mutex
	changed sync.Cond // a reader may have work, or has delivered a page
	topics  map[string]*topic
	readers map[*reader]struct{}

	life *lifecycle.State // of the pagers, each of which is a call
}

// topic is one stream of a reader. All of it is guarded by the lock of Readers.
type topic struct {
	name       string
	reader     *reader
	refs       int           // followers, joined or not
	cursor     stream.Cursor // up to which it was delivered to the members
	members    map[*Follower]struct{}
	delivering bool // without the lock; no member joins or leaves meanwhile
	check      bool // it must be checked before the next read
	failures   int  // consecutive failed reads
}

// NewReaders returns readers without a goroutine or a connection: the first follower starts them,
// and the last one ends them.
func NewReaders(cfg Config) *Readers {
	a := &Readers{
		cfg:     cfg,
		topics:  make(map[string]*topic),
		readers: make(map[*reader]struct{}),
		life:    lifecycle.New(ErrClosed),
	}
	a.changed.L = &a.mu
	return a
}

// attach finds a place for a topic, until detach. Nothing is read for it before join.
func (a *Readers) attach(name string) *topic {
	a.mu.Lock()
	defer a.mu.Unlock()
	t := a.topics[name]
	if t == nil {
		t = &topic{name: name, reader: a.readerFor(name), members: make(map[*Follower]struct{})}
		t.reader.topics[t] = struct{}{}
		a.topics[name] = t
	}
	t.refs++
	return t
}

// readerFor returns a reader that has room for the topic. The lock is held.
func (a *Readers) readerFor(topic string) *reader {
	slot := 0
	if _, cluster := a.cfg.Client.(*redis.ClusterClient); cluster {
		slot = redisconn.Slot(topic)
	}
	for r := range a.readers {
		if r.slot == slot && len(r.topics) < maxTopics {
			return r
		}
	}
	r := newReader(a, slot, topic)
	a.readers[r] = struct{}{}
	go r.run() // ended and waited for by the last detach
	return r
}

// settle waits until no page of the topic is being delivered. The lock is held.
func (a *Readers) settle(t *topic) {
	for t.delivering {
		a.changed.Wait()
	}
}

// delivered returns up to which entry the topic was delivered to its members, zero if
// it has none.
func (a *Readers) delivered(t *topic) stream.ID {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.settle(t)
	if len(t.members) == 0 {
		return stream.ID{}
	}
	return t.cursor.ID
}

// join makes the reader deliver the entries behind the follower's cursor, until detach or a
// signal on behind. It reports false if the reader is ahead of the cursor.
func (a *Readers) join(f *Follower) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	t := f.topic
	a.settle(t)
	if len(t.members) > 0 {
		if f.cursor.ID.Less(t.cursor.ID) {
			return false
		}
		t.members[f] = struct{}{}
		return true
	}
	t.cursor = f.cursor
	t.members[f] = struct{}{}
	a.changed.Broadcast()
	t.reader.interrupt() // it reads without this topic
	return true
}

// detach undoes attach and join. Nothing is delivered to the follower after it returns; the last
// one waits for the reader's end.
func (a *Readers) detach(f *Follower) {
	a.mu.Lock()
	t := f.topic
	a.settle(t)
	r := t.reader
	delete(t.members, f)
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
		r.end()
	}
}

// expel makes the members of a topic read by themselves, because of an error of the reader
// or nil. The lock is held.
func (t *topic) expel(err error) {
	for f := range t.members {
		f.unshared = err
		signal(f.behind)
	}
	clear(t.members)
}

// failure returns the error for which a follower was expelled, or nil.
func (a *Readers) failure(f *Follower) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	err := f.unshared
	f.unshared = nil
	return err
}

// Close closes all pagers, and returns when they have ended. Open returns ErrClosed from then on.
// Followers are closed separately.
func (a *Readers) Close() { _ = a.life.Close(nil) } // always nil

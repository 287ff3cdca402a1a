package pubsub

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/flaminco/redischannels/internal/backoff"
	"github.com/flaminco/redischannels/internal/lifecycle"
	"github.com/flaminco/redischannels/internal/redisconn"
)

// Kind is the kind of a name.
type Kind uint8

// The kinds of names.
const (
	Channel Kind = iota // SUBSCRIBE
	Pattern             // PSUBSCRIBE
	Shard               // SSUBSCRIBE
	kinds
)

var (
	subscribeCommands   = [kinds]string{"SUBSCRIBE", "PSUBSCRIBE", "SSUBSCRIBE"}
	unsubscribeCommands = [kinds]string{"UNSUBSCRIBE", "PUNSUBSCRIBE", "SUNSUBSCRIBE"}
)

// Name is a channel or a pattern.
type Name struct {
	Kind Kind
	Text string
}

// NoticeKind is the kind of a [Notice].
type NoticeKind uint8

// The kinds of notices.
const (
	// Down: a connection is lost, or cannot be opened again. Once per outage. Err.
	Down NoticeKind = iota + 1
	// Up: all names are subscribed again. Duration.
	Up
	// Gap: a name is subscribed again after Duration in which messages were lost.
	Gap
	// Refused: Redis refuses to subscribe to a name again; it is retried later. Once per series
	// of refusals. Or the user has no permission to unsubscribe. Err.
	Refused
)

// Notice reports a change of subscriptions.
type Notice struct {
	Kind     NoticeKind
	Name     Name // of Gap and Refused
	Duration time.Duration
	Err      error
}

// Config configures [New].
type Config struct {
	// Client has the options of the connections.
	Client redis.UniversalClient
	// HealthInterval is the time after which a silent connection is closed.
	HealthInterval time.Duration
	// MaxPayload is the largest payload that is kept, 0 for any.
	MaxPayload int
	// OnClient, if not nil, receives each client that is opened.
	OnClient func(*redis.Client)
	// Notify receives notices. It must neither wait nor call the Mux.
	Notify func(Notice)
}

// ErrClosed is returned by Subscribe after Close.
var ErrClosed = errors.New("the subscriber is closed")

// Mux shares connections among subscriptions: one connection for all of them, or,
// for shard channels in a cluster, one per node that owns some. It is safe for
// concurrent use.
type Mux struct {
	conf Config
	life *lifecycle.State // Subscribe calls, links and the placing goroutine
	ctx  context.Context  // of life

	mu       sync.Mutex
	names    [kinds]map[string]*entry // names of the sinks
	links    map[string]*link         // open or being opened
	tries    map[string]try           // of servers that failed, by key of link
	unplaced map[*entry]struct{}      // without a link
	placing  bool                     // the placing goroutine runs
	replace  chan struct{}            // to it: unplaced has grown
	shared   int                      // sinks with more than one name
	outage   outage
}

// entry is one name of at least one sink. Mux.mu guards all but name.
type entry struct {
	name    Name
	sinks   []*Sink
	waiters []*waiter
	link    *link // nil while it is unplaced, and when it has no sinks
	live    bool  // confirmed on link

	lost     time.Time // since when it is no longer subscribed; zero if it never was
	inOutage bool      // counted by Mux.outage
	refused  bool      // a series of refusals was reported
	attempts int       // consecutive failures because of this name
	until    time.Time // when it may be retried
	hint     string    // address that MOVED has named
}

// For a name that nodes redirect to each other, and for one that Redis refuses.
var (
	movedBackoff   = backoff.Backoff{Min: 5 * time.Millisecond, Max: time.Second, Factor: 2, Jitter: 0.2}
	refusedBackoff = backoff.Backoff{Min: 50 * time.Millisecond, Max: 30 * time.Second, Factor: 2, Jitter: 0.2}
)

// try is the state of a server that could not be reached.
type try struct {
	failures int
	until    time.Time
}

// outage lasts until all names that a lost connection had are subscribed again.
type outage struct {
	since time.Time // zero without one
	names int
}

// Sink has the names of one subscription and the queue of its messages.
type Sink struct {
	Queue *Queue

	// Guarded by Mux.mu.
	entries []*entry
	link    *link  // of the message before
	burst   uint64 // the same
}

// waiter is a call of Subscribe that waits for confirmations.
type waiter struct {
	sink *Sink
	left int
	done chan error // has room for one
}

// New returns a Mux. It starts no goroutine.
func New(conf Config) *Mux {
	m := &Mux{
		conf:     conf,
		life:     lifecycle.New(ErrClosed),
		links:    make(map[string]*link),
		tries:    make(map[string]try),
		unplaced: make(map[*entry]struct{}),
		replace:  make(chan struct{}, 1),
	}
	for kind := range m.names {
		m.names[kind] = make(map[string]*entry)
	}
	m.ctx = m.life.Context()
	return m
}

// Subscribe returns when all names are subscribed, so that the sink receives messages published
// from then on, or when that has failed or ctx has ended; then the sink receives nothing. A sink
// is subscribed once, and a Mux has either shard channels or other names. A connection that is
// lost meanwhile is reopened; one that cannot be opened is an error.
func (m *Mux) Subscribe(ctx context.Context, sink *Sink, names []Name) error {
	if err := m.life.Enter(); err != nil {
		return err
	}
	defer m.life.Leave()
	w := &waiter{sink: sink, done: make(chan error, 1)}
	m.mu.Lock()
	if len(names) > 1 {
		m.shared++
	}
	for _, name := range names {
		e := m.names[name.Kind][name.Text]
		if e == nil {
			e = &entry{name: name}
			m.names[name.Kind][name.Text] = e
			m.place(e)
		} else if _, waits := m.unplaced[e]; waits {
			e.until = time.Time{} // this call tries at once
			m.place(e)
		}
		e.sinks = append(e.sinks, sink)
		sink.entries = append(sink.entries, e)
		if !e.live {
			e.waiters = append(e.waiters, w)
			w.left++
		}
	}
	left := w.left
	m.mu.Unlock()
	if left == 0 {
		return nil
	}
	var err error
	select {
	case err = <-w.done:
	case <-ctx.Done():
		err = context.Cause(ctx)
	case <-m.ctx.Done():
		err = context.Cause(m.ctx)
	}
	if err != nil {
		m.Unsubscribe(sink)
	}
	return err
}

// Unsubscribe removes a sink; from then on nothing is pushed to it. Names of other sinks stay
// subscribed. A connection without names is closed.
func (m *Mux) Unsubscribe(sink *Sink) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(sink.entries) > 1 {
		m.shared--
	}
	for _, e := range sink.entries {
		e.sinks = slices.DeleteFunc(e.sinks, func(s *Sink) bool { return s == sink })
		e.waiters = slices.DeleteFunc(e.waiters, func(w *waiter) bool { return w.sink == sink })
		if len(e.sinks) > 0 {
			continue
		}
		delete(m.names[e.name.Kind], e.name.Text)
		delete(m.unplaced, e)
		m.recovered(e, false)
		if l := e.link; l != nil {
			if l.conn != nil {
				l.unsubscribe(e)
			}
			m.detach(e)
		}
	}
	sink.entries = nil
	if m.idle() {
		clear(m.tries) // the next Subscribe tries at once
	}
}

// idle reports whether there are no names.
func (m *Mux) idle() bool {
	for _, names := range m.names {
		if len(names) > 0 {
			return false
		}
	}
	return true
}

// Close closes all connections and returns when all goroutines have ended.
func (m *Mux) Close() {
	_ = m.life.Close(nil) // it cannot fail
}

// detach removes an entry from its link, which ends with its last one.
func (m *Mux) detach(e *entry) {
	l := e.link
	e.link, e.live = nil, false
	delete(l.entries, e)
	if len(l.entries) == 0 {
		delete(m.links, l.key)
		l.stop()
	}
}

// received handles a push on a link.
func (m *Mux) received(l *link, p *push) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !l.answered {
		l.answered = true
		delete(m.tries, l.key)
	}
	switch p.kind {
	case pushMessage, pushPMessage, pushSMessage:
		m.deliver(l, p)
	case pushSubscribed:
		l.burst.names = l.burst.names[:0]
		m.confirmed(l, p)
	case pushUnsubscribed:
		l.burst.names = l.burst.names[:0]
		m.ended(l, p)
	case pushPong:
		l.takes(func(x expectation) bool { return x.entry == nil })
	case pushError:
		m.failed(l, p.text)
	}
}

// deliver passes a message to the sinks of its name. A sink whose names match it more than once
// receives it once.
func (m *Mux) deliver(l *link, p *push) {
	e := m.names[p.of][string(p.name)]
	if e == nil || e.link != l {
		return // the name has no sink, or is on another connection
	}
	if m.shared > 0 {
		l.sameBurst(e, p)
	}
	msg := Message{Channel: e.name.Text, Payload: p.payload, Size: p.size}
	if p.of == Pattern {
		msg.Channel = string(p.channel)
	}
	for _, s := range e.sinks {
		if len(s.entries) > 1 {
			if s.link == l && s.burst == l.burst.number {
				continue
			}
			s.link, s.burst = l, l.burst.number
		}
		s.Queue.Push(msg)
	}
}

// confirmed makes an entry live.
func (m *Mux) confirmed(l *link, p *push) {
	i := slices.IndexFunc(l.expect, func(x expectation) bool {
		return x.entry != nil && !x.unsubscribe && x.entry.name.Kind == p.of && x.entry.name.Text == string(p.name)
	})
	if i < 0 {
		return
	}
	l.settle(i)
	e := l.expect[0].entry
	l.expect = l.expect[1:]
	if e.link != l {
		return // no caller waits for it
	}
	e.live, e.refused, e.attempts, e.until, e.hint = true, false, 0, time.Time{}, ""
	for _, w := range e.waiters {
		if w.left--; w.left == 0 {
			w.done <- nil
		}
	}
	e.waiters = nil
	if !e.lost.IsZero() {
		m.conf.Notify(Notice{Kind: Gap, Name: e.name, Duration: time.Since(e.lost)})
		e.lost = time.Time{}
	}
	m.recovered(e, true)
}

// ended handles the end of a subscription. An end that was not requested means that the slot has
// moved: subscribing at the node again returns the new one.
func (m *Mux) ended(l *link, p *push) {
	if len(l.expect) > 0 {
		if x := l.expect[0]; x.unsubscribe && x.entry.name.Kind == p.of && x.entry.name.Text == string(p.name) {
			l.expect = l.expect[1:]
			return
		}
	}
	e := m.names[p.of][string(p.name)]
	if e == nil || e.link != l || !e.live {
		return
	}
	e.live = false
	e.lost = time.Now()
	l.subscribe(e)
}

// failed handles an error reply: it belongs to the oldest command without a reply, unless it is
// about a slot of another command.
func (m *Mux) failed(l *link, text string) {
	err := redisconn.ReplyError(text)
	addr, slot, moved := parseMoved(text)
	if _, cluster := m.conf.Client.(*redis.ClusterClient); !cluster {
		moved = false // there is no other node to ask
	}
	x, ok := l.takes(func(x expectation) bool {
		return !moved || x.entry != nil && redisconn.Slot(x.entry.name.Text) == slot
	})
	e := x.entry
	if ok && x.unsubscribe && redisconn.Classify(err) == redisconn.KindNoPerm { // it continues to send unwanted messages
		m.conf.Notify(Notice{Kind: Refused, Name: e.name, Err: err})
	}
	if !ok || e == nil || x.unsubscribe || e.link != l {
		return
	}
	e.attempts++
	if e.live { // the command was sent twice; the end itself follows
		e.lost = time.Now()
	}
	if moved {
		m.reload()
		e.hint = addr
		if e.attempts > 2 { // two nodes redirect to each other
			e.until = time.Now().Add(movedBackoff.After(e.attempts - 2))
		}
	} else {
		m.refuse(e, err)
		e.until = time.Now().Add(refusedBackoff.After(e.attempts))
	}
	m.detach(e)
	m.place(e)
}

// refuse fails the waits for an entry, and notifies the sinks that had it.
func (m *Mux) refuse(e *entry, err error) {
	e.fail(err)
	m.recovered(e, true) // the outage is no longer the reason
	if !e.lost.IsZero() && !e.refused {
		e.refused = true
		m.conf.Notify(Notice{Kind: Refused, Name: e.name, Err: err})
	}
}

// fail ends the waits for an entry with an error.
func (e *entry) fail(err error) {
	for _, w := range e.waiters {
		select {
		case w.done <- err:
		default: // it has another error
		}
		w.left = -1
	}
	e.waiters = nil
}

// down handles the end of a link. Its entries must be placed again.
func (m *Mux) down(l *link, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	l.stop()
	if m.life.Err() != nil || m.links[l.key] != l {
		return // it was stopped
	}
	delete(m.links, l.key)
	t := m.tries[l.key]
	t.failures++
	t.until = time.Now().Add(backoff.Redis.After(t.failures))
	m.tries[l.key] = t
	m.reload()
	for e := range l.entries {
		if e.live {
			e.lost = l.conn.lastHeard()
		}
		if l.conn == nil {
			e.fail(err)
		}
		if !e.lost.IsZero() && !e.inOutage && !e.refused {
			e.inOutage = true
			if m.outage.names++; m.outage.since.IsZero() {
				m.outage.since = time.Now()
				m.conf.Notify(Notice{Kind: Down, Err: err})
			}
		}
		e.link, e.live = nil, false
		m.place(e)
	}
}

// recovered removes an entry from the outage, which ends with its last one. Without a connection
// nothing is reported: the entry has no sinks.
func (m *Mux) recovered(e *entry, connected bool) {
	if !e.inOutage {
		return
	}
	e.inOutage = false
	if m.outage.names--; m.outage.names == 0 {
		if connected {
			m.conf.Notify(Notice{Kind: Up, Duration: time.Since(m.outage.since)})
		}
		m.outage.since = time.Time{}
	}
}

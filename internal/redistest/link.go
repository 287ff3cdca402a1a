package redistest

import (
	"bytes"
	"context"
	"net"
	"sync"
	"time"
)

// link is one connection through a proxy. Two goroutines pump its bytes: requests from the
// client to the server, replies the other way.
type link struct {
	proxy  *Proxy
	client net.Conn

	ctx  context.Context // done when the link is closed
	stop context.CancelFunc

	// robbed says that bytes were swallowed by a black hole. Guarded by proxy.mu.
	robbed bool

	mu       sync.Mutex
	server   net.Conn // nil until the server is dialed
	closed   bool
	raw      bool          // the bytes are not, or no longer, looked at
	resp3    bool          // the client has asked for RESP3
	multi    [][]byte      // requests since MULTI; nil outside of a transaction
	waiting  []exchange    // requests without a reply, in their order
	answered chan struct{} // has a token when waiting became empty
}

// exchange is a command with its reply.
type exchange struct {
	// requests is the command; for the reply of EXEC the commands of the whole transaction,
	// for a reply inside of MULTI none, because nothing is executed by then.
	requests [][]byte
}

func newLink(p *Proxy, client net.Conn) *link {
	ctx, stop := context.WithCancel(context.Background())
	return &link{proxy: p, client: client, ctx: ctx, stop: stop, answered: make(chan struct{}, 1)}
}

// run dials the server and pumps until one side is closed.
func (l *link) run(target string) {
	defer func() {
		l.close()
		l.proxy.mu.Lock()
		delete(l.proxy.links, l)
		l.proxy.mu.Unlock()
	}()
	var dialer net.Dialer
	server, err := dialer.DialContext(l.ctx, "tcp", target)
	if err != nil {
		return // a client sees its connection closed before the first reply
	}
	l.mu.Lock()
	l.server = server
	closed := l.closed
	l.mu.Unlock()
	if closed {
		_ = server.Close()
		return
	}
	var wg sync.WaitGroup
	wg.Go(func() { l.pump(l.client, server, l.forwardRequests) })
	wg.Go(func() { l.pump(server, l.client, l.forwardReplies) })
	wg.Wait()
}

// close ends the link on both sides; it does not wait. It may be called with proxy.mu held.
func (l *link) close() {
	l.stop()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	_ = l.client.Close()
	if l.server != nil {
		_ = l.server.Close()
	}
}

// forwarder forwards the bytes of one direction. forward returns the rest that it could not use
// yet, a part of the same slice, and false when the link must end.
type forwarder struct {
	to      net.Conn
	forward func(to net.Conn, pending []byte) ([]byte, bool)
	pending []byte // not yet forwarded
}

func (f *forwarder) feed(chunk []byte) bool {
	f.pending = append(f.pending, chunk...)
	rest, ok := f.forward(f.to, f.pending)
	if ok && len(rest) < len(f.pending) { // otherwise a long reply is copied for each chunk
		f.pending = f.pending[:copy(f.pending, rest)]
	}
	return ok
}

// pump reads from one side and forwards to the other. It ends with the link.
func (l *link) pump(from, to net.Conn, forward func(to net.Conn, pending []byte) ([]byte, bool)) {
	defer l.close()
	f := &forwarder{to: to, forward: forward}
	var line *delayLine
	defer func() {
		if line != nil {
			line.end()
		}
	}()
	chunk := make([]byte, 64<<10)
	for {
		n, err := from.Read(chunk)
		if n > 0 {
			faults := l.proxy.faults(l)
			if faults.blackhole {
				if line == nil {
					f.pending = nil
				}
				continue
			}
			if faults.latency > 0 && line == nil {
				line = l.newDelayLine(f)
			}
			ok := l.wait(faults.delay)
			switch {
			case !ok:
			case line != nil:
				ok = line.push(chunk[:n], faults.latency)
			default:
				ok = f.feed(chunk[:n])
			}
			if !ok {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// delayLine forwards chunks when their time has come, while others arrive. A direction that has
// one keeps it, for the order of its bytes.
type delayLine struct {
	link   *link
	chunks chan delayed
	done   chan struct{}
}

type delayed struct {
	bytes []byte
	due   time.Time
}

func (l *link) newDelayLine(f *forwarder) *delayLine {
	d := &delayLine{link: l, chunks: make(chan delayed, 1024), done: make(chan struct{})}
	go func() {
		defer close(d.done)
		for chunk := range d.chunks {
			if !l.wait(time.Until(chunk.due)) || !f.feed(chunk.bytes) {
				l.close()
				return
			}
		}
	}()
	return d
}

// push is false when the link was closed.
func (d *delayLine) push(chunk []byte, latency time.Duration) bool {
	select {
	case d.chunks <- delayed{bytes.Clone(chunk), time.Now().Add(latency)}:
		return true
	case <-d.link.ctx.Done():
		return false
	}
}

// end returns when everything is forwarded or the link is closed.
func (d *delayLine) end() {
	close(d.chunks)
	<-d.done
}

// wait is false when the link was closed before the time was over.
func (l *link) wait(d time.Duration) bool {
	if d <= 0 {
		return l.ctx.Err() == nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-l.ctx.Done():
		return false
	}
}

// write forwards bytes; false when the other side is closed.
func (l *link) write(to net.Conn, b []byte) bool {
	if !l.proxy.faults(l).byteWise {
		_, err := to.Write(b)
		return err == nil
	}
	for i := range b {
		if _, err := to.Write(b[i : i+1]); err != nil {
			return false
		}
	}
	return true
}

// forwardRequests forwards the complete requests of pending, each after the rules for it.
func (l *link) forwardRequests(server net.Conn, pending []byte) ([]byte, bool) {
	for len(pending) > 0 {
		if l.isRaw() {
			return nil, l.write(server, pending)
		}
		n, err := requestLen(pending)
		if err != nil {
			l.setRaw()
			continue
		}
		if n == 0 {
			break
		}
		request := append([]byte(nil), pending[:n]...)
		pending = pending[n:]

		if !l.proxy.onRequest(request) {
			return nil, false
		}
		// A reply that may be lost is waited for before the next request is forwarded. So a
		// pipeline is executed exactly up to the command that the rule is about.
		hold := l.expect(request)
		if !l.write(server, request) {
			return nil, false
		}
		if hold && !l.awaitReplies() {
			return nil, false
		}
	}
	return pending, true
}

// expect notes what the reply to request will answer, before the request is sent. It reports
// whether a rule wants to judge that reply.
func (l *link) expect(request []byte) bool {
	return l.proxy.wantsReply(l.note(request)) // without mu, which is locked under proxy.mu
}

// note returns the requests that the reply will answer.
func (l *link) note(request []byte) [][]byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	words := requestWords(request, 2)
	if len(words) == 0 {
		words = []string{""}
	}
	next := exchange{requests: [][]byte{request}}
	switch words[0] {
	case "hello":
		l.resp3 = len(words) > 1 && words[1] == "3"
	case "subscribe", "psubscribe", "ssubscribe", "unsubscribe", "punsubscribe", "sunsubscribe":
		if !l.resp3 {
			l.raw = true // RESP2 answers with any number of replies, mixed with messages
		}
		return nil // RESP3 answers with pushes only
	case "monitor", "sync", "psync":
		l.raw = true
		return nil
	case "client":
		if len(words) > 1 && words[1] == "reply" {
			l.raw = true
			return nil
		}
	case "multi":
		l.multi = [][]byte{request}
		next.requests = nil
	case "exec":
		if l.multi != nil {
			next.requests = append(l.multi, request)
			l.multi = nil
		}
	case "discard":
		l.multi = nil
	default:
		if l.multi != nil {
			l.multi = append(l.multi, request)
			next.requests = nil
		}
	}
	l.waiting = append(l.waiting, next)
	select { // an old token would end the wait too early
	case <-l.answered:
	default:
	}
	return next.requests
}

// awaitReplies waits until every request has its reply; false when the link was closed.
func (l *link) awaitReplies() bool {
	select {
	case <-l.answered:
		return true
	case <-l.ctx.Done():
		return false
	}
}

// forwardReplies forwards the complete replies of pending, each after the rules for it.
func (l *link) forwardReplies(client net.Conn, pending []byte) ([]byte, bool) {
	for len(pending) > 0 {
		if l.isRaw() {
			return nil, l.write(client, pending)
		}
		n, err := replyLen(pending)
		if err != nil {
			l.setRaw()
			continue
		}
		if n == 0 {
			break
		}
		reply := pending[:n]
		pending = pending[n:]
		var requests [][]byte
		if !isPush(reply) {
			requests = l.firstWaiting()
		}
		if !l.proxy.onReply(requests, reply) {
			return nil, false
		}
		if !l.write(client, reply) {
			return nil, false
		}
		if !isPush(reply) {
			l.settle()
		}
	}
	return pending, true
}

// firstWaiting returns what the next reply answers. A reply without a request is possible: an
// error in place of the pushes of SUBSCRIBE.
func (l *link) firstWaiting() [][]byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.waiting) == 0 {
		return nil
	}
	return l.waiting[0].requests
}

// answered notes that the first waiting request has its reply.
func (l *link) settle() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.waiting) > 0 {
		l.waiting = l.waiting[1:]
	}
	if len(l.waiting) == 0 {
		select {
		case l.answered <- struct{}{}:
		default:
		}
	}
}

func (l *link) isRaw() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.raw
}

func (l *link) setRaw() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.raw = true
}

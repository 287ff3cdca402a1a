package redistest

import (
	"net"
	"strconv"
	"sync"
	"testing"
	"time"
)

// Proxy is a TCP proxy in front of a server, with faults that a test turns on and off. It is
// closed at the end of the test.
//
// It forwards whole requests and whole replies, so it knows which reply belongs to which
// request (see [Proxy.DropReply]). A connection that does not speak RESP from its first byte,
// for example one with TLS, is forwarded as it comes; the faults work on it, the rules do not.
type Proxy struct {
	tb   testing.TB
	addr string
	wg   sync.WaitGroup // accept loop and pumps

	mu       sync.Mutex // guards everything below
	target   string
	listener net.Listener // nil while refusing
	closed   bool
	links    map[*link]struct{}
	rules    []*Rule
	now      faults
	accepted int
}

// faults are the faults of a proxy for all bytes.
type faults struct {
	blackhole, byteWise bool
	delay, latency      time.Duration
}

// NewProxy listens on a port of its own and forwards to the target, "host:port".
func NewProxy(tb testing.TB, target string) *Proxy {
	tb.Helper()
	p := &Proxy{tb: tb, target: target, links: make(map[*link]struct{})}
	var err error
	for range 20 {
		var port int
		if port, err = freePort(); err != nil {
			break
		}
		p.addr = net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
		if err = p.listen(); err == nil {
			break
		}
	}
	if err != nil {
		tb.Fatalf("redistest: proxy: %v", err)
	}
	tb.Cleanup(p.close)
	return p
}

// Addr is the "host:port" that clients of the proxy dial.
func (p *Proxy) Addr() string { return p.addr }

// SetTarget sends new connections to another server, as a virtual address does at a failover.
// Open ones stay where they are until they are [Proxy.Cut].
func (p *Proxy) SetTarget(target string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.target = target
}

// Connections is the number of open connections.
func (p *Proxy) Connections() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.links)
}

// Accepted is the number of connections since the start, closed ones included.
func (p *Proxy) Accepted() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.accepted
}

// Cut closes all open connections on both sides. New ones are accepted.
func (p *Proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cutLocked()
}

func (p *Proxy) cutLocked() {
	for l := range p.links {
		l.close()
	}
}

// Refuse true closes all connections and answers new ones as a port does on which no
// process listens, so that dialing fails; false accepts again.
func (p *Proxy) Refuse(refuse bool) {
	p.tb.Helper()
	if !refuse {
		p.mu.Lock()
		listening := p.listener != nil
		p.mu.Unlock()
		if !listening && !poll(startTimeout, func() bool { return p.listen() == nil }) {
			p.tb.Fatalf("redistest: proxy: cannot listen on %s again", p.addr)
		}
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.listener != nil {
		_ = p.listener.Close()
		p.listener = nil
	}
	p.cutLocked()
}

// Blackhole true swallows all bytes in both directions, of open connections and of new ones,
// which are accepted: for both sides the connection is open and the other side silent.
//
// False ends it. A connection of which bytes were swallowed is closed then, because what
// follows on it could not be read; one that was idle all the time continues.
func (p *Proxy) Blackhole(on bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.now.blackhole = on
	if on {
		return
	}
	for l := range p.links {
		if l.robbed {
			l.close()
		}
	}
}

// Delay holds each chunk of bytes back for this long, in each direction; a request and its
// reply take twice as long. Zero ends it.
func (p *Proxy) Delay(d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.now.delay = d
}

// Latency is Delay without a bound of the bandwidth: while a chunk is blocked others arrive, so
// that a long pipeline takes hardly longer than one request. Zero ends it for what comes then.
func (p *Proxy) Latency(d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.now.latency = d
}

// ByteWise true forwards each byte by a write of its own, in both directions, so that a
// reader finds every border inside of what it reads.
func (p *Proxy) ByteWise(on bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.now.byteWise = on
}

// faults returns what a pump has to do with the bytes that it has just read.
func (p *Proxy) faults(l *link) faults {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.now.blackhole {
		l.robbed = true
	}
	return p.now
}

// listen opens the port and starts the accept loop, unless that is already done.
func (p *Proxy) listen() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.listener != nil || p.closed {
		return nil
	}
	listener, err := net.Listen("tcp", p.addr)
	if err != nil {
		return err
	}
	p.listener = listener
	p.wg.Go(func() { p.accept(listener) })
	return nil
}

// accept runs until its listener is closed.
func (p *Proxy) accept(listener net.Listener) {
	for {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		p.mu.Lock()
		if p.closed || p.listener != listener {
			p.mu.Unlock()
			_ = conn.Close()
			return
		}
		l := newLink(p, conn)
		p.links[l] = struct{}{}
		p.accepted++
		target := p.target
		p.wg.Go(func() { l.run(target) })
		p.mu.Unlock()
	}
}

// close ends the listener and all connections, and waits for their goroutines.
func (p *Proxy) close() {
	p.mu.Lock()
	p.closed = true
	if p.listener != nil {
		_ = p.listener.Close()
		p.listener = nil
	}
	p.cutLocked()
	p.mu.Unlock()
	p.wg.Wait()
}

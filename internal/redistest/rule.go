package redistest

import (
	"slices"
	"sync"
	"testing"
	"time"
)

// Rule is something that a [Proxy] does at certain requests or replies. It ends by itself
// after the number of times that it was made for.
//
// A rule sees the requests of all connections. In a transaction it acts on the whole: its
// match is asked for each command from MULTI to EXEC, and the reply meant is that of EXEC; a
// rule about requests acts when the command passes, before EXEC.
type Rule struct {
	proxy *Proxy
	match Match
	reply func(reply []byte) bool // further condition of a rule about replies
	kind  ruleKind
	act   func()

	mu    sync.Mutex
	left  int // negative: without end
	count int
	done  chan struct{}
}

type ruleKind int

const (
	cutAtRequest ruleKind = iota
	callAtRequest
	cutAtReply
	callAtReply
)

func (k ruleKind) aboutReplies() bool { return k == cutAtReply || k == callAtReply }

// DropReply lets the next n requests that match reach the server, swallows the reply and
// closes the connection in its place: the server has executed the command and the client
// never hears of it. n below zero is every such request.
//
// Replies to earlier requests of the same connection arrive, and later requests of a pipeline
// are not forwarded. A request that waits for its reply already, such as a blocked read,
// counts as well.
func (p *Proxy) DropReply(n int, match Match) *Rule {
	return p.rule(&Rule{kind: cutAtReply, match: match, left: n})
}

// DropReplyIf is DropReply for those replies that fulfil the condition, in their raw bytes,
// for example [NotNil]. Others are forwarded and do not count.
func (p *Proxy) DropReplyIf(n int, match Match, reply func(reply []byte) bool) *Rule {
	return p.rule(&Rule{kind: cutAtReply, match: match, reply: reply, left: n})
}

// DropRequest closes the connection in place of forwarding the next n requests that match:
// the server never sees them.
func (p *Proxy) DropRequest(n int, match Match) *Rule {
	return p.rule(&Rule{kind: cutAtRequest, match: match, left: n})
}

// BeforeRequest calls act before each of the next n requests that match is forwarded. The
// request waits until act has returned.
func (p *Proxy) BeforeRequest(n int, match Match, act func()) *Rule {
	return p.rule(&Rule{kind: callAtRequest, match: match, act: act, left: n})
}

// BeforeReply calls act when the reply to a request that matches has come from the server,
// for the next n of them. The reply waits until act has returned.
func (p *Proxy) BeforeReply(n int, match Match, act func()) *Rule {
	return p.rule(&Rule{kind: callAtReply, match: match, act: act, left: n})
}

func (p *Proxy) rule(r *Rule) *Rule {
	r.proxy, r.done = p, make(chan struct{})
	p.mu.Lock()
	defer p.mu.Unlock()
	p.rules = append(p.rules, r)
	return r
}

// Count is how often the rule has acted.
func (r *Rule) Count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.count
}

// Wait returns when the rule is done, and fails the test after timeout.
func (r *Rule) Wait(tb testing.TB, timeout time.Duration) {
	tb.Helper()
	select {
	case <-r.done:
	case <-time.After(timeout):
		tb.Fatalf("redistest: within %s the proxy has acted %d times on this rule", timeout, r.Count())
	}
}

// Remove ends the rule before its time.
func (r *Rule) Remove() {
	r.proxy.mu.Lock()
	defer r.proxy.mu.Unlock()
	r.proxy.rules = slices.DeleteFunc(r.proxy.rules, func(other *Rule) bool { return other == r })
}

// take reports whether the rule acts now, and counts it. finish ends the waits for the rule;
// it is called when the action is over.
func (r *Rule) take() (ok bool, finish func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.left == 0 {
		return false, nil
	}
	r.left--
	last := r.left == 0
	return true, func() {
		r.mu.Lock()
		r.count++
		r.mu.Unlock()
		if last {
			r.Remove()
			close(r.done)
		}
	}
}

func (r *Rule) matches(requests [][]byte) bool {
	return slices.ContainsFunc(requests, r.match)
}

// rulesFor returns the rules about replies, or about requests, that match.
func (p *Proxy) rulesFor(replies bool, requests [][]byte) []*Rule {
	p.mu.Lock()
	rules := slices.Clone(p.rules)
	p.mu.Unlock()
	return slices.DeleteFunc(rules, func(r *Rule) bool {
		return r.kind.aboutReplies() != replies || !r.matches(requests)
	})
}

// wantsReply reports whether the reply to these requests may be swallowed.
func (p *Proxy) wantsReply(requests [][]byte) bool {
	return slices.ContainsFunc(p.rulesFor(true, requests), func(r *Rule) bool { return r.kind == cutAtReply })
}

// onRequest runs the rules for a request; false means that the connection must end.
func (p *Proxy) onRequest(request []byte) bool {
	for _, r := range p.rulesFor(false, [][]byte{request}) {
		if !r.run() {
			return false
		}
	}
	return true
}

// onReply runs the rules for a reply; false means that the connection must end.
func (p *Proxy) onReply(requests [][]byte, reply []byte) bool {
	for _, r := range p.rulesFor(true, requests) {
		if r.reply != nil && !r.reply(reply) {
			continue
		}
		if !r.run() {
			return false
		}
	}
	return true
}

// run acts once, if the rule is not used up; false means that the connection must end.
func (r *Rule) run() bool {
	ok, finish := r.take()
	if !ok {
		return true
	}
	defer finish()
	if r.act != nil {
		r.act()
	}
	return r.act != nil
}

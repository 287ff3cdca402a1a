package pubsub

import (
	"io"

	"github.com/flaminco/redischannels/internal/redisconn"
)

// pushKind is the kind of a push.
type pushKind uint8

const (
	pushOther        pushKind = iota // not about a subscription
	pushMessage                      // of a channel
	pushPMessage                     // of a pattern
	pushSMessage                     // of a shard channel
	pushSubscribed                   // confirmation of any kind of subscribing
	pushUnsubscribed                 // end of a subscription, requested or not
	pushPong
	pushError
)

// push is one push of the server. Its name and channel are valid until the next one is read; the
// payload is new memory that is not written again.
type push struct {
	kind    pushKind
	of      Kind   // kind of name, for all kinds but pong and error
	name    []byte // channel or pattern that was subscribed to
	channel []byte // that was published to
	payload []byte // nil for one that is larger than the limit
	size    int    // bytes of the payload
	text    string // of an error
}

// reader reads pushes in RESP2 and RESP3, which differ in one byte here.
type reader struct {
	d       *redisconn.Decoder
	limit   int // of payloads, 0 means none
	name    []byte
	channel []byte
}

func newReader(r io.Reader, limit int) *reader {
	return &reader{d: redisconn.NewDecoder(r), limit: limit}
}

// maxErrorText bounds the text of an error.
const maxErrorText = 64 << 10

// next reads one push.
func (r *reader) next(p *push) error {
	*p = push{}
	h, err := r.d.Header()
	if err != nil {
		return err
	}
	switch h.Kind {
	case '*', '>':
		return r.array(p, h.N)
	case '+':
		if string(h.Text) == "PONG" {
			p.kind = pushPong
		}
		return nil
	case '-':
		p.kind, p.text = pushError, string(h.Text)
		return nil
	case '!':
		if h.N > maxErrorText {
			return redisconn.ErrMalformed
		}
		text, err := r.d.ReadBulk(nil, h.N)
		p.kind, p.text = pushError, string(text)
		return err
	default:
		return r.d.SkipRest(h)
	}
}

// events are the kinds of pushes by their first element.
var events = map[string]struct {
	kind pushKind
	of   Kind
}{
	"message":      {pushMessage, Channel},
	"smessage":     {pushSMessage, Shard},
	"pmessage":     {pushPMessage, Pattern},
	"subscribe":    {pushSubscribed, Channel},
	"psubscribe":   {pushSubscribed, Pattern},
	"ssubscribe":   {pushSubscribed, Shard},
	"unsubscribe":  {pushUnsubscribed, Channel},
	"punsubscribe": {pushUnsubscribed, Pattern},
	"sunsubscribe": {pushUnsubscribed, Shard},
	"pong":         {kind: pushPong},
}

// array reads the elements of an array or a push of n elements.
func (r *reader) array(p *push, n int) error {
	if n < 1 {
		return nil
	}
	var word [16]byte
	name, err := r.d.ReadString(word[:0])
	if err != nil {
		return err
	}
	left := n - 1
	event := events[string(name)]
	p.kind, p.of = event.kind, event.of
	if p.kind == pushOther || p.kind == pushPong {
		return r.d.Skip(left)
	}
	if left < 2 {
		return redisconn.ErrMalformed
	}
	if r.name, err = r.d.ReadString(r.name[:0]); err != nil {
		return err
	}
	p.name, p.channel = r.name, r.name
	switch p.kind {
	case pushSubscribed, pushUnsubscribed:
		return r.d.Skip(left - 1)
	case pushPMessage:
		if left < 3 {
			return redisconn.ErrMalformed
		}
		if r.channel, err = r.d.ReadString(r.channel[:0]); err != nil {
			return err
		}
		p.channel = r.channel
		left--
	}
	if err := r.payload(p); err != nil {
		return err
	}
	return r.d.Skip(left - 2)
}

// payload reads the payload of a message. One that is too large is not kept in memory.
func (r *reader) payload(p *push) error {
	n, err := r.d.StringHeader()
	if err != nil {
		return err
	}
	p.size = max(n, 0)
	if r.limit > 0 && n > r.limit {
		return r.d.Discard(n)
	}
	p.payload, err = r.d.ReadBulk(nil, n)
	return err
}

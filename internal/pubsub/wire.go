package pubsub

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strconv"
)

// pushKind says what the server has sent.
type pushKind uint8

const (
	pushOther        pushKind = iota // nothing that concerns a subscription
	pushMessage                      // of a channel
	pushPMessage                     // of a pattern
	pushSMessage                     // of a shard channel
	pushSubscribed                   // confirmation of any kind of subscribing
	pushUnsubscribed                 // end of a subscription, asked for or not
	pushPong
	pushError
)

// push is one thing that the server has sent. Its name and channel are valid until
// the next is read, the payload is new memory that nobody writes to any more.
type push struct {
	kind    pushKind
	of      Kind   // what name is, of all kinds but pong and error
	name    []byte // channel or pattern that was subscribed to
	channel []byte // that was published to
	payload []byte // nil for one that is larger than the limit
	size    int    // bytes of the payload
	text    string // of an error
}

const (
	readBuffer   = 64 << 10
	maxElements  = 1 << 16   // of an array, to give up on what is no RESP
	maxBulk      = 512 << 20 // what Redis allows a string to be by default
	maxDepth     = 8
	maxErrorText = 64 << 10
)

var errProtocol = errors.New("redis: malformed reply on a Pub/Sub connection")

// reader reads pushes in RESP2 and RESP3, which differ in one byte here.
type reader struct {
	r       *bufio.Reader
	limit   int // of payloads, 0 means none
	name    []byte
	channel []byte
}

func newReader(r io.Reader, limit int) *reader {
	return &reader{r: bufio.NewReaderSize(r, readBuffer), limit: limit}
}

// next reads one push.
func (d *reader) next(p *push) error {
	*p = push{}
	line, err := d.line()
	if err != nil {
		return err
	}
	switch line[0] {
	case '*', '>':
		n, err := number(line[1:], maxElements)
		if err != nil {
			return err
		}
		return d.array(p, n)
	case '+':
		if string(line[1:]) == "PONG" {
			p.kind = pushPong
		}
		return nil
	case '-':
		p.kind, p.text = pushError, string(line[1:])
		return nil
	case '!':
		n, err := number(line[1:], maxErrorText)
		if err != nil {
			return err
		}
		text, err := d.bulk(nil, n)
		p.kind, p.text = pushError, string(text)
		return err
	default:
		return d.skip(line, 0)
	}
}

// array reads the elements of an array or a push of n elements.
func (d *reader) array(p *push, n int) error {
	if n < 1 {
		return nil
	}
	var word [16]byte
	kind, err := d.text(word[:0])
	if err != nil {
		return err
	}
	left := n - 1
	switch string(kind) {
	case "message":
		p.kind, p.of = pushMessage, Channel
	case "smessage":
		p.kind, p.of = pushSMessage, Shard
	case "pmessage":
		p.kind, p.of = pushPMessage, Pattern
	case "subscribe":
		p.kind, p.of = pushSubscribed, Channel
	case "psubscribe":
		p.kind, p.of = pushSubscribed, Pattern
	case "ssubscribe":
		p.kind, p.of = pushSubscribed, Shard
	case "unsubscribe":
		p.kind, p.of = pushUnsubscribed, Channel
	case "punsubscribe":
		p.kind, p.of = pushUnsubscribed, Pattern
	case "sunsubscribe":
		p.kind, p.of = pushUnsubscribed, Shard
	case "pong":
		p.kind = pushPong
		return d.skipAll(left, 0)
	default:
		return d.skipAll(left, 0)
	}
	if left < 2 {
		return errProtocol
	}
	if d.name, err = d.text(d.name[:0]); err != nil {
		return err
	}
	p.name, p.channel = d.name, d.name
	switch p.kind {
	case pushSubscribed, pushUnsubscribed:
		return d.skipAll(left-1, 0)
	case pushPMessage:
		if left < 3 {
			return errProtocol
		}
		if d.channel, err = d.text(d.channel[:0]); err != nil {
			return err
		}
		p.channel = d.channel
		left--
	}
	if err := d.payload(p); err != nil {
		return err
	}
	return d.skipAll(left-2, 0)
}

// payload reads the payload of a message, or passes one that is too large without
// memory for it.
func (d *reader) payload(p *push) error {
	n, err := d.bulkHeader()
	if err != nil {
		return err
	}
	p.size = max(n, 0)
	if d.limit > 0 && n > d.limit {
		_, err := d.r.Discard(n + 2)
		return err
	}
	p.payload, err = d.bulk(nil, n)
	return err
}

// text reads a string; nil is an empty one.
func (d *reader) text(into []byte) ([]byte, error) {
	n, err := d.bulkHeader()
	if err != nil {
		return nil, err
	}
	return d.bulk(into, n)
}

// bulkHeader reads what stands before the bytes of a string, its length; -1 is nil.
func (d *reader) bulkHeader() (int, error) {
	line, err := d.line()
	if err != nil {
		return 0, err
	}
	if line[0] != '$' {
		return 0, fmt.Errorf("%w: a string was expected, not %q", errProtocol, line[0])
	}
	return number(line[1:], maxBulk)
}

// bulk reads the n bytes of a string and its line end; n below 0 is nil.
func (d *reader) bulk(into []byte, n int) ([]byte, error) {
	if n < 0 {
		return into, nil
	}
	if cap(into) < n {
		into = make([]byte, n)
	}
	into = into[:n]
	if _, err := io.ReadFull(d.r, into); err != nil {
		return nil, err
	}
	end, err := d.r.Peek(2)
	if err != nil {
		return nil, err
	}
	if end[0] != '\r' || end[1] != '\n' {
		return nil, errProtocol
	}
	_, err = d.r.Discard(2)
	return into, err
}

// skip passes the rest of a value whose first line was read.
func (d *reader) skip(line []byte, depth int) error {
	if depth > maxDepth {
		return errProtocol
	}
	switch line[0] {
	case ':', '+', '-', '_', ',', '#', '(':
		return nil
	case '$', '!', '=':
		n, err := number(line[1:], maxBulk)
		if err != nil || n < 0 {
			return err
		}
		_, err = d.r.Discard(n + 2)
		return err
	case '*', '>', '~':
		n, err := number(line[1:], maxElements)
		if err != nil {
			return err
		}
		return d.skipAll(n, depth+1)
	case '%', '|':
		n, err := number(line[1:], maxElements)
		if err != nil {
			return err
		}
		return d.skipAll(2*n, depth+1)
	default:
		return fmt.Errorf("%w: type %q", errProtocol, line[0])
	}
}

func (d *reader) skipAll(n, depth int) error {
	for range max(n, 0) {
		line, err := d.line()
		if err != nil {
			return err
		}
		if err := d.skip(line, depth); err != nil {
			return err
		}
	}
	return nil
}

// line returns the next line without its end; it is never empty.
func (d *reader) line() ([]byte, error) {
	line, err := d.r.ReadSlice('\n')
	if err != nil {
		if errors.Is(err, bufio.ErrBufferFull) {
			return nil, errProtocol
		}
		return nil, err
	}
	n := len(line)
	if n < 3 || line[n-2] != '\r' {
		return nil, errProtocol
	}
	return line[:n-2], nil
}

// number parses a length: -1 for nil, otherwise 0 to most.
func number(text []byte, most int) (int, error) {
	if string(text) == "-1" {
		return -1, nil
	}
	n := 0
	for _, c := range text {
		if c < '0' || c > '9' {
			return 0, errProtocol
		}
		if n = n*10 + int(c-'0'); n > most {
			return 0, fmt.Errorf("%w: length above %d", errProtocol, most)
		}
	}
	if len(text) == 0 {
		return 0, errProtocol
	}
	return n, nil
}

// appendCommand appends a command to what is going to be written.
func appendCommand(buf []byte, words ...string) []byte {
	buf = append(buf, '*')
	buf = strconv.AppendInt(buf, int64(len(words)), 10)
	buf = append(buf, '\r', '\n')
	for _, w := range words {
		buf = append(buf, '$')
		buf = strconv.AppendInt(buf, int64(len(w)), 10)
		buf = append(buf, '\r', '\n')
		buf = append(buf, w...)
		buf = append(buf, '\r', '\n')
	}
	return buf
}

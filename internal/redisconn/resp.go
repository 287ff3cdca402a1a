package redisconn

import (
	"bytes"
	"errors"
	"strconv"
)

// ErrMalformed is the error for bytes that are not RESP, or not the reply that the
// command has.
var ErrMalformed = errors.New("redischannels: malformed reply from redis")

const (
	// maxLength is the maximum valid length.
	maxLength = 1 << 40
	// maxDepth is the maximum nesting of a skipped value.
	maxDepth = 100
)

// Header is the first line of a value in RESP2 or RESP3.
type Header struct {
	Kind byte   // the first byte of the line; '_' for every form of nil
	N    int    // length of a string, elements or pairs of an aggregate; -1 for nil
	Text []byte // the line after its first byte, a part of the source
}

// parseHeader parses a line that ends in "\r\n".
func parseHeader(line []byte) (Header, error) {
	end := len(line) - 2
	if end < 1 || line[end] != '\r' || line[end+1] != '\n' {
		return Header{}, ErrMalformed
	}
	h := Header{Kind: line[0], Text: line[1:end]}
	switch h.Kind {
	case '*', '$', '%', '~', '>', '|', '=', '!':
		var err error
		if h.N, err = parseLength(h.Text); err != nil {
			return Header{}, err
		}
		if h.N < 0 {
			h.Kind = '_'
		}
	case '-', '_', '+', ':', ',', '#', '(':
	default:
		return Header{}, ErrMalformed
	}
	return h, nil
}

// parseLength parses a length; -1 is nil.
func parseLength(text []byte) (int, error) {
	if string(text) == "-1" {
		return -1, nil
	}
	if len(text) == 0 {
		return 0, ErrMalformed
	}
	n := 0
	for _, c := range text {
		if c < '0' || c > '9' || n > maxLength {
			return 0, ErrMalformed
		}
		n = 10*n + int(c-'0')
	}
	if n > maxLength {
		return 0, ErrMalformed
	}
	return n, nil
}

// isString reports whether N bytes and a line end follow the header.
func (h Header) isString() bool { return h.Kind == '$' || h.Kind == '=' || h.Kind == '!' }

// values returns how many values follow the header. Attributes are pairs before the value
// that they describe.
func (h Header) values() int {
	switch h.Kind {
	case '*', '~', '>':
		return h.N
	case '%':
		return 2 * h.N
	case '|':
		return 2*h.N + 1
	default:
		return 0
	}
}

// Parser reads a complete reply in memory without copying it.
type Parser struct {
	b    []byte
	i    int
	deep int // levels of the value that is being skipped
}

// NewParser returns a parser of b.
func NewParser(b []byte) Parser { return Parser{b: b} }

// Done reports whether everything was read.
func (p *Parser) Done() bool { return p.i >= len(p.b) }

// Pos returns how many bytes were read.
func (p *Parser) Pos() int { return p.i }

// Since returns the bytes that were read since a position.
func (p *Parser) Since(pos int) []byte { return p.b[pos:p.i:p.i] }

// Len returns the length of the whole reply, which bounds how many values it can have.
func (p *Parser) Len() int { return len(p.b) }

// Header reads the header of the next value, after any attributes.
func (p *Parser) Header() (Header, error) {
	for {
		h, err := p.line()
		if err != nil || h.Kind != '|' {
			return h, err
		}
		for range 2 * h.N {
			if err := p.Skip(); err != nil {
				return Header{}, err
			}
		}
	}
}

// line reads one header.
func (p *Parser) line() (Header, error) {
	end := bytes.IndexByte(p.b[p.i:], '\n')
	if end < 0 {
		return Header{}, ErrMalformed
	}
	h, err := parseHeader(p.b[p.i : p.i+end+1])
	if err == nil {
		p.i += end + 1
	}
	return h, err
}

// Plain reads a header of a kind that has a length, if it is next and not nil. Header takes four
// times as long, and an entry of a stream has eight headers.
func (p *Parser) Plain(kind byte) (n int, ok bool) {
	i := p.i
	if i >= len(p.b) || p.b[i] != kind {
		return 0, false
	}
	for i++; i < len(p.b) && n < maxLength; i++ {
		c := p.b[i] - '0'
		if c > 9 {
			break
		}
		n = 10*n + int(c)
	}
	if i == p.i+1 || i+1 >= len(p.b) || p.b[i] != '\r' || p.b[i+1] != '\n' {
		return 0, false
	}
	p.i = i + 2
	return n, true
}

// Bulk reads a string. It is a part of the reply.
func (p *Parser) Bulk() ([]byte, error) {
	n, ok := p.Plain('$')
	if !ok {
		h, err := p.Header()
		if err != nil {
			return nil, err
		}
		if h.Kind != '$' {
			return nil, ErrMalformed
		}
		n = h.N
	}
	if n > len(p.b)-p.i-2 {
		return nil, ErrMalformed
	}
	v := p.b[p.i : p.i+n : p.i+n]
	p.i += n + 2
	return v, nil
}

// Pair reads the header of an array of two.
func (p *Parser) Pair() error {
	if n, ok := p.Plain('*'); ok && n == 2 {
		return nil
	} else if ok {
		return ErrMalformed
	}
	if h, err := p.Header(); err != nil || h.Kind != '*' || h.N != 2 {
		return ErrMalformed
	}
	return nil
}

// Skip reads a value of any kind.
func (p *Parser) Skip() error {
	if p.deep++; p.deep > maxDepth {
		return ErrMalformed
	}
	defer func() { p.deep-- }()
	h, err := p.Header()
	if err != nil {
		return err
	}
	if h.isString() {
		if h.N > len(p.b)-p.i-2 {
			return ErrMalformed
		}
		p.i += h.N + 2
	}
	for range h.values() {
		if err := p.Skip(); err != nil {
			return err
		}
	}
	return nil
}

// Walk finds the end of a reply while it arrives.
type Walk struct {
	Pos  int // bytes of the reply that were scanned
	Need int // end of the string that has not arrived completely, 0 at first
	left int // values that follow
}

// NewWalk returns a Walk at the beginning of a reply.
func NewWalk() Walk { return Walk{left: 1} }

// On continues in b, the received part of the reply from its beginning, and reports whether the
// reply is complete. It then ends at Pos.
func (w *Walk) On(b []byte) (done bool, err error) {
	for w.left > 0 {
		p := Parser{b: b, i: w.Pos}
		h := Header{Kind: '$'}
		var ok bool
		if h.N, ok = p.Plain('$'); !ok {
			h.Kind = '*'
			h.N, ok = p.Plain('*')
		}
		if !ok {
			if bytes.IndexByte(b[w.Pos:], '\n') < 0 {
				return false, nil
			}
			if h, err = p.line(); err != nil {
				return false, err
			}
		}
		if h.isString() {
			if h.N > len(b)-p.i-2 {
				w.Need = p.i + h.N + 2
				return false, nil
			}
			p.i += h.N + 2
		}
		if w.left += h.values() - 1; w.left > maxLength {
			return false, ErrMalformed
		}
		w.Pos = p.i
	}
	return true, nil
}

// BulkOverhead is the approximate number of bytes around a bulk string.
const BulkOverhead = 8

// AppendBulk appends a bulk string.
func AppendBulk(b []byte, v string) []byte {
	b = append(b, '$')
	b = strconv.AppendInt(b, int64(len(v)), 10)
	b = append(b, '\r', '\n')
	b = append(b, v...)
	return append(b, '\r', '\n')
}

// AppendCommand appends a command.
func AppendCommand(b []byte, words ...string) []byte {
	b = append(b, '*')
	b = strconv.AppendInt(b, int64(len(words)), 10)
	b = append(b, '\r', '\n')
	for _, w := range words {
		b = AppendBulk(b, w)
	}
	return b
}

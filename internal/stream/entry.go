package stream

import (
	"bytes"
	"errors"
	"strconv"
	"strings"
	"sync"
)

// Entry is one stream entry. Its fields stay in the form in which they arrived,
// as a part of the reply that a whole batch shares, until they are decoded. The entries
// of a page are valid until it is recycled: a copy that is kept is made by Share, and
// released once.
type Entry struct {
	ID   ID
	Text string // the ID as Redis wrote it
	Size int    // bytes of all names and values

	raw []byte // RESP bulk strings: name, value, name, value, ...
	in  *chunk // where raw is; nil for memory that the collector takes back
}

// Fields calls yield with each name and value in order. The slices are valid
// only during the call.
func (e *Entry) Fields(yield func(name, value []byte)) {
	p := parser{b: e.raw}
	for p.i < len(p.b) {
		name, err := p.bulk()
		if err != nil {
			return
		}
		value, err := p.bulk()
		if err != nil {
			return
		}
		yield(name, value)
	}
}

// NewEntry makes an entry of names and values in turn.
func NewEntry(id ID, values []string) Entry {
	e := Entry{ID: id, Text: id.String()}
	for _, v := range values {
		e.Size += len(v)
	}
	e.raw = make([]byte, 0, e.Size+len(values)*bulkOverhead)
	for _, v := range values {
		e.raw = append(e.raw, '$')
		e.raw = strconv.AppendInt(e.raw, int64(len(v)), 10)
		e.raw = append(e.raw, "\r\n"...)
		e.raw = append(e.raw, v...)
		e.raw = append(e.raw, "\r\n"...)
	}
	return e
}

// bulkOverhead is about what surrounds a bulk string.
const bulkOverhead = 8

// Share returns a copy that is released on its own.
func (e *Entry) Share() Entry {
	e.in.share()
	return *e
}

// Detach gives the entry memory of its own. Otherwise it keeps the whole reply in
// which it came.
func (e *Entry) Detach() {
	raw := bytes.Clone(e.raw)
	e.Release()
	e.raw = raw
}

// Release drops the fields.
func (e *Entry) Release() {
	e.in.release()
	e.raw, e.in = nil, nil
}

// ReplyError is an error reply that was read as raw bytes. It implements
// redis.Error, so it classifies as one.
type ReplyError string

// Error implements error.
func (e ReplyError) Error() string { return string(e) }

// RedisError implements redis.Error.
func (ReplyError) RedisError() {}

var errReply = errors.New("redischannels: malformed reply of redis")

// Page is what a read found in one stream.
type Page struct {
	Key     string
	Entries []Entry
}

// size is how many bytes of the reply its entries are.
func (p *Page) size() int {
	n := 0
	for i := range p.Entries {
		n += len(p.Entries[i].raw)
	}
	return n
}

// part gives the entries of small pages memory of their own, a page together: an entry that
// is kept for long would keep the larger ones of other streams, which are in the same reply.
func part(pages []Page) {
	if len(pages) < 2 {
		return
	}
	whole := 0
	for i := range pages {
		whole += pages[i].size()
	}
	for i := range pages {
		n := pages[i].size()
		if n > whole/2 {
			continue
		}
		own := make([]byte, 0, n)
		for k := range pages[i].Entries {
			e := &pages[i].Entries[k]
			at := len(own)
			own = append(own, e.raw...)
			e.Release()
			e.raw = own[at:len(own):len(own)]
		}
	}
}

// spare has memory of entries that were done with.
var spare sync.Pool

// maxSpare is for how many entries such memory is kept.
const maxSpare = 2048

func newEntries(n int) []Entry {
	if entries, _ := spare.Get().(*[]Entry); entries != nil && cap(*entries) >= n {
		return (*entries)[:0]
	}
	return make([]Entry, 0, n)
}

// Recycle releases the entries of a page and takes back their memory.
func Recycle(entries []Entry) {
	for i := range entries {
		entries[i].Release()
	}
	if cap(entries) == 0 || cap(entries) > maxSpare {
		return
	}
	clear(entries)
	spare.Put(&entries)
}

// parseReply parses the reply of XREAD or XREADGROUP, in RESP2 or RESP3. Streams
// without entries are not in it. Entries that were trimmed away before they were read
// (a nil instead of fields) are left out: reads by `>` never return such. The entries share
// the chunk that the reply is in, or nil.
func parseReply(raw []byte, in *chunk) ([]Page, error) {
	p := parser{b: raw, in: in}
	kind, n, err := p.header()
	if err != nil {
		return nil, err
	}
	switch kind {
	case '-':
		return nil, ReplyError(p.text)
	case '_':
		return nil, nil
	case '*', '%':
	default:
		return nil, errReply
	}
	var pages []Page
	for range n {
		if kind == '*' {
			if err := p.pair(); err != nil {
				return nil, err
			}
		}
		key, err := p.bulk()
		if err != nil {
			return nil, err
		}
		entries, err := p.entries()
		if err != nil {
			return nil, err
		}
		pages = append(pages, Page{Key: string(key), Entries: entries})
	}
	return pages, nil
}

// parser walks over a complete RESP reply in memory without copying.
type parser struct {
	b    []byte
	in   *chunk // where b is, for the entries
	i    int
	deep int    // levels of what is being skipped
	text []byte // the line of the last header after its first byte
}

// header reads one type line, and the attributes before it, which are of no interest.
// n is its length or count, -1 for a nil.
func (p *parser) header() (kind byte, n int, err error) {
	for {
		if kind, n, err = p.line(); err != nil || kind != '|' {
			return kind, n, err
		}
		for range 2 * n {
			if err := p.skip(); err != nil {
				return 0, 0, err
			}
		}
	}
}

// line reads one type line.
func (p *parser) line() (kind byte, n int, err error) {
	end := bytes.IndexByte(p.b[p.i:], '\n')
	if end < 2 {
		return 0, 0, errReply
	}
	line := p.b[p.i : p.i+end-1]
	p.i += end + 1
	kind, p.text = line[0], line[1:]
	switch kind {
	case '*', '$', '%', '~', '>', '|', '=', '!':
		if n, err = atoi(p.text); err != nil {
			return 0, 0, err
		}
		if n < 0 {
			return '_', -1, nil
		}
	case '-', '_', '+', ':', ',', '#', '(':
	default:
		return 0, 0, errReply
	}
	return kind, n, nil
}

// plain reads a type line of a kind, if that is what comes and there is nothing special
// about it: header takes four times as long, and there are eight lines per entry.
func (p *parser) plain(kind byte) (n int, ok bool) {
	i := p.i
	if i >= len(p.b) || p.b[i] != kind {
		return 0, false
	}
	for i++; i < len(p.b) && n < 1<<40; i++ {
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

func (p *parser) bulk() ([]byte, error) {
	n, ok := p.plain('$')
	if !ok {
		kind, m, err := p.header()
		if err != nil {
			return nil, err
		}
		if kind != '$' {
			return nil, errReply
		}
		n = m
	}
	if n > len(p.b)-p.i-2 {
		return nil, errReply
	}
	v := p.b[p.i : p.i+n : p.i+n]
	p.i += n + 2
	return v, nil
}

// pair reads the header of an array of two.
func (p *parser) pair() error {
	if n, ok := p.plain('*'); ok && n == 2 {
		return nil
	} else if ok {
		return errReply
	}
	if kind, n, err := p.header(); err != nil || kind != '*' || n != 2 {
		return errReply
	}
	return nil
}

// maxDepth is how deep a value that is skipped may be nested.
const maxDepth = 100

func (p *parser) skip() error {
	if p.deep++; p.deep > maxDepth {
		return errReply
	}
	defer func() { p.deep-- }()
	kind, n, err := p.header()
	if err != nil {
		return err
	}
	switch kind {
	case '$', '=', '!':
		if n > len(p.b)-p.i-2 {
			return errReply
		}
		p.i += n + 2
	case '%':
		n *= 2
		fallthrough
	case '*', '~', '>':
		for range n {
			if err := p.skip(); err != nil {
				return err
			}
		}
	}
	return nil
}

func (p *parser) entries() ([]Entry, error) {
	kind, n, err := p.header()
	if err != nil || kind != '*' || n > len(p.b) {
		return nil, errReply
	}
	entries := newEntries(n)
	// One string holds the IDs of the whole batch.
	var ids strings.Builder
	ids.Grow(24 * n)
	for range n {
		if err := p.pair(); err != nil {
			return nil, err
		}
		text, err := p.bulk()
		if err != nil {
			return nil, err
		}
		id, err := parseIDBytes(text)
		if err != nil || idLen(id) != len(text) {
			return nil, errReply
		}
		m, ok := p.plain('*')
		if !ok {
			var kind byte
			if kind, m, err = p.header(); err != nil {
				return nil, err
			}
			if kind == '_' {
				continue
			}
			if kind != '*' {
				return nil, errReply
			}
		}
		if m%2 != 0 {
			return nil, errReply
		}
		e := Entry{ID: id}
		start := p.i
		for range m {
			v, err := p.bulk()
			if err != nil {
				return nil, err
			}
			e.Size += len(v)
		}
		e.raw, e.in = p.b[start:p.i:p.i], p.in.share()
		ids.Write(text)
		entries = append(entries, e)
	}
	all := ids.String()
	at := 0
	for i := range entries {
		n := idLen(entries[i].ID)
		entries[i].Text = all[at : at+n]
		at += n
	}
	return entries, nil
}

// parseIDBytes parses an ID as Redis writes it.
func parseIDBytes(b []byte) (ID, error) {
	dash := bytes.IndexByte(b, '-')
	if dash < 0 {
		return ID{}, errReply
	}
	ms, err := atou(b[:dash])
	if err != nil {
		return ID{}, err
	}
	seq, err := atou(b[dash+1:])
	return ID{Ms: ms, Seq: seq}, err
}

func idLen(id ID) int { return decimals(id.Ms) + 1 + decimals(id.Seq) }

func decimals(n uint64) int {
	d := 1
	for n >= 10 {
		n /= 10
		d++
	}
	return d
}

func atou(b []byte) (uint64, error) {
	if len(b) == 0 || len(b) > 20 {
		return 0, errReply
	}
	if len(b) == 20 { // may overflow: leave it to strconv
		n, err := strconv.ParseUint(string(b), 10, 64)
		if err != nil {
			return 0, errReply
		}
		return n, nil
	}
	var n uint64
	for _, c := range b {
		if c < '0' || c > '9' {
			return 0, errReply
		}
		n = n*10 + uint64(c-'0')
	}
	return n, nil
}

func atoi(b []byte) (int, error) {
	if string(b) == "-1" { // a nil
		return -1, nil
	}
	n, err := atou(b)
	if n > 1<<40 {
		return 0, errReply
	}
	return int(n), err
}

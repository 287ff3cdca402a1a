package stream

import (
	"bytes"
	"strconv"
	"strings"
	"sync"

	"github.com/flaminco/redischannels/internal/redisconn"
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
	p := redisconn.NewParser(e.raw)
	for !p.Done() {
		name, err := p.Bulk()
		if err != nil {
			return
		}
		value, err := p.Bulk()
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
	e.raw = make([]byte, 0, e.Size+len(values)*redisconn.BulkOverhead)
	for _, v := range values {
		e.raw = redisconn.AppendBulk(e.raw, v)
	}
	return e
}

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
	p := parser{redisconn.NewParser(raw), in}
	h, err := p.Header()
	if err != nil {
		return nil, err
	}
	switch h.Kind {
	case '-':
		return nil, redisconn.ReplyError(h.Text)
	case '_':
		return nil, nil
	case '*', '%':
	default:
		return nil, redisconn.ErrMalformed
	}
	var pages []Page
	for range h.N {
		if h.Kind == '*' {
			if err := p.Pair(); err != nil {
				return nil, err
			}
		}
		key, err := p.Bulk()
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

// parser is a parser of a reply whose entries share a chunk, or nil.
type parser struct {
	redisconn.Parser
	in *chunk
}

func (p *parser) entries() ([]Entry, error) {
	h, err := p.Header()
	n := h.N
	if err != nil || h.Kind != '*' || n > p.Len() {
		return nil, redisconn.ErrMalformed
	}
	entries := newEntries(n)
	// One string holds the IDs of the whole batch.
	var ids strings.Builder
	ids.Grow(24 * n)
	for range n {
		if err := p.Pair(); err != nil {
			return nil, err
		}
		text, err := p.Bulk()
		if err != nil {
			return nil, err
		}
		id, err := parseIDBytes(text)
		if err != nil || idLen(id) != len(text) {
			return nil, redisconn.ErrMalformed
		}
		m, ok := p.Plain('*')
		if !ok {
			h, err := p.Header()
			if err != nil {
				return nil, err
			}
			if h.Kind == '_' {
				continue
			}
			if h.Kind != '*' {
				return nil, redisconn.ErrMalformed
			}
			m = h.N
		}
		if m%2 != 0 {
			return nil, redisconn.ErrMalformed
		}
		e := Entry{ID: id}
		start := p.Pos()
		for range m {
			v, err := p.Bulk()
			if err != nil {
				return nil, err
			}
			e.Size += len(v)
		}
		e.raw, e.in = p.Since(start), p.in.share()
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
		return ID{}, redisconn.ErrMalformed
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
		return 0, redisconn.ErrMalformed
	}
	if len(b) == 20 { // may overflow: leave it to strconv
		n, err := strconv.ParseUint(string(b), 10, 64)
		if err != nil {
			return 0, redisconn.ErrMalformed
		}
		return n, nil
	}
	var n uint64
	for _, c := range b {
		if c < '0' || c > '9' {
			return 0, redisconn.ErrMalformed
		}
		n = n*10 + uint64(c-'0')
	}
	return n, nil
}

package stream

// unknown is the position of an entry of which it is not known how many entries were added
// up to it.
const unknown = -1

// Cursor is the position up to which a stream was read. It detects a stream that went back, and,
// from Redis 7 on, which counts the entries that were ever added, entries that were removed from
// the head of the stream before they were read.
type Cursor struct {
	ID       ID    // of the last entry that was read
	reached  ID    // the greatest ID that the stream is known to have had
	position int64 // number of entries that were ever added up to ID
	length   int64 // of the stream, at the last check
}

// Start is the position at which reading begins.
type Start struct {
	After ID   // the ID of an entry, 0-0 for the oldest
	Ahead bool // the stream need not have had After
	End   bool // behind the last entry that there is when reading begins, instead of After
}

// Look is the query of the stream before reading begins. Entries removed before the oldest entry
// are not a gap.
func (s Start) Look(key string) Look {
	if s.End || s.After.IsZero() {
		return Look{Key: key, After: MaxID}
	}
	return Look{Key: key, After: s.After}
}

// Cursor returns the place in the stream that info is of.
func (s Start) Cursor(info Info) Cursor {
	switch {
	case s.End:
		return NewCursor(info.Last, info.Last, info)
	case s.Ahead:
		return NewCursor(s.After, info.Last, info)
	default:
		return NewCursor(s.After, s.After, info) // the stream has had it
	}
}

// NewCursor returns a cursor behind an ID of the stream that info is of, which is known to
// have reached an ID.
func NewCursor(id, reached ID, info Info) Cursor {
	c := Cursor{ID: id, reached: reached, position: unknown, length: info.Length}
	if !id.Less(info.Last) {
		c.position = info.Added
	}
	return c
}

// Move moves the cursor behind entries that were read.
func (c *Cursor) Move(entries []Entry) {
	if len(entries) == 0 {
		return
	}
	c.ID = entries[len(entries)-1].ID
	if c.reached.Less(c.ID) {
		c.reached = c.ID
	}
	if c.position != unknown {
		c.position += int64(len(entries))
	}
}

// Doubtful reports whether entries between the cursor and those that a read of up to limit
// has returned may be missing. Where the head of the stream has moved beyond the cursor, a
// read returns as many as it may or all that the stream has. So other pages need no look at
// the stream, unless it has become that short since the last one.
func (c *Cursor) Doubtful(entries []Entry, limit int) bool {
	return len(entries) == limit || int64(len(entries)) >= c.length
}

// Look is the query of the stream whose result Check gets, with the same entries.
func (c *Cursor) Look(key string, entries []Entry) Look {
	look := Look{Key: key, After: c.ID}
	if len(entries) > 0 {
		look.Read = entries[0].ID
	}
	return look
}

// Check moves the cursor behind the entries that a read has returned and reports whether
// some before them were removed unread. info is the answer to Look after the read, which may have
// returned none. After a gap without entries the cursor is before the first that is left,
// and in a stream that went back it is at its beginning.
//
// Of a cursor in the middle of a stream the position is not known before the end was
// reached once, and a gap is reported where there may be one: XTRIM leaves no trace of the
// IDs that it removes, in max-deleted-entry-id neither.
func (c *Cursor) Check(entries []Entry, info Info) (gap, rewound bool) {
	if info.Last.Less(c.reached) {
		*c = NewCursor(ID{}, info.Last, info)
		return false, true
	}
	c.length, c.reached = info.Length, info.Last
	before := info.before(c.ID, entries)
	// As long as the cursor's entry or an older one is left nothing behind it was trimmed.
	trimmed := info.removed() > 0 && c.ID.Less(info.Last) && (info.First.IsZero() || c.ID.Less(info.First))
	switch {
	case !trimmed:
	case c.position == unknown && c.ID.IsZero(): // entries trimmed before the oldest are not a gap
	case len(entries) == 0:
		if gap = c.position == unknown || info.removed() > c.position; gap {
			c.ID, before = info.Last, info.removed()
			if !info.First.IsZero() {
				c.ID = info.First.Prev()
			}
		}
	case before != unknown:
		gap = c.position == unknown || before > c.position
	default: // all of them were trimmed since; the missed entries may be behind them too
		gap = c.position == unknown || info.removed() > c.position+int64(len(entries))
	}
	if before != unknown {
		c.position = before
	}
	c.Move(entries)
	return gap, false
}

// removed is how many entries were removed, from the head as long as XDEL is not used, or
// unknown.
func (i Info) removed() int64 {
	if i.Added < 0 {
		return unknown
	}
	return i.Added - i.Length
}

// before is how many entries were ever added before those that a read after the ID has
// returned, or unknown.
func (i Info) before(after ID, entries []Entry) int64 {
	if i.Added < 0 {
		return unknown
	}
	if n := len(entries); n == 0 && after == i.Last || n > 0 && entries[n-1].ID == i.Last {
		return i.Added - int64(n)
	}
	for k := range entries {
		if entries[k].ID == i.First {
			return i.removed() - int64(k)
		}
	}
	return unknown
}

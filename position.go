package redischannels

import (
	"fmt"
	"strconv"
	"time"

	"github.com/flaminco/redischannels/internal/stream"
)

// Position says where in a stream reading begins. The zero value asks for the
// default of the place that takes it. Positions are values and may be compared
// with ==.
type Position struct {
	kind positionKind
	id   stream.ID
}

type positionKind uint8

const (
	positionDefault positionKind = iota
	positionLatest
	positionAfter
	positionSince // may be ahead of the stream
	positionInvalid
)

var (
	// Oldest begins with the first entry that the stream still has.
	Oldest = Position{kind: positionAfter}

	// Latest begins with the first entry that is appended after the call which
	// takes the position has returned. Redis' `$` is resolved once, to an
	// explicit entry ID, before that call returns.
	Latest = Position{kind: positionLatest}
)

// AfterID begins with the first entry whose ID is greater than id, which is
// what resuming from the last ID that was handled needs. The id has Redis' form
// `milliseconds-sequence`; without a sequence it means `milliseconds-0`. An id
// of another form is reported as [ErrInvalidConfig] by the call that takes the
// position.
func AfterID(id string) Position {
	parsed, err := stream.ParseID(id)
	if err != nil {
		return Position{kind: positionInvalid}
	}
	return Position{kind: positionAfter, id: parsed}
}

// Since begins with the first entry that was appended at t or later, by the
// clock of the server that made the entry's ID (millisecond resolution).
// Entries whose IDs were chosen by their producer are compared by these IDs. A
// time ahead of the server's clock is waited for.
func Since(t time.Time) Position {
	ms := t.UnixMilli()
	if ms <= 0 {
		return Oldest
	}
	return Position{kind: positionSince, id: stream.ID{Ms: uint64(ms)}.Prev()}
}

// String returns the position in a form for logs and error messages.
func (p Position) String() string {
	switch p.kind {
	case positionLatest:
		return "latest"
	case positionAfter, positionSince:
		if p.id.IsZero() {
			return "oldest"
		}
		return "after " + p.id.String()
	case positionInvalid:
		return "invalid"
	default:
		return "default"
	}
}

// or returns p, or fallback when p is the zero value.
func (p Position) or(fallback Position) Position {
	if p.kind == positionDefault {
		return fallback
	}
	return p
}

// validate reports a position that was made from something that is no entry ID.
func (p Position) validate() error {
	if p.kind == positionInvalid {
		return fmt.Errorf("must be an entry ID such as %s, got something else", strconv.Quote("1700000000000-0"))
	}
	return nil
}

// cursor returns the position in the stream that info is of.
func (p Position) cursor(info stream.Info) stream.Cursor {
	switch p.kind {
	case positionLatest:
		return stream.NewCursor(info.Last, info.Last, info)
	case positionSince:
		return stream.NewCursor(p.id, info.Last, info)
	default:
		return stream.NewCursor(p.id, p.id, info) // the stream has had it
	}
}

package redischannels

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/flaminco/redischannels/internal/stream"
)

// Position is where in a stream reading begins: "oldest", "latest", "after:ID" or
// "since:milliseconds". The zero value "" asks for the default of the place that takes
// it. Positions can be compared with == and written to files; [ParsePosition] reads
// them back. A position of another form is reported, with its text, as
// [ErrInvalidArgument] by the call that takes it, and as [ErrInvalidConfig] in a
// configuration.
type Position string

const (
	// Oldest begins with the first entry that the stream still has.
	Oldest Position = "oldest"

	// Latest begins with the first entry that is appended after the call which
	// takes the position has returned. Redis' `$` is resolved once, to an
	// explicit entry ID, before that call returns.
	Latest Position = "latest"
)

// What the positions begin with that AfterID and Since return.
const (
	afterPrefix = "after:"
	sincePrefix = "since:"
)

// AfterID begins with the first entry whose ID is greater than id, which is
// what resuming from the last ID that was handled needs. The id has Redis' form
// `milliseconds-sequence`; without a sequence it means `milliseconds-0`.
func AfterID(id string) Position {
	parsed, err := stream.ParseID(id)
	switch {
	case err != nil:
		return Position(afterPrefix + id) // reported by the call that takes it
	case parsed.IsZero():
		return Oldest
	}
	return Position(afterPrefix + parsed.String())
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
	return Position(sincePrefix + strconv.FormatInt(ms, 10))
}

// ParsePosition returns the position of a text: "oldest", "latest", "after:ID",
// "since:milliseconds", or "" for the default. The error wraps [ErrInvalidArgument].
func ParsePosition(text string) (Position, error) {
	p := Position(text)
	if err := p.validate(); err != nil {
		return "", invalidArgument("position", err)
	}
	if id, ok := strings.CutPrefix(text, afterPrefix); ok {
		return AfterID(id), nil
	}
	return p, nil
}

// or returns p, or fallback when p is the zero value.
func (p Position) or(fallback Position) Position {
	if p == "" {
		return fallback
	}
	return p
}

// validate reports a position of no known form.
func (p Position) validate() error {
	text := string(p)
	if id, ok := strings.CutPrefix(text, afterPrefix); ok {
		if _, err := stream.ParseID(id); err != nil {
			return errNoEntryID(id)
		}
		return nil
	}
	if ms, ok := strings.CutPrefix(text, sincePrefix); ok {
		if _, err := strconv.ParseUint(ms, 10, 64); err != nil {
			return fmt.Errorf("must be since: with Unix milliseconds such as since:1700000000000, got %q", text)
		}
		return nil
	}
	if p != "" && p != Oldest && p != Latest {
		return fmt.Errorf(`must be "oldest", "latest", "after:" with an entry ID, or "since:" with Unix milliseconds, got %q`, text)
	}
	return nil
}

// after returns the ID of the entry after which a position other than Latest begins.
// ahead means that the stream need not have had that ID.
func (p Position) after() (id stream.ID, ahead bool) {
	if ms, ok := strings.CutPrefix(string(p), sincePrefix); ok {
		id.Ms, _ = strconv.ParseUint(ms, 10, 64)
		return id.Prev(), true
	}
	id, _ = stream.ParseID(strings.TrimPrefix(string(p), afterPrefix)) // 0-0 for Oldest
	return id, false
}

// groupStart is the ID after which XGROUP CREATE lets a new group begin.
func (p Position) groupStart() string {
	if p == Latest {
		return "$" // resolved by Redis when it creates the group, once
	}
	id, _ := p.after()
	return id.String()
}

// start is the position for reading without a group.
func (p Position) start() stream.Start {
	if p == Latest {
		return stream.Start{End: true}
	}
	id, ahead := p.after()
	return stream.Start{After: id, Ahead: ahead}
}

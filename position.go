package redischannels

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/flaminco/redischannels/internal/stream"
)

// Position is the position in a stream at which reading begins: "oldest", "latest", "after:ID" or
// "since:milliseconds". The zero value "" means the default of the call or field. Positions can
// be compared with == and written to files; [ParsePosition] parses them. A call with any other
// text returns an error with the text that wraps [ErrInvalidArgument], or [ErrInvalidConfig] for
// a configuration.
type Position string

const (
	// Oldest begins with the first entry of the stream.
	Oldest Position = "oldest"

	// Latest begins with the first entry that is appended after the call with this position has
	// returned. The call resolves Redis' `$` once, to an entry ID, before it returns.
	Latest Position = "latest"
)

// Prefixes of the positions of AfterID and Since.
const (
	afterPrefix = "after:"
	sincePrefix = "since:"
)

// AfterID begins with the first entry whose ID is greater than id. Use it to resume after the
// last handled ID. The id has Redis' form `milliseconds-sequence`; without a sequence it means
// `milliseconds-0`.
func AfterID(id string) Position {
	parsed, err := stream.ParseID(id)
	switch {
	case err != nil:
		return Position(afterPrefix + id) // reported by the call with this position
	case parsed.IsZero():
		return Oldest
	}
	return Position(afterPrefix + parsed.String())
}

// Since begins with the first entry that was appended at t or later, by the clock of the server
// that set the entry's ID (millisecond resolution). Entries whose producer set the ID are
// compared by that ID. If t is ahead of the server's clock, reading waits for it.
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

// validate reports an invalid position.
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

// groupStart is the ID after which a new group begins (XGROUP CREATE).
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

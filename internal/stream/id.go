package stream

import (
	"errors"
	"math"
	"strconv"
	"strings"
)

// ID is the ID of a stream entry in comparable form.
type ID struct {
	Ms, Seq uint64
}

// MaxID is the greatest ID.
var MaxID = ID{Ms: math.MaxUint64, Seq: math.MaxUint64}

var errBadID = errors.New("not a stream entry ID")

// ParseID parses `milliseconds-sequence` or `milliseconds`, which means sequence 0.
func ParseID(s string) (ID, error) {
	ms, seq, hasSeq := strings.Cut(s, "-")
	var id ID
	var err error
	if id.Ms, err = strconv.ParseUint(ms, 10, 64); err != nil {
		return ID{}, errBadID
	}
	if hasSeq {
		if id.Seq, err = strconv.ParseUint(seq, 10, 64); err != nil {
			return ID{}, errBadID
		}
	}
	return id, nil
}

// Compare returns -1, 0 or 1 as a stands before, at or after b in a stream.
func (a ID) Compare(b ID) int {
	switch {
	case a.Ms < b.Ms:
		return -1
	case a.Ms > b.Ms:
		return 1
	case a.Seq < b.Seq:
		return -1
	case a.Seq > b.Seq:
		return 1
	default:
		return 0
	}
}

// Less reports whether a stands before b in a stream.
func (a ID) Less(b ID) bool { return a.Compare(b) < 0 }

// IsZero reports whether the ID is 0-0, which no entry has.
func (a ID) IsZero() bool { return a == ID{} }

// Prev returns the greatest ID before a; that of 0-0 is 0-0.
func (a ID) Prev() ID {
	switch {
	case a.Seq > 0:
		return ID{Ms: a.Ms, Seq: a.Seq - 1}
	case a.Ms > 0:
		return ID{Ms: a.Ms - 1, Seq: math.MaxUint64}
	default:
		return a
	}
}

// Next returns the least ID after a; that of the greatest ID is itself.
func (a ID) Next() ID {
	switch {
	case a.Seq < math.MaxUint64:
		return ID{Ms: a.Ms, Seq: a.Seq + 1}
	case a.Ms < math.MaxUint64:
		return ID{Ms: a.Ms + 1}
	default:
		return a
	}
}

// String returns the ID as Redis writes it.
func (a ID) String() string {
	b := make([]byte, 0, 41)
	b = strconv.AppendUint(b, a.Ms, 10)
	b = append(b, '-')
	b = strconv.AppendUint(b, a.Seq, 10)
	return string(b)
}

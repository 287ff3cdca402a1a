package delayed

import (
	"encoding/binary"
	"fmt"
	"strconv"
	"time"
)

const (
	// MaxBytes is the maximum size of a stored entry: it blocks the server while it is copied.
	MaxBytes = 1 << 20
	// MaxFields is the maximum number of fields of a stored entry: a script passes each name and
	// value to XADD, which Lua limits.
	MaxFields = 3950

	entryVersion = 1
	lengthSize   = 4
)

// Due is the due time of an entry: the zero value at once, otherwise a time or a delay. Both are
// by the clock of the server, rounded up to milliseconds.
type Due struct {
	at    int64 // ms since the epoch
	after int64 // ms
}

// At returns the Due of a time.
func At(t time.Time) Due {
	ms := t.UnixMilli()
	if t.After(time.UnixMilli(ms)) {
		ms++
	}
	return Due{at: max(ms, 0)}
}

// After returns the Due of a delay.
func After(d time.Duration) Due { return Due{after: milliseconds(d)} }

// milliseconds returns a delay rounded up to milliseconds, and 0 for a negative one.
func milliseconds(d time.Duration) int64 {
	ms := d.Milliseconds()
	if d%time.Millisecond > 0 {
		ms++
	}
	return max(ms, 0)
}

// IsZero reports whether the entry is due at once.
func (d Due) IsZero() bool { return d == Due{} }

// String returns it in the form of the script.
func (d Due) String() string {
	switch {
	case d.after > 0:
		return "+" + strconv.FormatInt(d.after, 10)
	case d.at > 0:
		return "=" + strconv.FormatInt(d.at, 10)
	}
	return ""
}

// NewEntry begins a packed entry whose names and values have this many bytes.
func NewEntry(fields, bytes int) []byte {
	return append(make([]byte, 0, 1+2*lengthSize*fields+bytes), entryVersion)
}

// AppendField adds a field to a packed entry.
func AppendField(entry []byte, name string, value []byte) []byte {
	entry = binary.BigEndian.AppendUint32(entry, uint32(len(name)))
	entry = append(entry, name...)
	entry = binary.BigEndian.AppendUint32(entry, uint32(len(value)))
	return append(entry, value...)
}

// Unpack returns the names and values of a packed entry in turn. It accepts the same entries as
// the scripts.
func Unpack(entry string) ([]string, error) {
	if entry == "" || entry[0] != entryVersion {
		return nil, fmt.Errorf("delayed: the version of a stored entry of %d bytes is not known", len(entry))
	}
	var values []string
	for rest := entry[1:]; rest != ""; {
		if len(rest) < lengthSize {
			return nil, fmt.Errorf("delayed: a stored entry of %d bytes ends early", len(entry))
		}
		n := uint64(binary.BigEndian.Uint32([]byte(rest[:lengthSize])))
		rest = rest[lengthSize:]
		if uint64(len(rest)) < n {
			return nil, fmt.Errorf("delayed: a stored entry of %d bytes ends early", len(entry))
		}
		values = append(values, rest[:n])
		rest = rest[n:]
	}
	if len(values) == 0 || len(values)%2 != 0 || len(values) > 2*MaxFields {
		return nil, fmt.Errorf("delayed: a stored entry has %d names and values", len(values))
	}
	return values, nil
}

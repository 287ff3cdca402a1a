package stream

import (
	_ "embed" // a script
	"slices"
	"strconv"

	"github.com/flaminco/redischannels/internal/redisconn"
)

// The fields that an entry of a return stream has behind those of the original, in this order.
const (
	ReturnEntryIDField = "_return_entry_id" // ID of the original in the topic
	ReturnReasonField  = "_return_reason"   // why it returned, at most MaxDeadReason bytes
	ReturnCountField   = "_return_count"    // deliveries that were counted before
)

// OriginalLua defines the Lua function original(values), which takes the same fields off those of an
// entry.
//
//go:embed lua/original.lua
var OriginalLua string

// returnValues is the number of these names and values.
const returnValues = 6

// Return is the data of the original in an entry of a return stream.
type Return struct {
	ID     ID
	Text   string // the ID as Redis wrote it
	Reason string
	Count  int
}

// TakeReturn takes off the fields that name the original. ok is false for an entry without them,
// which another program has written.
func (e *Entry) TakeReturn() (r Return, ok bool) {
	var starts []int // of names and values
	for p := redisconn.NewParser(e.raw); !p.Done(); {
		starts = append(starts, p.Pos())
		if _, err := p.Bulk(); err != nil {
			return Return{}, false
		}
	}
	if len(starts) <= returnValues {
		return Return{}, false
	}
	at := starts[len(starts)-returnValues]
	block := Entry{raw: e.raw[at:]}
	var names, values []string
	size := 0
	block.Fields(func(name, value []byte) {
		names, values = append(names, string(name)), append(values, string(value))
		size += len(name) + len(value)
	})
	if !slices.Equal(names, []string{ReturnEntryIDField, ReturnReasonField, ReturnCountField}) {
		return Return{}, false
	}
	id, err := ParseID(values[0])
	if err != nil {
		return Return{}, false
	}
	count, err := strconv.Atoi(values[2])
	if err != nil || count < 0 {
		return Return{}, false
	}
	e.raw, e.Size = e.raw[:at], e.Size-size
	return Return{ID: id, Text: id.String(), Reason: values[1], Count: count}, true
}

package delayed

import (
	_ "embed"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/flaminco/redischannels/internal/keys"
	"github.com/flaminco/redischannels/internal/stream"
)

var (
	// CommonLua precedes the scripts of this package, and others on the control hash.
	//
	//go:embed lua/common.lua
	CommonLua string
	//go:embed lua/store.lua
	storeLua string
	//go:embed lua/move.lua
	moveLua string
	//go:embed lua/defer.lua
	deferLua string
	//go:embed lua/join.lua
	joinLua string
	//go:embed lua/list.lua
	listLua string
	//go:embed lua/cancel.lua
	cancelLua string
	//go:embed lua/schedule_scan.lua
	scheduleScanLua string
	//go:embed lua/schedule_get.lua
	scheduleGetLua string
	//go:embed lua/schedule_change.lua
	scheduleChangeLua string

	storeScript  = newScript(storeLua)
	moveScript   = newScript(stream.OriginalLua + moveLua)
	deferScript  = newScript(stream.OriginalLua + stream.PausedLua + deferLua)
	joinScript   = newScript(stream.PausedLua + joinLua)
	listScript   = newScript(listLua)
	cancelScript = newScript(cancelLua)

	scheduleScanScript   = newScript(scheduleScanLua)
	scheduleGetScript    = newScript(scheduleGetLua)
	scheduleChangeScript = newScript(scheduleChangeLua)
)

// StoreCommand returns the words of a command that stores entries of a topic: EVALSHA, or EVAL
// for a server without the script. `*`, the topic's name, [Retention], and for each entry its
// [Due] and the packed entry must follow. The text of the reply is for [ParseStored].
//
// The command appends and stores all entries or none. After an error reply it is none. After a
// lost reply it may be either, and a repetition could store every entry twice.
func StoreCommand(topic keys.Topic, whole bool) (words []any) {
	words = []any{"evalsha", storeScript.Hash()}
	if whole {
		words = []any{"eval", storeScript.text}
	}
	return append(words, 5, topic.Name, topic.Control(), topic.Delayed(), topic.Due(""), topic.Mover(""))
}

// Retention returns the retention in the form of the scripts.
func Retention(trim stream.Trim) string {
	switch {
	case trim.MaxLen > 0:
		return fmt.Sprintf("maxlen %s %d", trim.Operator(), trim.MaxLen)
	case trim.MaxAge > 0:
		return fmt.Sprintf("maxage %s %d", trim.Operator(), trim.MaxAge.Milliseconds())
	}
	return ""
}

// Stored is the result for an entry: one of the IDs is set.
type Stored struct {
	EntryID   string // it was appended
	DelayedID string // it waits
}

// StoreReply is the reply to a [StoreCommand].
type StoreReply struct {
	Entries []Stored
	Next    time.Duration // until the first entry of the due set is due; negative if it is empty
	Led     bool          // a mover leads: it checks the due set more often than once a second
}

// ParseStored reads the reply to a [StoreCommand] for a number of entries.
func ParseStored(reply string, entries int) (r StoreReply, err error) {
	words := strings.Fields(reply)
	if len(words) != entries+3 {
		return r, fmt.Errorf("delayed: the reply has %d words for %d entries", len(words), entries)
	}
	if r.Next, err = untilDue(words[0], words[1]); err != nil {
		return r, err
	}
	r.Led = words[2] == "1"
	r.Entries = make([]Stored, entries)
	for i, word := range words[3:] {
		switch id := word[1:]; word[0] {
		case 'd':
			r.Entries[i].DelayedID = id
		case 'e':
			r.Entries[i].EntryID = id
		default:
			return r, fmt.Errorf("delayed: the reply for entry %d is neither stored nor appended", i)
		}
	}
	return r, nil
}

// none is the time until nothing.
const none time.Duration = -1

// untilDue returns the time from now to due, both in ms. It is 0 for a due entry, and negative
// for a due time of -1.
func untilDue(now, due string) (time.Duration, error) {
	from, err := strconv.ParseInt(now, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("delayed: the reply has no time: %w", err)
	}
	to, err := strconv.ParseInt(due, 10, 64)
	switch {
	case err != nil:
		return 0, fmt.Errorf("delayed: the reply has no due time: %w", err)
	case to < 0:
		return none, nil
	}
	return time.Duration(min(max(to-from, 0), int64(maxWait/time.Millisecond))) * time.Millisecond, nil
}

// maxWait keeps due times far away within a time.Duration.
const maxWait = 100 * 365 * 24 * time.Hour

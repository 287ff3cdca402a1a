package delayed

import (
	"context"
	"errors"
	"strconv"
	"strings"

	"github.com/redis/go-redis/v9"

	"github.com/flaminco/redischannels/internal/keys"
)

// scheduleScanCount is the approximate number of schedules in a page.
const scheduleScanCount = 100

// NoTick is the time of a tick that is not stored, and KeepTick leaves the stored one.
const (
	NoTick   int64 = -1
	KeepTick int64 = -2
)

// Schedule is the stored state of a schedule. Its stored tick is an entry of the due set, which
// any mover appends. The last two words of its state are for the mover: the stored tick, and the
// number of ms by which it may be late without being skipped, or `-`.
type Schedule struct {
	ID         string
	State      string // of the caller, except for its last two words; empty if there is no such schedule
	Tick       int64  // ms of the server's clock; NoTick if none is stored
	Definition string // of the caller
	Runs       []Run  // the last 20, oldest first

	score string // Tick as Redis has it
}

// Run is a past tick.
type Run struct {
	Tick    int64
	Outcome string // entry ID, RunSkipped or RunDead
}

// The outcomes of runs that have no entry.
const (
	RunSkipped = "skipped"
	RunDead    = "dead"
)

// RunEntry is a run to append, with its packed entry, which is empty for one that is skipped.
type RunEntry struct {
	Tick  int64
	Entry []byte
}

// Change is the change of a schedule.
type Change struct {
	State      string // empty deletes it; otherwise one that it never had
	Definition string // empty leaves it
	Tick       int64  // to store, NoTick or KeepTick
	Entry      []byte // packed, of Tick
	Runs       []RunEntry
}

// ChangeReply is the result of a change.
type ChangeReply struct {
	Done     bool  // false if the schedule had another state
	Now      int64 // ms
	Led      bool  // a mover leads
	Outcomes []string
}

var errScheduleReply = errors.New("delayed: unexpected reply of a script on schedules")

// ScanSchedules returns a page of schedules without definition and runs, and the next cursor, "0"
// at the end. A schedule that is changed meanwhile may be returned twice.
func ScanSchedules(ctx context.Context, client redis.UniversalClient, t keys.Topic, cursor string) (now int64, page []Schedule, next string, err error) {
	words, err := scheduleScanScript.Run(ctx, client, []string{t.Due(""), t.Schedules()}, cursor, scheduleScanCount).StringSlice()
	if err != nil {
		return 0, nil, "", err
	}
	if len(words) < 2 || len(words)%3 != 2 {
		return 0, nil, "", errScheduleReply
	}
	if now, err = strconv.ParseInt(words[0], 10, 64); err != nil {
		return 0, nil, "", err
	}
	for i := 2; i < len(words); i += 3 {
		page = append(page, Schedule{ID: words[i], State: words[i+1], Tick: parseTick(words[i+2]), score: words[i+2]})
	}
	return now, page, words[1], nil
}

// GetSchedule returns the state of a schedule.
func GetSchedule(ctx context.Context, client redis.UniversalClient, t keys.Topic, id string) (now int64, s Schedule, err error) {
	words, err := scheduleGetScript.Run(ctx, client, []string{t.Due(""), t.Schedules()}, id).StringSlice()
	if err != nil {
		return 0, s, err
	}
	if len(words) != 5 {
		return 0, s, errScheduleReply
	}
	now, err = strconv.ParseInt(words[0], 10, 64)
	return now, Schedule{ID: id, State: words[1], Tick: parseTick(words[2]), score: words[2], Definition: words[3], Runs: parseRuns(words[4])}, err
}

// ChangeSchedule changes a schedule if it still has the state before. After an error reply
// nothing was changed. After a lost reply it may be called again: if the change was made, it
// finds another state.
func ChangeSchedule(ctx context.Context, client redis.UniversalClient, t keys.Topic, before Schedule, c Change) (r ChangeReply, err error) {
	args := []any{t.Name, before.ID, before.State, before.score, c.State, c.Definition, tickText(c.Tick), c.Entry}
	for _, run := range c.Runs {
		args = append(args, run.Tick, run.Entry)
	}
	words, err := scheduleChangeScript.Run(ctx, client, []string{t.Name, t.Control(), t.Delayed(), t.Due(""), t.Mover(""), t.Schedules()}, args...).Slice()
	if err != nil || len(words) == 0 {
		return r, err
	}
	if len(words) < 2 {
		return r, errScheduleReply
	}
	text, _ := words[0].(string)
	led, _ := words[1].(int64)
	r.Done, r.Led = true, led == 1
	r.Now, err = strconv.ParseInt(text, 10, 64)
	for _, word := range words[2:] {
		outcome, _ := word.(string)
		r.Outcomes = append(r.Outcomes, outcome)
	}
	return r, err
}

func tickText(tick int64) string {
	switch tick {
	case NoTick:
		return ""
	case KeepTick:
		return "keep"
	}
	return strconv.FormatInt(tick, 10)
}

// parseTick parses the score of a due set. A score that is not an integer was written by another
// program, and is due.
func parseTick(score string) int64 {
	if score == "" {
		return NoTick
	}
	ms, err := strconv.ParseInt(score, 10, 64)
	if err != nil {
		return 0
	}
	return ms
}

func parseRuns(text string) (runs []Run) {
	for _, word := range strings.Fields(text) {
		tick, outcome, _ := strings.Cut(word, "=")
		if ms, err := strconv.ParseInt(tick, 10, 64); err == nil {
			runs = append(runs, Run{ms, outcome})
		}
	}
	return runs
}

package schedule

import (
	"crypto/rand"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/flaminco/redischannels/internal/delayed"
)

// keepFinished is how long a schedule that has made its one message is kept, so that another Put
// makes no second one.
const keepFinished = 24 * time.Hour

// state is the state of a schedule without its definition.
type state struct {
	recurring, paused bool
	tick              int64 // that is stored, or was until it was past; ms
	grace             int64 // of Skip, -1 for others; ms
}

// newState returns the state of a schedule whose tick is stored.
func newState(s Schedule, paused bool, tick int64) state {
	st := state{recurring: s.Cron != "", paused: paused, tick: tick, grace: -1}
	if s.Misfire == Skip {
		st.grace = s.Grace.Milliseconds()
	}
	return st
}

// String returns the stored text: no two texts are equal. A mover reads the last two words.
func (s state) String() string {
	kind, flag, grace := "once", "on", "-"
	if s.recurring {
		kind = "cron"
	}
	if s.paused {
		flag = "paused"
	}
	if s.grace >= 0 {
		grace = strconv.FormatInt(s.grace, 10)
	}
	return fmt.Sprintf("%s %s %s %d %s", rand.Text(), kind, flag, s.tick, grace)
}

// parseState parses the result of String.
func parseState(text string) (s state, err error) {
	words := strings.Fields(text)
	if len(words) != 5 {
		return s, fmt.Errorf("the state of the schedule cannot be read: %d words", len(words))
	}
	s = state{recurring: words[1] == "cron", paused: words[2] == "paused", grace: -1}
	if s.tick, err = strconv.ParseInt(words[3], 10, 64); err != nil {
		return s, fmt.Errorf("the state of the schedule cannot be read: %w", err)
	}
	if words[4] != "-" {
		s.grace, err = strconv.ParseInt(words[4], 10, 64)
	}
	return s, err
}

// finished reports whether a schedule has made its one message.
func (s state) finished(stored delayed.Schedule) bool {
	return !s.recurring && !s.paused && stored.Tick == delayed.NoTick
}

// plan returns the ticks to make up for, oldest first, with make false for skipped ones, and the
// next tick, or the zero time if there is none.
func plan(s Schedule, t times, st state, runs []delayed.Run, now time.Time) (due []planned, next time.Time) {
	last := time.UnixMilli(st.tick)
	if s.Misfire == Once {
		last = covered(last, runs, s.Grace)
	}
	var missed, fresh []time.Time
	for _, tick := range t.between(last, now) {
		if now.Sub(tick) > s.Grace {
			missed = append(missed, tick)
		} else {
			fresh = append(fresh, tick)
		}
	}
	if s.Misfire != All && len(missed) > 0 {
		missed = missed[len(missed)-1:]
	}
	for _, tick := range missed {
		due = append(due, planned{tick, s.Misfire != Skip})
	}
	for _, tick := range fresh {
		due = append(due, planned{tick, true})
	}
	return due, t.next(now)
}

// planned is a tick to make up for, or to record as skipped.
type planned struct {
	at   time.Time
	make bool
}

// covered returns the time up to which ticks are past: if the last one was missed, its message is
// that of all ticks that were missed until it was appended.
func covered(last time.Time, runs []delayed.Run, grace time.Duration) time.Time {
	for _, run := range runs {
		if run.Tick != last.UnixMilli() {
			continue
		}
		if appended, ok := entryTime(run.Outcome); ok && appended.Sub(last) > grace {
			return appended
		}
	}
	return last
}

// entryTime returns when an entry was appended, by the server's clock.
func entryTime(id string) (at time.Time, ok bool) {
	ms, _, found := strings.Cut(id, "-")
	n, err := strconv.ParseInt(ms, 10, 64)
	return time.UnixMilli(n), found && err == nil
}

package schedule

import (
	"errors"
	"fmt"
	"math/bits"
	"strings"
	"time"

	"github.com/robfig/cron/v3"
)

// maxTicks is the maximum number of ticks that are made up for.
const maxTicks = 100

// fields are the fields of a cron expression. Seconds are optional.
var fields = cron.NewParser(cron.SecondOptional | cron.Minute | cron.Hour | cron.Dom | cron.Month | cron.Dow | cron.Descriptor)

// times computes the ticks of a recurring schedule.
type times struct {
	spec cron.Schedule
	zone *time.Location
	// wall is true if the expression names hours, so that ticks follow the local time of day: if
	// clocks are put forward over a tick it comes at once, and if they are put back it does not
	// come again. Otherwise, as for every quarter of an hour, ticks follow elapsed time.
	wall bool
}

// parseTimes parses a cron expression. The parser panics for some texts.
func parseTimes(expression, zone string) (t times, err error) {
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("Cron: must be a cron expression such as \"0 9 * * 1-5\", got %q", expression)
		}
	}()
	if strings.Contains(expression, "TZ=") {
		return t, fmt.Errorf("Cron: must not name a time zone, which Zone is for, got %q", expression)
	}
	if t.spec, err = fields.Parse(expression); err != nil {
		return t, fmt.Errorf("Cron: must be a cron expression such as \"0 9 * * 1-5\", got %q: %w", expression, err)
	}
	if t.zone, err = loadZone(zone); err != nil {
		return t, fmt.Errorf("Zone: must be an IANA time zone such as Europe/Berlin, got %q: %w", zone, err)
	}
	if spec, ok := t.spec.(*cron.SpecSchedule); ok {
		const everyHour = 24
		t.wall = bits.OnesCount64(spec.Hour&(1<<everyHour-1)) < everyHour
		if spec.Location = t.zone; t.wall {
			spec.Location = time.UTC // of the times that it is given
		}
	}
	return t, nil
}

func loadZone(name string) (*time.Location, error) {
	if name == "Local" {
		return nil, errors.New("it differs between machines")
	}
	return time.LoadLocation(name) // "" is UTC
}

// next returns the first tick after a time, or the zero time if there is none within five years.
func (t times) next(after time.Time) time.Time {
	if !t.wall {
		return t.spec.Next(after)
	}
	for wall := onWall(after.In(t.zone)); ; {
		if wall = t.spec.Next(wall); wall.IsZero() {
			return wall
		}
		if at := instant(wall, t.zone); at.After(after) {
			return at
		}
	}
}

// onWall returns the local time of day as a time in UTC.
func onWall(t time.Time) time.Time {
	return time.Date(t.Year(), t.Month(), t.Day(), t.Hour(), t.Minute(), t.Second(), t.Nanosecond(), time.UTC)
}

// instant returns the time at which a local clock shows a time of day: the first of two, or, if
// there is none, the moment at which the clock is put forward.
func instant(wall time.Time, zone *time.Location) time.Time {
	at := time.Date(wall.Year(), wall.Month(), wall.Day(), wall.Hour(), wall.Minute(), wall.Second(), 0, zone)
	start, end := at.ZoneBounds()
	switch shown := onWall(at); {
	case shown.After(wall):
		return start
	case shown.Before(wall):
		return end
	}
	if start.IsZero() {
		return at
	}
	_, offset := at.Zone()
	_, before := start.Add(-1).Zone()
	if first := at.Add(time.Duration(offset-before) * time.Second); first.Before(start) && onWall(first.In(zone)).Equal(wall) {
		return first
	}
	return at
}

// between returns the latest ticks after one time up to another, at most maxTicks of them. last is a tick.
func (t times) between(last, until time.Time) []time.Time {
	for window := time.Minute; ; window *= 4 {
		from := last
		if until.Sub(last) > window {
			from = t.tickBefore(last, until.Add(-window))
		}
		var ticks []time.Time
		for tick := t.next(from); !tick.IsZero() && !tick.After(until); tick = t.next(tick) {
			ticks = append(ticks, tick)
		}
		if len(ticks) >= maxTicks || from.Equal(last) {
			return ticks[max(0, len(ticks)-maxTicks):]
		}
	}
}

// tickBefore returns the time from which the next tick is computed: ticks of a fixed delay are
// computed from each other.
func (t times) tickBefore(last, at time.Time) time.Time {
	if delay, ok := t.spec.(cron.ConstantDelaySchedule); ok {
		return last.Add(at.Sub(last).Truncate(delay.Delay))
	}
	return at
}

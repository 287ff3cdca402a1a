package schedule

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/backoff"
	"github.com/flaminco/redischannels/internal/bridge"
	"github.com/flaminco/redischannels/internal/delayed"
)

const (
	// moveTime is the time until a due tick is appended and its schedule is checked. Up to spread
	// is added, so that one process of many is the first.
	moveTime = 30 * time.Millisecond
	spread   = 100 * time.Millisecond

	// runBytes is the approximate size of the runs that are appended in one step.
	runBytes = 256 << 10
)

// Run appends due ticks and stores the next ones until ctx ends, when it returns nil, or Close is
// called, when it returns [redischannels.ErrClosed]. Any number of processes may run it for the
// same topic; in one program only one call may run at a time. It first checks the topic once and
// returns a permanent error, such as [redischannels.ErrPermission] or
// [redischannels.ErrTopicCollision]. Later errors are events and are retried.
func (s *Schedules) Run(ctx context.Context) error {
	if err := s.life.Enter(); err != nil {
		return err
	}
	defer s.life.Leave()
	keeper, err := redischannels.NewHousekeeper(redischannels.HousekeeperConfig{
		Client: s.config.Client, Topics: []string{s.config.Topic}, Interval: s.config.Interval, SideKeys: s.config.SideKeys, OnEvent: s.config.OnEvent,
	}, s.logger)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.life.Context(), cancel)()
	err = bridge.RunBeside(ctx, keeper, func(ctx context.Context, report func(error)) {
		r := runner{schedules: s, report: report, next: make(map[string]time.Time), failed: make(map[string]string)}
		r.run(ctx)
	})
	return errors.Join(err, s.life.Err())
}

// runner stores the next ticks of schedules. It belongs to one goroutine.
type runner struct {
	schedules *Schedules
	report    func(error)
	next      map[string]time.Time // when to check a schedule
	failed    map[string]string    // the error of a schedule that was reported, by its ID
}

func (r *runner) run(ctx context.Context) {
	for ctx.Err() == nil {
		scanned := time.Now()
		r.scan(ctx)
		for end := scanned.Add(r.schedules.config.Interval); backoff.Wait(ctx.Done(), time.Until(r.earliest(end))) && time.Now().Before(end); {
			r.look(ctx)
		}
	}
}

// earliest returns when the next schedule must be checked, or end.
func (r *runner) earliest(end time.Time) time.Time {
	for _, at := range r.next {
		if at.Before(end) {
			end = at
		}
	}
	return end
}

// scan reads for all schedules when they must be checked.
func (r *runner) scan(ctx context.Context) {
	next := make(map[string]time.Time)
	err := r.schedules.scan(ctx, func(now int64, stored delayed.Schedule) {
		if wait, ok := whenToLook(now, stored); ok {
			next[stored.ID] = time.Now().Add(wait)
		}
	})
	if err != nil {
		r.fail(ctx, "", err)
		return
	}
	delete(r.failed, "")
	r.next = next
	r.look(ctx)
}

// whenToLook returns when a schedule must be checked.
func whenToLook(now int64, stored delayed.Schedule) (time.Duration, bool) {
	st, err := parseState(stored.State)
	until := stored.Tick
	switch {
	case err != nil:
		return 0, true // which reports it
	case st.paused || stored.Tick != delayed.NoTick && !st.recurring:
		return 0, false
	case stored.Tick == delayed.NoTick && st.recurring:
		return 0, true
	case stored.Tick == delayed.NoTick:
		return time.Duration(max(0, st.tick+keepFinished.Milliseconds()-now)) * time.Millisecond, true
	}
	wait := time.Duration(until-now)*time.Millisecond + moveTime + rand.N(spread)
	if late := -wait; late > 0 { // it is not appended: no process runs, or the append fails
		wait = min(max(late, spread), time.Second)
	}
	return wait, true
}

// look advances the schedules whose time has come.
func (r *runner) look(ctx context.Context) {
	now := time.Now()
	for id, at := range r.next {
		if at.After(now) || ctx.Err() != nil {
			continue
		}
		delete(r.next, id)
		wait, more, err := r.schedules.advance(ctx, id)
		if err != nil {
			r.fail(ctx, id, err)
			continue // until the next scan
		}
		delete(r.failed, id)
		if more {
			r.next[id] = time.Now().Add(wait)
		}
	}
}

// fail reports an error of a schedule once.
func (r *runner) fail(ctx context.Context, id string, err error) {
	if ctx.Err() == nil && r.failed[id] != err.Error() {
		r.failed[id] = err.Error()
		r.report(fmt.Errorf("redischannels/schedule: %w", err))
	}
}

// advance stores the next tick of a schedule whose tick is past, and makes up for missed ticks.
// It returns when to check again, if necessary.
func (s *Schedules) advance(ctx context.Context, id string) (wait time.Duration, more bool, err error) {
	_, err = s.change(ctx, id, func(now time.Time, stored delayed.Schedule) (*delayed.Change, error) {
		wait, more = 0, false
		if stored.State == "" {
			return nil, nil
		}
		st, err := parseState(stored.State)
		if err != nil {
			return nil, fmt.Errorf("schedule %q: %w", id, err)
		}
		wait, more = whenToLook(now.UnixMilli(), stored)
		switch {
		case !more || stored.Tick != delayed.NoTick:
			return nil, nil
		case !st.recurring && wait > 0:
			return nil, nil
		case !st.recurring:
			more = false
			return &delayed.Change{Tick: delayed.NoTick}, nil
		}
		c, err := s.following(now, stored, st)
		if err != nil {
			return nil, fmt.Errorf("schedule %q: %w", id, err)
		}
		if more = c.Tick >= 0 || len(c.Runs) > 0; c.Tick >= 0 {
			wait = time.Duration(c.Tick-now.UnixMilli())*time.Millisecond + moveTime + rand.N(spread)
		}
		return c, nil
	})
	return wait, more, err
}

// following returns the change after a past tick of Cron. Large runs are several changes, of
// which the last one stores the next tick.
func (s *Schedules) following(now time.Time, stored delayed.Schedule, st state) (*delayed.Change, error) {
	schedule, err := parseDefinition(stored.ID, stored.Definition)
	if err != nil {
		return nil, err
	}
	t, err := parseTimes(schedule.Cron, schedule.Zone)
	if err != nil {
		return nil, err
	}
	due, next := plan(schedule, t, st, stored.Runs, now)
	runs, bytes := []delayed.RunEntry{}, 0
	for _, tick := range due {
		run := delayed.RunEntry{Tick: tick.at.UnixMilli()}
		if tick.make {
			if run.Entry, err = s.entry(schedule, run.Tick); err != nil {
				return nil, err
			}
		}
		if bytes += len(run.Entry); bytes > runBytes && len(runs) > 0 {
			st.tick = runs[len(runs)-1].Tick
			return &delayed.Change{State: st.String(), Tick: delayed.NoTick, Runs: runs}, nil
		}
		runs = append(runs, run)
	}
	if next.IsZero() {
		st.tick = now.UnixMilli()
		return &delayed.Change{State: st.String(), Tick: delayed.NoTick, Runs: runs}, nil
	}
	c, err := s.store(schedule, false, next.UnixMilli())
	if err == nil {
		c.Runs = runs
	}
	return c, err
}

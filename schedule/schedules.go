package schedule

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/backoff"
	"github.com/flaminco/redischannels/internal/bridge"
	"github.com/flaminco/redischannels/internal/delayed"
	"github.com/flaminco/redischannels/internal/housekeeper"
	"github.com/flaminco/redischannels/internal/keys"
	"github.com/flaminco/redischannels/internal/lifecycle"
	"github.com/flaminco/redischannels/internal/redisconn"
)

// ErrNotFound means that there is no schedule of this ID.
var ErrNotFound = errors.New("no such schedule")

// attempts is the maximum number of times that a command is sent if its reply is lost or Redis is
// not available.
const attempts = 4

// Schedules are the schedules of a topic. It is safe for concurrent use. All methods but Run
// block until Redis has replied or ctx ends. After some errors Redis may or may not have executed
// the command. Every method but RunNow can then be called again, and takes effect once.
type Schedules struct {
	config Config
	topic  keys.Topic
	keeper *housekeeper.Handle
	logger watermill.LoggerAdapter
	life   *lifecycle.State
}

// New returns the schedules of a topic. It sends no commands to Redis. With a nil logger, errors
// are written to slog.Default(); watermill.NopLogger writes nothing. The error joins one for each
// invalid field, which wraps [redischannels.ErrInvalidConfig].
func New(config Config, logger watermill.LoggerAdapter) (*Schedules, error) {
	if err := config.Validate(); err != nil {
		return nil, err
	}
	config = config.withDefaults()
	topic, err := bridge.SideKeys(config.Topic, config.SideKeys, config.Client)
	if err != nil {
		return nil, err
	}
	return &Schedules{
		config: config, topic: topic, logger: logger,
		keeper: housekeeper.Open(config.Client, bridge.KeeperLog(logger)),
		life:   lifecycle.New(fmt.Errorf("redischannels/schedule: %w", redischannels.ErrClosed)),
	}, nil
}

// Close ends Run and other calls, and returns when they have returned, or with
// [redischannels.ErrCloseTimeout] after 20 s. Schedules stay in Redis, and the client stays open.
// It may be called several times and at any time.
func (s *Schedules) Close() error {
	return s.life.CloseWithin(0, func() error {
		<-s.life.Idle()
		return s.keeper.Close()
	})
}

// At publishes a message once, at a time: Put of a Schedule with At.
func (s *Schedules) At(ctx context.Context, id string, at time.Time, msg *message.Message) error {
	_, err := s.Put(ctx, Schedule{ID: id, At: at, Message: msg})
	return err
}

// Put stores a schedule and returns whether this changed the stored one. An equal schedule does
// not change, even if it is paused, or if its At has made its message less than a day ago. A
// different schedule is replaced; if it is paused it stays paused. The first tick of Cron is the
// next one. The errors are [redischannels.ErrInvalidArgument], [redischannels.ErrTooLarge], or
// those of Redis.
func (s *Schedules) Put(ctx context.Context, schedule Schedule) (changed bool, err error) {
	schedule = schedule.withDefaults()
	if err := checkID(schedule.ID); err != nil {
		return false, err
	}
	if problem := schedule.problem(); problem != nil {
		return false, fmt.Errorf("redischannels/schedule: Schedule %q: %w: %w", schedule.ID, redischannels.ErrInvalidArgument, problem)
	}
	definition, err := schedule.definition()
	if err == nil {
		_, err = s.change(ctx, schedule.ID, func(now time.Time, stored delayed.Schedule) (*delayed.Change, error) {
			if stored.Definition == definition && stored.State != "" {
				return nil, nil
			}
			changed = true
			return s.put(schedule, definition, now, stored)
		})
	}
	if err != nil {
		return false, fmt.Errorf("redischannels/schedule: put %q: %w", schedule.ID, err)
	}
	return changed, nil
}

func (s *Schedules) put(schedule Schedule, definition string, now time.Time, stored delayed.Schedule) (*delayed.Change, error) {
	at := schedule.At.Add(time.Millisecond - 1)
	if schedule.Cron != "" {
		var err error
		if at, err = nextTick(schedule, now); err != nil {
			return nil, err
		}
	}
	before, _ := parseState(stored.State) // an invalid state is replaced
	c, err := s.store(schedule, before.paused, at.UnixMilli())
	if err == nil {
		c.Definition = definition
	}
	return c, err
}

// nextTick returns the first tick of Cron after a time.
func nextTick(schedule Schedule, after time.Time) (time.Time, error) {
	t, err := parseTimes(schedule.Cron, schedule.Zone)
	if err != nil {
		return time.Time{}, err
	}
	at := t.next(after)
	if at.IsZero() {
		return at, fmt.Errorf("Cron: %w: must have a tick within five years, got %q", redischannels.ErrInvalidArgument, schedule.Cron)
	}
	return at, nil
}

// store returns the change that stores a tick, unless the schedule is paused.
func (s *Schedules) store(schedule Schedule, paused bool, tick int64) (*delayed.Change, error) {
	c := &delayed.Change{State: newState(schedule, paused, tick).String(), Tick: tick}
	var err error
	c.Entry, err = s.entry(schedule, tick)
	if paused {
		c.Tick, c.Entry = delayed.NoTick, nil
	}
	return c, err
}

// entry returns the packed entry of a tick.
func (s *Schedules) entry(schedule Schedule, tick int64) ([]byte, error) {
	return bridge.Pack(s.config.Marshaler, s.config.Topic, schedule.tick(tick))
}

// Cancel deletes a schedule and returns whether it was in time: false if there is no schedule, or
// if its At has made its message.
func (s *Schedules) Cancel(ctx context.Context, id string) (inTime bool, err error) {
	_, err = s.edit(ctx, "cancel", id, func(_ time.Time, stored delayed.Schedule) (*delayed.Change, error) {
		if st, err := parseState(stored.State); err == nil && st.finished(stored) {
			return nil, nil
		}
		inTime = true
		return &delayed.Change{Tick: delayed.NoTick}, nil
	})
	if errors.Is(err, ErrNotFound) {
		return inTime, nil // an earlier attempt with a lost reply has deleted it
	}
	return inTime && err == nil, err
}

// Pause removes the stored tick of a schedule until Resume. Ticks during the pause are not made
// up for.
func (s *Schedules) Pause(ctx context.Context, id string) error {
	_, err := s.edit(ctx, "pause", id, func(_ time.Time, stored delayed.Schedule) (*delayed.Change, error) {
		st, err := parseState(stored.State)
		if err != nil || st.paused || st.finished(stored) {
			return nil, err
		}
		st.paused = true
		return &delayed.Change{State: st.String(), Tick: delayed.NoTick}, nil
	})
	return err
}

// Resume ends a Pause: the next tick of Cron is the first one from now on. The tick of At is due
// at once if it is past.
func (s *Schedules) Resume(ctx context.Context, id string) error {
	_, err := s.edit(ctx, "resume", id, func(now time.Time, stored delayed.Schedule) (*delayed.Change, error) {
		st, err := parseState(stored.State)
		if err != nil || !st.paused {
			return nil, err
		}
		schedule, err := parseDefinition(id, stored.Definition)
		if err != nil {
			return nil, err
		}
		at := time.UnixMilli(st.tick)
		if st.recurring {
			if at, err = nextTick(schedule, now); err != nil {
				return nil, err
			}
		}
		return s.store(schedule, false, at.UnixMilli())
	})
	return err
}

// RunNow publishes the message of a schedule at once, with now as its tick, and returns its entry
// ID. RunNow does not change the next tick of Cron or a pause; for a waiting schedule with At it
// is the one message. After an error of Redis the message may or may not have been published.
func (s *Schedules) RunNow(ctx context.Context, id string) (entryID string, err error) {
	var tick int64
	reply, err := s.edit(ctx, "run", id, func(now time.Time, stored delayed.Schedule) (*delayed.Change, error) {
		if entryID = outcomeOf(stored.Runs, tick); entryID != "" {
			return nil, nil // an earlier attempt with a lost reply has done it
		}
		st, err := parseState(stored.State)
		if err != nil {
			return nil, err
		}
		schedule, err := parseDefinition(id, stored.Definition)
		if err != nil {
			return nil, err
		}
		if tick == 0 {
			tick = unusedTick(now.UnixMilli(), stored)
		}
		c := &delayed.Change{Tick: delayed.KeepTick}
		if !st.recurring {
			c.Tick, st.paused = delayed.NoTick, false
		}
		c.State = st.String()
		entry, err := s.entry(schedule, tick)
		c.Runs = []delayed.RunEntry{{Tick: tick, Entry: entry}}
		return c, err
	})
	if len(reply.Outcomes) == 1 {
		entryID = reply.Outcomes[0]
	}
	return entryID, err
}

// unusedTick returns a tick that no other run has.
func unusedTick(tick int64, stored delayed.Schedule) int64 {
	for tick == stored.Tick || outcomeOf(stored.Runs, tick) != "" {
		tick++
	}
	return tick
}

func outcomeOf(runs []delayed.Run, tick int64) string {
	for _, run := range runs {
		if run.Tick == tick {
			return run.Outcome
		}
	}
	return ""
}

// edit is change for a schedule that must exist.
func (s *Schedules) edit(ctx context.Context, action, id string, decide decision) (reply delayed.ChangeReply, err error) {
	if err := checkID(id); err != nil {
		return reply, err
	}
	reply, err = s.change(ctx, id, func(now time.Time, stored delayed.Schedule) (*delayed.Change, error) {
		if stored.State == "" {
			return nil, ErrNotFound
		}
		return decide(now, stored)
	})
	if err != nil {
		return reply, fmt.Errorf("redischannels/schedule: %s %q: %w", action, id, err)
	}
	return reply, nil
}

// decision returns the change of a schedule, or nil for none. It is called again if the schedule
// was changed meanwhile, or if the reply was lost.
type decision func(now time.Time, stored delayed.Schedule) (*delayed.Change, error)

// change changes a schedule. The reply is empty if there is nothing to change.
func (s *Schedules) change(ctx context.Context, id string, decide decision) (reply delayed.ChangeReply, err error) {
	if err := s.life.Enter(); err != nil {
		return reply, err
	}
	defer s.life.Leave()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(s.life.Context(), func() { cancel(s.life.Err()) })()
	for failures := 0; ; {
		reply, refused, err := s.tryChange(ctx, id, decide)
		switch {
		case refused != nil:
			return reply, refused
		case err == nil && reply.Done:
			return reply, nil
		case err == nil:
		case failures+1 >= attempts || !redisconn.Classify(err).Retryable():
			return reply, bridge.RedisError(err)
		default:
			failures++
			backoff.Wait(ctx.Done(), backoff.Redis.After(failures))
		}
		if ctx.Err() != nil {
			return reply, context.Cause(ctx)
		}
	}
}

// tryChange reads a schedule and changes it. done is false if the schedule was changed meanwhile.
// refused is an error of decide.
func (s *Schedules) tryChange(ctx context.Context, id string, decide decision) (reply delayed.ChangeReply, refused, err error) {
	err = redisconn.Guard(func() error {
		now, stored, err := delayed.GetSchedule(ctx, s.config.Client, s.topic, id)
		if err != nil {
			return err
		}
		c, problem := decide(time.UnixMilli(now), stored)
		if refused = problem; problem != nil || c == nil {
			reply.Done = true
			return nil
		}
		if reply, err = delayed.ChangeSchedule(ctx, s.config.Client, s.topic, stored, *c); err != nil {
			s.keeper.Due(s.target(), 0) // it may have stored a tick
			return err
		}
		if reply.Done {
			s.changed(*c, reply)
		}
		return nil
	})
	return reply, refused, err
}

// changed makes the housekeeper check the topic when the stored tick is due.
func (s *Schedules) changed(c delayed.Change, reply delayed.ChangeReply) {
	if c.Tick >= 0 {
		s.keeper.Stored(s.target(), delayed.StoreReply{Next: max(0, time.Duration(c.Tick-reply.Now)*time.Millisecond), Led: reply.Led})
	}
}

func (s *Schedules) target() delayed.Target { return delayed.Target{Topic: s.topic} }

// Info is the state of a schedule.
type Info struct {
	Schedule
	Next   time.Time // of the stored tick, by the clock of the Redis server; zero if none is stored
	Paused bool
	Done   bool  // it was At, and has made its message
	Runs   []Run // the last 20, newest first
	// Err is not nil if the stored schedule cannot be decoded: its stored tick is appended, and
	// no further tick is stored. Put replaces it.
	Err error
}

// Run is a past tick of a schedule.
type Run struct {
	Tick     time.Time
	EntryID  string    // of the message; empty if there is none
	Appended time.Time // by the clock of the Redis server
	Skipped  bool      // it was missed, alone or with earlier ones
	Dead     bool      // its stored entry could not be appended and is a dead letter
}

// Get returns the state of a schedule. The error is ErrNotFound, or that of Redis.
func (s *Schedules) Get(ctx context.Context, id string) (info Info, err error) {
	if err := checkID(id); err != nil {
		return info, err
	}
	return s.get(ctx, id)
}

func (s *Schedules) get(ctx context.Context, id string) (info Info, err error) {
	_, err = s.change(ctx, id, func(_ time.Time, stored delayed.Schedule) (*delayed.Change, error) {
		if stored.State == "" && stored.Definition == "" {
			return nil, ErrNotFound
		}
		info = newInfo(stored)
		return nil, nil
	})
	if err != nil {
		err = fmt.Errorf("redischannels/schedule: get %q: %w", id, err)
	}
	return info, err
}

// List yields the schedules of the topic in the order of their IDs, and reads each one just
// before it yields it. An error ends the list.
func (s *Schedules) List(ctx context.Context) iter.Seq2[Info, error] {
	return func(yield func(Info, error) bool) {
		var ids []string
		err := s.scan(ctx, func(_ int64, stored delayed.Schedule) { ids = append(ids, stored.ID) })
		if err != nil {
			yield(Info{}, fmt.Errorf("redischannels/schedule: list: %w", err))
			return
		}
		slices.Sort(ids)
		for _, id := range slices.Compact(ids) {
			info, err := s.get(ctx, id)
			if errors.Is(err, ErrNotFound) {
				continue
			}
			if !yield(info, err) || err != nil {
				return
			}
		}
	}
}

// scan calls see with all schedules, some of them twice, without their definitions and runs.
func (s *Schedules) scan(ctx context.Context, see func(now int64, stored delayed.Schedule)) error {
	err := redisconn.Guard(func() error {
		for cursor := "0"; ; {
			now, page, next, err := delayed.ScanSchedules(ctx, s.config.Client, s.topic, cursor)
			if err != nil {
				return err
			}
			for _, stored := range page {
				see(now, stored)
			}
			if cursor = next; cursor == "0" {
				return nil
			}
		}
	})
	return bridge.RedisError(err)
}

func newInfo(stored delayed.Schedule) Info {
	schedule, err := parseDefinition(stored.ID, stored.Definition)
	st, problem := parseState(stored.State)
	schedule.ID = stored.ID
	info := Info{Schedule: schedule, Paused: st.paused, Err: errors.Join(err, problem)}
	info.Done = problem == nil && st.finished(stored)
	if stored.Tick != delayed.NoTick {
		info.Next = time.UnixMilli(stored.Tick)
	}
	for _, run := range slices.Backward(stored.Runs) {
		r := Run{Tick: time.UnixMilli(run.Tick), Skipped: run.Outcome == delayed.RunSkipped, Dead: run.Outcome == delayed.RunDead}
		if appended, ok := entryTime(run.Outcome); ok {
			r.EntryID, r.Appended = run.Outcome, appended
		}
		info.Runs = append(info.Runs, r)
	}
	return info
}

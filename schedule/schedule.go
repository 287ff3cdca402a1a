package schedule

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strings"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/bridge"
	"github.com/flaminco/redischannels/internal/delayed"
)

// The metadata of a message that a schedule has made.
const (
	// IDKey has the ID of the schedule.
	IDKey = "_redischannels_schedule"
	// TickKey has the time of the tick: RFC 3339 in UTC with milliseconds.
	TickKey = "_redischannels_tick"
)

const (
	maxID        = 256
	tickLayout   = "2006-01-02T15:04:05.000Z07:00"
	defaultGrace = time.Minute
	maxGrace     = 365 * 24 * time.Hour
)

// Misfire is the policy for missed ticks.
type Misfire string

// The policies for missed ticks.
const (
	// Once makes one message for all missed ticks, for the first or the last of them.
	Once Misfire = "once"
	// Skip makes no message.
	Skip Misfire = "skip"
	// All makes one message for each of the last 100 missed ticks.
	All Misfire = "all"
)

// Schedule defines when a message is published. ID, Message, and one of At and Cron are required.
type Schedule struct {
	// ID identifies the schedule within its topic, 1 to 256 bytes.
	ID string

	// At is the time at which the message is published, once, by the clock of the Redis server.
	// If it is past, the message is published at once.
	At time.Time

	// Cron is a cron expression with five fields (minute, hour, day of the month, month, day of
	// the week), or six beginning with seconds, a descriptor such as @daily, or @every with a
	// duration of whole seconds, such as "@every 90s".
	Cron string

	// Zone is the IANA name of the time zone of Cron, such as Europe/Berlin, which all processes
	// that call Run must have in their time zone database. A Cron that names hours follows the
	// local time of day: if clocks are put forward over a tick, the tick comes at the end of the
	// gap, and if an hour occurs twice, the tick comes only the first time. Otherwise ticks
	// follow elapsed time. Defaults to UTC.
	Zone string

	// Misfire is the policy for missed ticks of Cron. Defaults to Once.
	Misfire Misfire

	// Grace is the time by which a tick of Cron may be late without being missed, at least 1 s.
	// Too low loses ticks in short outages with Skip; too high makes up for many. Defaults to 1
	// minute.
	Grace time.Duration

	// Message is published at each tick, up to 1 MiB, with IDKey and TickKey in its metadata.
	// Each tick of Cron has its own UUID, computed from ID and tick.
	Message *message.Message
}

// withDefaults returns a copy in which zeros are replaced.
func (s Schedule) withDefaults() Schedule {
	if s.Cron != "" {
		if s.Misfire == "" {
			s.Misfire = Once
		}
		if s.Grace == 0 {
			s.Grace = defaultGrace
		}
	}
	return s
}

// problem returns the problem of a schedule whose defaults are filled in.
func (s Schedule) problem() error {
	switch {
	case s.Message == nil:
		return errors.New("Message must not be nil")
	case s.At.IsZero() == (s.Cron == ""):
		return errors.New("one of At and Cron must be set")
	case s.Cron == "" && (s.Zone != "" || s.Misfire != "" || s.Grace != 0):
		return errors.New("Zone, Misfire and Grace are for Cron, and must not be set beside At")
	case s.Cron == "" && s.At.UnixMilli() < 0:
		return fmt.Errorf("At must not be before 1970, got %s", s.At)
	case s.Cron == "":
		return nil
	case s.Misfire != Once && s.Misfire != Skip && s.Misfire != All:
		return fmt.Errorf("Misfire must be %q, %q or %q, got %q", Once, Skip, All, s.Misfire)
	case s.Grace < time.Second || s.Grace > maxGrace:
		return fmt.Errorf("Grace must be %v to %v, or 0 for the default, got %v", time.Second, maxGrace, s.Grace)
	}
	_, err := parseTimes(s.Cron, s.Zone)
	return err
}

func checkID(id string) error {
	if id == "" || len(id) > maxID {
		return fmt.Errorf("redischannels/schedule: ID: %w: must have 1 to %d bytes, got %d", redischannels.ErrInvalidArgument, maxID, len(id))
	}
	return nil
}

// header is the first line of a stored definition. A packed entry in the format of Watermill is behind it.
type header struct {
	At      int64   `json:"at,omitempty"` // ms
	Cron    string  `json:"cron,omitempty"`
	Zone    string  `json:"zone,omitempty"`
	Misfire Misfire `json:"misfire,omitempty"`
	Grace   int64   `json:"grace,omitempty"` // ms
}

// definition returns the stored definition of a schedule.
func (s Schedule) definition() (string, error) {
	h := header{Cron: s.Cron, Zone: s.Zone, Misfire: s.Misfire, Grace: s.Grace.Milliseconds()}
	if s.Cron == "" {
		h.At = s.At.Add(time.Millisecond - 1).UnixMilli() // never early
	}
	line, err := json.Marshal(h)
	if err != nil {
		return "", err
	}
	entry, err := bridge.Pack(redischannels.WatermillMarshaler{}, "", s.Message)
	return string(line) + "\n" + string(entry), err
}

// parseDefinition parses the stored definition of a schedule.
func parseDefinition(id, text string) (s Schedule, err error) {
	line, entry, _ := strings.Cut(text, "\n")
	var h header
	if err := json.Unmarshal([]byte(line), &h); err != nil {
		return s, fmt.Errorf("the stored schedule cannot be read: %w", err)
	}
	values, err := delayed.Unpack(entry)
	if err != nil {
		return s, err
	}
	var fields []redischannels.Field
	for i := 0; i < len(values); i += 2 {
		fields = append(fields, redischannels.Field{Name: values[i], Value: []byte(values[i+1])})
	}
	s = Schedule{ID: id, Cron: h.Cron, Zone: h.Zone, Misfire: h.Misfire, Grace: time.Duration(h.Grace) * time.Millisecond}
	if s.Cron == "" {
		s.At = time.UnixMilli(h.At)
	}
	if s.Message, err = (redischannels.WatermillMarshaler{}).Unmarshal(redischannels.Entry{Fields: fields}); err != nil {
		return s, err
	}
	return s, s.problem()
}

// tick returns the message of a tick.
func (s Schedule) tick(at int64) *message.Message {
	time := time.UnixMilli(at).UTC().Format(tickLayout)
	uuid := s.Message.UUID
	if s.Cron != "" {
		uuid = s.ID + "@" + time
	}
	msg := message.NewMessage(uuid, s.Message.Payload)
	msg.Metadata = maps.Clone(s.Message.Metadata)
	if msg.Metadata == nil {
		msg.Metadata = message.Metadata{}
	}
	msg.Metadata[IDKey], msg.Metadata[TickKey] = s.ID, time
	return msg
}

// FromMetadata returns the schedule and the tick of a message. ok is false for messages without a
// schedule.
func FromMetadata(metadata message.Metadata) (id string, tick time.Time, ok bool) {
	id, ok = metadata[IDKey]
	tick, err := time.Parse(tickLayout, metadata[TickKey])
	return id, tick, ok && err == nil
}

// Value encodes a value as a message, like a channel's Writer, for [Schedule.Message]. The topic
// and the format of the channel must be those of the schedules.
func Value[T any](writer *redischannels.Writer[T], value T) (*message.Message, error) {
	return bridge.Encode(writer, &value)
}

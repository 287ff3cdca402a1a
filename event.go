package redischannels

import (
	"cmp"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/ThreeDotsLabs/watermill"

	"github.com/flaminco/redischannels/internal/eventqueue"
)

// EventKind says what an [Event] reports.
type EventKind uint8

// The kinds of events. Each says which fields of the Event are set beside Kind,
// Topic, Group and Consumer.
const (
	// EventDisconnected: reading or acknowledging fails and is retried with back-off.
	// One event per outage. Err has the cause. For Pub/Sub without Topic: the
	// connection is that of all topics, each of which has an EventInterrupted.
	EventDisconnected EventKind = iota + 1
	// EventReconnected: the outage is over. Duration is how long it lasted.
	EventReconnected
	// EventGroupLost: the consumer group or its stream was deleted (FLUSHALL, DEL,
	// XGROUP DESTROY, RENAME, eviction) and was re-created. Position is where,
	// EntryIDs are what was put back into the group, Err is the reply of Redis.
	EventGroupLost
	// EventRewound: the last ID of a stream that is read without a group went
	// back (FLUSHALL, DEL): reading resumes at the oldest entry.
	EventRewound
	// EventTrimmed: entries of this group were removed from the stream before
	// they were acknowledged. EntryIDs names those that were pending here; Count
	// is their number, or the number of unread ones when it is known.
	EventTrimmed
	// EventGap: entries were trimmed away ahead of a reader without a group. It is
	// reported before what comes behind them. Err is a *GapError.
	EventGap
	// EventLeaseLost: another consumer owns entries that were leased here. Their
	// handlers' contexts are cancelled. EntryIDs.
	EventLeaseLost
	// EventAckIgnored: an Ack or Nack came too late, for an entry that is no
	// longer owned here. EntryIDs, Err (wraps [ErrNotOwner]).
	EventAckIgnored
	// EventAckFailed: acknowledging failed and is retried. Once per outage of
	// the command. EntryIDs, Err.
	EventAckFailed
	// EventHandlerTimeout: a handler exceeded HandlerTimeout. EntryIDs.
	EventHandlerTimeout
	// EventDeadLettered: an entry was moved to the dead-letter stream. EntryIDs,
	// Err has the reason.
	EventDeadLettered
	// EventDeadLetterFailed: the move failed and is retried; the entry stays
	// pending. EntryIDs, Err.
	EventDeadLetterFailed
	// EventUndecodable: an entry without a group, or a Pub/Sub message, could not be
	// decoded and was skipped. EntryIDs, or Count for Pub/Sub; Err is a *DecodeError.
	EventUndecodable
	// EventSkipped: a message without a group was nacked MaxDeliveries times, or
	// rejected, and was skipped. EntryIDs, or Count for Pub/Sub; Err has the reason.
	EventSkipped
	// EventReleased: entries waited too long for a busy application and were
	// released to the group. EntryIDs.
	EventReleased
	// EventRecovered: entries of another consumer, or of a lost reply, were claimed.
	// EntryIDs.
	EventRecovered
	// EventAbandoned: Close reached DrainTimeout before these entries were
	// acknowledged. They stay pending for other consumers. EntryIDs. For Pub/Sub: these
	// messages were buffered or not acknowledged when the subscription ended, and are
	// lost. Count, Err.
	EventAbandoned
	// EventInterrupted: a Pub/Sub topic was not subscribed for a while, because the
	// connection was lost or its hash slot moved, and is so again. What was
	// published meanwhile is lost. Once per topic and outage. Duration is the
	// longest that it can have been: since Redis was last heard of.
	EventInterrupted
	// EventDropped: messages of a Pub/Sub subscription were dropped because its
	// buffer was full. Count. At most about one per second and subscription; the
	// counts of all together are what was dropped.
	EventDropped
	// EventError: a background duty failed for a reason that retrying may not
	// mend (NOPERM and the like). It is tried again later; but where Redis refuses to
	// end a subscription (Pub/Sub), it continues to send until the connection ends. Err.
	EventError
	// EventStalled: messages are waited for, and none can come until one that was delivered
	// ends. Err says which of the causes it is: all that MaxInFlight allows are
	// unacknowledged; all that may be held wait for their retries, of which one other is
	// then read per second (see SubscriberConfig.NackBackoff); or an entry of a crashed
	// consumer is delivered alone. Count.
	EventStalled
)

var eventKindNames = [...]string{
	EventDisconnected:     "disconnected",
	EventReconnected:      "reconnected",
	EventGroupLost:        "group lost",
	EventRewound:          "stream rewound",
	EventTrimmed:          "entries trimmed",
	EventGap:              "gap",
	EventLeaseLost:        "lease lost",
	EventAckIgnored:       "ack ignored",
	EventAckFailed:        "ack failed",
	EventHandlerTimeout:   "handler timeout",
	EventDeadLettered:     "dead-lettered",
	EventDeadLetterFailed: "dead letter failed",
	EventUndecodable:      "undecodable entry",
	EventSkipped:          "message skipped",
	EventReleased:         "released",
	EventRecovered:        "recovered",
	EventAbandoned:        "abandoned",
	EventInterrupted:      "subscription interrupted",
	EventDropped:          "messages dropped",
	EventError:            "error",
	EventStalled:          "all deliveries are unacknowledged",
}

// String returns the name of the kind, such as "dead-lettered".
func (k EventKind) String() string { return enumName(eventKindNames[:], "event", k) }

// MarshalText returns the same, for JSON and logs.
func (k EventKind) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// UnmarshalText sets the value of that name. The error wraps [ErrInvalidArgument].
func (k *EventKind) UnmarshalText(text []byte) error {
	return parseEnum(eventKindNames[:], "event", text, k)
}

// Event reports to an operator what happens to a subscription. Nothing that the library
// drops, redelivers, moves or skips happens without one. Events are also written to the
// logger, without payloads.
type Event struct {
	Kind     EventKind
	Topic    string
	Group    string // empty without a consumer group
	Consumer string // consumer name in Redis, empty without a consumer group
	EntryIDs []string
	Count    int
	Position string
	Duration time.Duration
	Err      error
}

// MarshalJSON writes the kind and the error as text.
func (e Event) MarshalJSON() ([]byte, error) {
	type fields Event
	return json.Marshal(struct {
		fields
		Err string `json:",omitempty"`
	}{fields(e), errorText(e.Err)})
}

// LogValue implements [slog.LogValuer]: a group of what is set.
func (e Event) LogValue() slog.Value {
	attrs := []slog.Attr{slog.String("kind", e.Kind.String())}
	add := func(set bool, attr slog.Attr) {
		if set {
			attrs = append(attrs, attr)
		}
	}
	add(e.Topic != "", slog.String("topic", e.Topic))
	add(e.Group != "", slog.String("consumer_group", e.Group))
	add(e.Consumer != "", slog.String("consumer", e.Consumer))
	add(len(e.EntryIDs) > 0, slog.Any("entries", e.EntryIDs))
	add(e.Count != 0, slog.Int("count", e.Count))
	add(e.Position != "", slog.String("position", e.Position))
	add(e.Duration != 0, slog.Duration("duration", e.Duration))
	add(e.Err != nil, slog.String("err", errorText(e.Err)))
	return slog.GroupValue(attrs...)
}

// errorText returns the text of an error, of which JSON would have only the exported fields.
func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// tellEvent gives an event to OnEvent, if there is one, and recovers a panic in it.
func tellEvent(onEvent func(Event), logger watermill.LoggerAdapter, e Event) {
	if onEvent == nil {
		return
	}
	defer func() {
		if v := recover(); v != nil {
			logger.Error("OnEvent panicked", fmt.Errorf("%v", v), nil)
		}
	}()
	onEvent(e)
}

const (
	// queuedEvents is how many events wait for OnEvent. Beyond it what those of a stream
	// are about waits as well, and those of Pub/Sub are merged: memory is bounded, and
	// nothing goes unreported.
	queuedEvents = 1000
	// eventGrace is how long the end of a subscription waits for OnEvent.
	eventGrace = 5 * time.Second
	// tallyInterval is the least time between two events of one kind about messages of
	// one topic.
	tallyInterval = time.Second
)

// eventSubject is what an event is about.
type eventSubject struct {
	kind  EventKind
	topic string
}

// eventQueue gives events to the logger and to OnEvent.
type eventQueue = eventqueue.Queue[eventSubject, Event]

// newEventQueue returns a queue that gives events to log and then to onEvent, which may be nil.
func newEventQueue(log, onEvent func(Event), logger watermill.LoggerAdapter, merging bool) *eventQueue {
	return eventqueue.New(eventqueue.Config[eventSubject, Event]{
		Deliver: func(e Event) {
			log(e)
			tellEvent(onEvent, logger, e)
		},
		Abandon: func(events []Event) {
			logger.Error("Close has not waited for OnEvent", fmt.Errorf("OnEvent has not returned within %v", eventGrace),
				watermill.LogFields{"only_logged": len(events)})
			for _, e := range events {
				log(e)
			}
		},
		Limit:    queuedEvents,
		Merging:  merging,
		Subject:  func(e Event) eventSubject { return eventSubject{e.Kind, e.Topic} },
		Merge:    mergedEvent,
		Interval: tallyInterval,
		Grace:    eventGrace,
	})
}

// mergedEvent is an event in place of two.
func mergedEvent(older, newer Event) Event {
	newer.Count = max(older.Count, 1) + max(newer.Count, 1)
	newer.Duration += older.Duration
	newer.Err = cmp.Or(newer.Err, older.Err)
	return newer
}

// enumName returns the name of a value of an enumeration, by which it stands in logs and
// in JSON, or, for a value that has none, its number behind what it is.
func enumName[E ~uint8](names []string, what string, value E) string {
	if int(value) < len(names) && names[value] != "" {
		return names[value]
	}
	return fmt.Sprintf("%s %d", what, uint8(value))
}

// parseEnum sets a value by its name.
func parseEnum[E ~uint8](names []string, what string, text []byte, value *E) error {
	if i := slices.Index(names, string(text)); i >= 0 && len(text) > 0 {
		*value = E(i)
		return nil
	}
	known := slices.DeleteFunc(slices.Clone(names), func(name string) bool { return name == "" })
	return invalidArgument(what, fmt.Errorf(`must be one of "%s", got %q`, strings.Join(known, `", "`), text))
}

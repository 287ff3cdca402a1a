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

// EventKind is the kind of an [Event].
type EventKind uint8

// The kinds of events. Each comment lists the fields of the Event that are set beside Kind,
// Topic, Group and Consumer.
const (
	// EventDisconnected: reading or acknowledging fails and is retried with back-off. One event
	// per outage. Err has the cause. For Pub/Sub it has no Topic: all topics share the
	// connection, and each has an EventInterrupted.
	EventDisconnected EventKind = iota + 1
	// EventReconnected: the outage is over. Duration is its length.
	EventReconnected
	// EventGroupLost: the consumer group or its stream was deleted (FLUSHALL, DEL, XGROUP
	// DESTROY, RENAME, eviction) and was re-created. Position is the position of the new group,
	// EntryIDs are the entries that were restored to it, Err is the reply of Redis.
	EventGroupLost
	// EventRewound: the last ID of a stream that is read without a group decreased (FLUSHALL,
	// DEL). Reading resumes at the oldest entry.
	EventRewound
	// EventTrimmed: entries of this group were removed from the stream before they were
	// acknowledged. EntryIDs are those that were pending here; Count is their number, or the
	// number of unread entries if it is known.
	EventTrimmed
	// EventGap: entries were trimmed before a reader without a group has read them. It is
	// reported before the entries behind the gap are delivered. Err is a *GapError.
	EventGap
	// EventLeaseLost: another consumer owns entries that were leased here. Their handlers'
	// contexts are canceled. EntryIDs.
	EventLeaseLost
	// EventAckIgnored: an Ack or Nack was too late: this consumer no longer owns the entry.
	// EntryIDs, Err (wraps [ErrNotOwner]).
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
	// EventInterrupted: a Pub/Sub topic is subscribed again after an interruption, because the
	// connection was lost or its hash slot moved. Messages published meanwhile are lost. Once per
	// topic and outage. Duration is the longest possible time of the interruption, counted from
	// the last data of Redis.
	EventInterrupted
	// EventDropped: messages of a Pub/Sub subscription were dropped because its buffer was full.
	// Count. At most about one per second and subscription; the sum of the counts is the number
	// of dropped messages.
	EventDropped
	// EventError: a background duty failed for a reason that retries may not fix, such as NOPERM.
	// It is retried later. If Redis refuses to end a Pub/Sub subscription, it continues to send
	// until the connection ends. Err.
	EventError
	// EventStalled: a reader waits, and no message can be delivered until a delivered one ends.
	// Err is the cause: MaxInFlight messages are unacknowledged; the window is full of messages
	// that wait for their retries, so one other message is read per second (see
	// SubscriberConfig.NackBackoff); or an entry of a crashed consumer is delivered alone. Count.
	EventStalled
	// EventPinned: TrimConsumed can remove nothing of a topic for longer than StaleAfter, because a group makes
	// no progress (Group), or does not exist any more or yet (Group), or because there is no group. Duration is
	// how long that has lasted, Count the number of entries in the topic; Err names the cause. Reported once for each
	// cause, by the process that trims.
	EventPinned
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
	EventPinned:           "pinned by a consumer group",
}

// String returns the name of the kind, such as "dead-lettered".
func (k EventKind) String() string { return enumName(eventKindNames[:], "event", k) }

// MarshalText returns the same, for JSON and logs.
func (k EventKind) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// UnmarshalText sets the value of that name. The error wraps [ErrInvalidArgument].
func (k *EventKind) UnmarshalText(text []byte) error {
	return parseEnum(eventKindNames[:], "event", text, k)
}

// Event reports a change of a subscription to an operator. Each message that the library drops,
// redelivers, moves or skips is reported by an event. Events are also written to the logger,
// without payloads.
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

// LogValue implements [slog.LogValuer]: a group of the fields that are set.
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

// errorText returns the text of an error; JSON would have only its exported fields.
func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// callOnEvent passes an event to OnEvent, if there is one, and recovers a panic in it.
func callOnEvent(onEvent func(Event), logger watermill.LoggerAdapter, e Event) {
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
	// queuedEvents is the number of events that wait for OnEvent. Beyond it the duties of a
	// stream wait too, and events of Pub/Sub are merged: memory is bounded, and every event is
	// reported.
	queuedEvents = 1000
	// eventGrace is how long the end of a subscription waits for OnEvent.
	eventGrace = 5 * time.Second
	// tallyInterval is the minimum time between two events of one kind about messages of one
	// topic.
	tallyInterval = time.Second
)

// eventSubject identifies the subject of an event.
type eventSubject struct {
	kind  EventKind
	topic string
}

// eventQueue passes events to the logger and to OnEvent.
type eventQueue = eventqueue.Queue[eventSubject, Event]

// newEventQueue returns a queue that passes events to log and then to onEvent, which may be nil.
func newEventQueue(log, onEvent func(Event), logger watermill.LoggerAdapter, merging bool) *eventQueue {
	return eventqueue.New(eventqueue.Config[eventSubject, Event]{
		Deliver: func(e Event) {
			log(e)
			callOnEvent(onEvent, logger, e)
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

// mergedEvent returns one event for two.
func mergedEvent(older, newer Event) Event {
	newer.Count = max(older.Count, 1) + max(newer.Count, 1)
	newer.Duration += older.Duration
	newer.Err = cmp.Or(newer.Err, older.Err)
	return newer
}

// enumName returns the name of a value of an enumeration for logs and JSON, or kind and number
// for a value without a name.
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

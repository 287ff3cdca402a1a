package redischannels

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/flaminco/redischannels/internal/appender"
	"github.com/flaminco/redischannels/internal/lifecycle"
	"github.com/flaminco/redischannels/internal/redisconn"
)

// Errors that a caller may test with [errors.Is]. The text of an error names the topic, the field
// or the argument. The error wraps the reply of Redis, if any.
var (
	// ErrInvalidConfig is wrapped by every problem of a configuration.
	ErrInvalidConfig = errors.New("invalid configuration")

	// ErrInvalidArgument is wrapped by the error of a call with an invalid argument, such as an
	// empty topic or a text that is not an entry ID. Nothing was done.
	ErrInvalidArgument = errors.New("invalid argument")

	// ErrClosed is returned by calls on a closed value.
	ErrClosed = errors.New("closed")

	// ErrCloseTimeout is returned by Close when it has stopped waiting, 20 s after the configured
	// times: a function of the application has not returned, such as a hook of the Redis client, a
	// provider of credentials, a marshaler or OrderingKey; or a connection is silent and the client
	// has longer timeouts, or none. What depends on it, such as the end of a Go channel or the
	// release of entries, completes when it returns.
	ErrCloseTimeout = lifecycle.ErrTimeout

	// ErrOutOfMemory means that Redis refused a write because it is out of memory (OOM,
	// `maxmemory` is reached). Nothing was written. An immediate retry does not help; reading and
	// acknowledging still work.
	ErrOutOfMemory = errors.New("redis is out of memory")

	// ErrOutcomeUnknown means that the command was sent and its reply was lost:
	// the message may or may not have been appended.
	ErrOutcomeUnknown = errors.New("outcome unknown: the message may or may not have been appended")

	// ErrUnderReplicated means that the message was appended but fewer replicas
	// than Durability.Replicas have confirmed it in time (WAIT).
	ErrUnderReplicated = errors.New("not confirmed by enough replicas")

	// ErrTooLarge means that a message exceeds MaxPayload, or that a delayed one exceeds 1 MiB or
	// 3,950 fields. It was not sent.
	ErrTooLarge = errors.New("message too large")

	// ErrPermission means that the Redis user lacks an ACL permission (NOPERM). The text of the
	// error contains the reply of Redis, which names the command or the key.
	ErrPermission = errors.New("permission denied by redis")

	// ErrTopicCollision means that the side keys of a topic belong to another topic: `orders` and
	// `{orders}` would share all of them. One of the two needs SideKeys, or another name.
	ErrTopicCollision = errors.New("the side keys belong to another topic")

	// ErrWrongType means that the key of a topic is not a stream (WRONGTYPE). The key is not
	// changed.
	ErrWrongType = errors.New("key is not a stream")

	// ErrUnsupportedServer means that the server does not have a command that this library needs:
	// it is older than Redis 6.2.
	ErrUnsupportedServer = errors.New("redis 6.2 or newer is required")

	// ErrUnsupportedClient means that the Redis client is of a type from which no separate
	// connections for blocking reads can be made, such as redis.Ring.
	ErrUnsupportedClient = errors.New("unsupported redis client")

	// ErrNotOwner means that an entry was acknowledged or nacked by a consumer that no
	// longer owns it: another consumer has claimed it, or it has left the group.
	ErrNotOwner = errors.New("entry is no longer owned by this consumer")

	// ErrCompleted is returned by writes after Writer.Complete. The error that was passed to
	// Complete is wrapped too.
	ErrCompleted = errors.New("channel is completed for writing")

	// ErrNotPending is returned by an Ack, Nack or Reject of a delivery that was ended before, or
	// does not belong to this reader.
	ErrNotPending = errors.New("not an unacknowledged delivery of this reader")

	// ErrOutOfOrder is returned by the Ack of a delivery of a batch behind one of the same order
	// that will be redelivered. The acknowledged one is redelivered too, and this delivery does
	// not count.
	ErrOutOfOrder = errors.New("an earlier delivery of the order will be redelivered")

	// ErrUnknownEvent means that the name of an event, or when writing its type, is not in the
	// Registry.
	ErrUnknownEvent = errors.New("unknown event")

	// ErrNotSupported is returned by operations that the transport of a channel does not have.
	ErrNotSupported = errors.New("not supported by this transport")
)

// invalidArgument returns the error of an argument; name is its name in the documentation.
func invalidArgument(name string, problem error) error {
	return fmt.Errorf("redischannels: %s: %w: %w", name, ErrInvalidArgument, problem)
}

// Problems of many arguments.
var (
	errNil   = errors.New("must not be nil")
	errEmpty = errors.New("must not be empty")
)

// errNoEntryID is the problem of a text that is not an entry ID.
func errNoEntryID(text string) error {
	return fmt.Errorf("must be an entry ID such as 1700000000000-0, got %q", text)
}

// DecodeError reports an entry, or a Pub/Sub message, that cannot be decoded. A consumer group
// moves the entry to the dead-letter stream. Readers without a group and Pub/Sub subscriptions
// skip it and report this error.
type DecodeError struct {
	Topic   string // topic of the entry
	EntryID string // ID of the entry, empty for Pub/Sub and if it is unknown
	Reason  string // the problem, without any payload
	Err     error  // the cause, or nil
}

// Error implements error. The text is written to logs and to dead letters. It does not contain
// the cause, which may quote the payload.
func (e *DecodeError) Error() string {
	var b strings.Builder
	b.WriteString("redischannels: cannot decode ")
	if e.EntryID != "" {
		fmt.Fprintf(&b, "entry %s", e.EntryID)
	} else {
		b.WriteString("message")
	}
	if e.Topic != "" {
		fmt.Fprintf(&b, " of topic %q", e.Topic)
	}
	b.WriteString(": ")
	b.WriteString(e.Reason)
	return b.String()
}

// Unwrap returns the cause.
func (e *DecodeError) Unwrap() error { return e.Err }

// GapError reports that entries between the requested position and the first remaining entry were
// trimmed. It does not end reading, which continues at FirstAvailable.
type GapError struct {
	Topic          string
	After          string // entry ID after which reading was requested
	FirstAvailable string // ID of the first remaining entry, empty if there is none
}

// Error implements error.
func (e *GapError) Error() string {
	first := e.FirstAvailable
	if first == "" {
		first = "none"
	}
	return fmt.Sprintf("redischannels: topic %q: entries after %s were trimmed away, first available: %s", e.Topic, e.After, first)
}

// Outcome is the state of a message after Publish or Append.
type Outcome uint8

// The outcomes of a message.
const (
	// OutcomeNotAppended: the message is not in the stream and will not be. Publishing it again
	// makes no duplicate.
	OutcomeNotAppended Outcome = iota
	// OutcomeAppended: the message is in the stream. EntryID is set.
	OutcomeAppended
	// OutcomeUnderReplicated: the message is in the stream of the master, and fewer
	// replicas than Durability.Replicas have confirmed it. EntryID is set.
	OutcomeUnderReplicated
	// OutcomeUnknown: the message was sent, and the reply was lost or did not arrive in time. The
	// message may or may not be in the stream. Publishing it again may make a duplicate.
	OutcomeUnknown
	// OutcomeScheduled: the message is stored in Redis and will be appended when it is due.
	// DelayedID is set.
	OutcomeScheduled
)

var outcomeNames = [...]string{
	OutcomeNotAppended:     "not appended",
	OutcomeAppended:        "appended",
	OutcomeUnderReplicated: "under-replicated",
	OutcomeUnknown:         "unknown",
	OutcomeScheduled:       "scheduled",
}

// String returns the outcome in words.
func (o Outcome) String() string { return enumName(outcomeNames[:], "outcome", o) }

// MarshalText returns the same, for JSON and logs.
func (o Outcome) MarshalText() ([]byte, error) { return []byte(o.String()), nil }

// UnmarshalText sets the value of that name. The error wraps [ErrInvalidArgument].
func (o *Outcome) UnmarshalText(text []byte) error {
	return parseEnum(outcomeNames[:], "outcome", text, o)
}

// PublishResult is the outcome of one message.
type PublishResult struct {
	Index   int    // place of the message in the call
	UUID    string // of the message
	EntryID string // ID of the entry, set for OutcomeAppended and OutcomeUnderReplicated
	// DelayedID is the ID of a message that is stored until it is due, set for OutcomeScheduled
	// and for OutcomeUnderReplicated of such a message. DelayedMessages.Cancel accepts it.
	DelayedID string `json:",omitempty"`
	Outcome   Outcome
	Err       error // cause, nil for OutcomeAppended and OutcomeScheduled
}

// MarshalJSON writes the outcome and the error as text.
func (r PublishResult) MarshalJSON() ([]byte, error) {
	type fields PublishResult
	return json.Marshal(struct {
		fields
		Err string `json:",omitempty"`
	}{fields(r), errorText(r.Err)})
}

// PublishError is returned if not all messages of a call were confirmed. It has the outcome of
// each message, which determines whether publishing it again can make a duplicate. [errors.Is]
// matches the sentinels and causes of all of them, for example [ErrOutOfMemory],
// [ErrOutcomeUnknown] or [context.DeadlineExceeded].
type PublishError struct {
	Topic   string
	Results []PublishResult // one per message, in the order of the call
}

// Count returns the number of messages with this outcome.
func (e *PublishError) Count(o Outcome) int {
	n := 0
	for i := range e.Results {
		if e.Results[i].Outcome == o {
			n++
		}
	}
	return n
}

// Error implements error. It contains the first cause of each kind, and no payload.
func (e *PublishError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "redischannels: publish to %q: ", e.Topic)
	if len(e.Results) > 1 {
		sep := ""
		for _, o := range []Outcome{OutcomeAppended, OutcomeScheduled, OutcomeUnderReplicated, OutcomeNotAppended, OutcomeUnknown} {
			if n := e.Count(o); n > 0 {
				fmt.Fprintf(&b, "%s%d %v", sep, n, o)
				sep = ", "
			}
		}
		fmt.Fprintf(&b, " of %d messages: ", len(e.Results))
	}
	for i, cause := range e.causes() {
		if i > 0 {
			b.WriteString("; ")
		}
		b.WriteString(cause.Error())
	}
	return b.String()
}

// Unwrap returns the causes, each text once.
func (e *PublishError) Unwrap() []error { return e.causes() }

func (e *PublishError) causes() []error {
	var causes []error
	seen := make(map[string]bool)
	for i := range e.Results {
		err := e.Results[i].Err
		if err == nil || seen[err.Error()] {
			continue
		}
		seen[err.Error()] = true
		causes = append(causes, err)
	}
	return causes
}

// publishResult returns the exported result of an append.
func publishResult(index int, uuid string, r appender.Result) PublishResult {
	p := PublishResult{Index: index, UUID: uuid, EntryID: r.ID, Err: r.Err}
	switch r.Outcome {
	case appender.Appended:
		p.Outcome = OutcomeAppended
	case appender.UnderReplicated:
		p.Outcome = OutcomeUnderReplicated
		p.Err = fmt.Errorf("%w: %w", ErrUnderReplicated, publishCause(r.Err))
	case appender.NotAppended:
		p.Outcome = OutcomeNotAppended
		p.Err = publishCause(r.Err)
	default:
		p.Outcome = OutcomeUnknown
		p.Err = fmt.Errorf("%w: %w", ErrOutcomeUnknown, publishCause(r.Err))
	}
	return p
}

// publishCause wraps the error of an append in the exported sentinels.
func publishCause(err error) error {
	if errors.Is(err, appender.ErrClosed) {
		return fmt.Errorf("%w: %w", ErrClosed, err)
	}
	return redisError(err)
}

// redisError wraps a Redis error in its exported sentinel. Errors without one are returned
// unchanged.
func redisError(err error) error {
	if err == nil {
		return nil
	}
	switch redisconn.Classify(err) {
	case redisconn.KindNoPerm:
		return fmt.Errorf("%w: %w", ErrPermission, err)
	case redisconn.KindWrongType:
		return fmt.Errorf("%w: %w", ErrWrongType, err)
	case redisconn.KindOOM:
		return fmt.Errorf("%w: %w", ErrOutOfMemory, err)
	case redisconn.KindTopicCollision:
		return fmt.Errorf("%w: %w", ErrTopicCollision, err)
	case redisconn.KindUnknownCommand:
		return fmt.Errorf("%w: %w", ErrUnsupportedServer, err)
	default:
		return err
	}
}

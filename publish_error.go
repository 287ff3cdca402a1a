package redischannels

import (
	"errors"
	"fmt"
	"strings"

	"github.com/flaminco/redischannels/internal/stream"
)

// Outcome is what is known about a message after Publish or Append has failed.
type Outcome uint8

// The outcomes of a message.
const (
	// NotAppended: the message is not in the stream and will not get there.
	// Publishing it again makes no duplicate.
	NotAppended Outcome = iota
	// Appended: the message is in the stream. EntryID is set.
	Appended
	// UnderReplicated: the message is in the stream of the master, and fewer
	// replicas than Durability.Replicas have confirmed it. EntryID is set.
	UnderReplicated
	// OutcomeUnknown: the message was sent and the reply was lost or did not come
	// in time. Publishing it again may make a duplicate.
	OutcomeUnknown
)

// String returns the outcome in words.
func (o Outcome) String() string {
	switch o {
	case NotAppended:
		return "not appended"
	case Appended:
		return "appended"
	case UnderReplicated:
		return "under-replicated"
	case OutcomeUnknown:
		return "unknown"
	default:
		return fmt.Sprintf("Outcome(%d)", uint8(o))
	}
}

// PublishResult is the outcome of one message.
type PublishResult struct {
	Index   int    // place of the message in the call
	UUID    string // of the message
	EntryID string // ID of the entry, set for Appended and UnderReplicated
	Outcome Outcome
	Err     error // cause, nil for Appended
}

// PublishError is returned when not all messages of a call were confirmed. It
// tells of each message whether publishing it again can make a duplicate. With
// [errors.Is] it matches the sentinels and causes of all of them, for example
// [ErrOverloaded], [ErrOutcomeUnknown] or [context.DeadlineExceeded].
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

// Error implements error. It names the first cause of each kind, and no payload.
func (e *PublishError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "redischannels: publish to %q: ", e.Topic)
	if len(e.Results) > 1 {
		sep := ""
		for _, o := range []Outcome{Appended, UnderReplicated, NotAppended, OutcomeUnknown} {
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

// publishResult makes the exported result of an append.
func publishResult(index int, uuid string, r stream.AppendResult) PublishResult {
	p := PublishResult{Index: index, UUID: uuid, EntryID: r.ID, Err: r.Err}
	switch r.Outcome {
	case stream.Appended:
		p.Outcome = Appended
	case stream.UnderReplicated:
		p.Outcome = UnderReplicated
		p.Err = fmt.Errorf("%w: %w", ErrUnderReplicated, publishCause(r.Err))
	case stream.NotAppended:
		p.Outcome = NotAppended
		p.Err = publishCause(r.Err)
	default:
		p.Outcome = OutcomeUnknown
		p.Err = fmt.Errorf("%w: %w", ErrOutcomeUnknown, publishCause(r.Err))
	}
	return p
}

// publishCause gives the error of an append the sentinels that callers know.
func publishCause(err error) error {
	if errors.Is(err, stream.ErrAppenderClosed) {
		return fmt.Errorf("%w: %w", ErrClosed, err)
	}
	return redisError(err)
}

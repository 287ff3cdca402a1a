package consumer

import "time"

// Observer is notified of the events of a consumer. Its methods may be called under locks of the
// consumer: they must return soon and must not call it.
type Observer interface {
	Disconnected(err error)
	Reconnected(lasted time.Duration)
	// GroupLost: the group was lost and re-created at position, or by another consumer if that is
	// empty; the entries were restored to it.
	GroupLost(position string, entries []string, err error)
	// Trimmed: entries left the group because the stream no longer has them. n is their number, 0
	// if it is unknown.
	Trimmed(entries []string, n int)
	LeaseLost(entries []string, err error)
	// AckIgnored: n acknowledgements had no effect.
	AckIgnored(entries []string, n int, err error)
	AckFailed(entries []string, err error)
	DeadLettered(entry, reason string)
	DeadLetterFailed(entry string, err error)
	Deferred()                // a retry was stored
	InMemory(d time.Duration) // a requested long delay is only in memory, because there is an order
	HandlerTimeout(entry string)
	Released(entries []string)
	Recovered(entries []string)
	Abandoned(entries []string, err error)
	// Stalled: callers wait although there are entries. n is the number of entries in flight and
	// backing off.
	Stalled(n int, why error)
	// Failed: a background duty failed for a reason that a retry may not fix.
	Failed(err error)

	Read()               // Redis has replied to a read
	Delivered(count int) // the application has received a message
}

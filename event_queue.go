package redischannels

import (
	"cmp"
	"fmt"
	"time"

	"github.com/ThreeDotsLabs/watermill"

	"github.com/flaminco/redischannels/internal/eventqueue"
)

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

package pubsub

import (
	"sync"
)

// Message is a message as it came from Redis. Several queues may have the same
// Payload: nothing writes to it.
type Message struct {
	Channel string // that was published to
	Payload []byte // nil for one that is larger than Config.MaxPayload
	Size    int    // bytes of the payload
}

// itemOverhead is about what a message needs beside its bytes.
const itemOverhead = 64

// idleItems is the room that an empty queue keeps.
const idleItems = 64

// QueueConfig configures [NewQueue].
type QueueConfig struct {
	Messages   int         // bound, above 0
	Bytes      int         // bound of payloads and channel names, above 0
	DropNewest bool        // drop what comes instead of what waits longest
	Dropped    func(n int) // called with how many were dropped; must neither wait nor call the queue
}

// Queue is the bounded buffer between the socket, which must never wait, and one
// subscription. It is safe for concurrent use.
type Queue struct {
	// Ready has a token when there may be a message.
	Ready chan struct{}

	conf QueueConfig

	mu     sync.Mutex
	items  []Message // a ring
	head   int
	length int
	bytes  int
	closed bool
}

// NewQueue returns an empty queue.
func NewQueue(conf QueueConfig) *Queue {
	return &Queue{conf: conf, Ready: make(chan struct{}, 1)}
}

// Push adds a message, or drops one or more. A message that is larger than the
// bound of bytes is kept if it is alone.
func (q *Queue) Push(m Message) {
	size := m.cost()
	dropped := 0
	q.mu.Lock()
	if q.closed {
		q.mu.Unlock()
		return
	}
	for q.length > 0 && (q.length >= q.conf.Messages || q.bytes+size > q.conf.Bytes) {
		dropped++
		if q.conf.DropNewest {
			q.mu.Unlock()
			q.conf.Dropped(dropped)
			return
		}
		q.take()
	}
	if q.length == len(q.items) {
		q.grow()
	}
	q.items[(q.head+q.length)%len(q.items)] = m
	q.length++
	q.bytes += size
	q.mu.Unlock()
	q.signal()
	if dropped > 0 {
		q.conf.Dropped(dropped)
	}
}

// Pop takes the oldest message, unless it has more than most bytes, which it reports by larger. When more
// are left, Ready has a token.
func (q *Queue) Pop(most int) (m Message, ok, larger bool) {
	q.mu.Lock()
	if q.length == 0 || len(q.items[q.head].Payload) > most {
		larger = q.length > 0
		q.mu.Unlock()
		return Message{}, false, larger
	}
	m = q.take()
	more := q.length > 0
	if !more && len(q.items) > idleItems {
		q.items, q.head = nil, 0
	}
	q.mu.Unlock()
	if more {
		q.signal()
	}
	return m, true, false
}

// Size returns the number of messages that wait, and what they need.
func (q *Queue) Size() (messages, bytes int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.length, q.bytes
}

// Close drops what is left, from now on everything, and returns the number of
// messages that were left.
func (q *Queue) Close() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	n := q.length
	q.closed, q.items, q.length, q.bytes = true, nil, 0, 0
	return n
}

func (q *Queue) take() Message {
	m := q.items[q.head]
	q.items[q.head] = Message{}
	q.head = (q.head + 1) % len(q.items)
	q.length--
	q.bytes -= m.cost()
	return m
}

func (q *Queue) grow() {
	items := make([]Message, min(max(8, 2*len(q.items)), max(q.conf.Messages, 1)))
	n := copy(items, q.items[q.head:])
	copy(items[n:], q.items[:q.head])
	q.items, q.head = items, 0
}

func (q *Queue) signal() {
	select {
	case q.Ready <- struct{}{}:
	default:
	}
}

func (m Message) cost() int { return len(m.Payload) + len(m.Channel) + itemOverhead }

package pubsub

import (
	"sync"
)

// Message is a message as received from Redis. Several queues may have the same Payload, which
// must not be written.
type Message struct {
	Channel string // that was published to
	Payload []byte // nil for one that is larger than Config.MaxPayload
	Size    int    // bytes of the payload
}

// itemOverhead is the approximate memory of a message without its bytes.
const itemOverhead = 64

// idleItems is the capacity that an empty queue keeps.
const idleItems = 64

// QueueConfig configures [NewQueue].
type QueueConfig struct {
	Messages   int         // bound, above 0
	Bytes      int         // bound of payloads and channel names, above 0
	DropNewest bool        // drop the arriving message instead of the oldest
	Dropped    func(n int) // called with the number of dropped messages; must neither wait nor call the queue
}

// Queue is the bounded buffer between the socket, which must never wait, and one
// subscription. It is safe for concurrent use.
type Queue struct {
	// Ready receives a value when there may be a message.
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

// Push adds a message, or drops one or more. A message that is larger than the bound in bytes is
// kept if it is the only one.
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

// Pop removes the oldest message, unless it has more than most bytes, which larger reports. If
// more are left, it signals Ready.
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

// Size returns the number of waiting messages, and their memory.
func (q *Queue) Size() (messages, bytes int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.length, q.bytes
}

// Close drops all waiting and later messages, and returns the number of waiting ones.
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

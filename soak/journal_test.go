package soak

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// number and text of one message: KEY SEQ within a topic.
type messageKey struct {
	topic, key string
	seq        int
}

// handling is one attempt at handling one entry.
type handling struct {
	entry      string
	message    messageKey
	by         *incarnation
	count      int
	start, end int64  // Unix nanoseconds; end is 0 if the process died with it
	how        string // ack, nack, reject, ended or empty
}

// incarnation is one process of a publisher or consumer.
type incarnation struct {
	name, topic     string
	consumer        string      // its name in Redis, once it has reported it
	starts          []*handling // in their order
	open            map[string]*handling
	taken           map[string]bool // entries that were claimed or found again
	began, live     int64
	killed          int64    // 0 unless SIGKILL
	closing, closed int64    // 0 unless it was asked to
	left            []string // entries that were pending for it when it had closed or was killed
	deaf            []window // times in which it received nothing, on purpose
	events          []event
}

// event is something that the library has reported.
type event struct {
	at   int64
	text string
}

// window is the time of a fault. who is the name of what it concerns, empty for all.
type window struct {
	kind, who string
	from, to  int64
}

// journal has the lines of all processes.
type journal struct {
	mu        sync.Mutex
	tried     map[messageKey]bool
	confirmed map[messageKey]bool
	last      map[string]int // greatest number that a publisher has tried
	processes []*incarnation
	topicOf   map[string]string      // of the processes, by their names
	entries   map[string][]*handling // by topic and entry, in the order of their lines
	requeued  map[string][]int64     // when an entry may have been requeued, by topic and entry
	windows   []window
	trouble   []string // lines that make no sense
}

func newJournal() *journal {
	return &journal{
		tried: map[messageKey]bool{}, confirmed: map[messageKey]bool{}, last: map[string]int{},
		entries: map[string][]*handling{}, requeued: map[string][]int64{}, topicOf: map[string]string{},
	}
}

func (j *journal) incarnate(name, topic string) *incarnation {
	in := &incarnation{
		name: name, topic: topic, began: time.Now().UnixNano(),
		open: map[string]*handling{}, taken: map[string]bool{},
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.processes = append(j.processes, in)
	j.topicOf[name] = topic
	return in
}

// fault notes that a fault took place from a moment until now.
func (j *journal) fault(kind, who string, from time.Time) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.windows = append(j.windows, window{kind, who, from.UnixNano(), time.Now().UnixNano()})
}

// line takes one line of a process.
func (j *journal) line(in *incarnation, text string) {
	words := strings.Fields(text)
	if len(words) < 2 {
		return
	}
	at, err := strconv.ParseInt(words[1], 10, 64)
	j.mu.Lock()
	defer j.mu.Unlock()
	if err != nil {
		j.trouble = append(j.trouble, text)
		return
	}
	rest := words[2:]
	switch words[0] {
	case "try", "ok":
		m := messageKey{rest[0], rest[1], atoi(rest[2])}
		j.tried[m] = true
		j.last[in.name] = max(j.last[in.name], m.seq)
		if words[0] == "ok" {
			j.confirmed[m] = true
		}
	case "start":
		h := &handling{
			entry: rest[0], message: messageKey{in.topic, rest[1], atoi(rest[2])}, by: in, count: atoi(rest[3]), start: at,
		}
		in.starts = append(in.starts, h)
		in.open[h.entry] = h
		j.entries[in.topic+" "+h.entry] = append(j.entries[in.topic+" "+h.entry], h)
	case "ack", "nack", "reject", "ended":
		h := in.open[rest[0]]
		if h == nil {
			j.trouble = append(j.trouble, text)
			return
		}
		delete(in.open, rest[0])
		h.how, h.end = words[0], at
	case "event":
		in.events = append(in.events, event{at, strings.Join(rest, " ")})
		if len(rest) > 1 && rest[0] == "recovered" {
			for id := range strings.SplitSeq(rest[1], ",") {
				in.taken[id] = true
			}
		}
	case "stall":
		from, _ := strconv.ParseInt(rest[0], 10, 64)
		j.windows = append(j.windows, window{"stall", in.name, from, at})
	case "deaf":
		from, _ := strconv.ParseInt(rest[0], 10, 64)
		in.deaf = append(in.deaf, window{"deaf", in.name, from, at})
	case "live":
		in.live = at
		if len(rest) > 0 {
			in.consumer = rest[0]
		}
	case "closing":
		in.closing = at
	case "closed":
		in.closed = at
	}
}

func atoi(s string) int {
	n, _ := strconv.Atoi(s)
	return n
}

// during returns the faults that concerned a process in a span of time.
func (j *journal) during(name string, from, to int64) []window {
	return slices.DeleteFunc(slices.Clone(j.windows), func(w window) bool {
		return w.who != "" && w.who != name || w.to < from || w.from > to
	})
}

// requeue notes that an entry is about to be requeued.
func (j *journal) requeue(topic, entry string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	slot := topic + " " + entry
	j.requeued[slot] = append(j.requeued[slot], time.Now().UnixNano())
}

// requeuedBetween reports whether an entry was requeued in a span of time.
func (j *journal) requeuedBetween(h *handling, from, to int64) bool {
	return slices.ContainsFunc(j.requeued[h.slot()], func(at int64) bool { return from <= at && at <= to })
}

// slot names the entry of a handling: entries of two topics may have the same ID.
func (h *handling) slot() string { return h.message.topic + " " + h.entry }

// groups returns the handlings of each entry, in their order.
func (j *journal) groups() [][]*handling {
	var all [][]*handling
	for _, hs := range j.entries {
		hs = slices.Clone(hs)
		slices.SortStableFunc(hs, func(a, b *handling) int { return cmp.Compare(a.start, b.start) })
		all = append(all, hs)
	}
	return all
}

func (m messageKey) String() string { return fmt.Sprintf("%s %s %d", m.topic, m.key, m.seq) }

// said returns what a process has reported around a moment, with the time from it.
func (in *incarnation) said(moment int64) string {
	const around = int64(3 * time.Second)
	var lines []string
	for _, e := range in.events {
		if e.at > moment-around && e.at < moment+around {
			lines = append(lines, fmt.Sprintf("%s %.300s", time.Duration(e.at-moment).Round(time.Millisecond), e.text))
		}
	}
	return in.name + ": " + strings.Join(lines, "; ")
}

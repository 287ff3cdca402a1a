package feed

import (
	"sort"

	"github.com/flaminco/redischannels/internal/stream"
)

// ring has the latest events of a stream. Events are numbered from 0 in the order of arrival.
// They can be found by their IDs as long as the IDs grow: since the stream was last created.
type ring struct {
	maxEvents, maxBytes int

	events []*Event
	first  uint64 // number of events[0]
	bytes  int

	life    int       // number of times that the stream was re-created
	floor   stream.ID // everything after it, up to end, is in events from number floorAt on
	floorAt uint64
	end     stream.ID
	ended   bool // with the event at end
}

// next is the number of the next event.
func (r *ring) next() uint64 { return r.first + uint64(len(r.events)) }

// add appends an event. Its ID is greater than end, or zero; that of a gap does not count
// as read.
func (r *ring) add(e *Event) {
	e.life = r.life
	r.events = append(r.events, e)
	r.bytes += e.size()
	if !e.Gap {
		r.end, r.ended = e.ID, e.Last
	}
	for len(r.events) > r.maxEvents || r.bytes > r.maxBytes && len(r.events) > 1 {
		old := r.events[0]
		r.events[0] = nil
		r.events = r.events[1:]
		r.bytes -= old.size()
		if r.first >= r.floorAt {
			r.floor, r.floorAt = old.ID, r.first+1
		}
		r.first++
	}
}

// renew drops the IDs: the stream was re-created.
func (r *ring) renew() {
	r.life++
	r.floor, r.floorAt, r.end, r.ended = stream.ID{}, r.next(), stream.ID{}, false
}

// place is the place of an ID relative to the ring.
type place int

const (
	behind place = iota // entries after it may be missing
	inside
	ahead // of all events so far
)

// locate returns the number of the first event after an ID.
func (r *ring) locate(id stream.ID) (uint64, place) {
	switch {
	case id.Less(r.floor):
		return 0, behind
	case r.end.Less(id):
		return r.next(), ahead
	}
	known := r.events[r.floorAt-r.first:]
	i := sort.Search(len(known), func(i int) bool { return id.Less(known[i].ID) })
	return r.floorAt + uint64(i), inside
}

// take copies events from a number on. It reports false when they are lost.
func (r *ring) take(number uint64, into []*Event) (int, bool) {
	if number < r.first {
		return 0, false
	}
	return copy(into, r.events[number-r.first:]), true
}

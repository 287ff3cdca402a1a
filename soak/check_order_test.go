package soak

import (
	"cmp"
	"slices"
	"strings"
	"time"
)

// longestPause is for how long nothing may begin although entries wait and the handlers are free.
const longestPause = 2*time.Second + slack

// order: within one process the entries of a key begin in the order of the stream. One may begin
// again, but none after a later one, unless it was taken over.
func (j *journal) order(p *report) {
	for _, in := range j.processes {
		if sole(in.topic) {
			continue
		}
		last := map[string]*handling{}
		for _, h := range in.starts {
			key := h.message.key
			if in.taken[h.entry] || j.requeuedBetween(h, 0, h.start) {
				continue
			}
			if before := last[key]; before != nil && less(h.entry, before.entry) {
				p.addf("order", "%s: %s (%v) began after %s (%v)", in.name, h.entry, h.message, before.entry, before.message)
				continue
			}
			last[key] = h
		}
	}
}

// soleOrder: the same for a topic with one consumer at a time, over all its processes. Entries
// that one has released, because it was closed or because they waited, are delivered in order.
// Entries without an order are: an entry that a killed process has left, and one that was
// requeued.
func (j *journal) soleOrder(p *report) {
	last, orphans := map[string]*handling{}, j.orphans()
	for _, in := range j.processes {
		if !sole(in.topic) {
			continue
		}
		for _, h := range in.starts {
			if orphans.at(h.slot(), h.start) || j.requeuedBetween(h, 0, h.start) {
				continue
			}
			key := in.topic
			if perKey(in.topic) {
				key += " " + h.message.key
			}
			if before := last[key]; before != nil && less(h.entry, before.entry) {
				p.addf("order of a sole consumer", "%s: %s (%v, count %d) began %s after %s (%v)\n\t\t%s", in.name, h.entry, h.message,
					h.count, time.Duration(h.start-before.start), before.entry, before.message, in.said(h.start))
				continue
			}
			last[key] = h
		}
	}
}

// orphans are the entries that killed processes have left, by topic and entry, and when they did.
type orphans map[string]int64

func (j *journal) orphans() orphans {
	all := orphans{}
	for _, in := range j.processes {
		if in.killed == 0 {
			continue
		}
		for _, id := range in.left {
			if slot := in.topic + " " + id; all[slot] == 0 {
				all[slot] = in.killed
			}
		}
	}
	return all
}

// at reports whether an entry was left before a moment.
func (o orphans) at(slot string, moment int64) bool { return o[slot] != 0 && o[slot] < moment }

// pauses: a sole consumer whose handlers are free, and which receives, is given what waits.
func (j *journal) pauses(p *report) {
	first, orphans := j.firsts(), j.orphans()
	for _, in := range j.processes {
		if !sole(in.topic) {
			continue
		}
		for _, idle := range in.idle() {
			if len(j.during(in.name, idle.from-int64(minIdle+slack), idle.to)) > 0 {
				continue
			}
			waited := slices.DeleteFunc(slices.Clone(first[in.topic]), func(h *handling) bool {
				return publishedAt(h.entry) > idle.from || h.start < idle.to || orphans.at(h.slot(), idle.to)
			})
			if len(waited) > 0 {
				p.addf("pause", "%s: nothing began for %s, although %d entries wait, such as %s\n\t\t%s", in.name,
					time.Duration(idle.to-idle.from), len(waited), waited[0].entry, in.said(idle.from))
			}
		}
	}
}

// longestWait is for how long a new entry may wait while a claim scan goes through what others have.
const longestWait = time.Second + slack

// latencies: the consumer that scans many entries of another one is given new entries meanwhile.
func (j *journal) latencies(p *report) {
	in := j.processes[slices.IndexFunc(j.processes, func(in *incarnation) bool { return in.topic == scanned })]
	for _, h := range j.firsts()[scanned] {
		from := max(publishedAt(h.entry), in.live)
		if wait := h.start - from; wait > int64(longestWait) && len(j.during(in.name, from-int64(longestPause), h.start)) == 0 {
			p.addf("wait for a claim scan", "%s: %s was published %s before it began", in.name, h.entry, time.Duration(wait))
		}
	}
}

// firsts returns the first handlings of all entries, by topic.
func (j *journal) firsts() map[string][]*handling {
	first := map[string][]*handling{}
	for _, hs := range j.groups() {
		topic := hs[0].message.topic
		first[topic] = append(first[topic], hs[0])
	}
	return first
}

// idle returns the long times in which a process received and had no handler at work.
func (in *incarnation) idle() []window {
	if in.live == 0 {
		return nil
	}
	var busy []window
	for _, h := range in.starts {
		busy = append(busy, window{from: h.start, to: h.over()})
	}
	busy = append(busy, in.deaf...)
	slices.SortFunc(busy, func(a, b window) int { return cmp.Compare(a.from, b.from) })
	var all []window
	from := in.live
	for _, w := range busy {
		if w.from-from > int64(longestPause) {
			all = append(all, window{from: from, to: w.from})
		}
		from = max(from, w.to)
	}
	return all
}

// publishedAt is when an entry was appended, by the clock of the server, which is ours.
func publishedAt(id string) int64 {
	ms, _, _ := strings.Cut(id, "-")
	return int64(atoi(ms)) * int64(time.Millisecond)
}

// less compares entry IDs.
func less(a, b string) bool {
	ams, aseq, _ := strings.Cut(a, "-")
	bms, bseq, _ := strings.Cut(b, "-")
	if ams != bms {
		return atoi(ams) < atoi(bms)
	}
	return atoi(aseq) < atoi(bseq)
}

package soak

import (
	"fmt"
	"slices"
)

// deliveredUnsaid is how many entries a fault may leave of which Redis counts a delivery that the
// journal does not have: one is being offered, and one is received and was not said.
const deliveredUnsaid = 2

// deliveryCounts: the count is at most that of the deliveries. A requeue sets it to zero. It is lower
// only where a process has lost an entry in its first delivery, which Redis cannot distinguish from
// waiting, and too high only where a process was stopped between counting a delivery and saying so.
func (j *journal) deliveryCounts(p *report) {
	unsaid := map[window][]string{}
	for _, hs := range j.groups() {
		begins := 0 // the first delivery since the last requeue
		for i, h := range hs {
			if i > 0 && j.requeuedBetween(h, hs[i-1].start, h.start) {
				begins = i
			}
			switch {
			case h.count > i-begins+1:
				cause := j.stopped(h)
				unsaid[cause] = append(unsaid[cause], fmt.Sprintf("%s: delivery %d, by %s, says %d (after %q)",
					h.slot(), i-begins+1, h.by.name, h.count, cause.kind))
			case i > begins && h.count <= hs[i-1].count && !j.forgotten(h, hs[i-1]):
				before := hs[i-1]
				p.addf("delivery that was not counted", "%s: by %s (%q, count %d), then by %s (count %d)\n\t\t%s\n\t\t%s", h.slot(),
					before.by.name, before.how, before.count, h.by.name, h.count, before.by.said(before.over()), h.by.said(h.start))
			}
		}
	}
	for cause, all := range unsaid {
		if cause.kind != "" && len(all) <= deliveredUnsaid {
			continue
		}
		for _, text := range all {
			p.addf("delivery count", "%s", text)
		}
	}
}

// stopped returns the last fault before a handling that has stopped a process of its topic, or
// the way to it.
func (j *journal) stopped(h *handling) (last window) {
	for _, w := range j.windows {
		if w.from < h.start && w.from > last.from && !harmless(w) && (w.who == "" || j.topicOf[w.who] == h.message.topic) {
			last = w
		}
	}
	return last
}

// forgotten reports whether a delivery may be missing in the count of the next one: it was the
// first, and its process has lost the entry, by its end or by a fault; or the two overlap; or the
// process of the next one had the entry before and lost it by a fault. A message that was nacked
// and then released is counted.
func (j *journal) forgotten(h, before *handling) bool {
	if h.start < before.over() || j.unaware(h, before) {
		return true
	}
	harmful := func(w window) bool { return !harmless(w) }
	if h.by != before.by && slices.ContainsFunc(j.during(h.by.name, before.start-int64(2*minIdle), h.start), harmful) {
		return true
	}
	broken := slices.ContainsFunc(j.during(before.by.name, before.start, h.start), harmful)
	return before.count == 1 && (before.by.killed != 0 || before.how != "nack" || h.by.taken[h.entry] && broken)
}

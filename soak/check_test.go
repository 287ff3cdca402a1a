package soak

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels/internal/redistest"
)

// slack is the additional delay of a loaded machine.
const slack = 1500 * time.Millisecond

// report collects what is wrong, a few examples of each kind.
type report struct{ wrong map[string][]string }

func (p *report) addf(kind, format string, args ...any) {
	p.wrong[kind] = append(p.wrong[kind], fmt.Sprintf(format, args...))
}

// check asks all questions. Everything has ended by now.
func (r *run) check() {
	p := &report{wrong: map[string][]string{}}
	dead := r.deadLetters(p)
	r.journal.lost(p, dead)
	r.journal.order(p)
	r.journal.soleOrder(p)
	r.journal.pauses(p)
	r.journal.latencies(p)
	r.journal.owners(p)
	r.journal.overtaken(p)
	r.journal.taken(p)
	r.journal.deliveryCounts(p)
	r.journal.dropped(p)
	again := r.journal.again(p)
	r.leftOver(p)
	r.published(p)
	if len(r.journal.trouble) > 0 {
		p.addf("journal", "%q", r.journal.trouble[0])
	}

	starts := 0
	for _, hs := range r.journal.entries {
		starts += len(hs)
	}
	r.t.Logf("%d messages tried, %d confirmed, %d handlings, %d dead letters, %d lost", len(r.journal.tried),
		len(r.journal.confirmed), starts, len(dead), len(p.wrong["lost"]))
	r.t.Logf("faults: %s", table(r.counts))
	r.t.Logf("handled again without a nack, by what came before: %s", table(again))
	for kind, all := range p.wrong {
		r.t.Errorf("%s: %d times, such as\n\t%s", kind, len(all), strings.Join(all[:min(3, len(all))], "\n\t"))
	}
}

func table(counts map[string]int) string {
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(counts)) {
		parts = append(parts, fmt.Sprintf("%s %d", name, counts[name]))
	}
	return strings.Join(parts, ", ")
}

// deadLetters returns the messages that are dead letters: each once, and for a reason.
func (r *run) deadLetters(p *report) map[messageKey]bool {
	found := map[messageKey]bool{}
	for _, topic := range topics {
		seen := map[string]bool{}
		for _, e := range r.entriesOf("{" + topic + "}:dead") {
			id := e.Values["_dead_entry_id"].(string)
			if seen[id] {
				p.addf("two dead letters of one entry", "%s %s", topic, id)
			}
			seen[id] = true
			hs := r.journal.entries[topic+" "+id]
			if !slices.ContainsFunc(hs, func(h *handling) bool { return h.how == "reject" }) {
				p.addf("dead letter of an entry that was never rejected", "%s %s: %v", topic, id, e.Values["_dead_reason"])
			}
			found[parsePayload(topic, e)] = true
		}
	}
	return found
}

func (r *run) entriesOf(key string) []redis.XMessage {
	var all []redis.XMessage
	for from := "-"; ; {
		page, err := r.admin.XRangeN(r.t.Context(), key, from, "+", 10_000).Result()
		require.NoError(r.t, err)
		if all = append(all, page...); len(page) < 10_000 {
			return all
		}
		from = "(" + page[len(page)-1].ID
	}
}

func parsePayload(topic string, e redis.XMessage) messageKey {
	key, seq, _ := strings.Cut(e.Values["payload"].(string), " ")
	return messageKey{topic, key, atoi(seq)}
}

// lost: every confirmed message was handled to its end, or is a dead letter.
func (j *journal) lost(p *report, dead map[messageKey]bool) {
	handled := map[messageKey]bool{}
	for _, hs := range j.entries {
		for _, h := range hs {
			if h.how == "ack" {
				handled[h.message] = true
			}
		}
	}
	for m := range j.confirmed {
		if !handled[m] && !dead[m] {
			p.addf("lost", "%v", m)
		}
	}
}

// over is when a handling has ended, or its process has.
func (h *handling) over() int64 {
	switch {
	case h.end != 0:
		return h.end
	case h.by.killed != 0:
		return h.by.killed
	}
	return h.by.closed
}

// owners: no process handles an entry while another one does whose lease is valid. A lease breaks by
// a fault that keeps a process from renewing it; a process that has lost one learns it by its next renewal,
// after the fault and those that come before it is due, and his context has ended then.
func (j *journal) owners(p *report) {
	for _, hs := range j.groups() {
		for i, a := range hs {
			for _, b := range hs[i+1:] {
				if a.by == b.by || b.start >= a.over() {
					continue
				}
				until := j.undisturbed(a.by.name, b.start, int64(minIdle/3+slack))
				if a.over() > until {
					p.addf("two owners", "%s: %s from %d, and %s %s later, while the first continued for %s (%s)", a.entry, a.by.name,
						a.start, b.by.name, time.Duration(b.start-a.start), time.Duration(a.over()-b.start), a.how)
				}
			}
		}
	}
}

// overtaken: a process that handles an entry when another one begins with it has lost it. Its outcome
// does not count, and it gets a report, unless it dies soon.
func (j *journal) overtaken(p *report) {
	for _, hs := range j.entries {
		for _, a := range hs {
			told := slices.ContainsFunc(a.by.events, func(e event) bool { return e.revokes(a.entry) })
			dies := a.by.killed != 0 && a.by.killed < a.end+int64(patience)/10
			if a.how != "ack" && a.how != "reject" || told || dies {
				continue
			}
			for _, b := range hs {
				if b.by != a.by && b.start > a.start && b.start < a.end {
					p.addf("ended after it was lost", "%s: %s from %d, and %s %s later; the first ended it %s after that (%s)\n\t\t%s\n\t\t%s",
						a.entry, a.by.name, a.start, b.by.name, time.Duration(b.start-a.start), time.Duration(a.end-b.start), a.how,
						a.by.said(a.end), b.by.said(a.end))
				}
			}
		}
	}
}

// undisturbed returns when a process has had a time without a fault since a moment.
func (j *journal) undisturbed(name string, moment, span int64) int64 {
	for from := moment - int64(minIdle+slack); ; {
		until := moment
		for _, w := range j.during(name, from, moment+span) {
			until = max(until, w.to)
		}
		if until == moment {
			return moment + span
		}
		moment = until
	}
}

// taken: an entry that another process has begun is begun only by a process that has claimed it. A
// process that was given it earlier, and comes to it late, must have looked whether it is still its own. A process
// that is blocked between looking and beginning cannot know; his context ends with the next renewal.
func (j *journal) taken(p *report) {
	for _, hs := range j.groups() {
		for i, h := range hs[min(1, len(hs)):] {
			before := hs[i]
			if before.by == h.by || h.by.taken[h.entry] || h.by.killed != 0 || j.requeuedBetween(h, before.start, h.start) {
				continue
			}
			if !j.unaware(h, before) {
				p.addf("handled without owning it", "%s: by %s (%q, for %s), and %s later by %s (count %d)\n\t\t%s\n\t\t%s",
					h.entry, before.by.name, before.how, time.Duration(before.over()-before.start),
					time.Duration(h.start-before.start), h.by.name, h.count, before.by.said(before.over()), h.by.said(h.start))
			}
		}
	}
}

// unaware reports whether a process was blocked between looking at the lease of an entry and
// beginning with it, while the one before began.
func (j *journal) unaware(h, before *handling) bool {
	return slices.ContainsFunc(j.during(h.by.name, h.start-int64(minIdle/5), h.start), func(w window) bool {
		return (w.kind == "freeze" || w.kind == "stall") && w.from < before.start
	})
}

// dropped: what was acknowledged is not pending for a process that has closed, unless it said
// that it could not write that.
func (j *journal) dropped(p *report) {
	for _, in := range j.processes {
		if in.killed != 0 {
			continue
		}
		for _, id := range in.left {
			ended := ""
			for _, h := range in.starts {
				if h.entry == id {
					ended = h.how
				}
			}
			if ended == "ack" && !slices.ContainsFunc(in.events, func(e event) bool { return e.revokes(id) }) {
				p.addf("acknowledged, and pending after Close", "%s: %s", id, in.name)
			}
		}
	}
}

// revokes reports whether an event says of an entry that its acknowledgement was not written.
func (e event) revokes(id string) bool {
	kind, ids, _ := strings.Cut(e.text, " ")
	return slices.Contains([]string{"abandoned", "lease-lost", "ack-ignored"}, kind) && slices.Contains(strings.Split(ids, ","), id)
}

// again counts what was handled a second time without a nack by the fault before it. Without a
// fault nothing is.
func (j *journal) again(p *report) map[string]int {
	counts := map[string]int{}
	for _, hs := range j.entries {
		for i, h := range hs[1:] {
			before := hs[i]
			if before.how == "nack" || j.requeuedBetween(h, before.start, h.start) {
				continue
			}
			// Later events cannot undo the write of the ack.
			until := before.over() + int64(slack)
			if before.by.closed != 0 {
				until = min(until, before.by.closed)
			}
			faults := slices.DeleteFunc(j.during(before.by.name, before.start-int64(minIdle+slack), until), harmless)
			if len(faults) == 0 && before.how == "ended" {
				counts["a lease that was lost"]++ // it was reported, for example because renewals were slow
				continue
			}
			if len(faults) == 0 && before.by != h.by && j.unaware(h, before) {
				counts["blocked before beginning"]++
				continue
			}
			if len(faults) == 0 {
				counts["nothing"]++
				p.addf("handled again without a reason", "%s: by %s (%q, for %s, closing since %s), then by %s %s later (count %d)\n\t\t%s\n\t\t%s",
					h.entry, before.by.name, before.how, time.Duration(before.over()-before.start), since(before.by.closing, before.over()),
					h.by.name, time.Duration(h.start-before.over()), h.count, before.by.said(before.over()), h.by.said(h.start))
				continue
			}
			counts[faults[len(faults)-1].kind]++
		}
	}
	return counts
}

// since returns how long before a moment something was, if it was at all.
func since(was, moment int64) string {
	if was == 0 {
		return "never"
	}
	return time.Duration(moment - was).String()
}

// harmless are faults after which nothing need be handled twice: who gets entries later than their
// lease checks whether they are still his.
func harmless(w window) bool { return w.kind == "late reply" || w.kind == "scripts forgotten" }

// leftOver: nothing is pending, and no consumer is left, those of killed processes included.
func (r *run) leftOver(p *report) {
	for _, topic := range topics {
		groups, err := r.admin.XInfoGroups(r.t.Context(), topic).Result()
		require.NoError(r.t, err)
		if len(groups) != 1 || groups[0].Pending != 0 || groups[0].Consumers != 0 || r.behind(topic, groups[0]) {
			p.addf("left over", "%s: %+v", topic, groups)
		}
	}
	redistest.Eventually(r.t, 5*time.Second, func() bool { return redistest.BlockedClients(r.t, r.admin) == 0 }, "no client waits in Redis")
}

// published: what was confirmed is in the stream, and the numbers of a key are in their order.
func (r *run) published(p *report) {
	for _, topic := range topics {
		there, last := map[messageKey]bool{}, map[string]int{}
		for _, e := range r.entriesOf(topic) {
			m := parsePayload(topic, e)
			if !there[m] && m.seq < last[m.key] {
				p.addf("order of publishing", "%v behind %d", m, last[m.key])
			}
			there[m], last[m.key] = true, max(last[m.key], m.seq)
			if !r.journal.tried[m] {
				p.addf("that was never published", "%v", m)
			}
		}
		for m := range r.journal.confirmed {
			if m.topic == topic && !there[m] {
				p.addf("confirmed and not in the stream", "%v", m)
			}
		}
	}
}

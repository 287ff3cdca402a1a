package inspect

import (
	"cmp"
	"context"
	"iter"
	"slices"
	"time"

	"github.com/flaminco/redischannels"
)

// DeadLetters yields the dead letters of a topic, oldest first: see [redischannels.DeadLetters.List]. An error ends the
// loop. (XREVRANGE, XRANGE)
func (i *Inspector) DeadLetters(ctx context.Context, topic string, query redischannels.DeadLetterQuery) iter.Seq2[redischannels.DeadLetter, error] {
	return i.dead.List(ctx, topic, query)
}

// DeadLetterReason is how many dead letters a group has for one reason.
type DeadLetterReason struct {
	Group  string    `json:"group"` // empty with an empty Reason: entries that are no dead letters
	Reason string    `json:"reason"`
	Count  int       `json:"count"`
	First  time.Time `json:"first,omitzero"` // when the oldest was moved
	Last   time.Time `json:"last,omitzero"`  // when the newest was
	ID     string    `json:"id"`             // of the newest
}

// DeadLetterReasons are the reasons of the dead letters of a topic, the most frequent first.
type DeadLetterReasons struct {
	Reasons []DeadLetterReason `json:"reasons"`
	Counted int                `json:"counted"`
	More    bool               `json:"more"` // there are more dead letters than were counted
}

// mostReasons bounds how many dead letters are counted.
const mostReasons = 100_000

// DeadLetterReasons counts the dead letters of a topic, or of a group where that is not empty, by their reasons.
// It reads them all, up to 100,000, oldest first. (XREVRANGE, XRANGE)
func (i *Inspector) DeadLetterReasons(ctx context.Context, topic, group string) (r DeadLetterReasons, err error) {
	type key struct{ group, reason string }
	found := make(map[key]*DeadLetterReason)
	for letter, err := range i.dead.List(ctx, topic, redischannels.DeadLetterQuery{Group: group, Limit: mostReasons + 1}) {
		if err != nil {
			return DeadLetterReasons{}, err
		}
		if r.Counted == mostReasons {
			r.More = true
			break
		}
		r.Counted++
		k := key{letter.Group, letter.Reason}
		reason := found[k]
		if reason == nil {
			reason = &DeadLetterReason{Group: k.group, Reason: k.reason, First: letter.Time}
			found[k] = reason
		}
		reason.Count, reason.Last, reason.ID = reason.Count+1, letter.Time, letter.ID
	}
	for _, reason := range found {
		r.Reasons = append(r.Reasons, *reason)
	}
	slices.SortFunc(r.Reasons, func(a, b DeadLetterReason) int {
		return cmp.Or(b.Count-a.Count, cmp.Compare(a.Group, b.Group), cmp.Compare(a.Reason, b.Reason))
	})
	return r, nil
}

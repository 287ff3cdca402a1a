package redischannels

import (
	"slices"
	"sync"

	"github.com/flaminco/redischannels/internal/source"
)

// unacked are the deliveries of a Reader that can be acknowledged by their IDs. It is safe for
// concurrent use.
type unacked struct {
	mu   sync.Mutex
	byID map[string]attempts
}

// attempts are those of one ID. There may be several, because a message was published twice. One
// whose context has ended, because the entry was lost, is of no use when the entry comes again.
type attempts struct {
	latest *source.Attempt
	older  []*source.Attempt // nil mostly
}

func (u *unacked) add(id string, a *source.Attempt) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.byID == nil {
		u.byID = make(map[string]attempts)
	}
	of := attempts{latest: a}
	if known, ok := u.byID[id]; ok && known.latest.Err() == nil {
		of.older = append(known.older, known.latest)
	}
	u.byID[id] = of
}

// find returns the latest attempt of an ID, or nil.
func (u *unacked) find(id string) *source.Attempt {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.byID[id].latest
}

func (u *unacked) remove(id string, a *source.Attempt) {
	u.mu.Lock()
	defer u.mu.Unlock()
	of := u.byID[id]
	if of.latest == a {
		if len(of.older) == 0 {
			delete(u.byID, id)
			return
		}
		last := len(of.older) - 1
		of.latest, of.older = of.older[last], of.older[:last]
		u.byID[id] = of
		return
	}
	if i := slices.Index(of.older, a); i >= 0 {
		of.older = slices.Delete(of.older, i, i+1)
		u.byID[id] = of
	}
}

package housekeeper

import (
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/flaminco/redischannels/internal/backoff"
	"github.com/flaminco/redischannels/internal/delayed"
	"github.com/flaminco/redischannels/internal/redisconn"
)

// maxUsed is the number of topics of a client that are recorded, because there may be one for
// each user or request. Further topics are not checked when they are used for the first time.
const maxUsed = 10_000

// lookTimeout is how long Close may wait for a silent connection in a program without delayed
// messages, if the client has no timeout.
const lookTimeout = time.Second

// lookout is the queue of topics that are checked once, because they are used for the first time.
// One goroutine checks them one after the other.
type lookout struct {
	client redis.UniversalClient

	mu      sync.RWMutex
	used    map[string]struct{}
	waiting []firstLook // those that the goroutine has not begun; it runs while looking is set
	looking bool
}

type firstLook struct {
	handle *Handle
	target func() (delayed.Target, error)
}

// FirstUse reports whether this is the first use of a topic by the client in this process; check
// it then by [Handle.LookSoon]. For a topic that was used before it does not allocate.
func (h *Handle) FirstUse(topic string) bool {
	l := &h.keeper.lookout
	l.mu.RLock()
	_, used := l.used[topic]
	used = used || len(l.used) >= maxUsed
	l.mu.RUnlock()
	if used {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, used = l.used[topic]; used || len(l.used) >= maxUsed {
		return false
	}
	l.used[topic] = struct{}{}
	return true
}

// LookSoon checks a due set once, after an outage if Redis cannot be reached, and continues like
// [Handle.Due] if it is not empty. It does not wait. It has no effect if target returns an error
// or panics, or a permission is missing.
func (h *Handle) LookSoon(target func() (delayed.Target, error)) {
	k, l := h.keeper, &h.keeper.lookout
	if k.life.Enter() != nil {
		return
	}
	defer k.life.Leave()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.waiting = append(l.waiting, firstLook{h, target})
	if !l.looking {
		l.looking = true
		k.life.Go(k.lookAtAll)
	}
}

// lookAtAll is the goroutine of the lookout.
func (k *keeper) lookAtAll() {
	failures := 0
	for {
		look, ok := k.lookout.next()
		if !ok || k.life.Err() != nil {
			return
		}
		if !redisconn.Classify(k.lookAt(look)).Retryable() {
			failures = 0
			continue
		}
		failures++
		k.lookout.again(look)
		if !backoff.Wait(k.life.Context().Done(), backoff.Redis.After(failures)) {
			return
		}
	}
}

// lookAt returns the error of a check without a reply.
func (k *keeper) lookAt(look firstLook) error {
	var target delayed.Target
	err := redisconn.Guard(func() (err error) {
		target, err = look.target()
		return err
	})
	if err != nil {
		return nil
	}
	ctx, waits := k.life.Context(), false
	err = redisconn.Guard(func() (err error) {
		waits, err = delayed.Waits(ctx, k.lookout.client, target)
		return err
	})
	if err != nil || !waits {
		return err
	}
	return k.look(ctx, k.lookout.client, look.handle, target)
}

// next returns the next topic to check. Without one the goroutine ends.
func (l *lookout) next() (look firstLook, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.waiting) == 0 {
		l.looking, l.waiting = false, nil
		return look, false
	}
	look = l.waiting[0]
	l.waiting = l.waiting[1:]
	return look, true
}

// again adds a check behind the others.
func (l *lookout) again(look firstLook) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.waiting = append(l.waiting, look)
}

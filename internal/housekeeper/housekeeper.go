// Package housekeeper runs the periodic duties of topics: moving what is due, and removing what no group
// needs. There is one housekeeper per client in a process, shared by all that use the client.
package housekeeper

import (
	"context"
	"crypto/rand"
	"errors"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/flaminco/redischannels/internal/delayed"
	"github.com/flaminco/redischannels/internal/keys"
	"github.com/flaminco/redischannels/internal/lifecycle"
	"github.com/flaminco/redischannels/internal/redisconn"
	"github.com/flaminco/redischannels/internal/retention"
)

// closeGrace is how long the last Close waits for a silent connection.
const closeGrace = 5 * time.Second

// commandTimeout bounds a command if the client itself has no timeout, or a longer one.
const commandTimeout = 5 * time.Second

// all are the housekeepers of the process by their client.
var all = struct {
	mu        sync.Mutex
	byClient  map[redis.UniversalClient]*keeper
	processID string
}{byClient: make(map[redis.UniversalClient]*keeper), processID: rand.Text()}

// keeper is the housekeeper of a client.
type keeper struct {
	client redis.UniversalClient
	name   string // among all movers
	life   *lifecycle.State
	users  int // handles; guarded by all.mu

	mu     sync.Mutex
	duties map[dutyKey]*duty

	lookout lookout
}

// Observer receives the reports of the duties of a topic, one at a time for each topic. Its
// methods are called by the goroutine of a duty, which waits for them.
type Observer interface {
	// DeadLetters reports stored entries that became dead letters.
	DeadLetters(target delayed.Target, letters []delayed.Letter)
	// Replaced reports that a policy of retention has taken the place of another one.
	Replaced(topic keys.Topic, before, policy string)
	// Pinned reports what pins a topic for too long, once, and how many entries it has.
	Pinned(topic keys.Topic, pin retention.Pin, length int64)
	// Failed reports why a task cannot be done, once until it can again. It is tried again.
	Failed(task Task, target delayed.Target, err error)
	// Recovered reports that a failure is over.
	Recovered(task Task, target delayed.Target, after time.Duration)
}

// Handle is the use of a housekeeper by one owner. It is safe for concurrent use.
type Handle struct {
	keeper   *keeper
	observer Observer
	life     *lifecycle.State // calls of the observer, and of Due
}

var errClosed = errors.New("housekeeper: closed")

// Open returns a handle of the housekeeper of a client. It starts no goroutine.
func Open(client redis.UniversalClient, observer Observer) *Handle {
	all.mu.Lock()
	defer all.mu.Unlock()
	k := all.byClient[client]
	if k == nil {
		k = &keeper{
			client: bounded(client, commandTimeout), name: all.processID + ":" + rand.Text(),
			life: lifecycle.New(errClosed), duties: make(map[dutyKey]*duty),
			lookout: lookout{client: bounded(client, lookTimeout), used: make(map[string]struct{})},
		}
		all.byClient[client] = k
	}
	k.users++
	return &Handle{keeper: k, observer: observer, life: lifecycle.New(errClosed)}
}

// bounded is the client with a timeout for each command, unless it has one of 5 s at most. A cluster
// client keeps its own.
func bounded(client redis.UniversalClient, timeout time.Duration) redis.UniversalClient {
	c, ok := client.(*redis.Client)
	if !ok {
		return client
	}
	if o := c.Options(); o.ReadTimeout > 0 && o.ReadTimeout <= commandTimeout && o.WriteTimeout > 0 && o.WriteTimeout <= commandTimeout {
		return client
	}
	return redisconn.WithTimeout(c, timeout)
}

// Due makes the housekeeper check a due set after a time, and continue until it is empty. A
// negative time is that of an empty due set and has no effect. The observer of this handle
// receives the reports of the target until the handle is closed.
func (h *Handle) Due(target delayed.Target, after time.Duration) {
	if h.life.Enter() != nil {
		return
	}
	defer h.life.Leave()
	h.keeper.due(h, target, after)
}

// Stored is Due after a reply of the script that stores. While a mover leads it checks in time,
// and this housekeeper, which may be the leader, only a second later in case the leader crashes.
func (h *Handle) Stored(target delayed.Target, reply delayed.StoreReply) {
	after := reply.Next
	if after >= 0 && reply.Led {
		after += followInterval
	}
	h.Due(target, after)
}

// Look runs one page of a duty now and returns its error, or makes the housekeeper continue.
func (h *Handle) Look(ctx context.Context, target delayed.Target) error {
	if err := h.life.Enter(); err != nil {
		return err
	}
	defer h.life.Leave()
	return h.keeper.look(ctx, h.keeper.client, h, target)
}

func (k *keeper) look(ctx context.Context, client redis.UniversalClient, h *Handle, target delayed.Target) error {
	page, err := k.move(ctx, client, target)
	if err != nil {
		return err
	}
	h.report(func(o Observer) { deadLetters(o, target, page) })
	k.due(h, target, page.Next)
	return nil
}

// report calls the observer, unless the handle is closed. A panic in it is recovered.
func (h *Handle) report(call func(Observer)) {
	if h.life.Enter() != nil {
		return
	}
	defer h.life.Leave()
	_ = redisconn.Guard(func() error { call(h.observer); return nil })
}

// Close ends the use. It waits for the observer, and the last Close of a client for all duties, at
// most 5 s beyond which a connection is silent.
func (h *Handle) Close() error {
	return h.life.Close(func() error {
		<-h.life.Idle()
		h.keeper.forget(h)
		if h.keeper.release() {
			return h.keeper.stop()
		}
		return nil
	})
}

// release ends one use and reports whether it was the last.
func (k *keeper) release() bool {
	all.mu.Lock()
	defer all.mu.Unlock()
	k.users--
	if k.users > 0 {
		return false
	}
	for client, other := range all.byClient {
		if other == k {
			delete(all.byClient, client)
		}
	}
	return true
}

func (k *keeper) stop() error {
	k.life.End(nil)
	timer := time.NewTimer(closeGrace)
	defer timer.Stop()
	select {
	case <-k.life.Idle():
		return nil
	case <-timer.C:
		return errors.New("housekeeper: a connection to Redis still waits for a reply")
	}
}

// due makes a duty that moves, or moves its next check forward. A negative time does nothing.
func (k *keeper) due(h *Handle, target delayed.Target, after time.Duration) {
	if after >= 0 {
		k.begin(h, dutyKey{Moving, target}, after, func(d *duty) {
			if d.job == nil { // the goroutine of the duty reads it without the lock
				d.job = mover{k, target}
			}
		})
	}
}

// begin makes a duty, or moves the next check of the one that there is forward. set gives it its job; the
// lock is held.
func (k *keeper) begin(h *Handle, key dutyKey, after time.Duration, set func(*duty)) {
	if k.life.Enter() != nil {
		return
	}
	defer k.life.Leave()
	k.mu.Lock()
	defer k.mu.Unlock()
	d := k.duties[key]
	if d == nil {
		d = &duty{keeper: k, dutyKey: key, wake: make(chan struct{}, 1), handles: make(map[*Handle]struct{})}
		k.duties[key] = d
		k.life.Go(d.run) // it waits for the lock
	}
	set(d)
	d.handles[h] = struct{}{}
	d.forward(time.Now().Add(after))
}

// forget removes the handle from all duties.
func (k *keeper) forget(h *Handle) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, d := range k.duties {
		delete(d.handles, h)
	}
}

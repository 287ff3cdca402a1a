package main

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"

	"github.com/flaminco/redischannels/benchmarks/internal/local"
)

const (
	group       = "bench"
	payloadSize = 256                        // unless the row has another one
	keys        = 100                        // of the rows with ordering keys
	uuidPrefix  = "00000000-0000-4000-8000-" // followed by the number of the message, 12 digits
)

// trial is one measured run of one peer. Its counts are checked afterwards, so that a figure is
// never that of a run which lost or repeated a message.
type trial struct {
	ctx    context.Context // ends when the trial takes too long
	server *local.Redis
	topic  string
	row    row
	n      int           // messages
	scale  int           // what the harness divides by
	window time.Duration // of rows that watch for a time

	payload []byte
	foreign int64              // entries that other consumers of the group keep pending
	polls   int64              // XPENDING of the harness itself, which count for none
	last    [keys]atomic.Int64 // by key, the message that has come last

	clients []*redis.Client

	seen    []atomic.Bool // by copy and number of the message
	count   atomic.Int64
	done    chan struct{} // closed when everything has arrived
	invalid atomic.Pointer[error]
	abort   context.CancelFunc // ends ctx

	began     time.Time
	elapsed   time.Duration
	cpu       time.Duration
	calls     int64 // reads and writes
	mallocs   uint64
	allocated uint64
	commands  int64
	byCommand map[string]int64
	values    []float64 // one per metric of the row; messages per second unless the peer sets them
}

// deliveries is how often a message is to arrive, all messages and copies together.
func (t *trial) deliveries() int { return len(t.seen) }

// scaled scales a number other than one of messages.
func (t *trial) scaled(n int) int { return max(1, n/t.scale) }

// uuid returns the UUID of the message with this number.
func uuid(i int) string {
	b := make([]byte, 0, len(uuidPrefix)+12)
	b = append(b, uuidPrefix...)
	for at := 100_000_000_000; at > 0; at /= 10 {
		b = append(b, byte('0'+i/at%10))
	}
	return string(b)
}

// number is the inverse of uuid.
func number(uuid string) (int, error) {
	if len(uuid) != len(uuidPrefix)+12 {
		return 0, fmt.Errorf("UUID %q is none of the harness", uuid)
	}
	return strconv.Atoi(uuid[len(uuidPrefix):])
}

// connect returns a client that is closed after the trial. Each side of a peer has its own,
// because watermill-redisstream closes what it is given.
func (t *trial) connect(change ...func(*redis.Options)) *redis.Client {
	options := &redis.Options{Addr: t.server.Addr}
	for _, f := range change {
		f(options)
	}
	client := redis.NewClient(options)
	t.clients = append(t.clients, client)
	return client
}

// start begins the measured time.
func (t *trial) start() error {
	byCommand, err := t.server.CommandStats(t.ctx)
	if err != nil {
		return err
	}
	commands, err := t.server.Commands(t.ctx)
	if err != nil {
		return err
	}
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	t.commands, t.byCommand, t.polls = commands, byCommand, 0
	t.mallocs, t.allocated = m.Mallocs, m.TotalAlloc
	t.calls = local.SystemCalls()
	t.began, t.cpu = time.Now(), local.CPUTime()
	return nil
}

// stop ends the measured time.
func (t *trial) stop() error {
	t.elapsed, t.cpu = time.Since(t.began), local.CPUTime()-t.cpu
	t.calls = local.SystemCalls() - t.calls
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	t.mallocs, t.allocated = m.Mallocs-t.mallocs, m.TotalAlloc-t.allocated
	commands, err := t.server.Commands(t.ctx)
	if err != nil {
		return err
	}
	t.commands = commands - t.commands - 1 - t.polls // without the INFO of start
	byCommand, err := t.server.CommandStats(t.ctx)
	if err != nil {
		return err
	}
	byCommand["xpending"] -= t.polls
	for name, calls := range byCommand {
		byCommand[name] = calls - t.byCommand[name]
		if byCommand[name] == 0 || name == "info" {
			delete(byCommand, name)
		}
	}
	t.byCommand = byCommand
	t.values = []float64{float64(t.deliveries()) / t.elapsed.Seconds()}
	return nil
}

// arrived counts a message that was received.
func (t *trial) arrived(msg *message.Message) {
	t.countOne(msg.UUID, len(msg.Payload))
}

func (t *trial) countOne(uuid string, size int) { t.countCopy(0, uuid, size) }

// countCopy counts a message of one of several subscriptions that all receive everything.
func (t *trial) countCopy(c int, uuid string, size int) {
	i, err := number(uuid)
	switch {
	case err != nil:
		t.fail(err)
	case i >= t.n:
		t.fail(fmt.Errorf("message %d of %d", i, t.n))
	case size != len(t.payload):
		t.fail(fmt.Errorf("message %d has a payload of %d bytes", i, size))
	case t.seen[c*t.n+i].Swap(true):
		t.fail(fmt.Errorf("message %d has arrived twice", i))
	case t.count.Add(1) == int64(t.deliveries()):
		close(t.done)
	}
}

// inOrder sees to it that messages of a key come one after the other.
func (t *trial) inOrder(uuid string) {
	i, err := number(uuid)
	if err != nil {
		t.fail(err)
	} else if before := t.last[i%keys].Swap(int64(i)); before > int64(i) {
		t.fail(fmt.Errorf("message %d has come after message %d of its key", i, before))
	}
}

// fail keeps the first thing that makes the trial worthless, and ends it.
func (t *trial) fail(err error) {
	t.invalid.CompareAndSwap(nil, &err)
	t.abort()
}

// complete reports whether all messages have arrived.
func (t *trial) complete() bool { return t.count.Load() == int64(t.deliveries()) }

// awaitAll waits until all messages have arrived.
func (t *trial) awaitAll() error {
	select {
	case <-t.done:
		return nil
	case <-t.ctx.Done():
		return t.missing()
	}
}

func (t *trial) missing() error {
	return fmt.Errorf("%d of %d messages have arrived", t.count.Load(), t.deliveries())
}

// awaitSettled waits until nothing is pending in the group, so that acknowledgements which
// are still under way count in the measured time.
func (t *trial) awaitSettled() error {
	for {
		pending, err := t.server.Client.XPending(t.ctx, t.topic, group).Result()
		if err != nil {
			return err
		}
		t.polls++
		if pending.Count == t.foreign {
			return nil
		}
		select {
		case <-t.ctx.Done():
			return fmt.Errorf("%d entries are still pending", pending.Count)
		case <-time.After(500 * time.Microsecond):
		}
	}
}

// check looks once more when the peer is closed: all arrived, once, and nothing is pending.
func (t *trial) check(groups bool) error {
	if err := t.invalid.Load(); err != nil {
		return *err
	}
	if !t.complete() {
		return t.missing()
	}
	if !groups {
		return nil
	}
	pending, err := t.server.Client.XPending(t.ctx, t.topic, group).Result()
	if err != nil {
		return err
	}
	if pending.Count != t.foreign {
		return fmt.Errorf("%d entries are pending after the end", pending.Count-t.foreign)
	}
	return nil
}

// readBack counts what was published.
func (t *trial) readBack() error {
	for from := "-"; ; {
		page, err := t.server.Client.XRangeN(t.ctx, t.topic, from, "+", 10_000).Result()
		if err != nil {
			return err
		}
		if len(page) == 0 {
			return nil
		}
		for _, entry := range page {
			uuid, _ := entry.Values["_watermill_message_uuid"].(string)
			payload, _ := entry.Values["payload"].(string)
			t.countOne(uuid, len(payload))
		}
		from = "(" + page[len(page)-1].ID
	}
}

// fill appends the n messages that a subscribing peer is to read, and makes the group.
func (t *trial) fill() error { return t.fillWith(t.fields) }

func (t *trial) fillWith(fields func(i int) []any) error {
	return errors.Join(t.append(fields), t.group("0"))
}

// group makes the group, which reads what comes after an entry.
func (t *trial) group(after string) error {
	return t.server.Client.XGroupCreateMkStream(t.ctx, t.topic, group, after).Err()
}

func (t *trial) append(fields func(i int) []any) error {
	const batch = 1000
	for i := 0; i < t.n; i += batch {
		pipe := t.server.Client.Pipeline()
		for k := i; k < min(i+batch, t.n); k++ {
			pipe.XAdd(t.ctx, &redis.XAddArgs{Stream: t.topic, Values: fields(k)})
		}
		if _, err := pipe.Exec(t.ctx); err != nil {
			return err
		}
	}
	return nil
}

// fields are the fields of message i from the default marshaler of both libraries.
func (t *trial) fields(i int) []any {
	return []any{"_watermill_message_uuid", uuid(i), "metadata", "", "payload", t.payload}
}

// parallel calls f in so many goroutines and returns their errors.
func parallel(goroutines int, f func(g int) error) error {
	errs := make([]error, goroutines)
	var wg sync.WaitGroup
	for g := range goroutines {
		wg.Go(func() { errs[g] = f(g) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

package main

import (
	"bytes"
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
	payloadSize = 256
	uuidPrefix  = "00000000-0000-4000-8000-" // followed by the number of the message, 12 digits
)

var payload = bytes.Repeat([]byte{'x'}, payloadSize)

// trial is one measured run of one peer. What it counts is checked afterwards, so that a
// figure is never that of a run which lost or repeated a message.
type trial struct {
	ctx    context.Context // ends when the trial takes too long
	server *local.Redis
	topic  string
	n      int           // messages
	window time.Duration // of rows that watch for a time

	clients []*redis.Client

	seen    []atomic.Bool // by number of the message
	count   atomic.Int64
	done    chan struct{} // closed when n messages have arrived
	invalid atomic.Pointer[error]

	began     time.Time
	elapsed   time.Duration
	cpu       time.Duration
	mallocs   uint64
	allocated uint64
	commands  int64
	value     float64 // messages per second unless the peer sets it
}

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
	commands, err := t.server.Commands(t.ctx)
	if err != nil {
		return err
	}
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	t.commands, t.mallocs, t.allocated = commands, m.Mallocs, m.TotalAlloc
	t.began, t.cpu = time.Now(), local.CPUTime()
	return nil
}

// stop ends the measured time.
func (t *trial) stop() error {
	t.elapsed, t.cpu = time.Since(t.began), local.CPUTime()-t.cpu
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	t.mallocs, t.allocated = m.Mallocs-t.mallocs, m.TotalAlloc-t.allocated
	commands, err := t.server.Commands(t.ctx)
	if err != nil {
		return err
	}
	t.commands = commands - t.commands - 1 // without the INFO of start
	t.value = float64(t.n) / t.elapsed.Seconds()
	return nil
}

// arrived counts a message that was received.
func (t *trial) arrived(msg *message.Message) {
	t.countOne(msg.UUID, len(msg.Payload))
}

func (t *trial) countOne(uuid string, size int) {
	i, err := number(uuid)
	switch {
	case err != nil:
		t.fail(err)
	case i >= t.n:
		t.fail(fmt.Errorf("message %d of %d", i, t.n))
	case size != payloadSize:
		t.fail(fmt.Errorf("message %d has a payload of %d bytes", i, size))
	case t.seen[i].Swap(true):
		t.fail(fmt.Errorf("message %d has arrived twice", i))
	case t.count.Add(1) == int64(t.n):
		close(t.done)
	}
}

// fail keeps the first thing that makes the trial worthless.
func (t *trial) fail(err error) { t.invalid.CompareAndSwap(nil, &err) }

// complete reports whether all messages have arrived.
func (t *trial) complete() bool { return t.count.Load() == int64(t.n) }

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
	return fmt.Errorf("%d of %d messages have arrived", t.count.Load(), t.n)
}

// awaitSettled waits until nothing is pending in the group, so that acknowledgements which
// are still under way count in the measured time.
func (t *trial) awaitSettled() error {
	for {
		pending, err := t.server.Client.XPending(t.ctx, t.topic, group).Result()
		if err != nil {
			return err
		}
		if pending.Count == 0 {
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
	if pending.Count != 0 {
		return fmt.Errorf("%d entries are pending after the end", pending.Count)
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
func (t *trial) fill() error { return t.fillWith(fields) }

func (t *trial) fillWith(fields func(i int) []any) error {
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
	return t.server.Client.XGroupCreateMkStream(t.ctx, t.topic, group, "0").Err()
}

// fields are what the default marshaler of both libraries makes of message i.
func fields(i int) []any {
	return []any{"_watermill_message_uuid", uuid(i), "metadata", "", "payload", payload}
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

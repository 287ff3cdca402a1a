package redischannels

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/flaminco/redischannels/internal/foreign"
	"github.com/flaminco/redischannels/internal/source"
)

// redelivering is a transport that sends what is nacked again, and counts acknowledgements.
type redelivering struct {
	in   chan *message.Message
	life context.Context
	mu   sync.Mutex
	acks map[string]int
}

func (tr *redelivering) send(uuid string) {
	msg := message.NewMessage(uuid, []byte(uuid))
	select {
	case tr.in <- msg:
	case <-tr.life.Done():
		return
	}
	select {
	case <-msg.Acked():
		tr.mu.Lock()
		tr.acks[uuid]++
		tr.mu.Unlock()
	case <-msg.Nacked():
		tr.send(uuid)
	case <-tr.life.Done():
	}
}

// unreliable is a handler of batches that fails at random in all ways that there are.
type unreliable struct {
	mu      sync.Mutex
	random  *rand.Rand
	largest int
}

func (u *unreliable) handle(_ context.Context, batch []Delivery[int]) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.largest = max(u.largest, len(batch))
	switch u.random.IntN(6) {
	case 0:
		return errors.New("all have failed")
	case 1:
		panic("oops")
	case 2:
		var failed []int
		for i := range batch {
			if u.random.IntN(4) == 0 {
				failed = append(failed, i)
			}
		}
		return &BatchError{Failed: failed}
	case 3:
		for _, d := range batch {
			switch u.random.IntN(4) {
			case 0:
				_ = d.Ack()
			case 1:
				_ = d.Nack()
			case 2:
				_ = d.Reject("not supported")
			}
		}
		if u.random.IntN(2) == 0 {
			return errors.New("the others have failed")
		}
	}
	return nil
}

// Whatever handlers do with batches: each message is acknowledged once, and none is lost.
func TestHandleBatch_EveryMessageIsAckedOnce(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		n := rapid.IntRange(1, 200).Draw(rt, "messages")
		config := BatchConfig{
			Size:        rapid.IntRange(1, 60).Draw(rt, "size"),
			Bytes:       rapid.SampledFrom([]int{UnlimitedBatchBytes, 10, 100}).Draw(rt, "bytes"),
			Wait:        rapid.SampledFrom([]time.Duration{NoBatchWait, time.Millisecond, time.Second}).Draw(rt, "wait"),
			Concurrency: rapid.IntRange(1, 4).Draw(rt, "concurrency"),
		}
		handler := &unreliable{random: rand.New(rand.NewPCG(rapid.Uint64().Draw(rt, "seed"), 0))}
		acks := map[string]int{}
		synctest.Test(t, func(t *testing.T) {
			handleUnreliably(t, n, config, handler, acks)
		})
		if len(acks) != n || handler.largest > config.Size {
			rt.Fatalf("%d of %d messages are acknowledged, the largest batch had %d", len(acks), n, handler.largest)
		}
		for uuid, times := range acks {
			if times != 1 {
				rt.Fatalf("%s was acknowledged %d times", uuid, times)
			}
		}
	})
}

func handleUnreliably(t *testing.T, n int, config BatchConfig, handler *unreliable, acks map[string]int) {
	life, end := context.WithCancel(t.Context())
	tr := &redelivering{in: make(chan *message.Message), life: life, acks: acks}
	r := sourceReader[int](t, nil, messageDecoding{}, func(ctx context.Context) (source.Source, error) {
		return foreign.Open(ctx, func(ctx context.Context) (<-chan *message.Message, error) {
			context.AfterFunc(ctx, end)
			return tr.in, nil
		}, foreign.Config{Topic: "t", Left: func() {}, Skipped: func(string, error) {}})
	})
	for v := range n {
		go tr.send(fmt.Sprint(v))
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- r.HandleBatch(ctx, handler.handle, config) }()
	deadline := time.Now().Add(time.Hour)
	for time.Now().Before(deadline) {
		time.Sleep(time.Second)
		tr.mu.Lock()
		done := len(acks) == n
		tr.mu.Unlock()
		if done {
			break
		}
	}
	cancel()
	require.NoError(t, <-ended)
	require.NoError(t, r.Close())
}

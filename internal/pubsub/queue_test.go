package pubsub

import (
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// The queue behaves as a slice with two bounds.
func TestQueueIsABoundedList(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		dropped := 0
		conf := QueueConfig{
			Messages:   rapid.IntRange(1, 20).Draw(t, "messages"),
			Bytes:      rapid.IntRange(1, 2000).Draw(t, "bytes"),
			DropNewest: rapid.Bool().Draw(t, "newest"),
			Dropped:    func(n int) { dropped += n },
		}
		q := NewQueue(conf)
		var model []Message
		lost := 0
		cost := func() (n int) {
			for _, m := range model {
				n += m.cost()
			}
			return n
		}
		number := 0
		for range rapid.IntRange(1, 200).Draw(t, "steps") {
			if rapid.IntRange(0, 2).Draw(t, "step") == 0 {
				most := rapid.IntRange(0, 700).Draw(t, "most")
				m, ok, larger := q.Pop(most)
				fits := len(model) > 0 && len(model[0].Payload) <= most
				if ok != fits || ok && m.Size != model[0].Size || larger != (len(model) > 0 && !fits) {
					t.Fatalf("popped %v, %v, %v of %v", m, ok, larger, model)
				}
				if ok {
					model = model[1:]
				}
				continue
			}
			number++
			m := Message{Payload: make([]byte, rapid.IntRange(0, 500).Draw(t, "size")), Size: number}
			keep := true
			for len(model) > 0 && (len(model) >= conf.Messages || cost()+m.cost() > conf.Bytes) {
				lost++
				if conf.DropNewest {
					keep = false
					break
				}
				model = model[1:]
			}
			if keep {
				model = append(model, m)
			}
			q.Push(m)
		}
		if len(q.Ready) == 0 && len(model) > 0 {
			t.Fatal("messages, and nothing is reported")
		}
		if dropped != lost {
			t.Fatalf("%d dropped, %d expected", dropped, lost)
		}
		if n := q.Close(); n != len(model) {
			t.Fatalf("%d left, %d expected", n, len(model))
		}
		q.Push(Message{})
		if _, ok, _ := q.Pop(1); ok {
			t.Fatal("a message after Close")
		}
	})
}

func TestQueueKeepsNoHugeRing(t *testing.T) {
	q := NewQueue(QueueConfig{Messages: 100_000, Bytes: 1 << 30})
	for range 50_000 {
		q.Push(Message{})
	}
	for range 50_000 {
		_, ok, _ := q.Pop(0)
		require.True(t, ok)
	}
	require.LessOrEqual(t, len(q.items), idleItems)
}

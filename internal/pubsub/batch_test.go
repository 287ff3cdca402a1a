package pubsub

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels/internal/source"
)

// observer ignores what it is notified of, but for what was skipped.
type observer struct{ skipped []error }

func (o *observer) Delivered(int)        {}
func (o *observer) Dropped(int)          {}
func (o *observer) Undecodable(error)    {}
func (o *observer) Skipped(err error)    { o.skipped = append(o.skipped, err) }
func (o *observer) Abandoned(int, error) {}

// unconnected returns a subscription that receives what is sent by sendTo.
func unconnected(observer *observer, maxDeliveries int) *Subscription {
	return NewSubscription(SubscriptionConfig{
		Topic: func(channel string) string { return channel }, Origin: &source.Origin{Values: context.Background()},
		Buffer: 100, BufferBytes: 1 << 20, MaxInFlight: 100, MaxDeliveries: maxDeliveries, Observer: observer,
		Backoff: func(int) time.Duration { return time.Second },
	})
}

func sendTo(s *Subscription, payloads ...string) {
	for _, p := range payloads {
		s.sink.Queue.Push(Message{Channel: "c", Payload: []byte(p), Size: len(p)})
	}
}

// next calls NextBatch, which must return these payloads within the time.
func next(t *testing.T, s *Subscription, limits source.Limits, within time.Duration, payloads ...string) []*source.Attempt {
	t.Helper()
	begun := time.Now()
	batch, err := s.NextBatch(t.Context(), nil, limits)
	require.NoError(t, err)
	var got []string
	for _, a := range batch {
		got = append(got, string(a.Payload))
	}
	require.Equal(t, payloads, got)
	require.Equal(t, within, time.Since(begun))
	return batch
}

func endAll(t *testing.T, batch []*source.Attempt, o source.Outcome) {
	t.Helper()
	for _, a := range batch {
		require.NoError(t, a.End(o))
	}
}

// A batch exceeded Bytes by its last message. Only the first one may exceed it, and what does not fit
// ends the batch at once, also where it is redelivered.
func TestSubscription_BatchIsBoundedByBytes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := unconnected(&observer{}, 0)
		limits := source.Limits{Max: 10, Bytes: 8, Wait: time.Minute}
		sendTo(s, "12345", "678", "1234", "56789", "123456789", "1")
		next(t, s, limits, 0, "12345", "678") // to the byte
		next(t, s, limits, 0, "1234")
		next(t, s, limits, 0, "56789")
		large := next(t, s, limits, 0, "123456789")
		last := next(t, s, limits, time.Minute, "1")
		sendTo(s, "12345678")
		next(t, s, limits, 0, "12345678")
		nack := source.Outcome{Kind: source.Nack}
		endAll(t, last, nack)
		endAll(t, large, nack)
		next(t, s, limits, 0, "1") // in the order of the nacks
		next(t, s, limits, 0, "123456789")
		s.stop()
	})
}

// Wait runs from the first message, and ends to the nanosecond.
func TestSubscription_BatchIsBoundedByWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := unconnected(&observer{}, 0)
		go func() {
			time.Sleep(time.Hour)
			sendTo(s, "a")
			time.Sleep(time.Second - 1)
			sendTo(s, "b")
			time.Sleep(2 * time.Nanosecond)
			sendTo(s, "c")
		}()
		limits := source.Limits{Max: 3, Wait: time.Second}
		next(t, s, limits, time.Hour+time.Second, "a", "b")
		next(t, s, limits, time.Second+1, "c")
		sendTo(s, "d", "e", "f", "g")
		next(t, s, limits, 0, "d", "e", "f")
		s.stop()
	})
}

// A message that fails in a batch made the others of its batch be skipped with it, where the next
// delivery was their last.
func TestSubscription_LastDeliveryIsAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var seen observer
		s := unconnected(&seen, 2)
		limits := source.Limits{Max: 10, Wait: time.Second}
		sendTo(s, "a", "b")
		endAll(t, next(t, s, limits, time.Second, "a", "b"), source.Outcome{Kind: source.Nack, Split: 7})
		sendTo(s, "c")
		endAll(t, next(t, s, limits, 0, "a"), source.Outcome{Kind: source.Nack, Split: source.Single})
		endAll(t, next(t, s, limits, 0, "b"), source.Outcome{Kind: source.Ack})
		next(t, s, limits, time.Second, "c")
		require.Len(t, seen.skipped, 1)
		s.stop()
	})
}

package tests

import (
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
)

// heldUp makes OnEvent wait, from the first event of a kind on, until release is closed.
type blockedOnEvent struct {
	*testSub
	waiting chan struct{} // closed when it does
	release func()
}

func blockOnEvent(t *testing.T, client redis.UniversalClient, kind redischannels.EventKind) *blockedOnEvent {
	t.Helper()
	waiting, release := make(chan struct{}), make(chan struct{})
	h := &blockedOnEvent{waiting: waiting, release: sync.OnceFunc(func() { close(release) })}
	var once sync.Once
	h.testSub = newSub(t, client, inFlight(10), minIdle(300*time.Millisecond), func(c *redischannels.SubscriberConfig) {
		record := c.OnEvent
		c.OnEvent = func(e redischannels.Event) {
			if e.Kind == kind {
				once.Do(func() { close(waiting) })
				<-release
			}
			record(e)
		}
	})
	t.Cleanup(h.release) // before Close, which waits for it
	return h
}

// goesOn shows, while OnEvent waits, that messages come, that their leases are renewed and
// their acks written, and that Close returns once OnEvent does.
func (h *blockedOnEvent) resumes(t *testing.T, client redis.UniversalClient, topic string, messages <-chan *message.Message) {
	t.Helper()
	select {
	case <-h.waiting:
	case <-time.After(soon):
		require.FailNow(t, "no event")
	}
	before := len(pendingOf(t, client, topic))
	publish(t, client, topic, "held", "acked")
	leased, acked := receive(t, messages), receive(t, messages)
	acked.Ack()
	eventuallyPending(t, client, topic, before+1)
	for range 2 {
		last := time.Duration(0)
		redistest.Eventually(t, soon, func() bool {
			for _, p := range pendingOf(t, client, topic) {
				if p.ID == entryIDOf(t, leased) {
					renewed := p.Idle < last
					last = p.Idle
					return renewed
				}
			}
			return false
		}, "the lease is renewed")
	}
	require.NoError(t, leased.Context().Err())
	leased.Ack()
	eventuallyPending(t, client, topic, before)
	h.release()
	h.closeSoon(t)
}

// An OnEvent that took its time blocked the goroutine that had something to report, and with it
// the renewals or the acks of its subscription: others took the messages over.
func TestSubscriber_SlowOnEventDelaysNeitherLeasesNorAcks(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)

	t.Run("where acks are written", func(t *testing.T) {
		t.Parallel()
		topic := redistest.Key(t)
		h := blockOnEvent(t, client, redischannels.EventDeadLettered)
		messages := h.subscribe(t, topic)
		publish(t, client, topic, "bad")
		msg := receive(t, messages)
		redischannels.Reject(msg, "bad")
		msg.Nack()
		h.resumes(t, client, topic, messages)
		require.Len(t, h.events.of(redischannels.EventDeadLettered), 1, "reported before Close has returned")
	})
	t.Run("where leases are renewed", func(t *testing.T) {
		t.Parallel()
		redistest.NeedsRedis7(t, client, "a renewal that reports a trimmed entry")
		topic := redistest.Key(t)
		h := blockOnEvent(t, client, redischannels.EventTrimmed)
		messages := h.subscribe(t, topic)
		ids := publish(t, client, topic, "trimmed")
		msg := receive(t, messages)
		require.NoError(t, client.XDel(t.Context(), topic, ids...).Err())
		h.resumes(t, client, topic, messages)
		msg.Ack()
		require.Len(t, h.events.of(redischannels.EventTrimmed), 1)
	})
	t.Run("where entries are claimed", func(t *testing.T) {
		t.Parallel()
		topic := redistest.Key(t)
		publish(t, client, topic, "of a crashed consumer")
		deliverTo(t, client, topic, "dead", 1, time.Hour)
		h := blockOnEvent(t, client, redischannels.EventRecovered)
		subscribed := make(chan (<-chan *message.Message), 1)
		go func() {
			if messages, err := h.Subscribe(t.Context(), topic); err == nil {
				subscribed <- messages
			}
		}()
		select {
		case messages := <-subscribed:
			receiveAcked(t, messages, 1)
			eventuallyPending(t, client, topic, 0)
			h.resumes(t, client, topic, messages)
		case <-time.After(soon):
			require.FailNow(t, "Subscribe does not return")
		}
	})
}

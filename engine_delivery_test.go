package redischannels

import (
	"math"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels/internal/stream"
	"github.com/flaminco/redischannels/internal/window"
)

func TestBackoffDelay(t *testing.T) {
	t.Parallel()
	double := Backoff{Min: time.Second, Max: 5 * time.Second, Factor: 2}
	for n, want := range map[int]time.Duration{0: 1, 1: 1, 2: 2, 3: 4, 4: 5, 5: 5, math.MaxInt: 5} {
		require.Equal(t, want*time.Second, double.delay(n, 0.5), "after %d", n)
	}
	double.Jitter = 0.5
	require.Equal(t, time.Second, double.delay(2, 0))
	require.Equal(t, 3*time.Second, double.delay(2, 1))
	require.Equal(t, 5*time.Second, double.delay(4, 1), "Max is the greatest delay")
	// Whoever can write to Redis can set a delivery count. One step of a loop for each
	// delivery took a core for ever.
	constant := Backoff{Min: time.Second, Max: time.Hour, Factor: 1}
	require.Equal(t, time.Second, constant.delay(math.MaxInt, 0.5))
}

// The acknowledgement of what somebody else has is an event, which waits where many are
// untold. It is not the application that waits then: it may be OnEvent that acknowledges.
func TestAckDoesNotWaitForEvents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSubscription(t.Context(), SubscriberConfig{ConsumerGroup: "g", MaxInFlight: 2}.settings(), watermill.NopLogger{}, "t")
		s.feed = newFeed(feedConfig{topic: "t"})
		told := make(chan Event)
		s.reports = newReporter(func(e Event) { told <- e }, 1, false)
		s.report(Event{Kind: EventTrimmed})
		synctest.Wait()
		s.report(Event{Kind: EventTrimmed})

		entry := stream.NewEntry(stream.ID{Ms: 1}, []string{"name", "value"})
		s.win.Admit([]window.Item{{Entry: entry}}, time.Now())
		it, _ := s.win.Next()
		msg, d := message.NewMessage("1", nil), &delivery{from: &s.origin, id: it.Text, count: 1}
		s.win.Offer(it, d)
		msg.SetContext(d)
		require.True(t, s.entrust(it, d))
		s.win.Lose(it, false)
		acked := make(chan struct{})
		go func() {
			defer close(acked)
			s.feed.ack(msg)
		}()
		synctest.Wait()
		select {
		case <-acked:
		default:
			t.Error("it waits")
		}
		require.Equal(t, EventTrimmed, (<-told).Kind)
		require.Equal(t, EventTrimmed, (<-told).Kind)
		require.Equal(t, EventAckIgnored, (<-told).Kind)
		s.handlers.Wait()
		s.reports.close()
		s.stop()
		s.settleStop()
	})
}

// What a handler has said in time counts, also where the goroutine that awaits it comes so late
// that HandlerTimeout or DrainTimeout is over as well: an acknowledgement was taken for a nack,
// or not written, every other time.
func TestAckInTimeIsNotLate(t *testing.T) {
	t.Parallel()
	for name, over := range map[string]func(*subscription){
		"HandlerTimeout": func(*subscription) {},
		"DrainTimeout":   func(s *subscription) { close(s.abandoned) },
	} {
		for range 20 {
			cfg := SubscriberConfig{ConsumerGroup: "g", HandlerTimeout: time.Hour}
			s := newSubscription(t.Context(), cfg.settings(), watermill.NopLogger{}, "t")
			s.grp = &stream.Group{}
			s.win.Admit([]window.Item{{Entry: stream.NewEntry(stream.ID{Ms: 1}, []string{"name", "value"})}}, time.Now())
			it, _ := s.win.Next()
			msg, d := message.NewMessage("1", nil), &delivery{from: &s.origin, id: it.Text, count: 1}
			s.win.Offer(it, d)
			s.started(it, d)
			msg.Ack()
			past := time.Now().Add(-time.Second)
			d.deadline.Store(&past)
			over(s)
			s.watch(it, msg, d)
			require.Equal(t, 1, s.win.Sizes().Settling, name)
			s.tellRest()
		}
	}
}

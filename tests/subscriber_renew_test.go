package tests

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
)

// A scan of many pending entries takes longer than a lease, which is not renewed
// meanwhile: messages in flight go to others.
func TestSubscriber_LongClaimScanDoesNotDelayRenewals(t *testing.T) {
	t.Parallel()
	server := redistest.Shared(t)
	direct, topic := server.Client(t), redistest.Key(t)
	const idle = 1500 * time.Millisecond
	publish(t, direct, topic, make([]string, 400)...)
	living := deliverTo(t, direct, topic, "living", 400, 0)
	publish(t, direct, topic, "held")

	var slow, steps atomic.Int32
	client := server.Client(t)
	client.AddHook(redistest.Before("evalsha", func(_ context.Context, cmd redis.Cmder) error {
		if slow.Load() == 1 && isScript(t, cmd, "scan", topic) {
			steps.Add(1)
			<-time.After(100 * time.Millisecond) // the way to the server
		}
		return nil
	}))
	sub := newSub(t, client, inFlight(2), minIdle(idle)) // room for one, so a step looks at ten
	messages := sub.subscribe(t, topic)
	msg := receive(t, messages)
	slow.Store(1)
	redistest.Never(t, 3*idle, func() bool {
		setIdle(t, direct, topic, "living", 0, living...)
		for _, p := range pendingOf(t, direct, topic) {
			if p.ID == entryIDOf(t, msg) && p.Idle > idle*5/6 {
				return true
			}
		}
		return false
	}, "the lease of a message in flight runs out")
	require.Greater(t, steps.Load(), int32(idle/(100*time.Millisecond)), "no long scan")
	slow.Store(0)
	msg.Ack()
	eventuallyPending(t, direct, topic, 400)
	sub.events.none(t, redischannels.EventLeaseLost, redischannels.EventAckIgnored)
}

// An acknowledgement whose reply does not come is no reason to renew nothing: messages in flight
// go to others.
func TestSubscriber_HangingAckDoesNotDelayRenewals(t *testing.T) {
	t.Parallel()
	proxy, client, direct := pubProxy(t, func(o *redis.Options) { o.ReadTimeout = time.Minute })
	topic := redistest.Key(t)
	sub := newSub(t, client, inFlight(2), minIdle(600*time.Millisecond))
	messages := sub.subscribe(t, topic)
	publish(t, direct, topic, "acknowledged", "held")
	acked, leased := receive(t, messages), receive(t, messages)
	release := make(chan struct{})
	hanging := proxy.BeforeReply(1, redistest.Command("XACK"), func() { <-release })
	acked.Ack()
	redistest.Eventually(t, soon, func() bool { return len(pendingOf(t, direct, topic)) == 1 }, "it is executed")
	renewals := proxy.BeforeReply(-1, scriptOf(t, "hold"), func() {})
	redistest.Eventually(t, soon, func() bool { return renewals.Count() >= 4 }, "renewals continue")
	require.NoError(t, leased.Context().Err())
	close(release)
	hanging.Wait(t, soon)
	leased.Ack()
	eventuallyPending(t, direct, topic, 0)
	sub.events.none(t, redischannels.EventLeaseLost)
}

// A reply does not come to a command by which entries are looked for, those of crashed consumers or our own
// that are not held: a consumer that renews leases waited for it, and messages in flight went to others.
func TestSubscriber_HangingOwnPendingReadDoesNotDelayRenewals(t *testing.T) {
	t.Parallel()
	for name, search := range map[string]redistest.Match{
		"own": scriptOf(t, "own"), "fetch": scriptOf(t, "fetch"), "reap": scriptOf(t, "reap"),
		"scan": scriptOf(t, "scan"),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			proxy, client, direct := pubProxy(t, func(o *redis.Options) { o.ReadTimeout = time.Minute })
			topic := redistest.Key(t)
			sub := newSub(t, client, inFlight(3), minIdle(600*time.Millisecond))
			messages := sub.subscribe(t, topic)
			publish(t, direct, topic, "held")
			leased := receive(t, messages)
			answer, release := context.WithCancel(context.Background())
			t.Cleanup(release)
			hanging := proxy.BeforeReply(1, search, func() { <-answer.Done() })
			proxy.DropReplyIf(1, redistest.Command("XREADGROUP"), entryIDs.Match)
			publish(t, direct, topic, "unseen")
			eventuallyPending(t, direct, topic, 2)
			renewals := proxy.BeforeReply(-1, scriptOf(t, "hold"), func() {})
			redistest.Eventually(t, soon, func() bool { return renewals.Count() >= 6 }, "renewals continue")
			require.NoError(t, leased.Context().Err())
			release()
			hanging.Wait(t, soon)
			leased.Ack()
			require.Equal(t, []string{"unseen"}, receiveAcked(t, messages, 1))
			eventuallyPending(t, direct, topic, 0)
			sub.events.none(t, redischannels.EventLeaseLost)
		})
	}
}

package tests

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
	"github.com/redis/go-redis/v9"
)

// frozenIdle is the MinIdle of tests in which a process is stopped for longer than that.
const frozenIdle = 400 * time.Millisecond

// A process that was stopped wakes up with an entry in its socket that Redis gave it long ago
// and that another consumer handles by now: it handles it too, and its ack takes the entry
// away from the new owner.
func TestSubscriber_EntryInTheSocketOfAStoppedProcess(t *testing.T) {
	t.Parallel()
	server := redistest.Shared(t)
	client := server.Client(t)
	// The child's BLOCK is 133 ms long. On a busy machine it may be over before the entry is
	// published; then another child gets another chance.
	var child *consumer
	var topic, childName, id string
	for assigned := false; !assigned; {
		topic = redistest.Key(t)
		child = startConsumer(t, server, topic, "MIN_IDLE=400").live()
		redistest.Eventually(t, soon, func() bool { return len(consumersOf(t, client, topic)) == 1 }, "the child's consumer")
		childName = consumersOf(t, client, topic)[0]
		child.Pause()
		id = publish(t, client, topic, "m")[0]
		pending := pendingOf(t, client, topic)
		if assigned = len(pending) == 1 && pending[0].Consumer == childName; !assigned {
			child.Kill()
		}
	}

	sub := newSub(t, client, minIdle(frozenIdle))
	messages := sub.subscribe(t, topic)
	msg := receive(t, messages)
	require.Equal(t, id, entryIDOf(t, msg))
	child.Resume()
	require.Equal(t, id, child.WaitLine("event lease-lost ", soon))
	owner := pendingOf(t, client, topic)
	require.Len(t, owner, 1)
	require.NotEqual(t, childName, owner[0].Consumer)
	require.NoError(t, msg.Context().Err())

	msg.Ack()
	eventuallyPending(t, client, topic, 0)
	sub.events.none(t, redischannels.EventLeaseLost, redischannels.EventAckIgnored)
	child.tell("close")
	require.Empty(t, child.lines(), "the stopped process has handled it too")
}

// A slow consumer's late ack deletes the pending entry of the new owner; when that one dies
// the message is lost.
func TestSubscriber_HandlerOfAStoppedProcess(t *testing.T) {
	t.Parallel()
	server := redistest.Shared(t)
	client, topic := server.Client(t), redistest.Key(t)
	id := publish(t, client, topic, "m")[0]
	child := startConsumer(t, server, topic, "MIN_IDLE=400")
	require.Equal(t, id, child.got(t).id)

	child.Pause()
	child.tell("ack %s", id) // the first thing that it does when it wakes up
	sub := newSub(t, client, minIdle(frozenIdle), func(c *redischannels.SubscriberConfig) {
		c.NackBackoff = redischannels.Backoff{Min: time.Millisecond}
	})
	messages := sub.subscribe(t, topic)
	msg := receive(t, messages)
	require.Equal(t, 1, countOf(t, msg), "it may only have been buffered there")
	mine := pendingOf(t, client, topic)[0].Consumer

	child.Resume()
	require.Equal(t, id, child.WaitLine("event ack-ignored ", soon))
	pending := pendingOf(t, client, topic)
	require.Len(t, pending, 1, "the late ack took the entry away from its owner")
	require.Equal(t, mine, pending[0].Consumer)
	require.NoError(t, msg.Context().Err())

	msg.Nack() // the new owner fails: the message is still there
	again := receive(t, messages)
	require.Equal(t, 2, countOf(t, again))
	again.Ack()
	eventuallyPending(t, client, topic, 0)
}

// A process that wakes up while its handler still works renews its leases and so steals the
// entry from the new owner.
func TestSubscriber_StoppedProcessDoesNotRenewLostLeases(t *testing.T) {
	t.Parallel()
	server := redistest.Shared(t)
	client, topic := server.Client(t), redistest.Key(t)
	id := publish(t, client, topic, "m")[0]
	child := startConsumer(t, server, topic, "MIN_IDLE=400")
	require.Equal(t, id, child.got(t).id)
	child.Pause()
	sub := newSub(t, client, minIdle(frozenIdle))
	msg := receive(t, sub.subscribe(t, topic))
	mine := pendingOf(t, client, topic)[0].Consumer
	child.Resume()
	child.WaitLine("ended "+id, soon) // the old handler learns it by its context
	redistest.Never(t, frozenIdle, func() bool { return pendingOf(t, client, topic)[0].Consumer != mine }, "stolen back")
	require.NoError(t, msg.Context().Err())
	msg.Ack()
	eventuallyPending(t, client, topic, 0)
}

// A heartbeat of the form `XCLAIM ... 0 id JUSTID` takes an entry back from any owner.
func TestSubscriber_RenewalDoesNotSteal(t *testing.T) {
	t.Parallel()
	client, topic := redistest.Shared(t).Client(t), redistest.Key(t)
	id := publish(t, client, topic, "m")[0]
	sub := newSub(t, client, minIdle(300*time.Millisecond))
	messages := sub.subscribe(t, topic)
	msg := receive(t, messages)

	setIdle(t, client, topic, "thief", 0, id)
	select {
	case <-msg.Context().Done():
	case <-time.After(soon):
		require.FailNow(t, "the handler does not learn that it lost its entry")
	}
	require.ErrorIs(t, msg.Context().Err(), context.Canceled)
	lost := sub.events.wait(t, redischannels.EventLeaseLost)
	require.Equal(t, []string{id}, lost.EntryIDs)
	require.ErrorIs(t, lost.Err, redischannels.ErrNotOwner)

	msg.Ack()
	require.Equal(t, []string{id}, sub.events.wait(t, redischannels.EventAckIgnored).EntryIDs)
	pending := pendingOf(t, client, topic)
	require.Len(t, pending, 1)
	require.Equal(t, "thief", pending[0].Consumer)
	require.Len(t, sub.events.of(redischannels.EventLeaseLost), 1)
}

// A lease that runs from the arrival of the reply is longer than what Redis knows: a reply
// that was long under way is handled while another consumer owns the entry.
func TestSubscriber_LeaseRunsFromTheSendingOfTheCommand(t *testing.T) {
	t.Parallel()
	server := redistest.Shared(t)
	proxy := redistest.NewProxy(t, server.Addr())
	slow, client := server.Client(t, redistest.Via(proxy)), server.Client(t)
	topic := redistest.Key(t)
	messages := newSub(t, slow, tuned(func(c *redischannels.Tuning) {
		c.MinIdle, c.ClaimInterval = frozenIdle, time.Hour // it does not claim the entry back
	})).subscribe(t, topic)

	var armed atomic.Bool
	arrived, release := make(chan struct{}), make(chan struct{})
	ctx := context.WithoutCancel(t.Context())
	proxy.BeforeReply(-1, redistest.Command("XREADGROUP"), func() {
		n, err := client.XPending(ctx, topic, "g").Result()
		if err == nil && n.Count > 0 && armed.CompareAndSwap(true, false) {
			close(arrived)
			<-release
		}
	})
	armed.Store(true)
	id := publish(t, client, topic, "m")[0]
	<-arrived // Redis counts it as delivered, the consumer has not seen it
	setIdle(t, client, topic, "other", 0, id)
	redistest.Eventually(t, soon, func() bool {
		return pendingOf(t, client, topic)[0].Idle >= frozenIdle // since the read was sent, at least
	}, "idle time")
	close(release)
	redistest.Never(t, 2*quiet, func() bool {
		select {
		case <-messages:
			return true
		default:
			return pendingOf(t, client, topic)[0].Consumer != "other"
		}
	}, "the entry of another consumer is handled or taken back")
}

// The same delay, but no consumer claims the entry: it is delivered, once, under a new lease.
func TestSubscriber_LateReplyOfAnUnclaimedEntryIsDelivered(t *testing.T) {
	t.Parallel()
	server := redistest.Shared(t)
	proxy := redistest.NewProxy(t, server.Addr())
	slow, client := server.Client(t, redistest.Via(proxy)), server.Client(t)
	topic := redistest.Key(t)
	sub := newSub(t, slow, tuned(func(c *redischannels.Tuning) {
		c.MinIdle, c.ClaimInterval = frozenIdle, time.Hour // a claim from itself would count the read as a delivery
	}))
	messages := sub.subscribe(t, topic)

	var armed atomic.Bool
	ctx := context.WithoutCancel(t.Context())
	proxy.BeforeReply(-1, redistest.Command("XREADGROUP"), func() {
		n, err := client.XPending(ctx, topic, "g").Result()
		if err == nil && n.Count > 0 && armed.CompareAndSwap(true, false) {
			<-time.After(frozenIdle) // the delay itself
		}
	})
	armed.Store(true)
	publish(t, client, topic, "m")
	msg := receive(t, messages)
	require.Equal(t, 1, countOf(t, msg))
	require.Less(t, pendingOf(t, client, topic)[0].Idle, frozenIdle, "the lease was not renewed before the delivery")
	msg.Ack()
	eventuallyPending(t, client, topic, 0)
	noMessage(t, messages)
	sub.events.none(t, redischannels.EventLeaseLost, redischannels.EventAckIgnored)
}

// A lost lease ends its message here: nothing is written for it, and its slot is free.
func TestSubscriber_LostLeaseFreesItsSlot(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	for name, outcome := range map[string]func(*message.Message) bool{"ack": (*message.Message).Ack, "nack": (*message.Message).Nack} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			topic := redistest.Key(t)
			sub := newSub(t, client, tuned(func(c *redischannels.Tuning) { c.ClaimInterval = time.Minute })) // it stays the other's
			messages := sub.subscribe(t, topic)
			ids := publish(t, client, topic, "lost", "next")
			msg := receive(t, messages)
			setIdle(t, client, topic, "other", 0, ids[0])
			waitDone(t, msg.Context())
			outcome(msg)
			require.Equal(t, ids[:1], sub.events.wait(t, redischannels.EventAckIgnored).EntryIDs)
			next := receive(t, messages)
			require.Equal(t, "next", string(next.Payload))
			next.Ack()
		})
	}
}

// A process that is cut off from a server, and sees another one behind the address when it is
// back, knows nothing of who owns what there: its leases are over, also young ones, and a late
// ack must not take the entry from its new owner.
func TestSubscriber_LeasesEndWithTheConnection(t *testing.T) {
	t.Parallel()
	old, heir := redistest.Start(t), redistest.Start(t)
	proxy := redistest.NewProxy(t, old.Addr())
	client := old.Client(t, redistest.Via(proxy))
	first, second := old.Client(t), heir.Client(t)
	topic := redistest.Key(t)
	sub := newSub(t, client, inFlight(2), minIdle(time.Minute))
	messages := sub.subscribe(t, topic)
	ids := publish(t, first, topic, "m")
	msg := receive(t, messages)

	// The state after a failover: the same stream, in which another consumer has the entry.
	require.NoError(t, second.XAdd(t.Context(), &redis.XAddArgs{Stream: topic, ID: ids[0], Values: []any{
		"_watermill_message_uuid", "u", "metadata", "\x80", "payload", "m"}}).Err())
	require.Equal(t, ids, deliverTo(t, second, topic, "other", 1, 0))
	proxy.SetTarget(heir.Addr())
	proxy.Cut()
	redistest.Eventually(t, soon, func() bool { return redistest.BlockedClients(t, second) == 1 }, "it waits at the new one")
	msg.Ack() // before that has brought anything
	require.Equal(t, ids, sub.events.wait(t, redischannels.EventAckIgnored).EntryIDs)
	publish(t, second, topic, "next")
	require.Equal(t, []string{"next"}, receiveAcked(t, messages, 1), "it reads from the new one")
	redistest.Eventually(t, soon, func() bool { return len(pendingOf(t, second, topic)) == 1 }, "next is acknowledged")
	require.Equal(t, "other", pendingOf(t, second, topic)[0].Consumer, "the entry is still the other's")
}

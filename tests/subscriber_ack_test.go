package tests

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
)

// An Ack directly followed by Close is lost (40 of 40).
func TestSubscriber_AckBeforeCloseReachesRedis(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	for name, change := range map[string]func(*redischannels.SubscriberConfig){
		"strict":    inFlight(1),
		"in flight": inFlight(16),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			topic := redistest.Key(t)
			for n := range 100 {
				sub := newSub(t, client, change)
				messages := sub.subscribe(t, topic)
				publish(t, client, topic, fmt.Sprint(n))
				msg := receive(t, messages)
				require.Equal(t, fmt.Sprint(n), string(msg.Payload))
				msg.Ack()
				require.NoError(t, sub.Close())
				require.Empty(t, pendingOf(t, client, topic))
				require.Empty(t, consumersOf(t, client, topic))
			}
		})
	}
}

// An XACK that cannot succeed is repeated every 100 ms without a word, and the consumer
// stands still.
func TestSubscriber_RefusedAckIsReported(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t, redistest.WithACL("app on >secret ~* +@all"))
	admin := server.Admin(t)
	client := server.Client(t, redistest.As("app", "secret"))
	topic := redistest.Key(t)
	acks := redistest.NewHook()
	client.AddHook(acks)
	logger := redistest.NewRecordingLogger()
	sub := newLoggedSub(t, client, logger)
	messages := sub.subscribe(t, topic)
	require.NoError(t, admin.Do(t.Context(), "ACL", "SETUSER", "app", "-xack").Err())
	acks.Reset()
	ids := publish(t, admin, topic, "first", "second", "third")
	require.Equal(t, []string{"first", "second", "third"}, receiveAcked(t, messages, 3), "others continue")
	event := sub.events.wait(t, redischannels.EventAckFailed)
	require.ErrorIs(t, event.Err, redischannels.ErrPermission)
	require.Equal(t, ids[0], event.EntryIDs[0])
	redistest.Never(t, 3*testMinIdle, func() bool { return acks.Count("xack") > 20 }, "no back-off")
	require.Len(t, sub.events.of(redischannels.EventAckFailed), 1, "reported once")
	require.Less(t, len(logger.Lines("error")), 5)
	noMessage(t, messages) // what was acknowledged does not come again
	require.Len(t, pendingOf(t, admin, topic), 3)

	require.NoError(t, admin.Do(t.Context(), "ACL", "SETUSER", "app", "+xack").Err())
	eventuallyPending(t, admin, topic, 0)
}

// XACK answers 0, because the group is deleted or the entry is not pending any more, and
// the reply is ignored.
func TestSubscriber_AckOfAnEntryNotPendingIsReported(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	for name, vanish := range map[string]func(t *testing.T, topic, id string){
		"the group is deleted": func(t *testing.T, topic, _ string) {
			_, err := client.TxPipelined(t.Context(), func(tx redis.Pipeliner) error {
				tx.XGroupDestroy(t.Context(), topic, "g")
				tx.XGroupCreate(t.Context(), topic, "g", "$")
				return nil
			})
			require.NoError(t, err)
		},
		"another consumer has acknowledged it": func(t *testing.T, topic, id string) {
			require.NoError(t, client.XAck(t.Context(), topic, "g", id).Err())
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			topic := redistest.Key(t)
			sub := newSub(t, client)
			messages := sub.subscribe(t, topic)
			ids := publish(t, client, topic, "m")
			msg := receive(t, messages)
			vanish(t, topic, ids[0])
			msg.Ack()
			event := sub.events.wait(t, redischannels.EventAckIgnored)
			require.ErrorIs(t, event.Err, redischannels.ErrNotOwner)
			require.Equal(t, ids, event.EntryIDs)
			publish(t, client, topic, "next")
			require.Equal(t, []string{"next"}, receiveAcked(t, messages, 1), "it is not fatal")
		})
	}
}

// The entry is known to be deleted before it is acknowledged.
func TestSubscriber_AckAfterStreamWasDeletedIsReported(t *testing.T) {
	t.Parallel()
	client, topic := redistest.Shared(t).Client(t), redistest.Key(t)
	sub := newSub(t, client)
	messages := sub.subscribe(t, topic)
	ids := publish(t, client, topic, "m")
	msg := receive(t, messages)
	require.NoError(t, client.Del(t.Context(), topic).Err())
	require.Equal(t, ids, sub.events.wait(t, redischannels.EventTrimmed).EntryIDs)
	require.NoError(t, msg.Context().Err(), "the handler continues")
	msg.Ack()
	publish(t, client, topic, "next")
	require.Equal(t, []string{"next"}, receiveAcked(t, messages, 1), "it is not fatal")
	sub.events.none(t, redischannels.EventAckIgnored, redischannels.EventAckFailed, redischannels.EventError)
}

// The XACK of a batch acknowledges fewer entries than it names.
func TestSubscriber_PartialAckOfABatchIsReported(t *testing.T) {
	t.Parallel()
	server := redistest.Shared(t)
	client, topic := server.Client(t), redistest.Key(t)
	first, rest := make(chan struct{}), make(chan struct{})
	batching := server.Client(t)
	sub := newSub(t, batching, inFlight(3))
	messages := sub.subscribe(t, topic) // acknowledges an ID that nothing has, as a probe
	batching.AddHook(redistest.NewHook().BeforeOnce("xack", func(context.Context, redis.Cmder) error {
		close(first)
		<-rest // the acks that come meanwhile make one batch
		return nil
	}))
	ids := publish(t, client, topic, "a", "b", "c")
	msgs := []*message.Message{receive(t, messages), receive(t, messages), receive(t, messages)}
	msgs[0].Ack()
	<-first
	require.NoError(t, client.XAck(t.Context(), topic, "g", ids[1]).Err())
	msgs[1].Ack()
	msgs[2].Ack()
	waitDone(t, msgs[2].Context())
	close(rest)
	event := sub.events.wait(t, redischannels.EventAckIgnored)
	require.ErrorIs(t, event.Err, redischannels.ErrNotOwner)
	require.Equal(t, 1, event.Count)
	eventuallyPending(t, client, topic, 0)
}

// The late ack of a slow consumer deletes the pending entry of the new owner; when that
// crashes the message is lost.
func TestSubscriber_AckAfterLeaseLost(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	client := server.Client(t)
	for name, outcome := range map[string]func(*message.Message) bool{
		"ack":  (*message.Message).Ack,
		"nack": (*message.Message).Nack,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			topic := redistest.Key(t)
			// A cannot renew: its scripts do not reach the server.
			var cut atomic.Bool
			slow := server.Client(t)
			hook := redistest.Before("evalsha", func(context.Context, redis.Cmder) error {
				if cut.Load() {
					return errors.New("cut off")
				}
				return nil
			})
			slow.AddHook(hook)
			a := newSub(t, slow, onReads(hook))
			messages := a.subscribe(t, topic)
			ids := publish(t, client, topic, "hold")
			msg := receive(t, messages)
			cut.Store(true)

			b := startGroupChild(t, server, topic)
			require.Equal(t, "hold 1", b.WaitLine("got ", soon))
			owner := pendingOf(t, client, topic)[0].Consumer
			cut.Store(false)
			outcome(msg)
			kind := redischannels.EventAckIgnored
			if name == "nack" { // nothing is written for it; A finds out when it would deliver again
				kind = redischannels.EventLeaseLost
			}
			event := a.events.wait(t, kind)
			require.ErrorIs(t, event.Err, redischannels.ErrNotOwner)
			require.Equal(t, ids, event.EntryIDs)
			waitDone(t, msg.Context())
			pending := pendingOf(t, client, topic)
			require.Len(t, pending, 1, "the entry is still B's")
			require.Equal(t, owner, pending[0].Consumer)
			require.EqualValues(t, 2, pending[0].RetryCount)

			b.Kill()
			again := receive(t, messages)
			require.Equal(t, 3, countOf(t, again), "and comes back when B crashes")
			again.Ack()
			eventuallyPending(t, client, topic, 0)
		})
	}
}

// Messages are acknowledged before they are handled, so what fails is lost.
func TestSubscriber_FailedHandlerReceivesTheMessageAgain(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	topic := redistest.Key(t)
	sub := newSub(t, client)
	router, err := message.NewRouter(message.RouterConfig{CloseTimeout: time.Second}, watermill.NopLogger{})
	require.NoError(t, err)
	var outcomes []int
	done := make(chan struct{})
	router.AddConsumerHandler("handler", topic, sub.Subscriber, func(msg *message.Message) error {
		count, _ := redischannels.DeliveryCountFromContext(msg.Context())
		outcomes = append(outcomes, count)
		switch count {
		case 1:
			return errors.New("fails")
		case 2:
			panic("and panics")
		}
		close(done)
		return nil
	})
	running := make(chan error, 1)
	go func() { running <- router.Run(context.Background()) }()
	<-router.Running()
	publish(t, client, topic, "m")
	select {
	case <-done:
	case <-time.After(soon):
		require.FailNow(t, "the message does not come again")
	}
	require.NoError(t, router.Close())
	require.NoError(t, <-running)
	require.Equal(t, []int{1, 2, 3}, outcomes)
	require.NoError(t, sub.Close())
	require.Empty(t, pendingOf(t, client, topic))
}

// An XDEL on acknowledgement removes the message for the other groups, and as a
// command of its own leaves orphans when it does not follow. Nothing is ever deleted.
func TestSubscriber_AckDeletesNothing(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	client := server.Client(t)
	topic := redistest.Key(t)
	first := newSub(t, client, deliveries(1))
	second := newSub(t, client, func(c *redischannels.SubscriberConfig) { c.ConsumerGroup = "h" })
	messages, others := first.subscribe(t, topic), second.subscribe(t, topic)
	// Subscribe checks the permissions that a dead letter needs, by commands that do nothing.
	require.NoError(t, client.ConfigResetStat(t.Context()).Err())
	publish(t, client, topic, "a", "b", "c")
	require.Equal(t, []string{"a", "b"}, receiveAcked(t, messages, 2))
	receive(t, messages).Nack()
	first.events.wait(t, redischannels.EventDeadLettered)
	first.closeSoon(t)
	require.Equal(t, []string{"a", "b", "c"}, receiveAcked(t, others, 3))
	second.closeSoon(t)
	require.EqualValues(t, 3, client.XLen(t.Context(), topic).Val())
	stats := redistest.CommandStats(t, client)
	require.Zero(t, stats["xdel"])
	require.Zero(t, stats["xtrim"])
}

// The message that comes again after a Nack has a dead context, or one that nothing ever
// cancels.
func TestSubscriber_EveryDeliveryHasItsOwnContext(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	type key struct{}

	t.Run("acked or nacked", func(t *testing.T) {
		t.Parallel()
		topic := redistest.Key(t)
		sub := newSub(t, client)
		messages, err := sub.Subscribe(context.WithValue(t.Context(), key{}, "value"), topic)
		require.NoError(t, err)
		publish(t, client, topic, "m")
		for n := 1; n <= 3; n++ {
			msg := receive(t, messages)
			ctx := msg.Context()
			require.NoError(t, ctx.Err(), "delivery %d", n)
			require.Equal(t, "value", ctx.Value(key{}), "it has the values of the Subscribe context")
			derived, cancel := context.WithCancel(ctx)
			defer cancel()
			if n < 3 {
				msg.Nack()
			} else {
				msg.Ack()
			}
			waitDone(t, derived)
			require.ErrorIs(t, ctx.Err(), context.Canceled)
		}
	})

	for name, end := range map[string]func(cancel context.CancelFunc, sub *testSub){
		"subscription canceled": func(cancel context.CancelFunc, _ *testSub) { cancel() },
		"subscriber closed":     func(_ context.CancelFunc, sub *testSub) { go sub.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			topic := redistest.Key(t)
			sub := newSub(t, client, inFlight(2), func(c *redischannels.SubscriberConfig) {
				c.Tuning.DrainTimeout = 500 * time.Millisecond
			})
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			messages, err := sub.Subscribe(ctx, topic)
			require.NoError(t, err)
			publish(t, client, topic, "slow", "quick")
			receive(t, messages).Nack()
			quick := receive(t, messages)
			slow := receive(t, messages) // again, with a context of its own
			if string(quick.Payload) == "slow" {
				quick, slow = slow, quick
			}
			start := time.Now()
			end(cancel, sub)
			quick.Ack()
			waitDone(t, quick.Context())
			require.NoError(t, slow.Context().Err(), "handlers have DrainTimeout to finish")
			waitDone(t, slow.Context())
			require.GreaterOrEqual(t, time.Since(start), 400*time.Millisecond)
			require.ErrorIs(t, slow.Context().Err(), context.Canceled)
			waitClosed(t, messages)
			require.Equal(t, []string{entryIDOf(t, slow)}, sub.events.wait(t, redischannels.EventAbandoned).EntryIDs)
			require.Len(t, pendingOf(t, client, topic), 1)
		})
	}

	t.Run("timed out", func(t *testing.T) {
		t.Parallel()
		topic := redistest.Key(t)
		sub := newSub(t, client, inFlight(2), func(c *redischannels.SubscriberConfig) { c.HandlerTimeout = 100 * time.Millisecond })
		messages := sub.subscribe(t, topic)
		publish(t, client, topic, "m")
		late := receive(t, messages)
		deadline, ok := late.Context().Deadline()
		require.True(t, ok)
		require.WithinDuration(t, time.Now(), deadline, 200*time.Millisecond)
		waitDone(t, late.Context())
		require.ErrorIs(t, late.Context().Err(), context.DeadlineExceeded)
		again := receive(t, messages)
		require.NoError(t, again.Context().Err())
		require.Equal(t, 2, countOf(t, again))
		sub.events.wait(t, redischannels.EventHandlerTimeout)
		again.Ack()
		late.Ack()
		sub.events.wait(t, redischannels.EventAckIgnored)
	})
}

// The reply to an XACK is lost, and the second one answers 0: the message was acknowledged, and
// not too late.
func TestSubscriber_LostAckReplyIsNoLateAck(t *testing.T) {
	t.Parallel()
	for _, retries := range []int{-1, 3} {
		for name, lost := range map[string]redistest.Match{"XACK": redistest.Command("XACK"), "script": scriptOf(t, "ack")} {
			t.Run(fmt.Sprintf("%s, %d retries", name, retries), func(t *testing.T) {
				t.Parallel()
				proxy, client, direct := pubProxy(t, func(o *redis.Options) { o.MaxRetries = retries })
				topic := redistest.Key(t)
				sub := newSub(t, client, inFlight(2), minIdle(time.Minute))
				messages := sub.subscribe(t, topic)
				ids := publish(t, direct, topic, "taken", "m")
				taken, msg := receive(t, messages), receive(t, messages)
				require.Equal(t, ids, []string{entryIDOf(t, taken), entryIDOf(t, msg)})
				if name == "script" { // which acknowledges what an XACK may have
					proxy.DropRequest(1, redistest.Command("XACK"))
				}
				rule := proxy.DropReplyIf(1, lost, func(reply []byte) bool { return reply[0] != '-' })
				msg.Ack()
				rule.Wait(t, soon)
				eventuallyPending(t, direct, topic, 1)
				require.NoError(t, direct.XAck(t.Context(), topic, "g", ids[0]).Err())
				taken.Ack()
				require.Equal(t, ids[:1], sub.events.wait(t, redischannels.EventAckIgnored).EntryIDs)
				sub.closeSoon(t)
				require.Len(t, sub.events.of(redischannels.EventAckIgnored), 1, "the other was in time")
				sub.events.none(t, redischannels.EventAckFailed, redischannels.EventAbandoned)
			})
		}
	}
}

// The server cannot be reached while a message is acknowledged, and another consumer claims the
// message and finishes with it: an acknowledgement that was never sent was taken for one whose
// reply was lost, and no report said that the message was handled twice.
func TestSubscriber_AckThatCouldNotBeSentIsLate(t *testing.T) {
	t.Parallel()
	for _, retries := range []int{-1, 3} {
		t.Run(fmt.Sprintf("%d retries", retries), func(t *testing.T) {
			t.Parallel()
			proxy, client, direct := pubProxy(t, func(o *redis.Options) { o.MaxRetries = retries })
			topic := redistest.Key(t)
			sub := newSub(t, client, minIdle(time.Second))
			messages := sub.subscribe(t, topic)
			ids := publish(t, direct, topic, "m")
			msg := receive(t, messages)
			proxy.Refuse(true)
			msg.Ack()
			require.Equal(t, ids, sub.events.wait(t, redischannels.EventAckFailed).EntryIDs)
			other := newSub(t, direct, minIdle(time.Second))
			require.Equal(t, []string{"m"}, receiveAcked(t, other.subscribe(t, topic), 1))
			eventuallyPending(t, direct, topic, 0)
			proxy.Refuse(false)
			require.Equal(t, ids, sub.events.wait(t, redischannels.EventAckIgnored).EntryIDs)
		})
	}
}

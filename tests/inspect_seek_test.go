package tests

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/inspect"
	"github.com/flaminco/redischannels/internal/redistest"
)

// eventuallySought seeks as soon as what is buffered is released.
func eventuallySought(t *testing.T, control *inspect.Inspector, topic string, options inspect.SeekOptions) {
	t.Helper()
	redistest.Eventually(t, soon, func() bool {
		err := control.Seek(t.Context(), topic, "g", options)
		if err != nil {
			require.ErrorIs(t, err, inspect.ErrGroupBusy)
		}
		return err == nil
	}, "nothing is in flight")
}

// The figures of a plan are what then happens, with and without an order, and the order is that of the stream.
func TestSeek_PlanIsTheOutcome(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*redischannels.SubscriberConfig){
		"strict":   inFlight(1),
		"by key":   oneKey,
		"no order": inFlight(3),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			client, topic := redistest.Shared(t).Client(t), redistest.Key(t)
			control := newInspector(t, client)
			sub := newSub(t, client, change, tuned(func(c *redischannels.Tuning) { c.Prefetch = 50 }))
			messages := sub.subscribe(t, topic)
			ids := publish(t, client, topic, payloadsUpTo(1, 30)...)
			receiveAcked(t, messages, 8)
			require.NoError(t, control.Pause(t.Context(), topic, "g", inspect.PauseOptions{}))
			eventuallyState(t, sub, redischannels.StatePaused)
			options := inspect.SeekOptions{To: redischannels.AfterID(ids[4])}
			plan, err := control.SeekPlan(t.Context(), topic, "g", options)
			require.NoError(t, err)
			require.Equal(t, groupOf(t, client, topic).LastDeliveredID, plan.From)
			require.Equal(t, ids[4], plan.To)
			require.True(t, plan.Paused)
			require.Zero(t, plan.Skipped)
			require.Zero(t, plan.Pending)
			require.False(t, plan.Trimmed)
			require.Equal(t, ids[0], plan.First)
			require.EqualValues(t, slices.Index(ids, plan.From)+1-5, plan.Redelivered)
			before := consumersOf(t, client, topic)
			eventuallySought(t, control, topic, options)
			require.Empty(t, pendingOf(t, client, topic))
			require.NoError(t, control.Resume(t.Context(), topic, "g"))
			got := receiveAcked(t, messages, 25)
			if name == "no order" {
				require.ElementsMatch(t, payloadsUpTo(6, 30), got)
			} else {
				require.Equal(t, payloadsUpTo(6, 30), got)
			}
			noMessage(t, messages)
			require.NotSubset(t, before, []string{sub.Stats()[0].Consumer}, "it has a new name")
			eventuallyPending(t, client, topic, 0)
			sub.events.none(t, redischannels.EventTrimmed, redischannels.EventError, redischannels.EventDisconnected)
		})
	}
}

// While a handler is at work the group is busy, and the error names its consumer.
func TestSeek_RefusedWhileAtWork(t *testing.T) {
	t.Parallel()
	client, topic := redistest.Shared(t).Client(t), redistest.Key(t)
	control := newInspector(t, client)
	sub := newSub(t, client, minIdle(300*time.Millisecond))
	messages := sub.subscribe(t, topic)
	publish(t, client, topic, "1", "2")
	options := inspect.SeekOptions{To: redischannels.Oldest}
	require.ErrorIs(t, control.Seek(t.Context(), topic, "g", options), inspect.ErrNotPaused)
	held := receive(t, messages)
	require.NoError(t, control.Pause(t.Context(), topic, "g", inspect.PauseOptions{}))
	eventuallyState(t, sub, redischannels.StatePaused)
	name := sub.Stats()[0].Consumer
	redistest.Never(t, time.Second, func() bool { // over many renewals
		return control.Seek(t.Context(), topic, "g", options) == nil
	}, "it is sought")
	err := control.Seek(t.Context(), topic, "g", options)
	require.ErrorIs(t, err, inspect.ErrGroupBusy)
	require.ErrorContains(t, err, name)
	plan, err := control.SeekPlan(t.Context(), topic, "g", options)
	require.NoError(t, err)
	require.Equal(t, []string{name}, plan.Busy)
	held.Ack()
	eventuallySought(t, control, topic, options)
	require.NoError(t, control.Resume(t.Context(), topic, "g"))
	require.Equal(t, []string{"1", "2"}, receiveAcked(t, messages, 2))
	require.Equal(t, []string{"pause", "seek", "resume"}, auditActions(t, client, topic))
}

// Pending entries up to the new position, deferred retries and returned entries stay or go as asked.
func TestSeek_KeepOrDropPending(t *testing.T) {
	t.Parallel()
	for name, drop := range map[string]bool{"keep": false, "drop": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			client, topic := redistest.Shared(t).Client(t), redistest.Key(t)
			control := newInspector(t, client)
			sub := newSub(t, client, inFlight(1), func(c *redischannels.SubscriberConfig) { c.StartFrom = redischannels.Oldest })
			require.NoError(t, sub.SubscribeInitialize(topic))
			ids := publish(t, client, topic, payloadsUpTo(1, 6)...)
			deliverTo(t, client, topic, "crashed", 4, time.Hour)
			require.NoError(t, client.XGroupCreateConsumer(t.Context(), topic, "g", "idle").Err())
			var values []any
			for name, value := range client.XRange(t.Context(), topic, ids[0], ids[0]).Val()[0].Values {
				values = append(values, name, value)
			}
			values = append(values, "_return_entry_id", ids[0], "_return_reason", "x", "_return_count", "1")
			require.NoError(t, client.XAdd(t.Context(), &redis.XAddArgs{Stream: returnStream(topic, "g"), Values: values}).Err())
			due := "{" + topic + "}:due:g"
			require.NoError(t, client.ZAdd(t.Context(), due, redis.Z{Score: 1e15, Member: "later"}).Err())
			require.NoError(t, client.HSet(t.Context(), "{"+topic+"}:delayed", "later", "x", "other", "y").Err())
			require.NoError(t, control.Pause(t.Context(), topic, "g", inspect.PauseOptions{}))
			options := inspect.SeekOptions{To: redischannels.AfterID(ids[1]), DropPending: drop}
			plan, err := control.SeekPlan(t.Context(), topic, "g", options)
			require.NoError(t, err)
			require.Equal(t, inspect.SeekPlan{
				From: ids[3], To: ids[1], Redelivered: 2, First: ids[0], Pending: 2, Deferred: 1, Returned: 1, Paused: true, Busy: []string{},
			}, plan)
			require.NoError(t, control.Seek(t.Context(), topic, "g", options))
			require.NotContains(t, consumersOf(t, client, topic), "idle")
			messages := sub.subscribe(t, topic)
			require.NoError(t, control.Resume(t.Context(), topic, "g"))
			if drop {
				require.Equal(t, payloadsUpTo(3, 6), receiveAcked(t, messages, 4))
				require.Zero(t, client.ZCard(t.Context(), due).Val())
				require.Equal(t, map[string]string{"other": "y"}, client.HGetAll(t.Context(), "{"+topic+"}:delayed").Val())
			} else {
				require.ElementsMatch(t, append(payloadsUpTo(1, 6), "1"), receiveAcked(t, messages, 7))
				require.EqualValues(t, 1, client.ZCard(t.Context(), due).Val())
			}
			noMessage(t, messages)
		})
	}
}

// A seek forwards skips entries.
func TestSeek_Forwards(t *testing.T) {
	t.Parallel()
	client, topic := redistest.Shared(t).Client(t), redistest.Key(t)
	control := newInspector(t, client)
	sub := newSub(t, client)
	messages := sub.subscribe(t, topic)
	require.NoError(t, control.Pause(t.Context(), topic, "g", inspect.PauseOptions{}))
	eventuallyState(t, sub, redischannels.StatePaused)
	ids := publish(t, client, topic, payloadsUpTo(1, 6)...)
	options := inspect.SeekOptions{To: redischannels.Latest}
	plan, err := control.SeekPlan(t.Context(), topic, "g", options)
	require.NoError(t, err)
	require.EqualValues(t, 6, plan.Skipped)
	require.Equal(t, ids[5], plan.To)
	require.NoError(t, control.Seek(t.Context(), topic, "g", options))
	publish(t, client, topic, "7")
	require.NoError(t, control.Resume(t.Context(), topic, "g"))
	require.Equal(t, []string{"7"}, receiveAcked(t, messages, 1))
	sub.events.none(t, redischannels.EventTrimmed, redischannels.EventLeaseLost)
}

// A consumer is frozen over the seek: what its old handler acknowledges then is not what was delivered again.
func TestSeek_FrozenConsumer(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	client, topic := server.Client(t), redistest.Key(t)
	control := newInspector(t, client)
	child := startConsumer(t, server, topic, "IN_FLIGHT=3", "MIN_IDLE=300")
	child.WaitLine("live", soon)
	ids := publish(t, client, topic, payloadsUpTo(1, 3)...)
	for range ids {
		child.WaitLine("got ", soon)
	}
	child.Pause()
	require.NoError(t, control.Pause(t.Context(), topic, "g", inspect.PauseOptions{}))
	eventuallySought(t, control, topic, inspect.SeekOptions{To: redischannels.Oldest})
	require.NoError(t, control.Resume(t.Context(), topic, "g"))
	for _, id := range ids {
		_, err := child.Stdin().Write([]byte("ack " + id + "\n"))
		require.NoError(t, err)
	}
	child.Resume()
	for range ids {
		child.WaitLine("got ", soon) // each a second time
	}
	require.Len(t, pendingOf(t, client, topic), 3, "nothing was acknowledged by the old attempts")
	for _, id := range ids {
		_, err := child.Stdin().Write([]byte("ack " + id + "\n"))
		require.NoError(t, err)
	}
	eventuallyPending(t, client, topic, 0)
}

// A consumer that was frozen in a read takes what was sought under its old name, and neither renews nor
// acknowledges it for the old attempt.
func TestSeek_OldNameOwnsNothing(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	client, topic := server.Client(t), redistest.Key(t)
	child := startConsumer(t, server, topic, "IN_FLIGHT=3", "MIN_IDLE=300")
	child.WaitLine("live", soon)
	id := publish(t, client, topic, "1")[0]
	child.WaitLine("got ", soon)
	name := pendingOf(t, client, topic)[0].Consumer
	child.Pause()
	redistest.Eventually(t, soon, func() bool { return pendingOf(t, client, topic)[0].Idle >= 300*time.Millisecond }, "its lease is over")
	control := newInspector(t, client)
	require.NoError(t, control.Pause(t.Context(), topic, "g", inspect.PauseOptions{}))
	require.NoError(t, control.Seek(t.Context(), topic, "g", inspect.SeekOptions{To: redischannels.Oldest}))
	require.NoError(t, control.Resume(t.Context(), topic, "g"))
	read := client.XReadGroup(t.Context(), &redis.XReadGroupArgs{Group: "g", Consumer: name, Streams: []string{topic, ">"}, Block: -1})
	require.NoError(t, read.Err())
	_, err := child.Stdin().Write([]byte("ack " + id + "\n"))
	require.NoError(t, err)
	child.Resume()
	child.WaitLine("got "+id, soon)
	require.Len(t, pendingOf(t, client, topic), 1, "it was not acknowledged by the old attempt")
}

// A group that is lost after a seek is created again where it was sought.
func TestSeek_LostGroup(t *testing.T) {
	t.Parallel()
	client, topic := redistest.Shared(t).Client(t), redistest.Key(t)
	control := newInspector(t, client)
	sub := newSub(t, client)
	messages := sub.subscribe(t, topic)
	ids := publish(t, client, topic, payloadsUpTo(1, 6)...)
	receiveAcked(t, messages, 6)
	require.NoError(t, control.Pause(t.Context(), topic, "g", inspect.PauseOptions{}))
	eventuallyState(t, sub, redischannels.StatePaused)
	eventuallySought(t, control, topic, inspect.SeekOptions{To: redischannels.AfterID(ids[2])})
	require.NoError(t, client.XGroupDestroy(t.Context(), topic, "g").Err())
	require.NoError(t, client.HDel(t.Context(), controlOf(topic), "pause:g").Err())
	require.Equal(t, payloadsUpTo(4, 6), receiveAcked(t, messages, 3))
	noMessage(t, messages)
}

// A subscription that has scanned before a pause and scans after the end of it detects the seek by the first script that
// is refused, and reports no error.
func TestSeek_FoundByTheFirstRefusal(t *testing.T) {
	t.Parallel()
	client, topic := redistest.Shared(t).Client(t), redistest.Key(t)
	sub := newSub(t, client, tuned(func(c *redischannels.Tuning) { c.MinIdle, c.ClaimInterval = 5*time.Minute, 2*time.Minute }))
	messages := sub.subscribe(t, topic)
	ids := publish(t, client, topic, payloadsUpTo(1, 3)...)
	receiveAcked(t, messages, 3)
	name := sub.Stats()[0].Consumer
	require.NoError(t, client.HSet(t.Context(), controlOf(topic), "seek:g", "1 "+ids[0]+" token").Err())
	require.NoError(t, client.XGroupDestroy(t.Context(), topic, "g").Err())
	require.Equal(t, []string{"2", "3"}, receiveAcked(t, messages, 2))
	require.NotEqual(t, name, sub.Stats()[0].Consumer)
	noMessage(t, messages)
	sub.events.none(t, redischannels.EventError, redischannels.EventDisconnected, redischannels.EventTrimmed)
}

// An attempt that is in progress although the group was sought, as that of a process that was frozen, ends: its entry gets
// another attempt, and its ack changes nothing.
func TestSeek_EndsAttempts(t *testing.T) {
	t.Parallel()
	client, topic := redistest.Shared(t).Client(t), redistest.Key(t)
	sub := newSub(t, client, inFlight(2), tuned(func(c *redischannels.Tuning) {
		c.MinIdle, c.BlockTime = 5*time.Minute, time.Minute
	}))
	messages := sub.subscribe(t, topic)
	id := publish(t, client, topic, "1")[0]
	old := receive(t, messages)
	require.ErrorIs(t, redis.NewScript(`redis.call('HSET', KEYS[2], 'seek:g', '1 0-0 token')
		redis.call('XACK', KEYS[1], 'g', ARGV[1])
		redis.call('XGROUP', 'SETID', KEYS[1], 'g', '0')`).Run(t.Context(), client, []string{topic, controlOf(topic)}, id).Err(), redis.Nil)
	redistest.Eventually(t, soon, func() bool { return old.Context().Err() != nil }, "the attempt ends")
	again := receive(t, messages)
	require.Equal(t, "1", string(again.Payload))
	old.Ack()
	sub.events.wait(t, redischannels.EventAckIgnored)
	require.Len(t, pendingOf(t, client, topic), 1)
	require.Equal(t, []string{id}, sub.events.of(redischannels.EventLeaseLost)[0].EntryIDs)
	again.Ack()
	eventuallyPending(t, client, topic, 0)
}

// Where the reply is lost the client repeats the script, which does nothing twice.
func TestSeek_LostReply(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	client, topic := server.Client(t), redistest.Key(t)
	control := newInspector(t, client)
	require.NoError(t, newSub(t, client).SubscribeInitialize(topic))
	require.NoError(t, control.Pause(t.Context(), topic, "g", inspect.PauseOptions{}))
	proxy := redistest.NewProxy(t, server.Addr())
	lossy := server.Client(t, redistest.Via(proxy))
	lost := false
	proxy.DropReplyIf(1, redistest.Contains(topic), func(reply []byte) bool {
		lost = strings.Contains(string(reply), "sought")
		return lost
	})
	require.NoError(t, newInspector(t, lossy).Seek(t.Context(), topic, "g", inspect.SeekOptions{To: redischannels.Oldest}))
	require.True(t, lost)
	require.Equal(t, []string{"pause", "seek"}, auditActions(t, client, topic))
	require.Regexp(t, "^1 0-0 ", client.HGet(t.Context(), controlOf(topic), "seek:g").Val())
}

// The keys of a topic are in one slot, and so is everything that a script touches.
func TestSeek_Cluster(t *testing.T) {
	t.Parallel()
	client := redistest.StartCluster(t, 3).Client(t)
	for range 3 {
		topic := redistest.Key(t)
		control := newInspector(t, client)
		sub := newSub(t, client)
		messages := sub.subscribe(t, topic)
		publish(t, client, topic, "a")
		receiveAcked(t, messages, 1)
		require.NoError(t, control.Pause(t.Context(), topic, "g", inspect.PauseOptions{}))
		eventuallyState(t, sub, redischannels.StatePaused)
		eventuallySought(t, control, topic, inspect.SeekOptions{To: redischannels.Oldest, DropPending: true})
		require.NoError(t, control.Resume(t.Context(), topic, "g"))
		require.Equal(t, []string{"a"}, receiveAcked(t, messages, 1))
	}
}

// A plan says what is trimmed already, and the errors say what is wrong.
func TestSeek_TrimmedAndErrors(t *testing.T) {
	t.Parallel()
	client, topic := redistest.Shared(t).Client(t), redistest.Key(t)
	control := newInspector(t, client)
	require.NoError(t, newSub(t, client).SubscribeInitialize(topic))
	ids := publish(t, client, topic, payloadsUpTo(1, 6)...)
	require.NoError(t, client.XTrimMinID(t.Context(), topic, ids[2]).Err())
	for to, trimmed := range map[redischannels.Position]bool{
		redischannels.Oldest: true, redischannels.AfterID(ids[0]): true, redischannels.AfterID(ids[2]): false,
	} {
		plan, err := control.SeekPlan(t.Context(), topic, "g", inspect.SeekOptions{To: to})
		require.NoError(t, err)
		require.Equal(t, trimmed, plan.Trimmed, to)
		require.Equal(t, ids[2], plan.First)
	}
	_, err := control.SeekPlan(t.Context(), topic, "h", inspect.SeekOptions{To: redischannels.Oldest})
	require.ErrorIs(t, err, inspect.ErrNoGroup)
	for _, to := range []redischannels.Position{"", "x"} {
		err := control.Seek(t.Context(), topic, "g", inspect.SeekOptions{To: to})
		require.ErrorIs(t, err, redischannels.ErrInvalidArgument)
		require.ErrorContains(t, err, "SeekOptions.To")
	}
}

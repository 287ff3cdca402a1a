package tests

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/inspect"
	"github.com/flaminco/redischannels/internal/redistest"
)

func newInspector(t *testing.T, client redis.UniversalClient) *inspect.Inspector {
	t.Helper()
	i, err := inspect.New(inspect.Config{Client: client, Actor: "tester"}, nil)
	require.NoError(t, err)
	return i
}

func auditOf(topic string) string { return "{" + topic + "}:audit" }

// eventuallyState waits until the only subscription of a subscriber is in a state.
func eventuallyState(t *testing.T, sub *testSub, state redischannels.SubscriptionState) {
	t.Helper()
	redistest.Eventually(t, soon, func() bool {
		stats := sub.Stats()
		return len(stats) == 1 && stats[0].State == state
	}, "it is %s", state)
}

// halted waits until a paused subscription is in no read.
func halted(t *testing.T, sub *testSub, admin *redis.Client) {
	t.Helper()
	eventuallyState(t, sub, redischannels.StatePaused)
	redistest.Eventually(t, soon, func() bool { return redistest.BlockedClients(t, admin) == 0 }, "nothing reads")
}

func payloadsUpTo(first, last int) (payloads []string) {
	for n := first; n <= last; n++ {
		payloads = append(payloads, strconv.Itoa(n))
	}
	return payloads
}

func oneKey(c *redischannels.SubscriberConfig) {
	c.MaxInFlight, c.OrderingKey = 10, func(*message.Message) string { return "key" }
}

// A handler in progress finishes, and nothing else starts. What is buffered returns to the group; where there
// is an order it is the same over Resume.
func TestPause_EveryOrder(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*redischannels.SubscriberConfig){
		"strict":   inFlight(1),
		"by key":   oneKey,
		"no order": inFlight(3),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := redistest.Start(t)
			client, topic := server.Client(t), redistest.Key(t)
			control := newInspector(t, client)
			sub := newSub(t, client, change, tuned(func(c *redischannels.Tuning) { c.Prefetch, c.BlockTime = 50, 100*time.Millisecond }))
			messages := sub.subscribe(t, topic)
			publish(t, client, topic, payloadsUpTo(1, 30)...)
			got := receiveAcked(t, messages, 8)
			held := receive(t, messages)
			require.NoError(t, control.Pause(t.Context(), topic, "g", inspect.PauseOptions{Reason: "deploy"}))
			halted(t, sub, client)
			publish(t, client, topic, payloadsUpTo(31, 40)...)
			noMessage(t, messages)
			held.Ack()
			redistest.Eventually(t, soon, func() bool { return sub.Stats()[0].InFlight+sub.Stats()[0].Acking == 0 }, "its ack is written")
			noMessage(t, messages)

			stats, err := sub.GroupStats(t.Context(), topic)
			require.NoError(t, err)
			require.True(t, stats.Paused)
			require.Zero(t, stats.PausedFor)
			require.Equal(t, "deploy", stats.PauseReason)
			require.GreaterOrEqual(t, stats.Lag, int64(10))
			require.EqualValues(t, 40-9, stats.Lag+stats.Pending, "nothing is lost, and the ack is there")
			redistest.Eventually(t, soon, func() bool {
				for _, p := range pendingOf(t, client, topic) {
					if p.Consumer != "requeue" {
						return false
					}
				}
				return true
			}, "where they are pending")
			require.Empty(t, sub.events.of(redischannels.EventLeaseLost))

			require.NoError(t, control.Resume(t.Context(), topic, "g"))
			got = append(append(got, string(held.Payload)), receiveAcked(t, messages, 31)...)
			if name == "no order" {
				require.ElementsMatch(t, payloadsUpTo(1, 40), got)
			} else {
				require.Equal(t, payloadsUpTo(1, 40), got)
			}
			eventuallyState(t, sub, redischannels.StateLive)
			eventuallyPending(t, client, topic, 0)
			sub.events.none(t, redischannels.EventError, redischannels.EventStalled, redischannels.EventDisconnected)
		})
	}
}

// Pauses while messages flow: no message is lost or out of order.
func TestPause_OrderOverResume(t *testing.T) {
	t.Parallel()
	client, topic := redistest.Shared(t).Client(t), redistest.Key(t)
	control := newInspector(t, client)
	sub := newSub(t, client)
	h := handle(sub.subscribe(t, topic), 120, work(0))
	for i := range 3 {
		publish(t, client, topic, payloadsUpTo(40*i+1, 40*i+20)...)
		require.NoError(t, control.Pause(t.Context(), topic, "g", inspect.PauseOptions{}))
		publish(t, client, topic, payloadsUpTo(40*i+21, 40*i+40)...)
		eventuallyState(t, sub, redischannels.StatePaused)
		require.NoError(t, control.Resume(t.Context(), topic, "g"))
	}
	redistest.Eventually(t, soon, func() bool { return h.len() == 120 }, "all are handled")
	require.Equal(t, payloadsUpTo(1, 120), h.payloads())
}

// A message that was offered and not received, as by a router whose handlers are busy, is withdrawn, whenever
// its group is paused.
func TestPause_WithdrawsOffers(t *testing.T) {
	t.Parallel()
	client, topic := redistest.Shared(t).Client(t), redistest.Key(t)
	control := newInspector(t, client)
	sub := newSub(t, client, tuned(func(c *redischannels.Tuning) { c.ClaimInterval = time.Minute }))
	messages := sub.subscribe(t, topic)
	publish(t, client, topic, "a")
	redistest.Eventually(t, soon, func() bool { return sub.Stats()[0].InFlight == 1 }, "it is offered")
	require.NoError(t, control.Pause(t.Context(), topic, "g", inspect.PauseOptions{}))
	redistest.Eventually(t, soon, func() bool { return sub.Stats()[0].InFlight == 0 }, "it is withdrawn")
	noMessage(t, messages)
	require.NoError(t, control.Resume(t.Context(), topic, "g"))
	require.Equal(t, 1, countOf(t, receive(t, messages)), "it was not delivered")
}

// An idle subscription that has not looked reads an entry, looks, and does not deliver it.
func TestPause_FirstMessageAfterLong(t *testing.T) {
	t.Parallel()
	client, topic := redistest.Shared(t).Client(t), redistest.Key(t)
	control := newInspector(t, client)
	sub := newSub(t, client, tuned(func(c *redischannels.Tuning) { c.ClaimInterval = time.Minute }))
	messages := sub.subscribe(t, topic)
	publish(t, client, topic, "a")
	require.Equal(t, []string{"a"}, receiveAcked(t, messages, 1))
	require.NoError(t, control.Pause(t.Context(), topic, "g", inspect.PauseOptions{}))
	redistest.Eventually(t, soon, func() bool {
		looked := sub.Stats()[0].State == redischannels.StatePaused
		if !looked { // each is acknowledged, until the last check is too old
			publish(t, client, topic, "b")
			select {
			case msg := <-messages:
				msg.Ack()
			case <-time.After(10 * time.Millisecond):
			}
		}
		return looked
	}, "it has looked")
	noMessage(t, messages)
}

// Consumers of a paused group do not claim each other's entries, and what a crashed one has left waits.
func TestPause_NobodyClaims(t *testing.T) {
	t.Parallel()
	client, topic := redistest.Start(t).Client(t), redistest.Key(t)
	control := newInspector(t, client)
	require.NoError(t, newSub(t, client).SubscribeInitialize(topic))
	publish(t, client, topic, "a", "b")
	deliverTo(t, client, topic, "crashed", 1, time.Hour)
	require.NoError(t, control.Pause(t.Context(), topic, "g", inspect.PauseOptions{}))
	first := newSub(t, client)
	second := newSub(t, client, inFlight(5))
	one, two := first.subscribe(t, topic), second.subscribe(t, topic)
	eventuallyState(t, first, redischannels.StatePaused)
	eventuallyState(t, second, redischannels.StatePaused)
	redistest.ResetStats(t, client)
	redistest.Eventually(t, soon, func() bool { return redistest.CommandStats(t, client)["evalsha"] > 20 }, "many scans")
	pending := pendingOf(t, client, topic)
	require.Len(t, pending, 1)
	require.Equal(t, "crashed", pending[0].Consumer)
	require.Zero(t, redistest.CommandStats(t, client)["xautoclaim"])
	require.NoError(t, control.Resume(t.Context(), topic, "g"))
	got := map[string]bool{}
	for range 2 {
		select {
		case msg := <-one:
			got[string(msg.Payload)] = msg.Ack()
		case msg := <-two:
			got[string(msg.Payload)] = msg.Ack()
		case <-time.After(soon):
			t.Fatal("nothing comes")
		}
	}
	require.Equal(t, map[string]bool{"a": true, "b": true}, got)
}

// A pause outlives its consumers and, with an append-only file, its server.
func TestPause_OverRestarts(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t, redistest.AOF())
	client, topic := server.Client(t), redistest.Key(t)
	control := newInspector(t, client)
	sub := newSub(t, client)
	messages := sub.subscribe(t, topic)
	publish(t, client, topic, payloadsUpTo(1, 10)...)
	got := receiveAcked(t, messages, 3)
	require.NoError(t, control.Pause(t.Context(), topic, "g", inspect.PauseOptions{Reason: "incident"}))
	eventuallyState(t, sub, redischannels.StatePaused)
	server.Kill()
	server.Restart()
	redistest.Eventually(t, soon, func() bool {
		stats, err := sub.GroupStats(t.Context(), topic)
		return err == nil && stats.Paused && stats.PauseReason == "incident"
	}, "the server is back")
	eventuallyState(t, sub, redischannels.StatePaused)
	noMessage(t, messages)
	sub.closeSoon(t)

	next := newSub(t, client)
	messages = next.subscribe(t, topic)
	require.Equal(t, redischannels.StatePaused, next.Stats()[0].State, "from the beginning")
	noMessage(t, messages)
	require.Equal(t, []string{"pause"}, auditActions(t, client, topic))
	require.NoError(t, control.Resume(t.Context(), topic, "g"))
	require.Equal(t, payloadsUpTo(1, 10), append(got, receiveAcked(t, messages, 7)...))
}

// A pause with an end is over by the clock of the server.
func TestPause_Until(t *testing.T) {
	t.Parallel()
	client, topic := redistest.Shared(t).Client(t), redistest.Key(t)
	control := newInspector(t, client)
	require.NoError(t, newSub(t, client).SubscribeInitialize(topic))
	publish(t, client, topic, "a")
	until := serverTime(t, client).Add(time.Second)
	require.NoError(t, control.Pause(t.Context(), topic, "g", inspect.PauseOptions{Until: until}))
	sub := newSub(t, client)
	stats, err := sub.GroupStats(t.Context(), topic)
	require.NoError(t, err)
	require.LessOrEqual(t, stats.PausedFor, time.Second)
	messages := sub.subscribe(t, topic)
	require.Equal(t, []string{"a"}, receiveAcked(t, messages, 1))
	require.False(t, serverTime(t, client).Before(until.Truncate(time.Millisecond)))
	stats, err = sub.GroupStats(t.Context(), topic)
	require.NoError(t, err)
	require.False(t, stats.Paused)
}

// Only the group on the topic is paused.
func TestPause_OtherGroups(t *testing.T) {
	t.Parallel()
	client, topic := redistest.Shared(t).Client(t), redistest.Key(t)
	control := newInspector(t, client)
	paused := newSub(t, client)
	messages := paused.subscribe(t, topic)
	other := newSub(t, client, func(c *redischannels.SubscriberConfig) { c.ConsumerGroup = "other" }).subscribe(t, topic)
	every := newSub(t, client, fanOut).subscribe(t, topic)
	require.NoError(t, control.Pause(t.Context(), topic, "g", inspect.PauseOptions{}))
	eventuallyState(t, paused, redischannels.StatePaused)
	publish(t, client, topic, "a")
	require.Equal(t, []string{"a"}, receiveAcked(t, other, 1))
	require.Equal(t, []string{"a"}, receiveAcked(t, every, 1))
	noMessage(t, messages)
	require.Less(t, paused.closeSoon(t), 5*time.Second)
}

// auditActions returns the actions in the audit stream of a topic.
func auditActions(t *testing.T, client redis.UniversalClient, topic string) (actions []string) {
	t.Helper()
	for _, line := range client.XRange(t.Context(), auditOf(topic), "-", "+").Val() {
		actions = append(actions, fmt.Sprint(line.Values["action"]))
	}
	return actions
}

// Each change is one line, and what changes nothing is none.
func TestPause_Audit(t *testing.T) {
	t.Parallel()
	client, topic := redistest.Shared(t).Client(t), redistest.Key(t)
	control := newInspector(t, client)
	require.NoError(t, newSub(t, client).SubscribeInitialize(topic))
	until := serverTime(t, client).Add(time.Hour).Truncate(time.Millisecond)
	require.NoError(t, control.Resume(t.Context(), topic, "g"))
	require.Empty(t, auditActions(t, client, topic))
	for range 2 {
		require.NoError(t, control.Pause(t.Context(), topic, "g", inspect.PauseOptions{Until: until, Reason: "two\nlines"}))
	}
	for range 2 {
		require.NoError(t, control.Resume(t.Context(), topic, "g"))
	}
	lines := client.XRange(t.Context(), auditOf(topic), "-", "+").Val()
	require.Len(t, lines, 2)
	require.Equal(t, map[string]any{
		"who": "tester", "action": "pause", "group": "g", "until": strconv.FormatInt(until.UnixMilli(), 10), "reason": "two\nlines",
	}, lines[0].Values)
	require.Equal(t, map[string]any{"who": "tester", "action": "resume", "group": "g"}, lines[1].Values)

	// Where no line can be written nothing is done.
	require.NoError(t, client.Del(t.Context(), auditOf(topic)).Err())
	require.NoError(t, client.Set(t.Context(), auditOf(topic), "x", 0).Err())
	require.ErrorIs(t, control.Pause(t.Context(), topic, "g", inspect.PauseOptions{}), redischannels.ErrWrongType)
	stats, err := newSub(t, client).GroupStats(t.Context(), topic)
	require.NoError(t, err)
	require.False(t, stats.Paused)
}

func TestPause_Errors(t *testing.T) {
	t.Parallel()
	client, topic := redistest.Shared(t).Client(t), redistest.Key(t)
	control := newInspector(t, client)
	require.NoError(t, newSub(t, client).SubscribeInitialize(topic))
	now := serverTime(t, client)
	text := redistest.Key(t, "text")
	require.NoError(t, client.Set(t.Context(), text, "x", 0).Err())
	for name, c := range map[string]struct {
		topic, group string
		options      inspect.PauseOptions
		is           error
		says         []string
	}{
		"no topic":   {group: "g", is: redischannels.ErrInvalidArgument, says: []string{"topic", "must not be empty"}},
		"no group":   {topic: topic, is: redischannels.ErrInvalidArgument, says: []string{"group", "must not be empty"}},
		"unknown":    {topic: topic, group: "h", is: inspect.ErrNoGroup, says: []string{topic, `"h"`, "are: g"}},
		"no stream":  {topic: topic + "x", group: "g", is: inspect.ErrNoGroup, says: []string{topic + "x"}},
		"past":       {topic: topic, group: "g", options: inspect.PauseOptions{Until: now.Add(-time.Hour)}, is: redischannels.ErrInvalidArgument, says: []string{"PauseOptions.Until", "must be later than now", now.UTC().Format("2006-01-02")}},
		"reason":     {topic: topic, group: "g", options: inspect.PauseOptions{Reason: strings.Repeat("x", 1025)}, is: redischannels.ErrInvalidArgument, says: []string{"PauseOptions.Reason", "1024", "1025"}},
		"no base":    {topic: "a}b", group: "g", is: redischannels.ErrInvalidArgument, says: []string{"SideKeys must be set"}},
		"wrong type": {topic: text, group: "g", is: redischannels.ErrWrongType},
	} {
		err := control.Pause(t.Context(), c.topic, c.group, c.options)
		require.ErrorIs(t, err, c.is, name)
		for _, text := range c.says {
			require.ErrorContains(t, err, text, name)
		}
	}
	require.ErrorIs(t, control.Resume(t.Context(), topic, "h"), inspect.ErrNoGroup)
	require.NoError(t, newSub(t, client).SubscribeInitialize(topic))
	require.NoError(t, control.Pause(t.Context(), topic, "g", inspect.PauseOptions{}))
	require.NoError(t, client.XGroupCreateMkStream(t.Context(), "{"+topic+"}", "g", "0").Err())
	require.ErrorIs(t, control.Pause(t.Context(), "{"+topic+"}", "g", inspect.PauseOptions{}), redischannels.ErrTopicCollision)
	require.Empty(t, client.HGet(t.Context(), controlOf(topic+"x"), "topic").Val(), "nothing was made")

	_, err := inspect.New(inspect.Config{Actor: strings.Repeat("x", 257)}, nil)
	require.ErrorIs(t, err, redischannels.ErrInvalidConfig)
	require.ErrorContains(t, err, "Config.Client")
	require.ErrorContains(t, err, "Config.Actor")
}

// The keys of a topic are in one slot, and so is everything that a script touches.
func TestPause_Cluster(t *testing.T) {
	t.Parallel()
	client := redistest.StartCluster(t, 3).Client(t)
	for range 3 {
		topic := redistest.Key(t)
		control := newInspector(t, client)
		sub := newSub(t, client)
		messages := sub.subscribe(t, topic)
		require.NoError(t, control.Pause(t.Context(), topic, "g", inspect.PauseOptions{}))
		eventuallyState(t, sub, redischannels.StatePaused)
		publish(t, client, topic, "a")
		noMessage(t, messages)
		require.NoError(t, control.Resume(t.Context(), topic, "g"))
		require.Equal(t, []string{"a"}, receiveAcked(t, messages, 1))
		require.Equal(t, []string{"pause", "resume"}, auditActions(t, client, topic))
	}
}

// The scan by which a subscription learns of the pause claims nothing either.
func TestPause_ScanThatLearnsOfIt(t *testing.T) {
	t.Parallel()
	client, topic := redistest.Shared(t).Client(t), redistest.Key(t)
	sub := newSub(t, client)
	messages := sub.subscribe(t, topic)
	eventuallyState(t, sub, redischannels.StateLive)
	// Both at once: an entry of a crashed consumer, and the pause.
	_, err := client.TxPipelined(t.Context(), func(pipe redis.Pipeliner) error {
		pipe.HSet(t.Context(), controlOf(topic), "pause:g", "0 ")
		pipe.XAdd(t.Context(), &redis.XAddArgs{Stream: topic, ID: "5-1", Values: []string{"payload", "a"}})
		pipe.XGroupSetID(t.Context(), topic, "g", "5-1")
		pipe.Do(t.Context(), "XCLAIM", topic, "g", "crashed", 0, "5-1", "IDLE", 3600000, "FORCE", "JUSTID")
		return nil
	})
	require.NoError(t, err)
	eventuallyState(t, sub, redischannels.StatePaused)
	noMessage(t, messages)
	pending := pendingOf(t, client, topic)
	require.Len(t, pending, 1)
	require.Equal(t, "crashed", pending[0].Consumer)
}

// On Resume one claim scan comes before new entries.
func TestPause_ResumeClaimsFirst(t *testing.T) {
	t.Parallel()
	client, topic := redistest.Shared(t).Client(t), redistest.Key(t)
	control := newInspector(t, client)
	sub := newSub(t, client, tuned(func(c *redischannels.Tuning) { c.ClaimInterval = time.Minute }))
	messages := sub.subscribe(t, topic)
	publish(t, client, topic, "offered")
	redistest.Eventually(t, soon, func() bool { return sub.Stats()[0].InFlight == 1 }, "its first scan is over, and it looks")
	require.NoError(t, control.Pause(t.Context(), topic, "g", inspect.PauseOptions{}))
	eventuallyState(t, sub, redischannels.StatePaused)
	publish(t, client, topic, payloadsUpTo(1, 6)...)
	redistest.Eventually(t, soon, func() bool { return sub.Stats()[0].InFlight == 0 }, "it is withdrawn")
	deliverTo(t, client, topic, "crashed", 3, time.Hour)
	require.NoError(t, control.Resume(t.Context(), topic, "g"))
	require.Equal(t, append([]string{"offered"}, payloadsUpTo(1, 6)...), receiveAcked(t, messages, 7))
}

// A read that blocks when the group is paused ends, so that it takes nothing of what comes.
func TestPause_EndsABlockedRead(t *testing.T) {
	t.Parallel()
	client, topic := redistest.Start(t).Client(t), redistest.Key(t)
	control := newInspector(t, client)
	sub := newSub(t, client, minIdle(time.Minute), tuned(func(c *redischannels.Tuning) { c.BlockTime = 20 * time.Second }))
	messages := sub.subscribe(t, topic)
	redistest.Eventually(t, soon, func() bool { return redistest.BlockedClients(t, client) == 1 }, "it reads")
	require.NoError(t, control.Pause(t.Context(), topic, "g", inspect.PauseOptions{}))
	halted(t, sub, client)
	publish(t, client, topic, "a")
	noMessage(t, messages)
	stats, err := sub.GroupStats(t.Context(), topic)
	require.NoError(t, err)
	require.EqualValues(t, 1, stats.Lag)
	require.NoError(t, control.Resume(t.Context(), topic, "g"))
	require.Equal(t, []string{"a"}, receiveAcked(t, messages, 1))
}

// Entries that wait in order are released, so that the group can be sought, and come back in order.
func TestPause_ReleasesOrder(t *testing.T) {
	t.Parallel()
	client, topic := redistest.Shared(t).Client(t), redistest.Key(t)
	control := newInspector(t, client)
	sub := newSub(t, client)
	messages := sub.subscribe(t, topic)
	publish(t, client, topic, payloadsUpTo(1, 30)...)
	receiveAcked(t, messages, 8)
	require.NoError(t, control.Pause(t.Context(), topic, "g", inspect.PauseOptions{}))
	eventuallyState(t, sub, redischannels.StatePaused)
	redistest.Eventually(t, soon, func() bool { return sub.Stats()[0].Buffered+sub.Stats()[0].InFlight == 0 }, "all are released")
	require.NoError(t, control.Resume(t.Context(), topic, "g"))
	require.Equal(t, payloadsUpTo(9, 30), receiveAcked(t, messages, 22))
}

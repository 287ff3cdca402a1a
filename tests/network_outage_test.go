package tests

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
)

// outageTest is a subscription of one message at a time whose server goes away.
type outageTest struct {
	server   *redistest.Server
	admin    *redis.Client
	hook     *redistest.Hook // of the subscription's control commands
	topic    string
	messages <-chan *message.Message
	leased   *message.Message // which is acknowledged some time after the restart
}

// stopAt stops the server when the command is about to be sent, which trigger brings about.
func (o *outageTest) stopAt(t *testing.T, command string, trigger func()) {
	t.Helper()
	reached, stopped := make(chan struct{}), make(chan struct{})
	stop := func(context.Context, redis.Cmder) error {
		close(reached)
		<-stopped
		return nil
	}
	if command == "scan" {
		beforeScriptOnce(t, o.hook, command, o.topic, stop)
	} else {
		o.hook.BeforeOnce(command, stop)
	}
	trigger()
	select {
	case <-reached:
	case <-time.After(soon):
		require.FailNow(t, "the command is not sent", command)
	}
	o.server.Stop()
	close(stopped)
}

// After an outage a consumer looks alive and takes nothing, forgets what it had in hand, or
// gets what it has acknowledged again. The server is stopped for 1 and for 15 seconds in every
// state of a subscription, and restarted with what it had on disk.
func TestNetwork_OutageInEveryState(t *testing.T) {
	t.Parallel()
	// Each state returns the payloads that must come afterwards.
	states := map[string]func(t *testing.T, o *outageTest) (want []string, during func()){
		"blocked": func(t *testing.T, o *outageTest) ([]string, func()) {
			redistest.Eventually(t, soon, func() bool { return redistest.BlockedClients(t, o.admin) == 1 }, "the reader waits")
			o.server.Stop()
			return nil, nil
		},
		"idle": func(t *testing.T, o *outageTest) ([]string, func()) { // nothing receives
			publish(t, o.admin, o.topic, "a", "b", "c")
			redistest.Eventually(t, soon, func() bool { return groupOf(t, o.admin, o.topic).Pending > 0 }, "one is fetched")
			o.server.Stop()
			return []string{"a", "b", "c"}, nil
		},
		"handling": func(t *testing.T, o *outageTest) ([]string, func()) {
			publish(t, o.admin, o.topic, "a", "b")
			msg := receive(t, o.messages)
			o.server.Stop()
			return []string{"b"}, func() { msg.Ack() } // acknowledged while the server is away
		},
		"handling on": func(t *testing.T, o *outageTest) ([]string, func()) { // and longer than the server is away
			publish(t, o.admin, o.topic, "a", "b")
			msg := receive(t, o.messages)
			o.server.Stop()
			return []string{"b"}, func() { o.leased = msg }
		},
		"acking": func(t *testing.T, o *outageTest) ([]string, func()) {
			publish(t, o.admin, o.topic, "a", "b")
			msg := receive(t, o.messages)
			o.stopAt(t, "xack", func() { msg.Ack() })
			return []string{"b"}, nil
		},
		"claiming": func(t *testing.T, o *outageTest) ([]string, func()) {
			// In one step, before the reader that waits can have them.
			deliver := redis.NewScript(`local id = redis.call('XADD', KEYS[1], '*', '_watermill_message_uuid', 'u', 'metadata', '', 'payload', 'a')
				redis.call('XREADGROUP', 'GROUP', 'g', 'dead', 'STREAMS', KEYS[1], '>')
				return redis.call('XCLAIM', KEYS[1], 'g', 'dead', 0, id, 'IDLE', 3600000, 'JUSTID')`)
			o.stopAt(t, "scan", func() {
				require.NoError(t, deliver.Run(t.Context(), o.admin, []string{o.topic}).Err())
			})
			return []string{"a"}, nil
		},
	}
	for _, away := range []time.Duration{time.Second, 15 * time.Second} {
		for name, state := range states {
			t.Run(fmt.Sprintf("%s, %s", name, away), func(t *testing.T) {
				t.Parallel()
				o := &outageTest{server: redistest.Start(t, redistest.AOF()), hook: redistest.NewHook(), topic: redistest.Key(t)}
				o.admin = o.server.Client(t)
				client := o.server.Client(t)
				client.AddHook(o.hook)
				sub := newSub(t, client)
				o.messages = sub.subscribe(t, o.topic)

				want, during := state(t, o)
				if during != nil {
					during()
				}
				<-time.After(away)
				o.server.Restart()
				back := time.Now()
				publish(t, o.admin, o.topic, "after")
				want = append(want, "after")
				if o.leased != nil {
					statsOf(t, sub, func(s redischannels.SubscriptionStats) bool { return s.State == redischannels.StateLive }, "it is known to be back")
					redistest.Never(t, 2*testMinIdle, func() bool { return o.leased.Context().Err() != nil }, "its claim is lost")
					noMessage(t, o.messages) // nor does it come to its own consumer
					back = time.Now()
					o.leased.Ack()
				}
				got := receiveAcked(t, o.messages, len(want))
				require.ElementsMatch(t, want, got, "each once")
				if name != "claiming" { // its claim scan and its reads are two ways
					require.Equal(t, want, got)
				}
				require.Less(t, time.Since(back), 3*time.Second)
				eventuallyPending(t, o.admin, o.topic, 0)
				noMessage(t, o.messages)
				require.LessOrEqual(t, len(sub.events.of(redischannels.EventDisconnected)), 1, "one event per outage")
				sub.events.none(t, redischannels.EventLeaseLost, redischannels.EventGroupLost, redischannels.EventError)
			})
		}
	}
}

// A server that reads its data back answers LOADING for a while.
func TestNetwork_ServerThatLoads(t *testing.T) {
	t.Parallel()
	options, size := []redistest.Option{redistest.AOF(), redistest.Arg("key-load-delay", "1000")}, 100
	if redistest.IsRedis7(t, redistest.Shared(t).Client(t)) {
		options = append(options, redistest.Arg("loading-process-events-interval-bytes", "1024"))
	} else {
		options, size = append(options, redistest.Arg("rdbcompression", "no")), 8000 // it replies every 2 MiB
	}
	server := redistest.Start(t, options...)
	client, topic := server.Client(t), redistest.Key(t)
	pipe := client.Pipeline()
	for n := range 2000 {
		pipe.Set(t.Context(), "key"+strconv.Itoa(n), strings.Repeat("x", size), 0)
	}
	_, err := pipe.Exec(t.Context())
	require.NoError(t, err)
	sub := newSub(t, client)
	messages := sub.subscribe(t, topic)
	publish(t, client, topic, "a", "b")
	first := receive(t, messages)
	require.NoError(t, client.BgRewriteAOF(t.Context()).Err()) // keys are delayed in the form of RDB only
	redistest.Eventually(t, soon, func() bool {
		info := client.Info(t.Context(), "persistence").Val()
		return strings.Contains(info, "aof_rewrite_in_progress:0") && strings.Contains(info, "aof_rewrite_scheduled:0")
	}, "the file is written")

	server.Restart()
	require.Contains(t, client.Info(t.Context(), "persistence").Val(), "loading:1")
	first.Ack()
	require.Equal(t, []string{"b"}, receiveAcked(t, messages, 1))
	redistest.Eventually(t, soon, func() bool { return client.XLen(t.Context(), topic).Val() == 2 }, "it has loaded")
	eventuallyPending(t, client, topic, 0)
	noMessage(t, messages)
	require.Len(t, sub.events.of(redischannels.EventDisconnected), 1)
	sub.events.none(t, redischannels.EventError, redischannels.EventGroupLost, redischannels.EventLeaseLost)
}

// A master becomes a replica under its clients, and another server takes over behind the same
// address. Blocked reads are ended by force, writes are refused with READONLY, then everything
// has a new server.
func TestNetwork_RolesChange(t *testing.T) {
	t.Parallel()
	old := redistest.Start(t)
	replica := pubReplica(t, old)
	proxy := redistest.NewProxy(t, old.Addr())
	client := old.Client(t, redistest.Via(proxy))
	admin, heir := old.Admin(t), replica.Admin(t)
	topic := redistest.Key(t)
	ctx := t.Context()

	sub := newSub(t, client, inFlight(2))
	messages := sub.subscribe(t, topic)
	pub := newTestPublisher(t, client, watermillFormat, pubTimeout(2*time.Second))
	require.NoError(t, pub.Publish(topic, pubMessages("m", 2)...))
	first, leased := receive(t, messages), receive(t, messages)
	first.Ack()
	redistest.Eventually(t, soon, func() bool { return len(heir.XInfoGroups(ctx, topic).Val()) == 1 }, "the group is replicated")
	eventuallyPending(t, heir, topic, 1)

	require.NoError(t, heir.Do(ctx, "replicaof", "no", "one").Err())
	require.NoError(t, admin.Do(ctx, append([]any{"replicaof"}, hostPort(t, replica)...)...).Err())
	err := pub.Publish(topic, pubMessages("refused", 1)...)
	require.ErrorContains(t, err, "READONLY")
	requireOutcomes(t, err, redischannels.OutcomeNotAppended, 1)
	sub.events.wait(t, redischannels.EventDisconnected)
	leased.Ack() // refused as well, until the address leads to the new master
	sub.events.wait(t, redischannels.EventAckFailed)
	redistest.Never(t, testMinIdle, func() bool { return len(sub.events.of(redischannels.EventError)) > 0 }, "a renewal that is refused is part of the outage")
	proxy.SetTarget(replica.Addr())
	proxy.Cut()

	redistest.Eventually(t, soon, func() bool { return pub.Publish(topic, pubMessages("after", 1)...) == nil }, "publishing continues")
	require.Equal(t, "after0", receive(t, messages).UUID)
	redistest.Eventually(t, soon, func() bool { return len(pendingOf(t, heir, topic)) == 1 }, "the late ack has arrived")
	sub.events.none(t, redischannels.EventGroupLost, redischannels.EventLeaseLost, redischannels.EventError)
}

// Replication is asynchronous: the new master knows what was delivered and not what was
// acknowledged since. That comes again, to a consumer that has forgotten it, and is marked as
// delivered before; what is still in a handler does not.
func TestNetwork_NewMasterLacksAnAck(t *testing.T) {
	t.Parallel()
	old := redistest.Start(t)
	replica := pubReplica(t, old)
	proxy := redistest.NewProxy(t, old.Addr())
	direct, heir := old.Client(t), replica.Client(t)
	topic := redistest.Key(t)
	sub := newSub(t, old.Client(t, redistest.Via(proxy)), inFlight(2), minIdle(time.Minute))
	messages := sub.subscribe(t, topic)
	ids := publish(t, direct, topic, "acked", "held")
	acked, leased := receive(t, messages), receive(t, messages)
	redistest.Eventually(t, soon, func() bool {
		groups := heir.XInfoGroups(t.Context(), topic).Val()
		return len(groups) == 1 && groups[0].Pending == 2
	}, "the replica knows of both")
	require.NoError(t, heir.Do(t.Context(), "replicaof", "no", "one").Err())
	acked.Ack()
	eventuallyPending(t, direct, topic, 1)
	statsOf(t, sub, func(s redischannels.SubscriptionStats) bool { return s.Acking == 0 && s.InFlight == 1 }, "the reply is read, else the ack is sent again")
	proxy.SetTarget(replica.Addr())
	proxy.Cut()

	again := receive(t, messages)
	require.Equal(t, ids[0], entryIDOf(t, again))
	require.Equal(t, 1, countOf(t, again), "a count of 1 says nothing")
	again.Ack()
	eventuallyPending(t, heir, topic, 1)
	noMessage(t, messages)
	require.NoError(t, leased.Context().Err())
	leased.Ack()
	eventuallyPending(t, heir, topic, 0)
	sub.events.none(t, redischannels.EventGroupLost, redischannels.EventLeaseLost, redischannels.EventAckIgnored, redischannels.EventError)
}

// watermillFormat makes a publisher of newTestPublisher one that subscribers understand.
func watermillFormat(c *redischannels.PublisherConfig) {
	c.Marshaler = redischannels.WatermillMarshaler{}
}

// hostPort are the two words of REPLICAOF.
func hostPort(t *testing.T, server *redistest.Server) []any {
	t.Helper()
	host, port, ok := strings.Cut(server.Addr(), ":")
	require.True(t, ok)
	return []any{host, port}
}

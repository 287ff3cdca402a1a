package tests

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"regexp"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
)

// A peer fails silently: a read without a deadline is deaf forever, and the server
// hands the next message to the dead connection.
func TestNetwork_HalfOpenConnectionIsReplaced(t *testing.T) {
	t.Parallel()
	const block = 2 * time.Second
	for name, change := range map[string]func(*redischannels.SubscriberConfig){"group": inFlight(2), "fan-out": fanOut} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := redistest.Start(t)
			direct, topic := server.Client(t), redistest.Key(t)
			dead := redistest.NewProxy(t, server.Addr())
			var way switched
			way.to.Store(dead)
			client := server.Client(t, way.option, func(o *redis.Options) { o.ReadTimeout = 200 * time.Millisecond })
			sub := newSub(t, client, change, tuned(func(c *redischannels.Tuning) { c.MinIdle, c.BlockTime = time.Minute, block }))
			messages := sub.subscribe(t, topic)
			publish(t, direct, topic, "before")
			require.Equal(t, []string{"before"}, receiveAcked(t, messages, 1))
			if name == "group" {
				eventuallyPending(t, direct, topic, 0)
			}
			redistest.Eventually(t, soon, func() bool { return redistest.BlockedClients(t, direct) == 1 }, "the reader waits")

			dead.Blackhole(true)
			way.to.Store(redistest.NewProxy(t, server.Addr()))
			gone := time.Now()
			publish(t, direct, topic, "next", "after")
			require.Equal(t, []string{"next", "after"}, receiveAcked(t, messages, 2))
			require.Less(t, time.Since(gone), block+2*time.Second)
			noMessage(t, messages)
			if name == "group" {
				eventuallyPending(t, direct, topic, 0)
			}
			sub.events.none(t, redischannels.EventError, redischannels.EventLeaseLost)
		})
	}
}

// dialCount counts the connections of a client.
type dialCount struct{ n atomic.Int64 }

func (d *dialCount) DialHook(next redis.DialHook) redis.DialHook {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		d.n.Add(1)
		return next(ctx, network, addr)
	}
}

func (*dialCount) ProcessHook(next redis.ProcessHook) redis.ProcessHook { return next }

func (*dialCount) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

// Redis restarts BLOCK when another consumer was faster, so a read may take longer than
// its client waits. One such timeout is an empty read, a second one in a row is an outage.
func TestNetwork_ReadTimeoutIsAnEmptyRead(t *testing.T) {
	t.Parallel()
	proxy, client, direct := pubProxy(t)
	topic := redistest.Key(t)
	dials := &dialCount{}
	sub := newSub(t, client, func(c *redischannels.SubscriberConfig) {
		c.OnReadClient = func(client *redis.Client) {
			if client.Options().PoolSize == 1 { // not that of renewals
				client.AddHook(dials)
			}
		}
	})
	messages := sub.subscribe(t, topic)
	// The reply is blocked until the reader has given the connection up and reads by another.
	delayed := func(times int) {
		rule := proxy.BeforeReply(times, redistest.And(redistest.Command("XREADGROUP"), redistest.Contains("BLOCK")), func() {
			before := dials.n.Load()
			redistest.Eventually(t, soon, func() bool { return dials.n.Load() > before }, "another connection")
		})
		rule.Wait(t, 2*soon)
	}
	delayed(1)
	publish(t, direct, topic, "a")
	require.Equal(t, []string{"a"}, receiveAcked(t, messages, 1))
	sub.events.none(t, redischannels.EventDisconnected, redischannels.EventError)
	delayed(2)
	sub.events.wait(t, redischannels.EventReconnected)
	require.Len(t, sub.events.of(redischannels.EventDisconnected), 1)
	publish(t, direct, topic, "b")
	require.Equal(t, []string{"b"}, receiveAcked(t, messages, 1))

	// Of five consumers one gets each message, and the others have nothing to report.
	var subs []*testSub
	got := make(chan string, 100)
	for range 5 {
		other := newSub(t, direct, func(c *redischannels.SubscriberConfig) { c.ConsumerGroup = "h" })
		subs = append(subs, other)
		handle(other.subscribe(t, topic), 1, func(m delivered, _ *message.Message) bool {
			got <- m.payload
			return true
		})
	}
	require.Equal(t, "a", <-got)
	require.Equal(t, "b", <-got)
	for _, payload := range numbered(20) {
		publish(t, direct, topic, payload)
		require.Equal(t, payload, <-got)
	}
	for _, other := range subs {
		other.closeSoon(t)
		other.events.none(t, redischannels.EventDisconnected, redischannels.EventError)
	}
	require.Empty(t, got)
}

// Every feature works when each byte comes alone, and when each round trip takes long.
func TestNetwork_SlowAndByteWise(t *testing.T) {
	t.Parallel()
	for name, slow := range map[string]func(*redistest.Proxy){
		"bytes": func(p *redistest.Proxy) { p.ByteWise(true) },
		"slow":  func(p *redistest.Proxy) { p.Delay(20 * time.Millisecond) },
	} {
		for _, protocol := range []int{2, 3} {
			t.Run(fmt.Sprintf("%s, RESP%d", name, protocol), func(t *testing.T) {
				t.Parallel()
				proxy, client, _ := pubProxy(t, func(o *redis.Options) { o.Protocol = protocol })
				slow(proxy)
				everyFeature(t, client, redistest.Key(t), nil, nil)
			})
		}
	}
}

// scriptOf matches the execution of one of the library's scripts.
func scriptOf(t *testing.T, name string) redistest.Match {
	t.Helper()
	text := scriptText(t, name)
	hash := redistest.Contains(redis.NewScript(text).Hash())
	whole := redistest.Contains(text) // where the server does not know it yet
	return redistest.And(redistest.Script(), func(request []byte) bool { return hash(request) || whole(request) })
}

// beforeScriptOnce acts before the first execution of one of the library's scripts, of one file,
// on a topic.
func beforeScriptOnce(t *testing.T, hook *redistest.Hook, name, topic string, act redistest.HookFunc) {
	t.Helper()
	var done atomic.Bool
	hook.Before("evalsha", func(ctx context.Context, cmd redis.Cmder) error {
		if !isScript(t, cmd, name, topic) || !done.CompareAndSwap(false, true) {
			return nil
		}
		return act(ctx, cmd)
	})
}

// isScript reports whether a command executes one of the library's scripts, of one file, on a topic.
func isScript(t *testing.T, cmd redis.Cmder, name, topic string) bool {
	t.Helper()
	text := scriptText(t, name)
	args := cmd.Args()
	return len(args) > 3 && args[3] == topic && (args[1] == text || args[1] == redis.NewScript(text).Hash())
}

// scriptText returns the text of a script by its file, with those that stand before it.
func scriptText(t *testing.T, name string) string {
	t.Helper()
	files := []string{name}
	switch name {
	case "dead_letter":
		files = []string{"original", "dead_common", "paused", name}
	case "lag", "room":
		files = []string{"behind", name}
	case "reap":
		files = []string{"less", "behind", name}
	case "restore":
		files = []string{"less", "behind", "paused", name}
	case "ack", "hold", "scan":
		files = []string{"paused", name}
	}
	text := ""
	for _, file := range files {
		source, err := os.ReadFile("../internal/stream/lua/" + file + ".lua")
		require.NoError(t, err)
		text += string(source)
	}
	return text
}

// Redis has executed a command and the consumer does not learn of it: what it does then must
// neither lose a message nor have it handled twice nor count it twice. Each command of a
// consumer loses its reply once, by a client that tries again by itself and by one that does
// not.
func TestNetwork_LostRepliesOfAConsumer(t *testing.T) {
	t.Parallel()
	lost := map[string]redistest.Match{
		"XREADGROUP": redistest.Command("XREADGROUP"),
		"XACK":       redistest.Command("XACK"),
		"scan":       scriptOf(t, "scan"),
	}
	for _, name := range []string{"hold", "ack", "own", "fetch", "reap", "restore", "dead_letter", "leave"} {
		lost[name] = scriptOf(t, name)
	}
	for name, match := range lost {
		for _, retries := range []int{-1, 3} {
			t.Run(fmt.Sprintf("%s, %d retries", name, retries), func(t *testing.T) {
				t.Parallel()
				proxy, client, direct := pubProxy(t, func(o *redis.Options) { o.MaxRetries = retries })
				topic := redistest.Key(t)
				sub := newSub(t, client, minIdle(time.Minute)) // nothing comes back because it has aged
				messages := sub.subscribe(t, topic)
				publish(t, direct, topic, "first")
				require.Equal(t, []string{"first"}, receiveAcked(t, messages, 1))
				eventuallyPending(t, direct, topic, 0)
				rule := proxy.DropReplyIf(1, match, func(reply []byte) bool {
					if name == "XREADGROUP" || name == "scan" { // the one that brings something
						return entryIDs.Match(reply)
					}
					return reply[0] != '-' // a script that the server does not know yet
				})
				if name == "ack" { // which is for what XACK has not found
					publish(t, direct, topic, "taken")
					taken := receive(t, messages)
					require.NoError(t, direct.XAck(t.Context(), topic, "g", entryIDOf(t, taken)).Err())
					taken.Ack()
					rule.Wait(t, soon)
				}

				// A claim, a nack, an ack, a dead letter.
				deliver := redis.NewScript(`local id = redis.call('XADD', KEYS[1], '*', '_watermill_message_uuid', 'u', 'metadata', '', 'payload', 'claimed')
					redis.call('XREADGROUP', 'GROUP', 'g', 'dead', 'STREAMS', KEYS[1], '>')
					return redis.call('XCLAIM', KEYS[1], 'g', 'dead', 0, id, 'IDLE', 3600000, 'JUSTID')`)
				require.NoError(t, deliver.Run(t.Context(), direct, []string{topic}).Err())
				claimed := receive(t, messages)
				require.Equal(t, "claimed", string(claimed.Payload))
				require.Equal(t, 1, countOf(t, claimed), "a count of 1 says nothing")
				claimed.Ack()
				publish(t, direct, topic, "nacked", "rejected", "last")
				for _, count := range []int{1, 2} {
					msg := receive(t, messages)
					require.Equal(t, "nacked", string(msg.Payload))
					require.Equal(t, count, countOf(t, msg))
					if count == 1 {
						msg.Nack()
					} else {
						msg.Ack()
					}
				}
				bad := receive(t, messages)
				require.Equal(t, "rejected", string(bad.Payload))
				require.Equal(t, 1, countOf(t, bad))
				redischannels.Reject(bad, "no")
				bad.Nack()
				msg := receive(t, messages)
				require.Equal(t, "last", string(msg.Payload))
				require.Equal(t, 1, countOf(t, msg))

				// The group is deleted under the last one, which is acknowledged when it is back.
				redistest.Eventually(t, soon, func() bool { return direct.XLen(t.Context(), deadStream(topic)).Val() == 1 }, "a dead letter")
				eventuallyPending(t, direct, topic, 1)
				require.NoError(t, direct.XGroupDestroy(t.Context(), topic, "g").Err())
				msg.Nack()
				again := receive(t, messages)
				require.Equal(t, "last", string(again.Payload))
				require.Equal(t, 2, countOf(t, again))
				again.Ack()
				eventuallyPending(t, direct, topic, 0)
				noMessage(t, messages)
				sub.closeSoon(t)
				require.Empty(t, consumersOf(t, direct, topic))
				require.Equal(t, 1, rule.Count(), "nothing was lost")
				require.EqualValues(t, 1, direct.XLen(t.Context(), deadStream(topic)).Val())
				require.NotEmpty(t, sub.events.of(redischannels.EventGroupLost), "the loss of the group is reported")
				sub.events.none(t, redischannels.EventLeaseLost, redischannels.EventAbandoned)
				require.LessOrEqual(t, len(sub.events.of(redischannels.EventDisconnected)), 2, "two outages at most")
			})
		}
	}
}

// entryIDs finds an entry ID in a reply that is not 0-0.
var entryIDs = regexp.MustCompile(`\d{13}-\d`)

// The reply that brought an entry was lost, and the entry was trimmed before it was read again:
// it leaves the group, with a report, and does not stay pending.
func TestNetwork_TrimmedEntryOfALostReplyIsReported(t *testing.T) {
	t.Parallel()
	proxy, client, direct := pubProxy(t)
	topic := redistest.Key(t)
	sub := newSub(t, client, minIdle(time.Minute))
	messages := sub.subscribe(t, topic)
	ctx := context.WithoutCancel(t.Context())
	proxy.DropReplyIf(1, redistest.Command("XREADGROUP"), entryIDs.Match)
	proxy.BeforeRequest(1, scriptOf(t, "fetch"), func() { _ = direct.XTrimMaxLen(ctx, topic, 0).Err() })
	ids := publish(t, direct, topic, "m")
	require.Equal(t, ids, sub.events.wait(t, redischannels.EventTrimmed).EntryIDs)
	eventuallyPending(t, direct, topic, 0)
	publish(t, direct, topic, "next")
	require.Equal(t, []string{"next"}, receiveAcked(t, messages, 1))
	require.Len(t, sub.events.of(redischannels.EventTrimmed), 1)
}

// A duty in the background fails once, and has nothing to do for a long time afterwards: the
// outage must not stay open until then.
func TestNetwork_BackgroundDutyFailsOnce(t *testing.T) {
	t.Parallel()
	server := redistest.Shared(t)
	client, topic := server.Client(t), redistest.Key(t)
	sub := newSub(t, client)
	messages := sub.subscribe(t, topic)
	hook := redistest.NewHook()
	beforeScriptOnce(t, hook, "scan", topic, func(context.Context, redis.Cmder) error { return io.ErrUnexpectedEOF })
	client.AddHook(hook)
	require.ErrorIs(t, sub.events.wait(t, redischannels.EventDisconnected).Err, io.ErrUnexpectedEOF)
	sub.events.wait(t, redischannels.EventReconnected)
	require.Equal(t, redischannels.StateLive, sub.Stats()[0].State)
	publish(t, client, topic, "m")
	require.Equal(t, []string{"m"}, receiveAcked(t, messages, 1))
}

// Entries of a lost reply are found again and handled, and leave no room for another read: the
// outage must not stay open for as long as the handler takes.
func TestNetwork_OutageEndsWhileAHandlerRuns(t *testing.T) {
	t.Parallel()
	proxy, client, direct := pubProxy(t)
	topic := redistest.Key(t)
	sub := newSub(t, client, minIdle(time.Minute))
	messages := sub.subscribe(t, topic)
	proxy.DropReplyIf(1, redistest.Command("XREADGROUP"), entryIDs.Match)
	publish(t, direct, topic, "m")
	msg := receive(t, messages)
	sub.events.wait(t, redischannels.EventReconnected)
	require.Equal(t, redischannels.StateLive, sub.Stats()[0].State)
	require.Len(t, sub.events.of(redischannels.EventDisconnected), 1)
	msg.Ack()
	eventuallyPending(t, direct, topic, 0)
}

// Subscribe has created its consumer and does not learn of it: the consumer does not stay.
func TestNetwork_SubscribeThatLosesItsReplyLeavesNoConsumer(t *testing.T) {
	t.Parallel()
	proxy, client, direct := pubProxy(t)
	topic := redistest.Key(t)
	sub := newSub(t, client)
	proxy.DropReply(1, redistest.Command("XREADGROUP"))
	_, err := sub.Subscribe(t.Context(), topic)
	require.Error(t, err)
	require.Empty(t, consumersOf(t, direct, topic))
}

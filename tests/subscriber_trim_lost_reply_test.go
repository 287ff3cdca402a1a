package tests

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
)

// lossyGroup is a topic whose consumers are behind a proxy that loses replies. It knows a reply by
// what its command has done, not by the command: that is the library's choice.
type lossyGroup struct {
	topic          string
	proxy          *redistest.Proxy
	client, direct *redis.Client
	ctx            context.Context // for the proxy, which may act when the test has ended

	mu  sync.Mutex
	ids []string // trimmed entries that are pending until a command removes them
}

func newLossyGroup(t *testing.T, retries int) *lossyGroup {
	t.Helper()
	proxy, client, direct := pubProxy(t, func(o *redis.Options) { o.MaxRetries = retries })
	redistest.NeedsRedis7(t, direct, "a claim removes trimmed entries from the pending entries list")
	g := &lossyGroup{
		topic: redistest.Key(t), proxy: proxy, client: client, direct: direct, ctx: context.WithoutCancel(t.Context()),
	}
	require.NoError(t, direct.XGroupCreateMkStream(g.ctx, g.topic, "g", "0").Err())
	return g
}

// eachRetries runs a test with a client that repeats commands by itself and one that does not.
func eachRetries(t *testing.T, test func(t *testing.T, g *lossyGroup)) {
	t.Helper()
	for _, retries := range []int{-1, 3} {
		t.Run(fmt.Sprintf("%d retries", retries), func(t *testing.T) {
			t.Parallel()
			test(t, newLossyGroup(t, retries))
		})
	}
}

// command matches what is sent for the topic, but the blocking reads.
func (g *lossyGroup) command(request []byte) bool {
	return redistest.Contains(g.topic)(request) && !redistest.Command("XREADGROUP")(request)
}

// dropReplyOf loses the next reply of a command after which done is true.
func (g *lossyGroup) dropReplyOf(done func() bool) *redistest.Rule {
	return g.proxy.DropReplyIf(1, g.command, func(reply []byte) bool { return reply[0] != '-' && done() })
}

// dropRemoval loses the reply of the first command that removes a trimmed entry from the pending
// entries list.
func (g *lossyGroup) dropRemoval() *redistest.Rule {
	return g.dropReplyOf(func() bool {
		g.mu.Lock()
		defer g.mu.Unlock()
		pending := g.pending()
		return slices.ContainsFunc(g.ids, func(id string) bool { return !slices.Contains(pending, id) })
	})
}

// dropClaim loses the reply of the next claim, whatever it has claimed: a cursor and three lists.
func (g *lossyGroup) dropClaim() *redistest.Rule {
	return g.proxy.DropReplyIf(1, g.command, isClaim)
}

func isClaim(reply []byte) bool {
	return bytes.HasPrefix(reply, []byte("*7\r\n:")) && bytes.HasPrefix(reply[6:], []byte("\r\n$3\r\n0-0\r\n*"))
}

// pending are the IDs of the pending entries.
func (g *lossyGroup) pending() []string {
	pending, err := g.direct.XPendingExt(g.ctx, &redis.XPendingExtArgs{
		Stream: g.topic, Group: "g", Start: "-", End: "+", Count: 1000,
	}).Result()
	if err != nil {
		return nil
	}
	return idsOf(pending)
}

// trimPending deletes the pending entries from the stream.
func (g *lossyGroup) trimPending() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.ids = g.pending()
	_ = g.direct.XDel(g.ctx, g.topic, g.ids...).Err()
}

// abandonScript leaves entries pending with a consumer that has crashed, in one step.
var abandonScript = redis.NewScript(`
	local ids = {}
	for i = 1, ARGV[1] do
		ids[i] = redis.call('XADD', KEYS[1], '*', '_watermill_message_uuid', i, 'metadata', '', 'payload', i)
	end
	redis.call('XREADGROUP', 'GROUP', 'g', 'crashed', 'STREAMS', KEYS[1], '>')
	redis.call('XCLAIM', KEYS[1], 'g', 'crashed', 0, unpack(ids), 'IDLE', 3600000, 'JUSTID')
	for i = 1, ARGV[2] do
		redis.call('XDEL', KEYS[1], ids[i])
	end
	return ids`)

// abandon leaves n entries pending with a consumer that has crashed, and deletes the first of them
// from the stream.
func (g *lossyGroup) abandon(n, trimmed int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	ids, _ := abandonScript.Run(g.ctx, g.direct, []string{g.topic}, n, trimmed).StringSlice()
	g.ids = ids[:min(trimmed, len(ids))]
}

// requireTrimmed waits until each trimmed entry is reported, or that an unknown number is.
func (g *lossyGroup) requireTrimmed(t *testing.T, events *events) {
	t.Helper()
	g.mu.Lock()
	defer g.mu.Unlock()
	require.NotEmpty(t, g.ids)
	var left []string
	redistest.Eventually(t, soon/2, func() bool {
		left = slices.Clone(g.ids)
		unnamed := 0
		for _, e := range events.of(redischannels.EventTrimmed) {
			if len(e.EntryIDs) == 0 && e.Count == 0 {
				return true
			}
			unnamed += e.Count - len(e.EntryIDs)
			left = slices.DeleteFunc(left, func(id string) bool { return slices.Contains(e.EntryIDs, id) })
		}
		return len(left) <= unnamed
	}, "trimmed entries are not reported: %v", &left)
}

// A claim scan removes trimmed entries from the pending entries list, and the reply that names
// them is lost: they were never reported.
func TestTrimmed_LostReplyOfTheFirstClaimScan(t *testing.T) {
	t.Parallel()
	eachRetries(t, func(t *testing.T, g *lossyGroup) {
		g.abandon(10, 10)
		lost := g.dropRemoval()
		sub := newSub(t, g.client, inFlight(16))
		sub.subscribe(t, g.topic)
		lost.Wait(t, soon)
		g.requireTrimmed(t, sub.events)
		eventuallyPending(t, g.direct, g.topic, 0)
	})
}

// The same by a scan of a subscription that is live, among entries that are still there: those are
// delivered, once.
func TestTrimmed_LostReplyOfALaterClaimScan(t *testing.T) {
	t.Parallel()
	eachRetries(t, func(t *testing.T, g *lossyGroup) {
		sub := newSub(t, g.client, inFlight(16))
		messages := sub.subscribe(t, g.topic)
		lost := g.dropRemoval()
		g.proxy.BeforeRequest(1, g.command, func() { g.abandon(12, 6) })
		lost.Wait(t, soon)
		require.ElementsMatch(t, []string{"7", "8", "9", "10", "11", "12"}, receiveAcked(t, messages, 6))
		g.requireTrimmed(t, sub.events)
		eventuallyPending(t, g.direct, g.topic, 0)
		noMessage(t, messages)
	})
}

// The reply to a read is lost, and its entries are trimmed before they are looked for: the command
// that looks for them removes them, and its reply is lost as well.
func TestTrimmed_LostReplyOfRecovery(t *testing.T) {
	t.Parallel()
	for _, closes := range []bool{false, true} {
		t.Run(fmt.Sprintf("Close %v", closes), func(t *testing.T) {
			t.Parallel()
			eachRetries(t, func(t *testing.T, g *lossyGroup) {
				sub := newSub(t, g.client, inFlight(8), minIdle(time.Minute), tuned(func(c *redischannels.Tuning) {
					c.ClaimInterval = time.Minute // a scan would find them, too
				}))
				sub.subscribe(t, g.topic)
				lost := g.dropRemoval()
				g.proxy.DropReplyIf(1, redistest.Command("XREADGROUP"), func(reply []byte) bool {
					if !entryIDs.Match(reply) {
						return false
					}
					g.trimPending()
					if closes {
						go func() { _ = sub.Close() }()
						redistest.Eventually(t, soon, func() bool {
							stats := sub.Stats()
							return len(stats) == 0 || stats[0].State == redischannels.StateClosing
						}, "it is closing")
					}
					return true
				})
				publish(t, g.direct, g.topic, "a", "b")
				lost.Wait(t, soon)
				if closes {
					sub.closeSoon(t)
				}
				g.requireTrimmed(t, sub.events)
			})
		})
	}
}

// Entries of this consumer are trimmed while it has them: whichever command finds that out first
// loses its reply.
func TestTrimmed_LostReplyAboutHeldEntries(t *testing.T) {
	t.Parallel()
	for _, first := range []string{"claim scan", "renewal", "release", "Close"} {
		t.Run(first, func(t *testing.T) {
			t.Parallel()
			eachRetries(t, func(t *testing.T, g *lossyGroup) {
				idle, interval := 6*time.Second, time.Minute // the first renewal is after two seconds
				switch first {
				case "claim scan":
					interval = testClaimInterval
				case "renewal":
					idle = testMinIdle
				case "release": // after a second, for another consumer that seems to be alive
					require.NoError(t, g.direct.XGroupCreateConsumer(t.Context(), g.topic, "g", "other").Err())
				}
				sub := newSub(t, g.client, inFlight(4), tuned(func(c *redischannels.Tuning) {
					c.MinIdle, c.ClaimInterval = idle, interval
				}))
				messages := sub.subscribe(t, g.topic)
				publish(t, g.direct, g.topic, "in flight")
				msg := receive(t, messages)
				publish(t, g.direct, g.topic, "buffered", "buffered")
				eventuallyPending(t, g.direct, g.topic, 3)
				if first == "Close" {
					msg.Ack()
					eventuallyPending(t, g.direct, g.topic, 2)
				}
				lost := g.dropRemoval()
				g.trimPending()
				if first == "Close" {
					sub.closeSoon(t)
				}
				lost.Wait(t, soon)
				g.requireTrimmed(t, sub.events)
				msg.Ack()
			})
		})
	}
}

// awaitClaims returns when there were some more claim scans, which would report what they miss.
func (g *lossyGroup) awaitClaims(t *testing.T) {
	t.Helper()
	var claims atomic.Int32
	g.proxy.DropReplyIf(1, g.command, func(reply []byte) bool {
		return isClaim(reply) && claims.Add(1) > 8 // none is lost before the last
	}).Wait(t, soon)
}

// A claim has trimmed nothing and its reply is lost: there is nothing to report.
func TestTrimmed_NotReportedAfterAClaimThatTrimsNothing(t *testing.T) {
	t.Parallel()
	for name, prepare := range map[string]func(t *testing.T, g *lossyGroup) (messages int){
		"nothing is pending": func(*testing.T, *lossyGroup) int { return 0 },
		"entries of a crashed consumer": func(_ *testing.T, g *lossyGroup) int {
			g.abandon(10, 0)
			return 10
		},
		"acknowledged entries are trimmed": func(t *testing.T, g *lossyGroup) int {
			g.abandon(10, 0)
			require.NoError(t, g.direct.XAck(t.Context(), g.topic, "g", g.pending()...).Err())
			require.NoError(t, g.direct.XTrimMaxLen(t.Context(), g.topic, 0).Err())
			g.abandon(5, 0)
			return 5
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			eachRetries(t, func(t *testing.T, g *lossyGroup) {
				n := prepare(t, g)
				lost := g.dropClaim()
				sub := newSub(t, g.client, inFlight(16))
				messages := sub.subscribe(t, g.topic)
				lost.Wait(t, soon)
				receiveAcked(t, messages, n)
				eventuallyPending(t, g.direct, g.topic, 0)
				g.awaitClaims(t)
				sub.events.none(t, redischannels.EventTrimmed)
			})
		})
	}
}

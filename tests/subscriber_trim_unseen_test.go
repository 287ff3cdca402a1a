package tests

import (
	"context"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
)

// An entry that was trimmed leaves the pending entries list by the command that renews it or
// hands it back. Where nobody handled it, who sent that command did not look at what it said, and
// the entry was gone without a word. Before Redis 7 it stays in the list, and who claims it tells.
// (F48)
func TestSubscriber_TrimmedBufferedEntriesAreReported(t *testing.T) {
	t.Parallel()
	tells := redistest.IsRedis7(t, redistest.Shared(t).Client(t))
	trimmed := func(t *testing.T, client *redis.Client, sub *testSub, topic string, ids []string) {
		t.Helper()
		if !tells {
			sub.closeSoon(t)
			sub.events.none(t, redischannels.EventTrimmed)
			sub = newSub(t, client, inFlight(8), minIdle(shortIdle))
			sub.subscribe(t, topic)
		}
		require.Equal(t, ids, sub.events.wait(t, redischannels.EventTrimmed).EntryIDs)
		require.Len(t, sub.events.of(redischannels.EventTrimmed), 1)
	}
	t.Run("handed back at the end", func(t *testing.T) {
		t.Parallel()
		client, topic := redistest.Shared(t).Client(t), redistest.Key(t)
		sub := newSub(t, client, minIdle(time.Minute))
		messages := sub.subscribe(t, topic)
		publish(t, client, topic, "first")
		receive(t, messages).Ack() // of those behind it one is offered now, and one waits
		ids := publish(t, client, topic, "m")
		eventuallyRead(t, client, topic)
		require.NoError(t, client.XTrimMaxLen(t.Context(), topic, 0).Err())
		sub.closeSoon(t)
		trimmed(t, client, sub, topic, ids)
	})
	t.Run("handed back for peers", func(t *testing.T) {
		t.Parallel()
		client, topic := redistest.Shared(t).Client(t), redistest.Key(t)
		sub := newSub(t, client, inFlight(8), tuned(func(c *redischannels.Tuning) {
			c.MinIdle, c.ClaimInterval = time.Minute, time.Minute // a walk would see it first
		}))
		messages := sub.subscribe(t, topic)
		require.NoError(t, client.XGroupCreateConsumer(t.Context(), topic, "g", "peer").Err())
		ids := publish(t, client, topic, "offered", "waiting")
		eventuallyPending(t, client, topic, 2)
		require.NoError(t, client.XDel(t.Context(), topic, ids[1]).Err())
		trimmed(t, client, sub, topic, ids[1:])
		if tells {
			receive(t, messages).Ack()
			eventuallyPending(t, client, topic, 0)
		}
	})
	for name, ends := range map[string]bool{"never seen": false, "never seen, at the end": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			proxy, client, direct := pubProxy(t)
			topic := redistest.Key(t)
			sub := newSub(t, client, minIdle(time.Minute))
			messages := sub.subscribe(t, topic)
			ctx := context.WithoutCancel(t.Context())
			look := proxy.BeforeRequest(1, scriptOf(t, "own"), func() {
				_ = direct.XTrimMaxLen(ctx, topic, 0).Err()
				if ends {
					go func() { _ = sub.Close() }()
					redistest.Eventually(t, soon, func() bool { return sub.Stats()[0].State == redischannels.StateClosing }, "it is closing")
				}
			})
			if ends {
				proxy.DropReplyIf(1, scriptOf(t, "own"), func(reply []byte) bool { return reply[0] != '-' })
			}
			proxy.DropReplyIf(1, redistest.Command("XREADGROUP"), entryIDs.Match)
			ids := publish(t, direct, topic, "m")
			look.Wait(t, soon)
			if ends {
				trimmed(t, direct, sub, topic, ids)
			} else { // the look reads the entries, on every server
				require.Equal(t, ids, sub.events.wait(t, redischannels.EventTrimmed).EntryIDs)
				require.Len(t, sub.events.of(redischannels.EventTrimmed), 1)

				publish(t, direct, topic, "next")
				require.Equal(t, []string{"next"}, receiveAcked(t, messages, 1))
			}
			eventuallyPending(t, direct, topic, 0)
		})
	}
}

package tests

import (
	"errors"
	"testing"

	"github.com/stretchr/testify/require"

	"context"
	"time"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
	"github.com/redis/go-redis/v9"
)

// MAXLEN removes what a group has not read yet: 139 of 1,000 are delivered, and nothing is
// reported.
func TestSubscriber_TrimmedUnreadEntriesAreReported(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	reports := redistest.IsRedis7(t, client) // what it has deleted; others continue without a report

	t.Run("while it was away", func(t *testing.T) {
		t.Parallel()
		topic := redistest.Key(t)
		newSub(t, client).SubscribeInitialize(topic)
		publish(t, client, topic, numbered(1000)...)
		require.NoError(t, client.XTrimMaxLen(t.Context(), topic, 139).Err())
		sub := newSub(t, client)
		messages := sub.subscribe(t, topic)
		require.Equal(t, numbered(1000)[861:], receiveAcked(t, messages, 139))
		eventuallyPending(t, client, topic, 0)
		if !reports {
			sub.events.none(t, redischannels.EventTrimmed)
			return
		}
		lost := sub.events.wait(t, redischannels.EventTrimmed)
		require.Equal(t, 861, lost.Count)
		require.Len(t, sub.events.of(redischannels.EventTrimmed), 1)
	})
	t.Run("everything", func(t *testing.T) {
		t.Parallel()
		topic := redistest.Key(t)
		newSub(t, client).SubscribeInitialize(topic)
		publish(t, client, topic, "a", "b", "c")
		require.NoError(t, client.XTrimMaxLen(t.Context(), topic, 0).Err())
		sub := newSub(t, client)
		messages := sub.subscribe(t, topic)
		if reports {
			require.Equal(t, 3, sub.events.wait(t, redischannels.EventTrimmed).Count)
		}
		publish(t, client, topic, "d")
		require.Equal(t, []string{"d"}, receiveAcked(t, messages, 1))
	})
	t.Run("while it is slow", func(t *testing.T) {
		t.Parallel()
		topic := redistest.Key(t)
		sub := newSub(t, client)
		messages := sub.subscribe(t, topic)
		publish(t, client, topic, numbered(10)...)
		msg := receive(t, messages)
		require.NoError(t, client.XTrimMaxLen(t.Context(), topic, 2).Err())
		if !reports { // what was fetched comes from memory, and then what is left
			msg.Ack()
			for last := ""; last != "9"; {
				last = receiveAcked(t, messages, 1)[0]
			}
			eventuallyPending(t, client, topic, 0)
			return
		}
		redistest.Eventually(t, soon, func() bool {
			lost := 0
			for _, e := range sub.events.of(redischannels.EventTrimmed) {
				lost += e.Count
			}
			return lost == 8 // one of them is in the handler
		}, "the loss is not reported")
		msg.Ack()
		require.Equal(t, []string{"8", "9"}, receiveAcked(t, messages, 2))
		eventuallyPending(t, client, topic, 0)
	})
	t.Run("nothing", func(t *testing.T) {
		t.Parallel()
		topic := redistest.Key(t)
		sub := newSub(t, client)
		messages := sub.subscribe(t, topic)
		publish(t, client, topic, numbered(10)...)
		receiveAcked(t, messages, 10)
		eventuallyPending(t, client, topic, 0)
		require.NoError(t, client.XTrimMaxLen(t.Context(), topic, 0).Err())
		publish(t, client, topic, "x")
		receiveAcked(t, messages, 1)
		other := newSub(t, client)
		other.subscribe(t, topic)
		noMessage(t, messages)
		sub.events.none(t, redischannels.EventTrimmed)
		other.events.none(t, redischannels.EventTrimmed)
	})
}

// Reading on from an ID that was trimmed away skips what lay between, in silence.
func TestFanOut_GapAtTheStartIsReported(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	reports := redistest.IsRedis7(t, client) // what it has deleted; others continue without a report
	gapOf := func(t *testing.T, err error) *redischannels.GapError {
		t.Helper()
		var gap *redischannels.GapError
		require.True(t, errors.As(err, &gap), "%v", err)
		return gap
	}
	waitGap := func(t *testing.T, sub *testSub, want redischannels.GapError) {
		t.Helper()
		if reports {
			require.Equal(t, want, *gapOf(t, sub.events.wait(t, redischannels.EventGap).Err))
		}
	}
	gaps := map[bool]int{true: 1, false: 0}[reports]

	t.Run("fan-out, before", func(t *testing.T) {
		t.Parallel()
		topic := redistest.Key(t)
		ids := publish(t, client, topic, numbered(10)...)
		require.NoError(t, client.XTrimMaxLen(t.Context(), topic, 3).Err())
		sub := newSub(t, client, fanOut)
		messages, err := sub.SubscribeFrom(t.Context(), topic, redischannels.AfterID(ids[1]))
		require.NoError(t, err)
		waitGap(t, sub, redischannels.GapError{Topic: topic, After: ids[1], FirstAvailable: ids[7]})
		require.Equal(t, []string{"7", "8", "9"}, receiveAcked(t, messages, 3))
		require.Len(t, sub.events.of(redischannels.EventGap), gaps)
	})
	t.Run("fan-out, empty", func(t *testing.T) {
		t.Parallel()
		topic := redistest.Key(t)
		ids := publish(t, client, topic, numbered(10)...)
		require.NoError(t, client.XTrimMaxLen(t.Context(), topic, 0).Err())
		sub := newSub(t, client, fanOut)
		messages, err := sub.SubscribeFrom(t.Context(), topic, redischannels.AfterID(ids[1]))
		require.NoError(t, err)
		waitGap(t, sub, redischannels.GapError{Topic: topic, After: ids[1]})
		publish(t, client, topic, "new")
		require.Equal(t, []string{"new"}, receiveAcked(t, messages, 1))
		require.Len(t, sub.events.of(redischannels.EventGap), gaps)
	})
	t.Run("fan-out, no gap", func(t *testing.T) {
		t.Parallel()
		topic := redistest.Key(t)
		ids := publish(t, client, topic, numbered(10)...)
		require.NoError(t, client.XTrimMaxLen(t.Context(), topic, 3).Err())
		for _, from := range []redischannels.Position{redischannels.AfterID(ids[7]), redischannels.AfterID(ids[9]), redischannels.Oldest, redischannels.Latest} {
			sub := newSub(t, client, fanOut)
			_, err := sub.SubscribeFrom(t.Context(), topic, from)
			require.NoError(t, err)
			sub.events.none(t, redischannels.EventGap)
		}
	})
	t.Run("fan-out, trimmed behind it", func(t *testing.T) {
		t.Parallel()
		topic := redistest.Key(t)
		proxy := redistest.NewProxy(t, redistest.Shared(t).Addr())
		through := redistest.Shared(t).Client(t, redistest.Via(proxy))
		looks := redistest.NewHook()
		through.AddHook(looks)
		sub := newSub(t, through, fanOut, onReads(looks))
		messages := sub.subscribe(t, topic)
		for _, n := range numbered(20) { // each is all that is left, so the last one read is always gone
			publish(t, client, topic, n)
			require.NoError(t, client.XTrimMaxLen(t.Context(), topic, 1).Err())
			require.Equal(t, []string{n}, receiveAcked(t, messages, 1))
			if n == "9" {
				before := looks.Count("evalsha")
				cutBlockedRead(t, proxy) // makes it look for a gap
				redistest.Eventually(t, soon, func() bool { return looks.Count("evalsha") > before }, "a check")
			}
		}
		sub.events.none(t, redischannels.EventGap)
	})
	t.Run("fan-out, meanwhile", func(t *testing.T) {
		t.Parallel()
		topic := redistest.Key(t)
		sub := newSub(t, client, fanOut, tuned(func(c *redischannels.Tuning) { c.Prefetch = redischannels.NoPrefetch }))
		messages := sub.subscribe(t, topic)
		ids := publish(t, client, topic, numbered(500)...)
		first := receive(t, messages)
		require.NoError(t, client.XTrimMaxLen(t.Context(), topic, 3).Err())
		first.Ack()
		var seen []string
		for len(seen) == 0 || seen[len(seen)-1] != "499" {
			seen = append(seen, receiveAcked(t, messages, 1)...)
		}
		if reports {
			require.Equal(t, ids[497], gapOf(t, sub.events.wait(t, redischannels.EventGap).Err).FirstAvailable)
		}
		require.Equal(t, []string{"497", "498", "499"}, seen[len(seen)-3:])
	})
	t.Run("history, before", func(t *testing.T) {
		t.Parallel()
		topic := redistest.Key(t)
		ids := publish(t, client, topic, numbered(10)...)
		require.NoError(t, client.XTrimMaxLen(t.Context(), topic, 3).Err())
		var seen []string
		for msg, err := range newSub(t, client).History(t.Context(), topic, redischannels.AfterID(ids[1]), redischannels.Latest) {
			if err != nil {
				require.Empty(t, seen, "the gap comes first")
				require.Equal(t, ids[7], gapOf(t, err).FirstAvailable)
				seen = append(seen, "gap")
				continue
			}
			seen = append(seen, string(msg.Payload))
		}
		require.Equal(t, []string{"gap", "7", "8", "9"}[1-gaps:], seen)
	})
	t.Run("history, meanwhile", func(t *testing.T) {
		t.Parallel()
		topic := redistest.Key(t)
		const n = 3000
		publish(t, client, topic, numbered(n)...)
		reported := 0
		var last string
		for msg, err := range newSub(t, client).History(t.Context(), topic, redischannels.Oldest, redischannels.Latest) {
			if err != nil {
				gapOf(t, err)
				reported++
				continue
			}
			if last == "" {
				require.NoError(t, client.XTrimMaxLen(t.Context(), topic, 5).Err())
			}
			last = string(msg.Payload)
		}
		require.Equal(t, gaps, reported)
		require.Equal(t, "2999", last)
	})
	t.Run("history, empty", func(t *testing.T) {
		t.Parallel()
		topic := redistest.Key(t)
		ids := publish(t, client, topic, numbered(10)...)
		require.NoError(t, client.XTrimMaxLen(t.Context(), topic, 0).Err())
		var errs []error
		for msg, err := range newSub(t, client).History(t.Context(), topic, redischannels.AfterID(ids[1]), redischannels.Latest) {
			require.Nil(t, msg)
			errs = append(errs, err)
		}
		require.Len(t, errs, gaps)
		for _, err := range errs {
			require.Empty(t, gapOf(t, err).FirstAvailable)
		}
		for range newSub(t, client).History(t.Context(), redistest.Key(t), redischannels.Oldest, redischannels.Latest) {
			require.FailNow(t, "a stream that does not exist has no history")
		}
	})
	t.Run("history, deleted in the middle", func(t *testing.T) {
		t.Parallel()
		topic := redistest.Key(t)
		ids := publish(t, client, topic, numbered(10)...)
		require.NoError(t, client.XDel(t.Context(), topic, ids[4:6]...).Err())
		var seen []string
		for msg, err := range newSub(t, client).History(t.Context(), topic, redischannels.Oldest, redischannels.Latest) {
			require.NoError(t, err)
			seen = append(seen, string(msg.Payload))
		}
		require.Equal(t, []string{"0", "1", "2", "3", "6", "7", "8", "9"}, seen)
	})
}

// An entry that was trimmed leaves the pending entries list by the command that renews or releases
// it. Where no handler had it, the reply to that command was not checked, and
// the entry was lost without a report. Before Redis 7 it stays in the list, and a claim reports it.
func TestSubscriber_TrimmedBufferedEntriesAreReported(t *testing.T) {
	t.Parallel()
	reports := redistest.IsRedis7(t, redistest.Shared(t).Client(t))
	trimmed := func(t *testing.T, client *redis.Client, sub *testSub, topic string, ids []string) {
		t.Helper()
		if !reports {
			sub.closeSoon(t)
			sub.events.none(t, redischannels.EventTrimmed)
			sub = newSub(t, client, inFlight(8), minIdle(shortIdle))
			sub.subscribe(t, topic)
		}
		require.Equal(t, ids, sub.events.wait(t, redischannels.EventTrimmed).EntryIDs)
		require.Len(t, sub.events.of(redischannels.EventTrimmed), 1)
	}
	t.Run("released at the end", func(t *testing.T) {
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
	t.Run("released to others", func(t *testing.T) {
		t.Parallel()
		client, topic := redistest.Shared(t).Client(t), redistest.Key(t)
		sub := newSub(t, client, inFlight(8), tuned(func(c *redischannels.Tuning) {
			c.MinIdle, c.ClaimInterval = time.Minute, time.Minute // a scan would see it first
		}))
		messages := sub.subscribe(t, topic)
		require.NoError(t, client.XGroupCreateConsumer(t.Context(), topic, "g", "peer").Err())
		ids := publish(t, client, topic, "offered", "waiting")
		eventuallyPending(t, client, topic, 2)
		require.NoError(t, client.XDel(t.Context(), topic, ids[1]).Err())
		trimmed(t, client, sub, topic, ids[1:])
		if reports {
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
			} else { // the check reads the entries, on every server
				require.Equal(t, ids, sub.events.wait(t, redischannels.EventTrimmed).EntryIDs)
				require.Len(t, sub.events.of(redischannels.EventTrimmed), 1)

				publish(t, direct, topic, "next")
				require.Equal(t, []string{"next"}, receiveAcked(t, messages, 1))
			}
			eventuallyPending(t, direct, topic, 0)
		})
	}
}

package tests

import (
	"errors"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
)

// Between two reads more is appended than the stream keeps, so that the second one continues
// behind entries that were never read, without a report.
func TestFanOut_GapBetweenReadsIsReported(t *testing.T) {
	t.Parallel()
	direct := redistest.Shared(t).Client(t)
	reports := redistest.IsRedis7(t, direct) // what it has deleted; others continue without a report
	// burst leaves three new entries and nothing else.
	burst := func(t *testing.T, topic string) []string {
		ids := publish(t, direct, topic, numbered(50)...)
		require.NoError(t, direct.XTrimMaxLen(t.Context(), topic, 3).Err())
		return ids
	}
	through := func(t *testing.T) (*redis.Client, *redistest.Proxy) {
		proxy := redistest.NewProxy(t, redistest.Shared(t).Addr())
		return redistest.Shared(t).Client(t, redistest.Via(proxy)), proxy
	}
	oneGap := func(t *testing.T, sub *testSub, want redischannels.GapError) {
		t.Helper()
		gaps := sub.events.of(redischannels.EventGap)
		if !reports {
			require.Empty(t, gaps)
			return
		}
		require.Len(t, gaps, 1)
		require.Equal(t, &want, gaps[0].Err)
	}

	t.Run("blocked reads", func(t *testing.T) {
		t.Parallel()
		topic := redistest.Key(t)
		client, proxy := through(t)
		sub := newSub(t, client, fanOut)
		blocked := proxy.BeforeRequest(1, redistest.Contains("BLOCK"), func() {})
		messages := sub.subscribe(t, topic)
		blocked.Wait(t, soon)
		var ids []string
		proxy.BeforeRequest(1, redistest.Contains("BLOCK"), func() { ids = burst(t, topic) })
		first := publish(t, direct, topic, "read")
		require.Equal(t, []string{"read", "47", "48", "49"}, receiveAcked(t, messages, 4))
		publish(t, direct, topic, "on")
		require.Equal(t, []string{"on"}, receiveAcked(t, messages, 1))
		oneGap(t, sub, redischannels.GapError{Topic: topic, After: first[0], FirstAvailable: ids[47]})
	})
	t.Run("a blocked read and the check behind it", func(t *testing.T) {
		t.Parallel()
		topic := redistest.Key(t)
		client, proxy := through(t)
		sub := newSub(t, client, fanOut)
		var ids []string
		proxy.BeforeReply(1, redistest.And(redistest.Contains("BLOCK"), redistest.Contains(topic)), func() { ids = burst(t, topic) })
		messages := sub.subscribe(t, topic)
		first := publish(t, direct, topic, "read")
		require.Equal(t, []string{"read", "47", "48", "49"}, receiveAcked(t, messages, 4))
		gaps := sub.events.of(redischannels.EventGap)
		if !reports {
			require.Empty(t, gaps)
			return
		}
		require.Equal(t, &redischannels.GapError{Topic: topic, After: first[0], FirstAvailable: ids[47]}, gaps[len(gaps)-1].Err)
		require.LessOrEqual(t, len(gaps), 2, "it may be reported before what was read as well: nothing shows the order")
	})
	t.Run("a read of its own", func(t *testing.T) {
		t.Parallel()
		topic := redistest.Key(t)
		client, proxy := through(t)
		sub := newSub(t, client, fanOut)
		first := publish(t, direct, topic, "read")
		var ids []string
		reads := 0
		proxy.BeforeRequest(2, redistest.Command("xread"), func() {
			if reads++; reads == 2 { // the first one is that of Subscribe
				ids = burst(t, topic)
			}
		})
		messages, err := sub.SubscribeFrom(t.Context(), topic, redischannels.AfterID(first[0]))
		require.NoError(t, err)
		require.Equal(t, []string{"47", "48", "49"}, receiveAcked(t, messages, 3))
		oneGap(t, sub, redischannels.GapError{Topic: topic, After: first[0], FirstAvailable: ids[47]})
	})
	t.Run("pages of a history", func(t *testing.T) {
		t.Parallel()
		for before := 1; before <= 7; before++ { // three pages, and four looks
			topic := redistest.Key(t, strconv.Itoa(before))
			client, proxy := through(t)
			publish(t, direct, topic, numbered(200)...)
			scripts := 0
			proxy.BeforeRequest(-1, redistest.Script(), func() {
				if scripts++; scripts == before {
					require.NoError(t, direct.XTrimMaxLen(t.Context(), topic, 3).Err())
				}
			})
			last, reported, gaps := -1, before <= 2, 0 // before the first page
			for msg, err := range newSub(t, client).History(t.Context(), topic, redischannels.Oldest, redischannels.Latest) {
				if err != nil {
					var gap *redischannels.GapError
					require.True(t, errors.As(err, &gap), "%v", err)
					gaps++
					reported = true
					continue
				}
				n, err := strconv.Atoi(string(msg.Payload))
				require.NoError(t, err)
				require.True(t, n == last+1 || reported || !reports && n > last, "%d behind %d, trimmed before script %d", n, last, before)
				last, reported = n, false
			}
			require.Equal(t, 199, last)
			require.LessOrEqual(t, gaps, 2)
			require.True(t, reports || gaps == 0)
			require.GreaterOrEqual(t, scripts, before)
		}
	})
	t.Run("at full speed", func(t *testing.T) {
		t.Parallel()
		topic := redistest.Key(t)
		sub := newSub(t, direct, fanOut)
		messages := sub.subscribe(t, topic)
		const n = 20000
		published := make(chan error, 1)
		go func() {
			pipe := direct.Pipeline()
			for i := range n {
				pipe.XAdd(t.Context(), &redis.XAddArgs{Stream: topic, MaxLen: 7, Values: []any{"_watermill_message_uuid", "u", "payload", i}})
				if i%20 == 19 || i == n-1 {
					if _, err := pipe.Exec(t.Context()); err != nil {
						published <- err
						return
					}
				}
			}
			published <- nil
		}()
		jumps := 0
		reported := func(first string) bool {
			return slices.ContainsFunc(sub.events.of(redischannels.EventGap), func(e redischannels.Event) bool {
				var gap *redischannels.GapError
				return errors.As(e.Err, &gap) && gap.FirstAvailable == first
			})
		}
		for last := -1; last < n-1; {
			msg := receive(t, messages)
			i, err := strconv.Atoi(string(msg.Payload))
			require.NoError(t, err)
			require.Greater(t, i, last)
			if i > last+1 {
				jumps++
				require.Equal(t, reports, reported(entryIDOf(t, msg)), "%d behind %d", i, last)
			}
			last = i
			msg.Ack()
		}
		require.NoError(t, <-published)
		require.NotZero(t, jumps, "it was not fast enough to miss anything")
		require.Less(t, len(sub.events.of(redischannels.EventGap)), 2*jumps+2)
	})
}

// cutBlockedRead cuts the connections when a blocked read was sent. One that was not sent yet
// would go out on a new connection, as if nothing had happened.
func cutBlockedRead(t *testing.T, proxy *redistest.Proxy) {
	t.Helper()
	proxy.BeforeRequest(1, redistest.Contains("BLOCK"), func() {}).Wait(t, soon)
	proxy.Cut()
}

// A stream that is deleted and restarts has smaller IDs than a subscription has seen, so
// that nothing ever comes behind its cursor.
func TestFanOut_ReadsARewoundStreamFromItsBeginning(t *testing.T) {
	t.Parallel()
	direct, topic := redistest.Shared(t).Client(t), redistest.Key(t)
	proxy := redistest.NewProxy(t, redistest.Shared(t).Addr())
	sub := newSub(t, redistest.Shared(t).Client(t, redistest.Via(proxy)), fanOut)
	add := func(client redis.Cmdable, id, payload string) {
		client.XAdd(t.Context(), &redis.XAddArgs{
			Stream: topic, ID: id, Values: []any{"_watermill_message_uuid", "u", "payload", payload},
		})
	}
	add(direct, "100-0", "read")
	messages, err := sub.SubscribeFrom(t.Context(), topic, redischannels.Oldest)
	require.NoError(t, err)
	require.Equal(t, []string{"read"}, receiveAcked(t, messages, 1))
	_, err = direct.TxPipelined(t.Context(), func(tx redis.Pipeliner) error {
		tx.Del(t.Context(), topic)
		add(tx, "50-0", "anew")
		return nil
	})
	require.NoError(t, err)
	cutBlockedRead(t, proxy) // it looks at the stream after each outage
	require.Equal(t, []string{"anew"}, receiveAcked(t, messages, 1))
	require.Equal(t, "50-0", sub.events.wait(t, redischannels.EventRewound).Position)
	add(direct, "51-0", "on")
	require.Equal(t, []string{"on"}, receiveAcked(t, messages, 1))

	// A reader that comes back with an ID that the stream no longer reaches has missed all.
	back, err := sub.SubscribeFrom(t.Context(), topic, redischannels.AfterID("100-0"))
	require.NoError(t, err)
	require.Equal(t, []string{"anew", "on"}, receiveAcked(t, back, 2))
	require.Len(t, sub.events.of(redischannels.EventRewound), 2)
	sub.events.none(t, redischannels.EventGap)
}

// A stream is deleted under a subscription without a group, which waits in a blocked read: it continues
// with what is written afterwards, and nothing comes twice.
func TestFanOut_ResumesWhenTheStreamIsRecreated(t *testing.T) {
	t.Parallel()
	for _, loss := range losses {
		if loss.name == "XGROUP DESTROY" || loss.name == "SET" { // which TestFanOut_OutageIsWaitedOut has
			continue
		}
		t.Run(loss.name, func(t *testing.T) {
			t.Parallel()
			server := redistest.Start(t)
			client, topic := server.Client(t), redistest.Key(t)
			sub := newSub(t, client, fanOut)
			messages := sub.subscribe(t, topic)
			publish(t, client, topic, "before", "last")
			require.Equal(t, []string{"before", "last"}, receiveAcked(t, messages, 2))
			redistest.Eventually(t, soon, func() bool { return redistest.BlockedClients(t, client) == 1 }, "the reader waits")
			loss.lose(t, client, topic)
			last := client.Time(t.Context()).Val()
			redistest.Eventually(t, soon, func() bool { return client.Time(t.Context()).Val().Sub(last) > time.Millisecond }, "greater IDs")
			publish(t, client, topic, "after")
			publish(t, client, topic, "later")
			require.Equal(t, []string{"after", "later"}, receiveAcked(t, messages, 2))
			noMessage(t, messages)
			sub.events.none(t, redischannels.EventDisconnected, redischannels.EventGap, redischannels.EventError)
		})
	}
}

// A stream is idle, or the clock of the reader is ahead of the server's: a start by time is
// then ahead of the stream, which did not go back for that.
func TestFanOut_SinceAheadOfTheStream(t *testing.T) {
	t.Parallel()
	direct, topic := redistest.Shared(t).Client(t), redistest.Key(t)
	proxy := redistest.NewProxy(t, redistest.Shared(t).Addr())
	publish(t, direct, topic, "long ago")
	looks := redistest.NewHook()
	client := redistest.Shared(t).Client(t, redistest.Via(proxy))
	client.AddHook(looks)
	sub := newSub(t, client, fanOut, onReads(looks))
	messages, err := sub.SubscribeFrom(t.Context(), topic, redischannels.Since(time.Now().Add(200*time.Millisecond)))
	require.NoError(t, err)
	before := looks.Count("evalsha")
	cutBlockedRead(t, proxy)
	redistest.Eventually(t, soon, func() bool { return looks.Count("evalsha") > before }, "a check")
	redistest.Eventually(t, soon, func() bool {
		publish(t, direct, topic, "too early, or not")
		select {
		case msg := <-messages:
			require.Equal(t, "too early, or not", string(msg.Payload))
			msg.Ack()
			return true
		default:
			return false
		}
	}, "a message of after the start")
	sub.events.none(t, redischannels.EventRewound, redischannels.EventGap)
}

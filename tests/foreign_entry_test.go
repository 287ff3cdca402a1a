package tests

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
)

// addManyFields appends an entry with 300,000 fields, as a foreign producer might: Redis takes
// 100 ms or more to give it to a script.
func addManyFields(t *testing.T, client *redis.Client, topic string) {
	t.Helper()
	options := *client.Options()
	options.ReadTimeout, options.WriteTimeout = time.Minute, time.Minute // a busy machine is slow with it
	patient := redis.NewClient(&options)
	defer patient.Close()
	require.NoError(t, patient.XAdd(t.Context(), &redis.XAddArgs{Stream: topic, Values: manyFields(300_000)}).Err())
}

// slowScripts returns how many scripts took the server longer than 60 ms since the slow log was reset.
func slowScripts(t *testing.T, client *redis.Client) (n int) {
	t.Helper()
	logged, err := client.SlowLogGet(t.Context(), -1).Result()
	require.NoError(t, err)
	for _, entry := range logged {
		if strings.HasPrefix(strings.ToLower(entry.Args[0]), "eval") {
			n++
		}
	}
	return n
}

// XINFO STREAM returns the first and the last entry whole. One of 300,000 fields stopped Redis for
// 200 ms with every check at the stream: in a group with every check for idle consumers.
func TestForeignEntry_LooksAtItsStreamAreCheap(t *testing.T) {
	t.Parallel()
	for _, read := range []bool{false, true} {
		t.Run(fmt.Sprintf("read=%v", read), func(t *testing.T) {
			t.Parallel()
			server := redistest.Start(t)
			client, topic := server.Client(t), redistest.Key(t)
			redistest.NeedsRedis7(t, client, "the lag of XINFO GROUPS")
			start := "0"
			if read {
				start = "$"
			}
			addManyFields(t, client, topic)
			require.NoError(t, client.XGroupCreate(t.Context(), topic, "g", start).Err())
			require.NoError(t, client.ConfigSet(t.Context(), "slowlog-log-slower-than", "60000").Err())
			require.NoError(t, client.SlowLogReset(t.Context()).Err())

			sub := newSub(t, client, tuned(func(c *redischannels.Tuning) { c.ClaimInterval = 20 * time.Millisecond }))
			for range 5 {
				stats, err := sub.GroupStats(t.Context(), topic)
				require.NoError(t, err)
				require.Equal(t, !read, stats.Lag == 1)
			}
			require.LessOrEqual(t, slowScripts(t, client), 1, "the machine may be busy")
			if !read {
				return // to read it takes as long as it takes
			}
			messages := sub.subscribe(t, topic)
			before := redistest.CommandStats(t, client)["xinfo|consumers"]
			redistest.Eventually(t, soon, func() bool {
				return redistest.CommandStats(t, client)["xinfo|consumers"] > before+5
			}, "the group is checked")
			publish(t, client, topic, "m")
			require.Equal(t, []string{"m"}, receiveAcked(t, messages, 1))
			require.NoError(t, sub.Close())
			require.LessOrEqual(t, slowScripts(t, client), 1)
		})
	}
}

// The same without a group: each subscription, each page of a history, and each check behind a page
// asked for XINFO STREAM. The large entry is the first or the last of the stream.
func TestForeignEntry_LooksWithoutAGroupAreCheap(t *testing.T) {
	t.Parallel()
	for _, last := range []bool{false, true} {
		t.Run(fmt.Sprintf("last=%v", last), func(t *testing.T) {
			t.Parallel()
			server := redistest.Start(t)
			client, topic := server.Client(t), redistest.Key(t)
			redistest.NeedsRedis7(t, client, "the lag of XINFO GROUPS")
			var ids []string
			if !last {
				addManyFields(t, client, topic)
			}
			for n := range 50 {
				ids = append(ids, publish(t, client, topic, fmt.Sprint(n))...)
			}
			if last {
				addManyFields(t, client, topic)
			}
			require.NoError(t, client.ConfigSet(t.Context(), "slowlog-log-slower-than", "60000").Err())
			require.NoError(t, client.SlowLogReset(t.Context()).Err())

			sub := newSub(t, client, fanOut)
			history := func(from, to redischannels.Position) (n int) {
				for _, err := range sub.History(t.Context(), topic, from, to) {
					require.NoError(t, err)
					n++
				}
				return n
			}
			var messages <-chan *message.Message
			for range 5 {
				messages = sub.subscribe(t, topic)
				if last {
					require.Equal(t, 10, history(redischannels.Oldest, redischannels.AfterID(ids[9])))
					continue
				}
				require.Equal(t, 49, history(redischannels.AfterID(ids[0]), redischannels.Latest))
				resumed, err := sub.SubscribeFrom(t.Context(), topic, redischannels.AfterID(ids[0]))
				require.NoError(t, err)
				require.Len(t, receiveAcked(t, resumed, 49), 49)
				whole, err := sub.SubscribeFrom(t.Context(), topic, redischannels.Oldest) // it reads the large entry, once
				require.NoError(t, err)
				require.Len(t, receiveAcked(t, whole, 50), 50)
			}
			publish(t, client, topic, "m")
			require.Equal(t, []string{"m"}, receiveAcked(t, messages, 1))
			require.NoError(t, sub.Close())
			require.LessOrEqual(t, slowScripts(t, client), 1, "the machine may be busy")
		})
	}
}

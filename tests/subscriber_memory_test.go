package tests

import (
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
)

// A server without memory refuses to write: reading and acknowledging must continue, since only
// they make room, and an entry that cannot become a dead letter must stay.
func TestSubscriber_DrainsAServerOutOfMemory(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	client, topic := server.Client(t), redistest.Key(t)
	sub := newSub(t, client, inFlight(2), tuned(func(c *redischannels.Tuning) { c.Prefetch = redischannels.NoPrefetch }))
	messages := sub.subscribe(t, topic)
	all := newSub(t, client, fanOut).subscribe(t, topic)
	ids := publish(t, client, topic, "bad", "claimed", "a", "b", "c")
	bad := receive(t, messages)
	require.Equal(t, "bad", string(bad.Payload))
	require.NoError(t, client.ConfigSet(t.Context(), "maxmemory", "1").Err())
	require.Less(t, groupOf(t, client, topic).LastDeliveredID, ids[2], "most is read without memory")
	redischannels.Reject(bad, "no")
	bad.Nack()
	claimed := receive(t, messages)
	setIdle(t, client, topic, "dead", time.Hour, ids[1])
	waitDone(t, claimed.Context()) // it was robbed, and gets it back by a claim
	claimed.Ack()
	var counts []int
	var payloads []string
	for len(payloads) < 4 {
		msg := receive(t, messages)
		if string(msg.Payload) == "b" && countOf(t, msg) == 1 {
			msg.Nack()
			continue
		}
		counts, payloads = append(counts, countOf(t, msg)), append(payloads, string(msg.Payload))
		msg.Ack()
	}
	require.ElementsMatch(t, []string{"a", "b", "c", "claimed"}, payloads)
	require.ElementsMatch(t, []int{1, 1, 1, 2}, counts)
	require.Equal(t, []string{"bad", "claimed", "a", "b", "c"}, receiveAcked(t, all, 5))
	require.ErrorIs(t, sub.events.wait(t, redischannels.EventDeadLetterFailed).Err, redischannels.ErrOutOfMemory)
	eventuallyPending(t, client, topic, 1)
	redistest.Never(t, time.Second, func() bool { return len(sub.events.of(redischannels.EventDeadLetterFailed)) > 1 }, "an event per attempt")
	require.NoError(t, client.ConfigSet(t.Context(), "maxmemory", "0").Err())
	sub.events.wait(t, redischannels.EventDeadLettered)
	eventuallyPending(t, client, topic, 0)
	require.EqualValues(t, 1, client.XLen(t.Context(), deadStream(topic)).Val())
	require.Len(t, sub.events.of(redischannels.EventDeadLetterFailed), 1)
}

// The group is lost, or others have made it again, and what is held cannot be put back because Redis
// is out of memory: one outage, however many duties find that out, and what was held is back in the
// group when there is memory.
func TestSubscriber_GroupLostWhileOutOfMemory(t *testing.T) {
	t.Parallel()
	for name, made := range map[string]bool{"lost": false, "re-created": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := redistest.Start(t)
			client, topic := server.Client(t), redistest.Key(t)
			idle := testMinIdle
			if made { // a lease must not run out meanwhile: then another consumer may have finished with it
				idle = 12 * testMinIdle
			}
			sub := newSub(t, client, inFlight(2), minIdle(idle))
			messages := sub.subscribe(t, topic)
			ids := publish(t, client, topic, "held")
			leased := receive(t, messages)
			_, err := client.TxPipelined(t.Context(), func(tx redis.Pipeliner) error {
				tx.XGroupDestroy(t.Context(), topic, "g")
				if made {
					tx.XGroupCreate(t.Context(), topic, "g", "$")
				}
				tx.ConfigSet(t.Context(), "maxmemory", "1")
				return nil
			})
			require.NoError(t, err)
			require.ErrorIs(t, sub.events.wait(t, redischannels.EventDisconnected).Err, redischannels.ErrOutOfMemory)
			redistest.Never(t, 2*testMinIdle, func() bool { // renewals try as well
				return len(sub.events.of(redischannels.EventError)) > 0
			}, "no outage but an error")
			require.NoError(t, leased.Context().Err())
			sub.events.none(t, redischannels.EventReconnected)
			require.NoError(t, client.ConfigSet(t.Context(), "maxmemory", "0").Err())
			require.Equal(t, ids, sub.events.wait(t, redischannels.EventGroupLost).EntryIDs)
			eventuallyPending(t, client, topic, 1)
			leased.Ack()
			publish(t, client, topic, "after")
			require.Equal(t, []string{"after"}, receiveAcked(t, messages, 1))
			eventuallyPending(t, client, topic, 0)
			noMessage(t, messages)
			sub.events.none(t, redischannels.EventError, redischannels.EventLeaseLost, redischannels.EventAckIgnored)
			require.Len(t, sub.events.of(redischannels.EventDisconnected), 1, "one event per outage")
			sub.events.wait(t, redischannels.EventReconnected)
		})
	}
}

package tests

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"fmt"
	"strings"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
)

// Redis counts reads, claims and deliveries alike, so messages that were never handled use up
// their deliveries by every deploy.
func TestSubscriber_ReleasesDoNotCount(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	topic := redistest.Key(t)
	ids := publish(t, client, topic, "a", "b", "c", "d", "e")

	for range 5 {
		sub := newSub(t, client, inFlight(len(ids)), minIdle(time.Minute))
		sub.subscribe(t, topic)
		eventuallyPending(t, client, topic, len(ids))
		sub.closeSoon(t)
		for _, p := range pendingOf(t, client, topic) {
			require.Zero(t, p.RetryCount, "%s was delivered to no handler", p.ID)
			require.GreaterOrEqual(t, p.Idle, time.Minute, "%s cannot be claimed at once", p.ID)
		}
	}
	sub := newSub(t, client, inFlight(len(ids)), minIdle(time.Minute))
	messages := sub.subscribe(t, topic)
	for range ids {
		msg := receive(t, messages)
		require.Equal(t, 1, countOf(t, msg))
		msg.Ack()
	}
	eventuallyPending(t, client, topic, 0)
}

// The count that a handler sees, and by which a message is dead-lettered, depends on the way that
// the message took to it.
func TestSubscriber_DeliveryCountIsThatOfDeliveries(t *testing.T) {
	t.Parallel()
	server := redistest.Shared(t)

	t.Run("nack", func(t *testing.T) {
		t.Parallel()
		client, topic := server.Client(t), redistest.Key(t)
		id := publish(t, client, topic, "m")[0]
		messages := newSub(t, client).subscribe(t, topic)
		for want := 1; want <= 4; want++ {
			msg := receive(t, messages)
			require.Equal(t, want, countOf(t, msg))
			require.Equal(t, id, entryIDOf(t, msg))
			pending := pendingOf(t, client, topic)
			require.Len(t, pending, 1)
			require.EqualValues(t, want, pending[0].RetryCount, "the count in Redis")
			if want < 4 {
				msg.Nack()
			} else {
				msg.Ack()
			}
		}
	})
	t.Run("crash", func(t *testing.T) {
		t.Parallel()
		client, topic := server.Client(t), redistest.Key(t)
		publish(t, client, topic, "m")
		// After the first crash it is unknown whether it was delivered; after the second it counts.
		for _, want := range []int{1, 1} {
			child := startConsumer(t, server, topic, "MIN_IDLE=300")
			require.Equal(t, want, child.got(t).count)
			child.Kill()
		}
		msg := receive(t, newSub(t, client, minIdle(300*time.Millisecond)).subscribe(t, topic))
		require.Equal(t, 3, countOf(t, msg))
		require.EqualValues(t, 3, pendingOf(t, client, topic)[0].RetryCount)
		msg.Ack()
	})
	t.Run("release of a nacked message", func(t *testing.T) {
		t.Parallel()
		client, topic := server.Client(t), redistest.Key(t)
		publish(t, client, topic, "m")
		for want := 1; want <= 3; want++ {
			sub := newSub(t, client, minIdle(time.Minute), func(c *redischannels.SubscriberConfig) {
				c.NackBackoff = redischannels.Backoff{Min: time.Minute, Jitter: redischannels.NoJitter}
			})
			msg := receive(t, sub.subscribe(t, topic))
			require.Equal(t, want, countOf(t, msg))
			msg.Nack() // it would come again in a minute, here
			redistest.Eventually(t, soon, func() bool { return msg.Context().Err() != nil }, "the end of the delivery")
			sub.closeSoon(t)
			p := pendingOf(t, client, topic)[0]
			require.EqualValues(t, want, p.RetryCount)
			require.Less(t, p.Idle, 30*time.Second, "the back-off is lost")
			setIdle(t, client, topic, p.Consumer, time.Minute, p.ID) // its end
		}
	})
	t.Run("lost reply of XREADGROUP", func(t *testing.T) {
		t.Parallel()
		topic := redistest.Key(t)
		proxy := redistest.NewProxy(t, server.Addr())
		client, direct := server.Client(t, redistest.Via(proxy)), server.Client(t)
		messages := newSub(t, client).subscribe(t, topic)
		lost := proxy.DropReplyIf(1, redistest.Command("XREADGROUP"), redistest.NotNil)
		publish(t, direct, topic, "m")
		msg := receive(t, messages)
		require.Equal(t, 1, lost.Count())
		require.Equal(t, 1, countOf(t, msg))
		require.EqualValues(t, 1, pendingOf(t, direct, topic)[0].RetryCount)
		msg.Ack()
		eventuallyPending(t, direct, topic, 0)
	})
	t.Run("claim of a released entry", func(t *testing.T) {
		t.Parallel()
		client, topic := server.Client(t), redistest.Key(t)
		publish(t, client, topic, "m")
		ids := deliverTo(t, client, topic, "other", 1, time.Hour)
		// As a release leaves it.
		require.NoError(t, client.Do(t.Context(), "XCLAIM", topic, "g", "other", 0, ids[0],
			"IDLE", time.Hour.Milliseconds(), "RETRYCOUNT", 0, "JUSTID").Err())
		msg := receive(t, newSub(t, client).subscribe(t, topic))
		require.Equal(t, 1, countOf(t, msg))
		msg.Ack()
	})
}

// A message that kills its process takes the blame for all that was in flight or prefetched
// with it: neighbors end as dead letters, or the killer is delivered forever.
func TestSubscriber_PoisonThatKillsItsProcess(t *testing.T) {
	t.Parallel()
	for _, way := range []string{"kill", "exit"} {
		t.Run(way, func(t *testing.T) {
			t.Parallel()
			const neighbours, limit = 1000, 4
			server := redistest.Shared(t)
			client := server.Client(t)
			topic := redistest.Key(t)
			var payloads []string
			for i := range neighbours + 1 {
				payloads = append(payloads, fmt.Sprintf("m%d", i))
			}
			payloads[neighbours/2] = way
			ids := publish(t, client, topic, payloads...)
			require.NoError(t, client.XGroupCreate(t.Context(), topic, "g", "0").Err())

			handled := make(map[string]int)
			killed := 0
			for crashed := true; crashed; {
				require.Less(t, killed, 2*limit, "the poison kills again")
				child := startConsumer(t, server, topic, "IN_FLIGHT=8", fmt.Sprintf("MAX_DELIVERIES=%d", limit), "MIN_IDLE=300", "ACK=1")
				ended := make(chan struct{})
				go func() {
					defer close(ended)
					for line := range child.Lines() {
						rest, ok := strings.CutPrefix(line, "got ")
						if !ok {
							continue
						}
						m := parseDelivered(rest)
						handled[m.payload]++
						if m.payload == way {
							killed++
							want := killed
							if killed == 2 {
								want = 1 // the first may only have been buffered
							}
							if m.count != want {
								t.Errorf("delivery %d of the poison has the count %d", killed, m.count)
							}
						}
					}
				}()
				redistest.Eventually(t, 6*soon, func() bool {
					select {
					case <-ended:
						return true
					default:
						crashed = client.XLen(t.Context(), deadStream(topic)).Val() == 0 ||
							groupOf(t, client, topic).LastDeliveredID != ids[neighbours] || len(pendingOf(t, client, topic)) > 0
						return !crashed
					}
				}, "neither the end of the child nor that of the backlog")
				if !crashed {
					child.tell("close")
				}
				<-ended
			}

			require.Equal(t, limit, killed)
			for i, p := range payloads {
				require.NotZero(t, handled[p], "%s (%s) was not handled", p, ids[i])
			}
			dead, err := client.XRange(t.Context(), deadStream(topic), "-", "+").Result()
			require.NoError(t, err)
			require.Len(t, dead, 1, "only the poison is a dead letter")
			require.Equal(t, ids[neighbours/2], dead[0].Values["_dead_entry_id"])
			require.Equal(t, "4", dead[0].Values["_dead_count"])
		})
	}
}

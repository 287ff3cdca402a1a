package tests

import (
	"slices"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
)

const (
	// slowLink delays each direction; a round trip takes twice as long.
	slowLink = 25 * time.Millisecond
	// manyRejects take five seconds and more over a slowLink if each takes a round trip.
	manyRejects = 200
	fewAcks     = 10
	// beforeGrace is less than Close gives its last writes, and many round trips.
	beforeGrace = 4 * time.Second
)

// attempt is one delivery, of a Subscriber or a Reader.
type attempt struct {
	id          string
	ack, reject func()
}

// receiver has received the messages of a topic behind a proxy.
type receiver struct {
	topic    string
	proxy    *redistest.Proxy
	direct   *redis.Client
	events   *events
	messages []attempt
	close    func() error
}

// receiveWithSubscriber receives n messages of a group with a Subscriber.
func receiveWithSubscriber(t *testing.T, n int, change ...func(*redischannels.SubscriberConfig)) *receiver {
	t.Helper()
	proxy, client, direct := pubProxy(t)
	topic := redistest.Key(t)
	sub := newSub(t, client, append([]func(*redischannels.SubscriberConfig){inFlight(n), minIdle(time.Minute)}, change...)...)
	messages := sub.subscribe(t, topic)
	publish(t, direct, topic, numbered(n)...)
	r := &receiver{topic: topic, proxy: proxy, direct: direct, events: sub.events, close: sub.Close}
	for range n {
		msg := receive(t, messages)
		r.messages = append(r.messages, attempt{
			id:  entryIDOf(t, msg),
			ack: func() { msg.Ack() },
			reject: func() {
				redischannels.Reject(msg, "rejected")
				msg.Nack()
			},
		})
	}
	return r
}

// receiveWithReader does the same with a Reader.
func receiveWithReader(t *testing.T, n int) *receiver {
	t.Helper()
	proxy, client, direct := pubProxy(t)
	topic := redistest.Key(t)
	hub := newHub(t, client, func(c *redischannels.HubConfig) {
		c.Stream.Subscriber.MaxInFlight, c.Stream.Subscriber.Tuning.MinIdle = n, time.Minute
	})
	channel := streamOf[int](t, hub, topic)
	write(t, channel, consecutive(0, n)...)
	r := &receiver{topic: topic, proxy: proxy, direct: direct, events: hub.events, close: channel.Reader().Close}
	for range n {
		d := receiveValue(t, channel)
		r.messages = append(r.messages, attempt{
			id:     d.ID,
			ack:    func() { _ = d.Ack() },
			reject: func() { _ = d.Reject("rejected") },
		})
	}
	return r
}

// acked are the messages to acknowledge; the others are rejected.
func (r *receiver) acked() []attempt    { return r.messages[:fewAcks] }
func (r *receiver) rejected() []attempt { return r.messages[fewAcks:] }

func (r *receiver) ackAll() {
	for _, m := range r.acked() {
		m.ack()
	}
}

// rejectAll rejects over a slow link. No move to the dead letters ends before all are rejected.
func (r *receiver) rejectAll() {
	r.proxy.Delay(slowLink)
	all := make(chan struct{})
	r.proxy.BeforeRequest(1, redistest.Contains(deadStream(r.topic)), func() { <-all })
	for _, m := range r.rejected() {
		m.reject()
	}
	close(all)
}

// rejectUntilMoving rejects and returns when the moves are under way.
func (r *receiver) rejectUntilMoving(t *testing.T) {
	t.Helper()
	r.rejectAll()
	r.awaitMoves(t)
}

// awaitMoves returns when some entries have become dead letters, so that what is acknowledged
// then comes behind others.
func (r *receiver) awaitMoves(t *testing.T) {
	t.Helper()
	redistest.Eventually(t, soon, func() bool { return r.deadLetters(t) >= 20 }, "dead letters")
}

// closeTimed returns how long Close took.
func (r *receiver) closeTimed(t *testing.T) time.Duration {
	t.Helper()
	start := time.Now()
	require.NoError(t, r.close())
	took := time.Since(start)
	t.Logf("Close took %s", took)
	return took
}

// requireAcked fails if an acknowledged entry is pending now.
func (r *receiver) requireAcked(t *testing.T) {
	t.Helper()
	pending := idsOf(pendingOf(t, r.direct, r.topic))
	var left []string
	for _, m := range r.acked() {
		if slices.Contains(pending, m.id) {
			left = append(left, m.id)
		}
	}
	require.Empty(t, left, "entries that were acknowledged before Close are pending after it")
}

func idsOf(pending []redis.XPendingExt) []string {
	ids := make([]string, len(pending))
	for i, p := range pending {
		ids[i] = p.ID
	}
	return ids
}

// deadLetters is the number of dead letters of the topic.
func (r *receiver) deadLetters(t *testing.T) int {
	t.Helper()
	n, err := r.direct.XLen(t.Context(), deadStream(r.topic)).Result()
	require.NoError(t, err)
	return int(n)
}

// reported are the entries that events of a kind have named.
func (r *receiver) reported(kind redischannels.EventKind) (ids []string) {
	for _, e := range r.events.of(kind) {
		ids = append(ids, e.EntryIDs...)
	}
	return ids
}

// Each move to the dead letters took a round trip, and acknowledgements waited for all of them:
// Close ran out of time and left entries pending that were acknowledged before it was called.
func TestClose_WritesAcksBehindManyRejects(t *testing.T) {
	t.Parallel()
	for name, receiveAll := range map[string]func(*testing.T, int) *receiver{
		"Subscriber": func(t *testing.T, n int) *receiver { return receiveWithSubscriber(t, n) },
		"Reader":     receiveWithReader,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := receiveAll(t, manyRejects+fewAcks)
			r.rejectUntilMoving(t)
			r.ackAll()
			requireAllWritten(t, r)
		})
		t.Run(name+", while it closes", func(t *testing.T) {
			t.Parallel()
			r := receiveAll(t, manyRejects+fewAcks)
			r.rejectUntilMoving(t)
			time.AfterFunc(4*slowLink, r.ackAll) // by handlers that Close waits for
			requireAllWritten(t, r)
		})
	}
	t.Run("failed for the last time", func(t *testing.T) {
		t.Parallel()
		r := receiveWithSubscriber(t, manyRejects+fewAcks, func(c *redischannels.SubscriberConfig) { c.MaxDeliveries = 1 })
		r.rejectUntilMoving(t)
		r.ackAll()
		requireAllWritten(t, r)
	})
}

// requireAllWritten closes and fails unless everything is in Redis when Close returns.
func requireAllWritten(t *testing.T, r *receiver) {
	t.Helper()
	took := r.closeTimed(t)
	r.requireAcked(t)
	require.Less(t, took, beforeGrace)
	require.Equal(t, len(r.rejected()), r.deadLetters(t))
	require.Empty(t, pendingOf(t, r.direct, r.topic))
	r.events.none(t, redischannels.EventAbandoned, redischannels.EventAckIgnored)
}

// Redis refuses the moves to the dead letters: that takes nothing from the acknowledgements, and
// Close reports what it leaves pending.
func TestClose_WritesAcksWhenDeadLettersAreRefused(t *testing.T) {
	t.Parallel()
	for name, refuse := range map[string]func(*testing.T, *receiver){
		"WRONGTYPE": func(t *testing.T, r *receiver) {
			require.NoError(t, r.direct.Set(t.Context(), deadStream(r.topic), "not a stream", 0).Err())
		},
		"OOM": func(t *testing.T, r *receiver) {
			require.NoError(t, r.direct.ConfigSet(t.Context(), "maxmemory", "1").Err())
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := receiveWithSubscriber(t, manyRejects+fewAcks)
			refuse(t, r)
			r.rejectAll()
			redistest.Eventually(t, soon, func() bool {
				return len(r.reported(redischannels.EventDeadLetterFailed)) >= 20
			}, "refused dead letters")
			r.ackAll()
			require.Less(t, r.closeTimed(t), 10*time.Second)
			r.requireAcked(t)
			left := idsOf(pendingOf(t, r.direct, r.topic))
			require.Len(t, left, len(r.rejected()))
			require.Subset(t, r.reported(redischannels.EventAbandoned), left, "entries that Close leaves pending are not reported")
		})
	}
}

// Entries that cannot be decoded become dead letters by themselves, while the application
// acknowledges others.
func TestClose_WritesAcksBehindManyUndecodableEntries(t *testing.T) {
	t.Parallel()
	r := receiveWithSubscriber(t, fewAcks, inFlight(manyRejects))
	r.proxy.Delay(slowLink)
	pipe := r.direct.Pipeline()
	for range manyRejects {
		pipe.XAdd(t.Context(), &redis.XAddArgs{Stream: r.topic, Values: []string{"not", "a message"}})
	}
	_, err := pipe.Exec(t.Context())
	require.NoError(t, err)
	r.awaitMoves(t)
	r.ackAll()
	took := r.closeTimed(t)
	r.requireAcked(t)
	require.Less(t, took, beforeGrace)
	r.events.none(t, redischannels.EventAbandoned, redischannels.EventAckIgnored)
}

// An acknowledgement waited for the moves to the dead letters before it, one round trip each.
func TestAck_IsQuickBesideManyRejects(t *testing.T) {
	t.Parallel()
	for name, receiveAll := range map[string]func(*testing.T, int) *receiver{
		"Subscriber": func(t *testing.T, n int) *receiver { return receiveWithSubscriber(t, n) },
		"Reader":     receiveWithReader,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := receiveAll(t, manyRejects+fewAcks)
			r.rejectUntilMoving(t)
			const roundTrip = 2 * slowLink
			var slowest time.Duration
			for _, m := range r.acked() {
				start := time.Now()
				m.ack()
				redistest.Eventually(t, 2*soon, func() bool {
					return !slices.Contains(idsOf(pendingOf(t, r.direct, r.topic)), m.id)
				}, "it is acknowledged")
				slowest = max(slowest, time.Since(start))
			}
			require.Less(t, slowest, 10*roundTrip, "the slowest of %d acknowledgements", fewAcks)
			redistest.Eventually(t, 2*soon, func() bool { return r.deadLetters(t) == manyRejects }, "dead letters")
		})
	}
}

// Acknowledgements that Redis refuses until Close gives up are reported: their messages come again.
func TestClose_ReportsAcksThatCouldNotBeWritten(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t, redistest.WithACL("app on >secret ~* +@all"))
	topic := redistest.Key(t)
	sub := newSub(t, server.Client(t, redistest.As("app", "secret")), inFlight(3), minIdle(time.Minute))
	messages := sub.subscribe(t, topic)
	admin := server.Admin(t)
	ids := publish(t, admin, topic, numbered(3)...)
	var received []*message.Message
	for range ids {
		received = append(received, receive(t, messages))
	}
	require.NoError(t, admin.Do(t.Context(), "acl", "setuser", "app", "-xack").Err())
	for _, msg := range received {
		msg.Ack()
	}
	sub.events.wait(t, redischannels.EventAckFailed)
	require.Less(t, sub.closeSoon(t), 10*time.Second)
	require.ElementsMatch(t, ids, sub.events.wait(t, redischannels.EventAbandoned).EntryIDs)
	require.Len(t, pendingOf(t, admin, topic), 3)
}

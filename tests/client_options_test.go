package tests

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
)

// The listener ignores the database, or the client, that it was given.
func TestClient_OtherDatabase(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	client := server.Client(t, redistest.DB(5))
	topic := redistest.Key(t)
	sub := newSub(t, client, func(c *redischannels.SubscriberConfig) { c.MaxDeliveries = 2 })
	messages := sub.subscribe(t, topic)
	publish(t, client, topic, "good", "bad")
	require.Equal(t, []string{"good"}, receiveAcked(t, messages, 1))
	receive(t, messages).Nack()
	receive(t, messages).Nack()
	sub.events.wait(t, redischannels.EventDeadLettered)
	waited := newSub(t, client, fanOut)
	all := waited.subscribe(t, topic)
	publish(t, client, topic, "fan-out")
	require.Equal(t, []string{"fan-out"}, receiveAcked(t, all, 1))
	sub.closeSoon(t)
	waited.closeSoon(t)

	keys, err := client.Keys(t.Context(), "*").Result()
	require.NoError(t, err)
	require.ElementsMatch(t, []string{topic, deadStream(topic), returnStream(topic, "g"), controlOf(topic)}, keys)
	elsewhere, err := server.Client(t, redistest.DB(0)).DBSize(t.Context()).Result()
	require.NoError(t, err)
	require.Zero(t, elsewhere)
}

// derivedKey is a value of a context that a handler derives.
type derivedKey struct{}

// everyFeature uses a topic in every way: published, handled, nacked, dead letters that are
// listed, requeued, reappended and purged, fan-out, history, and the numbers of the group.
func everyFeature(t *testing.T, client redis.UniversalClient, topic string, side, dead func(string) string) {
	t.Helper()
	ctx := t.Context()
	named := func(c *redischannels.SubscriberConfig) { c.SideKeys, c.DeadLetterTopic = side, dead }
	sub, all := newSub(t, client, deliveries(2), named), newSub(t, client, fanOut)
	messages, every := sub.subscribe(t, topic), all.subscribe(t, topic)
	publish(t, client, topic, "good", "bad")
	require.Equal(t, []string{"good"}, receiveAcked(t, messages, 1))
	receive(t, messages).Nack()
	receive(t, messages).Nack()
	lost := sub.events.wait(t, redischannels.EventDeadLettered)
	require.Equal(t, topic, lost.Topic)
	require.Equal(t, []string{"good", "bad"}, receiveAcked(t, every, 2))

	letters, err := redischannels.NewDeadLetters(redischannels.DeadLettersConfig{Client: client, SideKeys: side, DeadLetterTopic: dead}, nil)
	require.NoError(t, err)
	ids := listIDs(t, letters, topic, redischannels.DeadLetterQuery{Group: "g"})
	require.Len(t, ids, 1)
	results, err := letters.Requeue(ctx, topic, ids...)
	require.NoError(t, err)
	require.Len(t, results, 1)
	require.Equal(t, []string{"bad"}, receiveAcked(t, messages, 1))
	var old []string
	for msg, err := range all.History(ctx, topic, redischannels.Oldest, redischannels.Latest) {
		require.NoError(t, err)
		old = append(old, string(msg.Payload))
	}
	require.Equal(t, []string{"good", "bad"}, old)

	publish(t, client, topic, "worse")
	for n := 2; n <= 3; n++ {
		msg := receive(t, messages)
		require.Equal(t, "worse", string(msg.Payload))
		redischannels.Reject(msg, "no")
		msg.Nack()
		redistest.Eventually(t, soon, func() bool { return len(sub.events.of(redischannels.EventDeadLettered)) == n }, "it is a dead letter")
		ids = listIDs(t, letters, topic, redischannels.DeadLetterQuery{Group: "g"})
		require.Len(t, ids, 1)
		if n == 2 {
			results, err = letters.Reappend(ctx, topic, ids...)
			require.NoError(t, err)
			require.Equal(t, redischannels.ReappendDone, results[0].Outcome)
		}
	}
	purged, err := letters.Purge(ctx, topic, ids...)
	require.NoError(t, err)
	require.Equal(t, 1, purged)
	redistest.Eventually(t, soon, func() bool {
		stats, err := sub.GroupStats(ctx, topic)
		return err == nil && stats.Lag == 0 && stats.Pending == 0
	}, "nothing is left to do")
	sub.closeSoon(t)
	all.closeSoon(t)
	sub.events.none(t, redischannels.EventError, redischannels.EventDisconnected)
}

// The same replies look different in RESP2 and RESP3, and in another database a forgotten
// SELECT finds nothing.
func TestClient_ProtocolsAndDatabases(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	for _, protocol := range []int{2, 3} {
		for _, db := range []int{0, 5} {
			t.Run(fmt.Sprintf("RESP%d, database %d", protocol, db), func(t *testing.T) {
				t.Parallel()
				name := fmt.Sprintf("client-%d-%d", protocol, db)
				client := server.Client(t, func(o *redis.Options) {
					o.Protocol, o.DB = protocol, db
					o.OnConnect = func(ctx context.Context, cn *redis.Conn) error { return cn.ClientSetName(ctx, name).Err() }
				})
				everyFeature(t, client, redistest.Key(t), nil, nil)

				// The connections that are opened for reading are like the client's own.
				newSub(t, client).subscribe(t, redistest.Key(t))
				newSub(t, client, fanOut).subscribe(t, redistest.Key(t))
				var reading []string
				redistest.Eventually(t, soon, func() bool {
					reading = nil
					for line := range strings.Lines(client.ClientList(t.Context()).Val()) {
						if strings.Contains(line, " name="+name+" ") && strings.Contains(line, "cmd=xread") {
							reading = append(reading, line)
						}
					}
					return len(reading) == 2
				}, "two readers with the name that OnConnect has given them")
				for _, line := range reading {
					require.Contains(t, line, fmt.Sprintf(" db=%d ", db))
					if strings.Contains(line, " resp=") { // from Redis 7.0 on
						require.Contains(t, line, fmt.Sprintf(" resp=%d", protocol))
					}
				}
			})
		}
	}
}

// A server that talks to clients with a certificate only: read connections are built from the
// client's options and must have it too.
func TestClient_TLSWithAClientCertificate(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t, redistest.TLS(), redistest.Password("of-the-server"))
	everyFeature(t, server.Client(t), redistest.Key(t), nil, nil)

	bare := server.Client(t, func(o *redis.Options) { o.TLSConfig.Certificates = nil })
	_, err := newSub(t, bare).Subscribe(t.Context(), redistest.Key(t))
	require.Error(t, err)
}

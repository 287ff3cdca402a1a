package tests

import (
	"bytes"
	"context"
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

// everyFeature uses a topic in every way: published, handled, nacked, dead letters that are
// listed, requeued, reappended and purged, fan-out, history, and the numbers of the group.
func everyFeature(t *testing.T, client redis.UniversalClient, topic string, dead func(string) string) {
	t.Helper()
	ctx := t.Context()
	named := func(c *redischannels.SubscriberConfig) { c.DeadLetterTopic = dead }
	sub, all := newSub(t, client, deliveries(2), named), newSub(t, client, fanOut)
	messages, every := sub.subscribe(t, topic), all.subscribe(t, topic)
	publish(t, client, topic, "good", "bad")
	require.Equal(t, []string{"good"}, receiveAcked(t, messages, 1))
	receive(t, messages).Nack()
	receive(t, messages).Nack()
	lost := sub.events.wait(t, redischannels.EventDeadLettered)
	require.Equal(t, topic, lost.Topic)
	require.Equal(t, []string{"good", "bad"}, receiveAcked(t, every, 2))

	letters, err := redischannels.NewDeadLetters(redischannels.DeadLettersConfig{Client: client, DeadLetterTopic: dead}, nil)
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
// SELECT finds nothing. (F22, F93)
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
				everyFeature(t, client, redistest.Key(t), nil)

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
	everyFeature(t, server.Client(t), redistest.Key(t), nil)

	bare := server.Client(t, func(o *redis.Options) { o.TLSConfig.Certificates = nil })
	_, err := newSub(t, bare).Subscribe(t.Context(), redistest.Key(t))
	require.Error(t, err)
}

// A topic is a key: any bytes. (F104)
func TestInput_TopicsOfAnyBytes(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	elsewhere := func(topic string) string { return topic + ":dead" }
	for name, form := range map[string]string{
		"spaces":             " a b  %s ",
		"newlines":           "a\r\nDEL %s\r\n",
		"hash tag":           "{%s}:x",
		"opening brace":      "a{%s",
		"empty hash tag":     "{}%s",
		"closing brace":      "a}%s",
		"binary":             "\x00\xff\xfe%s\x80",
		"pattern characters": "*?[%s]\\",
		"quotes":             `"'%s'"`,
		"not ASCII":          "Bestellungen für %s 订单",
		"percent":            "%%s %%d %s",
		"long":               "%s" + strings.Repeat("x", 10_000),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			topic := fmt.Sprintf(form, redistest.Key(t))
			var dead func(string) string
			if strings.Contains(topic, "}") && name != "hash tag" { // the default says that it needs one
				dead = elsewhere
				_, err := newSub(t, client).Subscribe(t.Context(), topic)
				require.ErrorIs(t, err, redischannels.ErrInvalidArgument)
				require.ErrorContains(t, err, "DeadLetterTopic")
			}
			everyFeature(t, client, topic, dead)
			require.NoError(t, client.Del(t.Context(), topic).Err())
		})
	}
}

// Sizes from nothing to the bound, on both sides. What is larger is refused by the publisher,
// and becomes a dead letter at the subscriber without being decoded. (F104)
func TestInput_PayloadsUpToTheBound(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	client := server.Client(t)
	topic := redistest.Key(t)
	sub := newSub(t, client, tuned(func(c *redischannels.Tuning) { // a reply must come within BlockTime + 1 s
		c.MinIdle, c.BlockTime = 2*time.Minute, 39*time.Second
	}))
	messages := sub.subscribe(t, topic)
	pub := newTestPublisher(t, client, watermillFormat)
	for _, size := range []int{0, 1, 1 << 10, 1 << 20, 63 << 20} {
		payload := bytes.Repeat([]byte{0xa5}, size)
		require.NoError(t, pub.Publish(topic, message.NewMessage("m", payload)), size)
		var msg *message.Message
		select {
		case msg = <-messages:
		case <-time.After(4 * soon): // a loaded machine takes its time for 63 MiB
			require.FailNow(t, "no message", "of %d bytes", size)
		}
		require.True(t, bytes.Equal(payload, msg.Payload), "%d bytes", size)
		msg.Ack()
	}
	require.ErrorIs(t, pub.Publish(topic, message.NewMessage("m", make([]byte, 64<<20))), redischannels.ErrTooLarge)
	eventuallyPending(t, client, topic, 0)
	sub.closeSoon(t)

	narrow := newSub(t, client, func(c *redischannels.SubscriberConfig) { c.MaxPayload = 1000 })
	messages = narrow.subscribe(t, topic)
	publish(t, client, topic, strings.Repeat("x", 2000), "small")
	require.Equal(t, []string{"small"}, receiveAcked(t, messages, 1))
	event := narrow.events.wait(t, redischannels.EventDeadLettered)
	require.ErrorContains(t, event.Err, "MaxPayload 1000")
}

// Metadata is the publisher's: names and values of any bytes, also those that the library uses
// itself, neither break an entry nor pretend to be a dead letter.
func TestInput_HostileMetadata(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	topic := redistest.Key(t)
	sub := newSub(t, client)
	messages := sub.subscribe(t, topic)
	msg := message.NewMessage("u\r\n\x00", []byte("p"))
	pub := newTestPublisher(t, client, watermillFormat)
	reserved := message.NewMessage("u", nil)
	reserved.Metadata.Set("_watermill_message_uuid", "another")
	require.Error(t, pub.Publish(topic, reserved))
	for _, name := range []string{
		"", " ", "payload", "metadata", "_dead_reason", "_dead_entry_id", "\x00\xff", "a\r\nDEL b",
		strings.Repeat("n", 10_000),
	} {
		msg.Metadata.Set(name, "value of "+name+"\x00\xff\r\n")
	}
	require.NoError(t, pub.Publish(topic, msg))
	got := receive(t, messages)
	require.True(t, msg.Equals(got), "%q", got.Metadata)
	redischannels.Reject(got, "hostile\r\n\x00\xff")
	got.Nack()
	sub.events.wait(t, redischannels.EventDeadLettered)
	for letter, err := range newDeadLetters(t, client).List(t.Context(), topic, redischannels.DeadLetterQuery{}) {
		require.NoError(t, err)
		require.Equal(t, topic, letter.Topic)
		require.Equal(t, "g", letter.Group)
		again, err := redischannels.WatermillMarshaler{}.Unmarshal(letter.Entry())
		require.NoError(t, err)
		require.True(t, msg.Equals(again))
	}
}

// Neither the log nor an event nor an error nor a reason holds a password or a payload, whatever
// goes wrong. The dead letter holds the payload, which is what it is for. (F106)
func TestLogs_NoSecrets(t *testing.T) {
	t.Parallel()
	const password, payload = "pa55word-of-the-user", "pay10ad-of-a-customer"
	server := redistest.Start(t, redistest.WithACL("app on >"+password+" ~* +@all"))
	admin, topic := server.Admin(t), redistest.Key(t)
	client := server.Client(t, redistest.As("app", password))
	logger := redistest.NewRecordingLogger()
	sub := newLoggedSub(t, client, logger, deliveries(1), inFlight(2), func(c *redischannels.SubscriberConfig) { c.MaxPayload = 1000 })
	messages := sub.subscribe(t, topic)
	pub, err := redischannels.NewPublisher(redischannels.PublisherConfig{Client: client, MaxPayload: 1000}, logger)
	require.NoError(t, err)
	defer pub.Close()
	var texts []string
	note := func(err error) {
		require.Error(t, err)
		texts = append(texts, err.Error())
	}

	require.NoError(t, pub.Publish(topic, message.NewMessage("u", []byte(payload))))
	receive(t, messages).Nack() // too many deliveries
	addRaw(t, admin, topic, "neither", payload, payload, "message")
	addRaw(t, admin, topic, "_watermill_message_uuid", "u", "metadata", payload, "payload", payload)
	addRaw(t, admin, topic, "_watermill_message_uuid", "u", "metadata", "\x80", "payload", strings.Repeat(payload, 100))
	redistest.Eventually(t, soon, func() bool { return len(sub.events.of(redischannels.EventDeadLettered)) == 4 }, "four dead letters")
	note(pub.Publish(topic, message.NewMessage("u", []byte(strings.Repeat(payload, 100)))))
	require.NoError(t, admin.Do(t.Context(), "acl", "setuser", "app", "-xack", "-xadd", "-xreadgroup").Err())
	note(pub.Publish(topic, message.NewMessage("u", []byte(payload))))
	require.NoError(t, admin.Do(t.Context(), "acl", "setuser", "app", ">another", "<"+password).Err())
	require.NoError(t, admin.ClientKillByFilter(t.Context(), "type", "normal", "skipme", "yes").Err())
	note(pub.Publish(topic, message.NewMessage("u", []byte(payload))))
	sub.events.wait(t, redischannels.EventDisconnected)
	_, err = newLoggedSub(t, client, logger).Subscribe(t.Context(), topic)
	require.ErrorIs(t, err, redischannels.ErrPermission, "a wrong password")
	note(err)
	sub.closeSoon(t)

	texts = append(texts, logger.Lines()...)
	for _, e := range sub.events.seen {
		texts = append(texts, fmt.Sprint(e))
	}
	for _, e := range rawRange(t, admin, deadStream(topic)) {
		for i := 0; i < len(e.fields); i += 2 {
			if strings.HasPrefix(e.fields[i], "_dead_") {
				texts = append(texts, e.fields[i+1])
			}
			require.NotContains(t, e.fields[i+1], password)
		}
	}
	require.Greater(t, len(texts), 10)
	for _, text := range texts {
		require.NotContains(t, text, password)
		require.NotContains(t, text, payload)
	}
}

// The same for Pub/Sub, which keeps nothing: no payload is told anywhere. (F106)
func TestLogs_NoSecretsOfPubSub(t *testing.T) {
	t.Parallel()
	const password, payload = "pa55word-of-the-user", "pay10ad-of-a-customer"
	server := redistest.Start(t, redistest.WithACL("app on >"+password+" ~* &* +@all"))
	admin, topic := server.Admin(t), redistest.Key(t)
	client := server.Client(t, redistest.As("app", password))
	logger := redistest.NewRecordingLogger()
	sub := newLoggedPubSub(t, client, logger, buffer(1, redischannels.DropOldest), func(c *redischannels.PubSubSubscriberConfig) {
		c.MaxDeliveries, c.MaxPayload = 1, 1000
	})
	messages := sub.subscribe(t, topic)
	pub, err := redischannels.NewPubSubPublisher(redischannels.PubSubPublisherConfig{Client: client, MaxPayload: 1000}, logger)
	require.NoError(t, err)
	t.Cleanup(func() { _ = pub.Close() })
	var texts []string
	note := func(err error) {
		require.Error(t, err)
		texts = append(texts, err.Error())
	}

	say(t, pub, topic, payload)
	receive(t, messages).Nack()
	sub.events.wait(t, redischannels.EventSkipped)
	for n, bad := range []string{payload, strings.Repeat(payload, 100)} {
		require.NoError(t, admin.Publish(t.Context(), topic, bad).Err())
		redistest.Eventually(t, soon, func() bool { return sub.events.sum(redischannels.EventUndecodable) == n+1 }, "it is undecodable")
	}
	say(t, pub, topic, payload, payload, payload, payload)
	sub.events.wait(t, redischannels.EventDropped)
	note(pub.Publish(topic, message.NewMessage("u", []byte(strings.Repeat(payload, 100)))))
	require.NoError(t, admin.Do(t.Context(), "acl", "setuser", "app", "-publish", ">another", "<"+password).Err())
	note(pub.Publish(topic, message.NewMessage("u", []byte(payload))))
	require.NoError(t, admin.Do(t.Context(), "client", "kill", "user", "app").Err())
	sub.events.wait(t, redischannels.EventDisconnected)
	_, err = newLoggedPubSub(t, client, logger).Subscribe(t.Context(), topic)
	require.ErrorIs(t, err, redischannels.ErrPermission, "a wrong password")
	note(err)
	note(pub.Publish(topic, message.NewMessage("u", []byte(payload))))
	sub.closeSoon(t)

	texts = append(texts, logger.Lines()...)
	for _, e := range sub.events.seen {
		texts = append(texts, fmt.Sprint(e))
	}
	require.Greater(t, len(texts), 10)
	for _, text := range texts {
		require.NotContains(t, text, password)
		require.NotContains(t, text, payload)
	}
}

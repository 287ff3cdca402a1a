package tests

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
)

// Neither the log nor an event nor an error nor a reason holds a password or a payload, whatever
// goes wrong. The dead letter contains the payload, which is its purpose.
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

// The same for Pub/Sub, which keeps nothing: no payload is in any text.
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

// talkative is a value whose own method quotes what it has read.
type talkative struct{ Text string }

func (v *talkative) UnmarshalJSON(data []byte) error {
	return fmt.Errorf("talkative cannot read %s", data)
}

// An error of the application that has seen the payload was logged and reported with it.
func TestLogs_NoSecretsOfCodecs(t *testing.T) {
	t.Parallel()
	const payload = "pay10ad-of-a-customer"
	client, topic := redistest.Shared(t).Client(t), redistest.Key(t)
	logger := redistest.NewRecordingLogger()
	hub := newHub(t, client, func(c *redischannels.HubConfig) { c.Logger = logger })
	c := streamOf[talkative](t, hub, topic)
	handled := handling(t.Context(), c, func(context.Context, talkative) error { return nil }, redischannels.HandleConfig{})
	publish(t, client, topic, `"`+payload+`"`)
	letter := onlyDeadLetter(t, client, topic)
	require.NoError(t, c.Close())
	require.NoError(t, <-handled)
	texts := append(logger.Lines(), letter.Reason)
	for _, e := range hub.events.seen {
		texts = append(texts, fmt.Sprint(e))
		data, err := json.Marshal(e)
		require.NoError(t, err)
		texts = append(texts, string(data))
	}
	for _, text := range texts {
		require.NotContains(t, text, payload)
	}
}

package tests

import (
	"errors"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
)

// With a StreamingCredentialsProvider PubSubSubscriber.Subscribe ended the process, and the first
// batch was not published: go-redis cannot log in a Conn of such a client.
func TestClient_RotatingCredentials(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t, redistest.WithACL("app on >first ~* &* +@all"))
	admin := server.Admin(t)
	provider := redistest.NewCredentials("app", "first")
	client := server.Client(t, provider.Option)
	topic := redistest.Key(t)

	live, publisher := newPubSub(t, client), newPubSubPub(t, client)
	group, all := newSub(t, client), newSub(t, client, fanOut)
	heard, grouped, every := live.subscribe(t, topic), group.subscribe(t, topic), all.subscribe(t, topic)
	pub := newTestPublisher(t, client, watermillFormat)
	durable := newTestPublisher(t, server.Client(t, provider.Option), watermillFormat, pubDurable(1, quiet))
	check := func(a, b, c string) {
		t.Helper()
		require.NoError(t, pub.Publish(topic, message.NewMessage(a, []byte(a)), message.NewMessage(b, []byte(b))))
		require.ErrorIs(t, durable.Publish(topic, message.NewMessage(c, []byte(c))), redischannels.ErrUnderReplicated, "there is no replica")
		require.Equal(t, []string{a, b, c}, receiveAcked(t, grouped, 3))
		require.Equal(t, []string{a, b, c}, receiveAcked(t, every, 3))
		require.NoError(t, publisher.Publish(topic, message.NewMessage(a, []byte(a))))
		require.Equal(t, []string{a}, receiveAcked(t, heard, 1))
	}
	check("a", "b", "c")
	require.NoError(t, admin.Do(t.Context(), "acl", "setuser", "app", "resetpass", ">second").Err())
	provider.Rotate("second")
	require.NoError(t, admin.ClientKillByFilter(t.Context(), "user", "app").Err())
	live.events.wait(t, redischannels.EventReconnected)
	check("d", "e", "f")
}

// A provider that panicked where a connection of the library's own logs in ended the process. Whatever
// a provider does while connections are opened again, everything recovers when it has ended.
func TestClient_HostileCredentials(t *testing.T) {
	t.Parallel()
	for name, hostile := range map[string]func(over <-chan struct{}) error{
		"panics": func(<-chan struct{}) error { panic("provider") },
		"fails":  func(<-chan struct{}) error { return errors.New("no credentials now") },
		"blocks": func(over <-chan struct{}) error { <-over; return nil },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := redistest.Start(t, redistest.WithACL("app on >secret ~* &* +@all"))
			admin, topic := server.Admin(t), redistest.Key(t)
			provider := redistest.NewCredentials("app", "secret")
			client := server.Client(t, provider.Option, func(o *redis.Options) { o.PoolSize = 100 })
			live, group, all := newPubSub(t, client), newSub(t, client), newSub(t, client, fanOut)
			heard, grouped, every := live.subscribe(t, topic), group.subscribe(t, topic), all.subscribe(t, topic)

			over := make(chan struct{})
			provider.Asked(func() error { return hostile(over) })
			require.NoError(t, admin.ClientKillByFilter(t.Context(), "user", "app").Err())
			redistest.Eventually(t, soon, func() bool { return provider.Failed() >= 3 }, "each asks for credentials")
			provider.Asked(nil)
			close(over)

			publish(t, admin, topic, "a")
			require.Equal(t, []string{"a"}, receiveAcked(t, grouped, 1))
			require.Equal(t, []string{"a"}, receiveAcked(t, every, 1))
			live.events.wait(t, redischannels.EventReconnected)
			publisher := newPubSubPub(t, client)
			redistest.Eventually(t, soon, func() bool { return publisher.Publish(topic, pubMessages("b", 1)...) == nil }, "a connection")
			require.NotNil(t, receive(t, heard))
			eventuallyPending(t, admin, topic, 0)
			require.NoError(t, errors.Join(live.Close(), group.Close(), all.Close()))
		})
	}
}

package tests

import (
	"sync"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/auth"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
)

// rotating is a StreamingCredentialsProvider whose password changes.
type rotating struct {
	mu        sync.Mutex
	password  string
	listeners map[auth.CredentialsListener]struct{}
}

func (r *rotating) Subscribe(listener auth.CredentialsListener) (auth.Credentials, auth.UnsubscribeFunc, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.listeners[listener] = struct{}{}
	return auth.NewBasicCredentials("app", r.password), func() error {
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.listeners, listener)
		return nil
	}, nil
}

func (r *rotating) rotate(password string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.password = password
	for listener := range r.listeners {
		listener.OnNext(auth.NewBasicCredentials("app", password))
	}
}

// With a StreamingCredentialsProvider PubSubSubscriber.Subscribe ended the process, and the first
// batch was not published: go-redis cannot log in a Conn of such a client.
func TestClient_RotatingCredentials(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t, redistest.WithACL("app on >first ~* &* +@all"))
	admin := server.Admin(t)
	provider := &rotating{password: "first", listeners: map[auth.CredentialsListener]struct{}{}}
	client := server.Client(t, func(o *redis.Options) {
		o.Username, o.Password, o.StreamingCredentialsProvider = "", "", provider
	})
	topic := redistest.Key(t)

	live, publisher := newPubSub(t, client), newPubSubPub(t, client)
	group, all := newSub(t, client), newSub(t, client, fanOut)
	heard, grouped, every := live.subscribe(t, topic), group.subscribe(t, topic), all.subscribe(t, topic)
	pub := newTestPublisher(t, client, watermillFormat)
	durable := newTestPublisher(t, server.Client(t, func(o *redis.Options) {
		o.Username, o.Password, o.StreamingCredentialsProvider = "", "", provider
	}), watermillFormat, pubDurable(1, quiet))
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
	provider.rotate("second")
	require.NoError(t, admin.ClientKillByFilter(t.Context(), "user", "app").Err())
	live.events.wait(t, redischannels.EventReconnected)
	check("d", "e", "f")
}

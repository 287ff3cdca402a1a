package tests

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
)

// Whatever a client needs to reach its server is taken over: TLS, passwords, both protocols.
// Quiet connections stay.
func TestPubSub_ReachesWhatTheClientReaches(t *testing.T) {
	t.Parallel()
	const interval = 100 * time.Millisecond
	for name, server := range map[string]*redistest.Server{
		"TLS": redistest.Start(t, redistest.TLS()), "password": redistest.Start(t, redistest.Password("secret")),
	} {
		for _, protocol := range []int{2, 3} {
			t.Run(name, func(t *testing.T) {
				client := server.Client(t, func(o *redis.Options) {
					o.Protocol = protocol
					o.ReadTimeout = -1 // the caller's, for its own commands
				})
				seen := make(chan *redis.Client, 1)
				sub := newPubSub(t, client, healthInterval(interval), func(c *redischannels.PubSubSubscriberConfig) {
					c.OnReadClient = func(opened *redis.Client) { seen <- opened }
				})
				topic := redistest.Key(t)
				messages := sub.subscribe(t, topic)
				require.NotSame(t, client, <-seen)
				redistest.Never(t, 3*interval, func() bool { return len(sub.events.of(redischannels.EventDisconnected)) > 0 }, "a disconnect")
				say(t, newPubSubPub(t, client), topic, "m")
				require.Equal(t, []string{"m"}, receiveAcked(t, messages, 1))
			})
		}
	}
}

// The permissions that docs/guarantees.md names are enough, and a user without permission for PING is
// no half-open connection.
func TestPubSub_LeastPrivilege(t *testing.T) {
	t.Parallel()
	const interval = 500 * time.Millisecond // a PONG comes within it on a loaded machine
	server := redistest.Start(t, redistest.WithACL(
		"sub on >secret resetchannels &app:* -@all +subscribe +unsubscribe +ping",
		"glob on >secret resetchannels &app:* -@all +psubscribe +punsubscribe +ping",
		"shard on >secret resetchannels &app:* -@all +command",
		"pub on >secret resetchannels &app:* -@all +publish"))
	admin, pub := server.Admin(t), server.Client(t, redistest.As("pub", "secret"))
	if redistest.IsRedis7(t, admin) {
		require.NoError(t, admin.Do(t.Context(), "acl", "setuser", "shard", "-@all", "+ssubscribe", "+sunsubscribe").Err())
		require.NoError(t, admin.Do(t.Context(), "acl", "setuser", "pub", "+spublish").Err())
	}
	prefix := func(c *redischannels.PubSubSubscriberConfig) { c.ChannelPrefix = "app:" }
	for user, change := range map[string]func(*redischannels.PubSubSubscriberConfig){
		"sub":   func(*redischannels.PubSubSubscriberConfig) {},
		"glob":  patterns,
		"shard": shardedSub,
	} {
		t.Run(user, func(t *testing.T) {
			t.Parallel()
			sub := newPubSub(t, server.Client(t, redistest.As(user, "secret")), prefix, change, healthInterval(interval))
			// A pattern is allowed where the user may use exactly this pattern.
			topic := map[string]string{"sub": "x", "glob": "*", "shard": "x"}[user]
			ctx, cancel := context.WithCancel(t.Context())
			messages, err := sub.Subscribe(ctx, topic)
			require.NoError(t, err)
			other, err := sub.Subscribe(t.Context(), topic)
			require.NoError(t, err)
			redistest.Never(t, 3*interval, func() bool { return len(sub.events.of(redischannels.EventDisconnected)) > 0 }, "a disconnect")
			publisher := newPubSubPub(t, pub, func(c *redischannels.PubSubPublisherConfig) {
				c.ChannelPrefix, c.Sharded = "app:", user == "shard"
			})
			say(t, publisher, "x", "m")
			receiveAcked(t, messages, 1)
			receiveAcked(t, other, 1)
			cancel()
			waitClosed(t, messages)
		})
	}
}

// A panic in OnEvent, or one that takes its time, delays neither messages nor the end of
// other events.
func TestPubSub_SlowOnEvent(t *testing.T) {
	t.Parallel()
	proxy, client, direct := pubProxy(t)
	release := make(chan struct{})
	var once sync.Once
	sub := newPubSub(t, client, func(c *redischannels.PubSubSubscriberConfig) {
		record := c.OnEvent
		c.OnEvent = func(e redischannels.Event) {
			once.Do(func() { <-release })
			record(e)
			panic("in OnEvent")
		}
	})
	topic := redistest.Key(t)
	messages := sub.subscribe(t, topic)
	pub := newPubSubPub(t, direct)
	for range 3 {
		proxy.Cut()
		redistest.Eventually(t, soon, func() bool { return subscribers(t, direct, topic) == 0 }, "cut")
		redistest.Eventually(t, soon, func() bool { return subscribers(t, direct, topic) == 1 }, "subscribed again")
		say(t, pub, topic, "m")
		receiveAcked(t, messages, 1)
	}
	close(release)
	require.Len(t, sub.events.waitN(t, redischannels.EventInterrupted, 3), 3)
	sub.closeSoon(t)
}

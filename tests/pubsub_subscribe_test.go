package tests

import (
	"context"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
)

// Subscribe returns before the server has subscribed: what is published next is lost.
func TestPubSub_SubscribeReturnsWhenConfirmed(t *testing.T) {
	t.Parallel()
	proxy, client, direct := pubProxy(t)
	proxy.Delay(15 * time.Millisecond)
	plain := newPubSubPub(t, direct)
	for name, c := range map[string]struct {
		change func(*redischannels.PubSubSubscriberConfig)
		pub    *redischannels.PubSubPublisher
	}{
		"plain":    {func(*redischannels.PubSubSubscriberConfig) {}, plain},
		"patterns": {patterns, plain},
		"sharded":  {shardedSub, newPubSubPub(t, direct, shardedPub)},
	} {
		t.Run(name, func(t *testing.T) {
			sub := newPubSub(t, client, c.change)
			for i := range 10 {
				topic := redistest.Key(t)
				messages := sub.subscribe(t, topic)
				say(t, c.pub, topic, fmt.Sprint(i))
				require.Equal(t, []string{fmt.Sprint(i)}, receiveAcked(t, messages, 1))
			}
		})
	}

	t.Run("timeout", func(t *testing.T) {
		sub := newPubSub(t, client, func(c *redischannels.PubSubSubscriberConfig) { c.SubscribeTimeout = 500 * time.Millisecond })
		proxy.Delay(0)
		sub.subscribe(t, redistest.Key(t))
		proxy.Blackhole(true)
		defer proxy.Blackhole(false)
		start := time.Now()
		_, err := sub.Subscribe(t.Context(), redistest.Key(t))
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.ErrorContains(t, err, "not confirmed within 500ms")
		require.Less(t, time.Since(start), 2*time.Second)

		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(20*time.Millisecond, cancel)
		_, err = sub.Subscribe(ctx, redistest.Key(t))
		require.ErrorIs(t, err, context.Canceled)
		require.Less(t, sub.closeSoon(t), time.Second)
	})
}

// NOPERM, which new users of Redis 7 get for every channel, is invisible.
func TestPubSub_NoPermissionIsAnErrorOfSubscribe(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t, redistest.WithACL(
		"none on >secret ~* +@all resetchannels",
		"some on >secret ~* +@all resetchannels &allowed:*",
		"mute on >secret ~* &* +@all -subscribe -psubscribe -ping"))
	admin := server.Admin(t)
	kinds := []func(*redischannels.PubSubSubscriberConfig){func(*redischannels.PubSubSubscriberConfig) {}, patterns}
	if redistest.IsRedis7(t, admin) {
		require.NoError(t, admin.Do(t.Context(), "acl", "setuser", "mute", "-ssubscribe").Err())
		kinds = append(kinds, shardedSub)
	}
	goroutines := redistest.Goroutines(t)
	for _, user := range []string{"none", "mute"} {
		client := server.Client(t, redistest.As(user, "secret"))
		for _, change := range kinds {
			sub := newPubSub(t, client, change)
			for range 20 {
				_, err := sub.Subscribe(t.Context(), "secret:*")
				require.ErrorIs(t, err, redischannels.ErrPermission)
				require.ErrorContains(t, err, "secret:*")
			}
			sub.events.none(t, redischannels.EventDisconnected, redischannels.EventError)
		}
	}
	goroutines.Wait(time.Second)
	redistest.Eventually(t, soon, func() bool { return pubSubConnections(t, admin) == 0 }, "connections are left")

	// An error reply does not name the channel: it must reach the right one of many calls.
	sub := newPubSub(t, server.Client(t, redistest.As("some", "secret")))
	var wg sync.WaitGroup
	for i := range 100 {
		wg.Go(func() {
			topic, want := fmt.Sprint("allowed:", i), error(nil)
			if i%3 == 0 {
				topic, want = fmt.Sprint("denied:", i), redischannels.ErrPermission
			}
			if _, err := sub.Subscribe(t.Context(), topic); want == nil && err != nil || want != nil && !strings.Contains(fmt.Sprint(err), want.Error()) {
				t.Errorf("%s: %v", topic, err)
			}
		})
	}
	wg.Wait()
	require.Equal(t, 1, pubSubConnections(t, admin))

	// A permission that is removed later is an event, and does not end the subscription.
	messages := sub.subscribe(t, "allowed:x")
	require.NoError(t, admin.Do(t.Context(), "acl", "setuser", "some", "resetchannels", "&allowed:1").Err())
	denied := func() bool {
		for _, e := range sub.events.of(redischannels.EventError) {
			if e.Topic == "allowed:x" {
				require.ErrorIs(t, e.Err, redischannels.ErrPermission)
				return true
			}
		}
		return false
	}
	redistest.Eventually(t, soon, denied, "an event about the right")
	sub.events.wait(t, redischannels.EventReconnected)
	require.NoError(t, admin.Do(t.Context(), "acl", "setuser", "some", "allchannels").Err())
	redistest.Eventually(t, soon, func() bool { return subscribers(t, admin, "allowed:x") == 1 }, "subscribed again")
	say(t, newPubSubPub(t, admin), "allowed:x", "back")
	require.Equal(t, []string{"back"}, receiveAcked(t, messages, 1))
}

// switched is a dialer whose connections go where a test points it to.
type switched struct {
	to atomic.Pointer[redistest.Proxy]
}

func (s *switched) option(o *redis.Options) {
	o.Dialer = func(ctx context.Context, network, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, network, s.to.Load().Addr())
	}
}

// A half-open subscription is never noticed: PING is written, PONG is not waited for.
func TestPubSub_HalfOpenConnectionIsReplaced(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	var way switched
	client := server.Client(t, way.option)
	pub := newPubSubPub(t, server.Client(t))
	const interval = time.Second
	for name, change := range map[string]func(*redischannels.PubSubSubscriberConfig){"plain": patterns, "sharded": shardedSub} {
		t.Run(name, func(t *testing.T) {
			dead := redistest.NewProxy(t, server.Addr())
			way.to.Store(dead)
			sub := newPubSub(t, client, change, healthInterval(interval))
			pub := pub
			if name == "sharded" {
				pub = newPubSubPub(t, server.Client(t), shardedPub)
			}
			topic := redistest.Key(t)
			messages := sub.subscribe(t, topic)
			say(t, pub, topic, "before")
			receiveAcked(t, messages, 1)

			// A quiet connection is a healthy one.
			redistest.Never(t, 2*interval, func() bool { return len(sub.events.of(redischannels.EventDisconnected)) > 0 }, "a disconnect")

			start := time.Now()
			dead.Blackhole(true)
			way.to.Store(redistest.NewProxy(t, server.Addr()))
			event := sub.events.wait(t, redischannels.EventInterrupted)
			require.Less(t, time.Since(start), 2*interval)
			require.Equal(t, topic, event.Topic)
			require.Greater(t, event.Duration, interval/2, "since Redis was last heard of")
			say(t, pub, topic, "after")
			require.Equal(t, []string{"after"}, receiveAcked(t, messages, 1))
			require.Len(t, sub.events.of(redischannels.EventDisconnected), 1)
		})
	}
}

// A gap by a lost connection is invisible.
func TestPubSub_InterruptionIsReportedOncePerTopic(t *testing.T) {
	t.Parallel()
	proxy, client, direct := pubProxy(t)
	sub := newPubSub(t, client, patterns)
	topics := topicsOf(t, 3)
	topics[2] += "*"
	a, b, c := sub.subscribe(t, topics[0]), sub.subscribe(t, topics[1]), sub.subscribe(t, topics[2])
	second := sub.subscribe(t, topics[0])
	pub := newPubSubPub(t, direct)

	check := func(outages int) {
		t.Helper()
		sub.events.waitN(t, redischannels.EventReconnected, outages)
		require.Len(t, sub.events.of(redischannels.EventDisconnected), outages, "one event per outage")
		for _, e := range sub.events.of(redischannels.EventDisconnected) {
			require.Error(t, e.Err)
		}
		gaps := make(map[string]int)
		for _, e := range sub.events.of(redischannels.EventInterrupted) {
			gaps[e.Topic]++
			require.Positive(t, e.Duration)
		}
		require.Equal(t, map[string]int{topics[0]: outages, topics[1]: outages, topics[2]: outages}, gaps)
		say(t, pub, topics[0], "a")
		say(t, pub, topics[1], "b")
		say(t, pub, strings.TrimSuffix(topics[2], "*")+"c", "c")
		receiveAcked(t, a, 1)
		receiveAcked(t, b, 1)
		receiveAcked(t, c, 1)
		receiveAcked(t, second, 1)
	}
	killed, err := direct.Do(t.Context(), "client", "kill", "type", "pubsub").Int()
	require.NoError(t, err)
	require.Equal(t, 1, killed)
	check(1)

	// A longer outage, with many attempts, is one as well.
	refused := proxy.Accepted()
	proxy.Refuse(true)
	sub.events.waitN(t, redischannels.EventDisconnected, 2)
	time.AfterFunc(500*time.Millisecond, func() { proxy.Refuse(false) })
	check(2)
	require.Greater(t, proxy.Accepted(), refused)
	gap := sub.events.of(redischannels.EventInterrupted)[5]
	require.Greater(t, gap.Duration, 300*time.Millisecond)
}

// A subscription that waits for its confirmation survives the loss of the connection, and a
// server that is down is its error.
func TestPubSub_SubscribeDuringAnOutage(t *testing.T) {
	t.Parallel()
	proxy, client, direct := pubProxy(t)
	sub := newPubSub(t, client)
	topics := topicsOf(t, 3)
	first := sub.subscribe(t, topics[0])
	proxy.DropRequest(1, redistest.Contains(topics[1]))
	second := sub.subscribe(t, topics[1])
	say(t, newPubSubPub(t, direct), topics[1], "m")
	require.Equal(t, []string{"m"}, receiveAcked(t, second, 1))

	proxy.Refuse(true)
	_, err := sub.Subscribe(t.Context(), topics[2])
	require.ErrorContains(t, err, "connection refused")
	proxy.Refuse(false)
	redistest.Eventually(t, soon, func() bool { return subscribers(t, direct, topics[0]) == 1 }, "subscribed again")
	require.Zero(t, subscribers(t, direct, topics[2]))
	say(t, newPubSubPub(t, direct), topics[0], "m")
	receiveAcked(t, first, 1)
	sub.subscribe(t, topics[2])
	require.Equal(t, 1, pubSubConnections(t, direct))
}

// Each Subscribe that fails leaves a goroutine, a context and a connection behind.
func TestPubSub_FailedSubscribesLeaveNothing(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t, redistest.WithACL("none on >secret ~* +@all resetchannels"))
	client := server.Client(t)
	nobody := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1", MaxRetries: -1, DialerRetries: 1})
	defer nobody.Close()
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	goroutines := redistest.Goroutines(t)
	closed := newPubSub(t, client)
	require.NoError(t, closed.Close())
	for _, c := range []struct {
		sub   *testPubSub
		ctx   context.Context
		topic string
		want  error
	}{
		{newPubSub(t, client), canceled, "t", context.Canceled},
		{newPubSub(t, client), t.Context(), "", redischannels.ErrInvalidArgument},
		{newPubSub(t, server.Client(t, redistest.As("none", "secret"))), t.Context(), "t", redischannels.ErrPermission},
		{newPubSub(t, server.Client(t, redistest.As("none", "wrong"))), t.Context(), "t", redischannels.ErrPermission},
		{newPubSub(t, nobody), t.Context(), "t", nil},
		{closed, t.Context(), "t", redischannels.ErrClosed},
	} {
		for range 100 {
			messages, err := c.sub.Subscribe(c.ctx, c.topic)
			require.Error(t, err)
			require.Nil(t, messages)
			if c.want != nil {
				require.ErrorIs(t, err, c.want)
			}
		}
	}
	goroutines.Wait(time.Second)
	redistest.Eventually(t, soon, func() bool { return pubSubConnections(t, client) == 0 }, "connections are left")
}

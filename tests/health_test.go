package tests

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/health"
	"github.com/flaminco/redischannels/inspect"
	"github.com/flaminco/redischannels/internal/redistest"
)

// ask returns the reply of a handler.
func ask(t *testing.T, h http.Handler) (status int, body map[string]any) {
	t.Helper()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/", nil))
	require.Equal(t, "application/json", w.Header().Get("Content-Type"))
	require.NoError(t, json.Unmarshal(w.Body.Bytes(), &body))
	return w.Code, body
}

// A probe of liveness that failed with Redis would restart all replicas.
func TestHealth_ReadyFollowsRedis(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	proxy := redistest.NewProxy(t, server.Addr())
	client := server.Client(t, redistest.Via(proxy), func(o *redis.Options) { o.ReadTimeout, o.MaxRetries = 300*time.Millisecond, -1 })
	sub := newSub(t, client)
	ready, err := health.Ready(health.ReadyConfig{
		Client: client, Subscriptions: []health.Subscriptions{sub}, Want: 1, Timeout: 200 * time.Millisecond, MaxAge: time.Millisecond,
	})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, ready.Close()) })
	status, body := ask(t, ready)
	require.Equal(t, http.StatusServiceUnavailable, status)
	require.Equal(t, map[string]any{"ready": false, "problems": []any{"0 of 1 subscriptions"}}, body)
	sub.subscribe(t, "orders")
	eventuallyReady := func(want int) {
		t.Helper()
		redistest.Eventually(t, soon, func() bool {
			status, body = ask(t, ready)
			return status == want
		}, "%d: %v", want, body)
	}
	eventuallyReady(http.StatusOK)
	require.Equal(t, map[string]any{"ready": true}, body)

	proxy.Blackhole(true)
	eventuallyReady(http.StatusServiceUnavailable)
	require.ErrorContains(t, ready.Check(t.Context()), "redis: ")
	sub.events.wait(t, redischannels.EventDisconnected)
	require.ErrorContains(t, ready.Check(t.Context()), `the subscription of "orders" is disconnected`)
	status, body = ask(t, http.HandlerFunc(health.Live))
	require.Equal(t, http.StatusOK, status)
	require.Equal(t, map[string]any{"live": true}, body)
	proxy.Blackhole(false)
	proxy.Cut()
	eventuallyReady(http.StatusOK)
}

// A paused subscription works as it should.
func TestHealth_PausedIsReady(t *testing.T) {
	t.Parallel()
	client, topic := redistest.Shared(t).Client(t), redistest.Key(t)
	sub := newSub(t, client)
	sub.subscribe(t, topic)
	inspector := newInspector(t, client)
	require.NoError(t, inspector.Pause(t.Context(), topic, "g", inspect.PauseOptions{Reason: "test"}))
	eventuallyState(t, sub, redischannels.StatePaused)
	ready, err := health.Ready(health.ReadyConfig{Subscriptions: []health.Subscriptions{sub}})
	require.NoError(t, err)
	require.NoError(t, ready.Check(t.Context()))
	require.NoError(t, ready.Close())
}

// What waits for a group without a process: entries, pending ones, and delayed messages that are due.
func TestHealth_Backlog(t *testing.T) {
	t.Parallel()
	client, topic := redistest.Shared(t).Client(t), redistest.Key(t)
	require.NoError(t, client.XGroupCreateMkStream(t.Context(), topic, "g", "0").Err())
	for range 3 {
		require.NoError(t, client.XAdd(t.Context(), &redis.XAddArgs{Stream: topic, Values: []string{"a", "b"}}).Err())
	}
	require.NoError(t, client.XReadGroup(t.Context(), &redis.XReadGroupArgs{Group: "g", Consumer: "c", Streams: []string{topic, ">"}, Count: 1}).Err())
	for key, members := range map[string]int{"{" + topic + "}:due": 2, "{" + topic + "}:due:g": 1} {
		for i := range members {
			require.NoError(t, client.ZAdd(t.Context(), key, redis.Z{Score: float64(i + 1), Member: i}).Err())
		}
		require.NoError(t, client.ZAdd(t.Context(), key, redis.Z{Score: 1e15, Member: "later"}).Err())
	}
	backlog, err := health.NewBacklog(health.BacklogConfig{Inspector: newInspector(t, client), Groups: []health.Group{{Topic: topic, Group: "g"}}, MaxAge: time.Millisecond})
	require.NoError(t, err)
	status, body := ask(t, backlog)
	require.Equal(t, http.StatusOK, status)
	want := map[string]any{"topic": topic, "group": "g", "lag": 2.0, "pending": 1.0, "due": 3.0, "backlog": 6.0}
	require.Equal(t, map[string]any{"backlog": 6.0, "groups": []any{want}}, body)

	require.NoError(t, client.Del(t.Context(), topic).Err())
	redistest.Eventually(t, soon, func() bool {
		status, body = ask(t, backlog)
		return status == http.StatusServiceUnavailable
	}, "the group is deleted")
	require.Contains(t, body["error"], "no such consumer group")
	require.NoError(t, backlog.Close())
	_, body = ask(t, backlog)
	require.Contains(t, body["error"], "closed")
}

func TestHealth_InvalidConfig(t *testing.T) {
	t.Parallel()
	ring := redis.NewRing(&redis.RingOptions{})
	t.Cleanup(func() { _ = ring.Close() })
	_, err := health.Ready(health.ReadyConfig{Want: -1, Timeout: 1, MaxAge: -1, Subscriptions: []health.Subscriptions{nil}, Client: ring})
	require.ErrorIs(t, err, redischannels.ErrInvalidConfig)
	for _, field := range []string{"Client", "Want", "Timeout", "MaxAge", "Subscriptions[0]"} {
		require.ErrorContains(t, err, "ReadyConfig."+field+": ")
	}
	_, err = health.NewBacklog(health.BacklogConfig{})
	require.ErrorContains(t, err, "BacklogConfig.Inspector: ")
	require.ErrorContains(t, err, "BacklogConfig.Groups: ")
	_, err = health.NewBacklog(health.BacklogConfig{Groups: []health.Group{{Topic: "t"}}, Timeout: -1})
	require.ErrorContains(t, err, "BacklogConfig.Groups[0]: ")
	require.ErrorContains(t, err, "BacklogConfig.Timeout: ")
}

// A delayed message that is due is part of the backlog until a process appends it.
func TestInspector_BacklogOfDelayed(t *testing.T) {
	t.Parallel()
	client, topic := redistest.Shared(t).Client(t), redistest.Key(t)
	require.NoError(t, client.XGroupCreateMkStream(t.Context(), topic, "g", "0").Err())
	pub, err := redischannels.NewPublisher(redischannels.PublisherConfig{Client: client}, nil)
	require.NoError(t, err)
	t.Cleanup(func() { _ = pub.Close() })
	require.NoError(t, pub.Publish(topic, message.NewMessage(watermill.NewUUID(), nil)))
	b, err := newInspector(t, client).Backlog(t.Context(), topic, "g")
	require.NoError(t, err)
	require.Equal(t, inspect.Backlog{Topic: topic, Group: "g", Lag: 1, Backlog: 1}, b)
	_, err = newInspector(t, client).Backlog(t.Context(), topic, "other")
	require.ErrorIs(t, err, inspect.ErrNoGroup)
}

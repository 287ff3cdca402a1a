package tests

import (
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
)

// An error that stays makes a reader spin (1650 calls a second, gigabytes of logs),
// or ends the subscription without a word. It must back off, report the outage once, and resume
// when the cause has ended.
func TestSubscriber_OutageIsWaitedOut(t *testing.T) {
	t.Parallel()
	const rights = "~* +@all"
	for name, test := range map[string]struct {
		fail, mend func(t *testing.T, server *redistest.Server, admin *redis.Client, topic string)
	}{
		"NOPERM": {
			fail: func(t *testing.T, _ *redistest.Server, admin *redis.Client, _ string) {
				require.NoError(t, admin.Do(t.Context(), "ACL", "SETUSER", "app", "-xreadgroup").Err())
			},
			mend: func(t *testing.T, _ *redistest.Server, admin *redis.Client, _ string) {
				require.NoError(t, admin.Do(t.Context(), "ACL", "SETUSER", "app", "+xreadgroup").Err())
			},
		},
		"NOGROUP": {
			fail: func(t *testing.T, _ *redistest.Server, admin *redis.Client, topic string) {
				require.NoError(t, admin.Do(t.Context(), "ACL", "SETUSER", "app", "-xgroup").Err())
				require.NoError(t, admin.XGroupDestroy(t.Context(), topic, "g").Err())
			},
			mend: func(t *testing.T, _ *redistest.Server, admin *redis.Client, _ string) {
				require.NoError(t, admin.Do(t.Context(), "ACL", "SETUSER", "app", "+xgroup").Err())
			},
		},
		"WRONGTYPE": {
			fail: func(t *testing.T, _ *redistest.Server, admin *redis.Client, topic string) {
				require.NoError(t, admin.Set(t.Context(), topic, "x", 0).Err())
			},
			mend: func(t *testing.T, _ *redistest.Server, admin *redis.Client, topic string) {
				require.NoError(t, admin.Del(t.Context(), topic).Err())
			},
		},
		"server down": {
			fail: func(_ *testing.T, server *redistest.Server, _ *redis.Client, _ string) { server.Stop() },
			mend: func(_ *testing.T, server *redistest.Server, _ *redis.Client, _ string) { server.Restart() },
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := redistest.Start(t, redistest.WithACL("app on >secret "+rights))
			admin := server.Admin(t)
			topic := redistest.Key(t)
			all := &countAll{}
			client := server.Client(t, redistest.As("app", "secret"), func(o *redis.Options) { o.MaxRetries = -1 })
			client.AddHook(all)
			logger := redistest.NewRecordingLogger()
			sub := newLoggedSub(t, client, logger, onReads(all), func(c *redischannels.SubscriberConfig) {
				c.Tuning.MinIdle = 3 * time.Second
				c.Tuning.ClaimInterval = time.Second
			})
			messages := sub.subscribe(t, topic)
			publish(t, admin, topic, "before")
			require.Equal(t, []string{"before"}, receiveAcked(t, messages, 1))

			test.fail(t, server, admin, topic)
			sub.events.wait(t, redischannels.EventDisconnected)
			<-time.After(2 * time.Second) // by then the delays have grown
			before := all.n.Load()
			redistest.Never(t, time.Second, func() bool { return all.n.Load() >= before+10 }, "10 commands within a second")
			require.Len(t, sub.events.of(redischannels.EventDisconnected), 1, "one event per outage")
			require.Less(t, len(logger.Lines()), 10, "%v", logger.Lines())

			test.mend(t, server, admin, topic)
			redistest.Eventually(t, soon, func() bool { return admin.Ping(t.Context()).Err() == nil }, "the server is back")
			publish(t, admin, topic, "after")
			require.Equal(t, []string{"after"}, receiveAcked(t, messages, 1), "the channel is still open")
		})
	}
}

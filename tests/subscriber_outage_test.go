package tests

import (
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
)

// lastingFault is an error that stays until it is mended.
type lastingFault struct {
	fail, mend func(t *testing.T, server *redistest.Server, topic string)
}

// aclRule changes what the user "app" may do.
func aclRule(rule string) func(*testing.T, *redistest.Server, string) {
	return func(t *testing.T, server *redistest.Server, _ string) {
		require.NoError(t, server.Admin(t).Do(t.Context(), "ACL", "SETUSER", "app", rule).Err())
	}
}

var wrongType = lastingFault{
	fail: func(t *testing.T, server *redistest.Server, topic string) {
		require.NoError(t, server.Admin(t).Set(t.Context(), topic, "x", 0).Err())
	},
	mend: func(t *testing.T, server *redistest.Server, topic string) {
		require.NoError(t, server.Admin(t).Del(t.Context(), topic).Err())
	},
}

var serverDown = lastingFault{
	fail: func(_ *testing.T, server *redistest.Server, _ string) { server.Stop() },
	mend: func(_ *testing.T, server *redistest.Server, _ string) { server.Restart() },
}

// isWaitedOut proves of a subscription that it backs off, reports an outage once, and resumes
// when the cause has ended.
func (f lastingFault) isWaitedOut(t *testing.T, server *redistest.Server, change ...func(*redischannels.SubscriberConfig)) {
	t.Helper()
	admin, topic := server.Admin(t), redistest.Key(t)
	all := &countAll{}
	client := server.Client(t, redistest.As("app", "secret"), func(o *redis.Options) { o.MaxRetries = -1 })
	client.AddHook(all)
	logger := redistest.NewRecordingLogger()
	sub := newLoggedSub(t, client, logger, append(change, onReads(all))...)
	messages := sub.subscribe(t, topic)
	publish(t, admin, topic, "before")
	require.Equal(t, []string{"before"}, receiveAcked(t, messages, 1))

	f.fail(t, server, topic)
	sub.events.wait(t, redischannels.EventDisconnected)
	redistest.Eventually(t, soon, func() bool {
		before := all.n.Load()
		<-time.After(time.Second)
		return all.n.Load() < before+10
	}, "10 commands within each second")
	require.Len(t, sub.events.of(redischannels.EventDisconnected), 1, "one event per outage")
	require.Less(t, len(logger.Lines()), 10, "%v", logger.Lines())

	f.mend(t, server, topic)
	redistest.Eventually(t, soon, func() bool { return admin.Ping(t.Context()).Err() == nil }, "the server is back")
	publish(t, admin, topic, "after")
	require.Equal(t, []string{"after"}, receiveAcked(t, messages, 1), "the channel is still open")
}

// An error that stays makes a reader spin (1650 calls a second, gigabytes of logs), or ends the
// subscription without a word.
func TestSubscriber_OutageIsWaitedOut(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]lastingFault{
		"NOPERM": {fail: aclRule("-xreadgroup"), mend: aclRule("+xreadgroup")},
		"NOGROUP": {
			fail: func(t *testing.T, server *redistest.Server, topic string) {
				aclRule("-xgroup")(t, server, topic)
				require.NoError(t, server.Admin(t).XGroupDestroy(t.Context(), topic, "g").Err())
			},
			mend: aclRule("+xgroup"),
		},
		"WRONGTYPE":   wrongType,
		"server down": serverDown,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := redistest.Start(t, redistest.WithACL("app on >secret ~* +@all"))
			fault.isWaitedOut(t, server, tuned(func(c *redischannels.Tuning) { c.MinIdle, c.ClaimInterval = 3*time.Second, time.Second }))
		})
	}
}

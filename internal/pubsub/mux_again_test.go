package pubsub

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels/internal/redisconn"
	"github.com/flaminco/redischannels/internal/redistest"
)

// Who subscribes to a name that Redis has refused to others got no report, and was not helped by
// a permission that was granted again, before the back-off of the others was over: up to 36 s.
func TestSubscribeDoesNotWaitForTheBackoffOfOthers(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t, redistest.WithACL("app on >secret +@all allchannels"))
	refused := make(chan struct{}, 1)
	m := New(Config{
		Client: server.Client(t, redistest.As("app", "secret")), HealthInterval: 10 * time.Second,
		Notify: func(n Notice) {
			if n.Kind == Refused {
				refused <- struct{}{}
			}
		},
	})
	t.Cleanup(m.Close)
	subscribe := func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		sink := &Sink{Queue: NewQueue(QueueConfig{Messages: 10, Bytes: 1000})}
		return m.Subscribe(ctx, sink, []Name{{Channel, "x"}})
	}
	later := func() { // as after many attempts
		redistest.Eventually(t, 10*time.Second, func() bool {
			m.mu.Lock()
			defer m.mu.Unlock()
			e := m.names[Channel]["x"]
			if _, waits := m.unplaced[e]; !waits {
				return false
			}
			e.until = time.Now().Add(time.Hour)
			return true
		}, "the name waits")
	}
	require.NoError(t, subscribe())
	admin := server.Admin(t)
	require.NoError(t, admin.Do(t.Context(), "ACL", "SETUSER", "app", "resetchannels").Err())
	<-refused
	later()
	require.Equal(t, redisconn.KindNoPerm, redisconn.Classify(subscribe()))
	later()
	require.NoError(t, admin.Do(t.Context(), "ACL", "SETUSER", "app", "allchannels").Err())
	require.NoError(t, subscribe())
}

package tests

import (
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/inspect"
	"github.com/flaminco/redischannels/internal/redistest"
)

// aclControl pauses and resumes a group.
func aclControl(t *testing.T, admin, client *redis.Client, topic string) error {
	t.Helper()
	require.NoError(t, newSub(t, admin).SubscribeInitialize(topic))
	control := newInspector(t, client)
	for _, until := range []time.Time{{}, serverTime(t, admin).Add(time.Hour)} {
		if err := control.Pause(t.Context(), topic, "g", inspect.PauseOptions{Until: until}); err != nil {
			return err
		}
		if err := control.Resume(t.Context(), topic, "g"); err != nil {
			return err
		}
	}
	return nil
}

// Without the permission for a line in the audit stream nothing is done.
func TestACL_PauseWithoutAudit(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t, redistest.WithACL("mute on >secret ~* +@all -xadd"))
	admin, topic := server.Admin(t), redistest.Key(t)
	sub := newSub(t, admin)
	require.NoError(t, sub.SubscribeInitialize(topic))
	control := newInspector(t, server.Client(t, redistest.As("mute", "secret")))
	require.ErrorIs(t, control.Pause(t.Context(), topic, "g", inspect.PauseOptions{}), redischannels.ErrPermission)
	stats, err := sub.GroupStats(t.Context(), topic)
	require.NoError(t, err)
	require.False(t, stats.Paused)

	require.NoError(t, newInspector(t, admin).Pause(t.Context(), topic, "g", inspect.PauseOptions{}))
	require.ErrorIs(t, control.Resume(t.Context(), topic, "g"), redischannels.ErrPermission)
	stats, err = sub.GroupStats(t.Context(), topic)
	require.NoError(t, err)
	require.True(t, stats.Paused)
}

// aclTrimmable makes a topic with consumed entries, with pending and with unread ones.
func aclTrimmable(t *testing.T, admin *redis.Client, topic string) {
	t.Helper()
	ids := publish(t, admin, topic, numbered(500)...)
	deliverTo(t, admin, topic, "c", 400, 0)
	require.NoError(t, admin.XAck(t.Context(), topic, "g", ids[:300]...).Err())
	require.NoError(t, admin.XGroupCreate(t.Context(), topic, "behind", ids[350]).Err())
}

// aclRemoveGroup removes a group with deferred entries.
func aclRemoveGroup(t *testing.T, admin, client *redis.Client, topic string) error {
	t.Helper()
	sub := newSub(t, admin, inFlight(4))
	messages := sub.subscribe(t, topic)
	publish(t, admin, topic, "m")
	later(receive(t, messages), time.Hour)
	eventuallyDeferred(t, admin, topic, 1)
	sub.closeSoon(t)
	done, err := newInspector(t, client).RemoveGroup(t.Context(), topic, "g", inspect.RemoveGroupOptions{})
	require.True(t, err != nil || done.Deferred == 1)
	return err
}

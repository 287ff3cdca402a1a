package tests

import (
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels/inspect"
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

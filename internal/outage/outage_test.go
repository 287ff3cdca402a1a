package outage_test

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels/internal/outage"
	"github.com/flaminco/redischannels/internal/redisconn"
)

var (
	errLost   = errors.New("connection lost")
	errMemory = redisconn.ReplyError("OOM command not allowed when used memory > 'maxmemory'.")
)

// counted counts the outages that begin and end.
func counted() (o *outage.Outage, begun, ended *int) {
	begun, ended = new(int), new(int)
	return &outage.Outage{
		Down: func(error, []string) { *begun++ },
		Up:   func(time.Duration) { *ended++ },
	}, begun, ended
}

func TestOutage_SuccessEndsOnlyItsDuty(t *testing.T) {
	o, begun, ended := counted()
	for range 3 {
		o.Failed(outage.Reap, errMemory)
		for _, d := range []outage.Duty{outage.Read, outage.Scan, outage.Release, outage.Defer, outage.Prepare, outage.Lease} {
			o.Over(d)
			require.True(t, o.Open(), "duty %d", d)
		}
	}
	require.Equal(t, 1, *begun)
	o.Over(outage.Reap)
	require.False(t, o.Open())
	require.Equal(t, 1, *ended)
}

func TestOutage_ReadingEndsWhatTheConnectionFailed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o, _, ended := counted()
		o.Failed(outage.Scan, errLost)
		o.Failed(outage.Lease, errLost)
		o.Over(outage.Read)
		require.True(t, o.Open(), "it may fail still")
		time.Sleep(2 * time.Second)
		o.Over(outage.Read)
		require.False(t, o.Open())
		require.Equal(t, 1, *ended)
	})
}

func TestOutage_ReadingDoesNotEndWhatMemoryFailed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o, begun, ended := counted()
		for range 3 {
			o.Failed(outage.Reap, errMemory)
			o.Failed(outage.Scan, errLost)
			time.Sleep(time.Minute)
			o.Over(outage.Read)
			require.True(t, o.Open())
		}
		o.Over(outage.Reap)
		require.Equal(t, 1, *begun)
		require.Equal(t, 1, *ended)
	})
}

package backoff

import (
	"math"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels/internal/redistest"
)

func TestMain(m *testing.M) { redistest.Main(m) }

func TestBackoff_Grows(t *testing.T) {
	t.Parallel()
	exact := Backoff{Min: time.Second, Max: 10 * time.Second, Factor: 2, Jitter: -1}
	for n, want := range map[int]time.Duration{-1: 1, 0: 1, 1: 1, 2: 2, 3: 4, 4: 8, 5: 10, 6: 10} {
		require.Equal(t, want*time.Second, exact.After(n), "after %d", n)
	}
	half := Backoff{Min: time.Second, Max: 5 * time.Second, Factor: 2, Jitter: 0.5}
	require.Equal(t, time.Second, half.at(2, 0))
	require.Equal(t, 2*time.Second, half.at(2, 0.5))
	require.Equal(t, 3*time.Second, half.at(2, 1))
	require.Equal(t, 5*time.Second, half.at(4, 1), "Max is the greatest delay")
	for range 1000 {
		d := half.After(2)
		require.True(t, d >= time.Second && d <= 3*time.Second, "%v", d)
	}
}

// A client that can write to Redis can set a delivery count. One step of a loop for each delivery
// took a core forever, and a shift by that many bits is no delay.
func TestBackoff_AfterManyAttempts(t *testing.T) {
	t.Parallel()
	constant := Backoff{Min: time.Second, Max: time.Hour, Factor: 1, Jitter: -1}
	require.Equal(t, time.Second, constant.After(math.MaxInt))
	require.Equal(t, time.Hour, Backoff{Min: time.Second, Max: time.Hour, Factor: 2, Jitter: -1}.After(math.MaxInt))
}

func TestWait(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		require.True(t, Wait(nil, time.Second))
		require.Equal(t, time.Second, time.Since(start))
		stop := make(chan struct{})
		close(stop)
		require.False(t, Wait(stop, time.Hour))
		require.Equal(t, time.Second, time.Since(start))
	})
}

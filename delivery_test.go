package redischannels

import (
	"math"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestBackoffDelay(t *testing.T) {
	t.Parallel()
	double := Backoff{Min: time.Second, Max: 5 * time.Second, Factor: 2}
	for n, want := range map[int]time.Duration{0: 1, 1: 1, 2: 2, 3: 4, 4: 5, 5: 5, math.MaxInt: 5} {
		require.Equal(t, want*time.Second, double.delay(n, 0.5), "after %d", n)
	}
	double.Jitter = 0.5
	require.Equal(t, time.Second, double.delay(2, 0))
	require.Equal(t, 3*time.Second, double.delay(2, 1))
	require.Equal(t, 5*time.Second, double.delay(4, 1), "Max is the greatest delay")
	// Whoever can write to Redis can set a delivery count. One step of a loop for each
	// delivery took a core for ever.
	constant := Backoff{Min: time.Second, Max: time.Hour, Factor: 1}
	require.Equal(t, time.Second, constant.delay(math.MaxInt, 0.5))
}

package main

import (
	"errors"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels/benchmarks/internal/local"
)

func TestMain(m *testing.M) {
	becomeSwarm()
	os.Exit(m.Run())
}

// The program works, with few clients.
func TestLoad(t *testing.T) {
	results, err := measure(t.Context(), load{clients: 50, naive: 50, rate: 100, duration: 300 * time.Millisecond, payload: 256}, func(text string) { t.Log(text) })
	if errors.Is(err, local.ErrNoServer) && (os.Getenv("REQUIRE_REDIS") != "1" || os.Getenv("REDIS_ADDR") != "") {
		t.Skipf("skipped: %v", err)
	}
	require.NoError(t, err)
	require.Len(t, results, len(kinds))
	for i, r := range results {
		if i > 0 {
			require.EqualValues(t, 30*50, r.Received)
			require.Positive(t, r.P99)
		}
	}
	require.Equal(t, 1, results[1].readers)
	require.Equal(t, 50, results[2].readers)
	require.Equal(t, 1, results[3].readers)
	require.Equal(t, 1, results[4].readers)
}

func TestHistogram(t *testing.T) {
	var h histogram
	require.Zero(t, h.quantile(0.5))
	for i := range 1000 {
		h.add(time.Duration(i) * time.Millisecond)
	}
	require.InEpsilon(t, 500*time.Millisecond, h.quantile(0.5), 0.07)
	require.InEpsilon(t, 990*time.Millisecond, h.quantile(0.99), 0.07)
	require.InEpsilon(t, time.Second, h.quantile(1-1e-12), 0.07)
	h.add(-1)
}

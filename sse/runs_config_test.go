package sse

import (
	"net/http"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/stream"
)

func TestRunsConfig_Validate(t *testing.T) {
	t.Parallel()
	require.NoError(t, RunsConfig{}.Validate())
	require.NoError(t, RunsConfig{Coalesce: NoCoalesce, Buckets: 1}.Validate())
	err := RunsConfig{Name: "a{b", WriterLease: 1, TTL: -1, Coalesce: 1, BufferBytes: -1, Buckets: 2000}.Validate()
	require.ErrorIs(t, err, redischannels.ErrInvalidConfig)
	for _, field := range []string{"Name", "WriterLease", "TTL", "Coalesce", "BufferBytes", "Buckets"} {
		require.ErrorContains(t, err, "RunsConfig."+field+": ")
	}
	_, err = NewRuns[int](nil, RunsConfig{Buckets: -1})
	require.ErrorIs(t, err, redischannels.ErrInvalidArgument)
	require.ErrorIs(t, err, redischannels.ErrInvalidConfig)
}

// newTestRuns makes runs on a client that reaches no server.
func newTestRuns[T any](t *testing.T, config RunsConfig) (*Runs[T], error) {
	t.Helper()
	client := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1"})
	t.Cleanup(func() { require.NoError(t, client.Close()) })
	hub, err := redischannels.NewHub(client, redischannels.HubConfig{})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, hub.Close()) })
	return NewRuns[T](hub, config)
}

func TestRuns_InvalidArguments(t *testing.T) {
	t.Parallel()
	_, err := newTestRuns[int](t, RunsConfig{Codec: redischannels.Bytes})
	require.ErrorIs(t, err, redischannels.ErrInvalidConfig)
	require.ErrorContains(t, err, "RunsConfig.Codec")
	runs, err := newTestRuns[int](t, RunsConfig{})
	require.NoError(t, err)
	_, err = runs.Start(t.Context(), "")
	require.ErrorIs(t, err, redischannels.ErrInvalidArgument)
	_, err = runs.StartWith(t.Context(), "a", map[string]string{"large": string(make([]byte, 5000))})
	require.ErrorIs(t, err, redischannels.ErrInvalidArgument)
	options := RunsOptions[int]{}
	options.Start = func(*http.Request) redischannels.Position { return redischannels.Oldest }
	options.Retry = 1
	_, err = runs.Handler(options)
	require.ErrorIs(t, err, redischannels.ErrInvalidConfig)
	require.ErrorContains(t, err, "RunsOptions.Start")
	require.ErrorContains(t, err, "Options.Retry")
}

// Where a viewer begins, by what it has seen and how the run stands.
func TestViewedBegin(t *testing.T) {
	t.Parallel()
	id := func(ms uint64) stream.ID { return stream.ID{Ms: ms} }
	running := stream.RunState{Epoch: "20", Previous: "10", State: "running", Left: time.Second, After: id(100), Last: id(150)}
	done := running
	done.State = "done"
	for name, test := range map[string]struct {
		state stream.RunState
		seen  viewed
		epoch string
		at    stream.ID
		fresh bool
		ok    bool
	}{
		"no run":                      {stream.RunState{}, viewed{"20", id(120)}, "", id(0), false, false},
		"nothing seen":                {running, viewed{}, "20", id(100), true, true},
		"in the middle":               {running, viewed{"20", id(120)}, "20", id(120), false, true},
		"up to the last piece":        {running, viewed{"20", id(150)}, "20", id(150), false, true},
		"up to the end":               {done, viewed{"20", id(150)}, "20", id(150), false, false},
		"more than Redis has":         {running, viewed{"20", id(160)}, "20", id(100), true, true},
		"of the epoch before":         {running, viewed{"10", id(90)}, "10", id(90), false, true},
		"the end of the epoch before": {running, viewed{"10", id(100)}, "20", id(100), true, true},
		"of an older epoch":           {running, viewed{"5", id(50)}, "20", id(100), true, true},
		"of a later epoch":            {running, viewed{"30", id(120)}, "20", id(100), true, true},
	} {
		epoch, at, fresh, ok := test.seen.begin(test.state)
		require.Equal(t, []any{test.at, test.ok}, []any{at, ok}, name)
		if ok {
			require.Equal(t, test.epoch, epoch, name)
			require.Equal(t, test.fresh, fresh, name)
		}
	}
}

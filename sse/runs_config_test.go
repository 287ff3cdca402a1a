package sse

import (
	"math"
	"net/http"
	"testing"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/stream"
)

func TestRunsConfig_Validate(t *testing.T) {
	t.Parallel()
	require.NoError(t, RunsConfig{}.Validate())
	require.NoError(t, RunsConfig{Coalesce: NoCoalesce, Buckets: 1, BufferBytes: 65}.Validate())
	err := RunsConfig{Name: "a{b", WriterLease: 1, TTL: -1, Coalesce: 1, BufferBytes: 64, Buckets: 2000}.Validate()
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
func TestBegin(t *testing.T) {
	t.Parallel()
	id := func(epoch, number uint64) stream.ID { return stream.ID{Ms: epoch, Seq: number} }
	const end = math.MaxUint64
	state := stream.RunState{Epoch: 20, Previous: 10}
	first := stream.RunState{Epoch: 20}
	for name, test := range map[string]struct {
		state    stream.RunState
		seen, at stream.ID
		fresh    bool
	}{
		"nothing seen":                {state, id(0, 0), id(20, 0), true},
		"nothing seen of the first":   {first, id(0, 0), id(20, 0), true},
		"only the start":              {state, id(20, 0), id(20, 0), false},
		"in the middle":               {state, id(20, 7), id(20, 7), false},
		"up to the end":               {state, id(20, end), id(20, end), false},
		"of the epoch before":         {state, id(10, 7), id(10, 7), false},
		"the end of the epoch before": {state, id(10, end), id(20, 0), true},
		"of one that is not kept":     {first, id(10, 7), id(20, 0), true},
		"of an older epoch":           {state, id(5, 7), id(20, 0), true},
		"of a later epoch":            {state, id(30, 7), id(20, 0), true},
	} {
		at, fresh := begin(test.seen, test.state)
		require.Equal(t, test.at, at, name)
		require.Equal(t, test.fresh, fresh, name)
	}
}

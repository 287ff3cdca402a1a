package tests

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels/internal/redistest"
	"github.com/flaminco/redischannels/internal/stream"
)

// A writer ends its own epoch only, and only when Redis has all that it has written: an end behind
// missing pieces would tell viewers that they have seen everything.
func TestRuns_EndIsRefused(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	name := "{" + redistest.Key(t) + "}:"
	run := stream.RunID{ID: "a", Record: name + "run", Entries: name + "events", Index: name + "index"}
	times := stream.RunTimes{TTL: time.Minute, Lease: time.Minute}
	started, err := run.StartRun(t.Context(), client, times, "token", "null")
	require.NoError(t, err)
	epoch := started.Text
	appended, err := run.AppendRun(t.Context(), client, times, epoch, 1, [][]byte{[]byte("one"), []byte("two")})
	require.NoError(t, err)
	require.Equal(t, stream.RunAppended, appended.Outcome)
	end := func(epoch string, last uint64) stream.RunAnswer {
		answer, err := run.EndRun(t.Context(), client, times.TTL, epoch, "done", "", last)
		require.NoError(t, err)
		return answer
	}
	require.Equal(t, stream.RunSuperseded, end("1", 2).Outcome, "of an epoch before")
	require.Equal(t, stream.RunMissing, end(epoch, 3).Outcome, "the last piece is not there")
	require.NoError(t, client.Rename(t.Context(), run.Entries, run.Entries+":moved").Err())
	require.Equal(t, stream.RunMissing, end(epoch, 2).Outcome, "the entries are lost")
	require.Equal(t, stream.RunMissing, end("", 0).Outcome, "stopping")
	require.Zero(t, client.Exists(t.Context(), run.Entries).Val())
	require.NoError(t, client.Rename(t.Context(), run.Entries+":moved", run.Entries).Err())
	state, err := run.LookRun(t.Context(), client, times.TTL)
	require.NoError(t, err)
	require.Equal(t, "running", state.State)
	require.Equal(t, stream.RunAnswer{Outcome: stream.RunEnded, Text: "done"}, end(epoch, 2))
	require.Equal(t, stream.RunAnswer{Outcome: stream.RunEnded, Text: "done"}, end("", 0), "once")
	require.EqualValues(t, 3, client.XLen(t.Context(), run.Entries).Val())
}

package sse

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
)

// The buffer has at most BufferBytes, of which each piece takes 64 besides its payload.
func TestRun_BufferBytes(t *testing.T) {
	t.Parallel()
	config := RunsConfig{Codec: redischannels.String, BufferBytes: 3*(64+1) + 64, OnError: func(error) {}}
	inBubble(t, config, func(t *testing.T, runs *Runs[string], fake *fakeRedis) {
		run := startFake(t, runs, fake)
		fake.set(func(fakeCall) ([]any, error) { return nil, errLoading })
		write := func(values ...string) error {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			return run.Write(ctx, values...)
		}
		// Values that can never be there together are refused at once, into an empty buffer too.
		began := time.Now()
		for _, values := range [][]string{{"a", "b", "c", "d"}, {string(make([]byte, 3*65+1))}} {
			err := write(values...)
			require.ErrorIs(t, err, redischannels.ErrTooLarge)
			require.ErrorContains(t, err, "260 bytes")
			require.ErrorContains(t, err, "the limit is 259 (RunsConfig.BufferBytes)")
		}
		require.Equal(t, began, time.Now())
		require.Empty(t, fake.take())

		require.NoError(t, write("a", "b"))
		require.NoError(t, write("c", ""), "it is full to the last byte")
		require.ErrorIs(t, write(""), context.DeadlineExceeded)
		require.NoError(t, write(), "nothing fits")
		waiting := make(chan error, 1)
		go func() { waiting <- write("d") }()
		synctest.Wait()
		fake.take()
		fake.set(nil)
		require.NoError(t, <-waiting)
		require.NoError(t, run.Flush(t.Context()))
		calls := slices.DeleteFunc(fake.take(), func(c fakeCall) bool { return len(c.pieces) == 0 }) // renewals
		require.Equal(t, []string{`append 1 ["a" "b" "c" ""]`, `append 5 ["d"]`}, texts(calls))
		require.NoError(t, write(string(make([]byte, 3*65))), "and there is room again")
	})
}

// A buffer that is full is sent at once, not after Coalesce.
func TestRun_FullBufferIsSent(t *testing.T) {
	t.Parallel()
	config := RunsConfig{Codec: redischannels.String, BufferBytes: 100, Coalesce: 500 * ms}
	inBubble(t, config, func(t *testing.T, runs *Runs[string], fake *fakeRedis) {
		run := startFake(t, runs, fake)
		began := time.Now()
		for range 10 {
			require.NoError(t, run.Write(t.Context(), "x"))
		}
		require.Equal(t, began, time.Now())
		require.Len(t, fake.take(), 9)
	})
}

// faultyCodec fails for some values.
type faultyCodec struct{ redischannels.Codec }

func (c faultyCodec) Encode(value any) ([]byte, error) {
	switch *value.(*string) {
	case "panic":
		panic("boom")
	case "error":
		return nil, errors.New("no such word")
	}
	return c.Codec.Encode(value)
}

// A value that cannot be encoded is an error of Write, and none of its values is written.
func TestRun_EncodeFails(t *testing.T) {
	t.Parallel()
	inBubble(t, RunsConfig{Codec: faultyCodec{redischannels.JSON}}, func(t *testing.T, runs *Runs[string], fake *fakeRedis) {
		run := startFake(t, runs, fake)
		require.EqualError(t, run.Write(t.Context(), "one", "panic"), `redischannels/sse: write to run "a": the codec panicked: boom`)
		require.EqualError(t, run.Write(t.Context(), "two", "error"), `redischannels/sse: write to run "a": encode: no such word`)
		require.NoError(t, run.Write(t.Context(), "three"))
		require.NoError(t, run.Flush(t.Context()))
		require.Equal(t, []string{`append 1 ["\"three\""]`}, texts(fake.take()))
	})
}

// A run whose Start was answered while Close ended the others is ended too.
func TestRuns_CloseDuringStart(t *testing.T) {
	t.Parallel()
	inBubble(t, RunsConfig{}, func(t *testing.T, runs *Runs[string], fake *fakeRedis) {
		sent, answer := make(chan struct{}), make(chan struct{})
		fake.set(func(c fakeCall) ([]any, error) {
			if c.kind == "start" {
				close(sent)
				<-answer
			}
			return nil, nil
		})
		started, closed := make(chan error, 1), make(chan error, 1)
		go func() {
			_, err := runs.Start(t.Context(), "a")
			started <- err
		}()
		<-sent
		go func() { closed <- runs.Close() }()
		synctest.Wait() // Close has ended the runs that it knew
		close(answer)
		require.ErrorIs(t, <-started, redischannels.ErrClosed)
		require.NoError(t, <-closed)
		require.Equal(t, []string{"start", "end lost"}, texts(fake.take()))
	})
}

// Close reports that a run could not be ended, after 5 s; its lease ends it.
func TestRuns_CloseWithoutRedis(t *testing.T) {
	t.Parallel()
	var reported []error
	config := RunsConfig{OnError: func(err error) { reported = append(reported, err) }}
	inBubble(t, config, func(t *testing.T, runs *Runs[string], fake *fakeRedis) {
		run := startFake(t, runs, fake)
		fake.set(func(fakeCall) ([]any, error) { return nil, errLoading })
		began := time.Now()
		require.NoError(t, runs.Close())
		require.Equal(t, 5*time.Second, time.Since(began))
		require.Len(t, reported, 1)
		require.ErrorContains(t, reported[0], "LOADING")
		require.ErrorIs(t, context.Cause(run.Context()), redischannels.ErrClosed)
		require.ErrorIs(t, run.Write(t.Context(), "x"), redischannels.ErrClosed)
		require.Empty(t, runs.runs)
	})
}

// End retries during an outage for as long as its context lives, but not longer than Close waits.
func TestRuns_CloseDuringEnd(t *testing.T) {
	t.Parallel()
	for _, pieces := range [][]string{nil, {"x"}} {
		inBubble(t, RunsConfig{OnError: func(error) {}}, func(t *testing.T, runs *Runs[string], fake *fakeRedis) {
			run := startFake(t, runs, fake)
			fake.set(replies(nil, errLoading))
			require.NoError(t, run.Write(t.Context(), pieces...))
			ended := make(chan error, 1)
			go func() { ended <- run.End(t.Context(), nil) }()
			time.Sleep(time.Minute)
			began := time.Now()
			require.NoError(t, runs.Close())
			require.Equal(t, 5*time.Second, time.Since(began))
			require.ErrorIs(t, <-ended, redischannels.ErrClosed)
			require.ErrorIs(t, run.End(t.Context(), nil), redischannels.ErrClosed)
		})
	}
}

// Two calls of End end the run once. The one that does not reach Redis returns with the other one.
func TestRun_ConcurrentEnds(t *testing.T) {
	t.Parallel()
	inBubble(t, RunsConfig{}, func(t *testing.T, runs *Runs[string], fake *fakeRedis) {
		run := startFake(t, runs, fake)
		first, answer := true, make(chan struct{})
		fake.set(func(fakeCall) ([]any, error) {
			if !first {
				return nil, errLoading
			}
			first = false
			<-answer
			return nil, nil
		})
		ended := make(chan error, 2)
		for range 2 {
			go func() { ended <- run.End(t.Context(), nil) }()
			synctest.Wait()
		}
		close(answer)
		require.NoError(t, <-ended)
		require.NoError(t, <-ended)
		require.NoError(t, runs.Close())
		require.NoError(t, run.End(t.Context(), nil), "it had ended before Close")
	})
}

// Close finds that runs have ended, which is no error.
func TestRuns_CloseOfRunsThatHaveEnded(t *testing.T) {
	t.Parallel()
	for _, reply := range [][]any{{"ended", "stopped"}, {"ended", "lost"}, {"superseded"}, {"missing"}} {
		var reported []error
		config := RunsConfig{OnError: func(err error) { reported = append(reported, err) }}
		inBubble(t, config, func(t *testing.T, runs *Runs[string], fake *fakeRedis) {
			startFake(t, runs, fake)
			fake.set(replies(reply, nil))
			require.NoError(t, runs.Close())
			require.Equal(t, []string{"end lost"}, texts(fake.take()))
			require.Empty(t, reported)
		})
	}
}

// The reply to an append arrives when Close has given up the run.
func TestRuns_LateReply(t *testing.T) {
	t.Parallel()
	inBubble(t, RunsConfig{}, func(t *testing.T, runs *Runs[string], fake *fakeRedis) {
		run := startFake(t, runs, fake)
		answer := make(chan struct{})
		fake.set(func(fakeCall) ([]any, error) { <-answer; return nil, nil })
		require.NoError(t, run.Write(t.Context(), "x"))
		closed := make(chan error, 1)
		go func() { closed <- runs.Close() }()
		synctest.Wait()
		require.ErrorIs(t, context.Cause(run.Context()), redischannels.ErrClosed, "at once")
		time.Sleep(6 * time.Second)
		require.ErrorIs(t, run.Flush(t.Context()), redischannels.ErrClosed)
		close(answer)
		require.NoError(t, <-closed)
		require.Len(t, fake.take(), 1)
	})
}

// Start and Stop are sent four times at most, since their callers wait.
func TestRuns_StartAndStopFail(t *testing.T) {
	t.Parallel()
	inBubble(t, RunsConfig{}, func(t *testing.T, runs *Runs[string], fake *fakeRedis) {
		fake.set(replies(nil, errLoading))
		_, err := runs.Start(t.Context(), "a")
		require.EqualError(t, err, `redischannels/sse: start run "a": `+errLoading.Error())
		require.Equal(t, []string{"start", "start", "start", "start"}, texts(fake.take()))
		require.EqualError(t, runs.Stop(t.Context(), "a"), `redischannels/sse: stop run "a": `+errLoading.Error())
		require.Len(t, fake.take(), 4)

		fake.set(replies([]any{"running", int64(5)}, nil))
		_, err = runs.Start(t.Context(), "a")
		require.ErrorIs(t, err, ErrRunning)
		require.ErrorContains(t, err, `start run "a": `)
		fake.set(replies([]any{"missing"}, nil))
		err = runs.Stop(t.Context(), "a")
		require.ErrorIs(t, err, ErrNoRun)
		require.ErrorContains(t, err, `stop run "a": `)
	})
}

// Info has no state where it has an error.
func TestRuns_InfoFails(t *testing.T) {
	t.Parallel()
	inBubble(t, RunsConfig{}, func(t *testing.T, runs *Runs[string], fake *fakeRedis) {
		info, err := runs.Info(t.Context(), "a")
		require.ErrorIs(t, err, ErrNoRun)
		require.Zero(t, info)
		fake.set(func(fakeCall) ([]any, error) { return nil, errLoading })
		info, err = runs.Info(t.Context(), "a")
		require.ErrorContains(t, err, "LOADING")
		require.Zero(t, info)
	})
}

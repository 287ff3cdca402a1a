package sse

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
)

const ms = time.Millisecond

// Pieces that are written within Coalesce are sent by one command, when the first of them has waited for
// so long. NoCoalesce sends each one at once.
func TestRun_Coalesce(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		coalesce time.Duration
		calls    []string
		last     time.Duration
	}{
		"default":    {0, []string{`append 1 ["1" "2" "3"]`}, 20 * ms},
		"longer":     {70 * ms, []string{`append 1 ["1" "2" "3"]`}, 70 * ms},
		"NoCoalesce": {NoCoalesce, []string{`append 1 ["1"]`, `append 2 ["2"]`, `append 3 ["3"]`}, 14 * ms},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			inBubble(t, RunsConfig{Coalesce: test.coalesce}, func(t *testing.T, runs *Runs[int], fake *fakeRedis) {
				run := startFake(t, runs, fake)
				for i := range 3 {
					require.NoError(t, run.Write(t.Context(), i+1))
					time.Sleep(7 * ms)
				}
				time.Sleep(100 * ms)
				calls := fake.take()
				require.Equal(t, test.calls, texts(calls))
				require.Equal(t, test.last, calls[len(calls)-1].at)
			})
		})
	}
}

// A flush is one command: neither the end of Coalesce nor a second Flush sends an empty one.
func TestRun_FlushIsOneCommand(t *testing.T) {
	t.Parallel()
	inBubble(t, RunsConfig{}, func(t *testing.T, runs *Runs[int], fake *fakeRedis) {
		run := startFake(t, runs, fake)
		for i := range 5 {
			require.NoError(t, run.Write(t.Context(), i))
			require.NoError(t, run.Flush(t.Context()))
			require.NoError(t, run.Flush(t.Context()))
			time.Sleep(50 * ms)
			require.Equal(t, []string{fmt.Sprintf(`append %d ["%d"]`, i+1, i)}, texts(fake.take()))
		}
	})
}

// A writer renews its lease every third of it, and at least every second.
func TestRun_RenewalInterval(t *testing.T) {
	t.Parallel()
	for lease, interval := range map[time.Duration]time.Duration{
		300 * ms:           100 * ms,
		2700 * ms:          900 * ms,
		3 * time.Second:    time.Second,
		DefaultWriterLease: time.Second,
		time.Hour:          time.Second,
	} {
		t.Run(lease.String(), func(t *testing.T) {
			t.Parallel()
			inBubble(t, RunsConfig{WriterLease: lease}, func(t *testing.T, runs *Runs[int], fake *fakeRedis) {
				startFake(t, runs, fake)
				time.Sleep(3*interval + interval/2)
				calls := fake.take()
				require.Equal(t, []string{"append 1 []", "append 1 []", "append 1 []"}, texts(calls))
				require.Equal(t, 3*interval, calls[2].at)
			})
		})
	}
}

// After an End that has failed, pieces are still sent, but the lease is not renewed: nobody may call End
// again. If somebody does, the run ends.
func TestRun_FailedEnd(t *testing.T) {
	t.Parallel()
	inBubble(t, RunsConfig{}, func(t *testing.T, runs *Runs[int], fake *fakeRedis) {
		run := startFake(t, runs, fake)
		fake.set(func(fakeCall) ([]any, error) { return nil, errLoading })
		require.NoError(t, run.Write(t.Context(), 1))
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		require.ErrorIs(t, run.End(ctx, nil), context.DeadlineExceeded)
		require.ErrorIs(t, run.Write(t.Context(), 2), ErrRunEnded)
		fake.take()
		fake.set(nil)
		time.Sleep(time.Minute)
		require.Equal(t, []string{`append 1 ["1"]`}, texts(fake.take()))
		require.NoError(t, run.Context().Err())

		canceled, cancel := context.WithCancel(t.Context())
		cancel()
		require.ErrorIs(t, run.End(canceled, nil), context.Canceled)
		require.NoError(t, run.End(t.Context(), nil))
		require.Equal(t, []string{"end done"}, texts(fake.take()))
		require.ErrorIs(t, context.Cause(run.Context()), ErrRunEnded)
		require.NoError(t, run.End(t.Context(), errors.New("again")))
		require.Empty(t, fake.take())
	})
}

// An outage is reported once, at its first error.
func TestRun_OnErrorOncePerOutage(t *testing.T) {
	t.Parallel()
	var reported []error
	config := RunsConfig{OnError: func(err error) { reported = append(reported, err) }}
	inBubble(t, config, func(t *testing.T, runs *Runs[int], fake *fakeRedis) {
		run := startFake(t, runs, fake)
		for outage := 1; outage <= 3; outage++ {
			fake.take()
			fake.set(func(fakeCall) ([]any, error) { return nil, errLoading })
			require.NoError(t, run.Write(t.Context(), outage))
			time.Sleep(DefaultRunCoalesce)
			synctest.Wait()
			require.Len(t, fake.take(), 1)
			require.Len(t, reported, outage, "at once")
			time.Sleep(30 * time.Second)
			require.Greater(t, len(fake.take()), 3, "it was sent again")
			fake.set(nil)
			require.NoError(t, run.Flush(t.Context()))
			require.Len(t, reported, outage)
			require.ErrorContains(t, reported[outage-1], `run "a": `)
			require.ErrorContains(t, reported[outage-1], "LOADING")
		}
	})
}

// Each outcome of a script is the cause of Context, and the error of later calls.
func TestRun_CauseOfContext(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		reply []any
		err   error
		cause error
		end   error // of End
	}{
		"superseded":    {[]any{"superseded"}, nil, ErrSuperseded, ErrSuperseded},
		"missing":       {[]any{"missing"}, nil, ErrLost, ErrLost},
		"lost":          {[]any{"ended", "lost"}, nil, ErrLost, ErrLost},
		"stopped":       {[]any{"ended", "stopped"}, nil, ErrStopped, nil},
		"ended":         {[]any{"ended", "failed"}, nil, ErrRunEnded, nil},
		"no permission": {nil, redisError("NOPERM this user has no permissions"), redischannels.ErrPermission, redischannels.ErrPermission},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, pieces := range [][]int{nil, {1}} { // by a renewal, by an append
				inBubble(t, RunsConfig{}, func(t *testing.T, runs *Runs[int], fake *fakeRedis) {
					run := startFake(t, runs, fake)
					fake.set(func(fakeCall) ([]any, error) { return test.reply, test.err })
					require.NoError(t, run.Write(t.Context(), pieces...))
					<-run.Context().Done()
					synctest.Wait()
					require.Len(t, fake.take(), 1)
					cause := context.Cause(run.Context())
					require.ErrorIs(t, cause, test.cause)
					require.ErrorContains(t, cause, `run "a": `)
					require.Equal(t, cause, run.Write(t.Context(), 2))
					if test.end == nil {
						require.NoError(t, run.End(t.Context(), nil))
					} else {
						require.Equal(t, cause, run.End(t.Context(), nil))
					}
					time.Sleep(time.Minute)
					require.Empty(t, fake.take(), "nothing more is sent")
				})
			}
		})
	}
}

// End finds that the run has ended in another way, which is then its error.
func TestRun_EndFindsAnotherEnd(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		reply      []any
		cause, end error
	}{
		"done, as it asks": {[]any{"ended", "done"}, ErrRunEnded, nil},
		"stopped":          {[]any{"ended", "stopped"}, ErrStopped, nil},
		"lost":             {[]any{"ended", "lost"}, ErrLost, ErrLost},
		"failed":           {[]any{"ended", "failed"}, ErrRunEnded, ErrRunEnded},
		"superseded":       {[]any{"superseded"}, ErrSuperseded, ErrSuperseded},
		"missing":          {[]any{"missing"}, ErrLost, ErrLost},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			inBubble(t, RunsConfig{}, func(t *testing.T, runs *Runs[int], fake *fakeRedis) {
				run := startFake(t, runs, fake)
				fake.set(func(fakeCall) ([]any, error) { return test.reply, nil })
				err := run.End(t.Context(), nil)
				require.Equal(t, []string{"end done"}, texts(fake.take()))
				require.ErrorIs(t, context.Cause(run.Context()), test.cause)
				if test.end == nil {
					require.NoError(t, err)
				} else {
					require.ErrorIs(t, err, test.end)
				}
			})
		})
	}
}

// What was buffered is dropped when nothing can be written.
func TestRun_FlushAfterTheRunIsLost(t *testing.T) {
	t.Parallel()
	inBubble(t, RunsConfig{}, func(t *testing.T, runs *Runs[int], fake *fakeRedis) {
		run := startFake(t, runs, fake)
		fake.set(func(fakeCall) ([]any, error) { return []any{"missing"}, nil })
		require.NoError(t, run.Write(t.Context(), 1))
		require.ErrorIs(t, run.Flush(t.Context()), ErrLost)
		require.ErrorIs(t, run.Flush(t.Context()), ErrLost)
		require.Zero(t, run.bytes)
		require.Empty(t, run.pieces)
	})
}

// An append has at most 256 pieces and 256 KiB, but at least one piece, however large.
func TestRun_SizeOfAppends(t *testing.T) {
	t.Parallel()
	inBubble(t, RunsConfig{Codec: redischannels.String, BufferBytes: 10 << 20}, func(t *testing.T, runs *Runs[string], fake *fakeRedis) {
		run := startFake(t, runs, fake)
		sizes := func(values ...string) (sizes [][]int) {
			require.NoError(t, run.Write(t.Context(), values...))
			require.NoError(t, run.Flush(t.Context()))
			for _, call := range fake.take() {
				var s []int
				for _, piece := range call.pieces {
					s = append(s, len(piece))
				}
				sizes = append(sizes, s)
			}
			return sizes
		}
		text := func(size int) string { return strings.Repeat("x", size) }
		const limit = 256 << 10
		require.Equal(t, [][]int{{limit + 1}}, sizes(text(limit+1)), "larger than the limit, alone")
		require.Equal(t, [][]int{{1}, {limit + 1}, {1}}, sizes("x", text(limit+1), "x"))
		require.Equal(t, [][]int{{limit - 1, 1}, {1}}, sizes(text(limit-1), "x", "x"))
		many := sizes(strings.Split(text(600), "")...)
		require.Len(t, many, 3)
		require.Len(t, many[0], 256)
		require.Len(t, many[1], 256)
		require.Len(t, many[2], 88)
	})
}

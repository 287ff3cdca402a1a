package redischannels

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels/internal/source"
	"github.com/flaminco/redischannels/internal/window"
)

// A BatchError that does not fit the batch nacks all of it, and is logged once, with what is wrong.
func TestHandleBatch_LogsOnce(t *testing.T) {
	t.Parallel()
	for text, failed := range map[string][]int{"got none": nil, "from 0 to 2, got 3": {0, 3, 4}, "got -1": {-1}} {
		synctest.Test(t, func(t *testing.T) {
			r, in := readerOf[int](t, nil)
			logger := watermill.NewCaptureLogger()
			r.transport.logger = logger
			first := true
			stop := batchesOf(t, r, in, BatchConfig{Size: 3}, func(context.Context, []int) error {
				if first {
					first = false
					return &BatchError{Failed: failed, Err: errors.New("duplicate key")}
				}
				return nil
			})
			for v := range 3 {
				sendNumber(in, v)
			}
			time.Sleep(time.Second)
			synctest.Wait()
			lines := logger.Captured()[watermill.ErrorLogLevel]
			require.Len(t, lines, 1)
			require.ErrorContains(t, lines[0].Err, text)
			require.ErrorContains(t, lines[0].Err, "duplicate key")
			stop()
		})
	}
}

// A batch whose timeout runs out comes again in parts, and the context of its call ends.
func TestHandleBatch_Timeout(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		k := newWindowKit(window.Config{MaxInFlight: 32}, time.Second)
		r := sourceReader[int](t, nil, numberDecoding{}, func(context.Context) (source.Source, error) { return k, nil })
		k.admit(32)
		var sizes []int
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		begun := time.Now()
		go func() {
			ended <- r.HandleBatch(ctx, func(ctx context.Context, batch []Delivery[int]) error {
				if sizes = append(sizes, len(batch)); len(sizes) == 1 {
					<-ctx.Done()
					require.ErrorIs(t, ctx.Err(), context.DeadlineExceeded)
					require.Equal(t, time.Second, time.Since(begun))
					time.Sleep(time.Millisecond) // until all of it have timed out
				}
				return nil
			}, BatchConfig{Size: 32, Wait: NoBatchWait})
		}()
		time.Sleep(time.Minute)
		synctest.Wait()
		require.Equal(t, append([]int{32}, slices.Repeat([]int{2}, 16)...), sizes)
		require.Len(t, k.acked, 32)
		cancel()
		require.NoError(t, <-ended)
		k.Stop()
		require.NoError(t, r.Close())
	})
}

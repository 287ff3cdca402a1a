package tests

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"net/http"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
	"github.com/flaminco/redischannels/sse"
)

const (
	measuredViewers = 2000
	measuredStreams = 200
)

// memoryResponse is the response to a viewer, of which nothing is kept.
type memoryResponse struct {
	header http.Header
	live   func() // an ID was written; nil: before
	value  []byte
	seen   func() // value was written
}

func (w *memoryResponse) Header() http.Header              { return w.header }
func (w *memoryResponse) WriteHeader(int)                  {}
func (w *memoryResponse) FlushError() error                { return nil }
func (w *memoryResponse) SetWriteDeadline(time.Time) error { return nil }
func (w *memoryResponse) Write(p []byte) (int, error) {
	switch {
	case bytes.Contains(p, w.value):
		w.seen()
	case w.live != nil && bytes.Contains(p, []byte("id: ")):
		w.live()
		w.live = nil
	}
	return len(p), nil
}

// viewedStreams are streams that have viewers.
type viewedStreams struct {
	serve func(stream int) http.Handler
	write func(value string) // to each stream
	close func()
}

// viewersCost is the cost of viewers with their streams.
type viewersCost struct {
	Heap, Stacks int64 // bytes per viewer
	Goroutines   int
}

// median returns the median of each cost. Memory of earlier tests that is freed during a measurement makes
// its cost too low, as other memory makes it too high.
func median(costs []viewersCost) viewersCost {
	of := func(field func(viewersCost) int64) int64 {
		var values []int64
		for _, c := range costs {
			values = append(values, field(c))
		}
		slices.Sort(values)
		return values[len(values)/2]
	}
	return viewersCost{
		of(func(c viewersCost) int64 { return c.Heap }),
		of(func(c viewersCost) int64 { return c.Stacks }),
		int(of(func(c viewersCost) int64 { return int64(c.Goroutines) })),
	}
}

// costOfViewers measures them.
func costOfViewers(t *testing.T, open func() viewedStreams) viewersCost {
	t.Helper()
	before := inUse()
	streams, value := open(), rand.Text()
	ctx, cancel := context.WithCancel(t.Context())
	var viewers, live, seen sync.WaitGroup
	live.Add(measuredViewers)
	seen.Add(measuredViewers)
	for i := range measuredViewers {
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, "/", nil)
		require.NoError(t, err)
		stream := i % measuredStreams
		r.SetPathValue("id", fmt.Sprint(stream))
		viewers.Go(func() {
			streams.serve(stream).ServeHTTP(&memoryResponse{http.Header{}, live.Done, []byte(value), seen.Done}, r)
		})
	}
	live.Wait()
	streams.write(value)
	seen.Wait()
	now := inUse()
	cancel()
	viewers.Wait()
	streams.close()
	return viewersCost{
		Heap:       (now.Heap - before.Heap) / measuredViewers,
		Stacks:     now.Stacks / measuredViewers, // those of before are kept for goroutines to come
		Goroutines: now.Goroutines - before.Goroutines,
	}
}

// inUse returns the bytes and goroutines of this process, without garbage.
func inUse() viewersCost {
	runtime.GC()
	runtime.GC() // pools are emptied, and stacks halved again
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return viewersCost{int64(m.HeapAlloc), int64(m.StackInuse), runtime.NumGoroutine()}
}

// A viewer of a run needs no more memory than one of a channel. Each run had a goroutine that waited for
// the end of its writer's lease. Not parallel: it measures memory.
func TestRuns_MemoryPerViewer(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector's own memory is measured")
	}
	client := redistest.Shared(t).Client(t)
	writers := sharedRuns(t, func(c *sse.RunsConfig) { c.WriterLease = time.Minute })
	readers := newRuns(t, client, writers.name)
	var runs []*sse.Run[string]
	for i := range measuredStreams {
		runs = append(runs, writers.start(fmt.Sprint(i)))
	}
	viewRuns := func() viewedStreams {
		handler, err := readers.Handler(sse.RunsOptions[string]{})
		require.NoError(t, err)
		return viewedStreams{
			serve: func(int) http.Handler { return handler },
			write: func(value string) {
				for _, run := range runs {
					require.NoError(t, run.Write(t.Context(), value))
				}
			},
			close: func() { require.NoError(t, handler.Close()) },
		}
	}
	writing, reading, key := newHub(t, client), newHub(t, client), redistest.Key(t, "channel")
	var channels []*redischannels.Channel[string]
	for i := range measuredStreams {
		channels = append(channels, streamOf[string](t, writing, fmt.Sprint(key, i)))
	}
	viewChannels := func() viewedStreams {
		var handlers []*sse.Handler[string]
		var read []*redischannels.Channel[string]
		for i := range measuredStreams {
			channel := streamOf[string](t, reading, fmt.Sprint(key, i))
			handler, err := sse.NewHandler(channel, sse.Options[string]{})
			require.NoError(t, err)
			handlers, read = append(handlers, handler), append(read, channel)
		}
		return viewedStreams{
			serve: func(i int) http.Handler { return handlers[i] },
			write: func(value string) {
				for _, channel := range channels {
					write(t, channel, value)
				}
			},
			close: func() {
				for i, handler := range handlers {
					require.NoError(t, handler.Close())
					require.NoError(t, read[i].Close())
				}
			},
		}
	}
	costOfViewers(t, viewRuns) // what is made once
	costOfViewers(t, viewChannels)
	var runCosts, channelCosts []viewersCost
	for range 5 {
		runCosts = append(runCosts, costOfViewers(t, viewRuns))
		channelCosts = append(channelCosts, costOfViewers(t, viewChannels))
	}
	ofRun, ofChannel := median(runCosts), median(channelCosts)
	t.Logf("a viewer of a run %+v, of a channel %+v", ofRun, ofChannel)
	require.LessOrEqual(t, ofRun.Heap, ofChannel.Heap)
	require.LessOrEqual(t, ofRun.Goroutines, ofChannel.Goroutines)
	require.Less(t, ofRun.Stacks, ofChannel.Stacks+1<<10, "a stack is of 2, 4, 8 KiB; less is of goroutines that have ended")
}

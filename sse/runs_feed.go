package sse

import (
	"errors"
	"sync/atomic"
	"time"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/backoff"
	"github.com/flaminco/redischannels/internal/feed"
	"github.com/flaminco/redischannels/internal/stream"
)

// runFeed is a run that has viewers.
type runFeed struct {
	id      string
	channel *redischannels.Channel[[]byte]
	feed    *feed.Feed
	viewers int          // guarded by feedsMu
	look    *time.Timer  // of lookIn, nil before the first; guarded by feedsMu
	failed  atomic.Int32 // consecutive checks
}

// open returns the feed of a run, until release.
func (h *RunsHandler[T]) open(id string) (*runFeed, error) {
	h.feedsMu.Lock()
	defer h.feedsMu.Unlock()
	f := h.feeds[id]
	if f == nil {
		key, err := h.runs.key(id)
		if err != nil {
			return nil, err
		}
		channel, err := redischannels.NewStreamChannel[[]byte](h.runs.hub, key.Entries, redischannels.StreamChannelConfig{
			Codec:      redischannels.Bytes,
			Subscriber: redischannels.SubscriberConfig{ConsumerGroup: redischannels.NoConsumerGroup, Unmarshaler: runFormat{}},
		})
		if err != nil {
			return nil, err
		}
		f = &runFeed{id: id, channel: channel}
		f.feed = h.feed(true, source[[]byte]{channel: channel, keeps: true, event: h.event})
		h.feeds[id] = f
	}
	f.viewers++
	return f, nil
}

// release undoes open. The last viewer closes the channel and the feed of the run.
func (h *RunsHandler[T]) release(f *runFeed) {
	h.feedsMu.Lock()
	f.viewers--
	last := f.viewers == 0
	if last {
		delete(h.feeds, f.id)
		if f.look != nil {
			f.look.Stop()
		}
	}
	h.feedsMu.Unlock()
	if last {
		_ = f.channel.Close() // nothing was written through it
	}
}

// expect schedules a check of a running run for when the lease of its writer may have expired.
func (h *RunsHandler[T]) expect(f *runFeed, s stream.RunState) {
	if s.State == string(RunRunning) {
		h.lookIn(f, s.Left+time.Millisecond)
	}
}

// lookIn schedules a check of a run after d, if it still has viewers.
func (h *RunsHandler[T]) lookIn(f *runFeed, d time.Duration) {
	h.feedsMu.Lock()
	defer h.feedsMu.Unlock()
	switch {
	case f.viewers == 0:
	case f.look == nil:
		f.look = time.AfterFunc(d, func() { h.watch(f) })
	default:
		f.look.Reset(d)
	}
}

// watch checks a run, which ends it if the lease of its writer has expired.
func (h *RunsHandler[T]) watch(f *runFeed) {
	if h.life.Enter() != nil {
		return
	}
	defer h.life.Leave()
	state, err := h.runs.look(h.life.Context(), f.id)
	switch {
	case err == nil:
		f.failed.Store(0)
		if state.Epoch == 0 { // Redis has lost the run
			f.feed.Disconnect()
		}
		h.expect(f, state)
	case h.life.Err() != nil, errors.Is(err, redischannels.ErrClosed):
	default:
		failed := f.failed.Add(1)
		if failed == 1 {
			h.options.OnError(err)
		}
		h.lookIn(f, backoff.Redis.After(int(failed)))
	}
}

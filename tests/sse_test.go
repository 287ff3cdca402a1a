package tests

import (
	"net/http"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
	"github.com/flaminco/redischannels/sse"
)

// A client sees what is written from its connection on, resumes by the header or the
// parameter, and begins where Start says.
func TestSSE_Stream(t *testing.T) {
	t.Parallel()
	hub, key := newHubOf(t), redistest.Key(t)
	channel := streamOf[int](t, hub, key)
	past := write(t, channel, 1, 2, 3)
	url := serveSSE(t, newSSE(t, channel, sse.Options[int]{}))
	all := serveSSE(t, newSSE(t, channel, sse.Options[int]{
		Start: func(*http.Request) redischannels.Position { return redischannels.Oldest },
		Event: func(d redischannels.Delivery[int]) string { return "number" },
	}))

	first := openSSE(t, url)
	require.Equal(t, http.Header{
		"Content-Type":      {"text/event-stream"},
		"Cache-Control":     {"no-cache, no-store, no-transform"},
		"X-Accel-Buffering": {"no"},
		"Date":              first.resp.Header["Date"],
	}, first.resp.Header)
	require.True(t, first.resp.Uncompressed == false && first.resp.ContentLength == -1)
	require.Equal(t, sseEvent{Retry: "2000"}, first.next())
	require.Equal(t, sseEvent{ID: past[2]}, first.next(), "its position")
	ids := write(t, channel, 4)
	require.Equal(t, sseEvent{ID: ids[0], Data: "4"}, first.event())

	require.Equal(t, []string{"2", "3", "4"}, openSSE(t, url, after(past[0])).data(3))
	require.Equal(t, []string{"3", "4"}, openSSE(t, url+"?lastEventId="+past[1]).data(2))
	require.Equal(t, []string{"4"}, openSSE(t, url+"?lastEventId="+past[1], after(past[2])).data(1), "the header precedes")
	old := openSSE(t, all)
	require.Equal(t, sseEvent{ID: past[0], Name: "number", Data: "1"}, old.event())
	require.Equal(t, []string{"2", "3", "4"}, old.data(3))
	ids = write(t, channel, 5)
	for _, s := range []*sseStream{first, old} {
		e := s.event()
		require.Equal(t, ids[0], e.ID)
		require.Equal(t, "5", e.Data)
	}
}

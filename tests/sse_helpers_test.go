package tests

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/sse"
)

// sseEvent is one event, or a comment, as a client has read it.
type sseEvent struct {
	ID, Name, Data, Comment, Retry string
}

// sseStream is an open response.
type sseStream struct {
	t      *testing.T
	resp   *http.Response
	events chan sseEvent // closed at the end of the response
	err    error         // of reading, once events is closed
	cancel context.CancelFunc
	lastID string // as a browser would keep it
}

// newSSE makes a handler that is closed at the end of the test.
func newSSE[T any](t *testing.T, channel *redischannels.Channel[T], options sse.Options[T]) *sse.Handler[T] {
	t.Helper()
	if options.OnError == nil {
		options.OnError = func(err error) { t.Errorf("unexpected: %v", err) }
	}
	handler, err := sse.NewHandler(channel, options)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, handler.Close()) })
	return handler
}

// serveSSE serves a handler and returns its URL.
func serveSSE(t *testing.T, handler http.Handler) string {
	t.Helper()
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	return server.URL
}

// request makes a GET that changes may alter.
func sseRequest(t *testing.T, url string, changes ...func(*http.Request)) (*http.Request, context.CancelFunc) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	require.NoError(t, err)
	for _, change := range changes {
		change(r)
	}
	return r, cancel
}

// after makes a client resume.
func after(id string) func(*http.Request) {
	return func(r *http.Request) { r.Header.Set("Last-Event-ID", id) }
}

// openSSE opens a stream, which ends with the test.
func openSSE(t *testing.T, url string, changes ...func(*http.Request)) *sseStream {
	t.Helper()
	return openSSEWith(t, http.DefaultClient, url, changes...)
}

func openSSEWith(t *testing.T, client *http.Client, url string, changes ...func(*http.Request)) *sseStream {
	t.Helper()
	r, cancel := sseRequest(t, url, changes...)
	resp, err := client.Do(r)
	require.NoError(t, err)
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(resp.Body)
		require.Equal(t, http.StatusOK, resp.StatusCode, "%s", text)
	}
	s := &sseStream{t: t, resp: resp, events: make(chan sseEvent), cancel: cancel, lastID: r.Header.Get("Last-Event-ID")}
	go s.read(r.Context())
	t.Cleanup(s.close)
	return s
}

// read takes the response apart.
func (s *sseStream) read(ctx context.Context) {
	defer close(s.events)
	s.err = eachEvent(s.resp.Body, func(e sseEvent) (bool, error) {
		select {
		case s.events <- e:
			return true, nil
		case <-ctx.Done():
			return false, nil
		}
	})
}

// eachEvent reads events until f says otherwise.
func eachEvent(body io.Reader, f func(sseEvent) (more bool, err error)) error {
	lines := bufio.NewReader(body)
	var e sseEvent
	for {
		line, err := lines.ReadString('\n')
		if err != nil {
			return err
		}
		line = strings.TrimSuffix(line, "\n")
		if line == "" {
			if more, err := f(e); err != nil || !more {
				return err
			}
			e = sseEvent{}
			continue
		}
		name, value, _ := strings.Cut(line, ":")
		value = strings.TrimPrefix(value, " ")
		switch name {
		case "id":
			e.ID = value
		case "event":
			e.Name = value
		case "data":
			e.Data += value
		case "retry":
			e.Retry = value
		case "":
			e.Comment = value
		}
	}
}

// next returns the next event, comments and those without data included.
func (s *sseStream) next() sseEvent {
	s.t.Helper()
	select {
	case e, open := <-s.events:
		if !open {
			require.FailNow(s.t, "the stream has ended", "%v", s.err)
		}
		if e.ID != "" {
			s.lastID = e.ID
		}
		return e
	case <-time.After(soon):
		require.FailNow(s.t, "no event", "within %s", soon)
		return sseEvent{}
	}
}

// event returns the next event that a browser would dispatch.
func (s *sseStream) event() sseEvent {
	s.t.Helper()
	for {
		if e := s.next(); e.Data != "" {
			return e
		}
	}
}

// data returns the data of the next n events, which have IDs.
func (s *sseStream) data(n int) []string {
	s.t.Helper()
	var data []string
	for range n {
		e := s.event()
		require.NotEmpty(s.t, e.ID, "%+v", e)
		data = append(data, e.Data)
	}
	return data
}

// live returns when the client has been sent its position.
func (s *sseStream) live() *sseStream {
	s.t.Helper()
	for s.lastID == "" {
		s.next()
	}
	return s
}

// ended returns when the server has ended the stream, without a further event.
func (s *sseStream) ended() {
	s.t.Helper()
	for {
		select {
		case e, open := <-s.events:
			if !open {
				return
			}
			require.Empty(s.t, e.Data, "%+v", e)
		case <-time.After(soon):
			require.FailNow(s.t, "the stream continues", "for %s", soon)
		}
	}
}

// close leaves.
func (s *sseStream) close() {
	s.cancel()
	for range s.events {
	}
	_ = s.resp.Body.Close()
}

func numbers(from, n int) []string {
	var texts []string
	for i := range n {
		texts = append(texts, fmt.Sprint(from+i))
	}
	return texts
}

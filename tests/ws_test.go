package tests

import (
	"context"
	"encoding/json"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
	"github.com/flaminco/redischannels/sse"
	"github.com/flaminco/redischannels/ws"
)

// wsFrame is a message as a client has read it.
type wsFrame struct {
	ID, Event string
	Data      json.RawMessage
}

// wsClient is an open connection.
type wsClient struct {
	t    *testing.T
	conn *websocket.Conn
}

// newWS stands in front of a handler and returns its URL.
func newWS(t *testing.T, events ws.Events, options ws.Options) string {
	t.Helper()
	handler, err := ws.NewHandler(events, options)
	require.NoError(t, err)
	return serveSSE(t, handler)
}

func openWS(t *testing.T, url string) *wsClient {
	t.Helper()
	conn, _, err := websocket.Dial(soonCtx(t), url, nil)
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.CloseNow() })
	return &wsClient{t, conn}
}

// next returns the next message.
func (c *wsClient) next() (f wsFrame) {
	c.t.Helper()
	kind, text, err := c.conn.Read(soonCtx(c.t))
	require.NoError(c.t, err)
	require.Equal(c.t, websocket.MessageText, kind)
	require.NoError(c.t, json.Unmarshal(text, &f))
	return f
}

// closed returns the status of the end of the connection.
func (c *wsClient) closed() websocket.StatusCode {
	c.t.Helper()
	_, text, err := c.conn.Read(soonCtx(c.t))
	require.Error(c.t, err, "%s", text)
	return websocket.CloseStatus(err)
}

// Clients of WebSocket and of Server-Sent Events see the same events with the same IDs, from one ring.
func TestWS_Channel(t *testing.T) {
	t.Parallel()
	channel := streamOf[int](t, newHubOf(t), redistest.Key(t))
	handler := newSSE(t, channel, sse.Options[int]{
		Event:     func(d redischannels.Delivery[int]) string { return "number" },
		Heartbeat: 20 * time.Millisecond,
		Filter: func(r *http.Request) func(redischannels.Delivery[int]) bool {
			return func(d redischannels.Delivery[int]) bool { return d.Value > 0 || !r.URL.Query().Has("positive") }
		},
	})
	url := newWS(t, handler, ws.Options{})
	past := write(t, channel, 1, 2)
	browser, live, resumed := openSSE(t, serveSSE(t, handler)).live(), openWS(t, url), openWS(t, url+"?lastEventId="+past[0])
	require.Equal(t, wsFrame{ID: past[1]}, live.next(), "its position")
	require.Equal(t, wsFrame{past[1], "number", []byte("2")}, resumed.next())
	positive := openWS(t, url+"?positive")
	positive.next()
	require.Equal(t, 4, handler.Clients())
	ids := write(t, channel, 3, -4)
	for _, c := range []*wsClient{live, resumed} {
		require.Equal(t, wsFrame{ids[0], "number", []byte("3")}, c.next())
		require.Equal(t, wsFrame{ids[1], "number", []byte("-4")}, c.next())
	}
	require.Equal(t, sseEvent{ID: ids[0], Name: "number", Data: "3"}, browser.event())
	require.Equal(t, ids[0], positive.next().ID)
	require.Equal(t, wsFrame{ID: ids[1]}, positive.next(), "what the filter has not passed is seen")

	// A client that has disappeared, or leaves, is noticed.
	require.NoError(t, live.conn.Close(websocket.StatusNormalClosure, ""))
	redistest.Eventually(t, soon, func() bool { return handler.Clients() == 3 }, "it has left")
	require.NoError(t, resumed.conn.Write(t.Context(), websocket.MessageText, []byte("hello")))
	require.Equal(t, websocket.StatusPolicyViolation, resumed.closed())
	redistest.Eventually(t, soon, func() bool { return handler.Clients() == 2 }, "it was closed")
	ended := make(chan websocket.StatusCode, 1)
	go func() { ended <- positive.closed() }()
	require.NoError(t, handler.Close())
	require.Equal(t, websocket.StatusGoingAway, <-ended)
}

// A run over WebSocket: its beginning, its pieces and its end, wherever the client resumes.
func TestWS_Run(t *testing.T) {
	t.Parallel()
	r := sharedRuns(t)
	handler, err := r.Handler(sse.RunsOptions[string]{ID: func(r *http.Request) string { return r.URL.Query().Get("id") }})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, handler.Close()) })
	url := newWS(t, handler, ws.Options{})
	require.EqualValues(t, ws.CloseNothing, openWS(t, url+"?id=none").closed())
	run := r.start("a")
	client := openWS(t, url+"?id=a")
	require.Equal(t, sse.EventStart, client.next().Event)
	flushed(t, run, "one", "two")
	first := client.next()
	require.Equal(t, `"one"`, string(first.Data))
	require.Equal(t, `"two"`, string(client.next().Data))
	require.NoError(t, run.End(t.Context(), nil))
	end := client.next()
	require.Equal(t, wsFrame{end.ID, sse.EventEnd, []byte(`{"status":"done"}`)}, end)
	require.Equal(t, websocket.StatusNormalClosure, client.closed())
	client = openWS(t, url+"?id=a&lastEventId="+first.ID)
	require.Equal(t, `"two"`, string(client.next().Data))
	require.Equal(t, end, client.next())
	require.EqualValues(t, ws.CloseNothing, openWS(t, url+"?id=a&lastEventId="+end.ID).closed())
}

// A client that takes nothing is closed, and delays no other.
func TestWS_SlowClient(t *testing.T) {
	t.Parallel()
	channel := streamOf[string](t, newHubOf(t), redistest.Key(t))
	reported := make(chan error, 10)
	handler := newSSE(t, channel, sse.Options[string]{Buffer: 20, WriteTimeout: 500 * time.Millisecond, OnError: func(err error) { reported <- err }})
	url := newWS(t, handler, ws.Options{})
	dialSlowWS(t, url, 4096) // it reads nothing
	quick := openWS(t, url)
	quick.next()
	quick.conn.SetReadLimit(1 << 20)
	padding := strings.Repeat("x", 64<<10)
	for range 150 {
		write(t, channel, padding)
		quick.next()
	}
	select {
	case err := <-reported:
		require.ErrorIs(t, err, sse.ErrSlowClient)
	case <-time.After(soon):
		require.FailNow(t, "it is not closed")
	}
	write(t, channel, "after")
	require.Equal(t, `"after"`, string(quick.next().Data))
}

// A client that the ring has left behind, and that reads again before WriteTimeout, is closed with 1013,
// at which it comes back.
func TestWS_LeftBehind(t *testing.T) {
	t.Parallel()
	channel := streamOf[string](t, newHubOf(t), redistest.Key(t))
	reported := make(chan error, 10)
	handler := newSSE(t, channel, sse.Options[string]{Buffer: 20, WriteTimeout: time.Minute, OnError: func(err error) { reported <- err }})
	url := newWS(t, handler, ws.Options{})
	behind := dialSlowWS(t, url, 64<<10)
	behind.SetReadLimit(1 << 20)
	quick := openWS(t, url)
	quick.next()
	quick.conn.SetReadLimit(1 << 20)
	padding := strings.Repeat("x", 64<<10)
	for range 200 { // more than the buffers of a connection take
		write(t, channel, padding)
		quick.next()
	}
	var err error
	for err == nil {
		_, _, err = behind.Read(soonCtx(t))
	}
	require.Equal(t, websocket.StatusTryAgainLater, websocket.CloseStatus(err), "%v", err)
	require.ErrorIs(t, <-reported, sse.ErrSlowClient)
}

// A client that has disappeared answers no ping, and is closed after WriteTimeout.
func TestWS_DisappearedClient(t *testing.T) {
	t.Parallel()
	channel := streamOf[int](t, newHubOf(t), redistest.Key(t))
	reported := make(chan error, 1)
	handler := newSSE(t, channel, sse.Options[int]{
		Heartbeat: 10 * time.Millisecond, WriteTimeout: 300 * time.Millisecond, OnError: func(err error) { reported <- err },
	})
	openWS(t, newWS(t, handler, ws.Options{})) // it reads nothing, not even pings
	redistest.Eventually(t, soon, func() bool { return handler.Clients() == 1 }, "it is connected")
	redistest.Eventually(t, soon, func() bool { return handler.Clients() == 0 }, "it was closed")
	require.ErrorIs(t, <-reported, sse.ErrSlowClient)
}

// Close does not wait for the pong of a client that has disappeared, for which there is a minute.
func TestWS_CloseWhilePinging(t *testing.T) {
	t.Parallel()
	channel := streamOf[int](t, newHubOf(t), redistest.Key(t))
	handler := newSSE(t, channel, sse.Options[int]{Heartbeat: 10 * time.Millisecond, WriteTimeout: time.Minute})
	pinged := make(chan struct{}, 1)
	ended := make(chan error, 1)
	conn, _, err := websocket.Dial(soonCtx(t), newWS(t, handler, ws.Options{}), &websocket.DialOptions{
		OnPingReceived: func(context.Context, []byte) bool { // no pong
			select {
			case pinged <- struct{}{}:
			default:
			}
			return false
		},
	})
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.CloseNow() })
	go func() {
		var err error
		for err == nil {
			_, _, err = conn.Read(context.Background())
		}
		ended <- err
	}()
	waitFor(t, pinged)
	closeSoon(t, handler)
	require.Equal(t, websocket.StatusGoingAway, websocket.CloseStatus(<-ended))
}

// dialSlowWS connects a client with a small buffer, which reads nothing by itself.
func dialSlowWS(t *testing.T, url string, buffer int) *websocket.Conn {
	t.Helper()
	small := &http.Transport{DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := new(net.Dialer).DialContext(ctx, network, addr)
		if err == nil {
			err = conn.(*net.TCPConn).SetReadBuffer(buffer)
		}
		return conn, err
	}}
	t.Cleanup(small.CloseIdleConnections)
	conn, _, err := websocket.Dial(soonCtx(t), url, &websocket.DialOptions{HTTPClient: &http.Client{Transport: small}})
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.CloseNow() })
	return conn
}

// Who may connect is decided before the connection is upgraded.
func TestWS_Refused(t *testing.T) {
	t.Parallel()
	channel := streamOf[int](t, newHubOf(t), redistest.Key(t))
	handler := newSSE(t, channel, sse.Options[int]{
		OnError: func(error) {},
		Authorize: func(r *http.Request) error {
			if r.URL.Query().Has("stranger") {
				return sse.ErrUnauthorized
			}
			return nil
		},
	})
	dial := func(url, origin string) int {
		conn, response, err := websocket.Dial(soonCtx(t), url, &websocket.DialOptions{HTTPHeader: http.Header{"Origin": {origin}}})
		if err == nil {
			_ = conn.CloseNow()
		}
		return response.StatusCode
	}
	url := newWS(t, handler, ws.Options{})
	require.Equal(t, http.StatusForbidden, dial(url, "https://elsewhere.example"))
	require.Equal(t, http.StatusSwitchingProtocols, dial(newWS(t, handler, ws.Options{OriginPatterns: []string{"*.example"}}), "https://elsewhere.example"))
	require.Equal(t, http.StatusUnauthorized, dial(url+"?stranger", url))
	require.Equal(t, http.StatusBadRequest, dial(url+"?lastEventId=nonsense", url))
	redistest.Eventually(t, soon, func() bool { return handler.Clients() == 0 }, "nothing is left")
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	require.NoError(t, err)
	response, err := http.DefaultClient.Do(request)
	require.NoError(t, err)
	require.NoError(t, response.Body.Close())
	require.Equal(t, http.StatusUpgradeRequired, response.StatusCode)
}

package main

import (
	"context"
	"errors"
	"fmt"
	"html"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/examples/internal/browsertest"
	"github.com/flaminco/redischannels/internal/redistest"
	"github.com/flaminco/redischannels/sse"
	"github.com/flaminco/redischannels/ws"
)

// docsPage serves runs, and a page with one of the pieces of JavaScript of docs/runs.md.
type docsPage struct {
	*tab
	client  *redis.Client
	runs    *sse.Runs[string]
	handler *sse.RunsHandler[string]
	link    *redistest.Proxy // between the browser and the server
	run     *sse.Run[string]
	entries string // the key of those of the run

	refusal atomic.Int32 // the status of all responses; 0: none is refused
	refused atomic.Int32 // requests
}

// docsCodec encodes one text so that it cannot be decoded.
type docsCodec struct{ redischannels.Codec }

const undecodable = "undecodable"

func (c docsCodec) Encode(value any) ([]byte, error) {
	if *value.(*string) == undecodable {
		return []byte(`{`), nil
	}
	return c.Codec.Encode(value)
}

// javaScript returns the code blocks of docs/runs.md.
func javaScript(t *testing.T) (blocks []string) {
	t.Helper()
	text, err := os.ReadFile("../../docs/runs.md")
	require.NoError(t, err)
	for _, block := range regexp.MustCompile("(?s)```js\n(.*?)```").FindAllSubmatch(text, -1) {
		blocks = append(blocks, string(block[1]))
	}
	return blocks
}

const docsToken = "Bearer of the docs"

// countCleared counts in a page how often the text was removed, so that it restarts.
const countCleared = `
	window.cleared = 0;
	new MutationObserver((records) => (cleared += records.filter((r) => r.removedNodes.length > 0).length))
		.observe(document.querySelector("#text"), { childList: true });
`

// openDocs opens the page of a code block, whose requests must have the token where authorized says so.
func openDocs(t *testing.T, browser context.Context, server *redistest.Server, name, code string, authorized bool) *docsPage {
	t.Helper()
	p := &docsPage{tab: newTab(t, browser), client: server.Client(t), entries: "{" + name + ":0}:events:a"}
	hub, err := redischannels.NewHub(p.client, redischannels.HubConfig{})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, hub.Close()) })
	runs, err := sse.NewRuns[string](hub, sse.RunsConfig{Name: name, Buckets: 1, Codec: docsCodec{redischannels.JSON}})
	require.NoError(t, err)
	handler, err := runs.Handler(sse.RunsOptions[string]{Options: sse.Options[string]{
		Retry: 50 * time.Millisecond,
		Authorize: func(r *http.Request) error {
			if authorized && r.Header.Get("Authorization") != docsToken {
				return sse.ErrUnauthorized
			}
			return nil
		},
	}})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, handler.Close()) })
	sockets, err := ws.NewHandler(handler, ws.Options{})
	require.NoError(t, err)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /runs/{id}", func(w http.ResponseWriter, r *http.Request) {
		if status := int(p.refusal.Load()); status != 0 {
			p.refused.Add(1)
			w.WriteHeader(status)
			fmt.Fprint(w, "refused here")
			return
		}
		handler.ServeHTTP(w, r)
	})
	mux.Handle("GET /runs/{id}/ws", sockets)
	mux.HandleFunc("DELETE /runs/{id}", func(w http.ResponseWriter, r *http.Request) {
		if err := runs.Stop(r.Context(), r.PathValue("id")); err != nil {
			http.Error(w, "not running", http.StatusConflict)
		}
	})
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		fmt.Fprintf(w, "<!doctype html><title>%s</title><link rel=icon href=data:,><p id=text></p><script>%s\nconst token = %q;\n%s</script>",
			html.EscapeString(name), countCleared, docsToken, code)
	})
	web := httptest.NewServer(mux)
	t.Cleanup(web.Close)
	p.runs, p.handler, p.link = runs, handler, redistest.NewProxy(t, web.Listener.Addr().String())
	p.do(chromedp.Navigate("http://" + p.link.Addr()))
	p.run, err = runs.Start(t.Context(), "a")
	require.NoError(t, err)
	return p
}

func (p *docsPage) write(values ...string) {
	p.t.Helper()
	require.NoError(p.t, p.run.Write(p.t.Context(), values...))
	require.NoError(p.t, p.run.Flush(p.t.Context()))
}

// shows waits until the page shows a text.
func (p *docsPage) shows(text string) {
	p.t.Helper()
	p.await("document.querySelector('#text').textContent === %q", text)
}

// view calls what the code block defines and keeps what it returns.
func (p *docsPage) view(id, arguments string) {
	p.t.Helper()
	p.do(chromedp.Evaluate(fmt.Sprintf("var viewed; Promise.resolve(view(%q, document.querySelector('#text')%s)).then((v) => (viewed = v)), 0", id, arguments), nil))
}

// resumes has the page show each piece once while its connections are cut, and after it was reloaded. It
// returns what the page shows.
func (p *docsPage) resumes(arguments string) (text string) {
	p.t.Helper()
	p.view("a", arguments)
	add := func(values ...string) {
		p.t.Helper()
		p.write(values...)
		text += strings.Join(values, "")
	}
	add("one ", "two ")
	p.shows(text)
	p.link.Refuse(true)
	add("three ", "\"fo\nur\" ")
	p.link.Refuse(false)
	p.shows(text)
	p.link.Cut()
	add(strings.Repeat("five ", 20_000)) // comes in several chunks
	p.shows(text)
	require.Zero(p.t, eval[int](p.tab, "cleared"), "it resumed, and did not restart")
	p.do(chromedp.Reload())
	p.view("a", arguments)
	add("six")
	p.shows(text)
	return text
}

// ignores sends the page a piece that cannot be decoded, and a gap. It shows only the pieces behind them.
func (p *docsPage) ignores(text string) string {
	p.t.Helper()
	p.write(undecodable, " seven")
	p.shows(text + " seven")
	p.link.Refuse(true)
	redistest.Eventually(p.t, 20*time.Second, func() bool { return p.handler.Clients() == 0 }, "the handler keeps no pieces")
	p.write(" trimmed", " eight")
	require.NoError(p.t, p.client.XTrimMaxLen(p.t.Context(), p.entries, 1).Err())
	p.link.Refuse(false)
	p.shows(text + " seven eight")
	return text + " seven eight"
}

// retries has the server refuse requests for a while, after which the page resumes.
func (p *docsPage) retries(status int32, text string) string {
	p.t.Helper()
	p.do(chromedp.Evaluate(quickTimers, nil))
	p.refused.Store(0)
	p.refusal.Store(status)
	p.link.Cut()
	redistest.Eventually(p.t, 20*time.Second, func() bool { return p.refused.Load() == 7 }, "it comes back")
	p.refusal.Store(0)
	p.write(" later")
	p.shows(text + " later")
	delays := eval[[]int](p.tab, "delays")
	require.Equal(p.t, []int{1000, 2000, 4000, 8000, 16000, 30000, 30000}, delays[:7])
	return text + " later"
}

// quickTimers records the delays of a page's timers, and shortens them.
const quickTimers = `
	window.delays = [];
	window.unhurried ??= setTimeout;
	window.setTimeout = (f, delay) => (delays.push(delay), unhurried(f, delay / 100));
`

// givesUp says that the page shows a refusal, and does not send the request again.
func (p *docsPage) givesUp(status int32) {
	p.t.Helper()
	p.do(chromedp.Evaluate(quickTimers+"; document.querySelector('#text').textContent = 'so far'; viewed = undefined", nil))
	p.refused.Store(0)
	p.refusal.Store(status)
	p.view("a", ", AbortSignal.timeout(60000)")
	p.await("viewed !== undefined")
	p.refusal.Store(0)
	require.Equal(p.t, "refused", eval[string](p.tab, "viewed"))
	p.shows("so far (refused here)")
	require.EqualValues(p.t, 1, p.refused.Load())
	require.Empty(p.t, eval[[]int](p.tab, "delays"))
}

// The code for browsers in docs/runs.md does what the page says, in a browser.
func TestDocsRunsInBrowser(t *testing.T) {
	blocks := javaScript(t)
	require.Len(t, blocks, 3)
	server := redistest.Start(t)
	browser := browsertest.Start(t)

	t.Run("EventSource", func(t *testing.T) {
		p := openDocs(t, browser, server, "eventsource", blocks[0], false)
		text := p.ignores(p.resumes(""))
		require.Equal(t, 1, eval[int](p.tab, "source.readyState"))
		p.do(chromedp.Evaluate("stop('a')", nil))
		p.shows(text + " (stopped)")
		require.Equal(t, 2, eval[int](p.tab, "source.readyState"), "closed")
		<-p.run.Context().Done()

		// The next answer of the conversation, which fails.
		var err error
		p.run, err = p.runs.Start(t.Context(), "a")
		require.NoError(t, err)
		p.write("again")
		p.view("a", "")
		p.shows("again")
		require.NoError(t, p.run.End(t.Context(), errors.New("no more tokens")))
		p.shows("again (no more tokens)")
		require.Equal(t, 1, eval[int](p.tab, "cleared"))

		p.do(chromedp.Evaluate("console.log = (text) => (document.title = text)", nil))
		p.view("none", "")
		p.await("document.title === 'no such run, or it was refused'")
		p.requireNothingRan()
	})

	t.Run("fetch", func(t *testing.T) {
		p := openDocs(t, browser, server, "fetch", blocks[1], true)
		text := p.ignores(p.resumes(", AbortSignal.timeout(60000)"))
		for _, status := range []int32{http.StatusServiceUnavailable, http.StatusTooManyRequests} {
			text = p.retries(status, text)
		}
		require.NoError(t, p.run.End(t.Context(), nil))
		p.await("viewed === 'done'")
		p.shows(text)
		for _, status := range []int32{http.StatusBadRequest, http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound} {
			p.givesUp(status)
		}

		var err error
		p.run, err = p.runs.Start(t.Context(), "a")
		require.NoError(t, err)
		p.view("a", ", AbortSignal.timeout(60000)")
		p.write("again")
		p.shows("again")
		require.NoError(t, p.run.End(t.Context(), errors.New("no more tokens")))
		p.shows("again (no more tokens)")
		p.await("viewed === 'failed'")
		p.view("none", ", AbortSignal.timeout(60000)")
		p.await("viewed === null")
		p.requireNothingRan()
	})

	t.Run("WebSocket", func(t *testing.T) {
		p := openDocs(t, browser, server, "websocket", blocks[2], false)
		text := p.ignores(p.resumes(""))
		require.NoError(t, p.run.End(t.Context(), nil))
		p.await("document.querySelector('#text').dataset.status === 'done'")
		p.shows(text)
		p.do(chromedp.Evaluate("opened = 0; WebSocket = class extends WebSocket { constructor(url) { super(url); opened++; this.addEventListener('close', ({ code }) => (document.title = code)); } }", nil))
		p.view("none", "")
		p.await("document.title === '4204'")
		require.Equal(t, 1, eval[int](p.tab, "new Promise((done) => setTimeout(() => done(opened), 1500))"), "it does not come back")
		p.requireNothingRan()
	})
}

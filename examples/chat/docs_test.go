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
	"testing"
	"time"

	"github.com/chromedp/chromedp"
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
	runs *sse.Runs[string]
	link *redistest.Proxy // between the browser and the server
	run  *sse.Run[string]
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
	hub, err := redischannels.NewHub(server.Client(t), redischannels.HubConfig{})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, hub.Close()) })
	runs, err := sse.NewRuns[string](hub, sse.RunsConfig{Name: name})
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
	mux.Handle("GET /runs/{id}", handler)
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
	p := &docsPage{tab: newTab(t, browser), runs: runs, link: redistest.NewProxy(t, web.Listener.Addr().String())}
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

// The code for browsers in docs/runs.md does what the page says, in a browser.
func TestDocsRunsInBrowser(t *testing.T) {
	blocks := javaScript(t)
	require.Len(t, blocks, 3)
	server := redistest.Start(t)
	browser := browsertest.Start(t)

	t.Run("EventSource", func(t *testing.T) {
		p := openDocs(t, browser, server, "eventsource", blocks[0], false)
		text := p.resumes("")
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
		text := p.resumes(", AbortSignal.timeout(60000)")
		require.NoError(t, p.run.End(t.Context(), nil))
		p.await("viewed?.status === 'done'")
		p.shows(text)
		p.view("none", ", AbortSignal.timeout(60000)")
		p.await("viewed === null")
		p.requireNothingRan()
	})

	t.Run("WebSocket", func(t *testing.T) {
		p := openDocs(t, browser, server, "websocket", blocks[2], false)
		text := p.resumes("")
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

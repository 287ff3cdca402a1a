package main

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/input"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/cdproto/target"
	"github.com/chromedp/chromedp"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels/internal/redistest"
)

// chatChild is the program itself, to be killed.
var chatChild = redistest.ChildMain("chat", func() {
	os.Args = append([]string{"chat"}, strings.Split(os.Getenv("CHAT_ARGS"), "\n")...)
	main()
})

const testAdminKey = "the key of the tests"

// instance is a process of the chat that can be killed and restarted at the same address.
type instance struct {
	t     *testing.T
	addr  string
	redis string
	child *redistest.Child
}

func startInstance(t *testing.T, server *redistest.Server) *instance {
	i := &instance{t: t, addr: freeAddr(t), redis: "redis://" + server.Addr()}
	i.start()
	return i
}

func (i *instance) start() {
	i.t.Helper()
	i.child = redistest.StartChild(i.t, chatChild, "REDIS_URL="+i.redis, "CHAT_ADMIN_KEY="+testAdminKey,
		"CHAT_ARGS="+strings.Join([]string{"-addr", i.addr, "-rate", "100"}, "\n"))
	i.child.WaitLine("Chat: ", 20*time.Second)
}

// freeAddr returns an address of the loopback interface that stays free until it is taken: it
// is not in the range from which systems serve outgoing connections.
func freeAddr(t *testing.T) string {
	t.Helper()
	for range 100 {
		addr := net.JoinHostPort("127.0.0.1", strconv.Itoa(12000+rand.IntN(20000)))
		if listener, err := net.Listen("tcp", addr); err == nil {
			require.NoError(t, listener.Close())
			return addr
		}
	}
	t.Fatal("no free port")
	return ""
}

// tab is a page with cookies of its own, so a person of its own.
type tab struct {
	t   *testing.T
	ctx context.Context

	mu      sync.Mutex
	dialogs []string
	errors  []string
}

func newTab(t *testing.T, browser context.Context) *tab {
	t.Helper()
	profile, err := target.CreateBrowserContext().Do(direct(browser))
	require.NoError(t, err)
	// A window of its own, because this browser opens the first tab of a profile only so.
	return openTab(t, browser, target.CreateTarget("about:blank").WithBrowserContextID(profile).WithNewWindow(true))
}

// sibling opens one more tab with the same cookies.
func (tb *tab) sibling(browser context.Context) *tab {
	tb.t.Helper()
	info, err := target.GetTargetInfo().WithTargetID(chromedp.FromContext(tb.ctx).Target.TargetID).Do(direct(browser))
	require.NoError(tb.t, err)
	return openTab(tb.t, browser, target.CreateTarget("about:blank").WithBrowserContextID(info.BrowserContextID))
}

// direct is for commands to the browser itself.
func direct(browser context.Context) context.Context {
	return cdp.WithExecutor(browser, chromedp.FromContext(browser).Browser)
}

func openTab(t *testing.T, browser context.Context, create *target.CreateTargetParams) *tab {
	t.Helper()
	id, err := create.Do(direct(browser))
	require.NoError(t, err)
	ctx, _ := chromedp.NewContext(browser, chromedp.WithTargetID(id))
	tb := &tab{t: t, ctx: ctx}
	chromedp.ListenTarget(ctx, func(event any) {
		tb.mu.Lock()
		defer tb.mu.Unlock()
		switch event := event.(type) {
		case *page.EventJavascriptDialogOpening:
			tb.dialogs = append(tb.dialogs, event.Message)
		case *runtime.EventExceptionThrown:
			tb.errors = append(tb.errors, event.ExceptionDetails.Error())
		}
	})
	t.Cleanup(func() {
		if t.Failed() {
			var text string
			_ = chromedp.Run(ctx, chromedp.Evaluate("document.body.innerText", &text))
			t.Logf("the page says: %s", text)
		}
		_ = chromedp.Cancel(ctx)
	})
	require.NoError(t, chromedp.Run(ctx)) // attaches for as long as ctx lives
	tb.do(chromedp.EmulateViewport(1000, 700), chromedp.ActionFunc(func(ctx context.Context) error {
		_, err := page.AddScriptToEvaluateOnNewDocument(recordEvents).Do(ctx)
		return err
	}))
	return tb
}

// recordEvents keeps the IDs of what comes through event streams, before the page judges it.
const recordEvents = `
	window.received = [];
	window.sources = [];
	window.EventSource = class extends EventSource {
		constructor(url) {
			super(url);
			this.addEventListener("message", (event) => received.push(event.lastEventId));
			if (url.includes("/events")) sources.push(this);
		}
	};
`

// do runs actions; they must end soon.
func (tb *tab) do(actions ...chromedp.Action) {
	tb.t.Helper()
	ctx, cancel := context.WithTimeout(tb.ctx, 20*time.Second)
	defer cancel()
	require.NoError(tb.t, chromedp.Run(ctx, actions...))
}

// eval returns the value of a JavaScript expression.
func eval[T any](tb *tab, format string, args ...any) T {
	tb.t.Helper()
	var value T
	tb.do(chromedp.Evaluate(fmt.Sprintf(format, args...), &value, func(p *runtime.EvaluateParams) *runtime.EvaluateParams {
		return p.WithAwaitPromise(true)
	}))
	return value
}

// await waits until the JavaScript expression is true.
func (tb *tab) await(format string, args ...any) {
	tb.t.Helper()
	expression := fmt.Sprintf(format, args...)
	deadline := time.Now().Add(25 * time.Second)
	for !eval[bool](tb, "Boolean(%s)", expression) {
		if time.Now().After(deadline) {
			tb.t.Fatalf("never true: %s", expression)
		}
		time.Sleep(30 * time.Millisecond)
	}
}

func (tb *tab) textOf(selector string) string {
	tb.t.Helper()
	return eval[string](tb, "document.querySelector(%q)?.innerText ?? ''", selector)
}

// signIn opens the page of an instance and enters a room.
func (tb *tab) signIn(addr, room, name, key string) {
	tb.t.Helper()
	tb.do(chromedp.Navigate("http://" + addr + "/?room=" + url.QueryEscape(room)))
	tb.await("document.querySelector('#welcome:not([hidden])')")
	tb.do(chromedp.SetValue("#name", name, chromedp.ByQuery))
	if key != "" {
		tb.do(chromedp.Click("summary", chromedp.ByQuery), chromedp.SetValue("#key", key, chromedp.ByQuery))
	}
	tb.do(chromedp.Click("#sign-in button", chromedp.ByQuery))
	tb.await("document.querySelector('#link').dataset.state === 'live'")
	tb.do(chromedp.Focus("#text", chromedp.ByQuery)) // which the page does not do on a phone
}

// say enters a message and sends it with the Enter key.
func (tb *tab) say(text string) {
	tb.t.Helper()
	tb.do(chromedp.Focus("#text", chromedp.ByQuery), input.InsertText(text), enter(0))
	require.Empty(tb.t, eval[string](tb, "document.querySelector('#text').value"))
}

// enter presses the Enter key as a keyboard does: a page that handles the key gets no line break.
// chromedp.KeyEvent sends that separately.
func enter(modifiers input.Modifier) chromedp.Action {
	return chromedp.ActionFunc(func(ctx context.Context) error {
		key := input.DispatchKeyEvent(input.KeyDown).WithKey("Enter").WithCode("Enter").WithWindowsVirtualKeyCode(13).WithModifiers(modifiers)
		if err := key.WithText("\r").Do(ctx); err != nil {
			return err
		}
		key.Type, key.Text = input.KeyUp, ""
		return key.Do(ctx)
	})
}

// shown is a message as the page has it.
type shown struct{ ID, Key, Text, State string }

func (tb *tab) messages() []shown {
	tb.t.Helper()
	return eval[[]shown](tb, `[...document.querySelectorAll("#log .message")].map((m) => ({
		ID: m.dataset.id ?? "", Key: m.dataset.key, State: m.dataset.state ?? "",
		Text: m.querySelector(".text").textContent,
	}))`)
}

// awaitDelivered waits until so many messages have come back through the stream.
func (tb *tab) awaitDelivered(count int) {
	tb.t.Helper()
	tb.await(`document.querySelectorAll("#log .message[data-id]").length >= %d`, count)
}

// stored are the messages of the stream; what was written twice, because the answer to the first
// time was lost, is there twice.
func stored(t *testing.T, client *redis.Client, room string) []shown {
	t.Helper()
	var all []shown
	for _, entry := range client.XRange(t.Context(), roomKey(room), "-", "+").Val() {
		var message Message
		require.NoError(t, json.Unmarshal([]byte(entry.Values["payload"].(string)), &message))
		all = append(all, shown{ID: entry.ID, Key: message.Key, Text: message.Text})
	}
	return all
}

// requireNothingRan says that no script of another user has run in the page.
func (tb *tab) requireNothingRan() {
	tb.t.Helper()
	tb.mu.Lock()
	defer tb.mu.Unlock()
	require.Empty(tb.t, tb.dialogs)
	require.Empty(tb.t, tb.errors)
}

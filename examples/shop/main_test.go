package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels/examples/internal/browsertest"
	"github.com/flaminco/redischannels/examples/internal/serve"
	"github.com/flaminco/redischannels/internal/redistest"
)

func TestMain(m *testing.M) { redistest.Main(m) }

// start runs the shop until the test ends.
func start(t *testing.T, redisURL string) (url string) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- serve.Run(ctx, redisURL, listener, io.Discard, run) }()
	t.Cleanup(func() {
		cancel()
		require.NoError(t, <-ended)
	})
	return "http://" + listener.Addr().String()
}

// tab is a page in the browser.
type tab struct {
	t   *testing.T
	ctx context.Context
}

func open(t *testing.T, browser context.Context, url string) tab {
	t.Helper()
	ctx, cancel := chromedp.NewContext(browser)
	t.Cleanup(cancel)
	require.NoError(t, chromedp.Run(ctx)) // the tab ends with the context of the first Run
	tb := tab{t, ctx}
	tb.run(chromedp.Navigate(url), chromedp.WaitVisible("main"))
	return tb
}

func (tb tab) run(actions ...chromedp.Action) {
	tb.t.Helper()
	ctx, cancel := context.WithTimeout(tb.ctx, 30*time.Second)
	defer cancel()
	require.NoError(tb.t, chromedp.Run(ctx, actions...))
}

// until waits until an expression is true, on whatever page the tab is by then.
func (tb tab) until(expression string) {
	tb.t.Helper()
	redistest.Eventually(tb.t, 30*time.Second, func() bool {
		ctx, cancel := context.WithTimeout(tb.ctx, 5*time.Second)
		defer cancel()
		var ok bool
		err := chromedp.Run(ctx, chromedp.Evaluate("Boolean("+expression+")", &ok))
		return err == nil && ok // between two pages there is nothing to ask
	}, "%s", expression)
}

// click clicks what is there at that moment: the page replaces its parts.
func (tb tab) click(selector string) {
	tb.t.Helper()
	tb.run(chromedp.Evaluate(fmt.Sprintf("document.querySelector(%q).click()", selector), nil))
}

func (tb tab) eval(expression string, to any) {
	tb.t.Helper()
	tb.run(chromedp.Evaluate(expression, to))
}

// shot writes a picture of the page where SHOP_SCREENSHOTS names a folder, to be looked at.
func (tb tab) shot(name string) {
	folder := os.Getenv("SHOP_SCREENSHOTS")
	if folder == "" {
		return
	}
	var png []byte
	tb.run(chromedp.FullScreenshot(&png, 100))
	require.NoError(tb.t, os.WriteFile(folder+"/"+name+".png", png, 0o600))
}

// The console shows the shop at work, keeps its pages up to date, and acts.
func TestShop_Console(t *testing.T) {
	server := redistest.Start(t, redistest.AOF())
	url := start(t, "redis://"+server.Addr())
	browser := browsertest.Start(t)

	topics := open(t, browser, url)
	topics.until(`document.getElementById("state").className === "live"`)
	topics.until(`["orders", "paid", "reviews"].every(name => [...document.querySelectorAll("td.name a")].some(a => a.textContent === name))`)
	var before string
	const entries = `document.querySelector("td.n").textContent`
	topics.eval(entries, &before)
	topics.until(fmt.Sprintf(`%s !== %q`, entries, before)) // without a reload
	topics.shot("topics")

	// By the keyboard: the first topic, its group.
	topics.run(chromedp.KeyEvent("j"), chromedp.KeyEvent("\r"))
	topics.until(`location.pathname === "/topics/orders"`)
	topics.until(`document.querySelector("td.name a")?.textContent === "billing"`)
	topics.shot("topic")
	topics.click("td.name a")
	topics.until(`document.querySelector("h1").textContent === "billing"`)
	topics.until(`document.querySelectorAll("svg.chart polyline").length > 0`)

	// What a person types stays, while the rest of the page goes on.
	topics.run(chromedp.SendKeys(`input[name="reason"]`, "stocktaking"))
	topics.eval(`document.getElementById("group").innerHTML`, &before)
	topics.until(fmt.Sprintf(`document.getElementById("group").innerHTML !== %q`, before))
	topics.until(`document.querySelector('input[name="reason"]').value === "stocktaking"`)
	topics.click("#pause button")
	topics.until(`document.querySelector("[role=status]")?.textContent.startsWith("Paused until it is resumed")`)
	topics.until(`document.querySelector("main").textContent.includes("stocktaking")`)
	topics.shot("paused")
	topics.click("#pause button")
	topics.until(`document.querySelector("[role=status]")?.textContent === "Resumed."`)
	topics.until(`document.querySelector("#group .tag").textContent === "consuming"`)

	// The connection is lost, which the page says, and comes back.
	server.Stop()
	topics.until(`document.getElementById("state").className === "lost"`)
	server.Restart()
	topics.until(`document.getElementById("state").className === "live"`)
}

// No page is wider than a phone, and none depends on the script.
func TestShop_Narrow(t *testing.T) {
	url := start(t, "redis://"+redistest.Start(t).Addr())
	browser := browsertest.Start(t)
	tb := open(t, browser, url)
	tb.until(`document.querySelectorAll("td.name a").length === 3`)
	for _, scheme := range []string{"light", "dark"} {
		tb.run(chromedp.EmulateViewport(360, 740), emulation.SetEmulatedMedia().WithFeatures([]*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}}))
		for _, path := range []string{"/", "/topics/orders", "/topics/orders/groups/billing", "/topics/orders/messages", "/topics/orders/dead", "/topics/reviews/delayed", "/doctor"} {
			tb.run(chromedp.Navigate(url+path), chromedp.WaitVisible("main"))
			var width int
			tb.eval(`document.documentElement.scrollWidth`, &width)
			require.LessOrEqual(t, width, 360, path)
			tb.shot("narrow" + strings.ReplaceAll(path, "/", "-") + "-" + scheme)
		}
	}
	tb.run(emulation.SetScriptExecutionDisabled(true), chromedp.Navigate(url+"/topics/orders"), chromedp.WaitVisible("td.name a"))
}

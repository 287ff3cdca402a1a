package main

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels/internal/redistest"
)

// requireSafeLinks says that the links in messages are these, and nothing but links.
func requireSafeLinks(t *testing.T, tb *tab, addresses ...string) {
	t.Helper()
	want := make([]string, len(addresses))
	for i, address := range addresses {
		want[i] = fmt.Sprintf("href=%s rel=noopener noreferrer nofollow target=_blank", address)
	}
	require.Equal(t, want, eval[[]string](tb, `[...document.querySelectorAll("#log a")]
		.map((a) => [...a.attributes].map(({ name, value }) => name + "=" + value).sort().join(" "))`))
}

// Addresses of the web can be clicked, and the text stays as it was typed.
func testLinks(t *testing.T, browser context.Context, first, second *instance) {
	t.Parallel()
	mira, theo := newTab(t, browser), newTab(t, browser)
	mira.signIn(first.addr, "links", "Mira", "")
	theo.signIn(second.addr, "links", "Theo", "")
	texts := []string{
		"See https://redis.io/docs/latest/?q=streams&a=1#top, and (http://localhost:8080/a_b).",
		"HTTPS://Example.org/ä!? https://example.org",
		"No links: javascript:alert(1) data:text/html,x ftp://example.org xhttps://example.org https:// http://",
		"Nor one that feigns its host: https://redis.io@example.org/ https://a:b@example.org",
	}
	for _, text := range texts {
		mira.say(text)
	}
	for _, tb := range []*tab{mira, theo} {
		tb.awaitDelivered(len(texts))
		for i, message := range tb.messages() {
			require.Equal(t, texts[i], message.Text)
		}
		requireSafeLinks(t, tb, "https://redis.io/docs/latest/?q=streams&a=1#top", "http://localhost:8080/a_b",
			"https://example.org/%C3%A4", "https://example.org/")
		require.Equal(t, []string{"https://redis.io/docs/latest/?q=streams&a=1#top", "http://localhost:8080/a_b",
			"HTTPS://Example.org/ä", "https://example.org"}, eval[[]string](tb, `[...document.querySelectorAll("#log a")].map((a) => a.textContent)`))
		tb.requireNothingRan()
	}
}

// fromEnd is how far the reader is from the end of the conversation, in pixels.
const fromEnd = `(({ scrollHeight, scrollTop, clientHeight }) => scrollHeight - scrollTop - clientHeight)(document.querySelector("#scroll"))`

// The keyboard of a phone opens and closes, and the phone is turned: a reader at the end stays there, and
// another one is not moved.
func testEndInView(t *testing.T, browser context.Context, client *redis.Client, first *instance) {
	t.Parallel()
	for i := range 40 {
		writeAt(t, client, "end-in-view", time.Now().Add(time.Duration(i-50)*time.Millisecond), Message{
			Key: fmt.Sprint("line-", i), From: User{"abc", "Theo", customer}, Text: fmt.Sprint("Some words that need more than one line on a phone: ", i),
		})
	}
	tb := newTab(t, browser)
	tb.do(chromedp.EmulateViewport(400, 800))
	tb.signIn(first.addr, "end-in-view", "Mira", "")
	tb.awaitDelivered(40)
	tb.await("%s < 2", fromEnd)
	// The page's own observer and listener were there first, so they have run when these have.
	eval[bool](tb, `(window.sizes = window.scrolls = 0, new ResizeObserver(() => sizes++).observe(document.querySelector("#scroll")),
		document.querySelector("#scroll").addEventListener("scroll", () => scrolls++), true)`)
	tb.await("sizes === 1")
	resize := func(width, height int64) {
		t.Helper()
		eval[int](tb, "sizes = 0")
		tb.do(chromedp.EmulateViewport(width, height))
		tb.await("sizes > 0")
	}
	for _, size := range [][2]int64{{400, 450}, {400, 800}, {800, 400}, {400, 800}} {
		resize(size[0], size[1])
		tb.await("%s < 2", fromEnd)
	}
	eval[int](tb, "(scrolls = 0, document.querySelector('#scroll').scrollTop = 100)")
	tb.await("scrolls > 0")
	resize(400, 450)
	require.InDelta(t, 100, eval[float64](tb, "document.querySelector('#scroll').scrollTop"), 1)
}

// markOf is the room's link while it has a mark.
func markOf(room string) string {
	return fmt.Sprintf("document.querySelector('#rooms a.unread[href=\"/?room=%s\"]')", room)
}

func testUnreadMarks(t *testing.T, browser context.Context, first, second *instance) {
	t.Parallel()
	mira, theo := newTab(t, browser), newTab(t, browser)
	theo.signIn(second.addr, "unread-a", "Theo", "")
	theo.say("before she came")
	theo.awaitDelivered(1)
	mira.signIn(first.addr, "unread-b", "Mira", "")
	mira.await("document.querySelector('#rooms a[href=\"/?room=unread-a\"]')")
	require.False(t, eval[bool](mira, "Boolean(%s)", markOf("unread-a")), "this was there before her")
	theo.say("news")
	mira.await("%s?.textContent === 'unread-a, new messages'", markOf("unread-a"))
	require.True(t, eval[bool](mira, "document.querySelector('#open-side').classList.contains('unread')"), "on a phone it cannot be seen")
	require.Contains(t, eval[string](mira, "document.querySelector('#open-side').ariaLabel"), "new messages")
	require.Equal(t, "unread-b · Chat", eval[string](mira, "document.title"))

	// The mark survives a reload, and goes when the room is opened.
	mira.do(chromedp.Reload())
	mira.await("%s", markOf("unread-a"))
	eval[bool](mira, "(%s.click(), true)", markOf("unread-a"))
	mira.awaitDelivered(2)
	mira.await("!%s", markOf("unread-a"))
	mira.await("document.querySelector('#open-side').classList.contains('unread') === Boolean(document.querySelector('#rooms a.unread'))")

	// What is read there makes no mark afterwards.
	theo.say("and more")
	mira.awaitDelivered(3)
	eval[bool](mira, "(document.querySelector('#rooms a[href=\"/?room=unread-b\"]').click(), window.asked = 0, window.real = fetch, window.fetch = (...a) => (asked++, real(...a)), true)")
	mira.await("asked > 2 && document.querySelector('#rooms a[aria-current]').textContent === 'unread-b'")
	require.False(t, eval[bool](mira, "Boolean(%s)", markOf("unread-a")))
}

func testPeopleOnPhone(t *testing.T, browser context.Context, first, second *instance) {
	t.Parallel()
	mira, theo := newTab(t, browser), newTab(t, browser)
	mira.do(chromedp.EmulateViewport(360, 740, chromedp.EmulateMobile, chromedp.EmulateTouch))
	mira.signIn(first.addr, "people-on-a-phone", "Mira", "")
	require.Equal(t, "1 person here", eval[string](mira, "document.querySelector('#here').textContent"))
	theo.signIn(second.addr, "people-on-a-phone", "Theo", "")
	mira.await("document.querySelector('#here').textContent === '2 people here'")
	require.True(t, eval[bool](mira, `((here) => here.checkVisibility() && here.getBoundingClientRect().width > 0 &&
		document.elementFromPoint(here.getBoundingClientRect().x + 1, here.getBoundingClientRect().y + here.clientHeight / 2)?.closest("#here") === here)(document.querySelector("#here"))`))
	requireNoSideways(t, mira)
}

// The page says which process serves it, and that it may be killed; then it comes back and names the
// process that serves it now.
func testFooter(t *testing.T, browser context.Context, first *instance) {
	tb := newTab(t, browser)
	tb.signIn(first.addr, "footer", "Mira", "")
	tb.say("before")
	tb.awaitDelivered(1)
	tb.await("document.querySelector('#about').checkVisibility()")
	require.Equal(t, "chat:room:footer", tb.textOf("#stream"))
	require.Equal(t, "Stop me, I come back", tb.textOf("#about button"))
	instance := tb.textOf("#instance")
	require.NotEmpty(t, instance)
	require.False(t, eval[bool](tb, "document.querySelector('#come-back').checkVisibility()"))
	eval[bool](tb, "(document.querySelector('#about button').click(), true)")
	tb.await("document.querySelector('#come-back').checkVisibility()")
	require.Equal(t, fmt.Sprint("kill -9 ", first.child.Pid()), tb.textOf("#come-back code"))
	require.Contains(t, tb.textOf("#come-back"), "Redis, too, may be stopped")
	require.NotContains(t, tb.textOf("#come-back"), "embedded")
	requireNamedControls(t, tb)
	eval[bool](tb, "(document.querySelector('#come-back button').click(), true)")
	tb.await("!document.querySelector('#come-back').checkVisibility()")

	first.child.Kill()
	tb.say("during")
	first.start()
	tb.awaitDelivered(2)
	tb.await("document.querySelector('#instance').textContent !== %q", instance)
	require.Equal(t, fmt.Sprint(first.child.Pid()), eval[string](tb, "document.querySelector('.process').textContent"))
}

// The event stream of the page lives on without Redis; the page is not live then.
func testRedisIsDown(t *testing.T, server *redistest.Server, browser context.Context, second *instance) {
	tb := newTab(t, browser)
	tb.signIn(second.addr, "redis-down", "Mira", "")
	require.Equal(t, "Live", tb.textOf("#link"))
	server.Kill()
	tb.await("document.querySelector('#link').innerText === 'Redis is down'")
	require.Contains(t, tb.textOf("#banner"), "Redis does not answer")
	require.True(t, eval[bool](tb, "sources.every((source) => source.readyState === EventSource.OPEN)"), "the event stream has not ended")
	server.Restart()
	live := "document.querySelector('#link').innerText === 'Live' && document.querySelector('#banner').textContent === ''"
	tb.await("%s", live)

	// One that does not answer is as good as none.
	server.Pause()
	tb.await("document.querySelector('#link').innerText === 'Redis is down'")
	server.Resume()
	tb.await("%s", live)
	tb.say("again")
	tb.awaitDelivered(1)
}

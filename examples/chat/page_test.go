package main

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/accessibility"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/input"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels/examples/internal/browsertest"
	"github.com/flaminco/redischannels/internal/redistest"
)

// TestPage is about the page in a real browser, on two instances over one real Redis.
func TestPage(t *testing.T) {
	server := redistest.Start(t, redistest.AOF())
	client := server.Client(t)
	browser := browsertest.Start(t)
	first, second := startInstance(t, server), startInstance(t, server)

	t.Run("together", func(t *testing.T) {
		t.Run("two instances", func(t *testing.T) {
			t.Parallel()
			mira, ana := newTab(t, browser), newTab(t, browser)
			mira.signIn(first.addr, "two-instances", "Mira", "")
			ana.signIn(second.addr, "two-instances", "Ana", testAdminKey)
			mira.say("Good morning")
			ana.awaitDelivered(1)
			ana.do(chromedp.Click("#announce", chromedp.ByQuery))
			ana.say("Good morning, all")
			mira.awaitDelivered(2)
			require.True(t, eval[bool](mira, "document.querySelector('#log .announcement .badge').textContent === 'Admin'"))
			require.False(t, eval[bool](mira, "document.querySelector('#announce').checkVisibility()"), "a customer may announce")
			for _, tb := range []*tab{mira, ana} {
				tb.await("document.querySelectorAll('#people li').length === 2")
				requireAsStored(t, client, "two-instances", tb, 2)
			}

			// Who is typing, until the message is there; and who has left.
			ana.say("One moment")
			mira.awaitDelivered(3)
			time.Sleep(1100 * time.Millisecond) // who has just spoken is not shown to be typing
			ana.do(chromedp.SendKeys("#text", "Who", chromedp.ByQuery))
			mira.await("document.querySelector('#typing').textContent === 'Ana is typing…'")
			ana.say(" is there?")
			mira.await("document.querySelector('#typing').textContent === ''")
			ana.do(chromedp.Click("#leave", chromedp.ByQuery))
			mira.await("document.querySelectorAll('#people li').length === 1")

			// Reloading shows the history, and who we are.
			mira.do(chromedp.Reload())
			mira.awaitDelivered(4)
			requireAsStored(t, client, "two-instances", mira, 4)
			require.Equal(t, "Mira", mira.textOf("#my-name"))
		})

		// Bug: with two event streams in each of four tabs a browser, which opens six connections to a
		// server, has none left to send by.
		t.Run("four tabs of one browser", func(t *testing.T) {
			t.Parallel()
			tabs := []*tab{newTab(t, browser)}
			for range 3 {
				tabs = append(tabs, tabs[0].sibling(browser))
			}
			for i, tb := range tabs {
				tb.signIn(first.addr, "four-tabs", fmt.Sprint("Person ", i), "")
			}
			for i, tb := range tabs {
				tb.say(fmt.Sprint("hello from ", i))
				for _, other := range tabs {
					other.awaitDelivered(i + 1)
				}
			}
			for _, tb := range tabs {
				tb.await("document.querySelectorAll('#people li').length === 4")
				requireAsStored(t, client, "four-tabs", tb, 4)
			}
			// The one that has the stream of who is there closes, and another one takes over.
			tabs[0].do(chromedp.Click("#leave", chromedp.ByQuery))
			for _, tb := range tabs[1:] {
				tb.await("document.querySelectorAll('#people li').length === 3")
			}
			tabs[2].do(chromedp.SendKeys("#text", "x", chromedp.ByQuery)) // who has just spoken is not shown to be typing
			tabs[1].await("document.querySelector('#typing').textContent === 'Person 2 is typing…'")
		})

		t.Run("script stays text", func(t *testing.T) {
			t.Parallel()
			mira, theo := newTab(t, browser), newTab(t, browser)
			mira.signIn(first.addr, `scripts"><script>alert(1)</script>`, "<img src onerror=boo()>", "")
			require.Equal(t, "# lounge", "# "+mira.textOf("#title"))
			theo.signIn(second.addr, "lounge", "Theo", "")
			payloads := []string{
				`<script>window.hacked = 1; alert(1)</script>`,
				`<img src=x onerror="window.hacked=1;alert(2)">`,
				`"><svg onload=alert(3)><iframe srcdoc="<script>parent.hacked=1</script>">`,
				`<a href="javascript:alert(4)">click</a> &lt;b&gt; &amp; {{7*7}} ${7*7}`,
				`https://example.org/"onmouseover="alert(5)" javascript:alert(6)//https://example.org/<img/src/onerror=alert(7)>`,
				"</textarea></li></ol><style>*{display:none}</style>\u2028<!--",
			}
			for _, payload := range payloads[:5] {
				mira.say(payload)
			}
			mira.awaitDelivered(5)
			theo.awaitDelivered(5)
			// This one has a character that the server refuses, and that no keyboard has.
			eval[bool](mira, "(document.querySelector('#text').value = %q, true)", payloads[5])
			mira.do(enter(0))
			mira.await("document.querySelector('#log [data-state=failed]')")
			for _, tb := range []*tab{mira, theo} {
				for i, message := range tb.messages() {
					require.Equal(t, payloads[i], message.Text)
				}
				require.Equal(t, 0, eval[int](tb, `document.querySelectorAll("#log :is(script, img, svg, iframe, b, style), [onerror], [onload], [onmouseover]").length +
					document.querySelectorAll("#people :is(img, script)").length + (window.hacked ? 1 : 0)`))
				requireSafeLinks(t, tb, "https://example.org/", "https://example.org/")
				tb.requireNothingRan()
			}
			require.Equal(t, "<img src onerror=boo()>", theo.textOf("#log .name"))
		})

		t.Run("links", func(t *testing.T) { testLinks(t, browser, first, second) })
		t.Run("end in view", func(t *testing.T) { testEndInView(t, browser, client, first) })
		t.Run("unread marks", func(t *testing.T) { testUnreadMarks(t, browser, first, second) })
		t.Run("people on a phone", func(t *testing.T) { testPeopleOnPhone(t, browser, first, second) })

		t.Run("only by keyboard", func(t *testing.T) {
			t.Parallel()
			tb := newTab(t, browser)
			tb.do(chromedp.Navigate("http://" + first.addr + "/?room=keyboard"))
			tb.await("document.activeElement.id === 'name'")
			tb.do(chromedp.KeyEvent("Kim"), enter(0))
			tb.await("document.activeElement.id === 'text'")
			tb.do(chromedp.KeyEvent("one"), enter(input.ModifierShift), chromedp.KeyEvent("two"), enter(0))
			tb.awaitDelivered(1)
			require.Equal(t, "one\ntwo", tb.messages()[0].Text)
			requireTabOrder(t, tb)
			// Into another room, and back by the browser's history.
			tb.do(chromedp.Focus("#room-name", chromedp.ByQuery), chromedp.KeyEvent("Next Door"), enter(0))
			tb.await("document.querySelector('#title').textContent === 'next-door' && document.activeElement.id === 'text'")
			tb.await("document.querySelector('#empty').checkVisibility()")
			tb.do(chromedp.NavigateBack())
			tb.await("document.querySelector('#title').textContent === 'keyboard'")
			tb.awaitDelivered(1)
		})

		t.Run("not sent", func(t *testing.T) {
			t.Parallel()
			tb := newTab(t, browser)
			tb.signIn(first.addr, "not-sent", "Mira", "")
			eval[bool](tb, `(window.real = fetch, window.fetch = async () => new Response('{"error":"not today"}', {status: 403}), true)`)
			tb.say("first")
			tb.say("second")
			tb.await("document.querySelectorAll('#log [data-state=failed]').length === 2")
			require.Contains(t, tb.textOf("#log .state"), "Not sent: Not today.")
			require.Contains(t, tb.textOf("#status"), "not sent")
			requireNamedControls(t, tb)
			tb.do(chromedp.Click("#log .message:nth-of-type(2) .state button:last-child", chromedp.ByQuery)) // the first is the day
			tb.await("document.querySelectorAll('#log .message').length === 1")
			tb.do(chromedp.Reload()) // what has failed is not lost
			tb.await("document.querySelectorAll('#log [data-state=failed]').length === 1")
			tb.do(chromedp.Click("#log .state button", chromedp.ByQuery))
			tb.awaitDelivered(1)
			require.Equal(t, "second", tb.messages()[0].Text)
			requireAsStored(t, client, "not-sent", tb, 1)

			// The page drops what it has by its ID, and what was written twice by its key.
			id, key := tb.messages()[0].ID, tb.messages()[0].Key
			for _, again := range []struct{ id, key string }{{id, key}, {id, "other-key"}, {"1-0", "older-key"}, {"99999999999999-0", key}} {
				eval[bool](tb, `sources.every((source) => source.dispatchEvent(new MessageEvent("message", {lastEventId: %q,
					data: JSON.stringify({key: %q, from: {id: sessionStorage.getItem("chat-me"), name: "Mira", role: "customer"}, text: "again"})})))`, again.id, again.key)
				require.Len(t, tb.messages(), 1, "%v", again)
			}
			eval[bool](tb, `sources.every((source) => source.dispatchEvent(new Event("gap")))`)
			require.Contains(t, tb.textOf("#log .note"), "no longer kept")
		})

		t.Run("narrow phone", func(t *testing.T) {
			t.Parallel()
			tb := newTab(t, browser)
			tb.do(chromedp.EmulateViewport(320, 568, chromedp.EmulateMobile, chromedp.EmulateTouch))
			tb.do(chromedp.Navigate("http://" + first.addr))
			tb.await("document.activeElement.id === 'name'")
			requireNoSideways(t, tb)
			requireNamedControls(t, tb)
			tb.signIn(first.addr, "a-room-with-a-name-of-32-letters", strings.Repeat("W", maxName), testAdminKey)
			tb.say(strings.Repeat("longword", 20))
			tb.say("and then some words that need more than one line on such a narrow screen")
			tb.awaitDelivered(2)
			requireNoSideways(t, tb)
			require.True(t, eval[bool](tb, "document.querySelector('#send').getBoundingClientRect().bottom <= innerHeight"))
			tb.do(chromedp.Click("#open-side", chromedp.ByQuery))
			tb.await("document.activeElement.id === 'close-side' && document.querySelector('#room').inert")
			requireNoSideways(t, tb)
			requireNamedControls(t, tb)
			tb.do(chromedp.KeyEvent(kb.Escape))
			tb.await("document.activeElement.id === 'open-side' && document.querySelector('#side').inert")
			tb.do(emulation.SetDeviceMetricsOverride(568, 320, 2, true))
			requireNoSideways(t, tb)
		})

		t.Run("for screen readers", func(t *testing.T) {
			t.Parallel()
			tb := newTab(t, browser)
			tb.signIn(first.addr, "screen-readers", "Mira", testAdminKey)
			tb.say("hello")
			tb.awaitDelivered(1)
			roles := requireNamedControls(t, tb)
			for _, role := range []string{"main", "navigation", "log", "status", "heading", "textbox", "listitem"} {
				require.Contains(t, roles, role)
			}
			require.Equal(t, "polite", eval[string](tb, "document.querySelector('#log').ariaLive"))
			tb.await("document.querySelector('#log').getAttribute('aria-busy') === 'false'")
		})
	})
	// Alone, since it kills what the others need.
	t.Run("faults", func(t *testing.T) { testFaults(t, server, browser, first, second) })

	t.Run("footer", func(t *testing.T) { testFooter(t, browser, first) })
	t.Run("Redis is down", func(t *testing.T) { testRedisIsDown(t, server, browser, second) })

	// The instance refuses the page, so the browser gives up; the page does not.
	t.Run("forgotten", func(t *testing.T) {
		tb := newTab(t, browser)
		tb.signIn(second.addr, "forgotten", "Mira", "")
		tb.say("before")
		tb.awaitDelivered(1)
		who := me(tb)
		second.child.Kill()
		require.NoError(t, client.Del(t.Context(), "chat:secret").Err()) // by which it knows users
		require.NoError(t, client.ZRem(t.Context(), directoryKey, "forgotten").Err())
		writeAt(t, client, "forgotten", time.Now(), Message{Key: "while-away", From: User{"abc", "Theo", customer}, Text: "while away"})
		tb.say("kept")
		second.start()
		tb.awaitDelivered(3)
		requireAsStored(t, client, "forgotten", tb, 3)
		require.NotEqual(t, who.ID, me(tb).ID)
		require.Equal(t, who.Name, me(tb).Name)
		require.Equal(t, "", tb.textOf("#banner"))
	})
}

// testFaults kills the instance, Redis, and the connection of one tab, in every combination,
// while both tabs write. In the end each message is on each page once, in the order of the stream,
// and the event streams have brought each entry once, without help of the page.
func testFaults(t *testing.T, server *redistest.Server, browser context.Context, first, second *instance) {
	proxy := redistest.NewProxy(t, second.addr)
	client := server.Client(t)
	mira, theo := newTab(t, browser), newTab(t, browser)
	mira.signIn(first.addr, "faults", "Mira", "")
	theo.signIn(proxy.Addr(), "faults", "Theo", "")
	said := 0
	for combination := 1; combination < 8; combination++ {
		instance, connection, redis := combination&1 != 0, combination&2 != 0, combination&4 != 0
		t.Logf("instance %t, connection %t, redis %t", instance, connection, redis)
		say := func(tb *tab, what string) {
			said++
			tb.say(fmt.Sprintf("%d %s", said, what))
		}
		say(mira, "before")
		say(theo, "before")
		mira.awaitDelivered(said)
		theo.awaitDelivered(said)

		if redis {
			server.Kill()
		}
		if instance {
			second.child.Kill()
		}
		if connection {
			proxy.Refuse(true)
			proxy.Cut()
		}
		if instance || connection {
			theo.await("document.querySelector('#banner').textContent.includes('Reconnecting')")
		}
		say(mira, "during")
		say(theo, "during")
		say(mira, "during")
		if instance || connection || redis {
			theo.await("document.querySelector('#log [data-state=waiting]')")
		}
		if redis {
			mira.await("document.querySelector('#log [data-state=waiting]') && document.querySelector('#banner').textContent !== ''")
		} else {
			mira.awaitDelivered(said - 1) // so the other tab misses them
		}

		proxy.Refuse(false) // first, so that the tab also meets an instance without Redis
		if redis {
			server.Restart()
		}
		if instance {
			second.start()
		}
		say(theo, "after")
		say(mira, "after")
		for _, tb := range []*tab{mira, theo} {
			tb.awaitDelivered(said)
			requireAsStored(t, client, "faults", tb, said)
			tb.await("document.querySelector('#link').dataset.state === 'live' && document.querySelector('#banner').textContent === ''")
			tb.requireNothingRan()
		}
	}
	// The messages of one person are in the order in which they were written.
	for _, tb := range []*tab{mira, theo} {
		texts := eval[[]string](tb, "[...document.querySelectorAll('#log .own .text')].map((e) => e.textContent)")
		require.True(t, slices.IsSortedFunc(texts, func(a, b string) int {
			var x, y int
			_, _ = fmt.Sscan(a, &x)
			_, _ = fmt.Sscan(b, &y)
			return x - y
		}), "%q", texts)
	}
}

// requireAsStored says that the page shows so many messages: those of the stream, in its order,
// each once. A message that was written twice, under the same key, counts at its first place.
func requireAsStored(t *testing.T, client *redis.Client, room string, tb *tab, count int) {
	t.Helper()
	entries := stored(t, client, room)
	var want []shown
	var ids []string
	for _, entry := range entries {
		ids = append(ids, entry.ID)
		if !slices.ContainsFunc(want, func(m shown) bool { return m.Key == entry.Key }) {
			want = append(want, entry)
		}
	}
	require.Len(t, want, count)
	got := tb.messages()
	for i := range got {
		got[i].State = ""
	}
	require.Equal(t, want, got)
	// The messages of the stream may arrive shortly after a reply.
	tb.await("window.received.length >= %d", len(ids))
	require.Equal(t, ids, eval[[]string](tb, "window.received"), "a gap or a repeat in the event stream")
}

// requireTabOrder says that the Tab key visits every control, each of them visibly.
func requireTabOrder(t *testing.T, tb *tab) {
	t.Helper()
	missing := eval[[]string](tb, `[...document.querySelectorAll("#chat :is(a, button, input, textarea)")]
		.filter((e) => e.checkVisibility() && !e.disabled).map((e) => e.id || e.textContent)`)
	require.Contains(t, missing, "send")
	for range 2 * len(missing) {
		tb.do(chromedp.KeyEvent(kb.Tab))
		at := eval[struct {
			Name    string
			Visible bool
		}](tb, `(() => {
			const e = document.activeElement, shown = e.id === "text" ? e.form : e, style = getComputedStyle(shown), box = e.getBoundingClientRect();
			return {Name: e === document.body ? "" : e.id || e.textContent, Visible: (style.outlineStyle !== "none" || style.boxShadow !== "none") && box.top >= 0};
		})()`)
		require.True(t, at.Visible || at.Name == "", "it is not visible that %s has the focus", at.Name)
		missing = slices.DeleteFunc(missing, func(name string) bool { return name == at.Name })
	}
	require.Empty(t, missing, "the Tab key does not get there")
}

// requireNoSideways says that nothing is wider than the screen.
func requireNoSideways(t *testing.T, tb *tab) {
	t.Helper()
	tb.await("document.getAnimations().every((a) => a.effect.getTiming().iterations === Infinity)")
	require.Empty(t, eval[[]string](tb, `[...document.querySelectorAll("body, body *")]
		.filter((e) => {
			if (!e.checkVisibility() || e.closest("[inert], .skip")) return false;
			for (let up = e; up; up = up.parentElement) {
				if (getComputedStyle(up).clipPath !== "none") return false; // only for screen readers
			}
			return true;
		})
		.filter((e) => e.getBoundingClientRect().right > innerWidth + 0.5 || e.getBoundingClientRect().left < -0.5)
		.map((e) => e.tagName + "." + e.className + "#" + e.id)`))
	require.True(t, eval[bool](tb, "document.documentElement.scrollWidth <= innerWidth && document.querySelector('#scroll').scrollWidth <= document.querySelector('#scroll').clientWidth"))
}

// requireNamedControls says that whatever can be used has a name that a screen reader can read,
// and returns the roles on the page.
func requireNamedControls(t *testing.T, tb *tab) (roles []string) {
	t.Helper()
	var nodes []*accessibility.Node
	tb.do(chromedp.ActionFunc(func(ctx context.Context) (err error) {
		nodes, err = accessibility.GetFullAXTree().Do(ctx)
		return err
	}))
	controls := 0
	for _, node := range nodes {
		role, name := axText(t, node.Role), axText(t, node.Name)
		if node.Ignored {
			continue
		}
		roles = append(roles, role)
		switch role {
		case "button", "link", "textbox", "searchbox", "checkbox", "DisclosureTriangle", "region", "log":
			controls++
			require.NotEmpty(t, strings.TrimSpace(name), "a %s without a name", role)
		}
	}
	require.Greater(t, controls, 2)
	return roles
}

func axText(t *testing.T, value *accessibility.Value) string {
	t.Helper()
	var text string
	if value != nil && len(value.Value) > 0 {
		require.NoError(t, json.Unmarshal(value.Value, &text))
	}
	return text
}

package main

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels/examples/internal/browsertest"
	"github.com/flaminco/redischannels/internal/redistest"
	"github.com/flaminco/redischannels/sse"
)

// One question at a time is answered in a room; what is sent again is the same question; another user
// stops the answer, which then becomes a message.
func TestAssistant(t *testing.T) {
	t.Parallel()
	chat := startChat(t, func(c *config) { c.wordPause = 5 * time.Millisecond })
	mira, theo := chat.signedIn(t, "Mira", ""), chat.signedIn(t, "Theo", "")
	messages, stop := mira.follow("rooms/lounge/events", "")
	defer stop()
	ask := func(v *visitor, key, text string) int {
		return v.call("POST", "rooms/lounge/questions", map[string]any{"key": key, "text": text}, nil)
	}
	next := func() (m Message) {
		t.Helper()
		event := <-messages
		require.NoError(t, json.Unmarshal([]byte(event[strings.Index(event, "{"):]), &m), event)
		return m
	}
	require.Equal(t, 204, theo.call("DELETE", "rooms/lounge/answer", nil, nil), "nothing to stop")
	require.Equal(t, 201, ask(mira, "question-1", "What are streams?"))
	require.Equal(t, 201, ask(mira, "question-1", "What are streams?"), "sent again")
	require.Equal(t, 409, ask(theo, "question-2", "And groups?"))
	require.Equal(t, 422, ask(theo, "question-3", ""))
	answer, stopAnswer := theo.follow("rooms/lounge/answer", "")
	defer stopAnswer()
	require.Contains(t, <-answer, " start ")
	require.Contains(t, <-answer, `"That "`)
	require.Equal(t, 204, theo.call("DELETE", "rooms/lounge/answer", nil, nil))
	question := next()
	require.True(t, question.Question)
	require.Equal(t, "Mira", question.From.Name)
	said := next()
	require.Equal(t, assistantUser, said.From)
	require.Equal(t, "answer-question-1", said.Key)
	require.True(t, strings.HasPrefix(generate("streams"), said.Text), said.Text)
	for event := range answer {
		if strings.Contains(event, " end ") {
			require.Contains(t, event, string(sse.RunStopped))
		}
	}
	require.Equal(t, 201, ask(theo, "question-2", "And groups?"))
	require.Equal(t, "question-2", next().Key)
	require.Equal(t, generate("And groups?"), next().Text)
}

// answerOf is the answer to the last question as the page shows it, growing or as a message.
const answerOf = `[...document.querySelectorAll("#log .message[data-from=assistant] .text")].at(-1)?.textContent ?? ""`

// answering reports how the answer stands that is no message yet.
const answering = `[...document.querySelectorAll("#log [data-answering]")].at(-1)?.dataset.answering ?? ""`

func (tb *tab) ask(text string) {
	tb.t.Helper()
	tb.do(chromedp.Click("#ask", chromedp.ByQuery))
	tb.say(text)
}

// TestAssistantPage is about answers in a real browser, on two instances over one real Redis.
func TestAssistantPage(t *testing.T) {
	server := redistest.Start(t)
	browser := browsertest.Start(t)
	first, second := startInstance(t, server), startInstance(t, server)
	mira, phone := newTab(t, browser), newTab(t, browser)
	mira.signIn(first.addr, "assistant", "Mira", "")
	phone.signIn(second.addr, "assistant", "Mira's phone", "")
	// Two devices at two instances see the same words, also one that reloads in the middle.
	mira.ask("What is a consumer group?")
	for _, tb := range []*tab{mira, phone} {
		tb.await("(%s).length > 40", answerOf)
		require.Equal(t, "running", eval[string](tb, answering))
	}
	before := eval[string](phone, answerOf)
	phone.do(chromedp.Reload())
	phone.await("(%s).length > %d", answerOf, len(before))
	require.True(t, strings.HasPrefix(eval[string](phone, answerOf), before))
	require.Equal(t, "running", eval[string](phone, answering))
	full := generate("What is a consumer group?")
	for _, tb := range []*tab{mira, phone} {
		tb.await("(%s) === %q", answerOf, full)
		tb.await("(%s) === ''", answering) // it is a message now
		require.Equal(t, 1, eval[int](tb, `document.querySelectorAll("#log .message[data-from=assistant]").length`))
	}

	// The other device stops it.
	mira.ask("And what is a lease?")
	phone.await("(%s) === 'running' && (%s).length > 20", answering, answerOf)
	phone.do(chromedp.Click("[data-answering=running] button", chromedp.ByQuery))
	for _, tb := range []*tab{mira, phone} {
		tb.await("(%s) !== 'running'", answering)
		tb.await(`document.querySelectorAll("#log .message[data-from=assistant][data-id]").length === 2`)
		require.Less(t, len(eval[string](tb, answerOf)), len(full))
	}
	require.Equal(t, eval[string](mira, answerOf), eval[string](phone, answerOf))

	// The instance that answers is killed: the others learn that, also after a reload.
	mira.ask("What happens in a crash?")
	phone.await("(%s) === 'running' && (%s).length > 20", answering, answerOf)
	first.child.Kill()
	phone.await("(%s) === 'lost'", answering)
	lost := eval[string](phone, answerOf)
	phone.do(chromedp.Reload())
	phone.await("(%s) === 'lost' && (%s) === %q", answering, answerOf, lost)
	first.start()
	mira.await("(%s) === 'lost' && (%s) === %q", answering, answerOf, lost)
	mira.await("document.querySelector('#link').dataset.state === 'live'")
	phone.ask("And afterwards?")
	for _, tb := range []*tab{mira, phone} {
		tb.await("(%s) === 'running' && (%s).length > 20", answering, answerOf)
		tb.requireNothingRan()
	}
}

// Bug: each tab followed the answer by a connection of its own, and four tabs of one browser had none left
// to send by.
func TestAssistantTabs(t *testing.T) {
	browser := browsertest.Start(t)
	instance := startInstance(t, redistest.Start(t))
	tabs := []*tab{newTab(t, browser)}
	for range 3 {
		tabs = append(tabs, tabs[0].sibling(browser))
	}
	for i, tb := range tabs {
		tb.signIn(instance.addr, "tabs", fmt.Sprint("Person ", i), "")
	}
	tabs[0].ask("What is a tab?")
	for _, tb := range tabs {
		tb.await("(%s) === 'running' && (%s).length > 20", answering, answerOf)
	}
	tabs[1].say("hello")
	for _, tb := range tabs {
		tb.await(`document.querySelectorAll("#log .message[data-id]:not([data-from=assistant])").length === 2`)
	}

	for _, tb := range tabs {
		tb.await("(%s) === %q && (%s) === ''", answerOf, generate("What is a tab?"), answering)
	}

	// The one that has the stream leaves, one is reloaded, and all others see the rest.
	tabs[1].ask("And what is a lock?")
	tabs[1].await("(%s) === 'running' && (%s).length > 20", answering, answerOf)
	tabs[0].do(chromedp.Click("#leave", chromedp.ByQuery))
	tabs[2].do(chromedp.Reload())
	for _, tb := range tabs[1:] {
		tb.await("(%s).length > 60", answerOf)
		require.Equal(t, "running", eval[string](tb, answering))
	}
	tabs[3].do(chromedp.Click("[data-answering=running] button", chromedp.ByQuery))
	for _, tb := range tabs[1:] {
		tb.await("(%s) !== 'running'", answering)
		tb.await(`document.querySelectorAll("#log .message[data-from=assistant][data-id]").length === 2`)
		tb.requireNothingRan()
	}
	for _, tb := range tabs[1:] {
		require.Equal(t, eval[string](tabs[3], answerOf), eval[string](tb, answerOf))
	}
	require.True(t, strings.HasPrefix(generate("And what is a lock?"), eval[string](tabs[3], answerOf)))
}

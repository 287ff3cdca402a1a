package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/chromedp"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/examples/internal/browsertest"
	"github.com/flaminco/redischannels/internal/redistest"
)

// TestScreenshot writes the picture of the README, and only if it is asked to, by
//
//	CHAT_SCREENSHOT=../../docs/images/chat.png go test -run TestScreenshot ./chat
//
// (the path is seen from the folder of this file). CHAT_SCREENSHOT_PHONE and _DARK write others.
func TestScreenshot(t *testing.T) {
	file := os.Getenv("CHAT_SCREENSHOT")
	if file == "" {
		t.Skip("CHAT_SCREENSHOT names no file to write")
	}
	server := redistest.Start(t)
	client := server.Client(t)
	browser := browsertest.Start(t)
	first, second := startInstance(t, server), startInstance(t, server)
	ana, kenji, theo, mira := newTab(t, browser), newTab(t, browser), newTab(t, browser), newTab(t, browser)
	ana.signIn(second.addr, "support", "Anna Ruiz", testAdminKey)
	kenji.signIn(second.addr, "support", "Kenji Mori", "")
	theo.signIn(first.addr, "support", "Theo Brandt", "")
	mira.signIn(first.addr, "support", "Mira Kowalska", "")
	for _, room := range []string{"berlin-meetup", "release-2-4"} {
		require.NoError(t, client.ZAdd(t.Context(), directoryKey, redis.Z{Score: float64(time.Now().Unix()), Member: room}).Err())
	}

	at := time.Now().Add(-24 * time.Minute)
	for i, line := range []struct {
		tab          *tab
		pause        time.Duration
		text         string
		announcement bool
	}{
		{kenji, 0, "Morning! Could you change the address on my invoice to Lindenstraße 12? Thank you!", false},
		{ana, 3 * time.Minute, "Done, Kenji. The corrected invoice is on its way to your inbox.", false},
		{ana, 6 * time.Minute, "At 14:00 we move to new servers. Keep this page open: it reconnects by itself, and you will not miss a message.", true},
		{mira, 5 * time.Minute, "Does that also go for what I write at that moment?", false},
		{ana, time.Minute, "Yes. It is kept and sent as soon as you are back.", false},
		{mira, 2 * time.Minute, "I closed my laptop for lunch, and everything was there.", false},
		{mira, 10 * time.Second, "Every message once and in order. Lovely!", false},
	} {
		at = at.Add(line.pause)
		writeAt(t, client, "support", at, Message{
			Key: fmt.Sprintf("screenshot-%d", i), From: me(line.tab), Text: line.text, Announcement: line.announcement,
		})
	}
	mira.awaitDelivered(7)
	mira.await("document.querySelectorAll('#people li').length === 4")
	mira.do(emulation.SetLocaleOverride().WithLocale("en-GB"), emulation.SetTimezoneOverride(timezone(t)), chromedp.Reload())
	mira.awaitDelivered(7)
	mira.await("document.querySelectorAll('#people li').length === 4 && document.querySelectorAll('#rooms li').length === 5")
	mira.do(chromedp.Blur("#text", chromedp.ByQuery))

	shoot := func(file string, width, height int64, scale float64, scheme string) {
		if file == "" {
			return
		}
		mira.look(width, height, scale, scheme)
		theo.do(chromedp.SendKeys("#text", "Nice", chromedp.ByQuery))
		mira.await("document.querySelector('#typing').textContent !== ''")
		mira.photograph(file)
		time.Sleep(2100 * time.Millisecond) // the page reports typing every 2 s
	}
	shoot(file, 1120, 800, 1.5, "light")
	shoot(os.Getenv("CHAT_SCREENSHOT_DARK"), 1120, 730, 1, "dark")
	shoot(os.Getenv("CHAT_SCREENSHOT_PHONE"), 390, 780, 2, "light")
}

// TestScreenshotAnswer writes the picture of docs/runs.md, an answer that is being written, if
// CHAT_SCREENSHOT_ANSWER names it. _DARK and _PHONE write others, each also with the end -done.png.
func TestScreenshotAnswer(t *testing.T) {
	file := os.Getenv("CHAT_SCREENSHOT_ANSWER")
	if file == "" {
		t.Skip("CHAT_SCREENSHOT_ANSWER names no file to write")
	}
	server := redistest.Start(t)
	browser := browsertest.Start(t)
	instance := startInstance(t, server)
	mira := newTab(t, browser)
	mira.signIn(instance.addr, "lounge", "Mira Kowalska", "")
	mira.do(emulation.SetLocaleOverride().WithLocale("en-GB"), emulation.SetTimezoneOverride(timezone(t)), chromedp.Reload())
	mira.await("document.querySelector('#link').dataset.state === 'live'")
	for i, picture := range []struct {
		file, scheme  string
		width, height int64
		scale         float64
	}{
		{file, "light", 1120, 560, 1.5},
		{os.Getenv("CHAT_SCREENSHOT_ANSWER_DARK"), "dark", 1120, 560, 1},
		{os.Getenv("CHAT_SCREENSHOT_ANSWER_PHONE"), "light", 360, 740, 2},
	} {
		if picture.file == "" {
			continue
		}
		mira.look(picture.width, picture.height, picture.scale, picture.scheme)
		mira.ask([]string{"Why do you use Redis Streams?", "What is a consumer group?", "What happens in a tunnel?"}[i])
		mira.await("(%s) === 'running' && (%s).length > 350", answering, answerOf)
		mira.photograph(picture.file)
		mira.await("(%s) === ''", answering)
		mira.photograph(strings.TrimSuffix(picture.file, ".png") + "-done.png")
	}
}

// look sets the size and the colors of the page.
func (tb *tab) look(width, height int64, scale float64, scheme string) {
	tb.t.Helper()
	tb.do(
		emulation.SetDeviceMetricsOverride(width, height, scale, false),
		emulation.SetEmulatedMedia().WithFeatures([]*emulation.MediaFeature{
			{Name: "prefers-color-scheme", Value: scheme}, {Name: "prefers-reduced-motion", Value: "reduce"},
		}),
		chromedp.Evaluate("document.querySelector('#scroll').scrollTop = 1e6", nil),
	)
}

// photograph writes a picture of the page.
func (tb *tab) photograph(file string) {
	tb.t.Helper()
	var picture []byte
	tb.do(chromedp.ActionFunc(func(ctx context.Context) (err error) {
		picture, err = page.CaptureScreenshot().WithFormat(page.CaptureScreenshotFormatPng).WithOptimizeForSpeed(false).Do(ctx)
		return err
	}))
	require.NoError(tb.t, os.WriteFile(file, picture, 0o644))
	tb.t.Logf("%s: %d bytes", file, len(picture))
}

// timezone returns one in which it is the middle of the morning.
func timezone(t *testing.T) string {
	t.Helper()
	offset := 10 - time.Now().UTC().Hour()
	if offset < -11 {
		offset += 24
	}
	return fmt.Sprintf("Etc/GMT%+d", -offset) // the sign is that of POSIX: west is positive
}

// me is who the tab is.
func me(tb *tab) User {
	tb.t.Helper()
	return eval[User](tb, "fetch(`/api/session?as=${sessionStorage.getItem('chat-me')}`).then((r) => r.json())")
}

// writeAt puts a message into a room at a time of the past.
func writeAt(t *testing.T, client *redis.Client, room string, at time.Time, m Message) {
	t.Helper()
	payload, err := json.Marshal(m)
	require.NoError(t, err)
	fields, err := redischannels.WatermillMarshaler{}.Marshal(roomKey(room), message.NewMessage(watermill.NewUUID(), payload))
	require.NoError(t, err)
	var values []any
	for _, field := range fields {
		values = append(values, field.Name, field.Value)
	}
	require.NoError(t, client.XAdd(t.Context(), &redis.XAddArgs{
		Stream: roomKey(room), ID: fmt.Sprintf("%d-0", at.UnixMilli()), Values: values,
	}).Err())
}

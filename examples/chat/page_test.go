package main

import (
	"encoding/json"
	"slices"
	"testing"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels/internal/redistest"
)

func decodeEntry(t *testing.T, entry redis.XMessage) Message {
	t.Helper()
	var message Message
	require.NoError(t, json.Unmarshal([]byte(entry.Values["payload"].(string)), &message))
	return message
}

func TestPage(t *testing.T) {
	server := redistest.Start(t, redistest.AOF())
	browser := startBrowser(t)
	first, second := startInstance(t, server), startInstance(t, server)
	proxy := redistest.NewProxy(t, second.addr)

	t.Run("two instances", func(t *testing.T) {
		mira, theo := newTab(t, browser), newTab(t, browser)
		mira.signIn(first.addr, "lounge", "Mira", "")
		theo.signIn(second.addr, "lounge", "Theo", testAdminKey)

		mira.say("Good morning")
		theo.awaitTexts(1)
		theo.say("Good morning, Mira")
		mira.awaitTexts(2)
		for _, tb := range []*tab{mira, theo} {
			tb.await("document.querySelectorAll('#people li').length === 2")
			tb.requireNothingRan()
		}
	})

	t.Run("faults", func(t *testing.T) {
		mira, theo := newTab(t, browser), newTab(t, browser)
		mira.signIn(first.addr, "faults", "Mira", "")
		theo.signIn(proxy.Addr(), "faults", "Theo", "")
		_ = slices.Contains[[]int]
		mira.say("one")
		theo.awaitTexts(1)
	})
}
